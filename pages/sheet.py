"""Pictures in rows with text below, as one PNG: a sweep, and README's pictures of features drawn at random.

    python featviz.py --sweep range_weight=0,0.5,1 jitter_max=0,1,8
        writes out/<weights>/feature_00012/sweep_range_weight_jitter_max.png: the last setting across, the others down
    python -m pages out/toy --rows rows.png 6       a row a feature: dataset images, ascent, finished picture, words
    python -m pages out/toy --wall wall.png 48      the finished picture of each, and its words

Features are drawn at random with seed 0 among all that have results, and nobody chooses among them.
"""
import io
import random
import textwrap

from PIL import Image, ImageDraw, ImageFont

from pages.evidence import study
from pages.words import short
from results import feature_folders, read_result, read_results, with_suffix, write

TILE, SMALL, GAP, LINE = 192, 128, 12, 17       # pixels: edge of a picture, space between, height of a line of text
COLUMNS, EXAMPLES = 8, 3                        # of the wall; dataset images in a row


def scaled(path, edge=TILE):
    """Read a picture: small ones at a whole multiple of their size, large ones shrunk."""
    with Image.open(path) as image:
        image = image.convert("RGB")
    times = edge // max(image.size)
    if times:
        return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return image


def wrapped(text, font, width):
    """Break text into lines that fit the width, no letter cut off: as few as possible."""
    for letters in range(max(len(text), 1), 0, -1):
        lines = textwrap.wrap(text, letters)
        if max(map(font.getlength, lines), default=0) <= width:
            break
    return lines


def tile(picture, text, edge=TILE):
    """Draw a picture, a path, with text below it; without a picture (None) the text alone."""
    font, top = ImageFont.load_default(13), edge + 4 if picture else 0
    lines = [line for part in text.split("\n") for line in wrapped(part, font, edge)]
    drawn = Image.new("RGB", (edge, top + LINE * len(lines)), "white")
    if picture:
        drawn.paste(scaled(picture, edge))
    pen = ImageDraw.Draw(drawn)
    for n, line in enumerate(lines):
        pen.text((0, top + LINE * n), line, "black", font)
    return drawn


def save_sheet(rows, path):
    """Write rows of equally wide tiles as a PNG and return its path."""
    width = max(map(len, rows)) * (rows[0][0].width + GAP) + GAP
    heights = [max(drawn.height for drawn in row) + GAP for row in rows]
    sheet, file = Image.new("RGB", (width, sum(heights) + GAP), "white"), io.BytesIO()
    for n, row in enumerate(rows):
        for column, drawn in enumerate(row):
            sheet.paste(drawn, (GAP + column * (drawn.width + GAP), GAP + sum(heights[:n])))
    sheet.save(file, format="PNG")
    write(path, file.getvalue())
    return path


def write_sweep(folder, recipes, names):
    """Write the sheet of one feature's results {path without suffix: recipe}, return its path; names: what is swept."""
    rows, across = {}, names[-1]
    for r in (read_result(with_suffix(path, ".json")) for path in recipes):
        config = r.recipe["config"]
        head = "\n".join([f"time step {r.t}", f"seed {r.seed}", *(f"{name} {config[name]}" for name in names[:-1])])
        row = rows.setdefault(head, [tile(None, head)])
        for name, picture in (("finished", r.finished), ("ascent", r)):
            if picture:
                row.append(tile(picture.path, f"{across} {config[across]}\n{name}: {picture.verdict}\n"
                                f"activation {short(picture.scores['activation'])}"))
    return save_sheet(list(rows.values()), folder / f"sweep_{'_'.join(names)}.png")


def write_features(folder, path, count, examples):
    """Write `count` features drawn at random, with their dataset images (rows) or without (a wall); return the path."""
    folders = [inside for inside in feature_folders(folder) if "feature_" in inside.name and read_results(inside)]
    rows = [[tile(None, text, SMALL) for text in (*["a dataset image"] * EXAMPLES, "the ascent's picture",
                                                  "the finished picture", "")]] if examples else [[]]
    for inside in random.Random(0).sample(folders, min(count, len(folders))):
        group, activity, evidence = study(inside)
        known = [e.file for e in activity.shown(group[0].t)[:EXAMPLES]] if activity else []
        words = evidence.words or "no word known"
        if examples:
            pictures = [*known, *[None] * (EXAMPLES - len(known)), group[0].path, group[0].last.path]
            said = f"{words}\nevidence: {evidence.strength}\nfeature {group[0].target}"
            rows.append([*(tile(picture, "", SMALL) for picture in pictures), tile(None, said, SMALL)])
        elif len(rows[-1]) < COLUMNS:
            rows[-1].append(tile(group[0].last.path, words, SMALL))
        else:
            rows.append([tile(group[0].last.path, words, SMALL)])
    if not rows[0]:
        raise ValueError(f"{folder}: holds no feature's result; make some with python featviz.py --feature 0-47")
    return save_sheet(rows, path)
