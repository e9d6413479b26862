"""The page of a feature: its pictures, when and on what it fires, how each ascent went, and the command for it.

    python -m pages out/toy/feature_00169      writes index.html there; featviz.py does it at the end of a run

One file that opens from disk: pictures are embedded, the only script (feature.js) moves a slider. Without the script,
and on paper, all that it would open lies open. Every value is read from the files beside the page (read.py).
"""
import io
import json
from functools import cache
from pathlib import Path

from PIL import Image

from config import HOOK_POINT, TOP
from pages.again import commands
from pages.files import folder_of
from pages.read import SCORES, best, gain, read_activity, read_legibility, read_results, rows_of, short
from pages.web import bars, chart, data_uri, document, escape, figure, img, picture, table
from pages.words import (
    MEANS, RULE, VERDICTS, climbed, differences, how_read, reached, reads, seems, terms, told, which)
from pages.words import settings as typed
from weights.disk import alone, replacing

LARGE, EDGE = 100_000, 512          # bytes of a picture that is embedded as it is; pixels an edge of a larger one
FRAME = 256                         # pixels an edge of a picture in a strip, at most
LEVELS = 8                          # of brightness in the map of where a picture excites the feature
SHOWN = 9                           # dataset examples beside the best picture
CURVES = {"gradient_norm": "Norm of the gradient", "update_norm": "Norm of the update",
          "total_variation": "Penalty: total variation", "range": "Penalty: range",
          "moment": "Penalty: mean and deviation"}
FOOTER = ("<footer><p>Made by <code>python -m pages</code> from the records in this folder. The pictures are those of "
          "featviz.py on {weights}, torch {torch}; nobody chose them, all results of the folder are here.</p></footer>")
STARTS = {"steer": "steered", "guided": "guided"}
WHERE = ('<input type="checkbox" id="where"> <label for="where">Show where the picture excites it, on the grid of the '
         "hook point</label>")


def write_page(folder, others=()):
    """folder/index.html; returns its path. `others`: names of the folders beside it that will have a page, too."""
    folder = Path(folder)
    with alone(folder):
        found = read_results(folder)
        if not found:
            raise ValueError(f"{folder}: holds no finished result; make one with python featviz.py")
        html = page(folder, found, read_activity(folder), others)
        with replacing(folder / "index.html") as file:
            file.write(html.encode("utf-8"))
    return folder / "index.html"


def page(folder, found, activity, others):
    """The whole page; the viewers, which a button opens, come last."""
    first = best(found, activity)
    name = f"{first.kind.capitalize()} {first.target}"
    times = sorted({r.t for r in found} | set(activity["peaks"] if activity else ()))
    seen = read_legibility(folder, found)
    body = [top(name, first, activity, seen.get(first.folder, {})), how(first), unlike(found),
            when(activity, times) if activity else "",
            '<h2 id="steps">At each time step</h2>', WHERE if any(r.heat for r in found) else "",
            *(time_step(t, [r for r in found if r.t == t], activity, seen) for t in times),
            priors(found), scores(found, activity), beside(folder, first, others), raw(folder, first, name, others),
            f'<h2 id="again">Make it again</h2><pre><code>{escape(chr(10).join(commands(found)))}</code></pre>',
            settings(first), *map(viewer, found), FOOTER.format(weights=escape(first.recipe["weights"]),
                                                                torch=escape(first.recipe.get("torch", "?")))]
    return document(f"{name} of {first.recipe['weights']}", "\n".join(body), "feature")


def key(r):
    """What the ids of a result end in."""
    return f"{r.folder}-s{r.seed}"


def embed(image, edge=EDGE):
    """The address of a picture (a file or an image), made smaller where it is large."""
    if isinstance(image, Path):
        with Image.open(image) as opened:
            if max(opened.size) <= edge and image.stat().st_size <= LARGE:
                return picture(image)
            image = opened.convert("RGB")
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=90, subsampling=0)
    return data_uri(data.getvalue(), "jpeg")


def opener(r, name, heated=False):
    """The picture as a button that opens its viewer."""
    content = img(embed(r.path), f"What excites {told(r)}; open its course") + (heat(r) if heated else "")
    return f'<button class="open" id="{name}-{key(r)}" data-view="view-{key(r)}">{content}</button>'


