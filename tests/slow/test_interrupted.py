"""Runs that end early: killed at random moments, interrupted, read to the first line. What is finished stays, the rest
is computed again, byte for byte: batches are cut from the whole list of jobs, whichever of them are there already.

The kills are real: another process, `kill -9` after a seeded delay.
"""
import os
import random
import signal
import subprocess
import sys
import time

import pytest

import featviz
import results
from tests.test_cli import files, stems

KILLS = 4
FEW = ("--feature", "0-4", "--seed", 1, "--batch-size", 2)      # five steered jobs: two batches of two and one of one


def flags(weights, out, *more):
    return [str(a) for a in ("--weights", weights, "--out", out, "--device", "cpu", "--timestep", 300, *more)]


def begin(weights, out):
    """Start the command as a process and return it when its first batch begins, or when it has nothing to do."""
    process = subprocess.Popen([sys.executable, "featviz.py", *flags(weights, out, *FEW)], cwd=results.PROJECT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    while (line := process.stderr.readline()) and b"results to compute" not in line:
        pass
    return process


def finished(out):
    """Results whose record is there."""
    return {stem for stem in stems(out) if (out / f"{stem}.json").exists()}


def times(out, found):
    return {stem: (out / f"{stem}.json").stat().st_mtime_ns for stem in found}


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory):
    """({path: bytes} of an undisturbed run, its seconds on this machine as it is now)."""
    out, began = tmp_path_factory.mktemp("whole") / "out", time.monotonic()
    assert featviz.main(flags(weights, out, *FEW)) == 0
    return files(out), time.monotonic() - began


def test_kills(weights, whole, tmp_path):
    """After each, what carries a final name is whole and what was finished is untouched; at the end all files are those
    of the undisturbed run. A run that ends before its kill makes room for a new one."""
    (expected, seconds), r, out, at_work = whole, random.Random(0), tmp_path / "0", []
    while len(at_work) < KILLS:
        before = times(out, finished(out))
        process = begin(weights, out)
        time.sleep(r.uniform(0, 0.7 * seconds))
        process.kill()
        process.stderr.close()
        if process.wait() == 0:
            assert files(out) == expected
            out = tmp_path / str(len(at_work))
            continue
        at_work.append(len(finished(out)))
        assert all(data == expected[name] for name, data in files(out).items()
                   if "seed_" in name and not name.endswith(".partial"))
        assert times(out, before) == before
    print(f"results that were finished after each kill: {at_work}")
    begin(weights, out).communicate()
    assert files(out) == expected                               # no temporary file of a killed run is left


@pytest.mark.parametrize("saved", [0, 1, 4])
def test_ctrl_c_after_any_result_also_inside_a_batch(saved, weights, whole, tmp_path, capsys, monkeypatch):
    """Exit code 130 and one line; the same command computes only the batches that lack a result."""
    done, save = [], results.save

    def interrupt(*args):
        if len(done) == saved:
            raise KeyboardInterrupt
        done.append(save(*args))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(results, "save", interrupt)
        assert featviz.main(flags(weights, tmp_path, *FEW)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "featviz: interrupted; finished results stay, the same command goes on from there")
    assert len(finished(tmp_path)) == len(stems(tmp_path)) == saved
    before = times(tmp_path, finished(tmp_path))
    assert featviz.main(flags(weights, tmp_path, *FEW)) == 0
    assert files(tmp_path) == whole[0] and times(tmp_path, before) == before


def heeds_ctrl_c():
    """In a new process: a shell's background job ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_while_torch_is_imported(weights, tmp_path):
    """The interpreter says of each module that it has loaded."""
    process = subprocess.Popen([sys.executable, "-X", "importtime", "featviz.py", *flags(weights, tmp_path / "out")],
                               cwd=results.PROJECT, stderr=subprocess.PIPE, preexec_fn=heeds_ctrl_c)
    while (line := process.stderr.readline()) and b" torch._utils" not in line:
        pass
    process.send_signal(signal.SIGINT)
    lines = [line for line in process.communicate()[1].splitlines() if line and not line.startswith(b"import time:")]
    assert process.returncode == 130 and lines == [
        b"featviz: interrupted; finished results stay, the same command goes on from there"]
    assert not (tmp_path / "out").exists()


def test_who_reads_the_first_line_alone_has_the_page_all_the_same(weights, tmp_path):
    process = subprocess.Popen([sys.executable, "featviz.py", *flags(weights, tmp_path, *FEW)], cwd=results.PROJECT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 0 and b"Broken pipe" not in error
    assert len(finished(tmp_path)) == 5 and (tmp_path / "tiny/index.html").exists()
