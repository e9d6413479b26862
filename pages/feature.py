"""The page of a feature: what it responds to, how strong the evidence is, its pictures; all else is folded.

    python -m pages out/toy/feature_00169      writes index.html there; featviz.py does it at the end of a run

One file that opens from disk: pictures are embedded, and there is no script. Every value is read from the files beside
the page (results.py, evidence.py).
"""
from pathlib import Path

from pages.evidence import gain, groups, study
from pages.table import HEAD, SCORES, lines
from pages.web import (
    NARROW, WIDE, bars, chart, checks, document, escape, figure, folded, player, section, sharp, table, term)
from pages.words import RULE, TERMS, VERDICTS, commands, count, label, reason, short, typed
from results import folder_of, read_results, write

EXAMPLES = 6                        # dataset images beside the best picture
SMALL, LARGE = (128, 128), (384, 320)       # CSS pixels of a picture on a desk and on a phone
CURVES = {"gradient_norm": "Length of the gradient", "update_norm": "Length of the update",
          "total_variation": "Penalty: total variation", "range": "Penalty: range",
          "moment": "Penalty: mean and deviation"}
PAIR = ("<p>Left, what the model makes of it. Right, the ascent, from the {kind} alone. "
        "Compare both: the model may add things.</p>")


def write_page(folder, others=()):
    """Write folder/index.html and return its path.

    others  names of the folders beside it that will have a page; with several of them there will be an atlas
    """
    folder = Path(folder)
    found = read_results(folder)
    if not found:
        raise ValueError(f"{folder}: holds no finished result; make one with python featviz.py")
    write(folder / "index.html", page(folder, found, others).encode("utf-8"))
    return folder / "index.html"


def page(folder, found, others):
    """Build the whole page from the results of a folder."""
    (shown, *rest), (_, activity, evidence) = groups(found), study(folder, found)
    first = shown[0]
    name = f"{first.kind.capitalize()} {first.target}"
    body = [header(folder, name, first, len(others) > 1), warning(found),
            headline(name, evidence), hero(first, activity),
            section("seeds", "Other seeds: what changes, it does not care about", seeds(shown[1:])),
            folded("when", "When it is active", when(activity) if activity else ""),
            folded("card", "How often it is active, and its neighbours", card(folder, first, activity, others)),
            folded("more", "Other time steps and settings", *(group(results) for results in rest)),
            folded("examples", "All dataset images that excite it", *examples(activity)),
            folded("how", "How each picture came about", *(course(r) for results in (shown, *rest) for r in results)),
            folded("scores", "All scores", scores([r for results in (shown, *rest) for r in results])),
            folded("beside", "What else its picture excites", beside(folder, first, others)),
            folded("again", "Make it again", f"<pre><code>{escape(chr(10).join(commands(found)))}</code></pre>"),
            folded("settings", "All settings and fingerprints", settings(first)),
            footer(first)]
    return document(f"{name} of {first.recipe['weights']}", "\n".join(filter(None, body)), "feature")


def key(r):
    """The end of a result's ids on the page."""
    return f"{r.folder}-s{r.seed}"


def word(name, kind, text=None):
    """Show a term with its meaning on hover and tap."""
    return term(text or name, TERMS[name].format(kind=kind))


# --- what is seen at once ---------------------------------------------------------------------------------------------

def header(folder, name, first, atlas):
    """The way back to the atlas, and which model this is."""
    back = f'<a href="../index.html#sort=number">← All of {escape(first.recipe["weights"])}</a> ' \
        if atlas or (folder.parent / "index.html").exists() else ""
    return (f'<nav>{back}<span class="soft">{escape(name)} at {word("hook point", first.kind)} '
            f'{escape(first.recipe["hook_point"])}</span></nav>')


def warning(found):
    """The warning of the fit check that was saved with the results."""
    said = dict.fromkeys(r.fit for r in found if r.fit)
    return "".join(f'<p class="warning" role="alert">{escape(text)}</p>' for text in said)


def headline(name, evidence):
    """One sentence: what the feature responds to, and how strong the evidence is; below it the checks."""
    says = evidence.sentence(escape(name), f"<b>{escape(evidence.words)}</b>")
    source = f"<p>The words come from {escape(evidence.source)}.</p>" if evidence.words else ""
    said = checks([(escape(text).replace("agreement", term("agreement", TERMS["agreement"])), holds)
                   for text, holds in evidence.checks])
    return f'<header><h1>{says}.</h1><ul class="checks">{said}</ul>{source}</header>'


