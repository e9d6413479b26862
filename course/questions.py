"""The last exercise: its questions, and how their answers are checked against what is known of the toy."""
import json
import re
from functools import cache

import torch

from config import Config, Job
from regularizers import total_variation
from visualize import assess, measure, start
from weights.load import load

NOISE = 1.8                 # total variation per deviation; white noise has 2.26, pictures of the model about 1


@cache
def known():
    """Return (the model, {feature: its row of concepts.json}) of the toy."""
    model = load()
    rows = json.loads((model.folder / "concepts.json").read_text(encoding="utf-8"))["rows"]
    return model, {row["feature"]: row for row in rows}


def asked():
    """Return (the thing to find a feature of, the feature to name): two that are not the same."""
    meanings = {n: row["meaning"][1] for n, row in known()[1].items()
                if row["meaning"] and row["meaning"][0] in ("name", "subgroup")}
    features = sorted(meanings, key=lambda n: (meanings[n], n))
    return meanings[features[len(features) // 3]], features[2 * len(features) // 3]


def fits(row, text):
    """Check whether all words of a text are in a feature's meaning, or in three names of its strongest artworks."""
    words = set(re.findall(r"\w+", text.lower()))
    within = [words <= set(re.findall(r"\w+", said.lower())) for said in
              [row["meaning"][1] if row["meaning"] else "", *(label.rsplit(", ", 1)[0] for label in row["strongest"])]]
    return bool(words) and (within[0] or sum(within[1:]) >= 3)


def check_answers(functions):
    """Return "" where all three answers are right, else one sentence."""
    model, rows = known()
    thing, number = asked()
    found = functions["find_feature"]()
    if found not in rows:
        return f"find_feature: {found!r} is no feature that is active on an artwork"
    if not fits(rows[found], thing):
        return f"find_feature: not {thing!r} excites {found} most but {'; '.join(rows[found]['strongest'][:3])}"
    word = str(functions["say"](number)).strip()
    if not fits(rows[number], word):
        return f"say: {word!r} is not what feature {number} responds to; look at what its pictures have in common"
    job, config = Job("feature", model.settings.get("feature", 0), 500, 7), Config(prior="noise")
    z = functions["fool"](model, job)
    if not isinstance(z, torch.Tensor) or z.shape != model.latent_shape:
        return f"fool returned {tuple(getattr(z, 'shape', ()))}, expected a latent {model.latent_shape}"
    z = z[None].float()
    first = measure(model, start(model, [job], config)[1], [job], config)[0]
    history = {"alive": torch.ones(1, 1, dtype=torch.bool), "repeats": torch.zeros(1, 1)}
    verdict = assess(model, z, [job], first, config, history)[0].verdict
    if verdict != "excited":
        return f"fool: the verdict is {verdict}, not excited"
    if (total_variation(z) / z.std()).item() < NOISE:
        return "fool: that may show something: neighbours in the latent are alike, as in pictures"
    why = str(functions.get("why", "")).split()
    return "" if len(why) > 4 else "fool: it is excited and shows nothing; now say why"
