"""Ascent and finish against an independent implementation on diffusers: its UNet, its hook, its DDIM scheduler, numpy's
FFT, torch's AdamW.

Both sides get the same seeded weights, every tensor random, and the same latents. Compared are the prediction, the
gradient, what is made of it and the latent after every step.
"""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ascent import ascend, draw
from config import Config, Job
from finish import grid, noised, redraw
from sae import SAE
from schedule import Schedule
from tests import seeded
from tests.oracle import record
from tests.oracle.test_regularizers import filtered
from tests.seeded import HOOK, TOY, filled, randn, relative_error

JOBS = {"feature": [Job("feature", 5, seed=1), Job("feature", 90, seed=2)],
        "channel": [Job("channel", 3, seed=1), Job("channel", 40, seed=2)]}
LOW = 7                                                         # a feature that is silent everywhere


@pytest.fixture(scope="module")
def sides():
    """Our networks as a model, and the official UNet with the same weights; the SAE is active at some of the places."""
    width = TOY["unet"]["block_out_channels"][2]
    sae = SAE(width, 128)
    sae.load_state_dict(seeded.weights(seeded.shapes(sae)))
    sae.requires_grad_(False).encoder.bias[LOW] = -10.0
    text = randn(1, 77, TOY["unet"]["cross_attention_dim"], seed=2)
    ours = SimpleNamespace(unet=filled("unet", TOY["unet"]).double(), sae=sae.double(),
                           hook_point=HOOK, schedule=Schedule(), embed=lambda prompts: text.double(),
                           device=torch.device("cpu"), dtype=torch.float64, latent_shape=(4, 16, 16))
    return ours, record.official("unet", TOY["unet"]).double()


def official_pass(net, sae, job, x, t, text):
    """One run of the official network: its prediction, and what is climbed, up to the leaf that x depends on."""
    caught = []
    handle = net.get_submodule(HOOK).register_forward_hook(lambda module, args, output: caught.append(output[0]))
    e = net(x, torch.tensor([t]), encoder_hidden_states=text).sample
    handle.remove()
    h = caught[0].flatten(2)[0].T                                                               # (S, D)
    if job.kind == "channel":
        return e.detach(), h[:, job.target].mean()
    pre = (h - sae.b_dec) @ sae.encoder.weight[job.target] + sae.encoder.bias[job.target]
    return e.detach(), pre.clamp(min=0).mean() if (pre > 0).any() else pre.mean()


@pytest.mark.parametrize("kind", ("feature", "channel"))
def test_a_step_of_the_ascent(sides, kind):
    """Gradient, filtered gradient and the latent after it; each row by itself on the official side. Of the features
    one is silent, one is not."""
    ours, net = sides
    jobs = [Job(kind, 5, 600, seed=1), Job(kind, LOW, 20, seed=2)]
    config = Config(jitter_max=0, rotate_max=0.0, scale_max=1.0, range_threshold=0.1, num_steps=1)
    z = randn(2, 4, 16, 16, seed=3).double()
    generators = [torch.Generator().manual_seed(job.seed) for job in jobs]
    *_, eps = zip(*(draw(torch.Generator().manual_seed(job.seed), (4, 16, 16), config) for job in jobs))
    step = next(ascend(ours, jobs, config, (generators, z)))
    assert step.silent.tolist() == [False, kind == "feature"]
    for row, job in enumerate(jobs):
        leaf = z[row:row + 1].clone().requires_grad_(True)
        x = record.scheduler("ddim").add_noise(leaf, eps[row][None].double(), torch.tensor([job.timestep]))
        _, a = official_pass(net, ours.sae, job, x, job.timestep, ours.embed([""]))
        beyond = (leaf.abs() - 0.1).clamp(min=0).pow(2).mean()
        (0.5 * beyond + 0.5 * (leaf.mean().abs() + (leaf.std() - 1).abs()) - a).backward()
        gradient = leaf.grad.clone()
        leaf.grad = torch.from_numpy(filtered(gradient.numpy()))
        torch.optim.AdamW([leaf], 0.05, weight_decay=0.01).step()
        assert relative_error(step.gradient[row:row + 1], gradient) < 1e-10
        assert relative_error(step.smoothed[row:row + 1], leaf.grad) < 1e-6                     # its radius is float32
        assert relative_error(step.after[row:row + 1], leaf.detach()) < 1e-4                    # g / (|g| + 1e-8)


def official_step(net, sae, scheduler, job, x, t, text, scale, use_filter):
    """One row of the finish: (e, gradient, e', the latent after), x (1, 4, H, W)."""
    leaf = x.clone().requires_grad_(True)
    e, a = official_pass(net, sae, job, leaf, t, text)
    gradient, = torch.autograd.grad(a, leaf)
    g = torch.from_numpy(filtered(gradient.numpy())) if use_filter else gradient
    pulled = e - scale * (e.pow(2).mean() / g.pow(2).mean()).sqrt() * g
    return e, gradient, pulled, scheduler.step(pulled, t, x).prev_sample


@pytest.mark.parametrize("kind, scale, use_filter, top, number", [
    ("feature", 0.4, True, 600, 6), ("feature", 1.5, False, 600, 6), ("channel", 0.4, True, 600, 6),
    ("feature", 0.0, True, 600, 6), ("feature", 0.5, True, 999, 3)])      # the last: a guided start
def test_values_and_trajectory(sides, kind, scale, use_filter, top, number):
    """Each row by itself on the official side; the scheduler's steps are as far apart, 100 or 333.

    In float64, as a random network amplifies float32's rounding; our predictions pass float32 on their way.
    """
    ours, net = sides
    jobs, z, stride = JOBS[kind], randn(2, 4, 16, 16, seed=1), top // number
    config = Config(spectral_filter=use_filter, finish_scale=scale)
    scheduler = record.scheduler("ddim")
    scheduler.set_timesteps(1000 // stride)
    start, eps = noised(ours, jobs, z, top), noised(ours, jobs, 0 * z, top)
    eps = eps / (1 - ours.schedule.alphas_cumprod[top]).sqrt()
    assert relative_error(start, scheduler.add_noise(z, eps, torch.tensor([top, top]))) < 1e-6
    steps = list(redraw(ours, jobs, start.double(), grid(top, number), config))
    for row, job in enumerate(jobs):
        x, errors = start[row:row + 1].double(), []
        for step, t in zip(steps, range(top, 0, -stride), strict=True):
            official = official_step(net, ours.sae, scheduler, job, x, t, ours.embed([""]), scale, use_filter)
            mine = (step.noise, step.gradient, step.pulled, step.after)
            errors.append([relative_error(m[row:row + 1].double(), o) for m, o in zip(mine, official)])
            x = official[-1]
            assert step.timestep == t
        print(f"{kind} {scale} filter {use_filter} row {row}: {np.max(errors, axis=0)}")
        assert np.max(errors) < 1e-6
