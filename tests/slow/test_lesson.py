"""The lesson: its commands run and write the files that it names, its pictures are those of its commands, what it says
to change is there. Its numbers, with and without the changes: tests/slow/test_lesson_changes.py."""
import ast
import functools
import importlib
import inspect
import json
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image

import activity.__main__ as activity_command
import featviz
from command import device
from config import HOOK_POINT, configure
from pages import files
from toyworld.denoiser import names
from toyworld.drawings import OBJECTS, STYLES
from weights.load import load

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
TEXT = (DOCS / "lesson.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
SNIPPET, = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
PICTURES = re.findall(r'src="(pictures/lesson/[^"]*)" width="\d+" alt="([^"]+)"', TEXT)
CHAPTERS = re.findall(r"^## [1-9]\. .*?(?=^## )", TEXT, flags=re.MULTILINE | re.DOTALL)
# --no-finish; the same from noise; a finish from 500 that is as strong as it must be
STEERED, NOISE, FINISHED = "ef1b9fe5", "a14503a3", "421c62e4"
# where a kind of picture comes from: the lesson's name -> folder of results
SOURCES = {"0": f"out/toy/feature_00022/t0500-{STEERED}", "2": "out/none/toy/feature_00022/t0000-*",
           "3": "out/none/toy/feature_00022/t0500-*", "3_blind": "out/blind/toy/feature_00022/t0500-*",
           "4": f"out/toy/feature_00022/t0000-{NOISE}", "6": f"out/toy/channel_0006/t0500-{STEERED}",
           "7": f"out/toy/feature_00022/t0500-{FINISHED}"}
STEPS = {"num_steps": 2, "finish_steps": 2}


def edits():
    """[(function's dotted name, what goes, what comes)] of the lesson's changes, in order; nothing goes where a line is
    put first."""
    found = []
    for chapter in CHAPTERS:
        text = " ".join(chapter.partition("**Change the code.**")[2].split())
        where, = re.findall(r"In `(\w[\w.]+)`,", text)
        swap = re.search(r"replace `([^`]+)` by `([^`]+)`", text)
        line = re.search(r"first\W+in the function.*?`([^`]+)`", text)
        found.append((where, swap[1], swap[2]) if swap else (where, "", line[1]))
    return found


def change(source, function, old, new):
    """A module's text with one of these edits in one of its functions."""
    node, = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and n.name == function)
    lines = source.splitlines(keepends=True)
    if not old:                                                 # before all that is there but the docstring
        at = node.body[bool(ast.get_docstring(node))].lineno - 1
        return "".join([*lines[:at], f"    {new}\n", *lines[at:]])
    body = "".join(lines[node.lineno - 1:node.end_lineno])
    assert body.count(old) == 1, (function, old)
    return "".join(lines[:node.lineno - 1]) + body.replace(old, new) + "".join(lines[node.end_lineno:])


def shortened(argv):
    """The same command on the toy, whatever weights are there, in few steps; a trace keeps its hundred, which its file
    names count."""
    if argv[0] == "-m":
        return [*argv[2:], "--weights", "weights/toy", "--device", "cpu"]
    return [*argv[1:], "--batch-size", "1", "--weights", "weights/toy", "--device", "cpu"]


@pytest.fixture(scope="module")
def done(tmp_path_factory, one_thread):
    """A folder in which all commands were run, in order, the ascents in a few steps: as if those were the usual ones,
    so that results lie where the whole commands put them."""
    folder = tmp_path_factory.mktemp("lesson")
    (folder / "weights").symlink_to(ROOT / "weights")
    short = lambda own, preset="sae", **changes: configure(own, preset, **(STEPS | changes))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(device, "load", functools.cache(device.load))
        for command in COMMANDS:
            python, *argv = shlex.split(command)
            patch.setattr(featviz, "configure", configure if "--trace" in argv else short)
            main = activity_command.main if argv[:2] == ["-m", "activity"] else featviz.main
            assert python == "python" and main(shortened(argv)) == 0, command
        yield folder


def test_seven_chapters_each_with_a_command_a_picture_a_question_and_a_change():
    assert [chapter[3] for chapter in CHAPTERS] == list("1234567")
    for chapter in CHAPTERS:
        assert "```sh" in chapter and "<img" in chapter
        for part in ("**A question.**", "<details><summary>", "**Change the code.**"):
            assert chapter.count(part) == 1


def test_the_files_that_the_lesson_names_appear(done):
    named = re.findall(r"`(out/[^`]*\.\w+)`", TEXT)
    assert len(named) >= 8
    assert [name for name in named if not list(done.glob(name))] == []
    trace = done / SOURCES["0"] / "seed_1024_trace"
    assert all((trace / name).is_file() for name in re.findall(r"`(step_\d+_\w+\.png)`", TEXT))


