"""Collect a model's activations at a hook point, from which a sparse autoencoder is trained.

Images are sampled from prompts as a capture samples them. Of every image and every sampling step a few positions are
kept, drawn at random, of the half with the prompt: neighbours say nearly the same, and whole maps of SD fill 33 GB for
1,000 prompts where 16 of 256 positions fill 2. An image's noise and positions follow from its number, so the batch
changes the vectors by rounding alone.

    folder/collect.json                     what was asked for; another request is refused
    folder/vectors_00012.safetensors        "h" (images, N, P, D) float16 of the images 12 * SHARD, ...

Axes: B images of a batch, N sampling steps in descending order of t, P positions kept of S, D hook width.
"""
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save

from activity.capture import sample_prompts
from results import write
from weights.load import WeightsError

HELD_OUT = 10               # every tenth prompt is for the report alone
SHARD = 64                  # images of one file
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
        rows = [torch.randperm(h.shape[1], generator=g)[:request.positions] for g in choice]
        prompted = h[-len(numbers):]                                                            # (B, S, D)
        return torch.stack([row[at.to(h.device)] for row, at in zip(prompted, rows)]).half().cpu()  # (B, P, D)

    reader = dataclasses.replace(model, sae=SimpleNamespace(reads=request.reads))      # the SAE to come: what it reads
    return torch.stack(sample_prompts(reader, request, numbers, look)[1], dim=1)


def collect(model, request, folder, batch_size, on_batch=lambda done, total: None):
    """Collect what is not there yet, a file at a time; return the paths of all files.

    on_batch(images done, images) is called at the start and after each batch.
    """
    folder, total = Path(folder), len(request.prompts)
    weights = {name: sha for name, sha in model.fingerprints.items() if not name.startswith(("sae/", "featviz"))}
    wanted = json.dumps({"request": dataclasses.asdict(request), "weights": weights}, indent=1, sort_keys=True)
    stored = folder / "collect.json"
    if stored.exists() and stored.read_text(encoding="utf-8") != wanted:
        raise WeightsError(f"{folder}: holds activations of other prompts, settings or weights; give another --work, "
                           "or delete this folder")
    write(stored, wanted.encode())
    paths = {range(i, min(i + SHARD, total)): folder / f"vectors_{i // SHARD:05d}.safetensors"
             for i in range(0, total, SHARD)}
    missing = {numbers: path for numbers, path in paths.items() if not path.exists()}
    done = total - sum(map(len, missing))
    on_batch(done, total)
    for numbers, path in missing.items():
        parts = []
        for i in range(0, len(numbers), batch_size):
            parts.append(observe(model, request, numbers[i:i + batch_size]))
            done += len(parts[-1])
            on_batch(done, total)
        h = torch.cat(parts)
        if not h.isfinite().all():
            raise ValueError(f"images {numbers[0]} to {numbers[-1]}: activations are NaN, or beyond the 65504 of "
                             "float16; try --dtype float32")
        write(path, save({"h": h}))
    return list(paths.values())


class Vectors:
    """The collected vectors (n, D) of the images for training, or of those held out for the report.

    They stay in the mapped files: the system keeps as many in memory as there is room for.
    """

    def __init__(self, paths, held):
        self.files = [load_file(path)["h"] for path in paths]                                   # (images, N, P, D)
        numbers = torch.arange(sum(map(len, self.files)))
        self.numbers = numbers[(numbers % HELD_OUT == HELD_OUT - 1) == held]                    # of its images
        _, steps, positions, self.width = self.files[0].shape
        self.each = steps * positions

    def __len__(self):
        return len(self.numbers) * self.each

    def __getitem__(self, rows):
        """Read the vectors of these numbers (m,): (m, D) float16."""
        number, place = self.numbers[rows // self.each], rows % self.each
        out = torch.empty(len(rows), self.width, dtype=torch.float16)
        for i in (number // SHARD).unique().tolist():
            here = number // SHARD == i
            out[here] = self.files[i].flatten(1, 2)[number[here] % SHARD, place[here]]
        return out

    def images(self):
        """Read them all as (images, N, P, D)."""
        return torch.stack([self.files[n // SHARD][n % SHARD] for n in self.numbers.tolist()])
