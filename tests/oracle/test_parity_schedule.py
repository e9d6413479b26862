"""Schedule and samplers against diffusers' DDIMScheduler and PNDMScheduler."""
import pytest
import torch

from schedule import SAMPLERS, Schedule
from tests import seeded
from tests.oracle import record
from tests.seeded import TOY, randn, relative_error

KINDS = ("ddim", "pndm")


def test_betas_of_other_ranges_bit_for_bit():
    """Ours keeps only abar, the product. The usual range is among the stored outputs."""
    other = record.DDIMScheduler(**{**record.SCHEDULE, "beta_start": 0.001, "beta_end": 0.02})
    assert torch.equal(Schedule(beta_start=0.001, beta_end=0.02).alphas_cumprod, other.alphas_cumprod)


@pytest.mark.parametrize("steps", (3, 20, 50))
@pytest.mark.parametrize("kind", KINDS)
def test_sampler_with_the_toy_unet(kind, steps):
    """Guided, up to 50 steps. In float64: a random network at guidance 7.5 amplifies float32's rounding past 1e-6."""
    z, _, contexts = seeded.unet_inputs()
    x, text, null = z[:1].double(), contexts[:1].double(), contexts[1:].double()
    predict = record.guided_eps(record.official("unet", TOY["unet"]).double(), text, null, 7.5)
    times, expected = record.trajectory(kind, predict, x, steps)
    ours = list(SAMPLERS[kind](Schedule(), predict, x, steps))
    error = relative_error(torch.stack([y for _, y in ours]), expected)
    print(f"{kind} {steps} steps, toy unet, float64: {error:.1e}")
    assert [t for t, _ in ours] == times and error < 1e-6


@pytest.mark.parametrize("dtype, tolerance", ((torch.float32, 1e-7), (torch.float16, 1e-3)))
@pytest.mark.parametrize("kind", KINDS)
def test_add_noise(kind, dtype, tolerance):
    """A time step for each row, over all 1,000."""
    t = torch.arange(1000)
    z, eps = (randn(1000, 4, 2, 2, seed=s).to(dtype) for s in (9, 10))
    ours, expected = Schedule().add_noise(z, eps, t), record.scheduler(kind).add_noise(z, eps, t)
    assert ours.dtype == dtype and relative_error(ours, expected) <= tolerance


def test_stored_outputs_are_the_official_ones():
    """The fixtures of the fast tests are what the library gives today."""
    tensors, _ = seeded.stored("schedule")
    tensors.pop("fingerprint")
    expected = record.schedule_outputs()
    assert tensors.keys() == expected.keys()
    assert all(relative_error(tensors[name], expected[name]) < 1e-5 for name in expected)
