"""The page of a feature: its pictures, when and on what it fires, how each ascent went, and the command that makes it again.

    python -m pages out/toy/feature_00169      writes index.html into that folder; featviz.py does it at the end of a run

One file that opens from disk: pictures are embedded, the only script moves a slider. Without the script, and on paper, all that it
would open lies open. Every value on the page is read from the files beside it (report.py reads and checks them).
"""
import io
import json
from pathlib import Path

from PIL import Image

from pages.again import commands
from pages.sheet import best, gain, raised, read_activity, read_results, seems, short
from config import HOOK_POINT
from weights.disk import alone, replacing
from pages.files import folder_of
from pages.web import chart, data_uri, document, escape, picture

LARGE, EDGE = 100_000, 512          # bytes of a picture that is embedded as it is; pixels an edge of a larger one
FRAME = 256                         # pixels an edge of a picture in a strip, at most
LEVELS = 8                          # of brightness in the map of where a picture excites the feature
SHOWN = 9                           # dataset examples beside the best picture
VERDICTS = {
    "excited": "the picture excites the feature more than its start did, and still does after it was decoded and encoded again",
    "fragile": "more than half of the activation is lost when the picture is decoded and encoded again, so it is not what the eye sees",
    "weak": "it ended no higher than it started",
    "silent": "at the end the feature is 0 under every fresh noise",
    "non-finite": "numbers ran out of range; the picture is the last sound one"}
CURVES = {"gradient_norm": "Norm of the gradient", "update_norm": "Norm of the update", "total_variation": "Penalty: total variation",
          "range": "Penalty: range", "moment": "Penalty: mean and deviation"}


WHERE = '<input type="checkbox" id="where"> <label for="where">Show where the picture excites it, on the grid of the hook point</label>'


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
    name = f"{first.kind.capitalize()} {first.recipe['job'][first.kind]}"
    times = sorted({r.t for r in found} | set(activity["peaks"] if activity else ()))
    body = [top(name, first, activity), when(activity, times) if activity else "", '<h2 id="steps">At each time step</h2>',
            WHERE if any(r.heat for r in found) else "", *(time_step(t, [r for r in found if r.t == t], activity) for t in times),
            starts(found), scores(found, activity), beside(folder, first, others), raw(folder, first, name, others),
            f'<h2 id="again">Make it again</h2><pre><code>{escape(chr(10).join(commands(found)))}</code></pre>', settings(first),
            *map(viewer, found), 
            f"<footer><p>Made by <code>python -m pages</code> from the records in this folder. The pictures are gradient ascents of "
            f"featviz.py on {escape(first.recipe['weights'])}, torch {escape(first.recipe.get('torch', '?'))}; nobody chose them, all "
            "results of the folder are here.</p></footer>"]
    return document(f"{name} of {first.recipe['weights']}", "\n".join(body), "feature")


def key(r):
    """What the ids of a result end in."""
    return f"t{r.t:04d}-s{r.seed}"


def told(r):
    """A result in words, for alt texts and headings."""
    return f"{r.kind} {r.recipe['job'][r.kind]}, time step {r.t}, seed {r.seed}"


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


def figure(content, *captions):
    """The first caption stands out; captions are text."""
    first, *rest = captions or [""]
    return f"<figure>{content}<figcaption><b>{escape(first)}</b>{''.join('<br>' + escape(c) for c in rest)}</figcaption></figure>"


def img(source, alt):
    return f'<img src="{source}" alt="{escape(alt)}">'


def opener(r, name, heated=False):
    """The picture as a button that opens its viewer."""
    picture = img(embed(r.path), f"What excites {told(r)}; open its course")
    return f'<button class="open" id="{name}-{key(r)}" data-view="view-{key(r)}">{picture}{heat(r) if heated else ""}</button>'


