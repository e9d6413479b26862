"""One grid picture of a sweep: the results of every combination of some settings' values, for one feature.

    python featviz.py --sweep range_weight=0,0.5,1 jitter_max=0,1,8
    out/<weights>/feature_00012/sweep_range_weight_jitter_max.png

Each combination is a usual result in the folder of its settings, so a sweep that was stopped goes on where it was. The
last setting runs across; the others, with time step and seed, run down. A cell holds the finished picture and the
ascent's, each with its activation and verdict.
"""
import io

from PIL import Image, ImageDraw, ImageFont

from pages.words import short
from results import read_result, with_suffix, write

TILE, GAP, LINE = 192, 12, 18       # pixels: edge of a picture, space between, height of a line of text


def write_sweep(folder, recipes, names):
    """Write the grid of one feature's results {path without suffix: recipe}, return its path; names: what is swept."""
    found = [read_result(with_suffix(path, ".json")) for path in recipes]
    *down, across = names
    columns = list(dict.fromkeys(r.recipe["config"][across] for r in found))
    rows = list(dict.fromkeys(row_of(r, down) for r in found))
    pictures = 1 + any(r.finished for r in found)
    width, height = pictures * (TILE + GAP) + GAP, TILE + 3 * LINE + GAP
    grid = Image.new("RGB", (TILE + len(columns) * width, 2 * LINE + len(rows) * height), "white")
    pen, font = ImageDraw.Draw(grid), ImageFont.load_default(13)
    for column, value in enumerate(columns):
        pen.text((TILE + column * width, GAP), f"{across} {value}", "black", font)
    for row, texts in enumerate(rows):
        pen.multiline_text((GAP, 2 * LINE + row * height), "\n".join(texts), "black", font)
    for r in found:
        x = TILE + columns.index(r.recipe["config"][across]) * width
        y = 2 * LINE + rows.index(row_of(r, down)) * height
        for name, picture in (("finished", r.finished), ("ascent", r)):
            if picture:
                grid.paste(scaled(picture.path), (x, y))
                said = f"{name}: {picture.verdict}\nactivation {short(picture.scores['activation'])}"
                pen.multiline_text((x, y + TILE + 2), said, "black", font)
                x += TILE + GAP
    file = io.BytesIO()
    grid.save(file, format="PNG")
    path = folder / f"sweep_{'_'.join(names)}.png"
    write(path, file.getvalue())
    return path


def row_of(r, down):
    """The texts to the left of a result's row."""
    return (f"time step {r.t}", f"seed {r.seed}", *(f"{name} {r.recipe['config'][name]}" for name in down))


def scaled(path):
    """Read a picture: small ones at a whole multiple of their size, large ones shrunk."""
    with Image.open(path) as image:
        image = image.convert("RGB")
    times = TILE // max(image.size)
    if times:
        return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
    image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return image
