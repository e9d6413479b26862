"""What lies in a feature's folder: read and checked, and drawn as one sheet to print.

    python -m pages out/toy/feature_00169      the contact sheet (sheet.png) and the page (index.html, page.py) of a feature
    python -m pages out/toy                    those of every feature and channel in the folder
    python -m pages --atlas out/toy            all of them on one page (atlas.py)

Reads what results.py wrote and nothing else. A file that is broken, or no result, is left out.
"""
import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from weights.disk import alone, replacing

TILE = 192                  # pixels an edge of a picture on the sheet, at least
EXAMPLES = 3                # dataset examples a row of the sheet
GAP, LINE = 12, 18
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, SyntaxError)     # the last is Pillow's


@dataclass
class Found:
    """A result on disk; the last five are empty in records of older versions."""
    path: Path                  # of the picture
    t: int
    seed: int
    recipe: dict
    verdict: str
    scores: dict                # name -> number, None where it was not finite
    history: dict               # name -> one number a step
    others: list                # [[index, activation]] of what the picture excites most beside the target
    heat: list                  # h x w activation of the target at each hook position
    steps: list                 # after how many steps a picture was kept
    strip: Path | None          # of these pictures, side by side
    nearest_channel: int | None

    @property
    def kind(self):
        return "channel" if self.recipe["job"]["feature"] is None else "feature"

    @property
    def steered(self):
        """Whether the first of the kept pictures is a steered prior."""
        return self.strip is not None and self.recipe["config"].get("prior") == "steer"

    def frame(self, k):
        """The k-th of the kept pictures."""
        with Image.open(self.strip) as strip:
            width = strip.width // len(self.steps)
            return strip.crop((k * width, 0, (k + 1) * width, strip.height)).convert("RGB")


def number(value):
    return None if value is None else float(value)


def read_result(path):
    """One record, checked; raises one of BROKEN for what is no result."""
    record = json.loads(path.read_text(encoding="utf-8"))
    picture, strip, job = path.with_suffix(".png"), path.with_suffix(".steps.jpg"), record["recipe"]["job"]
    steps = [int(n) for n in record.get("stored_steps", [])]
    for file in [picture, strip] if steps else [picture]:
        with Image.open(file) as image:
            image.load()
    if steps and image.width < len(steps):
        raise ValueError("fewer pixels than pictures")
    nearest, verdict = record.get("nearest_channel"), record["verdict"]
    if job["feature"] is None and job["channel"] is None or not isinstance(verdict, str):
        raise ValueError("no result")
    scores = {name: number(value) for name, value in record["scores"].items()}
    return Found(picture, int(job["timestep"]), int(job["seed"]), {"config": {}, "fingerprints": {}} | record["recipe"], verdict,
                 dict.fromkeys(("activation_start", "activation", "activation_no_noise", "activation_reencoded", "rank")) | scores,
                 {name: [number(v) for v in values] for name, values in record["history"].items()},
                 [(int(i), number(a)) for i, a in record.get("others", [])],
                 [[number(v) for v in row] for row in record.get("heat", [])],
                 steps, strip if steps else None, None if nearest is None else int(nearest))


def read_results(folder):
    """The results below a feature's folder, by time step and seed."""
    found = []
    for path in Path(folder).glob("t*/seed_*.json"):
        try:
            found.append(read_result(path))
        except BROKEN:
            continue
    return sorted(found, key=lambda r: (r.t, r.seed))


def read_activity(folder):
    """activity.json, checked: what is known of the feature's activity in a dataset; None where nothing is."""
    try:
        record = json.loads((Path(folder) / "activity.json").read_text(encoding="utf-8"))
        for t, examples in record["examples"].items():
            record["examples"][t] = [{"activation": float(e["activation"]), "prompt": str(e["prompt"]),
                                      "file": find_image(folder, e["file"])} for e in examples]
        curves, peaks = {name: [float(v) for v in record[name]] for name in ("profile", "largest")}, [int(t) for t in record["peaks"]]
        if not all(0 <= t < len(curve) > 1 for curve in curves.values() for t in [0, *peaks]):
            return None
        return curves | {"examples": {int(t): e for t, e in record["examples"].items()}, "peaks": peaks,
                         "images": int(record["images"]), "concept": [str(word) for word in record.get("concept", [])],
                         "ever_among_the_top": bool(record["ever_among_the_top"])}
    except BROKEN:
        return None


def find_image(folder, file):
    """Where a dataset image lies now: as written down, or beside the folder when all was moved; None if it cannot be opened."""
    for path in (Path(file), Path(folder).parent / "activity" / "images" / Path(file).name):
        try:
            with Image.open(path) as image:
                image.load()
            return path
        except BROKEN:
            continue
    return None


def gain(result, activity):
    """The activation in units of the strongest dataset image's at the same time step; None where one of them is not known or 0."""
    return in_units(result.scores["activation"], result.t, activity)


def in_units(value, t, activity):
    most = activity["largest"][t] if activity and t < len(activity["largest"]) else 0
    return value / most if most > 0 and value is not None else None


def best(found, activity):
    """The result to show first: an excited one before others. Of those whose picture, decoded and encoded again, excites the feature as
    much as any dataset image at that time step, the one seen through the most noise, which leaves it no fine texture to lean on;
    else the one that excites it most."""
    low = lambda v: float("-inf") if v is None else v

    def order(r):
        value = r.scores["activation_reencoded"]
        strength = low(in_units(value, r.t, activity))
        return r.verdict == "excited", r.t if strength >= 1 else -1, strength, low(value)
    return max(found, key=order)


