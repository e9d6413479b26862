"""Weights are in memory once; what is not used takes none; a conversion takes no more than the file.

tests/oracle/test_memory.py measures the loading of full-size Stable Diffusion.
"""
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from weights import load as loading

ROOT = Path(__file__).resolve().parents[2]
MIB = 2 ** 20


def memory(kind):
    """Bytes of this process, from Linux: VmRSS all, RssFile what lies in mapped files, VmHWM the peak of all."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("the system does not tell")
    return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(kind))


class Layers(nn.ModuleDict):
    """A layer of 64 MB and one of 16."""

    def __init__(self):
        super().__init__({"a": nn.Linear(4096, 4096, bias=False), "b": nn.Linear(2048, 2048, bias=False)})


@pytest.fixture
def large(tmp_path):
    whole = Layers()
    save_file(whole.state_dict(), tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors", whole


def test_numbers_that_are_not_used_take_no_memory(large):
    """And a conversion to another precision gives its pages of the file back."""
    path, whole = large
    mapped = memory("RssFile")
    half = loading.build(Layers, {}, path, path, torch.bfloat16)
    assert memory("RssFile") - mapped < 8 * MIB and torch.equal(half["a"].weight, whole["a"].weight.bfloat16())
    before = memory("VmRSS")
    net = loading.build(Layers, {}, path, path)
    assert memory("VmRSS") - before < 8 * MIB
    assert torch.equal(net["a"].weight, whole["a"].weight)
    assert 64 * MIB <= memory("VmRSS") - before < 72 * MIB


CONVERT = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.slow.test_memory import memory
from weights import convert
for part, size in (("unet", dict(block_out_channels=[64, 128, 256, 256])),
                   ("vae", dict(block_out_channels=[8, 8, 16, 16], norm_num_groups=4))):
    convert.SIZES[part] = convert.SIZES[part] | size
net = convert.on_meta(convert.NETWORKS["unet"], convert.check_config("unet", convert.SIZES["unet"], "x"), "x")
before = memory("VmHWM")
convert.convert(sys.argv[2], sys.argv[3])
print(before, memory("VmHWM"))
"""


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_converting_takes_no_more_memory_than_the_file(suffix, tmp_path):
    """A UNet of 140 MB in a single file, mapped; its numbers are written one tensor at a time."""
    with torch.device("meta"):
        net = loading.UNet(block_out_channels=(64, 128, 256, 256))
    found = {"model.diffusion_model." + name: 0.02 * torch.randn(p.shape) for name, p in net.state_dict().items()}
    path = tmp_path / f"x{suffix}"
    save_file(found, path) if suffix == ".safetensors" else torch.save({"state_dict": found}, path)
    done = subprocess.run([sys.executable, "-c", CONVERT, ROOT, path, tmp_path / "new"], check=True, text=True,
                          capture_output=True)
    before, peak = map(int, done.stdout.split())
    size = path.stat().st_size
    print(f"{suffix}: a file of {size / MIB:.0f} MiB, {(peak - before) / MIB:.0f} MiB more at most")
    assert size > 70 * MIB and peak - before < size + 16 * MIB
