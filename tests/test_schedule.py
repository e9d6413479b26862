"""Noise schedule and samplers: published numbers, stored trajectories of the official samplers, definitions."""
from types import SimpleNamespace

import pytest
import torch

from schedule import SAMPLERS, Schedule, ddim
from steering import sample
from tests.seeded import HOOK, TOY, filled, fingerprint, randn, relative_error, stored, toy_eps, unet_inputs


@pytest.fixture(scope="module")
def official():
    return stored("schedule")[0]


def test_abar_is_the_official_one(official):
    """To the last bit where it was recorded; another processor may round the last one differently."""
    assert Schedule().alphas_cumprod.dtype == torch.float32 and len(Schedule().alphas_cumprod) == 1000
    assert torch.allclose(Schedule().alphas_cumprod, official["alphas_cumprod"], rtol=1e-6, atol=0)


def test_add_noise():
    """Golden values for sample = noise = 1, a time step for each row, and the definition in both its limits."""
    ones = torch.ones(3, 4, 2, 2)
    noised = Schedule().add_noise(ones, ones, torch.tensor([0, 1, 981]))
    for row, value in zip(noised, (1.0287300, 1.0404270, 1.0731047)):
        assert torch.allclose(row, torch.full_like(row, value), atol=1e-6)
    z, eps, t = randn(2, 4, 2, 2, seed=1), randn(2, 4, 2, 2, seed=2), torch.tensor([3, 700])
    abar = Schedule().abar(t)
    assert abar.shape == (2, 1, 1, 1)
    assert torch.equal(Schedule().add_noise(z, 0 * z, t), abar.sqrt() * z)
    assert torch.equal(Schedule().add_noise(0 * z, eps, t), (1 - abar).sqrt() * eps)
    assert Schedule().add_noise(z.half(), eps.half(), t).dtype == torch.float16


def test_timesteps():
    """"Leading" spacing: from below 1,000 down to 1, with a stride of 1000 // N."""
    s = Schedule()
    assert s.timesteps(50) == list(range(981, 0, -20)) and s.timesteps(30) == list(range(958, 0, -33))
    assert s.timesteps(3) == [667, 334, 1] and s.timesteps(1) == [1]


@pytest.mark.parametrize("steps", (1, 2, 3, 4, 20, 50))
@pytest.mark.parametrize("kind", SAMPLERS)
def test_trajectory_of_a_stand_in_network(official, kind, steps):
    """Every sample along the way is the official sampler's."""
    ours = torch.stack([x for _, x in SAMPLERS[kind](Schedule(), toy_eps, randn(2, 4, 4, 4, seed=7), steps)])
    assert relative_error(ours, official[f"{kind} {steps}"]) < 1e-6


@pytest.mark.parametrize("kind", SAMPLERS)
@torch.no_grad()
def test_guided_sampling_with_the_toy_unet(official, kind):
    """Network, guidance 7.5 and sampler together: first, middle and last sample are those of the official three."""
    assert torch.allclose(fingerprint("unet"), official["fingerprint"], rtol=1e-6), "other seeded weights than recorded"
    z, _, contexts = unet_inputs()
    model, xs = SimpleNamespace(unet=filled("unet", TOY["unet"]), schedule=Schedule(), hook_point=HOOK, sae=None,
                                dtype=torch.float32, embed=lambda prompts: contexts[1:]), []
    last = sample(model, z[:1], contexts[:1], kind, 3, 7.5, on_step=lambda phase, step: xs.append(step.before))
    assert relative_error(torch.stack([xs[1], xs[2], last]), official[f"{kind} unet 3"]) < 1e-5


def test_exact_noise_is_undone():
    """If the network knows the noise, a step lands where the sample with less of the same noise lies; then abar_0."""
    s, z, eps = Schedule(), randn(1, 4, 2, 2, seed=1), randn(1, 4, 2, 2, seed=2)
    x = s.add_noise(z, eps, torch.tensor([981]))
    for t, after in ddim(s, lambda x, t: eps, x, 50):
        expected = s.add_noise(z, eps, torch.tensor([max(t - 20, 0)]))
        assert torch.allclose(after, expected, atol=1e-4)
