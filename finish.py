"""Finish the picture: the model redraws what the ascent found, while the feature keeps pulling.

    x  = sqrt(abar_t0) z + sqrt(1 - abar_t0) eps            z the ascent's result; the higher t0, the more is redrawn
    for t from t0 down to 0:
        e  = UNet(x, t, "")                                 what the model would draw by itself
        g  = spectral filter of d a_f(x, t) / d x           where the feature wants it to go
        e' = e - s (rms e / rms g) g                        s: how hard it pulls, whatever the size of its gradient
        x  = the DDIM step with e'

From pure noise at the top of the schedule the same loop is a start, --prior guided. Read `redraw` first.

Sources
 [1] Meng et al., "SDEdit", arXiv 2108.01073: noising a picture to t0 and denoising it again
 [2] Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv 2105.05233: guidance by a classifier
 [3] Pierzchlewicz et al., "Energy Guided Diffusion for Generating Neurally Exciting Images", NeurIPS 2023: by a neuron
 [4] Luo et al., "Brain Diffusion for Visual Exploration", arXiv 2306.03089: by a brain region
 [5] Nguyen et al., "Plug & Play Generative Networks", arXiv 1612.00005: a generative model as such pictures' prior
 [6] arXiv 2605.17504, the KL-minimal soft constraint: strongest images and regularised ascents are biased in opposite
     ways, and guided posterior sampling lies between them
The pull relative to rms e, the filter and `auto` are ours.

Axes: B jobs, 4 x H x W latents, S positions at the hook point, D its width.
"""
from dataclasses import dataclass

import torch

import regularizers as reg
from ascent import first_scale, gradient_of, objective, readout
from steering import predict

FINISH_SEED = 0x6F3D91A5                        # a job's seed XOR this: the finish draws from a generator of its own


@dataclass
class Step:
    """One step of the finish as data; tensors have a row a job and are never written to again."""
    index: int
    timestep: int
    before: torch.Tensor            # (B, 4, H, W) the noisy latent that this step started from and the UNet saw
    noise: torch.Tensor             # (B, 4, H, W) e, the UNet's prediction
    hook: torch.Tensor              # (B, D, h, w)
    activation: torch.Tensor        # (B,)
    silent: torch.Tensor            # (B,) bool: the feature was 0 at every position
    gradient: torch.Tensor          # (B, 4, H, W) of the activation
    filtered: torch.Tensor          # (B, 4, H, W) g
    pulled: torch.Tensor            # (B, 4, H, W) e'
    after: torch.Tensor             # (B, 4, H, W)
    alive: torch.Tensor             # (B,) bool: finite so far; a row that is not stays as it was
    repeats: torch.Tensor           # (B,) how often the gradient was taken again with half the loss scale


def grid(top, steps):
    """List `steps` time steps from `top` down; the last step leads on to 0. 600, 580, ..., 20 for 30 from 600."""
    return [round(top * (steps - i) / steps) for i in range(steps)]


def rms(x):
    """Take the root of the mean square of each row: (B, ...) -> (B, 1, 1, 1)."""
    return x.square().mean((1, 2, 3), keepdim=True).sqrt()


def redraw(model, jobs, x, times, config):
    """Redraw x (B, 4, H, W), noised to times[0], down to 0, while the jobs' features pull; yield every step as data."""
    context = model.embed([config.prompt]).expand(len(jobs), -1, -1)                            # (B, 77, Dc)
    alive = torch.ones(len(jobs), dtype=torch.bool, device=model.device)
    scale = first_scale(model, len(jobs))                                                       # (B,) or None

    for index, (t, t_next) in enumerate(zip(times, [*times[1:], 0])):
        before = x
        leaf = before.clone().requires_grad_(True)
        e, hook = predict(model, leaf, torch.full((len(jobs),), t, device=model.device), context)

        values = readout(model, hook, jobs, config.position)                                    # (B, S or 1)
        a, silent, climb = objective(values, jobs[0].kind, config.silent_gradient)              # (B,) each
        gradient, scale, repeats = gradient_of(climb, leaf, scale)

        g = reg.spectral_filter(gradient) if config.spectral_filter else gradient
        unit = torch.where(rms(g) > 0, rms(e) / rms(g), 0)                                      # no gradient, no pull
        pulled = e - config.finish_scale * unit * g

        moved = model.schedule.step(before, pulled, t, t_next)
        alive = alive & moved.flatten(1).isfinite().all(dim=1)
        x = torch.where(alive[:, None, None, None], moved, before)
        yield Step(index, t, before, e, hook.detach(), a.detach(), silent, gradient, g, pulled, x, alive, repeats)
        del hook, values, a, climb              # their graph: two at once would take twice the memory


def noised(model, jobs, z, t0):
    """Bring latents z (B, 4, H, W) to time step t0, each with the noise of its job's seed."""
    generators = [torch.Generator().manual_seed(FINISH_SEED ^ job.seed) for job in jobs]
    eps = torch.stack([torch.randn(z.shape[1:], generator=g) for g in generators]).to(z)
    return model.schedule.add_noise(z, eps, torch.full((len(jobs),), t0, device=z.device))
