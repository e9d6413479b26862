"""On a CUDA card, and skipped without one: what a CPU says, in every precision, in the memory that was predicted."""
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.speed import GIB, full_size
from config import Job, configure
from vae import to_uint8
from visualize import batch_rows, run, stream
from weights.load import load

ROOT = Path(__file__).parent.parent
CUDA = torch.device("cuda")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
JOBS = [Job("feature", feature, 600, seed) for feature in (4, 48) for seed in (1024, 1111)]


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch):
    """Convolutions keep float32 whole, where cuDNN would round to TF32; no memory of an earlier test is held."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


@pytest.fixture
def limited():
    """Allow this process so many bytes of the card, until the test ends."""
    whole = torch.cuda.get_device_properties(CUDA).total_memory

    def limit(size):
        if size > whole:
            pytest.skip(f"the card has less than {size / GIB:.1f} GiB")
        torch.cuda.set_per_process_memory_fraction(size / whole)
    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def config_of(model, **changes):
    few = {"prior": "noise", "num_steps": 20, "finish_steps": 10}
    return configure(model.settings, "sae", "feature", **few | changes)


def test_the_toy_is_the_same_as_on_a_cpu():
    """Activations to 1e-3, pictures to 2 grey levels, of the ascent and finished."""
    on_cpu, on_card = load(None, "cpu"), load(None, "cuda", "float32")
    for a, b in zip(run(on_cpu, JOBS, config_of(on_cpu)), run(on_card, JOBS, config_of(on_card))):
        for a, b in ((a, b), (a.finished, b.finished)):
            assert b.activation == pytest.approx(a.activation, rel=1e-3)
            difference = to_uint8(a.image).astype(int) - to_uint8(b.image)
            assert abs(difference).max() <= 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_has_the_same_verdicts(dtype):
    if dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("the card has no bfloat16")
    whole, half = load(None, "cuda", "float32"), load(None, "cuda", dtype)
    jobs = [Job("feature", feature, 600, 1024) for feature in range(0, 128, 8)]
    expected, found = ([result.verdict for result in run(model, jobs, config_of(model, num_steps=100, finish=False))]
                       for model in (whole, half))
    assert found == expected


def test_the_same_job_gives_the_same_bytes():
    model = load(None, "cuda")
    first, again = (run(model, JOBS, config_of(model)) for _ in range(2))
    for a, b in zip(first, again):
        assert torch.equal(a.latent, b.latent) and torch.equal(a.finished.image, b.finished.image)


@pytest.mark.parametrize("dtype, predicted", [("float32", 4.93 * GIB), ("float16", 3.10 * GIB)])
def test_memory_is_as_predicted(dtype, predicted):
    """A run of one job at full size takes what docs/measured.md says, and at most 1 GiB for the libraries."""
    dtype = getattr(torch, dtype)
    model = full_size(CUDA, dtype)
    torch.cuda.reset_peak_memory_stats()
    run(model, [Job("feature", 7, 361, 1)], config_of(model, num_steps=3, finish_steps=3))
    peak = torch.cuda.max_memory_allocated()
    print(f"{dtype}: {peak / GIB:.2f} GiB at most, {predicted / GIB:.2f} predicted")
    assert 0.95 * predicted <= peak <= predicted + GIB


@pytest.mark.parametrize("card, dtype", [(8, None), (6, "float16")])
def test_full_size_fits(card, dtype, limited):
    """A card of so many GB, less what a desktop and CUDA take, with as many jobs together as a run takes there."""
    limited((0.9 * card - 0.6) * GIB)
    usual = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    model = full_size(CUDA, getattr(torch, dtype) if dtype else usual)
    config = config_of(model, num_steps=3, finish_steps=3)
    rows = min(batch_rows(model, [Job("feature", 7, 361, 1)], config), 4)       # it looks at the whole card
    jobs = [Job("feature", 7 * i, 361, i) for i in range(rows)]
    results = [result for batch in stream(model, jobs, config, rows) for result in batch]
    assert len(results) == rows and all(r.finished.image.isfinite().all() for r in results)


def test_where_memory_runs_out_the_batch_is_halved(limited, capsys):
    """In the memory that 64 jobs need, 256 give the same values, and a line says how many go together."""
    model = load(None, "cuda", "float32")
    config = config_of(model, num_steps=3, finish=False)
    jobs = [Job("feature", 4, 600, seed) for seed in range(256)]
    expected = [r.activation for batch in stream(model, jobs, config, 64) for r in batch]
    fits = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    limited(fits * 1.2)
    found = [r.activation for batch in stream(model, jobs, config, 256) for r in batch]
    assert found == pytest.approx(expected, rel=1e-3) and "memory ran out" in capsys.readouterr().err


def test_from_the_command_to_the_page(tmp_path):
    command = [sys.executable, "featviz.py", "--seed", "1024", "--num-steps", "10", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages, records = (list(tmp_path.glob(f"toy/feature_*/{name}")) for name in ("index.html", "t*/seed_1024.json"))
    assert len(pages) == 1 and records and '"device": "cuda"' in records[0].read_text()
