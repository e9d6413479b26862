"""Pictures of results that lie on disk: the contact sheet of a feature.

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
