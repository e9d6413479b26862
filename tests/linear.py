"""A stand-in for a model whose every number can be worked out on paper: all of it is linear but for the SAE's relu.

    h = A x + t / 1000 + mean of the text       at every pixel, (B, 3, 16, 16); A is (3, 4)
    e = P h                                     the predicted noise, (B, 4, 16, 16); P is (4, 3)
    picture = the first three channels of z, each value 8 x 8 times; back again: its means, and 0 as the fourth channel

The text of a prompt is its length, so that of "" is 0. A feature f that is active at all pixels has da/dx =
A^T W_enc[f] / S at every pixel. A latent is a quarter as wide as SD's: lengths and slopes are a quarter, too.
"""
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from config import Config, Job
from sae import SAE
from schedule import Schedule
from tests.seeded import randn

D, FEATURES, EDGE = 3, 16, 16
BARE = Config(num_steps=3, prior="noise", jitter_max=0, rotate_max=0.0, scale_max=1.0, spectral_filter=False,
              total_variation_weight=0.0, range_weight=0.0, moment_weight=0.0, weight_decay=0.0, finish=False)
JOBS = [Job("feature", 2, timestep=300, seed=1), Job("feature", 5, timestep=800, seed=2)]


def change(config=BARE, **settings):
    return dataclasses.replace(config, **settings)


def close(a, b, atol=1e-5):
    return torch.allclose(a, torch.as_tensor(b, dtype=a.dtype).expand_as(a), rtol=1e-4, atol=atol)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def begin(jobs, z=None):
    """What visualize.start gives, from noise or from the latents z."""
    generators = [generator(job.seed) for job in jobs]
    noise = torch.stack([torch.randn(4, EDGE, EDGE, generator=g) for g in generators])
    return generators, noise if z is None else z


def roots(model, t):
    """sqrt(abar_t), sqrt(1 - abar_t)."""
    abar = model.schedule.alphas_cumprod[t]
    return abar.sqrt(), (1 - abar).sqrt()


class Hook(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(randn(D, 4, seed=1))         # A

    def forward(self, x, t, context):
        h = torch.einsum("dc,bcyx->bdyx", self.weight, x)
        return h + (t[:, None, None, None] / 1000 + context.mean((1, 2))[:, None, None, None]).to(h)


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.hook = Hook()
        self.weight = nn.Parameter(0.3 * randn(4, D, seed=2))   # P

    def width(self, name):
        return D

    def run(self, x, t, context):
        h = yield "hook", self.hook(x, t, context)
        yield "conv_out", torch.einsum("cd,bdyx->bcyx", self.weight, h)

    def forward(self, x, t, context, until=None):
        passes = self.run(x, t, context)
        _, h = next(passes)
        return h if until else passes.send(h)[1]


class Linear:
    """What the course asks of a model (weights/load.py). Every feature is active at every pixel, until a test lowers
    its bias. The capture's strength is t / 1000 (target + 1), a hundred times that for "all"."""
    hook_point, settings, folder, latent_shape = "hook", {"timestep": 300}, Path("linear"), (4, EDGE, EDGE)

    def __init__(self, device="cpu", dtype=torch.float32):
        self.device, self.dtype, self.directions = torch.device(device), dtype, {}
        self.vae = SimpleNamespace(factor=8)
        self.unet, self.schedule = UNet().requires_grad_(False).to(device, dtype), Schedule(device=device)
        self.sae = SAE(D, FEATURES, k=4).requires_grad_(False)
        self.sae.encoder.weight.copy_(randn(FEATURES, D, seed=3))
        self.sae.encoder.bias.fill_(20.0)
        self.sae.W_dec.copy_(randn(FEATURES, D, seed=4))
        self.sae.b_dec.copy_(randn(D, seed=5))
        self.sae.to(device)
        self.capture = SimpleNamespace(
            strength=lambda kind, target, when: torch.arange(1001) / 1000 * (target + 1) * (1 + 99 * (when == "all")),
            timesteps=lambda kind, target, when: {"auto": [0, 40], "active": [9]}[when],
            largest=lambda kind, target: None)

    def require(self, *parts):
        """All parts are there."""

    def embed(self, prompts):
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts], device=self.device)
        return lengths[:, None, None].expand(-1, 77, 1)

    def decode(self, z):
        return z[:, :3].repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)

    def encode(self, images):
        z = images.unflatten(2, (-1, 8)).unflatten(4, (-1, 8)).mean((3, 5))
        return torch.cat([z, torch.zeros_like(z[:, :1])], dim=1)

    def values(self, x, t, feature, text=0.0):
        """What the relu of a feature is applied to, at noisy latents x (4, 16, 16): (16, 16), by the definition."""
        h = torch.einsum("dc,cyx->dyx", self.unet.hook.weight, x) + t / 1000 + text
        w, b = self.sae.encoder.weight[feature], self.sae.encoder.bias[feature]
        return torch.einsum("d,dyx->yx", w, h - self.sae.b_dec[:, None, None]) + b

    def slope(self, feature):
        """da/dx of a feature that is active at every pixel: (4, 16, 16)."""
        v = self.unet.hook.weight.T.float() @ self.sae.encoder.weight[feature]
        return (v / EDGE ** 2)[:, None, None].expand(self.latent_shape)
