"""Runs that end early: killed at random moments, interrupted, out of disk. What is finished stays, the rest is made
again, byte for byte.

The kills are real: another process, `kill -9` after a seeded delay. One here; test_kills.py does fifty.
"""
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import featviz
from tests.tiny import QUICK, edit_json, write_model

ROOT = Path(__file__).parent.parent.parent
KINDS = ("png", "safetensors", "finished.png", "steps.jpg", "json")
FEATURES, SEEDS = 16, (1, 2)
WINDOW = 1 / 3                                  # of a whole run, after the first result has begun: then the kill comes


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("weights") / "tiny")
    edit_json(folder / "featviz.json", presets={"sae": QUICK | {"prior": "noise"}})
    return folder


pytestmark = pytest.mark.usefixtures("one_thread")


def flags(weights, out, *more):
    return [str(a) for a in ("--weights", weights, "--out", out, "--device", "cpu", "--feature", *range(FEATURES),
                             "--timestep", 300, "--seed",
                             *SEEDS, "--num-steps", 2, "--prior", "noise", "--batch-size", 2, *more)]


def heeds_ctrl_c():
    """In a new process: a shell's background job ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def begin(weights, out, *more, **settings):
    """The command as a process of its own; returns when its first ascent begins, or when it has nothing to do."""
    process = subprocess.Popen([sys.executable, "featviz.py", *flags(weights, out, *more)], cwd=ROOT,
                               stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
                               **{"preexec_fn": heeds_ctrl_c} | settings)
    seen = b""
    while b"2 steps" not in seen and (line := process.stderr.readline()):
        seen += line
    return process, seen


def files(folder):
    """{path: bytes} of all that carries a final name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
            and p.suffix != ".partial"}


def finished(found):
    """Results whose record is there."""
    return {name.removesuffix(".json") for name in found if re.search(r"seed_\d+\.json$", name)}


def times(folder, stems):
    return {stem: (folder / f"{stem}.json").stat().st_mtime_ns for stem in stems}


def uninterrupted(weights, folder):
    """({path: bytes}, seconds) of a whole run; the seconds are those of this machine as it is now."""
    began = time.monotonic()
    assert featviz.main(flags(weights, folder / "whole")) == 0
    return files(folder / "whole"), time.monotonic() - began


def kill_and_resume(weights, run, folder, kills, seed=0):
    """Kill a run `kills` times, each time going on from what lies there; check what is on disk after each. Returns the
    number of kills that came while a run was at work, and how many results were finished when they came.
    """
    (whole, seconds), r, out, at_work, counts = run, random.Random(seed), folder / "out_0", 0, []
    while at_work < kills:
        before = times(out, finished(files(out))) if out.exists() else {}
        process, _ = begin(weights, out)
        time.sleep(r.uniform(0, WINDOW * seconds))
        process.kill()
        process.stderr.close()
        at_work += process.wait() == -signal.SIGKILL
        found = files(out)
        for name, data in found.items():        # whatever has a final name is whole
            assert "seed_" not in name or data == whole[name], name
        assert times(out, before) == before     # what was finished before was not touched
        counts.append(len(finished(found)))
        if process.returncode == 0:             # quicker than the kill: begin anew
            assert found == whole
            out = folder / f"out_{len(counts)}"
    process, _ = begin(weights, out)
    process.communicate()
    assert process.returncode == 0 and files(out) == whole
    assert not list(out.rglob("*.partial")), "a killed run's temporary files are still there"
    return at_work, counts


def test_a_kill(weights, tmp_path):
    """tests/slow/test_kills.py has fifty."""
    assert kill_and_resume(weights, uninterrupted(weights, tmp_path), tmp_path, 1)[0] == 1


def test_a_half_written_result_does_not_count_and_settings_are_never_mixed(weights, tmp_path):
    """Every state that a kill between two files can leave, made by hand, for the same settings and for others."""
    whole, other = tmp_path / "whole", tmp_path / "other"
    few = ("--feature", "3", "--seed", "1")
    run = lambda out, *more: featviz.main(flags(weights, out, *few, *more))
    assert run(whole) == run(other, "--learning-rate", "0.1") == 0
    stem, good = "tiny/feature_00003/t0300/seed_1", files(whole)
    old = {re.sub("t0300-[0-9a-f]{8}", "t0300", name): data for name, data in files(other).items()}
    assert all(good[f"{stem}.{kind}"] != old[f"{stem}.{kind}"] for kind in KINDS)
    states = [{"png": good}, {"png": good, "safetensors": good}, {"png": good, "safetensors": good, "json": good},
              {"png": good, "safetensors": old}, {"png": good, "safetensors": old, "json": old},
              {"png": old, "safetensors": old, "json": old}, {"png": old, "safetensors": good, "json": good}]
    for i, state in enumerate(states):
        out = tmp_path / f"out_{i}"
        (out / stem).parent.mkdir(parents=True)
        for kind, source in state.items():
            (out / f"{stem}.{kind}").write_bytes(source[f"{stem}.{kind}"])
        for kind in KINDS:
            (out / f"{stem}.{kind}.partial").write_bytes(b"half")
        assert run(out) == 0 and files(out) == good, state.keys()
        assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_damaged_later_is_made_again(kind, weights, tmp_path):
    run = lambda: featviz.main(flags(weights, tmp_path, "--feature", "3", "--seed", "1"))
    assert run() == 0
    whole, path = files(tmp_path), tmp_path / f"tiny/feature_00003/t0300/seed_1.{kind}"
    for damaged in (whole[path.relative_to(tmp_path).as_posix()][:-20], b""):
        path.write_bytes(damaged)
        assert run() == 0 and files(tmp_path) == whole


