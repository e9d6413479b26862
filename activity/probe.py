"""The probe: a small capture that stands in for a missing one.

It is made once, with its expected time on stderr, and kept in out/<weights>/probe, or at another hook point in
probe_<hook point>. By several processes at once it must not be made.
"""
import dataclasses
import shutil
import time
from pathlib import Path

import torch

from activity.capture import capture, configure
from activity.profile import fits, folder_name, read_capture
from command.progress import warn
from config import HOOK_POINT

PROMPTS, STEPS = 80, 20     # of a probe (ours)


def full_command(model):
    """The command that makes the whole capture."""
    where = "" if model.hook_point == HOOK_POINT else f" --hook-point {model.hook_point}"
    return f"python -m activity capture --weights {model.folder}{where}"


@torch.no_grad()
def expected_seconds(model, settings):
    """Estimate the time of a capture: one guided step of a batch is timed, on noise and the empty prompt."""
    rows = settings.batch_size * (1 + (settings.guidance != 1.0))
    context = model.embed([""]).expand(rows, -1, -1)                                            # (B, 77, Dc)
    x = torch.randn(rows, *model.latent_shape, device=model.device, dtype=model.dtype)
    t = torch.full((rows,), model.schedule.timesteps(settings.steps)[0], device=model.device)
    for _ in range(2):                          # the first one reads weights and pays for allocation
        began = time.time()
        model.unet(x, t, context).sum().item()                                                  # waits for a GPU
    calls = settings.steps + (settings.sampler == "pndm")       # which calls the UNet twice at its second time step
    return (time.time() - began) * calls * -(-settings.images // settings.batch_size)


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
         f"it, {settings.images * settings.steps} guided steps in about {expected_seconds(model, settings):.0f} s on "
         f"{model.device}; for the full one run {command}{instead}")
    if (folder / "capture.json").exists():                      # of other weights
        shutil.rmtree(folder)
    began = time.time()
    capture(model, settings, folder, on_batch)
    warn(f"the probe took {time.time() - began:.0f} s and is kept in {folder}")
    return read_capture(model, folder)