def pair(r, activity, name, heated=False):
    """The finished picture, and beside it the ascent's, each with its numbers; the latter alone where no other is."""
    says = f"seed {r.seed}: {r.verdict}", reached(r, activity)
    if not r.finished:
        return figure(opener(r, name, heated), *says)
    last = figure(opener(r.finished, name, heated), f"seed {r.seed}, finished: {r.finished.verdict}",
                  reached(r.finished, activity))
    first = figure(opener(r, f"{name}-ascent", heated), f"the ascent: {r.verdict}", says[1])
    return f'<div class="pair">{last}{first}</div>'


def heat(r):
    """The hook's grid over the picture, dark where the feature is not excited: a path for each level of darkness."""
    most = max((v for row in r.heat for v in row if v is not None), default=0)
    if most <= 0:
        return ""
    h, w, cells = len(r.heat), len(r.heat[0]), [""] * (LEVELS + 1)
    for row, there in zip(r.heat, squares(h, w)):
        for v, square in zip(row, there):
            cells[round(LEVELS * (1 - v / most)) if v and v > 0 else LEVELS] += square
    lines = "".join(f"M{x} 0v{h}" for x in range(1, w)) + "".join(f"M0 {y}h{w}" for y in range(1, h))
    dark = "".join(f'<path d="{path}" opacity="{0.8 * level / LEVELS:.2f}"/>' for level, path in enumerate(cells)
                   if path)
    return (f'<svg class="heat" aria-hidden="true" viewBox="0 0 {w} {h}" preserveAspectRatio="none">{dark}'
            f'<path class="grid" d="{lines}"/></svg>')


@cache
def squares(h, w):
    """The outline of each cell of a grid, in rows."""
    return [[f"M{x} {y}h1v1h-1z" for x in range(w)] for y in range(h)]


def example(e):
    """A dataset image; one that is not there leaves nothing."""
    return img(embed(e["file"], FRAME), f"Dataset image: {e['prompt']}") if e["file"] else ""


def top(name, first, activity, seen):
    """The one thing that matters: what was made, beside what excites the feature in a dataset, and in words."""
    words, shown = " ".join(activity["concept"]) if activity else "", []
    for t in [first.t, *sorted(activity["peaks"], key=lambda t: -activity["profile"][t])] if activity else ():
        shown = shown or [e for e in activity["examples"].get(t, []) if e["file"]][:SHOWN]
    nine = f'<div class="nine">{"".join(map(example, shown))}</div>'
    right = figure(nine, f"The {len(shown)} of {activity['images']} images that excite it most") if shown else ""
    rule = RULE.format(kind=first.kind)
    made = pair(first, activity, "best")
    return (f'<header><p class="over soft">{escape(first.recipe["weights"])}, '
            f'{escape(first.recipe.get("hook_point", ""))}</p>'
            f'<h1>{escape(name)}{": <b>" + escape(words) + "</b>" if words else ""}</h1>{read_as(seen)}'
            f'<p class="lead">{escape(seems(activity))} {escape(climbed(first, activity))}</p>'
            f'<div class="hero">{made}{right}</div>'
            f"{f'<p>{escape(MEANS)}</p>' if first.finished else ''}<p>{escape(rule)}</p></header>")


def read_as(seen):
    """What eyes say of the pictures, and what that means."""
    return (f'<p class="reads"><b>{escape(reads(seen).capitalize())}</b><br>{escape(how_read(seen))}</p>'
            if reads(seen) else "")


def how(first):
    """How to read the page: the terms of every caption, and the rule of the verdicts."""
    says = lambda named: "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in named.items())
    return f'<aside id="how"><h2>How to read this</h2><dl>{says(terms(first))}</dl><dl>{says(VERDICTS)}</dl></aside>'


def unlike(found):
    """What the results of this page differ in beside time step, seed and settings: code, weights, torch."""
    names, groups = differences(found)
    if not names:
        return ""
    rows = [[which(results), *(str(v)[:20] for v in values)] for results, values in groups]
    code = "<p>Their code differs: not all come from the same version of the method.</p>" if "code" in names else ""
    return ('<aside id="unlike"><h2>Not all of these results were made in the same way</h2>'
            f'{code}{table(["results", *names], rows, "Differences")}</aside>')


def when(activity, times):
    """Two curves over the time steps, peaks marked; the marks lead to the pictures made there."""
    peaks, most = activity["peaks"], len(activity["profile"]) - 1
    share = f"Share of images with it among the {activity.get('top', TOP)} strongest"
    curves = {share if activity["ever_among_the_top"] else "Largest activation, where above 0": activity["profile"],
              "Largest mean activation in any image": activity["largest"]}
    charts = "".join(
        figure(chart(curve, f"{title} at time steps 0 to {most}; peaks at {peaks}", most, 480, 160, peaks,
                     links=[f"#t{t:04d}" for t in peaks]),
               title, "time step: 0 is the clean picture, to the right the noise grows")
        for title, curve in curves.items())
    go = ", ".join(f'<a href="#t{t:04d}">{t}{" (a peak)" if t in peaks else ""}</a>' for t in times)
    return f'<h2 id="when">When it is active</h2><div class="charts">{charts}</div><p>Go to time step {go}.</p>'