def short(value):
    """A number to read."""
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def seems(activity):
    """What the dataset says of the feature, in a sentence."""
    if not activity:
        return "Which images excite it is not known: there is no capture of this model."
    if activity["concept"]:
        return f"It seems to show {' '.join(activity['concept'])}: the prompts of the images that excite it most share this."
    return "The prompts of the images that excite it most have no word in common."


def raised(r, activity):
    """What the ascent reached, in a sentence."""
    start, end, times = r.scores["activation_start"], r.scores["activation"], gain(r, activity)
    if end is None:
        return f"The ascent gave no number: {r.verdict}."
    strongest = f", {short(times)} times that of the strongest of {activity['images']} images" if times is not None else ""
    return f"At time step {r.t} the ascent took its activation from {short(start)} to {short(end)}{strongest}: {r.verdict}."


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
        self.write(self.left(column), self.top + row * self.pitch, text, columns * (self.edge + self.gap) - self.gap, color)

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
    """folder/sheet.png: a row a time step, a column a seed; to their right the dataset examples there, in the last row the steered
    priors. Returns its path."""
    folder = Path(folder)
    with alone(folder):
        found, activity = read_results(folder), read_activity(folder)
        if not found:
            raise ValueError(f"{folder}: holds no finished result; make one with python featviz.py")
        times, seeds = sorted({r.t for r in found}), sorted({r.seed for r in found})
        priors = {r.seed: r for r in found if r.steered}
        edge = max(TILE, *(max(Image.open(r.path).size) for r in found))
        sheet = Sheet(edge, max(2, len(seeds)) + (EXAMPLES + 0.25 if activity else 0), len(times) + bool(priors))
        sheet.write(sheet.gap, sheet.gap, heading(folder, found, activity), sheet.image.width - 2 * sheet.gap, size=2 * sheet.size)
        for row, t in enumerate(times):
            draw_row(sheet, row, t, [r for r in found if r.t == t], seeds, activity)
        if priors:
            sheet.heading(len(times), 0, len(seeds), "where they started: samples steered towards it")
        for seed, r in priors.items():
            sheet.tile(len(times), seeds.index(seed), r.frame(0), f"seed {seed}")
        with replacing(folder / "sheet.png") as file:
            sheet.image.save(file, format="PNG", dpi=(150, 150))
    return folder / "sheet.png"


def draw_row(sheet, row, t, found, seeds, activity):
    """The results at one time step, and beside them the strongest images of the dataset."""
    peak = activity and t in activity["peaks"]
    sheet.heading(row, 0, max(2, len(seeds)), f"time step {t}" + ", a peak of its activity" * bool(peak))
    for r in found:
        times = gain(r, activity)
        sheet.tile(row, seeds.index(r.seed), Image.open(r.path), f"seed {r.seed}: {r.verdict}",
                   f"from {short(r.scores['activation_start'])} to {short(r.scores['activation'])}",
                   f"{short(times)} x strongest image" if times is not None else "")
    if activity:
        examples, first = activity["examples"].get(t, []), max(2, len(seeds)) + 0.25
        says = f"strongest of {activity['images']} images here" if examples else f"in none of {activity['images']} images is it strong here"
        sheet.heading(row, first, EXAMPLES, says, "#555555")
        for k, e in enumerate(e for e in examples[:EXAMPLES] if e["file"]):
            sheet.tile(row, first + k, Image.open(e["file"]), short(e["activation"]), e["prompt"])


def write_profiles(sources, path):
    """A band for each activity.json: the profile over t, peaks in red, and beside it the strongest examples at each peak."""
    records = [json.loads(Path(source).read_text(encoding="utf-8")) for source in sources]
    font, width, shown = ImageFont.load_default(13), 520, 5
    rows = [max(1, len(r["peaks"])) for r in records]
    edge = 96
    heights = [2 * LINE + GAP + max(150, n * (edge + GAP)) for n in rows]
    figure = Image.new("RGB", (3 * GAP + width + 80 + shown * (edge + 4), GAP + sum(heights)), "white")
    pen, top = ImageDraw.Draw(figure), GAP
    for record, height in zip(records, heights):
        draw_profile(pen, record, (GAP + 30, top + LINE, width - 30, height - 3 * LINE), font)
        for i, t in enumerate(record["peaks"]):
            x, y = 2 * GAP + width, top + LINE + i * (edge + GAP)
            pen.text((x, y), f"t {t}", fill="#c02020", font=font)
            for k, example in enumerate(record["examples"][str(t)][:shown]):
                figure.paste(Image.open(example["file"]).resize((edge, edge), Image.Resampling.BICUBIC), (x + 60 + k * (edge + 4), y))
        top += height
    with replacing(Path(path)) as file:
        figure.save(file, format="PNG")
    return path


def draw_profile(pen, record, box, font):
    """One curve in a box (x, y, width, height), t to the right, scaled to its own maximum."""
    x, y, w, h = box
    kind = "feature" if "feature" in record else "channel"
    curve, most = record["profile"], max(record["profile"]) or 1.0
    what = "share of images in which it is among the 20 strongest" if record["ever_among_the_top"] else "largest mean activation"
    pen.text((x, y - LINE), f"{kind} {record[kind]}: {what}, at most {most:.3g}" + record.get("note", ""), fill="black", font=font)
    at = lambda t, v: (x + t * w / (len(curve) - 1), y + h * (1 - v / most))
    pen.line([at(0, 0), at(len(curve) - 1, 0)], fill="#999999")
    pen.line([at(t, v) for t, v in enumerate(curve)], fill="black", width=2)
    for t in range(0, len(curve), 200):
        pen.text((at(t, 0)[0] - 8, y + h + 2), str(t), fill="#555555", font=font)
    for t in record["peaks"]:
        pen.line([at(t, 0), at(t, curve[t])], fill="#c02020", width=2)
