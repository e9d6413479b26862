"""From a bare checkout to a feature's page in a terminal, killed on the way.

`featviz.py --feature 10204` asks, fetches a tiny Style50 from a hub on this machine, and goes on.
"""
import contextlib
import os
import pty
import shutil
import subprocess
import sys

import pytest

from tests import tiny
from tests.slow.test_fetch import ROOT, UNET, Hub

COMMAND = [sys.executable, "featviz.py", "--feature", "10204", "--timestep", "361", "--seed", "1024", "--num-steps",
           "2", "--prior", "noise", "--frames", "2", "--finish-steps", "2"]


@pytest.fixture
def bare(tmp_path):
    """(folder of a checkout without Stable Diffusion, its environment, the hub)."""
    leave = shutil.ignore_patterns(".*", "out", "runs", "tests", "docs", "style50", "sd14", "saemnesia", "__pycache__")
    folder, server = shutil.copytree(ROOT, tmp_path / "project", ignore=leave), Hub()
    server.publish(tiny.write_model(tmp_path / "made", activity=None, featviz=None, sae=dict(num_latents=20480)))
    yield folder, os.environ | {"HF_ENDPOINT": server.url, "no_proxy": "*", "OMP_NUM_THREADS": "1"}, server
    server.release.set()
    server.shutdown()
    server.server_close()


def test_without_a_terminal_one_line_names_the_command(bare):
    folder, env, _ = bare
    done = subprocess.run(COMMAND, cwd=folder, env=env, capture_output=True, text=True, input="y\n")
    assert done.returncode == 2 and "--feature 10204: the toy has " in done.stderr and done.stderr.count("\n") == 1
    assert "python weights/fetch.py style50 fetches Style50" in done.stderr


def in_terminal(bare, answer, until=lambda: False):
    """Run the command in a terminal: (exit code, what it showed); it is killed as soon as until()."""
    master, theirs = pty.openpty()
    process = subprocess.Popen(COMMAND, stdin=theirs, stdout=theirs, stderr=theirs, cwd=bare[0], env=bare[1])
    os.close(theirs)
    os.write(master, answer)
    said = b""
    with contextlib.suppress(OSError):                          # the other end is closed
        while not until():
            said += os.read(master, 65536)
        process.kill()
    os.close(master)
    return process.wait(60), said.decode()


def test_from_the_question_to_the_page(bare):
    folder, _, server = bare
    partial = folder / f"weights/style50/{UNET}.partial"
    code, said = in_terminal(bare, b"n\r")
    assert code == 2 and "accept the licences? [y/N]" in said and not partial.exists(), said

    server.script, server.only = [{"hold": 2 ** 17}], UNET
    in_terminal(bare, b"y\r", lambda: partial.exists() and partial.stat().st_size)
    code, said = in_terminal(bare, b"y\r")
    assert code == 0 and "complete, every file verified" in said, said
    assert server.ranges()[-1] != "bytes=0-" and "look at out/style50/feature_10204/index.html" in said
    assert list(folder.glob("out/style50/feature_10204/t0361*/seed_1024.json"))