def hero(first, activity):
    """The best result's pictures, and beside them the dataset images that excite the feature most."""
    known = activity.shown(first.t)[:EXAMPLES] if activity else []
    unusual = f"<p>Settings: <code>{escape(typed(first))}</code></p>" if typed(first) else ""
    made = (f'<div><h2>Made to excite it</h2>{pair(first)}{PAIR.format(kind=first.kind) if first.finished else ""}'
            f"<p>{word('seed', first.kind, 'Seed')} {first.seed}, {word('time step', first.kind)} {first.t}. "
            f'{term("How it was chosen", RULE)}</p>{unusual}</div>')
    if not known:
        return f'<section id="best">{made}</section>'
    title = f"{word('dataset image', first.kind, 'Dataset images')} that excite it most"
    tiles = "".join(example(e, first.kind) for e in known)
    dead = "" if activity.card.get("alive", True) else "<p><b>It is dead: no dataset image activates it.</b></p>"
    return f'<section id="best">{made}<div><h2>{title}</h2>{dead}<div class="tiles">{tiles}</div></div></section>'


def pair(r, sizes=(WIDE, NARROW), home=""):
    """The finished picture and the ascent's beside it, each with its own link, verdict, numbers, and sound.

    home  the address of the feature's folder, where the page is another one
    """
    both = [("finished", r.finished)] * bool(r.finished) + [("ascent", r)]
    return f'<div class="pair">{"".join(tile(name, p, home, sizes) for name, p in both)}</div>'


def tile(name, picture, home, sizes):
    """One picture as a link to how it came about, its sound, and its verdict."""
    what = "Finished picture" if name == "finished" else "Ascent's picture"
    link = f"{home}{'index.html' * bool(home)}#{name}-{key(picture)}"
    image = sharp(picture.path, f"{what} of {label(picture)}: {picture.verdict}", sizes)
    sound = player(picture.path.with_suffix(".wav"), f"{home}{picture.folder}/", f"Sound of the {name} picture")
    numbers = [f'{word("activation", picture.kind)} {short(picture.scores.get("activation_start"))} to '
               f'{short(picture.scores.get("activation"))}',
               f'{word("rank", picture.kind)} {short(picture.scores.get("rank"))}']
    if times := gain(picture):
        numbers.append(f"{short(times)} times the strongest dataset image")
    verdict = term(picture.verdict, VERDICTS.get(picture.verdict.partition(" ")[0], ""))
    return figure(f'<a href="{escape(link)}">{image}</a>{sound}',
                  f"<b>{word(name, picture.kind, name.capitalize())}: {verdict}</b>", ", ".join(numbers),
                  escape(reason(picture)).replace("Re-encoded", term("Re-encoded", TERMS["re-encoded"])))


def example(e, kind):
    """A dataset image with its prompt."""
    return figure(sharp(e.file, f"Dataset image: {e.prompt}", SMALL), escape(e.prompt),
                  f'{word("activation", kind)} {short(e.activation)}')


def seeds(results, home="", first=""):
    """Results of one time step side by side, small. `first`: HTML to the left of them."""
    tiles = first + "".join(f'<div><h3>Seed {r.seed}</h3>{pair(r, SMALL, home)}</div>' for r in results)
    return f'<div class="seeds">{tiles}</div>' if tiles else ""


# --- folded -----------------------------------------------------------------------------------------------------------

def when(activity):
    """Two curves over the time steps, the peaks of the first marked."""
    share = f"Share of {activity.images} images with it among the {activity.top} strongest"
    charts = ""
    for title, curve, marks in ((share, activity.profile, activity.peaks),
                                ("Largest activation in any of them", activity.strength, ())):
        where = f"; peaks at {', '.join(map(str, marks))}" if marks else ""
        drawn = chart(curve, f"{title}, by time step{where}", len(curve) - 1, 480, 160, marks)
        charts += figure(drawn, f"<b>{title}</b>", "Across: the time step. Noise grows to the right.")
    never = "" if activity.active else f"<p>It is never among the {activity.top} strongest.</p>"
    return f'{never}<div class="charts">{charts}</div>'


def card(folder, first, activity, others):
    """How often and how strongly it is active in the dataset, and which features are near it (activity/card.py)."""
    known = activity.card if activity else {}
    if not known:
        return ""
    said = f"Its largest mean activation is {short(known['largest'])}, at time step {known['timestep']}."
    if known["gated"] is not None:
        said += f" The autoencoder's gate leaves {short(known['gated'])}."
    if known["active"] is not None:
        said += f" It is active in {known['active']} of {known['images']} images."
    rows = [(f"{short(low)} to {short(high)}" if high else "0", count(n, "image"), n, False)
            for low, high, n in known["histogram"]]
    near = ", ".join(f"{linked(folder, first, first.kind, n, others)} ({cosine:.2f})" for n, cosine in known["nearest"])
    both = ", ".join(f"{linked(folder, first, first.kind, n, others)} ({shared} of {known['examples']})"
                     for n, shared in known["together"])
    return "".join([f"<p>{said}</p>", f"<p>Images by their largest mean activation:</p>{bars(rows)}" if rows else "",
                    f"<p>Nearest directions, with their cosine; 1 is the same: {near}.</p>" if near else "",
                    f"<p>Active together, by shared strongest images: {both}.</p>" if both else ""])


