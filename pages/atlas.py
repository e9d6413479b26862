"""The atlas: every feature and channel of a results folder on one page, a wall of pictures to sort, filter and search.

    python -m pages --atlas out/toy        writes out/toy/index.html and a thumbnail for each feature in out/toy/atlas

What stands for a feature is the result that its own page shows first, see `read.best`: its finished picture, and at the
turn of a switch the ascent's. The *strength* of a picture is its activation in units of that of the dataset image that
excites the feature most at the same time step (`read.gain`).

The page holds a row of numbers for each feature, and atlas.js draws only the tiles in view, so its speed does not
depend on how many there are. Thumbnails are one file each: in any order but their own, every screen would need all of
the sprite sheets. Records are read as for a page, but no picture is opened that is not shown.
"""
import json
import math
import re
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

from pages.read import NUMBERS_ALONE, attempt, best, gain, read_activity, read_legibility, read_record
from pages.web import document, escape
from pages.words import likely
from weights.disk import replacing

EDGE = 160                  # pixels an edge of a thumbnail, at most
MANY = 500                  # features for which it pays to start processes
ASCENT = "_ascent"          # ends the name of the thumbnail of the ascent's picture where there is a finished one, too
TARGET = re.compile(r"(?:(?P<hook>.+)_)?(?P<kind>feature|channel)_(?P<number>\d+)")


def rows_of(targets, thumbnails):
    """(a row for each of the features' folders that has a sound result, files that cannot be read). Where there are
    many, every processor takes some."""
    work = partial(row, thumbnails)
    if len(targets) < MANY:
        made = list(map(work, targets))
    else:
        with ProcessPoolExecutor() as pool:
            made = list(pool.map(work, targets, chunksize=32))
    return [found for found, _ in made if found], [path for _, broken in made for path in broken]


def row(thumbnails, folder):
    """A feature's folder -> (what the page knows of it, see `write_atlas`, or None without a sound result; files that
    cannot be read)."""
    broken = []
    activity = read_activity(folder, False, broken)
    peak = max(activity["peaks"], key=lambda t: activity["profile"][t], default=None) if activity else None
    brief = lambda path: read_record(path, NUMBERS_ALONE)
    found = [attempt(brief, path, broken) for path in sorted(folder.glob("t*/seed_*.json"))]
    found = list(filter(None, found))
    seen = read_legibility(folder, found, broken)
    while found:
        first = best(found, activity)
        place = [folder.name, first.folder, str(first.seed)]    # JavaScript rounds large numbers
        faces = {"": first.last} | ({ASCENT: first} if first.finished else {})
        if all(write_thumbnail(r.path, thumbnails / thumbnail_name(*place, suffix), broken)
               for suffix, r in faces.items()):
            shown = [*place, *numbers(first.last, activity), peak, activity["concept"] if activity else [],
                     int((folder / "index.html").exists()), numbers(first, activity) if first.finished else None,
                     legible(seen.get(first.folder))]
            return shown, broken
        found.remove(first)
    return None, broken


def numbers(r, activity):
    """Activation, strength, verdict and rank of a picture."""
    return [rounded(r.scores["activation"]), rounded(gain(r, activity)), r.verdict.partition(" ")[0],
            rounded(r.scores["rank"], 9)]


def legible(group):
    """Agreement, and the words of the name, of the pictures of one time step and settings; None where neither is known.
    """
    if not group or not group.keys() & {"agreement", "name"}:
        return None
    return [rounded(group["agreement"]["auc"]) if "agreement" in group else None,
            likely(group["name"]["words"]) if "name" in group else []]


def rounded(value, digits=4):
    return float(f"{value:.{digits}g}") if value is not None and math.isfinite(value) else None


def thumbnail_name(name, time, seed, suffix=""):
    return f"{name}_{time}_seed_{seed}{suffix}.jpg"


def shrink(path):
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    return small


def write_thumbnail(source, target, broken):
    """A JPEG of at most EDGE pixels an edge; one that is not older than the picture stays. Whether there is one."""
    if target.exists() and source.exists():
        ours, theirs = target.stat(), source.stat()
        if ours.st_size and ours.st_mtime >= theirs.st_mtime:
            return True
    if small := attempt(shrink, source, broken):
        with replacing(target, lasting=False) as file:          # tens of thousands of files that can be made again
            small.save(file, format="JPEG", quality=88, subsampling=0)
    return small is not None


