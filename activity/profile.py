"""When and on what a feature fires: from the tables of a capture to profile, peaks and dataset examples.

    profile   at each time step t, the share of images in which the feature is among the TOP by its mean activation
    active    the time steps at which the profile, linear between sampling steps and 0 outside them, is above 0
    peaks     its local maxima, at least DISTANCE apart, the highest first, PEAKS at most: there the ascent runs
    largest   the largest mean activation in any image at t, by which a result is judged (ascent.py)
    strength  the same where it is active, by which a steered prior is pushed (steering.py)
    examples  the images in which the feature is among the TOP at t, the strongest first

    python -m activity capture --weights weights/toy                make the tables (capture.py)
    python -m activity analyse --feature 12                         profile, peaks, examples: numbers and a picture
    python -m activity sample "A Tree image in Winter style" --steer 12=300

Sources: the method's section 5, from Szokalski & Modrzejewski, arXiv 2605.08218, and its implementation, which goes

    y = scipy.interpolate.interp1d(t, share, bounds_error=False, fill_value=0)(0..1000)
    scipy.signal.find_peaks(y, height=0, distance=100, plateau_size=1), of these the three highest

This file computes the same, to the bit. A feature that is never among the TOP has a profile of 0, no active step and no
peak.

Axes: N sampling steps in descending order of t, F features, D channels; curves are (1001,), at t = 0..1000.
"""
import copy
import hashlib
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from config import DISTANCE, HOOK_POINT, PEAKS, TOP
from schedule import T
from weights.disk import AGAIN, WeightsError
from weights.configs import read_json
from weights.tensors import read_header, read_tensors

SHARED = 0.8                # of the examples that must have a word in common for it to name the feature (ours)


def at(model, hook_point):
    """The model, before a capture is attached, looked at through this hook point. Away from its SAE it has raw channels
    alone."""
    name = model.unet.hook_name(hook_point)
    if name == model.hook_point:
        return model
    model = copy.copy(model)
    model.hook_point, model.parts = name, {part: net for part, net in model.parts.items() if part != "sae"}
    return model


def home(hook_point, name="activity"):
    """The folder of a capture at this hook point, inside that of the weights or of their results."""
    return name if hook_point == HOOK_POINT else f"{name}_{hook_point}"


def fingerprints(model):
    """Those of the files that a capture depends on: of networks and SAE, not of settings and tables."""
    unused = ("featviz.json", "activity.safetensors")
    return {name: value for name, value in model.fingerprints.items()
            if not name.endswith(unused) and ("sae" in model.parts or not name.startswith("sae/"))}


def fits(model, folder):
    """Whether a finished capture of these very weights lies in the folder; one of other weights is named on stderr."""
    if not (folder / "capture.json").exists():
        return False
    made = read_json(folder / "capture.json").get("recipe", {})
    same = (made.get("fingerprints"), made.get("hook_point")) == (fingerprints(model), model.hook_point)
    if not same:
        print(f"{folder}: is left out, it was captured with other weights", file=sys.stderr)
    return same


def find(model, out):
    """The folder of a finished capture at the model's hook point, or None: the user's own in `out` before the one that
    it ships with."""
    name = home(model.hook_point)
    return next((home for home in (Path(out) / model.name / name, model.folder / name) if fits(model, home)), None)


def attach(model, folder):
    """The model with the tables of a capture: its `captured`, `activity`, `strength` and `largest`; their hash joins
    its fingerprints."""
    model = copy.copy(model)
    sae, path = model.parts.get("sae"), folder / "activity.safetensors"
    tables = read_tables(path, sae.features if sae else 0, model.unet.width(model.hook_point))
    model.captured, model.activity = folder, tables
    model.strength = lambda *which: torch.tensor(strength(tables, *which), dtype=torch.float32)
    model.largest = lambda kind, target, t: float(largest(tables, kind, target)[t])
    model.fingerprints = model.fingerprints | {"activity.safetensors": hashlib.sha256(path.read_bytes()).hexdigest()}
    return model


