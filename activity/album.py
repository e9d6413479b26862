"""A capture's images as eyes see them (weights/eyes.py): each is looked at once, when it is first asked for."""
from functools import cached_property

import torch
from PIL import Image

from activity import profile
from weights.disk import WeightsError
from weights.fingerprints import sha256

LOT = 0                     # the seed of the lot


class Album:
    """The embeddings of a capture's images (n, E) and, by lot, those of many features' dataset examples."""

    def __init__(self, folder, eyes):
        self.folder, self.eyes, self.seen, self.lots = folder, eyes, {}, {}

    @cached_property
    def fingerprint(self):
        """SHA-256 of what the capture says of its images."""
        path = self.folder / "examples.safetensors"
        return sha256([path])[path]

    def vectors(self, numbers):
        """Image numbers (n of them) -> (n, E)."""
        if new := [n for n in dict.fromkeys(numbers) if n not in self.seen]:
            self.seen |= zip(new, self.eyes.images([read_image(profile.image_path(self.folder, n)) for n in new]))
        return torch.stack([self.seen[n] for n in numbers])

    def lot(self, kind, t, count):
        """`count` features by lot that have two examples or more at the sampling step nearest to t, or as many as
        there are: [(feature, embeddings of its examples (m, E))]. Always the same ones."""
        row = profile.row_at(self.folder, t)
        if (kind, row, count) not in self.lots:
            images, _ = profile.stored_examples(self.folder, kind, row)                         # (F, EXAMPLES)
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(LOT))
            drawn = order[((images >= 0).sum(1) > 1)[order]][:count].tolist()
            numbers = {f: [n for n in images[f].tolist() if n >= 0] for f in drawn}
            self.vectors(dict.fromkeys(n for some in numbers.values() for n in some))           # in full batches
            self.lots[kind, row, count] = [(f, self.vectors(some)) for f, some in numbers.items()]
        return self.lots[kind, row, count]


def read_image(path):
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError) as e:                         # SyntaxError is Pillow's
        raise WeightsError(f"{path}: cannot be read as a picture ({e}); copy or make it again") from e
