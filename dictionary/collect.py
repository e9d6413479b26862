"""Collect a model's activations at a hook point, from which a sparse autoencoder is trained.

Images are sampled from prompts as a capture samples them. Of every image and every sampling step a few positions are
kept, drawn at random, of the half with the prompt: neighbours say nearly the same, and whole maps of SD fill 33 GB for
1,000 prompts where 16 of 256 positions fill 2. An image's noise and positions follow from its number, so the batch
changes the vectors by rounding alone.

    folder/collect.json         what was asked for; another request is refused
    folder/vectors.float16      (images, N, P, D), image after image, those held out at the end

Axes: B images of a batch, N sampling steps in descending order of t, P positions kept of S, D hook width.
"""
import dataclasses
import json
from math import prod
from pathlib import Path
from types import SimpleNamespace

import torch

from activity.capture import sample_prompts
from command.progress import Count
from results import write
from weights.load import WeightsError

HELD_OUT = 10               # every tenth prompt is for the report alone
POSITION_SEED = 0x51AE0D1C  # an image's number XOR this: positions have a generator of their own


@dataclasses.dataclass(frozen=True)
class Request:
    """What to collect."""
    prompts: tuple
    hook_point: str
    steps: int
    sampler: str
    guidance: float
    positions: int
    reads: str = "output"                       # or "update", the module's output minus its input


@torch.no_grad()
def observe(model, request, numbers):
    """Sample the images of these numbers and return the activations at their positions: (B, N, P, D) float16."""
    choice = [torch.Generator().manual_seed(POSITION_SEED ^ number) for number in numbers]

    def look(h):
        if request.positions > h.shape[1]:
            raise ValueError(f"--positions {request.positions}: {request.hook_point} has {h.shape[1]}")
        rows = [torch.randperm(h.shape[1], generator=g)[:request.positions] for g in choice]
        prompted = h[-len(numbers):]                                                            # (B, S, D)
        return torch.stack([row[at.to(h.device)] for row, at in zip(prompted, rows)]).half().cpu()  # (B, P, D)

    reader = dataclasses.replace(model, sae=SimpleNamespace(reads=request.reads))      # the SAE to come: what it reads
    return torch.stack(sample_prompts(reader, request, numbers, look)[1], dim=1)


def collect(model, request, folder, batch_size):
    """Collect the images that are not there yet; return the vectors for training and those held out for the report,
    (images, N, P, D) float16 each. They stay in the mapped file: the system keeps as many in memory as there is room
    for."""
    folder, total, progress = Path(folder), len(request.prompts), Count("images")
    weights = {name: sha for name, sha in model.fingerprints.items() if not name.startswith(("sae/", "featviz"))}
    wanted = json.dumps({"request": dataclasses.asdict(request), "weights": weights}, indent=1, sort_keys=True)
    stored, path = folder / "collect.json", folder / "vectors.float16"
    if stored.exists() and stored.read_text(encoding="utf-8") != wanted:
        raise WeightsError(f"{folder}: holds activations of other prompts, settings or weights; give another --work, "
                           "or delete this folder")
    write(stored, wanted.encode())
    shape = (request.steps, request.positions, model.unet.width(request.hook_point))
    order = sorted(range(total), key=lambda number: number % HELD_OUT == HELD_OUT - 1)          # stable
    with open(path, "ab") as file:
        done = file.tell() // (2 * prod(shape))
        file.truncate(done * 2 * prod(shape))                   # a kill may have left a part of an image
        progress(done, total)
        while done < total:
            h = observe(model, request, order[done:done + batch_size])
            if not h.isfinite().all():
                raise ValueError("activations are NaN, or beyond the 65504 of float16; try --dtype float32")
            file.write(h.numpy())
            done += len(h)
            progress(done, total)
    vectors = torch.from_file(str(path), size=total * prod(shape), dtype=torch.float16).view(total, *shape)
    return vectors.split([total - total // HELD_OUT, total // HELD_OUT])
