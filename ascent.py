"""Latent visualization by optimization: see what one feature inside a latent diffusion model responds to.

Gradient ascent on the clean latent z until the feature lights up at the hook point, for one time step t:

    x_t = sqrt(abar_t) transform(z) + sqrt(1 - abar_t) eps,  eps fresh at every step
    a   = mean over the hook's positions of relu(W_enc[f] . (h - b_dec) + b_enc[f]),  h = UNet(x_t, t, "") at the hook
    loss = -a + w_tv TV(z) + w_range R(z) + w_moment M(z);  the gradient is filtered and blurred;  AdamW moves z

Begin with `ascend`, the loop. Where an ascent starts and what its result is worth is in visualize.py.

Sources
 [1] Szokalski & Modrzejewski, "Deep Dreams Are Made of This: Visualizing Monosemantic Features in Diffusion Models",
     arXiv 2605.08218, and its implementation: the method and every default that is not marked as ours
 [2] Cywinski & Deja, "SAeUron", arXiv 2501.18052: the sparse autoencoder
 [3] Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101: AdamW
 [4] Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740: the loss scale
Deliberate differences from [1] are listed in docs/method.md.

Axes: B jobs, 4 x H x W latents, S positions at the hook point, D its width.
"""
import math
from dataclasses import dataclass

import torch

import regularizers as reg
from config import REFERENCE_WIDTH
from steering import directions, read_hook


def draw(generator, shape, config):
    """Draw a step's shift (2,), angle (), zoom () and noise (4, H, W), used or not: settings compare at equal noise."""
    whole = torch.randint(-config.jitter_max, config.jitter_max + 1, (2,), generator=generator)
    turn = torch.rand(2, generator=generator)
    return (whole * shape[-1] / REFERENCE_WIDTH, config.rotate_max * (2 * turn[0] - 1),
            1 + (config.scale_max - 1) * turn[1], torch.randn(shape, generator=generator))


def readout(model, h, jobs, position=None):
    """Read each job's target, all of one kind, before the relu: h (B, D, h, w) -> (B, S), float32.
    A feature f is W_enc[f] . (h - b_dec) + b_enc[f], a vector w . h, a channel that of its unit vector. Only `position`
    (row, column) is read where given, (B, 1); ValueError for one outside the grid."""
    if position is not None:
        (y, x), (rows, columns) = position, h.shape[2:]
        if not (y < rows and x < columns):
            raise ValueError(f"--position {y} {x}: {model.hook_point} has {rows} rows and {columns} columns, counted "
                             "from 0")
        h = h[:, :, y, x, None, None]
    h = h.float().flatten(2).transpose(1, 2)                                                    # (B, S, D)
    if jobs[0].kind == "feature":
        return model.sae.linear(h, [job.target for job in jobs])
    return (h @ directions(model, jobs)[:, :, None])[..., 0]


def activation(values, kind):
    """Take the mean over positions, behind a relu for a feature: (B, S) -> (B,)."""
    return (values.relu() if kind == "feature" else values).mean(dim=1)


def objective(values, kind, silent_gradient=True):
    """Return (activation (B,), silent (B,) bool, what is climbed (B,)) of the readout `values` (B, S). A feature that
    is 0 at every position is silent: its activation has no gradient, so the mean before the relu is climbed instead
    (ours), unless silent_gradient is off."""
    a = activation(values, kind)
    silent = (values <= 0).all(dim=1) & (kind == "feature")
    return a, silent, torch.where(silent, values.mean(dim=1), a) if silent_gradient else a


def first_scale(model, rows):
    """Return the loss scale (rows,) that a float16 run begins with (ours); None in the other precisions."""
    return torch.full((rows,), 2.0 ** 12, device=model.device) if model.dtype == torch.float16 else None


def gradient_of(loss, leaf, scale=None):
    """Differentiate loss (B,) by its leaf (B, 4, H, W): (gradient, scale that it took, repeats (B,)) [4].
    float16 has no numbers below 6e-8 or above 65504: the loss is multiplied by `scale` (B,), powers of two, and the
    gradient divided by it. Where a row is not finite its scale is halved, down to 1, and the same step taken again."""
    repeats = torch.zeros_like(loss)
    if scale is None:
        return torch.autograd.grad(loss.sum(), leaf)[0], None, repeats                          # rows do not mix
    while True:
        (g,) = torch.autograd.grad((scale * loss).sum(), leaf, retain_graph=True)
        again = ~g.flatten(1).isfinite().all(dim=1) & (scale > 1)                               # (B,)
        if not again.any():
            return g / scale[:, None, None, None], scale, repeats
        scale, repeats = torch.where(again, scale / 2, scale), repeats + again