def heat(r):
    """The hook's grid over the picture, dark where the feature is not excited: a path for each level of darkness."""
    most = max((v for row in r.heat for v in row if v is not None), default=0)
    if most <= 0:
        return ""
    cells = [[] for _ in range(LEVELS + 1)]
    for y, row in enumerate(r.heat):
        for x, v in enumerate(row):
            cells[round(LEVELS * (1 - max(v or 0, 0) / most))].append(f"M{x} {y}h1v1h-1z")
    h, w = len(r.heat), len(r.heat[0])
    lines = "".join(f"M{x} 0v{h}" for x in range(1, w)) + "".join(f"M0 {y}h{w}" for y in range(1, h))
    dark = "".join(f'<path d="{"".join(paths)}" opacity="{0.8 * level / LEVELS:.2f}"/>' for level, paths in enumerate(cells) if paths)
    return (f'<svg class="heat" aria-hidden="true" viewBox="0 0 {w} {h}" preserveAspectRatio="none">{dark}'
            f'<path class="grid" d="{lines}"/></svg>')


def examples(found):
    """Dataset images, one after the other; those that are not there leave their prompt."""
    return [figure(img(embed(e["file"], FRAME), f"Dataset image: {e['prompt']}") if e["file"] else "", short(e["activation"]), e["prompt"])
            for e in found]


def top(name, first, activity):
    """The one thing that matters: what the ascent made, beside what excites the feature in a dataset, and both in words."""
    words = " ".join(activity["concept"]) if activity else ""
    seen = activity and next((activity["examples"][t] for t in [first.t, *sorted(activity["peaks"], key=lambda t: -activity["profile"][t])]
                              if any(e["file"] for e in activity["examples"].get(t, []))), None)
    shown = [e for e in seen or () if e["file"]][:SHOWN]
    nine = "".join(img(embed(e["file"], FRAME), f"Dataset image: {e['prompt']}") for e in shown)
    says = f"The {len(shown)} of {activity['images']} images that excite it most" if shown else ""
    right = figure(f'<div class="nine">{nine}</div>', says) if shown else ""
    made = figure(opener(first, "best"), "What the ascent made", f"time step {first.t}, seed {first.seed}; open it to see its course")
    return (f'<header><p class="over soft">{escape(first.recipe["weights"])}, {escape(first.recipe.get("hook_point", ""))}</p>'
            f'<h1>{escape(name)}{": <b>" + escape(words) + "</b>" if words else ""}</h1><p class="lead">{escape(seems(activity))} '
            f'{escape(raised(first, activity))}</p><div class="hero">{made}{right}</div></header>')


def reached(r, activity):
    """What the ascent reached, in few words."""
    times = gain(r, activity)
    return (f"{short(r.scores['activation_start'])} to {short(r.scores['activation'])}"
            + (f", {short(times)} times the strongest image" if times is not None else ""))


def when(activity, times):
    """Two curves over the time steps, peaks marked; the marks lead to the pictures made there."""
    peaks, most = activity["peaks"], len(activity["profile"]) - 1
    links = [f"#t{t:04d}" for t in peaks]
    share = "Share of images with it among the 20 strongest" if activity["ever_among_the_top"] else "Largest activation, where above 0"
    charts = "".join(figure(chart(curve, f"{title} at time steps 0 to {most}; peaks at {peaks}", most, 480, 160, peaks, links=links), title,
                            "time step: 0 is the clean picture, to the right the noise grows")
                     for title, curve in ((share, activity["profile"]), ("Largest mean activation in any image", activity["largest"])))
    go = ", ".join(f'<a href="#t{t:04d}">{t}{" (a peak)" if t in peaks else ""}</a>' for t in times)
    return f'<h2 id="when">When it is active</h2><div class="charts">{charts}</div><p>Go to time step {go}.</p>'