def write_atlas(folder):
    """folder/index.html; returns its path. ValueError where there is no result.

    A row: folder's name; folder of the time step and seed of the result shown; activation, strength, verdict and rank
    of its last picture; the highest peak of the feature's activity; the words of its concept; 1 if it has a page of its
    own; activation, strength, verdict and rank of the ascent's picture where another was made of it, else None; what
    eyes say of its pictures (`legible`), or None.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"--atlas {folder}: is no folder; give that of a model's results, such as out/toy")
    targets = sorted(p for p in folder.iterdir() if TARGET.fullmatch(p.name) and p.is_dir())
    thumbnails = folder / "atlas"
    if targets:
        thumbnails.mkdir(exist_ok=True)
    rows, broken = rows_of(targets, thumbnails)
    if broken:
        print(f"left out because they cannot be read: {count(len(broken), 'file')}, first {broken[0]}", file=sys.stderr)
    if not rows:
        raise ValueError(f"--atlas {folder}: holds no result; give the folder of a model's results, such as out/toy")
    used = {thumbnail_name(*found[:3], suffix) for found in rows for suffix in ("", ASCENT)}
    for path in thumbnails.glob("*.jpg"):
        if path.name not in used:                               # of a result that is no longer the best
            path.unlink()
    with replacing(folder / "index.html") as file:
        file.write(page(folder, rows, len(broken)).encode())
    return folder / "index.html"


def count(n, thing):
    return f"{n:,} {thing}{'s' * (n != 1)}"


def item(entry):
    """A feature as a link to its own page, or to its picture where it has none."""
    name, time, seed, *_, words, page, _, _ = entry
    hook, kind, number = TARGET.fullmatch(name).groups()
    link = f"{name}/index.html" if page else f"{name}/{time}/seed_{seed}.png"
    label = f"{kind} {int(number)}" + (f" at {hook}" if hook else "")
    return f'<li><a href="{escape(link)}">{escape(label)}</a> {escape(" ".join(words))}</li>'


def page(folder, rows, broken):
    """The whole document. Data goes into it as JSON in which no tag can end; without scripts it is a list of links."""
    counts = Counter(TARGET.fullmatch(entry[0])["kind"] for entry in rows)
    what = " and ".join(count(n, kind) for kind, n in sorted(counts.items(), reverse=True))
    title, score = f"{what} of {folder.resolve().name}", "activation" if all(e[4] is None for e in rows) else "strength"
    data = json.dumps({"rows": rows, "score": score}, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    left_out = f" Left out because they cannot be read: {count(broken, 'file')}." if broken else ""
    finished, legible = any(entry[-2] for entry in rows), [entry[-1] for entry in rows if entry[-1]]
    agreed, named = any(a is not None for a, _ in legible), any(words for _, words in legible)
    body = BODY.format(title=escape(title), lead=FINISHED * finished + LEAD[score], score=score,
                       ascent=SWITCH * finished, sort="<option>agreement</option>" * agreed,
                       agreement=FIELD * agreed, seen=AGREED * agreed + NAMED * named,
                       links="".join(map(item, rows)), data=data,
                       folder=escape(folder), left_out=left_out)
    return document(title, body, "atlas")


FINISHED = ("Gradient ascent began these pictures and the model finished them, which may put in what a feature did not "
            "ask for; <em>as the ascent left it</em> shows what they were made of. ")
SWITCH = '<label class="switch"><input type="checkbox" name="ascent"> as the ascent left it</label>\n'
FIELD = ('<label class="more">Least agreement <input type="number" name="agreement" min="0" max="1" step="any" '
         'placeholder="any"></label>\n')
AGREED = (" The agreement says how surely the pictures look more like the images that excite the feature than like "
          "those of other features: 1 is surely, 0.5 is chance.")
NAMED = " A word with a question mark is what a network reads in the pictures: a suggestion, also to search by."
LEAD = {
    "strength": "Each picture was drawn to excite one feature. Under it, what the dataset images that excite the "
                "feature most have in common, and its number; 2&times; is twice as active as on the best of them.",
    "activation": "Each picture was drawn to excite one feature. Under it, its number and its activation."}
BODY = """<header>
<div class="row"><h1>{title}</h1> <button id="print" hidden>Print</button></div>
<p class="lead">{lead}</p>
</header>
<form id="filter" role="search" hidden>
<label class="wide">Search <input type="search" name="search" placeholder="number or word" autocomplete="off"></label>
<label>Concept <select name="concept"><option value="">any</option></select></label>
<label>Sort by <select name="sort"><option>strength</option><option>concept</option><option>activation</option>
<option>number</option><option>peak</option>{sort}</select></label>
<label class="toggle"><input type="checkbox"> More filters</label>
{ascent}<label class="more">Verdict <select name="verdict"><option value="">any</option></select></label>
<label class="more">Least {score} <input type="number" name="least" step="any" placeholder="any"></label>
{agreement}<label class="more">Peak at t <span class="pair">
<input type="number" name="from" min="0" max="1000" placeholder="0" aria-label="Peak at t, from">
<span aria-hidden="true">&ndash;</span>
<input type="number" name="to" min="0" max="1000" placeholder="1000" aria-label="Peak at t, to"></span></label>
<div class="end"><span id="count" aria-live="polite"></span> <button type="reset">Show all</button></div>
</form>
<noscript><p>This page needs JavaScript for pictures, sorting and search; here are the features' own pages.</p>
<ul>{links}</ul></noscript>
<div id="wall"></div>
<footer><p>Made by <code>python -m pages --atlas {folder}</code>. Shown of a feature is the result that its own page
shows first: of all seeds the one that excites it most after decoding and encoding.{left_out} The peak is the time step
at which the feature is most often among the most active ones.{seen}</p></footer>
<script type="application/json" id="data">{data}</script>"""