def read_tables(path, features, width):
    """{"timesteps": (N,), "max_feature", "share_feature": (N, F), "max_channel", "share_channel": (N, D)} of a capture,
    float32."""
    header = read_header(path)
    n = sum(header["timesteps"].shape[:1]) if "timesteps" in header else 0
    if n == 0:
        raise WeightsError(f"{path}: lacks a tensor 'timesteps' with a list of time steps; {AGAIN}")
    shapes = {f"{name}_{kind}": (n, wide) for kind, wide in (("feature", features), ("channel", width))
              for name in ("max", "share")}
    return read_tensors(path, {"timesteps": (n,)} | shapes, dtype=torch.float32)


def interpolate(timesteps, values):
    """Values (N,) at descending time steps (N,) -> at t = 0..1000, linear between them, 0 before and after: (1001,)
    float64.

    The differences of neighbours are taken in float32, in which shares are kept, all else in float64: scipy's rounding.
    By another one a plateau would end, and have its middle, elsewhere.
    """
    x, y, t = np.asarray(timesteps, np.float64)[::-1], np.asarray(values, np.float32)[::-1], np.arange(T + 1.0)
    hi = np.searchsorted(x, t).clip(min(1, len(x) - 1), len(x) - 1)
    lo = np.maximum(hi - 1, 0)
    slope = (y[hi] - y[lo]) / np.maximum(x[hi] - x[lo], 1)
    return np.where((x[0] <= t) & (t <= x[-1]), slope * (t - x[lo]) + y[lo], 0)


def profile(tables, kind, target):
    """Share of images in which it is among the `top` of the capture, at t = 0..1000: (1001,)."""
    return interpolate(tables["timesteps"].cpu(), tables[f"share_{kind}"][:, target].cpu())


def largest(tables, kind, target):
    """Its largest mean activation in any image at t = 0..1000: (1001,).

    Outside the sampled range the end values, so that a result at t = 0 has a measure.
    """
    x, y = tables["timesteps"].cpu().flip(0), tables[f"max_{kind}"][:, target].cpu().flip(0)
    return np.interp(np.arange(T + 1), x, y)


def strength(tables, kind, target, when="active"):
    """How strongly a prior is steered at t = 0..1000, in units of activation: (1001,).

        active     its largest mean activation at t where it is active, else 0
        all        its largest mean activation at t, at every t of the sampled range
        constant   the largest of `active` at every t (ours)

    A negative largest mean, which raw channels may have, counts as 0.
    """
    x, y = tables["timesteps"].cpu().flip(0), tables[f"max_{kind}"][:, target].cpu().flip(0).clamp(min=0)
    s = np.interp(np.arange(T + 1), x, y, left=0, right=0)
    if when != "all":
        s = s * (profile(tables, kind, target) > 0)
    return np.full_like(s, s.max()) if when == "constant" else s


def find_peaks(y, distance=DISTANCE):
    """Local maxima of y (n,), a plateau once at its middle (rounded down), `distance` apart, ascending: positions.

    A maximum is higher than what comes before and after it, so neither end of y is one. The highest are kept first, and
    rule out all that are nearer than `distance`. Between equals numpy's argsort decides, as it does in scipy.
    """
    rise = np.flatnonzero(np.diff(y) != 0)                      # y[i] differs from y[i + 1]
    left, right = rise[:-1] + 1, rise[1:]                       # runs of equal values with a neighbour on both sides
    top = (y[left] > y[left - 1]) & (y[right] > y[right + 1]) & (y[left] >= 0)
    at = (left[top] + right[top]) // 2
    keep = np.ones(len(at), dtype=bool)
    for i in np.argsort(y[at])[::-1]:
        if keep[i]:
            keep &= (np.abs(at - at[i]) >= distance) | (at == at[i])
    return at[keep]


def peaks(y, distance=DISTANCE, most=PEAKS):
    """The `most` highest of a profile's peaks, ascending; of equals the earlier ones."""
    found = find_peaks(y, distance)
    highest = found[np.argsort(-y[found], kind="stable")[:most]]
    return sorted(int(t) for t in highest)