def time_step(t, found, activity, seen):
    """All that was made and all that is known at one time step: a row for each settings, the best seed first."""
    peak = " <span class=soft>a peak of its activity</span>" if activity and t in activity["peaks"] else ""
    made, rows = "", rows_of(found)
    for results in rows:
        head = f"With {typed(results[0])}" if typed(results[0]) else "With usual settings" if len(rows) > 1 else ""
        tiles = "".join(pair(r, activity, "open", True) for r in results)
        wide = " both" if any(r.finished for r in results) else ""
        says = reads(seen.get(results[0].folder, {})).capitalize() if len(seen) > 1 else ""
        made += f'{f"<h4>{escape(head)}</h4>" if head else ""}<div class="tiles{wide}">{tiles}</div>'
        made += f'<p class="reads">{escape(says)}</p>' if says else ""
    made = made or "<p>No picture was made at this time step.</p>"
    known = "".join(figure(example(e), short(e["activation"]), e["prompt"])
                    for e in (activity["examples"].get(t, []) if activity else ()))
    seen = f'<h4>Dataset images that excite it most here</h4><div class="small">{known}</div>' if known else ""
    return f'<section id="t{t:04d}"><h3>Time step {t}{peak}</h3>{made}{seen}</section>'


def priors(found):
    """The samples from which ascents started, one a seed and kind: they do not depend on the ascent's time step."""
    kinds = {(r.recipe["config"]["prior"], r.seed): r for r in reversed(found) if r.sampled}
    tiles = "".join(figure(img(embed(r.frame(0), FRAME), f"Start of {r.kind} {r.target}, {kind}, seed {seed}"),
                           f"{STARTS[kind]}, seed {seed}") for (kind, seed), r in sorted(kinds.items()))
    return ('<section id="priors"><h3>Where they started: samples that were pulled towards it</h3>'
            f'<div class="small">{tiles}</div><p>What differs from seed to seed, it does not care about.</p></section>'
            ) if tiles else ""


def scores(found, activity):
    """The numbers of every picture; columns that say which one it is only where there are several kinds."""
    finished, unusual = (any(map(has, found)) for has in (lambda r: r.finished, typed))
    rows = [(r.t, *[typed(r) or "usual"] * unusual, r.seed, *[name] * finished, p.verdict,
             *(short(p.scores[name]) for name in SCORES), short(gain(p, activity)))
            for r in found for name, p in (("finished", r.finished), ("ascent", r)) if p]
    head = ("time step", *["settings"] * unusual, "seed", *["picture"] * finished, "verdict", *SCORES.values(),
            "times the strongest image")
    return f'<h2 id="scores">Scores</h2>{table(head, rows, "Scores")}'


def beside(folder, first, others):
    """What else the best picture excites, as bars; a feature that has a page is a link."""
    first = first.last
    if not first.others:
        return ""
    order = sorted([*first.others, (first.target, first.scores["activation"])], key=lambda entry: -(entry[1] or 0))
    rows = bars([(linked(folder, first, first.kind, i, others), short(a), a or 0, i == first.target) for i, a in order])
    return (f'<h2 id="beside">What the picture excites beside it</h2>{rows}<p>The {first.kind} itself and the '
            f"{len(first.others)} others with the largest mean activation, in the picture of time step {first.t}, "
            f"seed {first.seed}.</p>")


def linked(folder, r, kind, number, others):
    """A feature's or channel's number, as a link where it has a page."""
    name = folder_of("", "", r.recipe.get("hook_point", HOOK_POINT), kind, number).name
    there = name != folder.name and (name in others or folder.with_name(name).joinpath("index.html").exists())
    return f'<a href="../{escape(name)}/index.html">{kind} {number}</a>' if there else f"{kind} {number}"


