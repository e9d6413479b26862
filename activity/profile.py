"""When and on what a feature fires: from the tables of a capture to profile, peaks and dataset examples.

Source: Szokalski & Modrzejewski, arXiv 2605.08218, section 5. Profile and peaks equal to the bit what its code runs:

    y = scipy.interpolate.interp1d(t, share, bounds_error=False, fill_value=0)(0..1000)
    scipy.signal.find_peaks(y, height=0, distance=100, plateau_size=1), of these the three highest

Axes: N sampling steps in descending order of t, F features, D channels; curves are (1001,), at t = 0..1000.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from command.progress import warn
from config import HOOK_POINT, T
from results import sha256
from weights.load import open_tensors, read_json

DISTANCE, PEAKS = 100, 3                        # time steps between peaks; peaks kept


def find_peaks(y):
    """Find the PEAKS highest local maxima of y (n,) >= 0, at least DISTANCE apart: a list of positions, ascending. A
    plateau counts once, at its middle, rounded down. Between equals numpy's argsort decides, as in scipy."""
    rise = np.flatnonzero(np.diff(y) != 0)                      # y[i] differs from y[i + 1]
    left, right = rise[:-1] + 1, rise[1:]                       # runs of equal values with a neighbour on both sides
    top = (y[left] > y[left - 1]) & (y[right] > y[right + 1])
    at, kept = (left[top] + right[top]) // 2, []
    for i in at[np.argsort(y[at])[::-1]].tolist():
        if all(abs(i - other) >= DISTANCE for other in kept):
            kept.append(i)
    return sorted(sorted(kept, key=lambda i: (-y[i], i))[:PEAKS])


@dataclass(frozen=True)
class Capture:
    """The tables of a finished capture. `kind` is "feature" or "channel", n the number of one."""
    folder: Path
    tables: dict                # timesteps (N,), max_, share_ (N, F or D), ...: float32 on the CPU (capture.py)
    record: dict                # capture.json
    sha256: str                 # of activity.safetensors

    images = property(lambda self: self.record["images"])
    top = property(lambda self: self.record["recipe"]["settings"]["top"])
    prompts = property(lambda self: self.record["recipe"]["settings"]["prompts"])

    def live(self, kind="feature"):
        """List all whose mean activation is above 0 in some image at some time step."""
        return (self.tables[f"max_{kind}"] > 0).any(dim=0).nonzero().flatten().tolist()

    def profile(self, kind, n):
        """Compute the share of images in which it is among the `top`: (1001,), 0 outside the sampled range. Neighbours
        are subtracted in float32, as shares are kept: other rounding would move the middle of plateaus."""
        x, t = self.tables["timesteps"].double().numpy()[::-1], np.arange(T + 1.0)              # (N,), (1001,)
        y = self.tables[f"share_{kind}"][:, n].numpy()[::-1]                                    # (N,) float32
        hi = np.searchsorted(x, t).clip(min(1, len(x) - 1), len(x) - 1)
        lo = np.maximum(hi - 1, 0)
        slope = (y[hi] - y[lo]) / np.maximum(x[hi] - x[lo], 1)
        return np.where((x[0] <= t) & (t <= x[-1]), slope * (t - x[lo]) + y[lo], 0)

    def strength(self, kind, n, when="active"):
        """Compute the largest mean activation in any image: (1001,), float32; for "active" 0 where the profile is 0."""
        x, y = self.tables["timesteps"].flip(0), self.tables[f"max_{kind}"][:, n].flip(0)
        s = np.interp(np.arange(T + 1), x, y.clamp(min=0), left=0, right=0)
        return torch.tensor(s if when == "all" else s * (self.profile(kind, n) > 0), dtype=torch.float32)

    def largest(self, kind, n):
        """Compute it under the empty prompt: (1001,), outside the range its end values; None without guidance."""
        x, table = self.tables["timesteps"].flip(0), self.tables.get(f"max_null_{kind}")
        return None if table is None else np.interp(np.arange(T + 1), x, table[:, n].flip(0))

    def peaks(self, kind, n):
        return find_peaks(self.profile(kind, n))

    def highest_peak(self, kind, n):
        """Return the time step of the highest peak, None without one."""
        profile = self.profile(kind, n)
        return max(find_peaks(profile), key=lambda t: profile[t], default=None)

    def timesteps(self, kind, n, when="auto"):
        """List 0 and the peaks, or for "active" 0 and all active sampling steps; the original has every active t."""
        active = self.tables["timesteps"][self.tables[f"share_{kind}"][:, n] > 0].int().tolist()
        return sorted({0, *(active if when == "active" else self.peaks(kind, n))})

    def stored_examples(self, kind, t, *n):
        """Read [image numbers, activations] of all, (width, EXAMPLES) each, or of n, at the sampling step nearest to t;
        number -1: no image."""
        row = int((self.tables["timesteps"] - t).abs().argmin())
        with open_tensors(self.folder / "examples.safetensors") as file:
            return [file.get_slice(f"{name}_{kind}")[row, *n] for name in ("image", "activation")]

    def examples(self, kind, n, t):
        """List the dataset examples at the sampling step nearest to t: [(image, activation)], the strongest first."""
        image, activation = self.stored_examples(kind, t, n)
        return [(i, a) for i, a in zip(image.tolist(), activation.tolist()) if i >= 0]

    def prompt(self, image):
        return self.prompts[image % len(self.prompts)]


def folder_name(hook_point, name="activity"):
    return name if hook_point == HOOK_POINT else f"{name}_{hook_point}"


def image_path(folder, number):
    return Path(folder) / "images" / f"{number:05d}.jpg"


def fingerprints(model):
    """Return {name: SHA-256} of the files that a capture depends on: all but the settings."""
    return {name: value for name, value in model.fingerprints.items() if name != "featviz.json"}


def find_capture(model, out, name="activity"):
    """Read the capture of these weights, the one in `out` before the one beside them; None where there is neither."""
    for home in (Path(out) / model.name, model.folder):
        folder = home / folder_name(model.hook_point, name)
        if (folder / "capture.json").exists():
            made = read_json(folder / "capture.json").get("recipe", {})
            if (made.get("fingerprints"), made.get("hook_point")) == (fingerprints(model), model.hook_point):
                return read_capture(folder)
            warn(f"{folder}: is left out, it was captured with other weights")


def read_capture(folder):
    """Read a finished capture; WeightsError where its tables are damaged."""
    path = folder / "activity.safetensors"
    with open_tensors(path) as file:
        tables = {name: file.get_tensor(name).float() for name in file.keys()}
    return Capture(folder, tables, read_json(folder / "capture.json"), sha256(path.read_bytes()))
