"""Schedule, samplers and guidance against diffusers' DDIMScheduler and PNDMScheduler."""
import pytest
import torch

from schedule import SAMPLERS, Schedule, guided
from tests import seeded
from tests.oracle import record
from tests.seeded import TOY, filled, randn, relative_error, toy_eps

KINDS = ("ddim", "pndm")


@pytest.mark.parametrize("kind", KINDS)
def test_schedule_bit_for_bit(kind):
    """abar; and the betas, of which ours keeps only the product: that of theirs gives the same bits."""
    theirs, ours = record.scheduler(kind), Schedule()
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert torch.equal(ours.alphas_cumprod, torch.cumprod(1 - theirs.betas, dim=0))
    other = record.DDIMScheduler(**{**record.SCHEDULE, "beta_start": 0.001, "beta_end": 0.02})
    assert torch.equal(Schedule(beta_start=0.001, beta_end=0.02).alphas_cumprod, other.alphas_cumprod)


@pytest.mark.parametrize("steps", record.TRAJECTORY_STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_trajectory_of_a_stand_in_network(kind, steps):
    """The same time steps and the same sample after each, from 1 step to 50."""
    times, expected = record.trajectory(kind, toy_eps, x := randn(2, 4, 4, 4, seed=7), steps)
    ours = list(SAMPLERS[kind](Schedule(), toy_eps, x, steps))
    assert [t for t, _ in ours] == times
    error = relative_error(torch.stack([y for _, y in ours]), expected)
    print(f"{kind} {steps} steps: {error:.1e}")
    assert error < 1e-6


@pytest.mark.parametrize("steps", (3, 20, 50))
@pytest.mark.parametrize("kind", KINDS)
def test_sampler_with_the_toy_unet(kind, steps):
    """Both samplers on one network, guided. In float64: a random network at guidance 7.5 amplifies
    float32's rounding past 1e-6.
    """
    z, _, contexts = seeded.unet_inputs()
    x, text, null = z[:1].double(), contexts[:1].double(), contexts[1:].double()
    predict = record.guided_eps(record.official("unet", TOY["unet"]).double(), text, null, 7.5)
    _, expected = record.trajectory(kind, predict, x, steps)
    ours = torch.stack([y for _, y in SAMPLERS[kind](Schedule(), predict, x, steps)])
    print(f"{kind} {steps} steps, toy unet, float64: {relative_error(ours, expected):.1e}")
    assert relative_error(ours, expected) < 1e-6


@pytest.mark.parametrize("guidance", (0.0, 1.0, 3.0, 7.5))
def test_guidance(guidance):
    """e_null + g (e_text - e_null) of the official network, each of its two runs made apart."""
    z, t, contexts = seeded.unet_inputs()
    expected = record.guided_eps(record.official("unet", TOY["unet"]), contexts[:1], contexts[1:], guidance)(z, 361)
    with torch.no_grad():
        ours = guided(filled("unet", TOY["unet"]), contexts[:1], contexts[1:], guidance)(z, 361)
    print(f"guidance {guidance}: {relative_error(ours, expected):.1e}")
    assert relative_error(ours, expected) < 1e-5


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