def time_step(t, found, activity):
    """All that was made and all that is known at one time step."""
    peak = activity and t in activity["peaks"]
    parts = [f'<section id="t{t:04d}"><h3>Time step {t}{" <span class=soft>a peak of its activity</span>" if peak else ""}</h3>']
    tiles = [figure(opener(r, "open", True), f"seed {r.seed}: {r.verdict}", reached(r, activity)) for r in found]
    parts += [f'<div class="tiles">{"".join(tiles)}</div>' if tiles else "<p>No picture was made at this time step.</p>"]
    if activity and (known := activity["examples"].get(t)):
        parts += [f'<h4>Dataset images that excite it most here</h4><div class="small">{"".join(examples(known))}</div>']
    return "".join(parts) + "</section>"


def starts(found):
    """The steered priors, one a seed: they do not depend on the time step of the ascent."""
    seeds = {r.seed: r for r in found if r.steered}
    priors = "".join(figure(img(embed(r.frame(0), FRAME), f"Sample steered towards {r.kind} {r.recipe['job'][r.kind]}, seed {seed}"),
                            f"seed {seed}") for seed, r in sorted(seeds.items()))
    head = '<section id="starts"><h3>Where they started: samples steered towards it</h3>'
    return f'{head}<div class="small">{priors}</div></section>' if priors else ""


def scores(found, activity):
    """The numbers of every result, and what the verdicts mean."""
    names = ("activation_start", "activation", "activation_no_noise", "activation_reencoded", "rank")
    head = "".join(f'<th scope="col">{c}</th>' for c in ("time step", "seed", "verdict", "at the start", "at the end", "without noise",
                                                          "decoded and encoded", "rank", "times the strongest image"))
    cells = lambda r: (r.t, r.seed, r.verdict, *(short(r.scores[n]) for n in names), short(gain(r, activity)))
    rows = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells(r)) + "</tr>" for r in found)
    kinds = sorted({word for r in found for word in VERDICTS if r.verdict.startswith(word)})
    says = " ".join(f"<b>{word}</b>: {VERDICTS[word]}." for word in kinds)
    return ('<h2 id="scores">Scores</h2><div class="scroll" tabindex="0" role="group" aria-label="Scores">'
            f'<table><tr>{head}</tr>{rows}</table></div><p>{says} '
            "Activations are means over four fresh noises; rank 1 is the feature that the picture excites most of all.</p>")


def beside(folder, first, others):
    """What else the best picture excites, as bars; a feature that has a page is a link."""
    if not first.others:
        return ""
    target = first.recipe["job"][first.kind]
    bars = sorted([*first.others, (target, first.scores["activation"])], key=lambda entry: -(entry[1] or 0))
    most = max((a or 0 for _, a in bars), default=0) or 1
    rows = "".join(f'<tr{" class=target" * (i == target)}><th scope="row">{linked(folder, first, first.kind, i, others)}</th>'
                   f'<td>{short(a)}</td><td><span class="bar" style="width:{100 * max(a or 0, 0) / most:.1f}%"></span></td></tr>'
                   for i, a in bars)
    return (f'<h2 id="beside">What the picture excites beside it</h2><table class="bars">{rows}</table><p>The {first.kind} itself and the '
            f"{len(first.others)} others with the largest mean activation, in the picture of time step {first.t}, seed {first.seed}.</p>")


def linked(folder, r, kind, number, others):
    """A feature's or channel's number, as a link where it has a page."""
    name = folder_of("", "", r.recipe.get("hook_point", HOOK_POINT), kind, number).name
    there = name in others or folder.with_name(name).joinpath("index.html").exists()
    return f'<a href="../{escape(name)}/index.html">{kind} {number}</a>' if there and name != folder.name else f"{kind} {number}"


def raw(folder, first, name, others):
    """The raw channel that the feature raises most, beside the feature: what the sparse autoencoder is for."""
    if first.nearest_channel is None:
        return ""
    channel = folder.with_name(folder_of("", "", first.recipe.get("hook_point", HOOK_POINT), "channel", first.nearest_channel).name)
    head, there = '<h2 id="raw">Beside a raw channel</h2>', read_results(channel)
    if not there:
        return (f"{head}<p>Of the raw channels it raises number {first.nearest_channel} most. "
                f"<code>python featviz.py --channel {first.nearest_channel}</code> makes its pictures; then they are shown here.</p>")
    other = best(there, read_activity(channel))
    pair = [figure(img(embed(r.path), "What excites " + told(r)), title, f"{reached(r, None)}: {r.verdict}")
            for r, title in ((first, name), (other, f"Channel {first.nearest_channel}"))]
    return (f'{head}<div class="tiles">{"".join(pair)}</div><p>Of the raw channels, the feature raises '
            f"{linked(folder, first, 'channel', first.nearest_channel, others)} most.</p>")


