"""The model finishes the picture: it redraws what the ascent found, while the feature keeps pulling.

    x  = sqrt(abar_t0) z + sqrt(1 - abar_t0) eps            z the ascent's result; the higher t0, the more is redrawn
    for t from t0 down to 0:
        e  = UNet(x, t, "")                                 what the model would draw by itself
        g  = spectral filter of d a_f(x, t) / d x           where the feature wants it to go
        e' = e - s (rms e / rms g) g                        s: how hard it pulls, whatever the size of its gradient
        x  = the DDIM step with e'

From pure noise at the top of the schedule the same loop is a start of its own, `guide`.

The finish shows what the model makes of what the ascent found. It may put in what the feature did not ask for: hence
both pictures are kept, and both have scores.

Sources
 [1] Dhariwal & Nichol, "Diffusion Models Beat GANs on Image Synthesis", arXiv 2105.05233: guidance by a classifier
 [2] Pierzchlewicz et al., "Energy Guided Diffusion for Generating Neurally Exciting Images", NeurIPS 2023: by a neuron
 [3] Luo et al., "Brain Diffusion for Visual Exploration", arXiv 2306.03089: by a brain region
 [4] Nguyen et al., "Plug & Play Generative Networks", arXiv 1612.00005: a generative model as such pictures' prior
The pull relative to rms e, the filter and both `auto` are ours.

Axes: B jobs, 4 x H x W latents, S positions at the hook point, D its width. Read `redraw` first.
"""
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch

import ascent
import regularizers as reg
from ascent import assess, measure, objective, readout, row, steer, summarize
from config import FINISH_FROM, STRENGTHS

FINISH_SEED = 0x6F3D91A5                        # a job's seed XOR this: the finish draws from a generator of its own
ENOUGH = 0.75                                   # of the ascent's re-encoded activation: with so much `auto` is content
GUIDED_SCALE = 0.5                              # of a guided start where the setting is auto: no ascent precedes it


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


def grid(top, steps):
    """`steps` time steps from `top` down; the last step leads on to 0. 600, 580, ..., 20 for 30 from 600."""
    return [round(top * (steps - i) / steps) for i in range(steps)]


def rms(x):
    """Root of the mean square of each row: (B, ...) -> (B, 1, 1, 1)."""
    return x.square().mean((1, 2, 3), keepdim=True).sqrt()


def look(model, x, t, context):
    """The UNet, once: its prediction (B, 4, H, W), the hook's output (B, D, h, w) and the leaf that this depends on.

    No graph is kept of what lies beyond the hook, so that both cost little more than the longer of the two.
    """
    leaf, caught = x.clone().requires_grad_(True), []

    def stop(module, args, h):
        caught.append(h)
        torch.set_grad_enabled(False)                           # until the end of `with` below

    handle = model.unet.get_submodule(model.hook_point).register_forward_hook(stop)
    try:
        with torch.enable_grad():
            e = model.unet(leaf.to(model.dtype), t, context)
    finally:
        handle.remove()
    return e.float(), caught[0], leaf


def redraw(model, jobs, x, times, scale, config):
    """From x (B, 4, H, W), noised to times[0], down to 0, while the jobs' features pull; yields every step as data."""
    context = model.embed([""]).expand(len(jobs), -1, -1)                                       # (B, 77, Dc)
    alive = torch.ones(len(jobs), dtype=torch.bool, device=model.device)

    for index, (t, t_next) in enumerate(zip(times, [*times[1:], 0])):
        before = x
        e, hook, leaf = look(model, before, torch.full((len(jobs),), t, device=model.device), context)

        values = readout(model, hook, jobs)                                                     # (B, S)
        a, silent, climb = objective(values, jobs[0].kind, config.silent_gradient)              # (B,) each
        (gradient,) = torch.autograd.grad(climb.sum(), leaf)                                    # rows do not mix

        g = reg.spectral_filter(gradient) if config.spectral_filter else gradient
        unit = torch.where(rms(g) > 0, rms(e) / rms(g), 0)                                      # no gradient, no pull
        pulled = e - scale * unit * g

        moved = model.schedule.step(before, pulled, t, t_next)
        alive = alive & moved.flatten(1).isfinite().all(dim=1)
        x = torch.where(alive[:, None, None, None], moved, before)
        yield Step(index, t, before, e, hook.detach(), a.detach(), silent, gradient, g, pulled, x, alive)


def guide(model, jobs, noise, config):
    """A start of its own: sampled from noise (B, 4, H, W) while the feature pulls. -> (B, 4, H, W)"""
    scale = GUIDED_SCALE if config.finish_scale == "auto" else config.finish_scale
    for step in redraw(model, jobs, noise, grid(len(model.schedule) - 1, config.prior_steps), scale, config):
        pass
    return step.after


