"""The atlas: every feature and channel of a results folder on one page, a wall of pictures to sort, filter and search.

    python -m pages --atlas out/toy            writes out/toy/index.html and a thumbnail for each feature in out/toy/atlas

What stands for a feature is the result that its own page shows first, see `sheet.best`. Its *strength* is its activation in units of
that of the dataset image that excites the feature most at the same time step (`sheet.gain`).

The page holds a row of numbers for each feature and draws only the tiles in view, so its speed does not depend on how many there are.
Thumbnails are one file each: in any order but their own, every screen would need all of the sprite sheets.
Reads what results.py wrote and nothing else, and of that only what it shows: report.py's readers open every picture.
"""
import json
import math
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pages import sheet
from weights.disk import replacing
from pages.web import document, escape

EDGE = 160                  # pixels an edge of a thumbnail, at most
TARGET = re.compile(r"(?:(?P<hook>.+)_)?(?P<kind>feature|channel)_(?P<number>\d+)")
BROKEN = (*sheet.BROKEN, IndexError)


class Result(NamedTuple):
    """As much of sheet.Found as `sheet.best` and a tile need."""
    path: Path                  # of the record
    t: int
    seed: str                   # JavaScript rounds large numbers
    verdict: str
    scores: dict


def read_result(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record["verdict"], str):
        raise ValueError("no result")
    return Result(path, int(path.parent.name[1:]), path.stem.removeprefix("seed_"), record["verdict"],
                  {name: sheet.number(record["scores"].get(name)) for name in ("activation", "activation_reencoded")})


def read_activity(path):
    """activity.json -> largest dataset activation at t = 0..1000, the highest peak or None, words of the concept."""
    record = json.loads(path.read_text(encoding="utf-8"))
    largest, profile = ([float(v) for v in record[key]] for key in ("largest", "profile"))
    return {"largest": largest, "peak": max(map(int, record["peaks"]), key=lambda t: profile[t], default=None),
            "concept": [str(word) for word in record.get("concept", [])]}


def attempt(read, path, broken):
    """What `read` makes of a file; None where it cannot, and then the file is among the broken."""
    try:
        return read(path)
    except BROKEN:
        broken.append(path)
        return None


def row(folder, thumbnails, broken):
    """A feature's folder -> what the page knows of it, see `write_atlas`; None without a sound result."""
    path = folder / "activity.json"
    activity = attempt(read_activity, path, broken) if path.exists() else None
    found = [result for path in sorted(folder.glob("t[0-9][0-9][0-9][0-9]/seed_*.json")) if (result := attempt(read_result, path, broken))]
    while found:
        first = sheet.best(found, activity)
        if write_thumbnail(first.path.with_suffix(".png"), thumbnails / thumbnail_name(folder.name, first.t, first.seed), broken):
            scores = [rounded(v) for v in (first.scores["activation"], sheet.gain(first, activity))]
            return [folder.name, first.t, first.seed, *scores, first.verdict.partition(" ")[0], activity and activity["peak"],
                    activity["concept"] if activity else [], int((folder / "index.html").exists())]
        found.remove(first)
    return None


def rounded(value):
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def thumbnail_name(name, t, seed):
    return f"{name}_t{t:04d}_seed_{seed}.jpg"


def shrink(path):
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    return small


def write_thumbnail(source, target, broken):
    """A JPEG of at most EDGE pixels an edge; one that is there and not older than the picture stays. Whether there is one."""
    if target.exists() and source.exists() and target.stat().st_mtime >= source.stat().st_mtime:
        return True
    if small := attempt(shrink, source, broken):
        with replacing(target) as file:
            small.save(file, format="JPEG", quality=88, subsampling=0)
    return small is not None


def write_atlas(folder):
    """folder/index.html; returns its path. ValueError where there is no result.

    A row: folder's name, time step and seed of the best result, its activation, strength and verdict, the highest peak of the
    feature's activity, the words of its concept, 1 if it has a page of its own.
    """
    folder, broken = Path(folder), []
    if not folder.is_dir():
        raise ValueError(f"--atlas {folder}: is no folder; give that of a model's results, such as out/toy")
    targets = sorted((p for p in folder.iterdir() if TARGET.fullmatch(p.name) and p.is_dir()), key=lambda p: p.name)
    thumbnails = folder / "atlas"
    if targets:
        thumbnails.mkdir(exist_ok=True)
    rows = [found for target in targets if (found := row(target, thumbnails, broken))]
    if broken:
        print(f"left out because they cannot be read: {count(len(broken), 'file')}, first {broken[0]}", file=sys.stderr)
    if not rows:
        raise ValueError(f"--atlas {folder}: holds no result; give the folder of a model's results, such as out/toy")
    used = {thumbnail_name(*found[:3]) for found in rows}
    for path in thumbnails.glob("*.jpg"):
        if path.name not in used:                               # of a result that is no longer the best
            path.unlink()
    with replacing(folder / "index.html") as file:
        file.write(page(folder, rows, len(broken)).encode())
    return folder / "index.html"


