"""The lesson: its commands run and write the files that it names, its pictures are those of its commands, what it says to change is there."""
import functools
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from activity import profile
import profile.__main__ as activity_command
import featviz
from command import device
import ascent
import regularizers

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "lesson.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
SNIPPET, = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
PICTURES = re.findall(r'src="(lesson/[^"]*)" width="\d+" alt="([^"]+)"', TEXT)
CHAPTERS = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
# where a kind of picture comes from: the lesson's name -> folder of results
SOURCES = {"0": "out/toy/feature_00169/t0600", "2": "out/none/toy/feature_00169/t0000", "3": "out/none/toy/feature_00169/t0600",
           "3_blind": "out/blind/toy/feature_00169/t0600", "4": "out/toy/feature_00169/t0000", "6": "out/toy/channel_0093/t0600"}
STEPS = 2


def shortened(argv):
    """The same command on the toy, whatever weights are there, in few steps; a trace keeps its hundred, which its file names count."""
    if argv[0] == "activity.py":
        return [*argv[1:], "--weights", "weights/toy", "--device", "cpu"]
    steps = [] if "--trace" in argv else ["--num-steps", str(STEPS)]
    return [*argv[1:], *steps, "--batch-size", "1", "--weights", "weights/toy", "--device", "cpu"]


@pytest.fixture(scope="module")
def done(tmp_path_factory, one_thread):
    """A folder in which all commands were run, in order."""
    folder = tmp_path_factory.mktemp("lesson")
    (folder / "weights").symlink_to(ROOT / "weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(device, "load", functools.cache(device.load))
        for command in COMMANDS:
            python, *argv = shlex.split(command)
            main = {"featviz.py": featviz.main, "activity": activity_command.main}[argv[0]]
            assert python == "python" and main(shortened(argv)) == 0, command
        yield folder


def test_six_chapters_each_with_a_command_a_picture_a_question_and_a_change():
    chapters = [c for c in CHAPTERS if re.match(r"[1-6]\. ", c)]
    assert len(chapters) == 6
    for chapter in chapters:
        assert "```sh" in chapter and "<img" in chapter
        assert chapter.count("**A question.**") == chapter.count("<details><summary>") == chapter.count("**Change the code.**") == 1


def test_the_files_that_the_lesson_names_appear(done):
    named = [name for name in re.findall(r"`(out/[^`]*)`", TEXT) if "<" not in name]
    assert len(named) >= 5
    assert [name for name in named if not (done / name).is_file()] == []
    trace = done / "out/toy/feature_00169/t0600/seed_1024_trace"
    assert all((trace / name).is_file() for name in re.findall(r"`(step_\d+_\w+\.png)`", TEXT))


def test_the_snippet_names_every_picture(done, monkeypatch, capsys):
    monkeypatch.chdir(done)
    exec(compile(SNIPPET, "lesson.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * len(SOURCES) and all(re.search(r"seed_\d+\.png [A-Z]\w+ [01]\.\d\d$", line) for line in lines)


def decisive(config):
    """The settings that matter where the start is noise."""
    return {name: value for name, value in config.items() if not name.startswith(("prior_", "steer_"))}


def test_the_pictures_are_those_of_the_commands(done):
    """Same job and settings but for the number of steps; full runs take minutes."""
    assert sum(f.stat().st_size for f in (ROOT / "lesson").iterdir()) < 1_500_000
    assert {name for name, _ in PICTURES} == {f"lesson/{f.name}" for f in (ROOT / "lesson").iterdir()}
    seen = set()
    for name, _ in PICTURES:
        if found := re.fullmatch(r"lesson/(\w+)_seed_(\d+)\.png", name):
            shown = json.loads(Image.open(ROOT / name).text["featviz"])
            again = json.loads((done / SOURCES[found[1]] / f"seed_{found[2]}.json").read_text())["recipe"]
            assert decisive(shown["config"]) == decisive(again["config"]) | {"num_steps": 100} and shown["config"]["prior"] == "noise"
            assert shown["job"] == again["job"] and shown["weights"] == "toy"
            seen.add(found[1])
    assert seen == set(SOURCES)


@pytest.mark.parametrize("function, text", [
    (ascent.activation, ".mean(dim=1)"), (ascent.adamw, "return z, mean, square"), (ascent.draw, "torch.randn(shape, generator=generator)"),
    (regularizers.spectral_filter, "torch.fft.fft2(g) / (r + 1)"), (profile.profile, "return shares if shares.any() else"),
    (ascent.measure, "model.sae.pre_acts(h)")])
def test_what_the_lesson_changes_is_there(function, text):
    assert f"{function.__module__}.{function.__name__}" in TEXT
    assert inspect.getsource(function).count(text) == 1