def by_height(y, found):
    """Peaks of a profile, the highest first; of equals the earlier ones."""
    return sorted(found, key=lambda t: -y[t])


def highest_peak(tables, kind, target):
    """The time step at which it is most often among the most active; None without a peak."""
    curve = profile(tables, kind, target)
    return next(iter(by_height(curve, peaks(curve))), None)


def timesteps(tables, kind, target, when="auto"):
    """Where the ascent runs: t = 0 and the peaks, or with `when` "active" t = 0 and every sampling step at which it is
    active.

    (The original, at all active steps, also takes every t between them.)
    """
    if when == "active":
        return sorted({0, *(int(t) for t in tables["timesteps"][tables[f"share_{kind}"][:, target] > 0])})
    return sorted({0, *peaks(profile(tables, kind, target))})


def examples(folder, kind, target, t):
    """Dataset examples at the sampling step nearest to t: [(image number, activation)], the strongest first, EXAMPLES
    at most."""
    image, activation = stored_examples(folder, kind, row_at(folder, t), target)
    return [(i, a) for i, a in zip(image.tolist(), activation.tolist()) if i >= 0]


def own_examples(folder, kind, target, times):
    """(t, examples) at the first of these time steps at which it has two or more; (None, []) where at none."""
    return next(((t, found) for t in times if len(found := examples(folder, kind, target, t)) > 1), (None, []))


def row_at(folder, t):
    """Of a capture's sampling steps the one nearest to t."""
    return int(np.abs(np.subtract(read_json(folder / "capture.json")["recipe"]["timesteps"], t)).argmin())


def stored_examples(folder, kind, *where):
    """[image numbers, activations] of a capture, (N, F, EXAMPLES) each, or the part of them that is asked for; number
    -1: no image."""
    path = folder / "examples.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            return [file.get_slice(f"{name}_{kind}")[where or slice(None)] for name in ("image", "activation")]
    except (OSError, SafetensorError) as e:
        raise WeightsError(f"{path}: cannot be used ({e}); copy it again, or make the capture again") from e


def shared_words(prompts, everything):
    """The concept in words: those that SHARED of the examples' prompts hold, and less than half of all prompts; may be
    none (ours)."""
    words = lambda prompt: dict.fromkeys(re.findall(r"[^\W\d_]+", prompt))
    held, common = (Counter(w for prompt in group for w in words(prompt)) for group in (prompts, everything))
    return [w for w, n in held.items() if n >= SHARED * len(prompts) and common[w] < 0.5 * len(everything)]


def image_path(folder, number):
    return Path(folder) / "images" / f"{number:05d}.jpg"


def analysis(model, kind, target, also=(), distance=DISTANCE, most=PEAKS):
    """What the model's capture knows of a feature, as JSON values: curves at t = 0..1000, peaks, dataset examples at
    each peak and at the time steps in `also`."""
    folder, made, tables = model.captured, read_json(model.captured / "capture.json"), model.activity
    settings, curve = made["recipe"]["settings"], profile(tables, kind, target)
    prompts, times = settings["prompts"], peaks(curve, distance, most)
    found = {t: [{"image": i, "activation": a, "prompt": prompts[i % len(prompts)], "file": str(image_path(folder, i))}
                 for i, a in examples(folder, kind, target, t)] for t in sorted({*times, *also})}
    strongest = found[max(times, key=lambda t: curve[t])] if times else []
    concept = shared_words([e["prompt"] for e in strongest], prompts) if strongest else []
    return {kind: target, "weights": model.name, "images": made["images"], "concept": concept,
            "top": settings.get("top", TOP), "halves": settings.get("halves", "conditional"),
            "distance": distance, "most_peaks": most, "ever_among_the_top": bool(curve.any()),
            "active": int((curve > 0).sum()), "peaks": times, "examples": found,
            "profile": [round(v, 6) for v in curve.tolist()],
            "largest": [round(v, 6) for v in largest(tables, kind, target).tolist()]}
