"""The page of a feature, out/toy/feature_00169/index.html: what it responds to, how surely, its pictures.

One file that opens from disk: pictures are embedded, and there is no script. Every value is read from the files beside.
"""
from pages.evidence import ends, examples_at, gain, sentence, study
from pages.web import (TEXTS, bars, chart, checks, command, count, escape, figure, label, meaning, player, reason,
                       section, sharp, short, table, term, typed, write_document)
from results import folder_of

BEST, SMALL, LARGE = (256, 160), (128, 128), (384, 320)         # CSS pixels of a picture on a desk and on a phone


def write_page(folder, atlas=False):
    """Write folder/index.html and return its path; `atlas`: whether there will be one. ValueError without a result."""
    known = study(folder)
    if not known:
        raise ValueError(f"{folder}: holds no finished result; make one with python featviz.py")
    first, (best, *others), recipe = known.first, known.groups, known.first.recipe
    again = "\n".join(command(group[0].recipe, [group[0].t], [r.seed for r in group]) for group in known.groups)
    settings = [(name, value) for name, value in sorted((recipe | recipe["config"] | recipe["fingerprints"]).items())
                if not isinstance(value, dict)]
    body = [head(known, atlas), hero(known),
            section("seeds", "Other seeds: what changes, it does not care about", seeds(best[1:]), folded=False),
            section("card", "When and how often it is active, and its neighbours", known.activity and card(known)),
            section("more", "Other time steps and settings",
                    *(f"<h3>Time step {group[0].t} {escape(typed(group[0].recipe))}</h3>{seeds(group)}"
                      for group in others)),
            section("examples", "All dataset images that excite it", known.activity and examples(known.activity)),
            section("how", "How each picture came about", *(course(r) for group in known.groups for r in group)),
            section("again", "Make it again", f"<pre><code>{escape(again)}</code></pre>"),
            section("settings", "All settings and fingerprints", table(("setting", "value"), settings, "Settings")),
            f"<footer><p>{TEXTS['footer'].format(weights=escape(recipe['weights']))}</p></footer>"]
    title = f"{first.kind.capitalize()} {first.target} of {recipe['weights']}"
    return write_document(folder / "index.html", title, "\n".join(filter(None, body)), "feature")


def word(name, kind, text=None):
    return term(text or name, TEXTS["terms"][name].format(kind=kind))


def head(known, atlas):
    """Build the links, the fit check's warning, the sentence of what the feature responds to, and its checks."""
    first, kind = known.first, known.first.kind
    name = escape(f"{kind.capitalize()} {first.target}")
    back = f'<a href="../index.html#sort=number">← All of {escape(first.recipe["weights"])}</a> ' \
        if atlas or (known.folder.parent / "index.html").exists() else ""
    place = f'{name} at {word("hook point", kind)} {escape(first.recipe["hook_point"])}'
    warnings = "".join(f'<p class="warning" role="alert">{escape(text)}</p>\n'
                       for text in dict.fromkeys(r.fit for group in known.groups for r in group if r.fit))
    says = sentence(known, name, known.words and f"<b>{escape(known.words)}</b>")
    source = f"<p>The words come from {escape(known.source)}.</p>" if known.words else ""
    said = checks(known.checks).replace("agreement", word("agreement", kind))
    return (f'<nav>{back}<span class="soft">{place}</span></nav>\n{warnings}'
            f'<header><h1>{says}.</h1><ul class="checks">{said}</ul>{source}</header>')


def hero(known):
    """Show the best result's pictures, and beside them the dataset images that excite the feature most."""
    first, kind, unusual = known.first, known.first.kind, typed(known.first.recipe)
    unusual = f"<p>Settings: <code>{escape(unusual)}</code></p>" if unusual else ""
    both = f"<p>{TEXTS['pair'].format(kind=kind)}</p>" if first.finished else ""
    made = (f'<div><h2>Made to excite it</h2>{pair(first)}{both}'
            f"<p>{word('seed', kind, 'Seed')} {first.seed}, {word('time step', kind)} {first.t}. "
            f'{term("How it was chosen", TEXTS["rule"])}</p>{unusual}</div>')
    if shown := examples_at(known.activity, first.t)[:6]:
        dead = "" if known.activity.card["alive"] else "<p><b>It is dead: no dataset image activates it.</b></p>"
        made += (f"<div><h2>{word('dataset image', kind, 'Dataset images')} that excite it most</h2>{dead}"
                 f"{tiles(shown, kind)}</div>")
    return f'<section id="best">{made}</section>'


