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

import torch

from activity.capture import capture, probe_settings
from activity.capture import configure as capture_settings
from activity.profile import attach, find, fits, home, timesteps
from config import HOOK_POINT

WORDS = ("auto", "active")
USUAL = 361                 # the time step that is suggested where the weights name none (ours)
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
    words = [word for word in WORDS if word in given] if given else ["auto"] * (own is None)
    fixed = () if given or words else (own,)
    if (words or steered) and not folder:
        if probing == "check":
            counted = f"; time steps are counted as {len(COUNTED[words[-1]])} a feature" if words else ""
            print(f"{model.folder} has no capture: a probe would come first{counted}")
            return model, lambda kind, n: fixed or [t for word in words for t in COUNTED[word]]
        if probing == "shard":
            raise ValueError(f"{model.folder} has no capture, which several processes need: run {full(model)} first")
        folder = probe(model, out, size, probing, f", or do without: --prior noise --timestep {own or USUAL}")
    if not folder:
        return model, lambda kind, n: fixed
    model = attach(model, folder)
    said = lambda kind, n: sorted({t for word in words for t in timesteps(model.activity, kind, n, word)})
    return model, lambda kind, n: fixed or said(kind, n)


@torch.no_grad()
def probe_seconds(model, settings):
    """About how long a probe takes: one guided step of a batch is timed, on noise and the empty prompt."""
    rows = settings.batch_size * (1 + (settings.guidance != 1.0))
    context = model.embed([""]).expand(rows, -1, -1)                                            # (B, 77, Dc)
    x = torch.randn(rows, *model.latent_shape, device=model.device, dtype=model.dtype)
    t = torch.full((rows,), model.schedule.timesteps(settings.steps)[0], device=model.device)
    for _ in range(2):                          # the first one reads weights and pays for allocation
        began = time.time()
        model.unet(x, t, context).sum().item()                                                  # waits for a GPU
    calls = settings.steps + (settings.sampler == "pndm")          # which comes twice to its second time step
    return (time.time() - began) * calls * -(-settings.images // settings.batch_size)


def probe(model, out, size, on_batch=lambda done, total: None, instead=""):
    """The folder of the probe, made where there is none; says so, how long it takes, and what the real one is.

    instead  how to do without a probe, said beside the command for the real one
    """
    folder, command = Path(out) / model.name / home(model.hook_point, "probe"), full(model)
    if fits(model, folder):
        print(f"{model.folder} has no capture: the probe in {folder} stands in for it; for the full one run {command}",
              file=sys.stderr)
        return folder
    settings = probe_settings(capture_settings(model, batch_size=size))
    print(f"{model.folder} has no capture: a probe of {settings.images} prompts in {settings.steps} steps stands in "
          f"for it, {settings.images * settings.steps} guided steps in about {probe_seconds(model, settings):.0f} s on "
          f"{model.device}; for the full one run {command}{instead}", file=sys.stderr)
    if (folder / "capture.json").exists():                      # of other weights
        shutil.rmtree(folder)
    began = time.time()
    capture(model, settings, folder, on_batch=on_batch)
    print(f"the probe took {time.time() - began:.0f} s and is kept in {folder}", file=sys.stderr)
    return folder
