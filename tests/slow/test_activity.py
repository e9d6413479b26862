"""Captures and runs as real processes: killed, and two at a time."""
import os
import signal
import subprocess
import sys
import time

import featviz
from tests.test_activity import SHORT, command, files, model, pytestmark, run, settings, weights, whole  # noqa: F401


def test_kill_9(weights, whole, tmp_path):  # noqa: F811
    """A real process, killed as soon as its first batch is on disk, then the same command again."""
    argv, folder = [sys.executable, *command(weights, tmp_path / "out")], tmp_path / "out/tiny/activity"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL)
    while not (folder / "images/00002.jpg").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out/tiny/activity/capture.json").exists()
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    assert "goes on after image" in done.stderr and files(tmp_path / "out/tiny/activity") == files(whole)


def test_two_processes_of_torchrun_write_what_one_writes(weights, whole, tmp_path):  # noqa: F811
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv = [sys.executable, *torchrun, *command(weights, tmp_path / "out")]
    subprocess.run(argv, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, check=True)
    assert files(tmp_path / "out/tiny/activity") == files(whole)


def test_two_processes_of_featviz_write_what_one_writes(weights, tmp_path):  # noqa: F811
    """At the same moment, as torchrun starts them; a third share of two features is empty."""
    flags = ["--weights", weights, "--timestep", 0, "--feature", 1, 2, "--prior", "noise", *SHORT]
    argv = [sys.executable, "featviz.py", *(str(f) for f in flags), "--out", str(tmp_path / "two")]
    env = [os.environ | {"OMP_NUM_THREADS": "1", "RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank} for rank in "01"]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = [subprocess.Popen(argv, env=e, **quiet) for e in env]
    assert [process.wait() for process in started] == [0, 0]
    assert run(featviz.main, *flags, "--out", tmp_path / "one") == 0
    assert files(tmp_path / "two") == files(tmp_path / "one") and len(files(tmp_path / "one")) >= 12
    assert run(featviz.main, *flags, "--out", tmp_path / "none", "--shard", "2/3") == 0
    assert not (tmp_path / "none").exists()
