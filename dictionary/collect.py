"""Collect a model's activations at a hook point, from which a sparse autoencoder is trained.

Images are sampled from prompts as a capture samples them. Of every image and every sampling step a few positions are
kept, drawn at random: neighbours say nearly the same, and whole maps of SD fill 33 GB for 1,000 prompts where 16 of 256
positions fill 2. Kept is what the half with the prompt saw. Every HELD_OUT-th prompt is for the report alone.

    folder/collect.json                     what was asked for; another request is refused
    folder/vectors_00012.safetensors        "h" (images, N, P, D) float16 of the images 12 * SHARD, ...

An image's noise and positions follow from its number, so the vectors are the same whatever the batch, but for rounding.

Axes: B images of a batch, N sampling steps in descending order of t, P positions kept of S, D hook width.
"""
import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save

from results import sha256, write
from steering import sample
from weights.load import WeightsError, read_json

HELD_OUT = 10               # every tenth prompt
SHARD = 64                  # images of one file
POSITION_SEED = 0x51AE0D1C  # an image's number XOR this: positions have a generator of their own


@dataclasses.dataclass(frozen=True)
class Request:
    """What to collect. Defaults: dictionary/__main__.py."""
    prompts: tuple
    hook_point: str
    steps: int
    sampler: str
    guidance: float
    positions: int
    reads: str = "output"                       # or "update", the module's output minus its input

    def size(self, D):
        """Bytes on disk."""
        return 2 * len(self.prompts) * self.steps * self.positions * D


@torch.no_grad()
def observe(model, request, numbers):
    """Sample the images of these numbers and return what their positions gave: (B, N, P, D) float16."""
    generators = [torch.Generator().manual_seed(number) for number in numbers]
    noise = torch.stack([torch.randn(model.latent_shape, generator=g) for g in generators]).to(model.device)
    choice = [torch.Generator().manual_seed(POSITION_SEED ^ number) for number in numbers]
    seen = {}

    def see(t, h):
        h = h[-len(numbers):].flatten(2).transpose(1, 2)                                        # (B, S, D)
        rows = [torch.randperm(h.shape[1], generator=g)[:request.positions] for g in choice]
        seen[t] = torch.stack([row[at.to(h.device)] for row, at in zip(h, rows)]).half().cpu()  # (B, P, D)

    context = model.embed([request.prompts[number] for number in numbers])
    reader = copy.copy(model)
    reader.sae = SimpleNamespace(reads=request.reads)           # the SAE to come: sample() hands out what it will read
    sample(reader, noise, context, request.sampler, request.steps, request.guidance, see=see)
    return torch.stack([seen[t] for t in model.schedule.timesteps(request.steps)], dim=1)


def collect(model, request, folder, batch_size, on_batch=lambda done, total: None):
    """Collect what is not there yet, a file at a time; return the paths of all files.

    on_batch(images done, images) is called at the start and after each batch.
    """
    folder, total = Path(folder), len(request.prompts)
    made = {"request": json.loads(json.dumps(dataclasses.asdict(request))), "weights": model.fingerprints}
    made["weights"] = {name: sha for name, sha in made["weights"].items() if not name.startswith(("sae/", "featviz"))}
    if (folder / "collect.json").exists() and read_json(folder / "collect.json") != made:
        raise WeightsError(f"{folder}: holds activations of another request or other weights; give another --work, or "
                           "delete this folder")
    write(folder / "collect.json", json.dumps(made, indent=1).encode())
    paths = [folder / f"vectors_{i // SHARD:05d}.safetensors" for i in range(0, total, SHARD)]
    done = sum(min(SHARD, total - SHARD * i) for i, path in enumerate(paths) if path.exists())
    on_batch(done, total)
    for first, path in zip(range(0, total, SHARD), paths):
        if path.exists():
            continue
        parts, last = [], min(first + SHARD, total)
        for i in range(first, last, batch_size):
            parts.append(observe(model, request, range(i, min(i + batch_size, last))))
            done += len(parts[-1])
            on_batch(done, total)
        h = torch.cat(parts)
        if not h.isfinite().all():
            raise ValueError(f"images {first} to {last - 1}: activations are NaN, or beyond the 65504 of float16; try "
                             "--dtype float32")
        write(path, save({"h": h}))
    return paths


class Vectors:
    """The collected vectors (n, D) of the images for training, or of those held out for the report.

    They stay in the mapped files: the system keeps as many in memory as there is room for.
    """

    def __init__(self, paths, held):
        self.files = [load_file(path)["h"] for path in paths]                                   # (images, N, P, D)
        last = HELD_OUT - 1                                     # of ten prompts the last is for the report
        places = [(i, k) for i, h in enumerate(self.files) for k in range(len(h))
                  if ((SHARD * i + k) % HELD_OUT == last) == held]
        self.file, self.image = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).T
        self.each, self.width = self.files[0][0, ..., 0].numel(), self.files[0].shape[-1]

    def __len__(self):
        return len(self.file) * self.each

    def __getitem__(self, rows):
        """Read the vectors of these numbers (m,): (m, D) float16."""
        image, inside = rows // self.each, rows % self.each
        file, image, out = self.file[image], self.image[image], torch.empty(len(rows), self.width, dtype=torch.float16)
        for i in file.unique().tolist():
            here = file == i
            out[here] = self.files[i].flatten(1, 2)[image[here], inside[here]]
        return out

    def images(self):
        """Read them all as (images, N, P, D)."""
        return torch.stack([self.files[i][k] for i, k in zip(self.file.tolist(), self.image.tolist())])


def key(request):
    """Name a request's folder: the same request finds its vectors again."""
    return sha256(json.dumps(dataclasses.asdict(request)).encode())[:8]