def start(model, jobs, config, priors=None):
    """ascent.start, which also knows --prior guided."""
    return ascent.start(model, jobs, config, priors, guide if config.prior == "guided" else steer)


def noised(model, jobs, z, t0):
    """Latents z (B, 4, H, W) at time step t0, each with the noise of its job's seed."""
    generators = [torch.Generator().manual_seed(FINISH_SEED ^ job.seed) for job in jobs]
    eps = torch.stack([torch.randn(z.shape[1:], generator=g) for g in generators]).to(z)
    return model.schedule.add_noise(z, eps, torch.full((len(jobs),), t0, device=z.device))


@torch.no_grad()
def reencoded(model, jobs, z):
    """Activations (B,) of latents z (B, 4, H, W), decoded and encoded again; what is no number is below all others."""
    return measure(model, model.encode(model.decode(z)), jobs)[0].nan_to_num(nan=-torch.inf)


def choose(tries, pick):
    """For job i its row of the try numbered pick[i]. A try: a tensor (B, ...), or lists, tuples or dicts of them."""
    if isinstance(tries[0], dict):
        return {k: choose([t[k] for t in tries], pick) for k in tries[0]}
    if isinstance(tries[0], (list, tuple)):
        return [choose(parts, pick) for parts in zip(*tries)]
    return torch.stack([tries[n][i] for i, n in enumerate(pick)])


def finish(model, jobs, z, config, enough=None, on_step=None, keep=row):
    """The redrawing of z (B, 4, H, W): its latents (B, 4, H, W), t0 (B,) and scale (B,) of each, and of each step what
    `keep` makes of it, {name: (B, ...)}.

    What is "auto" is tried, and chosen for each job by the activation of its picture, decoded and encoded again:
        finish_scale  the smallest of STRENGTHS at which it is `enough` (B,); where none is, the one of the largest
        finish_from   the one of FINISH_FROM, and with finish_scale "auto" of STRENGTHS, of the largest
    """
    from_auto, scale_auto = config.finish_from == "auto", config.finish_scale == "auto"
    options = list(product(FINISH_FROM if from_auto else [config.finish_from],
                           STRENGTHS if scale_auto else [config.finish_scale]))
    tries, found = [], []
    for t0, s in options:
        history = []
        for step in redraw(model, jobs, noised(model, jobs, z, t0), grid(t0, config.finish_steps), s, config):
            history.append(keep(step))
            if on_step:
                on_step(step)
        tries.append((step.after, torch.full((len(jobs),), t0), torch.full((len(jobs),), float(s)), history))
        if len(options) > 1:
            found.append(reencoded(model, jobs, step.after))
            good = torch.stack(found) >= (torch.inf if from_auto else enough)                   # (tries, B)
            if good.any(dim=0).all():
                break
    if len(tries) == 1:
        return tries[0]
    pick = torch.where(good.any(dim=0), good.int().argmax(dim=0), torch.stack(found).argmax(dim=0))
    return choose(tries, pick.tolist())


def finish_results(model, results, config, on_step=None):
    """Adds to each Result of a batch what the model makes of it, a Result as well: `finished`."""
    jobs = [result.job for result in results]
    column = lambda name: torch.tensor([result.scores[name] for result in results], device=model.device)
    z = torch.stack([result.latent for result in results]).to(model.device)
    x, t0, scale, history = finish(model, jobs, z, config, ENOUGH * column("activation_reencoded"), on_step)
    with torch.no_grad():
        images = model.decode(x)
    assessed = assess(model, x, jobs, images, column("activation_start"))
    for i, last in enumerate(summarize(model, jobs, x, images, assessed, history)):
        last.scores |= {"finish_from": int(t0[i]), "finish_scale": round(float(scale[i]), 6)}
        results[i].finished = last


def run_batch(model, jobs, config, on_step=None, frames=0, priors=None):
    """The whole course of jobs that are computed together: start, ascent, scores, finish, scores. A Result for each."""
    results = ascent.run_batch(model, jobs, config, on_step, frames, begin=start(model, jobs, config, priors))
    if config.finish:
        finish_results(model, results, config, on_step)
    return results


def course_length(config):
    """Steps of ascent and finish together, at most."""
    froms = len(FINISH_FROM) if config.finish_from == "auto" else 1
    scales = len(STRENGTHS) if config.finish_scale == "auto" else 1
    return config.num_steps + config.finish * froms * scales * config.finish_steps


stream = partial(ascent.stream, course=run_batch)


def visualize(model, jobs, config, batch_size=None, on_step=None):
    """All Results of `stream` in a list."""
    return list(stream(model, jobs, config, batch_size, on_step))
