"""The page of a feature: what it responds to, how strong the evidence is, its pictures; all else is folded.

    python -m pages out/toy/feature_00169      writes index.html there; featviz.py does it at the end of a run

One file that opens from disk: pictures are embedded, and there is no script. Every value is read from the files beside
the page (results.py, evidence.py).
"""
from pathlib import Path

from pages.evidence import examples_at, gain, sentence, study
from pages.web import (TEXTS, bars, chart, checks, command, count, document, escape, figure, label, meaning, player,
                       reason, section, sharp, short, table, term, typed)
from results import folder_of, read_results, write

EXAMPLES = 6                        # dataset images beside the best picture
BEST, SMALL, LARGE = (256, 160), (128, 128), (384, 320)         # CSS pixels of a picture on a desk and on a phone


def write_page(folder, atlas=False):
    """Write folder/index.html and return its path; `atlas`: whether there will be one. ValueError without a result."""
    folder = Path(folder)
    found = read_results(folder)
    if not found:
        raise ValueError(f"{folder}: holds no finished result; make one with python featviz.py")
    known = study(folder, found)
    grouped, first, activity, recipe = known.groups, known.first, known.activity, known.first.recipe
    again = "\n".join(command(group[0].recipe, [group[0].t], [r.seed for r in group]) for group in grouped)
    settings = [(name, value) for name, value in sorted((recipe | recipe["config"] | recipe["fingerprints"]).items())
                if not isinstance(value, dict)]
    body = [head(folder, known, atlas), hero(first, activity),
            section("seeds", "Other seeds: what changes, it does not care about", seeds(grouped[0][1:]),
                    folded=False),
            section("when", "When it is active", activity and when(activity)),
            section("card", "How often it is active, and its neighbours", activity and card(folder, first, activity)),
            section("more", "Other time steps and settings",
                    *(f"<h3>Time step {group[0].t} {escape(typed(group[0].recipe))}</h3>{seeds(group)}"
                      for group in grouped[1:])),
            section("examples", "All dataset images that excite it", activity and examples(activity)),
            section("how", "How each picture came about", *(course(r) for group in grouped for r in group)),
            section("again", "Make it again", f"<pre><code>{escape(again)}</code></pre>"),
            section("settings", "All settings and fingerprints", table((), settings, "Settings")),
            f"<footer><p>{TEXTS['footer'].format(weights=escape(recipe['weights']))}</p></footer>"]
    title = f"{first.kind.capitalize()} {first.target} of {recipe['weights']}"
    write(folder / "index.html", document(title, "\n".join(filter(None, body)), "feature").encode("utf-8"))
    return folder / "index.html"


def word(name, kind, text=None):
    """Show a term with its meaning on hover and tap."""
    return term(text or name, TEXTS["terms"][name].format(kind=kind))


def head(folder, known, atlas):
    """Links, the fit check's warning, and what the feature responds to in one sentence; below it the checks."""
    first, kind = known.first, known.first.kind
    name = escape(f"{kind.capitalize()} {first.target}")
    back = f'<a href="../index.html#sort=number">← All of {escape(first.recipe["weights"])}</a> ' \
        if atlas or (folder.parent / "index.html").exists() else ""
    place = f'{name} at {word("hook point", kind)} {escape(first.recipe["hook_point"])}'
    warnings = "".join(f'<p class="warning" role="alert">{escape(text)}</p>\n'
                       for text in dict.fromkeys(r.fit for group in known.groups for r in group if r.fit))
    says = sentence(known, name, known.words and f"<b>{escape(known.words)}</b>")
    source = f"<p>The words come from {escape(known.source)}.</p>" if known.words else ""
    said = checks([(escape(text).replace("agreement", word("agreement", kind)), holds)
                   for text, holds in known.checks])
    return (f'<nav>{back}<span class="soft">{place}</span></nav>\n{warnings}'
            f'<header><h1>{says}.</h1><ul class="checks">{said}</ul>{source}</header>')


def hero(first, activity):
    """The best result's pictures, and beside them the dataset images that excite the feature most."""
    kind, unusual = first.kind, typed(first.recipe)
    unusual = f"<p>Settings: <code>{escape(unusual)}</code></p>" if unusual else ""
    both = f"<p>{TEXTS['pair'].format(kind=kind)}</p>" if first.finished else ""
    made = (f'<div><h2>Made to excite it</h2>{pair(first)}{both}'
            f"<p>{word('seed', kind, 'Seed')} {first.seed}, {word('time step', kind)} {first.t}. "
            f'{term("How it was chosen", TEXTS["rule"])}</p>{unusual}</div>')
    if known := examples_at(activity, first.t)[:EXAMPLES]:
        dead = "" if activity.card["alive"] else "<p><b>It is dead: no dataset image activates it.</b></p>"
        made += (f"<div><h2>{word('dataset image', kind, 'Dataset images')} that excite it most</h2>{dead}"
                 f"{tiles(known, kind)}</div>")
    return f'<section id="best">{made}</section>'


def pair(r, sizes=BEST, home=""):
    """Show the finished picture and the ascent's beside it, each with its verdict, numbers and sound.

    sizes  (on a desk, on a phone); links of the others lead to the LARGE ones
    home   address of the feature's folder, where the page is another one
    """
    both = ""
    for name, what, picture in (("finished", "Finished", r.finished), ("ascent", "Ascent's", r)):
        if picture:
            key = f"{name}-{r.folder}-s{r.seed}"
            shown = sharp(picture.path, f"{what} picture of {label(r)}: {picture.verdict}", sizes)
            if sizes is not LARGE:
                sound = picture.path.with_suffix(".wav")
                shown = (f'<a href="{escape(home and home + "index.html")}#{escape(key)}">{shown}</a>'
                         f'{player(sound, f"{home}{r.folder}/", f"Sound of the {name} picture")}')
            both += figure(shown, *caption(name, picture), look=f'id="{key}"' if sizes is LARGE else "")
    return f'<div class="pair">{both}</div>'


