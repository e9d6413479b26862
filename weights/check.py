"""Check whether UNet and SAE belong together, from the activations of two fixed prompts.

An SAE describes the activations that it was trained on. On those of its UNet it leaves little variance unexplained,
with about k features active at a position; on another model's, or at another hook point, both numbers are far off. The
inputs are noise of fixed seeds at the first time step of a sampler: there alone the right input is known without
running the whole UNet.
"""
import math

import torch

from sae import fvu

PROMPTS = ("A Cat image in Sketch style", "A Flower image in Cartoon style")            # as SAeUron and the toy train
STEPS, BLOCK = 50, 256                          # the sampler whose first step it is; positions encoded at a time
FVU_FITS, FVU_WRONG = 0.5, 0.8                  # fits below the one, does not from the other on; the mean alone has 1
ACTIVE_WRONG = 0.25                             # share of k; fewer active features at a position do not describe it


@torch.no_grad()
def fit(model):
    """Return (fraction of variance unexplained, mean number of active features), computed once for a model."""
    if model.fit is None:
        model.require("sae")
        model.fit = measure(model)
        if not math.isfinite(model.fit[0]):
            model.check_numbers()               # names the file and the tensor, if NaN comes from one
    return model.fit


def measure(model):
    generators = [torch.Generator().manual_seed(seed) for seed, _ in enumerate(PROMPTS)]
    noise = torch.stack([torch.randn(model.latent_shape, generator=g) for g in generators])     # (B, 4, H, W)
    noise, context = noise.to(model.device), model.embed(list(PROMPTS))                         # (B, 77, Dc)
    t = torch.full((len(noise),), model.schedule.timesteps(STEPS)[0], device=model.device)
    h = model.unet(noise.to(model.dtype), t, context, until=model.hook_point).float()           # (B, D, h, w)
    h = h.flatten(2).transpose(1, 2).flatten(0, 1)                                              # (B * S, D)
    h_hat, active = [], 0
    for positions in h.split(BLOCK):                                                            # (n, F) at a time
        acts = model.sae.encode(positions)
        h_hat.append(model.sae.decode(acts))
        active += (acts > 0).sum().item()
    return fvu(model.sae.preprocess(h), torch.cat(h_hat)).item(), active / len(h)


def verdict(k, unexplained, active):
    """Say what the two numbers mean: "" when UNet and SAE fit, else one sentence for the user."""
    if unexplained < FVU_FITS and active >= ACTIVE_WRONG * k:
        return ""
    sure = not unexplained < FVU_WRONG or active < ACTIVE_WRONG * k                   # NaN is sure, too
    return (f"UNet and SAE {'do not' if sure else 'may not'} belong together: the SAE leaves {unexplained:.2f} of the "
            f"activations' variance unexplained (below {FVU_FITS} where they do), with {active:.1f} features active at a "
            f"position (k is {k}); give the UNet that it was trained on")


def check_fit(model):
    """The line of --check about UNet and SAE."""
    unexplained, active = fit(model)
    return (f"fit of UNet and SAE: {unexplained:.3f} of the variance unexplained, {active:.1f} features active at a "
            f"position (k is {model.sae.k}): {verdict(model.sae.k, unexplained, active) or 'they belong together'}")
