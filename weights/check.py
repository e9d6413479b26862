"""Check whether UNet and SAE belong together, from activations of two fixed prompts.

An SAE describes the activations that it was trained on. On those of its UNet it leaves little variance unexplained,
with about k features active at a position; on another model's, at another hook point, or on the output where it was
trained on the update, both are far off. It is looked at where it was trained: at three of its time steps. The inputs
are noise of fixed seeds, and what a sampler of a few steps makes of it on the way down to them.
"""
import math
from dataclasses import dataclass

import torch

from sae import fvu
from unet import updates

PROMPTS = ("A Cat image in Sketch style", "A Flower image in Cartoon style")            # as SAeUron trains
STEPS = (981, 501, 21)                          # where an SAE for all time steps is looked at
BLOCK = 256                                     # positions encoded at a time
FVU_FITS, FVU_WRONG = 0.5, 0.8                  # fits below the one, does not from the other on; the mean alone has 1
ACTIVE_WRONG = 0.25                             # share of k; fewer active features at a position do not describe it


@dataclass
class Row:
    """What the SAE makes of the activations at one time step."""
    t: int
    unexplained: float                          # fraction of variance
    active: float                               # features at a position
    mean: float                                 # |mean of h|, beside |b_dec|
    other: float                                # `unexplained` of the other reading, output or update


def chosen(timesteps):
    """The time steps that are looked at: first, middle and last of those that the SAE was trained on."""
    own = sorted(timesteps or STEPS, reverse=True)
    return [own[i] for i in sorted({0, len(own) // 2, len(own) - 1})]


def describe(sae, h):
    """(fraction of variance unexplained, features active at a position) of h (n, D)."""
    h_hat, active = [], 0
    for positions in h.split(BLOCK):                                                            # (n, F) at a time
        acts = sae.encode(positions)
        h_hat.append(sae.decode(acts))
        active += (acts != 0).sum().item()
    return fvu(sae.preprocess(h), torch.cat(h_hat)).item(), active / len(h)


def prompts_of(model):
    """List two prompts: the first of those that the weights bring for a capture, else SAeUron's."""
    path = model.folder / str(model.settings.get("capture", {}).get("prompts", ""))
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return (lines if len(lines) > 1 else list(PROMPTS))[:2]


@torch.no_grad()
def measure(model):
    """Look at every chosen time step on the way down: [Row]."""
    flat = lambda h: h.float().flatten(2).transpose(1, 2).flatten(0, 1)                         # to (B * S, D)
    noises = [torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    x, context = torch.stack(noises).to(model.device), model.embed(prompts_of(model))           # (B, 4, H, W)
    looked, rows = chosen(model.sae.timesteps), []
    way = sorted({*looked, *(t for t in STEPS if t > min(looked))}, reverse=True)
    for t, t_next in zip(way, [*way[1:], None]):
        passes = model.unet.run(x.to(model.dtype), torch.full((len(x),), t, device=model.device), context)
        before, (name, h) = None, next(passes)
        while name != "conv_out":
            if name == model.hook_point and t in looked:
                readings = [h, h.float() - before.float()] if updates(name) else [h]
                own, *other = map(flat, reversed(readings) if model.sae.reads == "update" else readings)
                rows.append(Row(t, *describe(model.sae, own), own.mean(dim=0).norm().item(),
                                describe(model.sae, other[0])[0] if other else math.nan))
                if t_next is None:
                    return rows
            before, (name, h) = h, passes.send(h)
        x = model.schedule.step(x, h.float(), t, t_next)


def fit(model):
    """Return (fraction of variance unexplained, features active at a position, hint or ""), computed once for a model.

    Of the time steps that are looked at, the middle value counts.
    """
    if model.fit is None:
        model.require("sae")
        rows = measure(model)
        if not all(math.isfinite(row.unexplained) for row in rows):
            model.check_numbers()               # names the file and the tensor, if NaN comes from one
        row = sorted(rows, key=lambda row: row.unexplained)[len(rows) // 2]
        model.fit_rows, model.fit = rows, (row.unexplained, row.active, hint(model.sae.reads, row))
    return model.fit


def hint(reads, row):
    """Ask whether the SAE was trained on the other reading, where that fits clearly better."""
    if row.other < FVU_WRONG and row.other < 0.7 * row.unexplained and row.unexplained >= FVU_FITS:
        right = "output" if reads == "update" else "update"
        return f"reads the {right}? That leaves {row.other:.2f}; python weights/convert.py ... --reads {right} says so"
    return ""


def verdict(k, unexplained, active, hint=""):
    """Say what the numbers mean: "" when UNet and SAE fit, else one sentence for the user. k 0: the SAE names none."""
    if unexplained < FVU_FITS and active >= ACTIVE_WRONG * k:
        return ""
    sure = not unexplained < FVU_WRONG or active < ACTIVE_WRONG * k                   # NaN is sure, too
    return (f"UNet and SAE {'do not' if sure else 'may not'} belong together: the SAE leaves {unexplained:.2f} of the "
            f"activations' variance unexplained (below {FVU_FITS} where they do), with {active:.1f} features active at "
            f"a position{f' (k is {k})' * bool(k)}; {hint or 'give the UNet that it was trained on'}")


def check_fit(model):
    """Write the line of --check about UNet and SAE."""
    said = verdict(model.sae.k, *fit(model)) or "they belong together"
    rows = ", ".join(f"t {row.t}: {row.unexplained:.3f} of the variance unexplained, {row.active:.1f} active, "
                     f"|mean of h| {row.mean:.1f}" for row in model.fit_rows)
    return f"fit of UNet and SAE: {rows}; |b_dec| {model.sae.b_dec.norm():.1f}, k {model.sae.k}: {said}"
