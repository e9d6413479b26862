"""Peaks against scipy; sampling, its observation and steering against a run of diffusers' networks and schedulers."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.signal import find_peaks

from activity import profile
from activity import capture
from config import Job
from sae import SAE
from schedule import Schedule
from steering import sample, steered_prior
from tests import seeded
from tests.oracle import record
from tests.seeded import HOOK, TOY, filled, randn, relative_error

SAMPLERS, STEPS, F, D = ("ddim", "pndm"), 12, 96, TOY["unet"]["block_out_channels"][2]
TEXTS = {"": randn(1, 77, 64, seed=30), "a": randn(1, 77, 64, seed=31), "b": randn(1, 77, 64, seed=32)}


def random_profile(rng):
    """Shares of few images at 50 sampling steps, so many are equal, with runs of the same value; or a rough curve of 1001 values."""
    kind = rng.integers(3)
    if kind == 2:
        return rng.integers(0, rng.integers(2, 30), 1001) / 8
    values = rng.integers(0, rng.integers(2, 9), 50) / 8
    if kind == 1:
        values = np.repeat(values, rng.integers(1, 6, 50))[:50]
    return profile.interpolate(np.arange(981.0, 0, -20), values)


def test_peaks_are_scipy_s_on_ten_thousand_profiles():
    rng, found = np.random.default_rng(0), 0
    for i in range(10_000):
        y = random_profile(rng)
        expected = find_peaks(y, height=0, distance=100, plateau_size=1)[0]
        assert np.array_equal(profile.find_peaks(y), expected), i
        found += len(expected)
    print(f"{found} peaks")
    assert found > 20_000


def test_the_three_highest_of_scipy_s_peaks():
    rng = np.random.default_rng(1)
    for _ in range(1000):
        y = random_profile(rng)
        at, about = find_peaks(y, height=0, distance=100, plateau_size=1)
        if len(at):
            ours = profile.peaks(y)
            assert len(ours) == min(3, len(at)) and set(ours) <= set(at.tolist()) and ours == sorted(ours)
            assert sorted(y[ours]) == sorted(sorted(about["peak_heights"])[-3:])


@pytest.fixture(scope="module")
def model():
    """What capture and steering use of a Model, around the toy UNet with seeded weights and an SAE of 96 features."""
    with torch.device("meta"):
        sae = SAE(D, F, 8)
    weights = seeded.weights(seeded.shapes(sae))
    sae.load_state_dict(weights, assign=True)
    tables = {"timesteps": torch.arange(981.0, 0, -20), "max_feature": randn(50, F, seed=40).abs(), "max_channel": randn(50, D, seed=41).abs(),
              "share_feature": (randn(50, F, seed=42) - 0.5).relu(), "share_channel": (randn(50, D, seed=43) - 0.5).relu()}
    return SimpleNamespace(unet=filled("unet", TOY["unet"]), sae=sae.requires_grad_(False), whole_sae=sae, parts={"sae": sae},
                           hook_point=HOOK, let_go=lambda *parts: None,
                           schedule=Schedule(), device=torch.device("cpu"), dtype=torch.float32, latent_shape=(4, 16, 16),
                           embed=lambda prompts: torch.cat([TEXTS[p] for p in prompts]), decode=lambda z: z, activity=tables)


@torch.no_grad()
def official_run(kind, noise, context, guidance, push=None):
    """A sampling loop on diffusers alone: (latents, {t: hook's output of the prompt's half}); push(t) (B, D) is added at the hook."""
    net, scheduler, seen = record.official("unet", TOY["unet"]), record.scheduler(kind), {}
    scheduler.set_timesteps(STEPS)
    now, null = [None], TEXTS[""]

    def hook(module, args, output):
        seen[now[0]] = output[0][-len(noise):].clone()
        return (output[0] + push(now[0])[:, :, None, None],) if push else None

    net.get_submodule(HOOK).register_forward_hook(hook)
    x = noise
    for t in scheduler.timesteps:
        now[0], both = int(t), torch.cat([null.expand(len(x), -1, -1), context])
        if guidance == 1.0:
            e = net(x, t, encoder_hidden_states=context).sample
        else:
            e_null, e_text = net(torch.cat([x, x]), t, encoder_hidden_states=both).sample.chunk(2)
            e = e_null + guidance * (e_text - e_null)
        x = scheduler.step(e, t, x).prev_sample
    return x, seen


@pytest.mark.parametrize("guidance", (1.0, 3.0, 7.5))
@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_capture_sees_what_the_official_pipeline_computes(model, kind, guidance):
    settings = capture.Capture(("a", "b"), 2, STEPS, kind, guidance, 2)
    z, means = capture.observe(model, settings, [2, 3])
    noise = torch.stack([torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(i)) for i in (2, 3)])
    expected, seen = official_run(kind, noise, torch.cat([TEXTS["a"], TEXTS["b"]]), guidance)
    assert list(seen) == model.schedule.timesteps(STEPS)
    h = torch.stack(list(seen.values()), dim=1).flatten(3).transpose(2, 3)                      # (B, N, S, D)
    W, b, b_dec = model.sae.encoder.weight, model.sae.encoder.bias, model.sae.b_dec
    errors = {"latent": relative_error(z, expected), "channel": relative_error(means["channel"], h.mean(2)),
              "feature": relative_error(means["feature"], ((h - b_dec) @ W.T + b).clamp(min=0).mean(2))}
    print(kind, guidance, {k: f"{v:.1e}" for k, v in errors.items()})
    assert max(errors.values()) < 1e-4


@pytest.mark.parametrize("target", ("feature", "channel"))
@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_steered_prior_is_the_official_run_with_the_direction_added(model, kind, target):
    """At sampling steps with a share above 0, s_t W_dec[f] (or s_t on channel c) with s_t = 60 * the largest mean activation at t."""
    jobs, noise = [Job(**{target: 5}), Job(**{target: 17})], randn(2, 4, 16, 16, seed=50)
    share, most = model.activity[f"share_{target}"].numpy(), model.activity[f"max_{target}"].numpy()
    at, grid = np.arange(981.0, 0, -20), lambda values, t: np.interp(t, np.arange(1.0, 982, 20), values[::-1])

    def push(t):
        rows = torch.zeros(2, D)
        for row, n in zip(rows, (5, 17)):
            if grid(share[:, n], t) > 0:
                row += 60 * grid(most[:, n], t) * (model.sae.W_dec[n] if target == "feature" else torch.eye(D)[n])
        return rows

    expected, _ = official_run(kind, noise, TEXTS[""].expand(2, -1, -1), 1.0, push)
    ours = steered_prior(model, jobs, target, noise, 60.0, kind, STEPS)
    plain = sample(model, noise, TEXTS[""], kind, STEPS)
    active = [t for t in model.schedule.timesteps(STEPS) if push(t)[0].any()]
    print(kind, target, f"{relative_error(ours, expected):.1e}", f"active at {len(active)} of {STEPS}, {len(at)} measured")
    assert relative_error(ours, expected) < 1e-4 and relative_error(ours, plain) > 0.01 and 0 < len(active) < STEPS


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_steered_image_under_guidance(model, kind):
    """Both halves of the guided batch are steered."""
    noise, vector = randn(1, 4, 16, 16, seed=51), 2 * randn(1, D, seed=52)
    expected, _ = official_run(kind, noise, TEXTS["a"], 3.0, lambda t: vector)
    ours = sample(model, noise, TEXTS["a"], kind, STEPS, 3.0, add=lambda t: {HOOK: vector})
    print(kind, f"{relative_error(ours, expected):.1e}")
    assert relative_error(ours, expected) < 1e-4