def test_ctrl_c(weights, tmp_path):
    """Exit code 130, one line, finished results stay."""
    process, _ = begin(weights, tmp_path)
    while len(finished(files(tmp_path))) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130 and b"Traceback" not in error
    assert error.splitlines()[-1] == b"featviz: interrupted; finished results stay, the same command goes on from there"
    assert len(finished(files(tmp_path))) >= 2 and not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("loaded", ["torch._utils", "numpy._core.multiarray", "numpy.linalg", "torch.nn"])
def test_ctrl_c_while_torch_is_imported(loaded, weights, tmp_path):
    """One line as well, in the middle of numpy, too: torch imports it, and hides where that fails. The interpreter
    tells of each module that it has loaded; torch itself comes last."""
    process = subprocess.Popen([sys.executable, "-X", "importtime", "featviz.py", *flags(weights, tmp_path / "out")],
                               cwd=ROOT, stderr=subprocess.PIPE, preexec_fn=heeds_ctrl_c)
    seen = []
    while loaded.encode() not in [line.split(b"|")[-1].strip() for line in seen[-1:]]:
        seen.append(process.stderr.readline())
        assert seen[-1], "it ended before"
    process.send_signal(signal.SIGINT)
    lines = [line for line in process.communicate()[1].splitlines() if not line.startswith(b"import time:")]
    assert b"torch" not in [line.split(b"|")[-1].strip() for line in seen]
    assert process.returncode == 130 and [line for line in lines if line] == [
        b"featviz: interrupted; finished results stay, the same command goes on from there"]
    assert not (tmp_path / "out").exists()


def piped(*flags, head):
    """stderr of `python featviz.py` whose stdout is closed after so many lines."""
    process = subprocess.Popen([sys.executable, "featviz.py", *map(str, flags)], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for _ in range(head):
        process.stdout.readline()
    process.stdout.close()
    return process.stderr.read(), process.wait()


def test_whoever_reads_the_first_line_alone_has_the_page_all_the_same(weights, out):
    error, code = piped("--weights", weights, "--out", out, "--timestep", 300, "--batch-size", 1, "--device", "cpu",
                        head=1)
    assert code == 0 and "Broken pipe" not in error and (out / "tiny/feature_00003/index.html").exists()
    assert len(list(out.rglob("seed_*.json"))) == 5


def test_a_file_that_the_system_does_not_take(weights, tmp_path):
    """A limit on the size of files, as a quota sets it: the record does not fit, the others do."""
    process, seen = begin(weights, tmp_path, "--feature", "3",
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)))
    error = process.communicate()[1].splitlines()[-1]
    assert (
        process.returncode == 2
        and error.startswith(b"featviz: [Errno 27] File too large: ")
        and b"finished results stay" in error
    )
    assert finished(files(tmp_path)) == set() and not list(tmp_path.rglob("*.partial"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk(kind, weights, tmp_path, capsys):
    """The system's own refusal: the temporary file is one that takes nothing."""
    out, path = tmp_path / "out", tmp_path / f"out/tiny/feature_00003/t0300/seed_1.{kind}"
    path.parent.mkdir(parents=True)
    path.with_name(path.name + ".partial").symlink_to("/dev/full")
    command = flags(weights, out, "--feature", "3", "--seed", "1")
    assert featviz.main(command) == 2
    assert (
        f"[Errno 28] No space left on device: '{path}'; make room or give another --out"
        in capsys.readouterr().err.splitlines()[-1]
    )
    assert finished(files(out)) == set() and not list(out.rglob("*.partial"))
    assert featviz.main(command) == 0 and len(finished(files(out))) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no folder that nobody can write to")
def test_an_unwritable_folder(weights, capsys):
    assert featviz.main(flags(weights, "/proc/featviz")) == 2
    error = capsys.readouterr().err.splitlines()
    assert (
        error[-1].startswith("featviz: [Errno ") and "/proc/featviz" in error[-1] and "give another --out" in error[-1]
    )
