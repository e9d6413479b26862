"""Read the toy world from folders: emoji artwork of several houses, with the known contents of every drawing.

Things x houses stand for UnlearnCanvas' objects x styles (Zhang et al., arXiv 2402.11846), whose caption is kept. A
drawing is an artwork on one of three light backgrounds, shifted by at most one pixel. Nothing is mirrored or scaled:
so a network can only remove noise well if it recognises the thing and recalls how it looks.

Axes: T things, A = T x 4 artworks (artwork 4 i + j is thing i by house j), B drawings of 64 x 64 pixels.
"""
import colorsys
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

SIZE = 64                                                   # pixels an edge of a drawing
EDGE = 60                                                   # pixels an edge of an artwork in it
LIST = "emoji-datasource-google/emoji.json"                 # names, groups and subgroups
HOUSES = {                                                  # house -> file of an emoji in the artwork folder
    "Noto": "emoji-datasource-google/img/google/64/{}.png",
    "Twemoji": "emoji-datasource-twitter/img/twitter/64/{}.png",
    "Fluent": "@lobehub/fluent-emoji-3d/assets/{}.webp",
    "Blob": "emoji-datasource-google-3/img/google/64/{}.png",
}
PACKAGES = ("emoji-datasource-google 16.0.0, emoji-datasource-twitter 16.0.0, @lobehub/fluent-emoji-3d 1.1.0, and "
            "emoji-datasource-google 3.0.0 as emoji-datasource-google-3")
SUBGROUPS = (                                               # Unicode's, whose emoji are the world's things
    "animal-amphibian", "animal-bird", "animal-bug", "animal-mammal", "animal-marine", "animal-reptile",
    "food-fruit", "food-vegetable", "food-prepared", "food-asian", "food-sweet", "drink",
    "plant-flower", "plant-other", "face-costume", "face-glasses", "face-hat", "face-negative", "face-affection",
    "monkey-face", "transport-ground", "transport-air", "transport-water", "clothing", "musical-instrument")
BACKGROUNDS = {"white": (250, 250, 250), "blue": (208, 226, 246), "yellow": (250, 236, 196)}
SHIFTS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]   # pixels down and to the right
DRAWINGS = len(BACKGROUNDS) * len(SHIFTS)                   # drawings of one artwork


class Thing(NamedTuple):
    code: str                                               # "1f436"
    name: str                                               # "dog face"
    subgroup: str                                           # "animal-mammal"
    group: str                                              # "Animals & Nature"


def things(art):
    """List the things of the world, and all others that every house has drawn: two lists, in Unicode's order."""
    path = Path(art) / LIST
    if not path.exists():
        raise SystemExit(f"{path} is missing: unpack the packages {PACKAGES} into {art}, each under its name")
    world, others = [], []
    for entry in sorted(json.loads(path.read_text(encoding="utf-8")), key=lambda e: e["sort_order"]):
        code = entry["unified"].lower().removesuffix("-fe0f")
        if "-" in code or not all(find(art, house, code) for house in HOUSES):
            continue
        name = (entry["name"] or entry["short_name"].replace("_", " ")).lower().replace("’", "'")
        thing = Thing(code, name, entry["subcategory"], entry["category"])
        (world if thing.subgroup in SUBGROUPS else others).append(thing)
    return world, others


def find(art, house, code):
    """Find the file of an emoji by a house, or None. Some name it with the suffix that asks for a picture."""
    paths = [Path(art) / HOUSES[house].format(name) for name in (code, f"{code}-fe0f")]
    return next((path for path in paths if path.exists()), None)


def read(art, chosen):
    """Read the artworks of things by all houses: (A, 4, 60, 60) uint8, red, green, blue (premultiplied), alpha."""
    rows = []
    for thing in chosen:
        for house in HOUSES:
            with Image.open(find(art, house, thing.code)) as picture:
                picture = picture.convert("RGBA").convert("RGBa").resize((EDGE, EDGE), Image.Resampling.LANCZOS)
            rows.append(np.frombuffer(picture.tobytes(), np.uint8).reshape(EDGE, EDGE, 4).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(rows))


def compose(artworks, backgrounds, shifts):
    """Draw artworks (B, 4, 60, 60) uint8 on backgrounds and with shifts (B,), by index: (B, 3, 64, 64) in [0, 1]."""
    colour = torch.tensor(list(BACKGROUNDS.values()), device=artworks.device)[backgrounds] / 255.0      # (B, 3)
    framed = F.pad(artworks.float() / 255, [(SIZE - EDGE) // 2] * 4)                                    # (B, 4, 64, 64)
    moved = torch.stack([one.roll(SHIFTS[shift], (1, 2)) for one, shift in zip(framed, shifts.tolist())])
    return (colour[:, :, None, None] * (1 - moved[:, 3:]) + moved[:, :3]).clamp(0, 1)


def draw(artworks, generator, count):
    """Draw random artworks: images (B, 3, 64, 64) and the artworks' indices (B,)."""
    rows = torch.randint(len(artworks), (count,), generator=generator, device=artworks.device)
    return draw_rows(artworks, rows, generator), rows


def draw_rows(artworks, rows, generator):
    """Draw each artwork in `rows` (B,) on a random background with a random shift: (B, 3, 64, 64)."""
    pick = lambda n: torch.randint(n, rows.shape, generator=generator, device=artworks.device)
    return compose(artworks[rows], pick(len(BACKGROUNDS)), pick(len(SHIFTS)))


def caption(name, house):
    """Write the caption of a drawing, without a name, a house or both where they are None."""
    words = ["A", *([name] if name else []), "image", *(["in", house, "style"] if house else [])]
    return " ".join(words) if name or house else ""


def captions(chosen):
    """Write the whole captions of all artworks of things, in their order."""
    return [caption(thing.name, house) for thing in chosen for house in HOUSES]


def colour_name(red, green, blue):
    """Name a colour given in [0, 1], by its hue, saturation and value."""
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    if value < 0.25:
        return "black"
    if saturation < 0.18:
        return "white" if value > 0.85 else "grey"
    hue *= 360
    if hue < 45 and value < 0.7 and saturation < 0.85 or hue < 40 and 0.18 < saturation < 0.55 and value < 0.85:
        return "brown"
    if (hue < 12 or hue >= 320) and saturation < 0.6 and value > 0.7:
        return "pink"
    bounds = ((14, "red"), (40, "orange"), (66, "yellow"), (165, "green"), (252, "blue"), (295, "purple"),
              (335, "pink"), (361, "red"))
    return next(name for bound, name in bounds if hue < bound)


def colours(artwork):
    """Name the colours that cover at least 30% of an artwork (4, 60, 60) uint8: a set."""
    pixels = artwork.flatten(1).T.float() / 255                                             # (3600, 4)
    pixels = pixels[pixels[:, 3] > 0.5]
    names = [colour_name(*(p[:3] / p[3]).clamp(0, 1).tolist()) for p in pixels[::5]]
    return {name for name in set(names) if names.count(name) / len(names) >= 0.3}


def contents(artworks, chosen):
    """List what is known of each artwork: A sets of (kind, value): name, subgroup, group, house and colour."""
    known = []
    for a, artwork in enumerate(artworks):
        thing, house = chosen[a // len(HOUSES)], list(HOUSES)[a % len(HOUSES)]
        known.append({("name", thing.name), ("subgroup", thing.subgroup), ("group", thing.group), ("house", house),
                      *(("colour", colour) for colour in colours(artwork))})
    return known
