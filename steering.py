"""Steered priors: sample from noise with the empty prompt while a feature's direction is added at the hook point.

Regularizer 1 of the method: an ascent that starts at such a sample starts at a picture, and one in which the feature is
already wanted. Sources: the method's section 6, from Szokalski & Modrzejewski, arXiv 2605.08218; steering by a decoder
row as in Cywinski & Deja, arXiv 2501.18052.

    at every active time step t:   h <- h + s_t d,    s_t = steer_scale * (largest mean activation seen at t)

d is W_dec[f] for a feature and the unit vector of c for a raw channel. The largest activations come as a curve over t,
from a capture of the model's images: activity.profile.strength, which also says what steer_steps "all" and "constant"
(ours) make of them. Many features wake only in the last steps, when the picture is settled; steering them when they are
active comes too late to shape it.
"""
import torch

from schedule import SAMPLERS, guided


def directions(model, jobs):
    """The direction d of each job, all of one kind: (B, D)."""
    if jobs[0].kind == "feature":
        return model.sae.W_dec[[job.feature for job in jobs]]
    return torch.eye(model.unet.width(model.hook_point), device=model.device)[[job.channel for job in jobs]]


@torch.no_grad()
def sample(model, noise, context, sampler="pndm", steps=50, guidance=1.0, add=None, see=None):
    """Sample images' latents: noise (B, 4, H, W), context (B or 1, 77, Dc) -> (B, 4, H, W).

    add(t) -> {hook point: (B or 1, D)}: added at the hook at time step t, with guidance (1, D) to both halves.
    see(t, h): is handed the hook's output before anything is added, (B, D, h, w); with guidance (2B, D, h, w), first
    the rows that saw the empty prompt, then those that saw `context`.
    """
    caught = []

    def net(x, t, c):
        eps = model.unet(x.to(model.dtype), t, c, add=add and add(int(t[0]))).float()
        if see:
            see(int(t[0]), caught.pop())
        return eps

    hook = model.unet.get_submodule(model.hook_point)
    handle = see and hook.register_forward_hook(lambda module, args, h: caught.append(h))
    try:
        x, null = noise, model.embed([""]) if guidance != 1.0 else None
        for _, x in SAMPLERS[sampler](model.schedule, guided(net, context, null, guidance), x, steps):
            pass
    finally:
        if handle:
            handle.remove()
    return x


def steered_prior(model, noise, d, s, sampler="pndm", steps=50):
    """Latents (B, 4, H, W) sampled from `noise` with the empty prompt, while s[:, t] d is added at every time step t.

    d (B, D) directions; s (B, 1001) strengths at t = 0..1000.
    """
    push = lambda t: {model.hook_point: s[:, t, None].to(model.dtype) * d.to(model.dtype)}                  # (B, D)
    return sample(model, noise, model.embed([""]), sampler, steps, add=push)
