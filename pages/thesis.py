"""The thesis' five features on one page, out/<weights>/thesis/index.html: word, image from a prompt, pictures.

Words and prompts are spelled as in Szokalski & Modrzejewski, "Deep Dreams Are Made of This", arXiv 2605.08218. They are
features of SAeUron's autoencoder of Style50: in another one the same numbers mean something else.
"""
from dataclasses import replace

from activity.capture import configure, observe
from config import SEEDS
from pages.evidence import examples_at, study
from pages.feature import SMALL, seeds, tiles
from pages.web import escape, figure, section, sharp, write_document
from results import folder_of, write
from vae import to_png
from weights.load import WeightsError

FEATURES = (
    {"feature": 14, "word": "cables", "prompt": "An Butterfly image in Pointillism style"},
    {"feature": 10204, "word": "roses", "prompt": "An Flowers image in Winter style"},
    {"feature": 10272, "word": "inward perspective", "prompt": "An Towers image in Surrealism style"},
    {"feature": 10331, "word": "human", "prompt": None},
    {"feature": 10538, "word": "foam", "prompt": "An Waterfalls image in French style"})
SOURCE = """<footer><p>The table is that of Szokalski and Modrzejewski, arXiv 2605.08218. Its numbers hold for the
autoencoder of Style50. Other weights may list their own. Nobody chose the pictures: all seeds of the best time step are
here.</p></footer>"""


def features(model):
    """Return the rows of the weights' featviz.json, "thesis": [{"feature", "word", "prompt"}], else the first five
    labels of their SAE, else the thesis' own."""
    model.require("sae")
    labelled = [{"feature": n, "word": word, "prompt": f"An image of {word}."}
                for n, word in sorted(model.labels.items())[:5]]
    rows = model.settings.get("thesis", labelled or FEATURES)
    if any(row["feature"] >= model.sae.features for row in rows):
        raise WeightsError(f"{model.folder}: has {model.sae.features} features, the thesis' are those of Style50 "
                           "(--weights weights/style50); others may list their own as \"thesis\" in featviz.json")
    return rows


def write_thesis(model, out):
    """Draw the image of each prompt that has none, from the first seed (ours: the thesis does not say which); write the
    page, and return its path."""
    folder, rows = out / model.name / "thesis", features(model)
    body = f"""<header><h1>{len(rows)} features of {escape(model.name)}, as in the thesis</h1>
<p class="lead">Left, an image from a prompt. Right, pictures made by ascent, without any prompt.</p></header>
"""
    for row in rows:
        n, prompt, picture = row["feature"], row["prompt"], folder / f"{row['feature']}.png"
        home = folder_of(out, model.name, model.hook_point, "feature", n)
        known = study(home)
        left = tiles(examples_at(known.activity, known.first.t)[:1], "feature")
        if prompt:
            if not picture.exists():
                settings = replace(configure(model), prompts=(prompt,))
                write(picture, to_png(observe(model, settings, SEEDS[:1])[0][0].cpu()))
            left = figure(sharp(picture, f"Drawn from: {prompt}", SMALL), escape(prompt))
        shown = seeds(known.groups[0], f"../{home.name}/", f"<div><h3>Prompt</h3>{left}</div>")
        body += section(f"f{n}", f'<a href="../{home.name}/index.html">Feature {n}</a>: {escape(row["word"])}', shown,
                        folded=False)
    return write_document(folder / "index.html", f"The thesis' features in {model.name}", body + SOURCE, "feature")