def link(entry):
    """From the atlas to a feature's own page, or to its picture where it has none."""
    name, t, seed, page = entry[0], entry[1], entry[2], entry[-1]
    return f"{name}/index.html" if page else f"{name}/t{t:04d}/seed_{seed}.png"


def count(n, thing):
    return f"{n:,} {thing}{'s' * (n != 1)}"


def label(name):
    hook, kind, number = TARGET.fullmatch(name).groups()
    return f"{kind} {int(number)}" + (f" at {hook}" if hook else "")


def page(folder, rows, broken):
    """The whole document. Data goes into it as JSON in which no tag can end; without scripts there is a list of links."""
    name = folder.resolve().name
    counts = Counter(TARGET.fullmatch(entry[0])["kind"] for entry in rows)
    title = " and ".join(count(n, kind) for kind, n in sorted(counts.items(), reverse=True)) + f" of {name}"
    score = "strength" if any(entry[4] is not None for entry in rows) else "activation"
    data = json.dumps({"rows": rows, "score": score}, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    links = "".join(f'<li><a href="{escape(link(entry))}">{escape(label(entry[0]))}</a> {escape(" ".join(entry[7]))}</li>'
                    for entry in rows)
    left_out = f" Left out because they cannot be read: {count(broken, 'file')}." if broken else ""
    body = BODY.format(title=escape(title), lead=LEAD[score], score=score, links=links, data=data, folder=escape(folder), left_out=left_out)
    return document(title, body, LOOK, SCRIPT)


LEAD = {"strength": "Each picture is what gradient ascent drew to excite one feature. Under it, what the dataset images that excite the "
                    "feature most have in common, and its number; 2&times; is twice as active as on the best of them.",
        "activation": "Each picture is what gradient ascent drew to excite one feature. Under it, its number and its activation."}
BODY = """<header>
<div class="row"><h1>{title}</h1> <button id="print" hidden>Print</button></div>
<p class="lead">{lead}</p>
</header>
<form id="filter" role="search" hidden>
<label class="wide">Search <input type="search" name="search" placeholder="number or word" autocomplete="off"></label>
<label>Concept <select name="concept"><option value="">any</option></select></label>
<label>Sort by <select name="sort"><option>strength</option><option>concept</option><option>activation</option><option>number</option>
<option>peak</option></select></label>
<label class="toggle"><input type="checkbox"> More filters</label>
<label class="more">Verdict <select name="verdict"><option value="">any</option></select></label>
<label class="more">Least {score} <input type="number" name="least" step="any" placeholder="any"></label>
<label class="more">Peak at t <span class="pair">
<input type="number" name="from" min="0" max="1000" placeholder="0" aria-label="Peak at t, from"> <span aria-hidden="true">&ndash;</span>
<input type="number" name="to" min="0" max="1000" placeholder="1000" aria-label="Peak at t, to"></span></label>
<div class="end"><span id="count" aria-live="polite"></span> <button type="reset">Show all</button></div>
</form>
<noscript><p>This page needs JavaScript for pictures, sorting and search; here are the features' own pages.</p><ul>{links}</ul></noscript>
<div id="wall"></div>
<footer><p>Made by <code>python -m pages --atlas {folder}</code>. Shown of a feature is the result that its own page
shows first; an excited one comes before all others.{left_out} The peak is the time step at which the feature is most often among the
most active ones.</p></footer>
<script type="application/json" id="data">{data}</script>"""

LOOK = """
body { max-width: none; } html { scroll-padding: 6rem 0 2rem; } [hidden] { display: none !important; }
header .row { justify-content: space-between; } p.lead { margin-bottom: .6rem; max-width: none; }
input, select, button { font: inherit; font-size: .95rem; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; padding: .3rem .5rem; height: 2.2rem; min-width: 0; }
#filter { display: flex; flex-wrap: wrap; gap: .5rem .8rem; align-items: end; position: sticky; top: 0; z-index: 1; padding: .5rem 0 .7rem;
  margin-bottom: .9rem; background: var(--paper); border-bottom: 1px solid var(--line); }
label { display: grid; font-size: .78rem; color: var(--soft); } .wide { flex: 1 1 10rem; } .toggle { display: none; }
select { max-width: 11rem; } [type=number] { width: 5rem; } .pair { display: flex; gap: .3rem; align-items: center; }
.end { display: flex; gap: .8rem; align-items: center; margin-left: auto; font-variant-numeric: tabular-nums; }
#wall { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.2rem, 1fr)); gap: .9rem; align-content: start;
  overflow-anchor: none; }
.tile { color: inherit; text-decoration: none; font-size: .82rem; line-height: 1.3; border-radius: 8px; }
.tile img { width: 100%; height: auto; aspect-ratio: 1; object-fit: cover; border-radius: 8px; }
.tile:hover img { box-shadow: 0 0 0 3px var(--second); } .tile:focus-visible { outline-offset: 3px; }
.tile b { display: block; font-weight: 600; padding: .3rem .1rem 0; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.tile span { display: flex; justify-content: space-between; gap: .4rem; padding: 0 .1rem; font-variant-numeric: tabular-nums; }
.tile i { font-style: normal; color: var(--soft); overflow-wrap: anywhere; } .tile .off { color: var(--accent); }
footer { margin-top: 2rem; max-width: 46rem; font-size: .85rem; }
@media (max-width: 44rem) { #print { display: none; } h1 { font-size: 1.4rem; } p.lead { font-size: 1rem; }
  #filter { position: static; } html { scroll-padding-top: 1rem; } label { flex: 1 1 8rem; } .wide { flex: 1 1 100%; }
  select, [type=number] { max-width: none; width: 100%; }
  .toggle { display: flex; flex: 1; gap: .4rem; align-items: center; height: 2.2rem; font-size: .95rem; } .toggle input { width: 1.2rem; }
  #filter:not(:has(.toggle :checked)) .more { display: none; }
  #wall { grid-template-columns: repeat(auto-fill, minmax(6.4rem, 1fr)); gap: .7rem; } }
@media print { #filter { position: static; } label, button { display: none !important; } .tile { break-inside: avoid; }
  #wall { height: auto !important; padding: 0 !important; grid-template-columns: repeat(6, minmax(0, 1fr)); } }
"""

SCRIPT = r"""
const form = document.getElementById("filter"), wall = document.getElementById("wall"), count = document.getElementById("count");
const data = JSON.parse(document.getElementById("data").textContent), PRINTED = 240, MARGIN = 3;
const items = data.rows.map(([folder, t, seed, activation, strength, verdict, peak, words, page]) => {
  const [, hook, kind, number] = folder.match(/^(?:(.+)_)?(feature|channel)_0*(\d+)$/);
  const label = `${kind} ${number}` + (hook ? ` at ${hook}` : ""), concept = words.join(" ");
  const file = `t${String(t).padStart(4, 0)}/seed_${seed}`;
  return {label, number: +number, t, activation, strength, verdict, peak, words, concept, search: `${label} ${concept}`.toLowerCase(),
    picture: `atlas/${folder}_${file.replace("/", "_")}.jpg`, link: `${folder}/` + (page ? "index.html" : `${file}.png`)};
});
let shown = [], tiles = new Map(), columns = 1, pitch = 1, width = 0, last = "";

// order: rising for number, concept and peak, falling for scores; what is unknown comes last; equals by strength, then number
const rising = (a, b) => a === b ? 0 : a === null || a === "" ? 1 : b === null || b === "" ? -1 : a < b ? -1 : 1;
const falling = (a, b) => a === null || b === null ? rising(a, b) : b - a;
const orders = {number: rising, concept: rising, peak: rising, strength: falling, activation: falling};

function fits(x, f, terms) {
  return terms.every(term => /^\d+$/.test(term) ? x.number === +term : x.search.includes(term))
    && (!f.concept || x.words.includes(f.concept)) && (!f.verdict || x.verdict === f.verdict)
    && (f.least === "" || x[data.score] !== null && x[data.score] >= +f.least)
    && (f.from === "" || x.peak !== null && x.peak >= +f.from) && (f.to === "" || x.peak !== null && x.peak <= +f.to);
}

function apply() {                                  // what the form says -> `shown`, from the top
  const f = Object.fromEntries(new FormData(form)), terms = f.search.toLowerCase().split(/\s+/).filter(Boolean), by = f.sort;
  shown = items.filter(x => fits(x, f, terms)).sort((a, b) => orders[by](a[by], b[by]) || falling(a[data.score], b[data.score])
    || a.number - b.number);
  count.textContent = `${shown.length.toLocaleString("en")} of ${items.length.toLocaleString("en")}`;
  if (scrollY > form.offsetTop) scrollTo(0, form.offsetTop);
  layout();
}

function layout() {                                 // columns and the height of a row, as the browser lays them out
  draw(0, 0);
  draw(0, Math.min(1, shown.length));
  const style = getComputedStyle(wall), gap = parseFloat(style.rowGap);
  columns = style.gridTemplateColumns.split(" ").length;
  pitch = shown.length ? wall.firstElementChild.getBoundingClientRect().height + gap : 1;
  wall.style.height = Math.max(0, Math.ceil(shown.length / columns) * pitch - gap) + "px";
  width = innerWidth;
  last = "";
  view();
}

function view() {                                   // the rows in view and a few around them
  const row = Math.min(Math.floor(-wall.getBoundingClientRect().top / pitch), Math.floor((shown.length - 1) / columns));
  const from = Math.max(0, row - MARGIN) * columns;
  const to = Math.min(shown.length, (row + Math.ceil(innerHeight / pitch) + 1 + MARGIN) * columns);
  if (last === (last = `${from} ${to}`)) return;
  wall.style.paddingTop = from / columns * pitch + "px";
  draw(from, to);
}

function draw(from, to) {                           // put tiles from..to - 1 into the wall; those that stay keep element and focus
  for (const [i, tile] of tiles) if (i < from || i >= to) { tile.remove(); tiles.delete(i); }
  for (let i = to - 1, next = null; i >= from; i--) {
    if (!tiles.has(i)) { tiles.set(i, tile(i)); wall.insertBefore(tiles.get(i), next); }
    next = tiles.get(i);
  }
}

function element(tag, text, className = "") {
  return Object.assign(document.createElement(tag), {textContent: text, className});
}

function tile(i) {
  const x = shown[i], a = element("a", ""), img = element("img", ""), line = element("span", ""), good = x.verdict === "excited";
  Object.assign(img, {src: x.picture, alt: `what excites ${x.label}`, width: 160, height: 160, decoding: "async"});
  a.href = x.link;
  a.className = "tile";
  a.dataset.index = i;
  a.title = `${x.label} at t ${x.t}: ${x.verdict}, activation ${x.activation ?? "not finite"}`
    + (x.peak === null ? "" : `, peak at t ${x.peak}`);
  const score = x.strength === null ? x.activation ?? "" : `${x.strength.toFixed(x.strength < 1 ? 2 : 1)}×`;
  line.append(element("i", x.label.replace("feature ", "")), element("i", good ? score : x.verdict, good ? "" : "off"));
  a.append(img, element("b", x.concept || "–"), line);
  return a;
}

function go(i) {                                    // move the focus to tile i, scrolling it into view first
  const top = wall.getBoundingClientRect().top + scrollY + Math.floor(i / columns) * pitch, free = form.offsetHeight + 8;
  if (top - scrollY < free || top + pitch > scrollY + innerHeight)
    scrollTo(0, top - scrollY < free ? top - free : top + pitch - innerHeight);
  view();
  tiles.get(i).focus({preventScroll: true});
}

async function paper() {                            // the browser's own print command takes what is in view; this the first PRINTED
  draw(0, Math.min(PRINTED, shown.length));
  await Promise.all([...wall.querySelectorAll("img")].map(img => img.decode().catch(() => null)));
  print();
  layout();
}

function choices(name, values) {                    // options with their number of features, the most frequent first
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  for (const [value, n] of [...counts].sort((a, b) => b[1] - a[1] || rising(a[0], b[0])))
    form[name].append(Object.assign(element("option", `${value} (${n.toLocaleString("en")})`), {value}));
  form[name].parentElement.hidden = !counts.size;
}

function remember() {                               // in the address, for the way back from a feature's page, and for links
  history.replaceState(null, "", "#" + new URLSearchParams([...new FormData(form)].filter(([, value]) => value)));
}

choices("concept", items.flatMap(x => x.words));
choices("verdict", items.map(x => x.verdict));
form.hidden = document.getElementById("print").hidden = false;
for (const [name, value] of new URLSearchParams(location.hash.slice(1))) if (form.elements[name]) form.elements[name].value = value;
form.sort.value ||= "strength";
form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("input", apply);
form.addEventListener("change", remember);
form.addEventListener("reset", () => setTimeout(() => { apply(); remember(); }));
document.getElementById("print").addEventListener("click", paper);
wall.addEventListener("keydown", event => {
  const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -Infinity, End: Infinity}[event.key];
  if (!step || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  go(Math.min(shown.length - 1, Math.max(0, +event.target.dataset.index + step)));
});
addEventListener("scroll", view, {passive: true});
addEventListener("resize", () => innerWidth === width ? view() : layout());
apply();
"""