def caption(name, picture):
    """Say a picture's verdict, its numbers, and the reason of the verdict, a line each."""
    kind, start, end, rank = picture.kind, *(
        short(picture.scores.get(score)) for score in ("activation_start", "activation", "rank"))
    times = gain(picture)
    compared = f", {short(times)} times the strongest dataset image" if times else ""
    verdict = term(picture.verdict, meaning(picture))
    return (f"<b>{word(name, kind, name.capitalize())}: {verdict}</b>",
            f"{word('activation', kind)} {start} to {end}, {word('rank', kind)} {rank}{compared}",
            escape(reason(picture)).replace("Re-encoded", word("re-encoded", kind, "Re-encoded")))


def tiles(known, kind):
    """Show dataset images with their prompts."""
    shown = "".join(figure(sharp(e["file"], f"Dataset image: {e['prompt']}", SMALL), escape(e["prompt"]),
                           f'{word("activation", kind)} {short(e["activation"])}') for e in known)
    return f'<div class="tiles">{shown}</div>'


def seeds(results, home="", left=""):
    """Show results of one time step side by side, small; `left`: HTML before them."""
    shown = left + "".join(f'<div><h3>Seed {r.seed}</h3>{pair(r, SMALL, home)}</div>' for r in results)
    return f'<div class="seeds">{shown}</div>' if shown else ""


def when(activity):
    """Two curves over the time steps, the peaks of the first marked."""
    share = f"Share of {activity.images} images with it among the {activity.top} strongest"
    marked = f"; peaks at {', '.join(map(str, activity.peaks))}" if activity.peaks else ""
    curves = [(share, activity.profile, activity.peaks), ("Largest activation in any of them", activity.strength, ())]
    return charts(curves, f"by time step{marked}", 480, 160, TEXTS["across"])


def charts(curves, what, width=360, height=120, below=""):
    """Draw [(title, values, marks)] side by side; `what`: said of them to a screen reader."""
    drawn = "".join(figure(chart(values, f"{title}, {what}", width, height, marks),
                           f"<b>{title}</b>", below) for title, values, marks in curves)
    return f'<div class="charts">{drawn}</div>'


def card(folder, first, activity):
    """How often and how strongly it is active in the dataset, and which features are near it (activity/analysis.py)."""
    known = activity.card
    said = f"<p>Its largest mean activation is {short(known['largest'])}, at time step {known['timestep']}."
    if known["gated"] is not None:
        said += f" The autoencoder's gate leaves {short(known['gated'])}."
    rows = [(f"{short(low)} to {short(high)}" if high else "0", count(n, "image"), n, False)
            for low, high, n in known["histogram"]]
    said += (f" It is active in {known['active']} of {known['images']} images.</p>"
             f"<p>Images by their largest mean activation:</p>{bars(rows)}")
    near = [(n, f"{cosine:.2f}") for n, cosine in known["nearest"]]
    both = [(n, f"{shared} of {known['examples']}") for n, shared in known["together"]]
    too = [(n, short(a)) for n, a in first.last.others]
    for title, found in (("Nearest directions, with their cosine; 1 is the same", near),
                         ("Active together, by shared strongest images", both), ("Excited by its picture, too", too)):
        links = ", ".join(f"{linked(folder, first, n)} ({number})" for n, number in found)
        said += f"<p>{title}: {links}.</p>" if found else ""
    return said


def examples(activity):
    """The dataset images at each time step that has some."""
    peak = {t: ", a peak of its activity" for t in activity.peaks}
    return "".join(f"<h3>Time step {t}{peak.get(t, '')}</h3>{tiles(known, 'feature')}"
                   for t, known in sorted(activity.examples.items()) if known)


def course(r):
    """How one result came about: both pictures large, the kept pictures of the ascent, every curve."""
    history, trace = r.curves()["history"], f"{r.folder}/seed_{r.seed}_trace/trace.html"
    values = [r.scores.get("activation_start"), *history.get("activation", [])[1:], r.scores.get("activation")]
    curves = [("Activation after each step", values, [n for n in r.steps if n < len(values)])]
    for name, title in TEXTS["curves"].items():
        if any(history.get(name, [])):
            curves.append((title, [*history[name], None], ()))
    if r.finished:
        curves.append(("Activation at each step of the finish", r.finished.curves()["history"]["activation"], ()))
    film = "".join(figure(sharp(r.frame(k), f"After step {n} of {label(r)}", SMALL), f"step {n}",
                          f"{word('activation', r.kind)} {short(values[n])}") for k, n in enumerate(r.steps))
    sound = player(r.path.with_suffix(".start.wav"), f"{r.folder}/", "Sound of the start")
    film = f'<h4>Its course</h4>{sound}<div class="tiles">{film}</div>' if film else \
        "<p>Pictures of its course were not kept (--frames 0).</p>"
    more = f'<p><a href="{trace}">Its trace: every stage of a step</a></p>' \
        if (r.path.parents[1] / trace).exists() else ""
    return (f"<article><h3>{escape(label(r).capitalize())}</h3>{pair(r, LARGE)}{film}{more}{charts(curves, label(r))}"
            "</article>")


def linked(folder, r, number):
    """Name another feature or channel, as a link to its page where it has results."""
    name = folder_of("", r.recipe["weights"], r.recipe["hook_point"], r.kind, number).name
    there = (folder.parent / name).is_dir()
    return f'<a href="../{escape(name)}/index.html">{r.kind} {number}</a>' if there else f"{r.kind} {number}"
