"""Steered priors: sample from noise with the empty prompt while a feature's direction is added at the hook point.

Regularizer 1 of the method: an ascent that starts at such a sample starts at a picture, and one in which the feature is
already wanted. Sources: the method's section 6, from Szokalski & Modrzejewski, arXiv 2605.08218; steering by a decoder row as in
Cywinski & Deja, arXiv 2501.18052.

    at sampling step t:   h <- h + s_t d,    s_t = steer_scale * (largest mean activation of the feature seen at t)

d is W_dec[f] for a feature and the unit vector of c for a raw channel. The largest activations are measured on images sampled
from prompts and lie beside the SAE, in `activity.safetensors` (`Model.activity`).
"""
import torch

from schedule import SAMPLERS, guided

TABLES = {"feature": "max_feature", "channel": "max_channel"}


def directions(model, jobs, kind):
    """The direction d of each job: (B, D)."""
    if kind == "feature":
        return model.sae.W_dec[[job.feature for job in jobs]]
    return torch.eye(model.unet.width(model.hook_point), device=model.device)[[job.channel for job in jobs]]


def strengths(model, jobs, kind, t):
    """Largest mean activation of each job's feature or channel at the measured time step nearest to t: (B,)."""
    activity = model.activity
    row = (activity["timesteps"] - t).abs().argmin()
    targets = [getattr(job, kind) for job in jobs]
    return activity[TABLES[kind]][row, targets].float()


@torch.no_grad()
def sample(model, noise, context, sampler="pndm", steps=50, guidance=1.0, add=None):
    """Sample images' latents: noise (B, 4, H, W), context (B or 1, 77, Dc) -> (B, 4, H, W).

    add(t) -> {hook point: (B, D)}: what is added at the hook at time step t (not used together with guidance).
    """
    net = lambda x, t, c: model.unet(x.to(model.dtype), t, c, add=add and add(int(t[0]))).float()
    null = model.embed([""]) if guidance != 1.0 else None
    x = noise
    for _, x in SAMPLERS[sampler](model.schedule, guided(net, context, null, guidance), x, steps):
        pass
    return x


def steered_prior(model, jobs, kind, noise, scale, sampler="pndm", steps=50):
    """Latents (B, 4, H, W) sampled from `noise` with the empty prompt, steered at all time steps with s_t = scale * largest."""
    d = directions(model, jobs, kind).to(model.dtype)                                           # (B, D)
    def add(t):
        s = scale * strengths(model, jobs, kind, t)                                             # (B,)
        return {model.hook_point: s[:, None].to(model.dtype) * d}
    return sample(model, noise, model.embed([""]), sampler, steps, add=add)