def settings(first):
    """The recipe of the best result: every setting, and the fingerprint of every file of the weights."""
    recipe = first.recipe
    plain = {name: recipe.get(name, "not recorded") for name in ("weights", "hook_point", "device", "dtype", "torch")}
    prints = {name: f"sha256 {value}" for name, value in sorted(recipe["fingerprints"].items())}
    rows = "".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
                   for name, value in (plain | dict(sorted(recipe["config"].items())) | prints).items())
    return (f'<details id="settings"><summary>All settings of time step {first.t}, seed {first.seed}, and the fingerprints of its weights'
            f'</summary><div class="scroll"><table>{rows}</table></div></details>')


def course(r):
    """The activation after 0, 1, ... steps: at both ends the score, in between that of the one draw of noise which the step saw."""
    return [r.scores["activation_start"], *r.history.get("activation", [])[1:], r.scores["activation"]]


def curves(r):
    """Every curve of the ascent that is not 0 throughout, the activation with the kept pictures marked."""
    values, total = course(r), len(course(r)) - 1
    marks = [n for n in r.steps if n <= total]
    big = figure(chart(values, f"Activation after each step, {told(r)}", total, 460, 150, marks), "Activation after each step")
    small = [figure(chart([*r.history[name], None], f"{title}, {told(r)}", total, 240, 110), title) for name, title in CURVES.items()
             if any(r.history.get(name, []))]
    return big.replace("<figure>", '<figure class="course">', 1) + "".join(small)


def film(r):
    """The kept pictures behind one another, and the slider that moves through them."""
    values, last = course(r), len(r.steps) - 1
    says = [f"after {n} of {len(values) - 1} steps: activation {short(values[n] if n < len(values) else None)}" for n in r.steps]
    with Image.open(r.strip) as strip:
        width, height = strip.width // len(r.steps), strip.height
    source = embed(r.strip, FRAME * len(r.steps)) if width > FRAME else picture(r.strip)
    return (f'<img class="strip" src="{source}" alt="The picture {escape(says[-1])}" '
            f'style="aspect-ratio:{width}/{height};--k:{last};--last:{last or 1}"><label for="slide-{key(r)}">Steps of the ascent</label>'
            f'<input type="range" id="slide-{key(r)}" min="0" max="{last}" value="{last}" data-says="{escape(json.dumps(says))}">'
            f'<output for="slide-{key(r)}">{escape(says[-1])}</output>'
            f'<p class="all">From left to right: after {", ".join(map(str, r.steps))} of {len(values) - 1} steps.</p>')


def viewer(r):
    """How one result came about: its pictures on a slider, its curves, and its trace if there is one."""
    still = img(embed(r.path), f"What excites {told(r)}") + "<p>The pictures of its course were not kept (--frames 0).</p>"
    trace = r.path.with_name(f"seed_{r.seed}_trace") / "trace.html"
    opened = f'<p><a href="t{r.t:04d}/{trace.parent.name}/trace.html">Its steps, opened up</a></p>' if trace.exists() else ""
    title = f"{escape(told(r).capitalize())}: {escape(r.verdict)}"
    return (f'<dialog id="view-{key(r)}" aria-labelledby="name-{key(r)}"><form method="dialog"><button>Close</button></form>'
            f'<h3 id="name-{key(r)}">{title}</h3><div class="viewer"><div>{film(r) if r.steps else still}{opened}</div>'
            f'<div class="charts">{curves(r)}</div></div></dialog>')
