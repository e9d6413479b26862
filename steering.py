"""Steer samples: add a target's direction at the hook point while the model draws from noise.

Regularizer 1 of the method: the ascent starts at a picture in which the target is already wanted.

    at every active time step t:   h <- h + s_t d,    s_t = steer_scale * (largest mean activation seen at t)

d is W_dec[f] for a feature, the unit vector of c for a raw channel. The largest activations come as a curve over t from
a capture of the model's images (activity/profile.py, `strength`). Many features are active only in the last steps, when
the picture is settled; steering them there comes too late to shape it.

Sources
 [1] Szokalski & Modrzejewski, "Deep Dreams Are Made of This", arXiv 2605.08218: the steered prior
 [2] Cywinski & Deja, "SAeUron", arXiv 2501.18052: steering by a decoder row
 [3] arXiv 2606.31699, PER: what steering along such a row changes, and what it leaves

Axes: B jobs, D hook width, h x w positions at the hook point, 4 x H x W latents.
"""
from types import SimpleNamespace

import torch

from sae import reading
from schedule import SAMPLERS, guided


def directions(model, jobs):
    """Return the direction d of each job, all of one kind: (B, D). A feature's is its decoder row."""
    kind, targets = jobs[0].kind, [job.target for job in jobs]
    if kind == "feature":
        return model.sae.W_dec[targets]
    if kind == "channel":
        return torch.eye(model.unet.width(model.hook_point), device=model.device)[targets]
    return torch.stack([model.directions[name] for name in targets])


def reach_hook(model, x, t, context):
    """Run the UNet up to the model's hook point: (the run, which can go on; output there; what is read there), the last
    two (B, D, h, w), see sae.reading."""
    passes = model.unet.run(x.to(model.dtype), t, context)
    before, (name, h) = None, next(passes)
    while name != model.hook_point:
        before, (name, h) = h, passes.send(h)
    return passes, h, reading(model.sae, before, h)


def read_hook(model, x, t, context):
    """Run the UNet up to the model's hook point and return what is read there, (B, D, h, w)."""
    return reach_hook(model, x, t, context)[2]


def predict(model, x, t, context, push=None, see=None):
    """Predict the noise (B, 4, H, W) of x (B, 4, H, W) at time steps t (B,), float32.

    push  {hook point: (B or 1, D)}: added to every position of that hook's output before the net goes on
    see   is handed what is read at the model's hook point, (B, D, h, w), before anything is added
    """
    passes = model.unet.run(x.to(model.dtype), t, context)
    before, (name, h) = None, next(passes)
    while name != "conv_out":
        if see and name == model.hook_point:
            see(reading(model.sae, before, h))
        if push and name in push:
            h = h + push[name].reshape(-1, h.shape[1], 1, 1)
        before, (name, h) = h, passes.send(h)
    return h.float()


@torch.no_grad()
def sample(model, noise, context, sampler="pndm", steps=50, guidance=1.0, add=None, see=None, on_step=None):
    """Sample images' latents: noise (B, 4, H, W), context (B or 1, 77, Dc) -> (B, 4, H, W).

    add      add(t) gives {hook point: (B or 1, D)} to add at time step t, with guidance (1, D) to both halves
    see      is handed t and what is read at the hook before anything is added, (B, D, h, w); with guidance (2B, D, h,
             w), first the rows that saw the empty prompt, then those that saw `context`
    on_step  is called at each step as on_step("sampling", step), of which it has timestep, before and noise, the
             latents before it and what is predicted there, (B, 4, H, W) each
    """
    def noise_at(x, now):                       # `now` is a number: to read it off a card would wait for the card
        net = lambda x, t, c: predict(model, x, t, c, add and add(now), see and (lambda h: see(now, h)))
        e = guided(net, context, null, guidance)(x, now)
        if on_step:
            on_step("sampling", SimpleNamespace(timestep=now, before=x, noise=e))
        return e

    x, null = noise, model.embed([""]) if guidance != 1.0 else None
    for _, x in SAMPLERS[sampler](model.schedule, noise_at, x, steps):
        pass
    return x


def steered_prior(model, noise, d, s, sampler="pndm", steps=50, on_step=None):
    """Sample latents (B, 4, H, W) from `noise` with the empty prompt, while s[:, t] d is added at every time step t.

    d (B, D) directions; s (B, 1001) strengths at t = 0..1000.
    """
    push = lambda t: {model.hook_point: s[:, t, None].to(model.dtype) * d.to(model.dtype)}                  # (B, D)
    return sample(model, noise, model.embed([""]), sampler, steps, add=push, on_step=on_step)
