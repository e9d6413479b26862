"""Steer samples: add a target's direction at the hook point while the model draws from noise; regularizer 1.

    at every active time step t:   h <- h + s_t d,    s_t = steer_scale * (largest mean activation seen at t)

d is W_dec[f] for a feature, the unit vector of c for a raw channel. The largest activations come from a capture of the
model's images (activity/profile.py, `strength`). Many are active only in the last steps, too late to shape the picture.

Sources
 [1] Szokalski & Modrzejewski, "Deep Dreams Are Made of This", arXiv 2605.08218: the steered prior
 [2] Cywinski & Deja, "SAeUron", arXiv 2501.18052: steering by a decoder row
 [3] arXiv 2606.31699, PER: what steering along such a row changes, and what it leaves

Axes: B jobs, D hook width, h x w positions at the hook point, 4 x H x W latents.
"""
from types import SimpleNamespace

import torch

from schedule import SAMPLERS


def directions(model, jobs):
    """Return the direction d of each job, all of one kind: (B, D). A feature's is its decoder row."""
    kind, targets = jobs[0].kind, [job.target for job in jobs]
    if kind == "feature":
        return model.sae.W_dec[targets]
    if kind == "channel":
        return torch.eye(model.unet.width(model.hook_point), device=model.device)[targets]
    return torch.stack([model.directions[name] for name in targets])


def reach_hook(model, x, t, context):
    """Run the UNet up to the model's hook point: (the run, which can go on; its output h there; what is read there),
    both (B, D, h, w). An SAE that reads the update reads h minus the output before it."""
    passes = model.unet.run(x.to(model.dtype), t, context)
    before, (name, h) = None, next(passes)
    while name != model.hook_point:
        before, (name, h) = h, passes.send(h)
    update = model.sae is not None and model.sae.reads == "update"
    return passes, h, h.float() - before.float() if update else h


def read_hook(model, x, t, context):
    """Run the UNet up to the model's hook point and return what is read there, (B, D, h, w)."""
    return reach_hook(model, x, t, context)[2]


def predict(model, x, t, context, push=None):
    """Predict the noise (B, 4, H, W) of x (B, 4, H, W) at time steps t (B,), float32: (it, what is read at the hook
    point, (B, D, h, w)). Gradients end there; `push` (B or 1, D) is then added to every position of its output."""
    passes, h, hook = reach_hook(model, x, t, context)
    with torch.no_grad():
        if push is not None:
            h = h + push[:, :, None, None]
        name = model.hook_point
        while name != "conv_out":
            name, h = passes.send(h)
    return h.float(), hook


@torch.no_grad()
def sample(model, noise, context, sampler="pndm", steps=50, guidance=1.0, add=None, on_step=None):
    """Sample images' latents: noise (B, 4, H, W), context (B or 1, 77, Dc) -> (B, 4, H, W).

    guidance g: the noise is e_null + g (e_text - e_null), e_null what is predicted with the empty prompt; 1 is none
    add      add(t) gives what to add at the hook at time step t, (B or 1, D), with guidance (1, D) to both halves
    on_step  is called with "sampling" and a step: timestep; before and noise, the latents and what is predicted there;
             hook, what was read before `add`, (B, D, h, w), with guidance (2B, D, h, w), the empty prompt first
    """
    x, B = noise, len(noise)
    text = context.expand(B, -1, -1)
    if guidance != 1.0:
        text = torch.cat([model.embed([""]).expand(B, -1, -1), text])

    def noise_at(x, now):                       # `now` is a number: to read it off a card would wait for the card
        both = x if guidance == 1.0 else torch.cat([x, x])
        e, hook = predict(model, both, torch.full((len(both),), now, device=x.device), text, add and add(now))
        if guidance != 1.0:
            e_null, e_text = e.chunk(2)
            e = e_null + guidance * (e_text - e_null)
        if on_step:
            on_step("sampling", SimpleNamespace(timestep=now, before=x, noise=e, hook=hook))
        return e

    for _, x in SAMPLERS[sampler](model.schedule, noise_at, x, steps):
        pass
    return x


def steered_prior(model, jobs, noise, config, on_step=None):
    """Sample latents (B, 4, H, W) from `noise` with the empty prompt, while s_t d of each job is added at time step t;
    ValueError where no capture says how strong."""
    if model.capture is None or jobs[0].kind == "direction":
        raise ValueError(f"--prior steer: no capture says how strong {jobs[0].kind} {jobs[0].target} is; give --prior "
                         "guided or --prior noise, or run python -m activity capture, which measures features and "
                         f"channels, --weights {model.folder}")
    curves = [model.capture.strength(job.kind, job.target, config.steer_steps) for job in jobs]
    s = config.steer_scale * torch.stack(curves).to(noise)                                      # (B, 1001)
    d = directions(model, jobs)                                                                 # (B, D)
    push = lambda t: s[:, t, None].to(model.dtype) * d.to(model.dtype)
    return sample(model, noise, model.embed([""]), config.prior_sampler, config.prior_steps, add=push, on_step=on_step)
