"""A stand-in for a model whose every number can be worked out on paper: all of it is linear but for the SAE's relu.

    h = A x + t / 1000 + mean of the text       at every pixel, (B, 3, 16, 16); A is (3, 4)
    e = P h                                     the predicted noise, (B, 4, 16, 16); P is (4, 3)
    picture = the first three channels of z, each value 8 x 8 times; back again: its means, and 0 as the fourth channel

The text of a prompt is its length, so that of "" is 0. A feature f on all pixels has dh/dx = A, so d a / d x is
A^T W_enc[f] / S at every pixel. A latent is a quarter as wide as SD's: lengths and slopes are a quarter, too.
"""
from pathlib import Path

import torch
from torch import nn

from sae import SAE
from schedule import Schedule
from tests.seeded import randn

D, FEATURES, EDGE = 3, 16, 16


class Hook(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(randn(D, 4, seed=1))         # A

    def forward(self, x, t, context):
        h = torch.einsum("dc,bcyx->bdyx", self.weight, x)
        return h + t[:, None, None, None] / 1000 + context.mean((1, 2))[:, None, None, None]


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.hook = Hook()
        self.weight = nn.Parameter(0.3 * randn(4, D, seed=2))   # P

    def width(self, name):
        return D

    def forward(self, x, t, context, until=None, add=None):
        h = self.hook(x, t, context)
        for push in (add or {}).values():
            h = h + push.reshape(-1, D, 1, 1)
        return h if until else torch.einsum("cd,bdyx->bcyx", self.weight, h)


class Linear:
    """What the ascent, the finish and the steering ask of a model (weights/load.py). Every feature is active at every
    pixel, until a test lowers its bias."""
    device, dtype, hook_point, settings, folder = torch.device("cpu"), torch.float32, "hook", {}, Path("linear")
    latent_shape = (4, EDGE, EDGE)

    def __init__(self):
        self.unet, self.schedule, self.sae = UNet().requires_grad_(False), Schedule(), SAE(D, FEATURES, k=4)
        self.sae.requires_grad_(False)
        self.sae.encoder.weight.copy_(randn(FEATURES, D, seed=3))
        self.sae.encoder.bias.fill_(20.0)
        self.sae.W_dec.copy_(randn(FEATURES, D, seed=4))
        self.sae.b_dec.copy_(randn(D, seed=5))
        self.whole_sae = self.sae

    def let_go(self, *names):
        """Nothing of it is read from files."""

    def embed(self, prompts):
        return torch.tensor([float(len(prompt)) for prompt in prompts])[:, None, None].expand(-1, 77, 1)

    def decode(self, z):
        return z[:, :3].repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)

    def encode(self, images):
        z = images.unflatten(2, (-1, 8)).unflatten(4, (-1, 8)).mean((3, 5))
        return torch.cat([z, torch.zeros_like(z[:, :1])], dim=1)

    def strength(self, kind, target, when="active"):
        """t / 1000 (target + 1); a hundred times that for "constant", so that a test sees which was asked for."""
        return torch.arange(1001) / 1000 * (target + 1) * (100 if when == "constant" else 1)

    def largest(self, kind, target, t):
        return None

    def values(self, x, t, feature):
        """What the relu of a feature is applied to, at noisy latents x (4, 16, 16): (16, 16), by the definition."""
        h = torch.einsum("dc,cyx->dyx", self.unet.hook.weight, x) + t / 1000
        w, b = self.sae.encoder.weight[feature], self.sae.encoder.bias[feature]
        return torch.einsum("d,dyx->yx", w, h - self.sae.b_dec[:, None, None]) + b

    def slope(self, feature):
        """d a / d x of a feature that is active at every pixel: (4, 16, 16)."""
        v = self.unet.hook.weight.T @ self.sae.encoder.weight[feature]
        return (v / EDGE ** 2)[:, None, None].expand(self.latent_shape)
