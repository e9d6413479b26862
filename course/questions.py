"""The last exercise: its questions, and how their answers are checked against what is known of the toy."""
import json
from functools import cache

import torch

from config import Config, Job
from regularizers import total_variation
from visualize import assess, measure, start
from weights.load import load

NOISE = 1.8                 # total variation per deviation; white noise has 2.26, pictures of the model about 1


@cache
def known():
    """Return (the model, {feature: its meaning}) of the toy, from its concepts.json."""
    model = load()
    rows = json.loads((model.folder / "concepts.json").read_text(encoding="utf-8"))["rows"]
    return model, {row["feature"]: row["meaning"][1] for row in rows
                   if row["meaning"] and row["meaning"][0] in ("name", "subgroup")}


def asked():
    """Return (the thing to find a feature of, the feature to name): two that are not the same."""
    _, meanings = known()
    features = sorted(meanings, key=lambda f: (meanings[f], f))
    return meanings[features[len(features) // 3]], features[2 * len(features) // 3]


def check_answers(functions):
    """Return "" where all three answers are right, else one sentence."""
    model, meanings = known()
    thing, number = asked()
    found = functions["find_feature"]()
    if meanings.get(found) != thing:
        return f"find_feature: {found!r} responds to {meanings.get(found, 'nothing that is known')!r}, not to {thing!r}"
    word = str(functions["say"](number)).strip().lower()
    if not word or word not in meanings[number].lower():
        return f"say: {word!r} is not what feature {number} responds to; look at what its pictures have in common"
    job = Job("feature", model.settings.get("feature", 0), 500, 7)
    z = functions["fool"](model, job)
    if not isinstance(z, torch.Tensor) or z.shape != model.latent_shape:
        return f"fool returned {tuple(getattr(z, 'shape', ()))}, expected a latent {model.latent_shape}"
    config, jobs = Config(prior="noise"), [job]
    first = measure(model, start(model, jobs, config)[1], jobs, config)[0]
    history = {"alive": torch.ones(1, 1, dtype=torch.bool), "repeats": torch.zeros(1, 1)}
    verdict = assess(model, z[None].float(), jobs, first, config, history)[0].verdict
    if verdict != "excited":
        return f"fool: the verdict is {verdict}, not excited"
    if (total_variation(z[None].float()) / z.float().std()).item() < NOISE:
        return "fool: that may show something: neighbours in the latent are alike, as in pictures"
    return "" if len(str(functions.get("why",
                                       "")).split()) > 4 else "fool: it is excited and shows nothing; now say why"
