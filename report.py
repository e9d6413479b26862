"""Pictures of results that lie on disk: the contact sheet of a feature, its activity profile.

Reads what results.py wrote and nothing else.
"""
import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from results import replacing

TILE = 192                  # pixels an edge of a picture on the sheet, at least
GAP, LINE = 12, 18


def read_results(folder):
    """{(time step, seed): (record, picture's path)} below a feature's folder; files that are no finished result are skipped."""
    found = {}
    for path in sorted(Path(folder).glob("t*/seed_*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            job = record["recipe"]["job"]
        except (ValueError, KeyError, TypeError):
            continue
        if path.with_suffix(".png").exists():
            found[job["timestep"], job["seed"]] = (record, path.with_suffix(".png"))
    return found


def write_sheet(folder):
    """folder/sheet.png: a row a time step, a column a seed, verdict and activation under each picture. Returns its path."""
    folder = Path(folder)
    found = read_results(folder)
    times, seeds = sorted({t for t, _ in found}), sorted({s for _, s in found})
    font = ImageFont.load_default(13)
    edge = max(TILE, *(Image.open(path).width for _, path in found.values()))
    cell = (edge + GAP, edge + 2 * LINE + GAP)
    sheet = Image.new("RGB", (GAP + cell[0] * len(seeds), 2 * GAP + LINE + cell[1] * len(times)), "white")
    pen = ImageDraw.Draw(sheet)
    weights = next(iter(found.values()))[0]["recipe"]["weights"]
    pen.text((GAP, GAP), f"{folder.name.replace('_', ' ')} of {weights}", fill="black", font=font)
    for (t, seed), (record, path) in found.items():
        x, y = GAP + cell[0] * seeds.index(seed), 2 * GAP + LINE + cell[1] * times.index(t)
        sheet.paste(Image.open(path).resize((edge, edge), Image.Resampling.BICUBIC), (x, y))
        pen.text((x, y + edge + 2), f"t {t}, seed {seed}", fill="black", font=font)
        scores = record["scores"]
        a, b = (scores[k] if scores[k] is not None else float("nan") for k in ("activation_start", "activation"))
        pen.text((x, y + edge + 2 + LINE), f"{record['verdict']}, {a:.3f} to {b:.3f}", fill="#555555", font=font)
    with replacing(folder / "sheet.png") as file:
        sheet.save(file, format="PNG")
    return folder / "sheet.png"


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
