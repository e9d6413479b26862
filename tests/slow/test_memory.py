"""A conversion takes no more memory than the file; tests/oracle/test_memory.py measures loading at full size."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unet import UNet

ROOT = Path(__file__).resolve().parents[2]
MIB = 2 ** 20
CONVERT = """
import sys
from pathlib import Path
from weights import convert
peak = lambda: next(1024 * int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
                    if line.startswith("VmHWM"))
for part, size in (("unet", dict(block_out_channels=[64, 128, 256, 256])),
                   ("vae", dict(block_out_channels=[8, 8, 16, 16], norm_num_groups=4))):
    convert.SIZES[part] = convert.SIZES[part] | size
net = convert.on_meta(convert.NETWORKS["unet"], convert.check_config("unet", convert.SIZES["unet"], "x"), "x")
before = peak()
convert.convert(sys.argv[1], sys.argv[2])
print(before, peak())
"""


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_converting_takes_no_more_memory_than_the_file(suffix, tmp_path):
    """A UNet of 140 MB in a single file, mapped; its numbers are written one tensor at a time."""
    with torch.device("meta"):
        net = UNet(block_out_channels=(64, 128, 256, 256))
    found = {"model.diffusion_model." + name: 0.02 * torch.randn(p.shape) for name, p in net.state_dict().items()}
    path = tmp_path / f"x{suffix}"
    save_file(found, path) if suffix == ".safetensors" else torch.save({"state_dict": found}, path)
    done = subprocess.run([sys.executable, "-c", CONVERT, path, tmp_path / "new"], cwd=ROOT, check=True, text=True,
                          capture_output=True)
    before, peak = map(int, done.stdout.split())
    size = path.stat().st_size
    print(f"{suffix}: a file of {size / MIB:.0f} MiB, {(peak - before) / MIB:.0f} MiB more at most")
    assert size > 70 * MIB and peak - before < size + 16 * MIB
