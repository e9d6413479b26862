"""Profile and peaks against scipy; sampling and steering against diffusers."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.interpolate import interp1d
from scipy.signal import find_peaks

from activity import capture, profile
from config import Config, Job
from sae import SAE
from schedule import Schedule
from steering import sample, steered_prior
from tests import seeded
from tests.oracle import record
from tests.seeded import HOOK, TOY, filled, randn, relative_error

SAMPLERS, STEPS, F, D = ("ddim", "pndm"), 12, 96, TOY["unet"]["block_out_channels"][2]
TEXTS = {"": randn(1, 77, 64, seed=30), "a": randn(1, 77, 64, seed=31), "b": randn(1, 77, 64, seed=32)}


def by_scipy(times, shares):
    """From shares (N,) float32 at ascending time steps to the profile (1001,) and its three highest peaks, of equals
    the earlier."""
    y = interp1d(times, shares, bounds_error=False, fill_value=0)(np.arange(1001))
    at, about = find_peaks(y, height=0, distance=100, plateau_size=1)
    return y, sorted(int(t) for _, t in sorted(zip(-about["peak_heights"], at))[:3])


def random_shares(rng):
    """Ascending sampled time steps (N,), and counts of few or many images there over their number: many are equal, with
    runs of the same value, many 0, some the largest at an end."""
    times = np.array(Schedule().timesteps(int(rng.choice([50, 20, 7, 99])))[::-1])
    images = int(rng.choice([2, 4, 80, 5100]))
    counts = np.repeat(rng.integers(0, images + 1, len(times)), rng.integers(1, 9, len(times)))[:len(times)]
    if rng.integers(2):
        counts = np.sort(counts)[::rng.choice([1, -1])] * rng.integers(0, 2, len(times))
    return times, (counts / images).astype(np.float32)


def test_profile_and_peaks_are_scipy_s_on_ten_thousand_tables_of_shares():
    rng, found, ends = np.random.default_rng(0), 0, 0
    for i in range(10_000):
        times, shares = random_shares(rng)
        y, expected = by_scipy(times, shares)
        tables = {"timesteps": torch.tensor(times[::-1].copy()).float(),
                  "share_feature": torch.tensor(shares[::-1].copy())[:, None]}
        made = profile.Capture(None, tables, {}, "")
        assert np.array_equal(made.profile("feature", 0), y), i         # to the bit: the active steps are the same too
        assert made.peaks("feature", 0) == expected, i
        assert made.timesteps("feature", 0) == sorted({0, *expected}), i
        found, ends = found + len(expected), ends + sum(t in (times[0], times[-1]) for t in expected)
    assert found > 20_000 and ends > 1_000


@pytest.fixture(scope="module")
def model():
    """What capture and steering use of a Model, around the toy UNet with seeded weights and an SAE of 96 features."""
    sae = SAE(D, F, 8)
    sae.load_state_dict(seeded.weights(seeded.shapes(sae)))
    tables = {"timesteps": torch.arange(981.0, 0, -20)}
    for kind, width in (("feature", F), ("channel", D)):
        tables |= {f"max_{kind}": randn(50, width, seed=40).abs(),
                   f"share_{kind}": (randn(50, width, seed=42) - 0.5).relu()}
    return SimpleNamespace(
        unet=filled("unet", TOY["unet"]), sae=sae.requires_grad_(False), hook_point=HOOK, schedule=Schedule(),
        device=torch.device("cpu"), dtype=torch.float32, latent_shape=(4, 16, 16), decode=lambda z: z,
        embed=lambda prompts: torch.cat([TEXTS[p] for p in prompts]), capture=profile.Capture(None, tables, {}, ""))


@torch.no_grad()
def official_run(kind, noise, context, guidance, push=None):
    """A sampling loop on diffusers alone: (latents, {t: hook's output}); push(t) (B, D) is added at the hook."""
    net, scheduler, seen = record.official("unet", TOY["unet"]), record.scheduler(kind), {}
    scheduler.set_timesteps(STEPS)
    now, null = [None], TEXTS[""]

    def hook(module, args, output):
        seen[now[0]] = output[0].clone()
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
    settings = capture.Settings(("a", "b"), 2, STEPS, kind, guidance, 2)
    z, means = capture.observe(model, settings, [2, 3])
    noise = torch.stack([torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(i)) for i in (2, 3)])
    expected, seen = official_run(kind, noise, torch.cat([TEXTS["a"], TEXTS["b"]]), guidance)
    assert list(seen) == model.schedule.timesteps(STEPS)
    h = torch.stack(list(seen.values()), dim=1).flatten(3).transpose(2, 3)                      # (B or 2B, N, S, D)
    assert len(means["channel"]) == len(h) == (2 if guidance == 1.0 else 4)
    W, b, b_dec = model.sae.encoder.weight, model.sae.encoder.bias, model.sae.b_dec
    pre = ((h - b_dec) @ W.T + b).clamp(min=0)
    gated = pre[-2:] * (pre[-2:] >= pre[-2:].topk(8).values[..., -1:])
    for ours, theirs in ((z, expected), (means["channel"], h.mean(2)), (means["feature"], pre.mean(2)),
                         (means["gated"], gated.mean(2))):
        assert relative_error(ours, theirs) < 1e-4


@pytest.mark.parametrize("when", ("active", "all"))
@pytest.mark.parametrize("target", ("feature", "channel"))
@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_steered_prior_is_the_official_run_with_the_direction_added(model, kind, target, when):
    """s_t W_dec[f] (or s_t on channel c) with s_t = 60 * the largest mean activation at t: at sampling steps with a
    share above 0, or at all."""
    jobs, noise = [Job(target, 5, 0, 0), Job(target, 17, 0, 0)], randn(2, 4, 16, 16, seed=50)
    tables = model.capture.tables
    share, most = tables[f"share_{target}"].numpy(), tables[f"max_{target}"].numpy()
    grid = lambda values, t: np.interp(t, np.arange(1.0, 982, 20), values[::-1])

    def strength(n, t):
        return grid(most[:, n], t) * (when == "all" or grid(share[:, n], t) > 0)

    def push(t):
        directions = [model.sae.W_dec[n] if target == "feature" else torch.eye(D)[n] for n in (5, 17)]
        return torch.stack([60 * strength(n, t) * d for n, d in zip((5, 17), directions)]).float()

    expected, _ = official_run(kind, noise, TEXTS[""].expand(2, -1, -1), 1.0, push)
    config = Config(steer_scale=60.0, steer_steps=when, prior_sampler=kind, prior_steps=STEPS)
    ours = steered_prior(model, jobs, noise, config)
    plain = sample(model, noise, TEXTS[""], kind, STEPS)
    active = [t for t in model.schedule.timesteps(STEPS) if push(t)[0].any()]
    assert relative_error(ours, expected) < 1e-4 and relative_error(ours, plain) > 0.01
    assert 0 < len(active) < STEPS if when == "active" else len(active) == STEPS


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_steered_image_under_guidance(model, kind):
    """Both halves of the guided batch are steered."""
    noise, vector = randn(1, 4, 16, 16, seed=51), 2 * randn(1, D, seed=52)
    expected, _ = official_run(kind, noise, TEXTS["a"], 3.0, lambda t: vector)
    ours = sample(model, noise, TEXTS["a"], kind, STEPS, 3.0, add=lambda t: vector)
    assert relative_error(ours, expected) < 1e-4
