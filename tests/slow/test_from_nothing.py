"""From a bare checkout to a feature's page in a terminal, killed on the way.

`featviz.py --feature 10204` asks, fetches a tiny Style50 from a hub on this machine, and goes on.
"""
import contextlib
import os
import pty
import shutil
import subprocess
import sys

from tests import tiny
from tests.slow.test_fetch import ROOT, UNET, hubs  # noqa: F401

COMMAND = [sys.executable, "featviz.py", "--feature", "10204", "--timestep", "361", "--seed", "1024", "--num-steps",
           "2", "--prior", "noise", "--frames", "2", "--finish-steps", "2"]


def in_terminal(folder, server, answer, until=lambda: False):
    """Run the command in a terminal: (exit code, what it showed); it is killed as soon as until()."""
    master, theirs = pty.openpty()
    env = os.environ | {"HF_ENDPOINT": server.url, "no_proxy": "*", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(COMMAND, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=env)
    os.close(theirs)
    os.write(master, answer)
    said = b""
    with contextlib.suppress(OSError):                          # the other end is closed
        while not until():
            said += os.read(master, 65536)
        process.kill()
    os.close(master)
    return process.wait(60), said.decode()


def test_from_the_question_to_the_page(hubs, tmp_path):  # noqa: F811
    leave = shutil.ignore_patterns(".*", "out", "runs", "tests", "docs", "style50", "sd14", "saemnesia", "__pycache__")
    folder, server = shutil.copytree(ROOT, tmp_path / "project", ignore=leave), hubs()
    server.publish(tiny.write_model(tmp_path / "made", activity=None, featviz=None, sae=dict(num_latents=20480)))
    partial = folder / f"weights/style50/{UNET}.partial"
    code, said = in_terminal(folder, server, b"n\r")
    assert code == 2 and "accept the licences? [y/N]" in said and not partial.exists(), said

    server.script, server.only = [{"hold": 2 ** 17}], UNET
    in_terminal(folder, server, b"y\r", lambda: partial.exists() and partial.stat().st_size)
    code, said = in_terminal(folder, server, b"y\r")
    assert code == 0 and "complete, every file verified" in said, said
    assert server.ranges()[-1] != "bytes=0-" and "look at out/style50/feature_10204/index.html" in said
    assert list(folder.glob("out/style50/feature_10204/t0361*/seed_1024.json"))
