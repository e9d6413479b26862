"""Which time steps the ascent of a feature runs at: those given, or what its activity in a capture or in a probe says.

    auto      0 and the peaks
    active    0 and every sampling step at which it is active

A probe is a small capture that stands in for a missing one: it is made once, said aloud, and kept in
out/<weights>/probe, or probe_<hook point>.
"""
import shutil
import sys
import time
from pathlib import Path

from activity.capture import capture, probe_settings
from activity.capture import configure as capture_settings
from activity.profile import attach, find, fits, home, timesteps
from config import HOOK_POINT

WORDS = ("auto", "active")
COUNTED = {"auto": range(0, 1000, 250), "active": range(0, 1000, 50)}           # in place of what a probe would say


def full(model):
    """The command that makes the whole capture."""
    where = "" if model.hook_point == HOOK_POINT else f" --hook-point {model.hook_point}"
    return f"python -m activity capture --weights {model.folder}{where}"


def live(model, out):
    """Every feature whose mean activation is above 0 in some image at some time step of the capture."""
    folder = find(model, out)
    if not folder:
        raise ValueError(f"--feature live: {model.folder} has no capture that says which fire; run {full(model)} first")
    return (attach(model, folder).activity["max_feature"] > 0).any(dim=0).nonzero().flatten().tolist()


def with_activity(model, out, given, steered, probing, size):
    """(the model with the tables of its capture, a function (kind, target) -> time steps beside those given as numbers)

    given    what --timestep says: numbers, "auto", "active"; None: the weights' own, or auto
    steered  whether the prior's strength is needed, which is in the tables
    probing  where there is no capture: what the probe reports its progress to, or "check" (only counted) or "shard"
             (refused)
    """
    folder, own = find(model, out), model.settings.get("timestep")
    words = [word for word in WORDS if word in given] if given else ["auto"] * (folder is not None or own is None)
    fixed = () if given or words else (own,)
    if (words or steered) and not folder:
        if probing == "check":
            counted = f"; time steps are counted as {len(COUNTED[words[-1]])} a feature" if words else ""
            print(f"{model.folder} has no capture: a probe would come first{counted}")
            return model, lambda kind, n: fixed or [t for word in words for t in COUNTED[word]]
        if probing == "shard":
            raise ValueError(f"{model.folder} has no capture, which several processes need: run {full(model)} first")
        folder = probe(model, out, size, probing)
    if not folder:
        return model, lambda kind, n: fixed
    model = attach(model, folder)
    said = lambda kind, n: sorted({t for word in words for t in timesteps(model.activity, kind, n, word)})
    return model, lambda kind, n: fixed or said(kind, n)


def probe(model, out, size, on_batch=lambda done, total: None):
    """The folder of the probe, made where there is none; says so, what it costs, and what the real one is."""
    folder, command = Path(out) / model.name / home(model.hook_point, "probe"), full(model)
    if fits(model, folder):
        print(f"{model.folder} has no capture: the probe in {folder} stands in for it; for the full one run {command}",
              file=sys.stderr)
        return folder
    settings = probe_settings(capture_settings(model, batch_size=size))
    print(f"{model.folder} has no capture: a probe of {settings.images} prompts in {settings.steps} steps stands in "
          f"for it; for the full one run {command}", file=sys.stderr)
    if (folder / "capture.json").exists():                      # of other weights
        shutil.rmtree(folder)
    began = time.time()
    capture(model, settings, folder, on_batch=on_batch)
    print(f"the probe took {time.time() - began:.0f} s and is kept in {folder}", file=sys.stderr)
    return folder
