"""When and on what a feature fires: from the tables of a capture to profile, peaks and dataset examples.

    profile   at each time step t, the share of images in which the feature is among the `top` by its mean activation
    active    the time steps at which the profile, linear between sampling steps and 0 outside them, is above 0
    peaks     its local maxima, at least DISTANCE apart, the highest first, PEAKS at most: there the ascent runs
    strength  its largest mean activation in any image where it is active, by which a prior is steered (steering.py)
    largest   the same in the half that saw the empty prompt, with which the ascent's activation is compared
    examples  the images in which the feature is among the `top` at t, the strongest first

Sources: the method's section 5, from Szokalski & Modrzejewski, arXiv 2605.08218, and its implementation, which runs

    y = scipy.interpolate.interp1d(t, share, bounds_error=False, fill_value=0)(0..1000)
    scipy.signal.find_peaks(y, height=0, distance=100, plateau_size=1), of these the three highest

This file computes the same, to the bit. A feature that is never among the `top` has a profile of 0, no active step and
no peak.

Axes: N sampling steps in descending order of t, F features, D channels; curves are (1001,), at t = 0..1000.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from command.progress import warn
from config import HOOK_POINT
from results import sha256
from schedule import T
from weights.load import WeightsError, read_json

TOP = 20                                        # a feature counts as active in an image when it is among so many
DISTANCE, PEAKS = 100, 3                        # time steps between peaks; peaks kept


def interpolate(timesteps, values):
    """Interpolate values (N,) at descending time steps (N,) to t = 0..1000: linear between them, 0 outside; float64.

    The differences of neighbours are taken in float32, in which shares are kept, all else in float64: scipy's rounding.
    Other rounding would move the edges, and so the middle, of plateaus.
    """
    x, y, t = np.asarray(timesteps, np.float64)[::-1], np.asarray(values, np.float32)[::-1], np.arange(T + 1.0)
    hi = np.searchsorted(x, t).clip(min(1, len(x) - 1), len(x) - 1)
    lo = np.maximum(hi - 1, 0)
    slope = (y[hi] - y[lo]) / np.maximum(x[hi] - x[lo], 1)
    return np.where((x[0] <= t) & (t <= x[-1]), slope * (t - x[lo]) + y[lo], 0)


def find_peaks(y, distance=DISTANCE):
    """Find the local maxima of y (n,), a plateau once at its middle (rounded down), `distance` apart: positions,
    ascending.

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


def highest(y, distance=DISTANCE, most=PEAKS):
    """Find the `most` highest peaks of a profile, the highest first; of equals the earlier ones first."""
    found = find_peaks(y, distance)
    return found[np.argsort(-y[found], kind="stable")[:most]].tolist()


