"""The atlas, out/toy/index.html: every feature and channel of a results folder, pictures to sort, filter and search.

A feature is shown by the result that its own page shows first. Thumbnails are files of their own, in out/toy/atlas, so
the page opens at once whatever their number.
"""
import json
from collections import Counter
from contextlib import suppress

import numpy as np

from config import HOOK_POINT
from pages.evidence import gain, study
from pages.web import EDGE, asset, chart, count, escape, figure, shrunk, write_document
from results import BROKEN, PROJECT, feature_folders, write
from vae import to_file


def write_atlas(folder):
    """Write folder/index.html and return its path. ValueError where there are no results."""
    tiles = [tile(known, folder / "atlas") for inside in feature_folders(folder) if (known := study(inside))]
    name, kinds = folder.resolve().name, Counter(shown["kind"] for shown in tiles)
    title = " and ".join(count(n, kind) for kind, n in sorted(kinds.items(), reverse=True)) + f" of {name}"
    data = json.dumps(tiles, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")     # no tag can end in it
    links = "".join(f'<li><a href="{escape(shown["link"])}">{shown["kind"]} {escape(shown["number"])}</a> '
                    f'{escape(shown["words"])}</li>' for shown in tiles)                # for those without scripts
    body = asset("atlas.html").format(title=escape(title), links=links, data=data, dictionary=dictionary(name))
    return write_document(folder / "index.html", title, body, "atlas")


def tile(known, thumbnails):
    """Return what the page knows of one feature, as JSON values."""
    first, peaks, hook = known.first, known.activity.highest if known.activity else [], known.first.recipe["hook_point"]
    name = f"{known.folder.name}_{first.folder}_seed_{first.seed}"
    faces = [face(first.last, thumbnails / f"{name}.jpg")]
    faces.append(face(first, thumbnails / f"{name}_ascent.jpg") if first.finished else faces[0])
    return {"kind": first.kind, "number": first.target, "hook": "" if hook == HOOK_POINT else hook,
            "link": f"{known.folder.name}/index.html", "peak": peaks[0] if peaks else None,
            "t": first.t, "words": known.words, "evidence": known.strength, "faces": faces}


def face(picture, thumbnail):
    """Return a picture's numbers, and write its thumbnail; one that is not older than the picture stays."""
    if not thumbnail.exists() or thumbnail.stat().st_mtime < picture.path.stat().st_mtime:
        write(thumbnail, to_file(shrunk(picture.path, EDGE), format="JPEG", quality=90, subsampling=0))
    return {"picture": f"atlas/{thumbnail.name}", "verdict": picture.verdict.partition(" ")[0],
            "activation": picture.scores.get("activation"), "strength": gain(picture)}


def dictionary(name):
    """Draw the report that `python -m dictionary` left beside the SAE of these weights; "" where there is none."""
    shown = ""
    for path in sorted((PROJECT / "weights" / name / "sae").glob("unet.*/training.json")):
        with suppress(*BROKEN):
            report = json.loads(path.read_text(encoding="utf-8"))["report"]["by_timestep"]
            times, unexplained = zip(*sorted((int(t), found["fvu"]) for t, found in report.items()))
            said = f"The autoencoder leaves {min(unexplained):.0%} to {max(unexplained):.0%} of the variance"
            curve = np.interp(range(1001), times, unexplained).tolist()
            shown += figure(chart(curve, f"{said}, by time step", 360), f"{said}. Across: the time step.")
    return f"<details><summary>How good the autoencoder is</summary>{shown}</details>" if shown else ""
