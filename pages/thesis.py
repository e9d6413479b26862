"""The thesis' five features on one page: its table of word, image from a prompt, and pictures made by ascent.

    python featviz.py --thesis      computes all of it and writes out/<weights>/thesis/index.html

The table is activity/thesis.py's. Prompts' images are drawn here: beside trace.py no other file of this room runs a
model.
"""
import io

from PIL import Image

from activity.thesis import draw, features
from pages.evidence import groups, read_activity
from pages.feature import SMALL, example, seeds
from pages.web import document, escape, figure, section, sharp
from results import folder_of, read_results, write
from vae import to_uint8

LEAD = "Left, an image from a prompt. Right, pictures made by ascent, without any prompt."
SOURCE = ("<footer><p>The table is that of Szokalski and Modrzejewski, arXiv 2605.08218. "
          "Its numbers hold for the autoencoder of Style50. Other weights may list their own. "
          "Nobody chose the pictures: all seeds of the best time step are here.</p></footer>")


def write_thesis(model, out):
    """Draw the image of each prompt that has none, write the page, and return its path."""
    folder, rows = out / model.name / "thesis", features(model)
    for row in rows:
        if row["prompt"] and not (folder / f"{row['feature']}.png").exists():
            file = io.BytesIO()
            Image.fromarray(to_uint8(draw(model, row["prompt"]))).save(file, format="PNG")
            write(folder / f"{row['feature']}.png", file.getvalue())
    body = [f"<header><h1>{len(rows)} features of {escape(model.name)}, as in the thesis</h1>"
            f'<p class="lead">{LEAD}</p></header>']
    for row in rows:
        body.append(row_of(row, folder, folder_of(out, model.name, model.hook_point, "feature", row["feature"])))
    title = f"The thesis' features in {model.name}"
    write(folder / "index.html", document(title, "\n".join(body) + SOURCE, "feature").encode())
    return folder / "index.html"


def row_of(row, folder, home):
    """One feature: its word, the image from its prompt or a dataset image, and its pictures."""
    found, activity, picture = read_results(home), read_activity(home), folder / f"{row['feature']}.png"
    shown = groups(found)[0] if found else []
    title = f'<a href="../{home.name}/index.html">Feature {row["feature"]}</a>: {escape(row["word"])}'
    if row["prompt"] and picture.exists():
        drawn = figure(sharp(picture, f"Drawn from: {row['prompt']}", SMALL), escape(row["prompt"]))
    else:
        known = activity.shown(shown[0].t)[:1] if activity and shown else []
        drawn = "".join(example(e, "feature") for e in known)
    left = f"<div><h3>Prompt</h3>{drawn}</div>" if drawn else ""
    return section(f"f{row['feature']}", title, seeds(shown, f"../{home.name}/", left))
