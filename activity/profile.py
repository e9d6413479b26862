"""When and on what a feature fires: from the tables of a capture to profile, peaks and dataset examples.

    profile   at each time step t, the share of images in which the feature is among the 20 with the largest mean activation
    active    the time steps at which the profile, linear between sampling steps, is above 0
    peaks     its local maxima, at least DISTANCE apart, the highest first, PEAKS at most: there the ascent runs, and at t = 0
    examples  the images in which the feature is among the 20 at t, the strongest first

    python -m activity capture --weights weights/toy                make the tables (capture.py)
    python -m activity analyse --feature 12                         profile, peaks, examples: numbers and a picture
    python -m activity sample "A Tree image in Winter style" --steer 12=300

Sources: the method's section 5, from Szokalski & Modrzejewski, arXiv 2605.08218; peaks are those of
scipy.signal.find_peaks(y, height=0, distance=100, plateau_size=1).
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

from schedule import T
from weights.disk import AGAIN, WeightsError
from weights.configs import read_json
from weights.tensors import read_header, read_tensors

DISTANCE, PEAKS = 100, 3    # time steps between peaks; peaks kept
SHARED = 0.8                # of the examples that must have a word in common for it to name the feature (ours)


def fingerprints(model):
    """Those of the files that a capture depends on: of the networks, not of settings and tables."""
    return {name: value for name, value in model.fingerprints.items() if not name.endswith(("featviz.json", "activity.safetensors"))}


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
    """The folder of a finished capture, or None: the user's own in `out` before the one that the model ships with."""
    return next((folder for folder in (Path(out) / model.name / "activity", model.folder / "activity") if fits(model, folder)), None)


def attach(model, folder):
    """The model with the tables of a capture: they are its `activity`, say its `strength`, and are part of its fingerprints."""
    model = copy.copy(model)
    sae, path = model.parts.get("sae"), folder / "activity.safetensors"
    tables = read_tables(path, sae.features if sae else 0, model.unet.width(model.hook_point))
    model.captured, model.activity = folder, tables
    model.strength = lambda kind, target: torch.tensor(strength(tables, kind, target), dtype=torch.float32)
    model.fingerprints = model.fingerprints | {"activity.safetensors": hashlib.sha256(path.read_bytes()).hexdigest()}
    return model


def read_tables(path, features, width):
    """{"timesteps": (N,), "max_feature": (N, F), "max_channel": (N, D)}: the largest mean activation seen at each of N steps.

    From a capture also share_feature and share_channel: the share of images in which it was among the 20 largest.
    """
    header = read_header(path)
    if "timesteps" not in header:
        raise WeightsError(f"{path}: lacks tensor 'timesteps'; {AGAIN}")
    n = sum(header["timesteps"].shape[:1])
    if n == 0:
        raise WeightsError(f"{path}: `timesteps` holds no list of time steps; {AGAIN}")
    expected = {"timesteps": (n,), "max_feature": (n, features), "max_channel": (n, width)}
    if "share_feature" in header:
        expected |= {name.replace("max", "share"): shape for name, shape in expected.items() if name != "timesteps"}
    return read_tensors(path, expected, dtype=torch.float32)


def interpolate(timesteps, values):
    """Values (N,) at descending time steps (N,) -> at t = 0..1000, linear, constant beyond the two ends: (1001,) float64."""
    return np.interp(np.arange(T + 1), np.asarray(timesteps, np.float64)[::-1], np.asarray(values, np.float64)[::-1])


def column(tables, name, target):
    return interpolate(tables["timesteps"].cpu(), tables[name][:, target].cpu())


def profile(tables, kind, target):
    """Share of images in which it is among the TOP, at t = 0..1000: (1001,).

    For one that never is (or where no shares were measured) its largest mean activation stands in, negative ones as 0 (ours).
    """
    shares = column(tables, f"share_{kind}", target) if f"share_{kind}" in tables else np.zeros(T + 1)
    return shares if shares.any() else column(tables, f"max_{kind}", target).clip(min=0)


def strength(tables, kind, target):
    """Largest mean activation at t = 0..1000, 0 where it is not active: (1001,)."""
    return column(tables, f"max_{kind}", target) * (profile(tables, kind, target) > 0)


def find_peaks(y, distance=DISTANCE):
    """Local maxima of y (n,), a plateau once at its middle (rounded down), `distance` apart, ascending: positions.

    A maximum is higher than what comes before and after it, so neither end of y is one. The highest are kept first, and rule out
    all that are nearer than `distance`. Between equals numpy's argsort decides, as it does in scipy.
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


def peaks(y):
    """The PEAKS highest of a profile's peaks, ascending. One that only falls or rises to an end has none; its maximum stands in (ours)."""
    found = find_peaks(y)
    if len(found) == 0 and y.any():
        found = np.array([min(int(y.argmax()), T - 1)])
    highest = found[np.argsort(-y[found], kind="stable")[:PEAKS]]
    return sorted(int(t) for t in highest)


def timesteps(tables, kind, target):
    """Where the ascent runs: t = 0 and the peaks."""
    return sorted({0, *peaks(profile(tables, kind, target))})


def examples(folder, kind, target, t):
    """Dataset examples at the sampling step nearest to t: [(image number, activation)], the strongest first, EXAMPLES at most."""
    row = np.abs(np.subtract(read_json(folder / "capture.json")["recipe"]["timesteps"], t)).argmin()
    path = folder / "examples.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            image, activation = (file.get_slice(f"{name}_{kind}")[int(row), target].tolist() for name in ("image", "activation"))
    except (OSError, SafetensorError) as e:
        raise WeightsError(f"{path}: cannot be used ({e}); copy it again, or make the capture again") from e
    return [(i, a) for i, a in zip(image, activation) if i >= 0]


def shared_words(prompts, everything):
    """The concept in words: those that SHARED of the examples' prompts hold, and less than half of all prompts; may be none (ours)."""
    words = lambda prompt: dict.fromkeys(re.findall(r"[^\W\d_]+", prompt))
    held, common = (Counter(w for prompt in group for w in words(prompt)) for group in (prompts, everything))
    return [w for w, n in held.items() if n >= SHARED * len(prompts) and common[w] < 0.5 * len(everything)]


def image_path(folder, number):
    return Path(folder) / "images" / f"{number:05d}.jpg"


def analysis(model, kind, target, also=()):
    """What the model's capture knows of a feature, as JSON values: curves at t = 0..1000, peaks, dataset examples at each peak and at
    the time steps in `also`."""
    folder, made = model.captured, read_json(model.captured / "capture.json")
    curve, prompts = profile(model.activity, kind, target), made["recipe"]["settings"]["prompts"]
    share, times = column(model.activity, f"share_{kind}", target), peaks(curve)
    found = {t: [{"image": i, "activation": a, "prompt": prompts[i % len(prompts)], "file": str(image_path(folder, i))}
                 for i, a in examples(folder, kind, target, t)] for t in sorted({*times, *also})}
    strongest = found[max(times, key=lambda t: curve[t])] if times else []
    concept = shared_words([e["prompt"] for e in strongest], prompts) if strongest else []
    return {kind: target, "weights": model.name, "images": made["images"], "ever_among_the_top": bool(share.any()), "concept": concept,
            "active": int((curve > 0).sum()), "peaks": times, "examples": found, "profile": [round(v, 6) for v in curve.tolist()],
            "largest": [round(v, 6) for v in column(model.activity, f"max_{kind}", target).tolist()]}

