"""When and on what a feature fires: from the tables of a capture to profile, peaks and dataset examples.

    profile   at each time step t, the share of images in which the feature is among the 20 with the largest mean activation
    active    the time steps at which the profile, linear between sampling steps, is above 0
    peaks     its local maxima, at least DISTANCE apart, the highest first, PEAKS at most: there the ascent runs, and at t = 0
    examples  the images in which the feature is among the 20 at t, the strongest first

    python activity.py capture --weights weights/toy                make the tables (capture.py)
    python activity.py analyse --feature 12                         profile, peaks, examples: numbers and a picture
    python activity.py sample "A Tree image in Winter style" --steer 12=300

Sources: the method's section 5, from Szokalski & Modrzejewski, arXiv 2605.08218; peaks are those of
scipy.signal.find_peaks(y, height=0, distance=100, plateau_size=1).
Axes: N sampling steps in descending order of t, F features, D channels; curves are (1001,), at t = 0..1000.
"""
import copy
import hashlib
import sys
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from checkpoint import WeightsError, read_activity, read_json
from schedule import T

DISTANCE, PEAKS = 100, 3    # time steps between peaks; peaks kept
TABLES = "sae/*/activity.safetensors"                           # the part of a Model that holds the tables


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
    """The model with the tables of a capture: they are its `activity`, and part of its fingerprints."""
    model = copy.copy(model)
    sae, path = model.parts.get("sae"), folder / "activity.safetensors"
    sizes = {"num_latents": sae.features if sae else 0, "d_in": model.unet.width(model.hook_point)}
    model.parts = model.parts | {TABLES: read_activity(path, sizes, "cpu")}
    model.fingerprints = model.fingerprints | {"activity.safetensors": hashlib.sha256(path.read_bytes()).hexdigest()}
    return model


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


if __name__ == "__main__":
    import activity_cli
    sys.exit(activity_cli.main())
