"""Peak memory of loading Stable Diffusion 1.4 at full size and of an ascent's first steps: files of random numbers in
float32, 4.3 GB, written here and removed again.

Each case is a process of its own, since a process's peak never falls. `python -m pytest tests/oracle/test_memory.py -s`
prints the numbers.
"""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from weights.load import PARTS
from weights.layouts import WEIGHTS_FILE
from weights.preflight import free_bytes
from tests import clip_vocab
from tests.seeded import on_meta

ROOT = Path(__file__).parent.parent.parent
LIMIT = {"float32": 3.92e9, "bfloat16": 2.20e9}                 # bytes; no more than was measured when this was written
BLOCK = 2 ** 18                                 # numbers that are written at once: 1 MiB, as fetch.py writes a download
ASCENT = """
import dataclasses, sys, torch
from ascent import ascend
from bench.speed import peak_memory
from config import Job, configure
from weights.load import load
model = load(sys.argv[1], "cpu", getattr(torch, sys.argv[2]))
loaded = peak_memory()
for step in ascend(model, [Job(channel=1, timestep=600)], configure({}, "raw", num_steps=2, prior="noise")):
    pass
print(loaded, peak_memory())
"""


def write_random(path, shapes):
    """A safetensors file of float32 numbers about 0, never all in memory."""
    numbers = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02).numpy().tobytes()
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        while at:
            at -= file.write(numbers[:at])


@pytest.fixture(scope="module")
def sd14(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd14")
    if shutil.disk_usage(folder).free < 6e9 or (free_bytes("cpu") or 6e9) < 6e9:
        pytest.skip("needs 6 GB of disk and of memory")
    files = [folder / part / WEIGHTS_FILE[part] for part in PARTS]
    for part, path in zip(PARTS, files):
        path.parent.mkdir()
        (path.parent / "config.json").write_text("{}")          # SD 1.x's sizes
        net = on_meta("clip_text" if part == "text_encoder" else part)
        write_random(path, {name: tuple(p.shape) for name, p in net.state_dict().items()})
    (folder / "tokenizer").mkdir()
    clip_vocab.write(folder / "tokenizer")
    yield folder
    for path in files:
        path.unlink()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_ascent_holds_no_more_than_it_runs(dtype, sd14):
    """Nothing is in memory after loading; then the UNet up to the hook, what a step keeps, and no text encoder."""
    done = subprocess.run([sys.executable, "-c", ASCENT, str(sd14), dtype], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    loaded, peak = (int(n) for n in done.stdout.split())
    print(f"{dtype}: {loaded / 1e9:.3f} GB after loading, {peak / 1e9:.3f} GB at most in an ascent of two steps")
    assert loaded < 1e9 and peak <= LIMIT[dtype]        # a system that maps 2 MB at a time counts more after loading
