"""The atlas: every feature and channel of a results folder on one page, pictures to sort, filter and search.

    python -m pages out/toy --atlas        writes out/toy/index.html, and a thumbnail for each feature in out/toy/atlas

A feature is shown by the result that its own page shows first (evidence.best): its finished picture, and at the turn of
a switch the ascent's. Thumbnails are files of their own, so the page opens at once whatever their number.
"""
import json
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from config import HOOK_POINT
from pages.evidence import PROJECT, best, gain, study
from pages.web import chart, document, escape, figure
from pages.words import count
from results import BROKEN, feature_folders, read_results, replacing, with_suffix, write

EDGE = 160                  # pixels an edge of a thumbnail, at most


def write_atlas(folder):
    """Write folder/index.html and return its path. ValueError where there is no result."""
    folder = Path(folder)
    tiles, broken = [], []
    (folder / "atlas").mkdir(parents=True, exist_ok=True)
    for inside in feature_folders(folder):
        if found := read_results(inside, broken):
            try:
                tiles.append(tile(inside, found, folder / "atlas"))
            except OSError:                                     # Pillow's error for what is no picture
                broken.append(best(found).path)
    if not tiles:
        raise ValueError(f"{folder}: holds no result; give the folder of a model's results, such as out/toy")
    if broken:
        print(f"left out, cannot be read: {count(len(broken), 'file')}, first {broken[0]}", file=sys.stderr)
    used = {Path(face["picture"]).name for shown in tiles for face in shown["faces"]}
    for path in (folder / "atlas").glob("*.jpg"):
        if path.name not in used:                               # of a result that is no longer the best
            path.unlink()
    write(folder / "index.html", page(folder, tiles, len(broken)).encode())
    return folder / "index.html"


def tile(folder, found, thumbnails):
    """What the page knows of one feature, as JSON values."""
    (first, *_), activity, evidence = study(folder, found)
    page = "index.html" if (folder / "index.html").exists() else f"{first.folder}/{first.last.path.name}"
    name = thumbnails / f"{folder.name}_{first.folder}_seed_{first.seed}"
    faces = [face(first.last, with_suffix(name, ".jpg"))]
    faces.append(face(first, with_suffix(name, "_ascent.jpg")) if first.finished else faces[0])
    hook = first.recipe["hook_point"]
    return {"kind": first.kind, "number": first.target, "hook": "" if hook == HOOK_POINT else hook,
            "link": f"{folder.name}/{page}", "peak": activity.peak if activity else None, "t": first.t,
            "words": evidence.words, "evidence": evidence.strength, "faces": faces}


def face(picture, thumbnail):
    """A picture's numbers, and its thumbnail; one that is not older than the picture stays."""
    source = picture.path
    if not thumbnail.exists() or thumbnail.stat().st_mtime < source.stat().st_mtime:
        with Image.open(source) as image:
            small = image.convert("RGB")
        small.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
        with replacing(thumbnail) as file:
            small.save(file, format="JPEG", quality=90, subsampling=0)
    with Image.open(thumbnail) as image:
        edge = image.width
    return {"picture": f"atlas/{thumbnail.name}", "edge": edge, "verdict": picture.verdict.partition(" ")[0],
            "activation": rounded(picture.scores.get("activation")), "strength": rounded(gain(picture))}


def rounded(value):
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def page(folder, tiles, broken):
    """Build the document. Data goes into it as JSON in which no tag can end; without scripts it is a list of links."""
    kinds = Counter(shown["kind"] for shown in tiles)
    what = " and ".join(count(n, kind) for kind, n in sorted(kinds.items(), reverse=True))
    title = f"{what} of {folder.resolve().name}"
    data = json.dumps(tiles, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    links = "".join(f'<li><a href="{escape(shown["link"])}">{shown["kind"]} {escape(shown["number"])}</a> '
                    f'{escape(shown["words"])}</li>' for shown in tiles)
    missing = f" {count(broken, 'file')} could not be read." if broken else ""
    return document(title, BODY.format(title=escape(title), links=links, missing=missing, data=data,
                                       dictionary=dictionary(folder.resolve().name)), "atlas")


def dictionary(name):
    """Draw the report that `python -m dictionary` left beside the SAE of these weights; "" where there is none."""
    shown = ""
    for path in sorted((PROJECT / "weights" / name / "sae").glob("unet.*/training.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))["report"]["by_timestep"]
            times = sorted(report, key=int)
            unexplained, dead = ([report[t][part] for t in times] for part in ("fvu", "dead"))
        except (*BROKEN, TypeError):
            continue
        shown += (f"<p>The autoencoder leaves {min(unexplained):.0%} to {max(unexplained):.0%} of the variance.</p>"
                  '<div class="charts">')
        for title, values in (("Unexplained share of the variance (FVU)", unexplained),
                              ("Share of features that never fire", dead)):
            curve = np.interp(range(1001), [int(t) for t in times], values).tolist()
            shown += figure(chart(curve, f"{title}, by time step", 1000, 360, 120), f"<b>{title}</b>, by time step")
        shown += "</div>"
    return f"<details><summary>How good the autoencoder is</summary>{shown}</details>" if shown else ""


BODY = """<header><h1>{title}</h1>
<p class="lead">Each picture was made to excite one feature. Below it stands what the feature responds to.</p></header>
<form id="filter" role="search" hidden>
<label class="wide">Search <input type="search" name="search" placeholder="number or word" autocomplete="off"></label>
<label>Sort by <select name="sort"><option>evidence</option><option>words</option><option>strength</option>
<option>number</option><option>peak</option></select></label>
<label>Verdict <select name="verdict"><option value="">any</option></select></label>
<label class="switch"><input type="checkbox" name="ascent"> as the ascent left it</label>
<span id="count" aria-live="polite"></span> <button type="reset">Show all</button>
</form>
<noscript><p>Pictures, sorting and search need JavaScript. These are the features' pages.</p>
<ul>{links}</ul></noscript>
<div id="wall"></div>
<details><summary>What the words mean</summary>
<dl><dt>evidence</dt><dd>How many of the checks on a feature's page hold.</dd>
<dt>strength</dt><dd>Activation, compared with the strongest dataset image where that is fair.</dd>
<dt>peak</dt><dd>The time step at which the feature is most often active.</dd>
<dt>as the ascent left it</dt><dd>The picture before the model finished it.</dd></dl></details>
{dictionary}
<footer><p>Made by <code>python -m pages --atlas</code>. A rule chose each picture, no person.{missing}</p></footer>
<script type="application/json" id="data">{data}</script>"""
