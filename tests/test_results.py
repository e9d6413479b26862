"""Results on disk: when one is computed again, what is left out, and what a kill or a full disk leaves."""
import errno
import io
import json
import os
import shutil
import tokenize

import pytest

import featviz
import results
from tests import made
from tests.test_cli import KINDS, files, once, run, short  # noqa: F401
from tests.test_house import graph

STEM = "tiny/feature_00003/t0300/seed_5"
TWO = ("--seed", 1, 5, "--batch-size", 1)

pytestmark = pytest.mark.usefixtures("loaded_once")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the method's files from which its fingerprint is taken."""
    for name in results.METHOD:
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(results.PROJECT / f"{name}.py", tmp_path / f"code/{name}.py")
    monkeypatch.setattr(results, "PROJECT", tmp_path / "code")
    yield tmp_path / "code"
    results.method_code.cache_clear()


def code_now():
    results.method_code.cache_clear()
    return results.method_code()


def with_another_number(text):
    """The text of a file with its last number one larger."""
    *_, last = (t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.NUMBER)
    lines = text.splitlines(keepends=True)
    line = lines[last.start[0] - 1]
    lines[last.start[0] - 1] = f"{line[:last.start[1]]}({last.string} + 1){line[last.end[1]:]}"
    return "".join(lines)


# --- the method's fingerprint -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["config", "weights/load", "activity/profile"])
def test_another_number_anywhere_in_the_method_is_other_code(name, project):
    """A comment and a docstring change nothing."""
    path, before = project / f"{name}.py", code_now()
    text = path.read_text()
    path.write_text(text.replace('"""', '"""Another sentence. ', 1) + "\n# a comment\n")
    assert code_now() == before
    path.write_text(with_another_number(text))
    assert code_now() != before


def test_the_fingerprint_holds_every_file_that_a_latent_comes_through():
    """All that the course of a batch, the loading and the capture's curves import."""
    edges, reached = graph(), set()
    todo = {"visualize", "weights.load", "activity.profile"}
    while todo:
        reached |= todo
        todo = {other for name in todo for other in edges[name]} - reached
    no_latent = {"results", "command/progress"}
    assert {name.replace(".", "/") for name in reached} - no_latent == set(results.METHOD)


def test_what_other_code_made_is_made_again(weights, once, out, project, capsys):  # noqa: F811
    shutil.copytree(once, out)
    first, path = files(out), project / "activity/profile.py"   # where the strength of a steered start comes from
    path.write_text(with_another_number(path.read_text()))
    code_now()
    assert run(weights, out, "--seed", 5) == 0
    assert "1 results were made with other weights or other code and are computed again" in capsys.readouterr().err
    assert results.read_result(out / f"{STEM}.json").recipe["code"] == code_now()
    assert files(out)[f"{STEM}.safetensors"] == first[f"{STEM}.safetensors"]


# --- whole, lost, foreign ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_a_result_that_lost_a_file_or_an_end_of_it_counts_no_longer(kind, once, out):  # noqa: F811
    shutil.copytree(once, out)
    path, recipe = out / f"{STEM}.{kind}", results.read_result(out / f"{STEM}.json").recipe
    assert results.why_to_compute(out, recipe, [0, 1, 2]) == ""
    assert results.why_to_compute(out, recipe, [3]) == "missing"
    path.write_bytes(path.read_bytes()[:-20])
    assert results.why_to_compute(out, recipe) == "missing"
    path.unlink()
    assert results.why_to_compute(out, recipe) == "missing"


def test_a_record_of_another_version_is_left_out(tmp_path):
    """Also what is no record at all, and one whose picture is gone."""
    folder = tmp_path / "toy/feature_00004"
    good = made.result(folder, seed=1)
    old = json.loads(good.read_text())
    old["recipe"]["job"] = {"feature": 4, "channel": None, "timestep": 300, "seed": 2}
    for seed, text in ((2, json.dumps(old)), (3, "{"), (4, "[]"), (5, '{"recipe": 7}')):
        good.with_name(f"seed_{seed}.json").write_text(text)
    made.result(folder, seed=6).with_suffix(".png").unlink()
    assert [r.path.stem for r in results.read_results(folder)] == ["seed_1"]


def test_places_and_names():
    at = lambda *what: results.folder_of("out", "toy", *what).as_posix()
    assert at(results.HOOK_POINT, "feature", 12) == "out/toy/feature_00012"
    assert at("mid_block.attentions.0", "channel", 7) == "out/toy/mid_block.attentions.0_channel_0007"
    assert at(results.HOOK_POINT, "direction", "a.b") == "out/toy/direction_a.b"
    with pytest.raises(ValueError, match="holds no results; give a folder that featviz.py wrote"):
        results.feature_folders("nowhere")


# --- kills and full disks ---------------------------------------------------------------------------------------------

def test_files_appear_whole_and_the_record_last(weights, out, monkeypatch):
    order, replace = [], os.replace
    monkeypatch.setattr(results.os, "replace", lambda source, target: (order.append(str(target)),
                                                                       replace(source, target)))
    assert run(weights, out, "--seed", 5) == 0
    assert [name for name in order if "seed_" in name] == [str(out / f"{STEM}.{kind}") for kind in KINDS]


def test_a_full_disk_ends_in_one_line_and_leaves_nothing_half_written(weights, out, capsys, monkeypatch):
    """In the middle of the second result. After room was made, the same command goes on to the same bytes."""
    assert featviz.main(short(weights, out, *TWO)) == 0
    whole, replace, left = files(out), os.replace, [len(KINDS) + 3]   # the folder itself is tried first
    shutil.rmtree(out)

    def limited(source, target):
        left[0] -= str(out) in str(target)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(results.os, "replace", limited)
        assert featviz.main(short(weights, out, *TWO)) == 2
    last, found = capsys.readouterr().err.splitlines()[-1], files(out)
    assert last.startswith("featviz: [Errno 28] No space left on device: ") and str(out) in last and "make room" in last
    assert len(found) == len(KINDS) + 2 and found.items() <= whole.items()
    assert featviz.main(short(weights, out, *TWO)) == 0 and files(out) == whole


def test_a_folder_that_cannot_be_written_is_noticed_before_anything_is_computed(weights, out, capsys, monkeypatch):
    out.write_text("mine")
    monkeypatch.setattr("visualize.run", lambda *_: pytest.fail("computed for nothing"))
    assert run(weights, out) == 2 and out.read_text() == "mine"
    assert str(out) in (error := capsys.readouterr().err) and error.count("\n") == 1 and "another folder" in error
