"""A step of --space pixel against an independent one: AutoencoderKL and UNet of diffusers, numpy's FFT, torch's AdamW.

Both sides get the same seeded weights, every tensor random, the same pixels and the same random numbers.
"""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ascent import ascend, draw
from config import Config, Job
from sae import SAE
from schedule import Schedule
from tests import seeded
from tests.oracle import record
from tests.seeded import HOOK, TOY, filled, randn, relative_error

JOBS = {"feature": [Job(feature=5, timestep=600, seed=1), Job(feature=90, timestep=20, seed=2)],
        "channel": [Job(channel=3, timestep=600, seed=1), Job(channel=40, timestep=20, seed=2)]}
CONFIG = Config(space="pixel", jitter_max=0, rotate_max=0.0, scale_max=1.0, range_threshold=0.1, num_steps=1)


@pytest.fixture(scope="module")
def sides():
    """Our networks as a model; the official autoencoder and UNet. All in float64."""
    sae = SAE(TOY["unet"]["block_out_channels"][2], 128)
    sae.load_state_dict(seeded.weights(seeded.shapes(sae)))
    text, vae = randn(1, 77, TOY["unet"]["cross_attention_dim"], seed=2).double(), filled("vae", TOY["vae"]).double()
    ours = SimpleNamespace(unet=filled("unet", TOY["unet"]).double(), sae=sae.double().requires_grad_(False),
                           hook_point=HOOK, schedule=Schedule(), embed=lambda prompts: text, encode=vae.encode,
                           device=torch.device("cpu"), dtype=torch.float64)
    return ours, record.official("vae", TOY["vae"]).double(), record.official("unet", TOY["unet"]).double()


def filtered(gradient):
    """1 / (r + 1) on numpy's spectrum, the deviation restored up to the filter's 1e-8: pixels have small gradients."""
    y = np.fft.fft2(gradient.numpy())
    fy, fx = np.fft.fftfreq(y.shape[-2]) * y.shape[-2], np.fft.fftfreq(y.shape[-1]) * y.shape[-1]
    low = np.fft.ifft2(y / (np.hypot(fy[:, None], fx) + 1)).real
    return torch.from_numpy(low * gradient.numpy().std(ddof=1) / (low.std(ddof=1) + 1e-8))


@pytest.mark.parametrize("kind", ("feature", "channel"))
def test_a_step_of_the_pixels(sides, kind):
    """Gradient, filtered gradient and the pixels after it; each row by itself on the official side."""
    ours, vae, net = sides
    p = 2 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)).double() - 1
    step = next(ascend(ours, JOBS[kind], CONFIG, ([torch.Generator().manual_seed(j.seed) for j in JOBS[kind]], p)))
    assert step.silent.tolist() == [False, kind == "feature"]                                   # both rules are seen
    scheduler = record.scheduler("ddim")
    for row, job in enumerate(JOBS[kind]):
        *_, eps = draw(torch.Generator().manual_seed(job.seed), (4, 16, 16), CONFIG)
        leaf, caught, t = p[row:row + 1].clone().requires_grad_(True), [], torch.tensor([job.timestep])
        z = vae.encode(leaf).latent_dist.mode() * vae.config.scaling_factor
        handle = net.get_submodule(HOOK).register_forward_hook(lambda module, args, output: caught.append(output[0]))
        net(scheduler.add_noise(z, eps[None].double(), t), t, encoder_hidden_states=ours.embed([""]))
        handle.remove()
        h = caught[0].flatten(2)[0].T                                                           # (S, D)
        if kind == "feature":
            pre = (h - ours.sae.b_dec) @ ours.sae.encoder.weight[job.feature] + ours.sae.encoder.bias[job.feature]
            a = pre.clamp(min=0).mean() if (pre > 0).any() else pre.mean()
        else:
            a = h[:, job.channel].mean()
        beyond = (z.abs() - 0.1).clamp(min=0).pow(2).mean()
        (0.5 * beyond + 0.5 * (z.mean().abs() + (z.std() - 1).abs()) - a).backward()
        gradient = leaf.grad.clone()
        leaf.grad = filtered(gradient)
        torch.optim.AdamW([leaf], 0.05, weight_decay=0.01).step()
        official = gradient, filtered(gradient), leaf.detach().clamp(-1, 1)
        errors = [relative_error(mine[row:row + 1], theirs)
                  for mine, theirs in zip((step.gradient, step.smoothed, step.after), official)]
        print(f"{kind} row {row}: {errors}")
        assert errors[0] < 1e-10
        assert errors[1] < 1e-6                 # the filter's radius is float32
        assert errors[2] < 1e-4                 # g / (|g| + 1e-8) enlarges that where g is near 0
