"""Which time steps the ascent of a feature runs at: those given, or 0 and the peaks of its activity in a capture, or in
a probe.

A probe is a small capture that stands in for a missing one: it is made once, said aloud, and kept in
out/<weights>/probe.
"""
import shutil
import sys
import time
from pathlib import Path

from activity.capture import capture, probe_settings
from activity.capture import configure as capture_settings
from activity.profile import attach, find, fits, timesteps

FULL = "python -m activity capture --weights {}"


def live(model, out):
    """Every feature whose mean activation is above 0 in some image at some time step of the capture."""
    folder = find(model, out)
    if not folder:
        raise ValueError(f"--feature live: {model.folder} has no capture that says which fire; run {FULL.format(model.folder)} first")
    return (attach(model, folder).activity["max_feature"] > 0).any(dim=0).nonzero().flatten().tolist()


def with_activity(model, out, given, steered, probing, size, captured_here=True):
    """(the model with the tables of its capture, a function (kind, target) -> time steps beside those given as
    numbers).

    given          what --timestep says: numbers and "auto"; None: the weights' own, or auto
    steered        whether the prior's strength is needed, which is in the tables
    probing        where there is no capture: what the probe reports its progress to, or "check" (only counted) or
                   "shard" (refused)
    captured_here  whether the hook point is the one at which captures are made
    """
    own = lambda kind, n: () if given else (model.settings.get("timestep", 0),)
    if not captured_here:
        return model, own
    folder = find(model, out)
    auto = "auto" in given if given else folder is not None or "timestep" not in model.settings
    if (auto or steered) and not folder:
        if probing == "check":
            print(f"{model.folder} has no capture: a probe would come first; time steps are counted as 4 a feature")
            return model, (lambda kind, n: (0, 250, 500, 750)) if auto else own
        if probing == "shard":
            raise ValueError(f"{model.folder} has no capture, which several processes need: run {FULL.format(model.folder)} first")
        folder = probe(model, out, size, probing)
    if not folder:
        return model, own
    model = attach(model, folder)
    return model, (lambda kind, n: timesteps(model.activity, kind, n)) if auto else own


def probe(model, out, size, on_batch=lambda done, total: None):
    """The folder of the probe, made where there is none; says so, what it costs, and what the real one is."""
    folder, full = Path(out) / model.name / "probe", FULL.format(model.folder)
    if fits(model, folder):
        print(f"{model.folder} has no capture: the probe in {folder} stands in for it; for the full one run {full}", file=sys.stderr)
        return folder
    settings = probe_settings(capture_settings(model, batch_size=size))
    print(f"{model.folder} has no capture: a probe of {settings.images} prompts in {settings.steps} steps stands in for it; for the full "
          f"one run {full}", file=sys.stderr)
    if (folder / "capture.json").exists():                      # of other weights
        shutil.rmtree(folder)
    began = time.time()
    capture(model, settings, folder, on_batch=on_batch)
    print(f"the probe took {time.time() - began:.0f} s and is kept in {folder}", file=sys.stderr)
    return folder