def raw(folder, first, name, others):
    """The raw channel that the feature raises most, beside the feature: what the sparse autoencoder is for."""
    number = first.nearest_channel
    if number is None:
        return ""
    hook = first.recipe.get("hook_point", HOOK_POINT)
    channel = folder.with_name(folder_of("", "", hook, "channel", number).name)
    head, there = '<h2 id="raw">Beside a raw channel</h2>', read_results(channel)
    if not there:
        return (f"{head}<p>Of the raw channels it raises number {number} most. <code>python featviz.py --channel "
                f"{number}</code> makes its pictures; then they are shown here.</p>")
    two = "".join(figure(img(embed(r.path), "What excites " + told(r)), title, f"{reached(r, None)}: {r.verdict}")
                  for r, title in ((first.last, name), (best(there, read_activity(channel)).last, f"Channel {number}")))
    return (f'{head}<div class="tiles">{two}</div><p>Of the raw channels, the feature raises '
            f"{linked(folder, first, 'channel', number, others)} most.</p>")


def settings(first):
    """The recipe of the best result: every setting, and the fingerprint of every file of the weights."""
    recipe = first.recipe
    plain = sorted((name, value) for name, value in recipe.items() if not isinstance(value, dict))
    prints = [(name, f"sha256 {value}") for name, value in sorted(recipe["fingerprints"].items())]
    rows = table((), [*plain, *sorted(recipe["config"].items()), *prints], "Settings")
    return (f'<details id="settings"><summary>All settings of time step {first.t}, seed {first.seed}, and the '
            f"fingerprints of its weights</summary>{rows}</details>")


def course(r):
    """The activation after 0, 1, ... steps: at both ends the score, in between that of the one noise the step saw."""
    return [r.scores["activation_start"], *r.history.get("activation", [])[1:], r.scores["activation"]]


def curves(r):
    """Every curve of the ascent that is not 0 throughout, the activation with the kept pictures marked."""
    values, total = course(r), len(course(r)) - 1
    marks = [n for n in r.steps if n <= total]
    big = figure(chart(values, f"Activation after each step, {told(r)}", total, 460, 150, marks),
                 "Activation after each step")
    small = [figure(chart([*r.history[name], None], f"{title}, {told(r)}", total, 240, 110), title)
             for name, title in CURVES.items() if any(r.history.get(name, []))]
    if r.finished and r.finished.history.get("activation"):
        pulled = r.finished.history["activation"]
        small.append(figure(chart(pulled, f"Activation at each step of the finish, {told(r)}", len(pulled), 240, 110),
                            "Activation at each step of the finish"))
    return big.replace("<figure>", '<figure class="course">', 1) + "".join(small)


def film(r):
    """The kept pictures behind one another, and the slider that moves through them."""
    values, last = course(r), len(r.steps) - 1
    total = len(values) - 1
    says = [f"after {n} of {total} steps: activation {short(values[n] if n <= total else None)}" for n in r.steps]
    with Image.open(r.strip) as strip:
        width, height = strip.width // len(r.steps), strip.height
    source = embed(r.strip, FRAME * len(r.steps)) if width > FRAME else picture(r.strip)
    return (f'<img class="strip" src="{source}" alt="The picture {escape(says[-1])}" '
            f'style="aspect-ratio:{width}/{height};--k:{last};--last:{last or 1}">'
            f'<label for="slide-{key(r)}">Steps of the ascent</label><input type="range" id="slide-{key(r)}" min="0" '
            f'max="{last}" value="{last}" data-says="{escape(json.dumps(says))}">'
            f'<output for="slide-{key(r)}">{escape(says[-1])}</output>'
            f'<p class="all">From left to right: after {", ".join(map(str, r.steps))} of {total} steps.</p>')


def viewer(r):
    """How one result came about: its pictures on a slider, its curves, and its trace if there is one."""
    trace = r.trace()
    link = trace and f"{r.folder}/{trace.parent.name}/{trace.name}"
    opened = f'<p><a href="{escape(link)}">Its trace: steps of it, opened up</a></p>' if trace else ""
    shown = film(r) if r.steps else (img(embed(r.path), f"What excites {told(r)}")
                                     + "<p>The pictures of its course were not kept (--frames 0).</p>")
    last = r.finished and figure(img(embed(r.finished.path), f"Finished: what excites {told(r)}"), "Then finished",
                                 f"activation {short(r.finished.scores['activation'])}: {r.finished.verdict}")
    return (f'<dialog id="view-{key(r)}" aria-labelledby="name-{key(r)}">'
            f'<form method="dialog"><button>Close</button></form>'
            f'<h3 id="name-{key(r)}">{escape(told(r).capitalize())}: {escape(r.verdict)}</h3>'
            f'<div class="viewer"><div>{shown}{last or ""}{opened}</div>'
            f'<div class="charts">{curves(r)}</div></div></dialog>')
