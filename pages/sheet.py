"""Pictures in rows with text below, as one PNG: the sheet of a sweep, its last setting across, the others down."""
import textwrap

from PIL import Image, ImageDraw, ImageFont, ImageOps

from pages.evidence import ends
from pages.web import short, shrunk
from results import read_result, write
from vae import to_file

TILE, GAP, LINE, LETTER = 192, 12, 17, 8        # pixels: a picture's edge, space between, a line, a letter


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
