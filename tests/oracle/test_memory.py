"""Peak memory of loading Stable Diffusion 1.4 at full size: files of random numbers in float32, 4.3 GB, written here and removed again.

Each case is a process of its own, since a process's peak never falls. `python -m pytest tests/oracle/test_memory.py -s` prints the numbers.
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
from tests.seeded import on_meta

ROOT = Path(__file__).parent.parent.parent
LIMIT = 1.15                                    # of the weights' size in the chosen precision
BLOCK = 2 ** 24                                 # numbers; larger than any tensor is written in pieces of this
LOAD = """
import resource, sys, torch
from weights.load import load
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
model = load(sys.argv[1], "cpu", getattr(torch, sys.argv[2]))
after = peak()
size = sum(p.numel() * p.element_size() for part in (model.unet, model.vae, model.text_encoder) for p in part.parameters())
print(before, after, size)
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
    yield folder
    for path in files:
        path.unlink()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_in_memory_once(dtype, sd14):
    done = subprocess.run([sys.executable, "-c", LOAD, str(sd14), dtype], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after, size = (int(n) for n in done.stdout.split())
    print(f"{dtype}: weights {size / 1e9:.3f} GB, peak {after / 1e9:.3f} GB = {after / size:.3f} x, of which {before / 1e9:.3f} GB were there "
          f"before loading; loading alone {(after - before) / size:.3f} x")
    assert after - before <= LIMIT * size
