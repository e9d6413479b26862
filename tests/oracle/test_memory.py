"""Peak memory of loading Stable Diffusion 1.4 at full size and of an ascent's first step: files of random numbers in
float32, 4.3 GB, written here and removed again.

Each case is a process of its own, since a process's peak never falls. `python -m pytest tests/oracle/test_memory.py -s`
prints the numbers.
"""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.seeded import on_meta
from weights.load import FILES

ROOT = Path(__file__).parent.parent.parent
# Bytes. Float32 stays in the mapped files, whose pages count once they were used; bfloat16 is converted, 1.97e9.
LIMIT = {"float32": (1e9, 4.2e9), "bfloat16": (2.5e9, 2.75e9)}
# The allocator gives freed blocks back at once. By default it keeps some, and the peak differs by 40 MB between runs.
EXACT = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
ASCENT = """
import sys, torch
from pathlib import Path
from ascent import ascend
from config import Job, configure
from visualize import start
from weights.load import load
peak = lambda: next(1024 * int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
                    if line.startswith("VmHWM"))
model = load(sys.argv[1], "cpu", getattr(torch, sys.argv[2]))
loaded, jobs = peak(), [Job("channel", 1, 600)]
config = configure({}, "raw", num_steps=1, prior="noise")
for step in ascend(model, jobs, config, start(model, jobs, config)):
    pass
print(loaded, peak())
"""


@pytest.fixture(scope="module")
def sd14(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd14")
    if shutil.disk_usage(folder).free < 6e9:
        pytest.skip("needs 6 GB of disk")
    for part, name in FILES.items():
        (folder / part).mkdir()
        (folder / part / "config.json").write_text("{}")        # SD 1.x's sizes
        net = on_meta(part)
        save_file({name: torch.empty(p.shape).uniform_(-0.03, 0.03) for name, p in net.state_dict().items()},
                  folder / part / name)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_in_memory_once(dtype, sd14):
    """In float32 nothing is read when it is loaded; then the UNet up to the hook, and what a step keeps."""
    done = subprocess.run([sys.executable, "-c", ASCENT, str(sd14), dtype], cwd=ROOT, env=EXACT, capture_output=True,
                          text=True, check=True)
    loaded, peak = (int(n) for n in done.stdout.split())
    print(f"{dtype}: {loaded / 1e9:.3f} GB after loading, {peak / 1e9:.3f} GB at most in a step of the ascent")
    assert loaded < LIMIT[dtype][0] and peak <= LIMIT[dtype][1]
