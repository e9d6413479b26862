"""The thesis' own features: for each its word, its example prompt, and the image that the model draws from it.

Source: Szokalski & Modrzejewski, "Deep Dreams Are Made of This", arXiv 2605.08218, table of five features; words and
prompts are spelled as there. They are features of SAeUron's autoencoder of Style50: in another one the same numbers
mean something else. Weights may list five of their own in featviz.json: "thesis": [{"feature", "word", "prompt"}].
"""
from dataclasses import replace

from activity.capture import configure, observe
from config import SEEDS
from weights.load import WeightsError

FEATURES = (
    {"feature": 14, "word": "cables", "prompt": "An Butterfly image in Pointillism style"},
    {"feature": 10204, "word": "roses", "prompt": "An Flowers image in Winter style"},
    {"feature": 10272, "word": "inward perspective", "prompt": "An Towers image in Surrealism style"},
    {"feature": 10331, "word": "human", "prompt": None},
    {"feature": 10538, "word": "foam", "prompt": "An Waterfalls image in French style"})


def features(model):
    """Return the rows of the weights' featviz.json, else the first five labels of their SAE, else the thesis' own."""
    model.require("sae")
    labelled = [{"feature": n, "word": word, "prompt": f"An image of {word}."}
                for n, word in sorted(model.labels.items())[:5]]
    rows = model.settings.get("thesis", labelled or FEATURES)
    if any(row["feature"] >= model.sae.features for row in rows):
        raise WeightsError(f"{model.folder}: has {model.sae.features} features, the thesis' are those of Style50 "
                           "(--weights weights/style50); others may list their own as \"thesis\" in featviz.json")
    return rows


def draw(model, prompt):
    """Draw the image of a prompt: (3, 8H, 8W). Its noise has the first seed (ours): the thesis does not say which."""
    return observe(model, replace(configure(model), prompts=(prompt,)), SEEDS[:1])[0][0].cpu()
