"""The wall: features drawn by lot, what the model makes of each beside what the ascent found, as one picture.

    python -m pages --wall out/toy --out docs/pictures/wall.png

The lot is drawn from all features that have a finished picture, with a seed of its own, so that nobody chooses; what
stands for a feature is the result that its own page shows first.
"""
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pages.atlas import TARGET
from pages.read import attempt, best, read_activity, read_result
from weights.disk import replacing

LOT = 0                     # the seed
COUNT, COLUMNS = 48, 8      # features, and how many of them stand side by side
EDGE, GAP, LINE = 64, 4, 13     # pixels: an edge of a picture, between pictures, a line of text
HEADS = ("finished by the model", "as the ascent left them")


def stands_for(folder):
    """(number, words of its concept, the result its page shows first) of a feature; None without a finished picture."""
    activity = read_activity(folder, examples=False)
    found = filter(None, (attempt(read_result, path) for path in folder.glob("t*/seed_*.json")))
    found = [r for r in found if r.finished]
    return (int(TARGET.fullmatch(folder.name)["number"]), " ".join(activity["concept"]) if activity else "",
            best(found, activity)) if found else None


def draw_lot(folder):
    """COUNT features of a folder of results, by lot, in the order of their numbers; all where there are fewer."""
    targets = sorted(p for p in folder.glob("feature_*") if TARGET.fullmatch(p.name))
    random.Random(LOT).shuffle(targets)
    drawn = []
    for target in targets:
        if len(drawn) < COUNT and (one := stands_for(target)):
            drawn.append(one)
    return sorted(drawn, key=lambda one: one[0])


def write_wall(folder, path):
    """The picture; returns its path. ValueError where there is no finished result."""
    folder, path = Path(folder), Path(path)
    drawn = draw_lot(folder)
    if not drawn:
        raise ValueError(f"--wall {folder}: holds no finished picture of a feature; give the folder of a model's "
                         "results, such as out/toy")
    if len(drawn) < COUNT:
        print(f"only {len(drawn)} features have a finished picture; a wall has {COUNT}", file=sys.stderr)
    font, bold = ImageFont.load_default(10), ImageFont.load_default(13)
    half, pitch, top = COLUMNS * (EDGE + GAP), EDGE + GAP + LINE, LINE + 3 * GAP
    rows = -(-len(drawn) // COLUMNS)
    wall = Image.new("RGB", (2 * half + 5 * GAP, top + rows * pitch + GAP), "white")
    pen = ImageDraw.Draw(wall)
    for k, head in enumerate(HEADS):
        left = GAP + k * (half + 3 * GAP)
        pen.text((left, GAP), head, fill="black", font=bold)
        for i, (number, words, r) in enumerate(drawn):
            x, y = left + i % COLUMNS * (EDGE + GAP), top + i // COLUMNS * pitch
            wall.paste(small((r.finished, r)[k].path), (x, y))
            pen.text((x, y + EDGE + 1), fitting(f"{number} {words}", pen, font), fill="#555555", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        wall.save(file, format="PNG", optimize=True)
    return path


def small(path):
    with Image.open(path) as image:
        return image.convert("RGB").resize((EDGE, EDGE), Image.Resampling.LANCZOS)


def fitting(text, pen, font):
    """As much of a caption as fits under a picture."""
    while pen.textlength(text, font) > EDGE:
        text = text[:-1]
    return text
