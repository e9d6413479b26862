"""What the judge sees in pictures, whether that is a meaning of toyworld/concepts.py, and shares with intervals."""
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from activity.profile import find_capture
from toyworld import drawings
from toyworld.judge import load_judge
from weights.load import load

NEEDED = {"name": 1, "subgroup": 3, "group": 4}             # of the judge's five likeliest things


class World:
    """Everything that measurements look at: artworks, things, model, judge."""

    def __init__(self, art, folder, device=None):
        self.chosen, self.others = drawings.things(art)
        self.art, self.folder, self.model = art, Path(folder), load(folder, device)
        self.model.capture = find_capture(self.model, Path("out"))
        self.artworks = drawings.read(art, self.chosen)
        self.judge = load_judge(folder, len(self.chosen), self.model.device)

    def concepts(self):
        return json.loads((self.folder / "concepts.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Seen:
    """One picture as the judge sees it; colours and background are read from the picture itself."""
    things: list                    # the five likeliest, drawings.Thing
    house: str
    colours: list
    background: str


def see(world, images):
    """Pictures (N, 3, 64, 64) in [0, 1] -> [Seen]."""
    things, houses = world.judge.verdict(images.to(world.model.device))
    return [Seen([world.chosen[i] for i in five], list(drawings.HOUSES)[house], *colours_of(image))
            for five, house, image in zip(things.tolist(), houses.tolist(), images.cpu())]


def colours_of(image):
    """Colours of a picture's foreground, which is what differs from the median of its edge, and its background."""
    edge = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1).median(1).values
    apart = (image - edge[:, None, None]).abs().amax(0, keepdim=True) > 0.12
    colours = drawings.colours((torch.cat([image, apart.float()]) * 255).round().to(torch.uint8))
    distance = {name: (edge - torch.tensor(rgb) / 255).norm() for name, rgb in drawings.BACKGROUNDS.items()}
    return colours, min(distance, key=distance.get)


def shows(seen, meaning):
    """Whether a picture shows a meaning [kind, value].

    A name is one of the judge's five likeliest things; a subgroup is that of at least three of them, a group that of at
    least four; a house is its likeliest house.
    """
    kind, value = meaning
    if "+" in kind:
        return all(shows(seen, part) for part in zip(kind.split("+"), value.split(", ")))
    if kind == "colour":
        return value in seen.colours
    if kind in ("background", "house"):
        return getattr(seen, kind) == value
    return sum(getattr(thing, kind) == value for thing in seen.things) >= NEEDED[kind]


def resembles(seen, names):
    """Whether one of the judge's five likeliest things is among `names`."""
    return any(thing.name in names for thing in seen.things)


def wilson(hits, n, z=1.96):
    """The 95% interval of a share: (low, high)."""
    share, spread = hits / n, z * z / n
    centre, half = share + spread / 2, z * (share * (1 - share) / n + spread / (4 * n)) ** 0.5
    return (centre - half) / (1 + spread), (centre + half) / (1 + spread)


def share(hits):
    """A list of booleans -> {"share", "low", "high", "n"}."""
    low, high = wilson(sum(hits), len(hits))
    return {"share": round(sum(hits) / len(hits), 3), "low": round(low, 3), "high": round(high, 3), "n": len(hits)}
