"""Measure what a run costs on this machine: seconds a step, and peak memory."""
import dataclasses
import sys
import time

import torch

from ascent import ascend
from finish import redraw
from visualize import start

try:
    import resource                             # peak memory; not on Windows
except ImportError:
    resource = None


def step_seconds(model, jobs, config):
    """Time one step of each phase for jobs that go together: {phase: seconds}."""
    noise, took = dataclasses.replace(config, prior="noise"), {}
    for _ in range(2):                          # the first one pays for allocation
        began = time.perf_counter()
        step = next(ascend(model, jobs, noise, start(model, jobs, noise)))
        took["ascent"] = step.after.isfinite().all().item() * (time.perf_counter() - began)     # waits for a card
        began = time.perf_counter()
        step = next(redraw(model, jobs, step.noised, [1], config))
        took["finish"] = took["sampling"] = step.after.isfinite().all().item() * (time.perf_counter() - began)
    return took


def peak_memory(device):
    """Return the bytes that the card, or the process, held at most; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024              # the same field counts bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit if resource else 0