@dataclass(frozen=True)
class Capture:
    """The tables of a finished capture. `kind` is "feature" or "channel", n the number of one."""
    folder: Path
    tables: dict                # timesteps (N,), max_, share_ (N, F or D), ...: float32 on the CPU (capture.py)
    record: dict                # capture.json
    sha256: str                 # of activity.safetensors

    images = property(lambda self: self.record["images"])
    settings = property(lambda self: self.record["recipe"]["settings"])
    prompts = property(lambda self: self.settings["prompts"])
    top = property(lambda self: self.settings.get("top", TOP))

    def live(self, kind="feature"):
        """List all whose mean activation is above 0 in some image at some time step."""
        return (self.tables[f"max_{kind}"] > 0).any(dim=0).nonzero().flatten().tolist()

    def column(self, name, n):
        """Take one feature's values from a table, at ascending time steps: (time steps (N,), values (N,))."""
        return self.tables["timesteps"].flip(0), self.tables[name][:, n].flip(0)

    def profile(self, kind, n):
        """Share of images in which it is among the `top`: (1001,)."""
        return interpolate(self.tables["timesteps"], self.tables[f"share_{kind}"][:, n])

    def strength(self, kind, n, when="active"):
        """Largest mean activation in any image, by which a prior is steered: (1001,), a float32 tensor.

            active   where it is active, else 0
            all      in all of the sampled range

        A negative largest mean, which raw channels may have, counts as 0.
        """
        x, y = self.column(f"max_{kind}", n)
        s = np.interp(np.arange(T + 1), x, y.clamp(min=0), left=0, right=0)
        if when != "all":
            s = s * (self.profile(kind, n) > 0)
        return torch.tensor(s, dtype=torch.float32)

    def largest(self, kind, n):
        """Largest mean activation in any image under the empty prompt: (1001,), or None where the capture lacks it.

        The ascent sees the empty prompt, so its activation is compared with this. Captures without guidance and those
        of earlier versions lack it. Outside the sampled range the end values count, so that t = 0 has one.
        """
        if f"max_null_{kind}" not in self.tables:
            return None
        return np.interp(np.arange(T + 1), *self.column(f"max_null_{kind}", n))

    def peaks(self, kind, n):
        """The time steps of the highest peaks of its profile, ascending."""
        return sorted(highest(self.profile(kind, n)))

    def highest_peak(self, kind, n):
        """The time step at which it is most often among the `top`; None without a peak."""
        return next(iter(highest(self.profile(kind, n))), None)

    def timesteps(self, kind, n, when="auto"):
        """The time steps of the ascent: 0 and the peaks, or for "active" 0 and every sampling step at which it is
        active. (The original, at all active steps, also takes every t between them.)"""
        if when == "active":
            active = self.tables["timesteps"][self.tables[f"share_{kind}"][:, n] > 0]
            return sorted({0, *active.int().tolist()})
        return sorted({0, *self.peaks(kind, n)})

    def row_at(self, t):
        """Index of the sampling step nearest to t."""
        return int((self.tables["timesteps"] - t).abs().argmin())

    def stored_examples(self, kind, *where):
        """Read [image numbers, activations], (N, F, EXAMPLES) each, or their part [where]; number -1: no image."""
        path = self.folder / "examples.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                return [file.get_slice(f"{name}_{kind}")[where or slice(None)] for name in ("image", "activation")]
        except (OSError, SafetensorError) as e:
            raise WeightsError(f"{path}: cannot be used ({e}); copy it again, or make the capture again") from e

    def examples(self, kind, n, t):
        """List the dataset examples at the sampling step nearest to t: [(image number, activation)], the strongest
        first."""
        image, activation = self.stored_examples(kind, self.row_at(t), n)
        return [(i, a) for i, a in zip(image.tolist(), activation.tolist()) if i >= 0]

    def prompt(self, image):
        """The prompt of an image."""
        return self.prompts[image % len(self.prompts)]


def image_path(folder, number):
    return Path(folder) / "images" / f"{number:05d}.jpg"


# --- on disk ----------------------------------------------------------------------------------------------------------

def folder_name(hook_point, name="activity"):
    """Name of the folder of a capture at this hook point, inside that of the weights or of their results."""
    return name if hook_point == HOOK_POINT else f"{name}_{hook_point}"


def fingerprints(model):
    """{name: SHA-256} of the files that a capture depends on: networks, tokenizer, scheduler and SAE."""
    unused = ("featviz.json", "labels.json", "activity.safetensors")
    return {name: value for name, value in model.fingerprints.items()
            if not name.endswith(unused) and (model.sae or not name.startswith("sae/"))}


def fits(model, folder):
    """Check whether the folder holds a finished capture of these very weights; one of others is named on stderr."""
    if not (folder / "capture.json").exists():
        return False
    made = read_json(folder / "capture.json").get("recipe", {})
    same = (made.get("fingerprints"), made.get("hook_point")) == (fingerprints(model), model.hook_point)
    if not same:
        warn(f"{folder}: is left out, it was captured with other weights")
    return same


def find_capture(model, out):
    """Read the capture of these very weights at the model's hook point: the user's in `out` before the one that came
    with the weights. None where there is neither."""
    name = folder_name(model.hook_point)
    places = Path(out) / model.name / name, model.folder / name
    return next((read_capture(model, folder) for folder in places if fits(model, folder)), None)


def read_capture(model, folder):
    """Read a finished capture; WeightsError where its tables are damaged or of other sizes than the model's."""
    path = folder / "activity.safetensors"
    try:
        tables = {name: table.float() for name, table in load_file(path).items()}
    except (OSError, SafetensorError) as e:
        raise WeightsError(f"{path}: cannot be read ({e}); copy it again, or make the capture again") from e
    steps = len(tables.get("timesteps", ()))
    for kind, width in (("feature", model.sae.features if model.sae else 0),
                        ("channel", model.unet.width(model.hook_point))):
        for name in (f"max_{kind}", f"share_{kind}"):
            shape = [*tables[name].shape] if name in tables else "missing"
            if not steps or shape != [steps, width]:
                raise WeightsError(f"{path}: {name} is {shape}, expected {[steps, width]}; copy it again, or make the "
                                   "capture again")
    return Capture(folder, tables, read_json(folder / "capture.json"), sha256(path.read_bytes()))
