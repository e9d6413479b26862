"""The thesis' five features on one page: its table of word, image from a prompt, and pictures made by ascent.

    python featviz.py --thesis      computes all of it and writes out/<weights>/thesis/index.html

The table is activity/thesis.py's. Prompts' images are drawn here: beside trace.py no other file of this room runs a
model.
"""
from activity.thesis import draw, features
from pages.evidence import groups, read_activity
from pages.feature import SMALL, seeds, tiles
from pages.web import document, escape, figure, section, sharp
from results import folder_of, read_results, write
from vae import to_png

HEAD = """<header><h1>{n} features of {name}, as in the thesis</h1>
<p class="lead">Left, an image from a prompt. Right, pictures made by ascent, without any prompt.</p></header>
"""
SOURCE = ("<footer><p>The table is that of Szokalski and Modrzejewski, arXiv 2605.08218. "
          "Its numbers hold for the autoencoder of Style50. Other weights may list their own. "
          "Nobody chose the pictures: all seeds of the best time step are here.</p></footer>")


def write_thesis(model, out):
    """Draw the image of each prompt that has none, write the page, and return its path."""
    folder, rows, body = out / model.name / "thesis", features(model), ""
    for row in rows:
        picture = folder / f"{row['feature']}.png"
        if row["prompt"] and not picture.exists():
            write(picture, to_png(draw(model, row["prompt"])))
        body += row_of(row, picture, folder_of(out, model.name, model.hook_point, "feature", row["feature"]))
    head = HEAD.format(n=len(rows), name=escape(model.name))
    write(folder / "index.html", document(f"The thesis' features in {model.name}", head + body + SOURCE,
                                          "feature").encode())
    return folder / "index.html"


def row_of(row, picture, home):
    """One feature: its word, the image from its prompt or a dataset image, and its pictures."""
    shown, activity = groups(read_results(home))[0], read_activity(home)
    if row["prompt"]:
        left = figure(sharp(picture, f"Drawn from: {row['prompt']}", SMALL), escape(row["prompt"]))
    else:
        left = tiles(activity.shown(shown[0].t)[:1], "feature") if activity else ""
    left = f"<div><h3>Prompt</h3>{left}</div>" if left else ""
    title = f'<a href="../{home.name}/index.html">Feature {row["feature"]}</a>: {escape(row["word"])}'
    return section(f"f{row['feature']}", title, seeds(shown, f"../{home.name}/", left))
