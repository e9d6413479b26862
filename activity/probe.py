"""Attach a capture to a model. Where it has none, a probe stands in: a small capture, which is made once and kept in
out/<weights>/probe, or at another hook point in probe_<hook point>. Several processes at once must not make it.
"""
import dataclasses
import shutil
import time
from pathlib import Path

import torch

from activity.capture import capture, configure
from activity.profile import find_capture, fits, folder_name, read_capture
from command.progress import CaptureProgress, warn
from config import HOOK_POINT
from weights.load import WeightsError

PROMPTS, STEPS = 80, 20     # of a probe (ours)


def attach(model, out, make=False):
    """Attach the model's capture to it; where there is none, make a small one, or raise WeightsError."""
    model.capture = find_capture(model, out)
    if not model.capture and not make:
        raise WeightsError(f"{model.folder}: has no capture; run {full_command(model)}")
    model.capture = model.capture or small_capture(model, out, on_batch=CaptureProgress())


def full_command(model):
    """The command that makes the whole capture."""
    where = "" if model.hook_point == HOOK_POINT else f" --hook-point {model.hook_point}"
    return f"python -m activity capture --weights {model.folder}{where}"


def small_capture(model, out, batch_size=None, on_batch=lambda done, images: None, instead=""):
    """Return the small capture of these weights, made now where there is none.

    on_batch  as in capture.capture
    instead   how to do without, printed after the command for the full capture
    """
    folder, command = Path(out) / model.name / folder_name(model.hook_point, "probe"), full_command(model)
    if fits(model, folder):
        warn(f"{model.folder} has no capture: the probe in {folder} stands in for it; for the full one run {command}")
        return read_capture(model, folder)
    settings = configure(model, batch_size=batch_size)
    order = torch.randperm(len(settings.prompts), generator=torch.Generator().manual_seed(0))[:PROMPTS]
    prompts = tuple(settings.prompts[i] for i in sorted(order.tolist()))                # always the same ones
    settings = dataclasses.replace(settings, prompts=prompts, images_per_prompt=1, steps=min(STEPS, settings.steps))
    warn(f"{model.folder} has no capture: a probe of {settings.images} prompts in {settings.steps} steps stands in for "
         f"it, on {model.device}; for the full one run {command}{instead}")
    if (folder / "capture.json").exists():                      # of other weights
        shutil.rmtree(folder)
    began = time.time()
    capture(model, settings, folder, on_batch)
    warn(f"the probe took {time.time() - began:.0f} s and is kept in {folder}")
    return read_capture(model, folder)
