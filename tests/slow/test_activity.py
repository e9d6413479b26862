"""A capture as a real process that is killed."""
import os
import signal
import subprocess
import sys
import time

from tests.test_activity import files, flags, model, settings, weights, whole  # noqa: F401


def test_kill_9(weights, whole, tmp_path):  # noqa: F811
    """Killed as soon as the first batch is on disk; the same command again writes what one run writes."""
    out = tmp_path / "out"
    argv = [sys.executable, "-m", "activity", *map(str, flags(weights, out)), "--out", str(out), "--device", "cpu"]
    folder, env = out / "tiny/activity", os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL)
    while not (folder / "images/00002.jpg").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "capture.json").exists()
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    assert "goes on after" in done.stderr and files(folder) == files(whole)
