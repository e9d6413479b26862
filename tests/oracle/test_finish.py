"""The finish against an independent implementation on diffusers: its UNet, its hook, its DDIM scheduler, numpy's FFT.

Both sides get the same seeded weights, every tensor random, and the same noisy latents. Compared are the prediction,
the gradient, e' and the latent after every step.
"""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from config import Config, Job
from finish import grid, noised, redraw
from sae import SAE
from schedule import Schedule
from tests import seeded
from tests.oracle import record
from tests.seeded import HOOK, TOY, filled, randn, relative_error

JOBS = {"feature": [Job(feature=5, seed=1), Job(feature=90, seed=2)],
        "channel": [Job(channel=3, seed=1), Job(channel=40, seed=2)]}


@pytest.fixture(scope="module")
def sides():
    """Our networks as a model, and the official UNet with the same weights; the SAE is active at some of the places."""
    width = TOY["unet"]["block_out_channels"][2]
    sae = SAE(width, 128)
    sae.load_state_dict(seeded.weights(seeded.shapes(sae)))
    text = randn(1, 77, TOY["unet"]["cross_attention_dim"], seed=2)
    ours = SimpleNamespace(unet=filled("unet", TOY["unet"]).double(), sae=sae.double().requires_grad_(False),
                           hook_point=HOOK, schedule=Schedule(), embed=lambda prompts: text.double(),
                           device=torch.device("cpu"), dtype=torch.float64, latent_shape=(4, 16, 16))
    return ours, record.official("unet", TOY["unet"]).double()


def filtered(gradient):
    """1 / (r + 1) on numpy's spectrum, the deviation restored."""
    y = np.fft.fft2(gradient)
    fy, fx = np.fft.fftfreq(y.shape[-2]) * y.shape[-2], np.fft.fftfreq(y.shape[-1]) * y.shape[-1]
    low = np.fft.ifft2(y / (np.hypot(fy[:, None], fx) + 1)).real
    return low * gradient.std(ddof=1) / low.std(ddof=1)


def official_step(net, sae, scheduler, job, x, t, text, scale, use_filter):
    """One row: (e, gradient, e', the latent after), x (1, 4, H, W), from one run with a graph of the whole network."""
    caught, leaf = [], x.clone().requires_grad_(True)
    handle = net.get_submodule(HOOK).register_forward_hook(lambda module, args, output: caught.append(output[0]))
    e = net(leaf, torch.tensor([t]), encoder_hidden_states=text).sample
    handle.remove()
    h = caught[0].flatten(2)[0].T                                                               # (S, D)
    if job.channel is None:
        pre = (h - sae.b_dec) @ sae.encoder.weight[job.feature] + sae.encoder.bias[job.feature]
        a = pre.clamp(min=0).mean() if (pre > 0).any() else pre.mean()
    else:
        a = h[:, job.channel].mean()
    gradient, = torch.autograd.grad(a, leaf)
    e, g = e.detach(), torch.from_numpy(filtered(gradient.numpy())) if use_filter else gradient
    pulled = e - scale * (e.pow(2).mean() / g.pow(2).mean()).sqrt() * g
    return e, gradient, pulled, scheduler.step(pulled, t, x).prev_sample


@pytest.mark.parametrize("kind, scale, use_filter", [("feature", 0.4, True), ("feature", 1.5, False),
                                                     ("channel", 0.4, True), ("feature", 0.0, True)])
def test_values_and_trajectory(sides, kind, scale, use_filter):
    """From t 600 in 6 steps, each row by itself on the official side. Of 10 steps the scheduler's are 100 apart.

    In float64, as a random network amplifies float32's rounding; our predictions pass float32 on their way.
    """
    ours, net = sides
    jobs, z = JOBS[kind], randn(2, 4, 16, 16, seed=1)
    config = Config(spectral_filter=use_filter)
    scheduler = record.scheduler("ddim")
    scheduler.set_timesteps(10)
    start, eps = noised(ours, jobs, z, 600), noised(ours, jobs, 0 * z, 600)
    eps = eps / (1 - ours.schedule.alphas_cumprod[600]).sqrt()
    assert relative_error(start, scheduler.add_noise(z, eps, torch.tensor([600, 600]))) < 1e-6
    steps = list(redraw(ours, jobs, start.double(), grid(600, 6), scale, config))
    for row, job in enumerate(jobs):
        x, errors = start[row:row + 1].double(), []
        for step, t in zip(steps, (600, 500, 400, 300, 200, 100), strict=True):
            official = official_step(net, ours.sae, scheduler, job, x, t, ours.embed([""]), scale, use_filter)
            mine = (step.noise, step.gradient, step.pulled, step.after)
            errors.append([relative_error(m[row:row + 1].double(), o) for m, o in zip(mine, official)])
            x = official[-1]
            assert step.timestep == t
        print(f"{kind} {scale} filter {use_filter} row {row}: {np.max(errors, axis=0)}")
        assert np.max(errors) < 1e-6


def test_guided_sampling(sides):
    """From pure noise at the top, t 999 in 3 steps of 333."""
    ours, net = sides
    x, jobs, scheduler = randn(2, 4, 16, 16, seed=8), JOBS["feature"], record.scheduler("ddim")
    scheduler.set_timesteps(3)
    steps = list(redraw(ours, jobs, x.double(), grid(999, 3), 0.5, Config()))
    for row, job in enumerate(jobs):
        y = x[row:row + 1].double()
        for t in (999, 666, 333):
            y = official_step(net, ours.sae, scheduler, job, y, t, ours.embed([""]), 0.5, True)[-1]
        assert relative_error(steps[-1].after[row:row + 1], y) < 1e-6
