"""The thesis' own features: for each its word, its example prompt, and what the model draws from that prompt.

    out/<weights>/thesis/feature_10204.png      what this model samples from the prompt, by the capture's settings
    out/<weights>/thesis/feature_10204.json     word, prompt, activity in that image, results; written last

Activity is the capture's: at each sampling step the mean over positions of the feature's activation, in the half that
sees the prompt. pages/thesis.py puts all of it on one page.

Source: Szokalski & Modrzejewski, "Deep Dreams Are Made of This", arXiv 2605.08218, table of five features; words and
prompts are spelled as there. They are features of SAeUron's autoencoder of Style50: in another one the same numbers
mean something else. Weights may list five of their own in featviz.json: "thesis": [{"feature", "word", "prompt"}].
"""
import json
from pathlib import Path

from PIL import Image

from activity.capture import configure, observe, recipe
from config import SEEDS
from vae import to_uint8
from weights.disk import WeightsError, replacing

FEATURES = (
    {"feature": 14, "word": "cables", "prompt": "An Butterfly image in Pointillism style"},
    {"feature": 10204, "word": "roses", "prompt": "An Flowers image in Winter style"},
    {"feature": 10272, "word": "inward perspective", "prompt": "An Towers image in Surrealism style"},
    {"feature": 10331, "word": "human", "prompt": None},
    {"feature": 10538, "word": "foam", "prompt": "An Waterfalls image in French style"})
SEED = SEEDS[0]                                 # of the image's noise (ours); the thesis does not say its own


def features(model):
    """The weights' own five, or the thesis'; WeightsError for a list that is none."""
    own, path = model.settings.get("thesis", FEATURES), model.folder / "featviz.json"
    kinds = {"feature": int, "word": str, "prompt": (str, type(None))}
    if not isinstance(own, (list, tuple)) or not own or not all(
            isinstance(row, dict) and row.keys() == kinds.keys() and
            all(isinstance(row[name], kind) for name, kind in kinds.items()) for row in own):
        raise WeightsError(f"{path}: \"thesis\" must be a list of objects with feature, word and prompt")
    if own is FEATURES and max(row["feature"] for row in own) >= model.sae.features:
        raise WeightsError(f"{model.folder}: has {model.sae.features} features, the thesis' are those of Style50 "
                           f"(--weights weights/style50); others may list their own as \"thesis\" in {path.name}")
    return own


def elsewhere(model):
    """A warning where the thesis' numbers are looked up in other weights than the thesis'; else ""."""
    if "thesis" in model.settings or model.name == "style50":
        return ""
    return (f"the thesis' five numbers belong to the autoencoder of Style50; in that of {model.name} they mean "
            "something else, unless it is the same under another name")


def draw(model, row):
    """(image (3, 8H, 8W), activity) of a row's prompt; activity: {"curve": [[t, activation], ...], "timestep",
    "activation": the largest, "rank": among all features there, "features": how many}."""
    settings = configure(model, prompts=[row["prompt"]], batch_size=1)
    images, means = observe(model, settings, [SEED])
    acts = means["feature"][-1].cpu()                                                           # (N, F)
    if not acts.isfinite().all():
        raise ValueError(f"the image of {row['prompt']!r}: activations are NaN or infinite in {model.dtype}; use "
                         "--dtype float32")
    own, times = acts[:, row["feature"]], model.schedule.timesteps(settings.steps)
    n = own.argmax().item()
    return images[0].cpu(), {"curve": [[t, round(a, 6)] for t, a in zip(times, own.tolist())], "timestep": times[n],
                             "activation": round(own[n].item(), 6), "rank": 1 + (acts[n] > own[n]).sum().item(),
                             "features": acts.shape[1]}


def known(path):
    """A record that lies there; empty where none does, or a broken one."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def sample(model, row, folder, results):
    """Write a row's two files and return the record's path; an image that lies there is kept where it was made alike.

    results  paths of its ascents without suffix, as seen from `folder`
    """
    path = Path(folder) / f"feature_{row['feature']:05d}.json"
    picture, there = path.with_suffix(".png"), known(path)
    made = row | {"weights": model.name, "note": elsewhere(model), "results": results}
    folder.mkdir(parents=True, exist_ok=True)
    if row["prompt"]:
        made["recipe"] = recipe(model, configure(model, prompts=[row["prompt"]], batch_size=1)) | {"seed": SEED}
        made["activity"] = there.get("activity")
        if there.get("recipe") != made["recipe"] or not made["activity"] or not picture.exists():
            path.unlink(missing_ok=True)
            image, made["activity"] = draw(model, row)
            with replacing(picture) as file:
                Image.fromarray(to_uint8(image)).save(file, format="PNG")
    with replacing(path) as file:
        file.write(json.dumps(made, indent=1).encode() + b"\n")
    return path
