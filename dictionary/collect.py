"""Collect a model's activations at a hook point, from which a sparse autoencoder is trained.

Images are sampled from prompts as a capture samples them. Of every image and every sampling step a few positions are
kept, drawn at random, of the half with the prompt: neighbours say nearly the same, and whole maps of SD fill 33 GB for
1,000 prompts where 16 of 256 positions fill 2. An image's noise and positions follow from its number, so the batch
changes the vectors by rounding alone.

    folder/collect.json         what was asked for; another request is refused
    folder/vectors.float16      (images, N, P, D), image after image, those held out at the end

Axes: B images of a batch, N sampling steps in descending order of t, P positions kept of S, D hook width.
"""
import json
from dataclasses import replace
from math import prod
from types import SimpleNamespace

import torch

from activity.capture import sample_prompts
from command.progress import Count
from results import write
from weights.load import WeightsError

HELD_OUT = 10               # every tenth prompt is for the report alone
POSITION_SEED = 0x51AE0D1C  # an image's number XOR this: positions have a generator of their own


@torch.no_grad()
def observe(model, settings, recipe, numbers):
    """Sample the images of these numbers and return the activations at their positions: (B, N, P, D) float16."""
    P, choice = recipe.positions, [torch.Generator().manual_seed(POSITION_SEED ^ number) for number in numbers]

    def look(h):
        if P > h.shape[1]:
            raise ValueError(f"--positions {P}: {model.hook_point} has {h.shape[1]}")
        rows = torch.stack([torch.randperm(h.shape[1], generator=g)[:P] for g in choice]).to(h.device)      # (B, P)
        return h[-len(rows):].take_along_dim(rows[..., None], dim=1).half().cpu()               # (B, P, D)

    reader = replace(model, sae=SimpleNamespace(reads=recipe.reads))                # the SAE to come: what it reads
    return torch.stack(sample_prompts(reader, settings, numbers, look)[1], dim=1)


def describe(model, settings, recipe):
    """Describe what is collected, as JSON values. The batch is no part of it."""
    sampling = {name: getattr(settings, name) for name in ("prompts", "steps", "sampler", "guidance")}
    return sampling | {"hook_point": model.hook_point, "positions": recipe.positions, "reads": recipe.reads}


def collect(model, settings, recipe, folder):
    """Collect the images that are not there yet; return the vectors for training and those held out for the report,
    (images, N, P, D) float16 each. They stay in the mapped file: the system keeps as many in memory as there is room
    for."""
    total, progress = settings.images, Count("images")
    stored, path = folder / "collect.json", folder / "vectors.float16"
    weights = {name: sha for name, sha in model.fingerprints.items() if not name.startswith(("sae/", "featviz"))}
    wanted = json.dumps({"request": describe(model, settings, recipe), "weights": weights}, indent=1, sort_keys=True)
    if stored.exists() and stored.read_text(encoding="utf-8") != wanted:
        raise WeightsError(f"{folder}: holds activations of other prompts, settings or weights; give another --work, "
                           "or delete this folder")
    write(stored, wanted.encode())
    shape = (settings.steps, recipe.positions, model.unet.width(model.hook_point))
    order = sorted(range(total), key=lambda number: number % HELD_OUT == HELD_OUT - 1)          # stable
    with open(path, "ab") as file:
        done = file.tell() // (2 * prod(shape))
        file.truncate(done * 2 * prod(shape))                   # a kill may have left a part of an image
        progress(done, total)
        while done < total:
            h = observe(model, settings, recipe, order[done:done + settings.batch_size])
            if not h.isfinite().all():
                raise ValueError("activations are NaN, or beyond the 65504 of float16; try --dtype float32")
            file.write(h.numpy())
            done += len(h)
            progress(done, total)
    vectors = torch.from_file(str(path), size=total * prod(shape), dtype=torch.float16).view(total, *shape)
    return vectors.split([total - total // HELD_OUT, total // HELD_OUT])
