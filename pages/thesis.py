"""The thesis' five features on one page: its table of word, image from a prompt, and pictures made by ascent.

    python featviz.py --thesis      computes all of it and writes out/<weights>/thesis/index.html

The table is activity/thesis.py's. Prompts' images are drawn here.
"""
from activity.thesis import draw, features
from pages.evidence import examples_at, study
from pages.feature import SMALL, seeds, tiles
from pages.web import document, escape, figure, section, sharp
from results import folder_of, read_results, write
from vae import to_png

HEAD = """<header><h1>{n} features of {name}, as in the thesis</h1>
<p class="lead">Left, an image from a prompt. Right, pictures made by ascent, without any prompt.</p></header>
"""
SOURCE = """<footer><p>The table is that of Szokalski and Modrzejewski, arXiv 2605.08218. Its numbers hold for the
autoencoder of Style50. Other weights may list their own. Nobody chose the pictures: all seeds of the best time step are
here.</p></footer>"""


def write_thesis(model, out):
    """Draw the image of each prompt that has none, write the page, and return its path."""
    folder, rows = out / model.name / "thesis", features(model)
    body = HEAD.format(n=len(rows), name=escape(model.name))
    for row in rows:
        n, prompt, picture = row["feature"], row["prompt"], folder / f"{row['feature']}.png"
        home = folder_of(out, model.name, model.hook_point, "feature", n)
        known = study(home, read_results(home))
        left = tiles(examples_at(known.activity, known.first.t)[:1], "feature")
        if prompt:
            if not picture.exists():
                write(picture, to_png(draw(model, prompt)))
            left = figure(sharp(picture, f"Drawn from: {prompt}", SMALL), escape(prompt))
        shown = seeds(known.groups[0], f"../{home.name}/", f"<div><h3>Prompt</h3>{left}</div>")
        body += section(f"f{n}", f'<a href="../{home.name}/index.html">Feature {n}</a>: {escape(row["word"])}', shown,
                        folded=False)
    title = f"The thesis' features in {model.name}"
    write(folder / "index.html", document(title, body + SOURCE, "feature").encode())
    return folder / "index.html"