def group(results):
    """Results of another time step or other settings."""
    head = f"Time step {results[0].t}" + (f", {typed(results[0])}" if typed(results[0]) else "")
    return f"<h3>{escape(head)}</h3>{seeds(results)}"


def examples(activity):
    """The dataset images at each time step that has some."""
    for t, known in sorted(activity.examples.items()) if activity else ():
        peak = ", a peak of its activity" if t in activity.peaks else ""
        tiles = "".join(example(e, "feature") for e in known)
        if tiles:
            yield f'<h3>Time step {t}{peak}</h3><div class="tiles">{tiles}</div>'


def course(r):
    """How one result came about: both pictures large, the film of the ascent, every curve."""
    curves, made, trace = r.curves(), "", f"{r.folder}/seed_{r.seed}_trace/trace.html"
    total = len(curves["history"].get("activation", []))
    values = [r.scores.get("activation_start"), *curves["history"].get("activation", [])[1:],
              r.scores.get("activation")]
    charts = plot(values, "Activation after each step", r, total, [n for n in r.steps if n <= total])
    charts += "".join(plot([*curves["history"][name], None], title, r, total) for name, title in CURVES.items()
                      if any(curves["history"].get(name, [])))
    if r.finished:
        pulled = r.finished.curves()["history"].get("activation", [])
        made += large("finished", r.finished)
        charts += plot(pulled, "Activation at each step of the finish", r, len(pulled)) if pulled else ""
    made += large("ascent", r)
    more = f'<p><a href="{trace}">Its trace: every stage of a step</a></p>' \
        if (r.path.parents[1] / trace).exists() else ""
    return (f'<article><h3>{escape(label(r).capitalize())}</h3><div class="pair">{made}</div>{film(r, values)}'
            f'{more}<div class="charts">{charts}</div></article>')


def plot(values, title, r, most, marks=()):
    return figure(chart(values, f"{title}, {label(r)}", most, 360, 120, marks), f"<b>{title}</b>")


def large(name, picture):
    """A picture at full size."""
    image = sharp(picture.path, f"{name.capitalize()} picture of {label(picture)}, large", LARGE)
    said = f"<b>{word(name, picture.kind, name.capitalize())}: {escape(picture.verdict)}</b>"
    return (f'<figure id="{name}-{key(picture)}">{image}'
            f"<figcaption>{said}<br>{escape(reason(picture))}</figcaption></figure>")


def film(r, values):
    """The kept pictures of the ascent, each with its step and activation."""
    if not r.strip:
        return "<p>Pictures of its course were not kept (--frames 0).</p>"
    tiles = "".join(figure(sharp(r.frame(k), f"After step {n} of {label(r)}", SMALL), f"step {n}",
                           f"{word('activation', r.kind)} {short(values[n] if n < len(values) else None)}")
                    for k, n in enumerate(r.steps))
    sound = player(r.path.with_suffix(".start.wav"), f"{r.folder}/", "Sound of the start")
    return f'<h4>Its course</h4>{sound}<div class="tiles">{tiles}</div>'


def scores(found):
    """The numbers of every picture."""
    rows = ([*line[:-len(SCORES)], *map(short, line[-len(SCORES):])] for line in lines(found))
    return table([name.replace("_", " ") for name in HEAD], rows, "Scores")


def beside(folder, r, others):
    """What else the picture to look at excites, as bars; a feature that has a page is a link."""
    if not r.last.others:
        return ""
    order = sorted([*r.last.others, (r.target, r.last.scores["activation"])], key=lambda entry: -(entry[1] or 0))
    kind = "feature" if r.kind == "feature" else "channel"
    rows = [(escape(f"{r.kind} {n}") if n == r.target else linked(folder, r, kind, n, others), short(a), a or 0,
             n == r.target) for n, a in order]
    raised = "" if r.nearest_channel is None else \
        f" Its direction raises {linked(folder, r, 'channel', r.nearest_channel, others)} most."
    return f"{bars(rows)}<p>Measured in the picture of time step {r.t}, seed {r.seed}.{raised}</p>"


def linked(folder, r, kind, number, others):
    """A feature's or channel's number, as a link where it has a page."""
    name = folder_of("", r.recipe["weights"], r.recipe["hook_point"], kind, number).name
    there = name != folder.name and (name in others or (folder.parent / name / "index.html").exists())
    return f'<a href="../{escape(name)}/index.html">{kind} {number}</a>' if there else f"{kind} {number}"


def settings(first):
    """The recipe of the best result: every setting, and the fingerprint of every file of the weights."""
    recipe = first.recipe
    plain = sorted((name, value) for name, value in recipe.items() if not isinstance(value, dict))
    prints = [(name, f"sha256 {value}") for name, value in sorted(recipe["fingerprints"].items())]
    return table((), [*plain, *sorted(recipe["config"].items()), *prints], "Settings")


def footer(first):
    weights = escape(first.recipe["weights"])
    return (f"<footer><p>Made by <code>python -m pages</code> from the files beside it. "
            f"Model: {weights}. Nobody chose the pictures; all results are here.</p></footer>")
