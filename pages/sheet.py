"""The sheet: what lies in a feature's folder as one picture to print; and a picture of profiles with their examples.

    python -m pages out/toy/feature_00169      sheet.png and the page (index.html, feature.py) of a feature
    python -m pages out/toy                    those of every feature and channel in the folder
    python -m pages --atlas out/toy            all of them on one page (atlas.py)
"""
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from config import TOP
from pages.read import gain, read_activity, read_results, rows_of, short
from pages.words import settings
from weights.disk import alone, replacing

TILE = 192                  # pixels an edge of a picture on the sheet, at least
EXAMPLES = 3                # dataset examples a row of the sheet
GAP, LINE = 12, 18


class Sheet:
    """A white page of equal tiles with captions under them, wide enough for so many columns."""

    def __init__(self, edge, columns, rows):
        self.edge, self.size = edge, edge // 13                 # of a tile, of the text: both in pixels
        self.line, self.gap = self.size * 4 // 3, edge // 12
        self.pitch = edge + 5 * self.line + self.gap
        self.top = 3 * self.line + self.gap
        height = self.top + rows * self.pitch + self.gap
        self.image = Image.new("RGB", (self.left(columns) + self.gap, height), "white")
        self.pen = ImageDraw.Draw(self.image)

    def write(self, x, y, text, width, color="black", size=None):
        """Text, cut where it is wider than `width`."""
        font, whole = ImageFont.load_default(size or self.size), text
        while text and self.pen.textlength(text + (text != whole) * "...", font) > width:
            text = text[:-1]
        self.pen.text((x, y), text + (text != whole) * "...", fill=color, font=font)

    def left(self, column):
        return self.gap + round(column * (self.edge + self.gap))

    def heading(self, row, column, columns, text, color="black"):
        width = columns * (self.edge + self.gap) - self.gap
        self.write(self.left(column), self.top + row * self.pitch, text, width, color)

    def tile(self, row, column, picture, *captions):
        x, y = self.left(column), self.top + row * self.pitch + self.line * 4 // 3
        scale = self.edge / max(picture.size)
        self.image.paste(picture.convert("RGB").resize((round(picture.width * scale), round(picture.height * scale)),
                                                       Image.Resampling.BICUBIC), (x, y))
        for i, caption in enumerate(captions):
            self.write(x, y + self.edge + 4 + i * self.line, caption, self.edge, "black" if i == 0 else "#555555")


def heading(folder, found, activity):
    """The feature's name, and in words what it seems to show."""
    words = " ".join(activity["concept"]) if activity else ""
    return f"{Path(folder).name.replace('_', ' ')} of {found[0].recipe['weights']}" + (f": {words}" if words else "")


def write_sheet(folder):
    """folder/sheet.png: a column a seed, the one that the rule puts first at the left; for each time step and settings
    a row of finished pictures above one of the ascent's; to their right the dataset examples there, in the last row the
    samples from which they started. Returns its path."""
    folder = Path(folder)
    with alone(folder):
        found, activity = read_results(folder), read_activity(folder)
        if not found:
            raise ValueError(f"{folder}: holds no finished result; make one with python featviz.py")
        rows = [row for t in sorted({r.t for r in found}) for row in rows_of([r for r in found if r.t == t])]
        priors = {r.seed: r for r in reversed(found) if r.sampled}
        edge, columns = max(TILE, *(max(Image.open(r.path).size) for r in found)), max(2, *map(len, rows), len(priors))
        height = sum(1 + any(r.finished for r in row) for row in rows) + bool(priors)
        sheet = Sheet(edge, columns + (EXAMPLES + 0.25 if activity else 0), height)
        sheet.write(sheet.gap, sheet.gap, heading(folder, found, activity), sheet.image.width - 2 * sheet.gap,
                    size=2 * sheet.size)
        y = 0
        for row in rows:
            y = draw_row(sheet, y, row, columns, activity)
        if priors:
            sheet.heading(y, 0, columns, "where they started: samples that were pulled towards it")
        for x, (seed, r) in enumerate(sorted(priors.items())):
            sheet.tile(y, x, r.frame(0), f"seed {seed}")
        with replacing(folder / "sheet.png") as file:
            sheet.image.save(file, format="PNG", dpi=(150, 150))
    return folder / "sheet.png"


