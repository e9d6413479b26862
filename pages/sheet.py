"""Pictures in rows with text below, as one PNG: a sweep, and README's picture of features drawn at random.

    python featviz.py --sweep range_weight=0,1 jitter_max=0,1,8     the last setting across, the others down
    python -m pages out/toy --rows rows.png         a row a feature: dataset images, ascent, finished picture, words
"""
import random
import textwrap

from PIL import Image, ImageDraw, ImageFont, ImageOps

from pages.evidence import ends, study
from pages.web import short, shrunk
from results import feature_folders, read_result, write
from vae import to_file

TILE, SMALL, GAP, LINE, LETTER = 192, 128, 12, 17, 8    # pixels: edges of pictures, space between, a line, a letter
ROWS = 6                    # features


def tile(picture, text, edge=TILE):
    """Draw a picture, a path, with text below it; without a picture (None) the text alone."""
    top = edge + 4 if picture else 0
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, edge // LETTER)]
    drawn = Image.new("RGB", (edge, top + LINE * len(lines)), "white")
    if picture:
        image = shrunk(picture, edge)
        drawn.paste(ImageOps.scale(image, edge // max(image.size), Image.Resampling.NEAREST))   # by a whole number
    ImageDraw.Draw(drawn).text((0, top), "\n".join(lines), "black", ImageFont.load_default(13))
    return drawn


def save_sheet(rows, path):
    """Write rows of equally wide tiles as a PNG and return its path."""
    heights = [max(drawn.height for drawn in row) + GAP for row in rows]
    width = max(map(len, rows)) * (rows[0][0].width + GAP) + GAP
    sheet = Image.new("RGB", (width, sum(heights) + GAP), "white")
    for n, row in enumerate(rows):
        for column, drawn in enumerate(row):
            sheet.paste(drawn, (GAP + column * (drawn.width + GAP), GAP + sum(heights[:n])))
    write(path, to_file(sheet, format="PNG"))
    return path


def write_sweep(folder, paths, names):
    """Write the sheet of one feature's results, paths without suffix, return its path; names: what is swept."""
    rows = {}
    for r in (read_result(path.with_suffix(".json")) for path in paths):
        *down, across = (f"{name} {r.recipe['config'][name]}" for name in names)
        head = "\n".join([f"time step {r.t}", f"seed {r.seed}", *down])
        row = rows.setdefault(head, [tile(None, head)])
        row += [tile(p.path, f"{across}\n{name}: {p.verdict}\nactivation {short(p.scores['activation'])}")
                for name, p in reversed(ends(r).items())]
    return save_sheet(list(rows.values()), folder / f"sweep_{'_'.join(names)}.png")


def write_rows(folder, path):
    """Write a row for each of ROWS features, drawn at random with seed 0 among all that have results; return the path.
    """
    titles = (*["a dataset image"] * 3, "the ascent's picture", "the finished picture", "")
    rows = [[tile(None, title, SMALL) for title in titles]]
    folders = feature_folders(folder)
    for known in filter(None, map(study, random.Random(0).sample(folders, min(ROWS, len(folders))))):
        first = known.first
        said = f"{known.words or 'no word known'}\nevidence: {known.strength}\n{first.kind} {first.target}"
        times = [first.t, *known.activity.highest] if known.activity else []
        images = dict.fromkeys(e["file"] for t in times for e in known.activity.examples.get(t, []))
        pictures = [*images, None, None, None][:3] + [first.path, first.last.path]
        rows.append([*(tile(picture, "", SMALL) for picture in pictures), tile(None, said, SMALL)])
    return save_sheet(rows, path)