def test_settings_have_the_folders_that_the_lesson_names():
    own = load(ROOT / "weights/toy", "cpu").settings
    usual = configure(own)
    noise, = [line for line in COMMANDS if "--prior noise" in line]
    for command, name in ((COMMANDS[0], STEERED), (noise, NOISE), (COMMANDS[-1], FINISHED)):
        given = vars(featviz.parse(shlex.split(command)[2:]))
        t, = given["timestep"] or [own["timestep"]]
        differs = {name: given[name] for name, value in vars(usual).items() if given.get(name, value) != value}
        recipe = {"job": {"feature": 22, "channel": None, "timestep": t, "seed": 1024}, "weights": "toy",
                  "hook_point": HOOK_POINT, "differs": differs}
        assert files.path_of("out", recipe).parent.name == f"t{t:04d}-{name}" and f"t{t:04d}-{name}" in TEXT


def test_the_snippet_names_every_picture(done, monkeypatch, capsys):
    monkeypatch.chdir(done)
    exec(compile(SNIPPET, "lesson.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert all(re.search(r"seed_\d+(\.finished)?\.png [A-Z]\w+ [01]\.\d\d$", line) for line in lines)
    assert len(lines) == 3 * len(SOURCES) + 3                   # of the last ones there are finished pictures, too


def decisive(config):
    """The settings that matter: without a steered start not those of one, without a finish not its own."""
    unused = ("prior_", "steer_") * (config["prior"] == "noise") + ("finish_",) * (not config["finish"])
    return {name: value for name, value in config.items() if not name.startswith(unused)}


def test_the_pictures_are_those_of_the_commands(done):
    """Same job and settings but for the number of steps; full runs take minutes."""
    assert sum(f.stat().st_size for f in (DOCS / "pictures/lesson").iterdir()) < 1_500_000
    assert {name for name, _ in PICTURES} == {f"pictures/lesson/{f.name}" for f in (DOCS / "pictures/lesson").iterdir()}
    seen = set()
    for name, _ in PICTURES:
        if found := re.fullmatch(r"pictures/lesson/(\w+)_seed_(\d+)\.png", name):
            shown = json.loads(Image.open(DOCS / name).text["featviz"])
            record, = done.glob(f"{SOURCES[found[1]]}/seed_{found[2]}.json")
            again = json.loads(record.read_text())["recipe"]
            assert decisive(shown["config"] | {"num_steps": 2}) == decisive(again["config"])
            assert shown["config"]["num_steps"] == 100
            assert shown["config"]["prior"] == ("steer" if found[1] in ("0", "6", "7") else "noise")
            assert shown["config"]["finish"] == (found[1] == "7")
            assert shown["job"] == again["job"] and shown["weights"] == "toy"
            seen.add(found[1])
    assert seen == set(SOURCES)


@pytest.mark.parametrize("where, old, new", edits())
def test_what_the_lesson_changes_is_there(where, old, new):
    """Every edit fits, and what it makes is a function as before."""
    module, _, name = where.rpartition(".")
    module = importlib.import_module(module)
    source = inspect.getsource(module)
    changed = change(source, name, old, new)
    assert changed != source and new in changed
    made = dict(vars(module))
    exec(compile(changed, module.__file__, "exec"), made)
    assert inspect.signature(made[name]) == inspect.signature(getattr(module, name))
    assert textwrap.dedent(inspect.getsource(getattr(module, name))) not in changed


def test_the_feature_is_the_strongest_of_the_kind_object_for_its_object():
    """And its direction lies along that of Flower, as chapter 6 says."""
    concepts = json.loads((ROOT / "weights/toy/concepts.json").read_text())["features"]
    known = max((c for c in concepts if c["kind"] == "object" and c["object"] == "Flower"),
                key=lambda c: c["activation"])
    assert f"--feature {known['feature']} " in COMMANDS[0]
    likeness = torch.nn.functional.cosine_similarity(
        load(ROOT / "weights/toy", "cpu").sae.W_dec[[22, 24, 21], None], names(), dim=2)        # (3, 18)
    flower, most = re.search(r"cosine of ([\d.]+\d); with no other is it above ([\d.]+\d)\.", TEXT).groups()
    assert round(likeness[0, 0].item(), 2) == float(flower) and round(likeness[0, 1:].max().item(), 2) == float(most)
    assert [[*OBJECTS, *STYLES][i] for i in likeness.argmax(dim=1)] == ["Flower", "Mosaic", "Neon"]


def test_there_is_a_change_a_chapter():
    assert [where for where, *_ in edits()] == [
        "ascent.activation", "ascent.adamw", "ascent.draw", "regularizers.spectral_filter", "activity.profile.profile",
        "ascent.measure", "finish.redraw"]