def draw_row(sheet, y, found, columns, activity):
    """The results of one time step and settings from row y on: finished, then the ascent's; beside them the strongest
    images of the dataset. Returns the row after them."""
    t, other = found[0].t, settings(found[0])
    says = f"time step {t}" + ", a peak of its activity" * bool(activity and t in activity["peaks"])
    says += f", {other}" * bool(other)
    if activity:
        examples, first = activity["examples"].get(t, []), columns + 0.25
        strong = "strongest of {} images here" if examples else "in none of {} images is it strong here"
        sheet.heading(y, first, EXAMPLES, strong.format(activity["images"]), "#555555")
        for k, e in enumerate(e for e in examples[:EXAMPLES] if e["file"]):
            sheet.tile(y, first + k, Image.open(e["file"]), short(e["activation"]), e["prompt"])
    finished = [r.finished for r in found]
    for name, row in (("finished by the model", finished), ("the ascent's own", found)):
        if any(row):
            sheet.heading(y, 0, columns, f"{says}: {name}" if any(finished) else says)
            for x, r in enumerate(row):
                if r:
                    draw_result(sheet, y, x, r, gain(r, activity))
            y += 1
    return y


def draw_result(sheet, y, x, r, times):
    """A picture with its numbers; times: its activation in units of the strongest image's, or None."""
    sheet.tile(y, x, Image.open(r.path), f"seed {r.seed}: {r.verdict}",
               f"from {short(r.scores['activation_start'])} to {short(r.scores['activation'])}",
               f"rank {short(r.scores['rank'])}" + ("" if times is None else f", {short(times)} x strongest image"))


def write_profiles(sources, path):
    """A band for each activity.json: the profile, peaks in red, and beside it the strongest examples at each peak."""
    records = [json.loads(Path(source).read_text(encoding="utf-8")) for source in sources]
    font, width, shown, edge = ImageFont.load_default(13), 520, 5, 96
    heights = [2 * LINE + GAP + max(150, max(1, len(r["peaks"])) * (edge + GAP)) for r in records]
    figure = Image.new("RGB", (3 * GAP + width + 80 + shown * (edge + 4), GAP + sum(heights)), "white")
    pen, top = ImageDraw.Draw(figure), GAP
    for record, height in zip(records, heights):
        draw_profile(pen, record, (GAP + 30, top + LINE, width - 30, height - 3 * LINE), font)
        for i, t in enumerate(record["peaks"]):
            x, y = 2 * GAP + width, top + LINE + i * (edge + GAP)
            pen.text((x, y), f"t {t}", fill="#c02020", font=font)
            for k, example in enumerate(record["examples"][str(t)][:shown]):
                image = Image.open(example["file"]).resize((edge, edge), Image.Resampling.BICUBIC)
                figure.paste(image, (x + 60 + k * (edge + 4), y))
        top += height
    with replacing(Path(path)) as file:
        figure.save(file, format="PNG")
    return path


def draw_profile(pen, record, box, font):
    """One curve in a box (x, y, width, height), t to the right, scaled to its own maximum."""
    x, y, w, h = box
    kind = "feature" if "feature" in record else "channel"
    curve, most = record["profile"], max(record["profile"]) or 1.0
    share = f"share of images in which it is among the {record.get('top', TOP)} strongest"
    what = share if record["ever_among_the_top"] else "largest mean activation"
    says = f"{kind} {record[kind]}: {what}, at most {most:.3g}" + record.get("note", "")
    pen.text((x, y - LINE), says, fill="black", font=font)
    at = lambda t, v: (x + t * w / (len(curve) - 1), y + h * (1 - v / most))
    pen.line([at(0, 0), at(len(curve) - 1, 0)], fill="#999999")
    pen.line([at(t, v) for t, v in enumerate(curve)], fill="black", width=2)
    for t in range(0, len(curve), 200):
        pen.text((at(t, 0)[0] - 8, y + h + 2), str(t), fill="#555555", font=font)
    for t in record["peaks"]:
        pen.line([at(t, 0), at(t, curve[t])], fill="#c02020", width=2)
