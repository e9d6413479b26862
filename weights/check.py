"""Check whether UNet and SAE belong together, and measure what a run costs.

Of activations as in its training, an SAE leaves little variance unexplained, with about k features active at a
position. Of another model's, at another hook point, or of the output instead of the update, both are far off. Two fixed
prompts are sampled from noise of fixed seeds, in a few steps down to three of the SAE's time steps.
"""
import math
import sys
import time
from dataclasses import dataclass, replace

import torch

from ascent import ascend
from finish import redraw
from sae import fvu
from unet import updates
from visualize import course_lengths, start

try:
    import resource                             # not on Windows
except ImportError:
    resource = None

PROMPTS = ["A Cat image in Sketch style", "A Flower image in Cartoon style"]            # as SAeUron trains
STEPS = (981, 501, 21)                          # where an SAE for all time steps is looked at
FVU_FITS, FVU_WRONG = 0.5, 0.8                  # fits below the one, does not from the other on; the mean alone has 1
ACTIVE_WRONG = 0.25                             # share of k; fewer active features at a position do not describe it


@dataclass
class Row:
    """Hold how well the SAE describes the activations at one time step."""
    t: int
    unexplained: float                          # fraction of variance
    active: float                               # features at a position
    mean: float = math.nan                      # |mean of h|, beside |b_dec|
    other: float = math.nan                     # `unexplained` of the other reading, output or update, if there is one


def describe(sae, h):
    """Return (fraction of variance unexplained, features active at a position) of h (n, D)."""
    acts = sae.encode(h)                                                                        # (n, F)
    return fvu(sae.preprocess(h), sae.decode(acts)).item(), (acts != 0).sum().item() / len(h)


@torch.no_grad()
def measure(model):
    """Look at the first, middle and last time step that the SAE was trained on; return [Row]."""
    noises = [torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    path = model.folder / model.settings.get("capture", {}).get("prompts", "")      # prompts that suit the weights
    prompts = path.read_text(encoding="utf-8").splitlines() if path.is_file() else PROMPTS
    x, context, rows, seen = torch.stack(noises).to(model.device), model.embed((prompts * 2)[:2]), [], {}
    trained = sorted(model.sae.timesteps or STEPS, reverse=True)
    looked = {trained[0], trained[len(trained) // 2], trained[-1]}
    way = sorted(looked.union(t for t in STEPS if t > min(looked)), reverse=True)
    hook = model.unet.get_submodule(model.hook_point)
    with hook.register_forward_hook(lambda _, inputs, output: seen.update(before=inputs[0], h=output)):
        for t, t_next in zip(way, [*way[1:], None]):
            until = model.hook_point if t_next is None else None
            noise = model.unet(x.to(model.dtype), torch.full((len(x),), t, device=x.device), context, until)
            if t in looked:
                h = seen["h"].float()                                                           # (B, D, h, w)
                readings = torch.stack([h, h - seen["before"].float()] if updates(model.hook_point) else [h])
                readings = readings.flatten(3).transpose(2, 3).flatten(1, 2)                    # (1 or 2, B * S, D)
                readings = readings.flip(0) if model.sae.reads == "update" else readings
                found = [describe(model.sae, h) for h in readings]
                rows.append(Row(t, *found[0], readings[0].mean(dim=0).norm().item(), found[-1][0]))
            if t_next is not None:
                x = model.schedule.step(x, noise.float(), t, t_next)
    return rows


def fit(model):
    """Measure a model once, and return the row with the middle `unexplained`."""
    if model.fit is None:
        model.require("sae")
        model.fit = measure(model)
        if not all(math.isfinite(row.unexplained) for row in model.fit):
            model.check_numbers()               # names the file and the tensor, if NaN comes from one
    return sorted(model.fit, key=lambda row: row.unexplained)[len(model.fit) // 2]


def verdict(sae, row):
    """Return "" when UNet and SAE fit, else one sentence for the user. k 0: the SAE names none."""
    few = row.active < ACTIVE_WRONG * sae.k
    if row.unexplained < FVU_FITS and not few:
        return ""
    advice = "give the UNet that it was trained on"
    if row.other < FVU_WRONG and row.other < 0.7 * row.unexplained and row.unexplained >= FVU_FITS:
        right = "output" if sae.reads == "update" else "update"
        advice = f"reads the {right}? That leaves {row.other:.2f}; python weights/convert.py IN OUT --reads {right}"
    sure = few or not row.unexplained < FVU_WRONG                                     # NaN is sure, too
    return (f"UNet and SAE {'do not' if sure else 'may not'} belong together: the SAE leaves {row.unexplained:.2f} of "
            f"the activations' variance unexplained (below {FVU_FITS} where they do), with {row.active:.1f} features "
            f"active at a position{f' (k is {sae.k})' * bool(sae.k)}; {advice}")


def check_fit(model):
    """Return the line of --check about UNet and SAE."""
    said = verdict(model.sae, fit(model)) or "they belong together"
    rows = ", ".join(f"t {row.t}: {row.unexplained:.3f} of the variance unexplained, {row.active:.1f} active, "
                     f"|mean of h| {row.mean:.1f}" for row in model.fit)
    return f"fit of UNet and SAE: {rows}; |b_dec| {model.sae.b_dec.norm():.1f}, k {model.sae.k}: {said}"


def estimate(model, jobs, configs, size):
    """Return what --check prints: what a run takes, by one step of each phase, and whether UNet and SAE fit."""
    model.check_numbers()
    batch, noise, took = (jobs * size)[:size], replace(configs[0], prior="noise"), {}
    for _ in range(2):                          # the first one pays for allocation
        began = time.perf_counter()
        step = next(ascend(model, batch, noise, start(model, batch, noise)))
        took["ascent"] = step.after.isfinite().all().item() * (time.perf_counter() - began)     # waits for a card
        began = time.perf_counter()
        step = next(redraw(model, batch, step.noised, [1], configs[0]))
        took["finish"] = took["sampling"] = step.after.isfinite().all().item() * (time.perf_counter() - began)
    seconds = sum(took[phase] * n for one in configs for phase, n in course_lengths(one).items())
    text = (f"{len(jobs) * len(configs)} results at {model.hook_point} of {model.folder} on {model.device} in "
            f"{model.dtype}, {size} at a time: about {seconds * -(-len(jobs) // size):.0f} s, "
            f"{peak_memory(model.device) / 2**30:.1f} GiB; {len(model.fingerprints)} files are sound")
    return f"{text}\n{check_fit(model)}" if jobs[0].kind == "feature" else text


def peak_memory(device):
    """Return the bytes that the card, or the process, held at most; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024              # the same field counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit if resource else 0