def adamw(z, g, mean, square, n, config):
    """Take AdamW's n-th step, n = 1, 2, ...: the new z, mean and square, all (B, 4, H, W) [3].

        mean   <- beta1 mean + (1 - beta1) g                    square <- beta2 square + (1 - beta2) g^2
        z      <- (1 - lr decay) z - lr mean / (1 - beta1^n) / (sqrt(square / (1 - beta2^n)) + epsilon)

    To the bit that of torch.optim.AdamW, whose import takes a second and 80 MB.
    """
    mean = mean.lerp(g, 1 - config.beta1)
    square = (config.beta2 * square).addcmul(g, g, value=1 - config.beta2)
    size = square.sqrt() / math.sqrt(1 - config.beta2 ** n) + config.epsilon
    z = z * (1 - config.learning_rate * config.weight_decay)
    z = z.addcdiv(mean, size, value=-config.learning_rate / (1 - config.beta1 ** n))
    return z, mean, square


@dataclass
class Step:
    """One step of the ascent as data; tensors have a row a job and are not written to again."""
    index: int
    before: torch.Tensor            # (B, 4, H, W) the latent that this step started from
    transformed: torch.Tensor       # (B, 4, H, W) after roll, turn and zoom
    noised: torch.Tensor            # (B, 4, H, W) what the UNet saw
    hook: torch.Tensor              # (B, D, h, w) what it made of it
    activation: torch.Tensor        # (B,)
    silent: torch.Tensor            # (B,) bool: the feature was 0 at every position
    penalties: dict                 # name -> (B,) weighted
    gradient: torch.Tensor          # (B, 4, H, W) of the loss
    filtered: torch.Tensor          # (B, 4, H, W) after the spectral filter
    smoothed: torch.Tensor          # (B, 4, H, W) after the blur: what AdamW got
    mean: torch.Tensor              # (B, 4, H, W) AdamW's running mean of the gradient before this step
    square: torch.Tensor            # (B, 4, H, W) and of its square
    after: torch.Tensor             # (B, 4, H, W) the updated latent
    alive: torch.Tensor             # (B,) bool: finite so far; a row that is not stays as it was
    repeats: torch.Tensor           # (B,) how often the gradient was taken again with half the loss scale


def ascend(model, jobs, config, begin):
    """Run the ascent of all jobs, of one kind, side by side, each on its own; yield every step as data, see `Step`.
    `begin`: (a generator for each job, their starting latents (B, 4, H, W)), as visualize.start gives."""
    generators, z = begin
    mean = square = torch.zeros_like(z)                                                         # (B, 4, H, W) AdamW's
    context = model.embed([config.prompt]).expand(len(jobs), -1, -1)                            # (B, 77, Dc)
    t = torch.tensor([job.timestep for job in jobs], device=model.device)                       # (B,)
    alive = torch.ones(len(jobs), dtype=torch.bool, device=model.device)
    scale = first_scale(model, len(jobs))                                                       # (B,) or None

    for index in range(config.num_steps):
        before = z
        z = before.clone().requires_grad_(True)                     # the only leaf: weights are frozen
        drawn = zip(*(draw(g, z.shape[1:], config) for g in generators))
        shift, angle, zoom, eps = (torch.stack(numbers) for numbers in drawn)

        # the feature must survive small moves and fresh noise, so it cannot be a trick of single latent pixels
        transformed = reg.transform(z, shift, angle, zoom)
        noised = model.schedule.add_noise(transformed, eps.to(z), t) if config.noise else transformed
        hook = read_hook(model, noised, t, context)                                             # (B, D, h, w)

        values = readout(model, hook, jobs, config.position)                                    # (B, S or 1)
        a, silent, climb = objective(values, jobs[0].kind, config.silent_gradient)              # (B,) each

        # penalties act on the latent itself, not on its moved copy
        penalties = {"total_variation": config.total_variation_weight * reg.pitch(z) * reg.total_variation(z),
                     "range": config.range_weight * reg.range_penalty(z, config.range_threshold),
                     "moment": config.moment_weight * reg.moment_penalty(z)}
        if config.diverse:                                          # the only term in which rows look at one another
            penalties["likeness"] = config.diverse * reg.likeness(hook.float(), jobs)
        loss = -climb + sum(penalties.values())                                                 # (B,)
        gradient, scale, repeats = gradient_of(loss, z, scale)

        filtered = reg.spectral_filter(gradient) if config.spectral_filter else gradient
        sigma = reg.pitch(z) * reg.smoothing_sigma(index, config.num_steps, config.gradient_smoothing_sigma_start,
                                                   config.gradient_smoothing_sigma_end)
        smoothed = reg.blur(filtered, sigma, config.gradient_smoothing_kernel_size)

        alive = alive & loss.isfinite() & smoothed.flatten(1).isfinite().all(dim=1)
        g = torch.where(alive[:, None, None, None], smoothed, 0)
        moved, *moments = adamw(before, g, mean, square, index + 1, config)
        alive = alive & moved.flatten(1).isfinite().all(dim=1)
        z = torch.where(alive[:, None, None, None], moved, before)
        yield Step(index, before, transformed.detach(), noised.detach(), hook.detach(), a.detach(), silent,
                   {k: v.detach() for k, v in penalties.items()}, gradient, filtered, smoothed, mean, square, z, alive,
                   repeats)
        mean, square = moments
        del hook, values, a, climb, penalties, loss         # their graph: two at once would take twice the memory