def pair(r, sizes=BEST, home=""):
    """Show the finished picture and the ascent's beside it, each with its sound, its verdict and why, its numbers.
    Smaller ones than LARGE link to those. `home`: address of the feature's folder, where the page is another one."""
    both, kind = "", r.kind
    for name, p in reversed(ends(r).items()):
        key = escape(f"{name}-{r.folder}-s{r.seed}")
        what = {"finished": "Finished", "ascent": "Ascent's"}[name]
        shown, look = sharp(p.path, f"{what} picture of {label(r)}: {p.verdict}", sizes), f'id="{key}"'
        if sizes is not LARGE:
            sound = player(p.path.with_suffix(".wav"), home, f"Sound of the {name} picture")
            shown, look = f'<a href="{escape(home and home + "index.html")}#{key}">{shown}</a>{sound}', ""
        start, end, rank = (short(p.scores.get(score)) for score in ("activation_start", "activation", "rank"))
        compared = f", {short(times)} times the strongest dataset image" if (times := gain(p)) else ""
        both += figure(shown, f"<b>{word(name, kind, name.capitalize())}: {term(p.verdict, meaning(p))}</b>",
                       f"{word('activation', kind)} {start} to {end}, {word('rank', kind)} {rank}{compared}",
                       escape(reason(p)).replace("Re-encoded", word("re-encoded", kind, "Re-encoded")), look=look)
    return f'<div class="pair">{both}</div>'


def tiles(shown, kind):
    images = "".join(figure(sharp(e["file"], f"Dataset image: {e['prompt']}", SMALL), escape(e["prompt"]),
                            f'{word("activation", kind)} {short(e["activation"])}') for e in shown)
    return f'<div class="tiles">{images}</div>'


def seeds(results, home="", left=""):
    """Show results of one time step side by side, small; `left`: HTML before them."""
    shown = left + "".join(f'<div><h3>Seed {r.seed}</h3>{pair(r, SMALL, home)}</div>' for r in results)
    return f'<div class="seeds">{shown}</div>' if shown else ""


def charts(curves, what):
    """Draw [(title, values, marks)] side by side; `what`: said of them to a screen reader."""
    drawn = "".join(figure(chart(values, f"{title}, {what}", marks=marks), f"<b>{title}</b>")
                    for title, values, marks in curves)
    return f'<div class="charts">{drawn}</div>'


def card(known):
    """Show when, how often and how strongly it is active in the dataset, and what is near it."""
    activity, first, shown = known.activity, known.first, known.activity.card

    def link(number):
        name = folder_of("", first.recipe["weights"], first.recipe["hook_point"], first.kind, number).name
        text, there = f"{first.kind} {number}", (known.folder.parent / name).is_dir()
        return f'<a href="../{escape(name)}/index.html">{text}</a>' if there else text

    share = f"Share of {activity.images} images with it among the {activity.top} strongest"
    marked = f"; peaks at {', '.join(map(str, activity.peaks))}" if activity.peaks else ""
    curves = [(share, activity.profile, activity.peaks), ("Largest activation in any of them", activity.strength, ())]
    rows = [(f"{short(low)} to {short(high)}" if high else "0", count(n, "image"), n, False)
            for low, high, n in shown["histogram"]]
    gated = "" if shown["gated"] is None else f" The autoencoder's gate leaves {short(shown['gated'])}."
    said = (f"{charts(curves, f'by time step{marked}')}<p>{TEXTS['across']}</p>"
            f"<p>Its largest mean activation is {short(shown['largest'])}, at time step {shown['timestep']}.{gated}"
            f" It is active in {shown['active']} of {shown['images']} images.</p>"
            f"<p>Images by their largest mean activation:</p>{bars(rows)}")
    near = {"Nearest directions, with their cosine; 1 is the same":
                [(n, f"{cosine:.2f}") for n, cosine in shown["nearest"]],
            "Active together, by shared strongest images":
                [(n, f"{shared} of {shown['examples']}") for n, shared in shown["together"]],
            "Excited by its picture, too": [(n, short(a)) for n, a in first.last.others]}
    for title, found in near.items():
        links = ", ".join(f"{link(n)} ({number})" for n, number in found)
        said += f"<p>{title}: {links}.</p>" if found else ""
    return said


def examples(activity):
    peak = {t: ", a peak of its activity" for t in activity.peaks}
    return "".join(f"<h3>Time step {t}{peak.get(t, '')}</h3>{tiles(shown, 'feature')}"
                   for t, shown in sorted(activity.examples.items()) if shown)


def course(r):
    """Show how one result came about: both pictures large, the kept pictures of the ascent, every curve."""
    history, trace = r.curves()["history"], f"{r.folder}/seed_{r.seed}_trace/trace.html"
    values = [r.scores["activation_start"], *history["activation"][1:], r.scores["activation"]]
    curves = [("Activation after each step", values, r.steps)]
    curves += [(title, [*history[name], None], ()) for name, title in TEXTS["curves"].items()
               if any(history.get(name, []))]
    if r.finished:
        curves.append(("Activation at each step of the finish", r.finished.curves()["history"]["activation"], ()))
    film = "".join(figure(sharp(r.frame(k), f"After step {n} of {label(r)}", SMALL), f"step {n}",
                          f"{word('activation', r.kind)} {short(values[n])}") for k, n in enumerate(r.steps))
    sound = player(r.path.with_suffix(".start.wav"), "", "Sound of the start")
    film = f'<h4>Its course</h4>{sound}<div class="tiles">{film}</div>' if film else \
        "<p>Pictures of its course were not kept (--frames 0).</p>"
    if (r.path.parents[1] / trace).exists():
        film += f'<p><a href="{trace}">Its trace: every stage of a step</a></p>'
    title = escape(label(r).capitalize())
    return f"<article><h3>{title}</h3>{pair(r, LARGE)}{film}{charts(curves, label(r))}</article>"
