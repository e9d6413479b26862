"""Results on disk that no model made: as many as a test needs, at once."""
import io
import json

import numpy as np
from PIL import Image

from pages.read import read_results, shown


def picture(seed=0, edge=32):
    """Bytes of a PNG of soft colours."""
    y, x = np.mgrid[:edge, :edge] / edge
    waves = np.random.default_rng(seed).normal(size=(3, 3)) * 5
    image = np.stack([np.sin(a * x + b * y + c) / 2 + 0.5 for a, b, c in waves], axis=-1)
    file = io.BytesIO()
    Image.fromarray((image * 255).round().astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()


def result(folder, t=600, seed=1, activation=2.0, verdict="excited", png=None, finished=None, differs=None):
    """A record and its picture in a feature's folder, as far as they are shown; returns the record's path.

    finished   activation of what the model made of it, which has a picture of its own then
    differs    settings that are not usual: the result lies in a folder of their own
    """
    path = folder / (f"t{t:04d}" + "-1a2b3c4d" * bool(differs)) / f"seed_{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".png").write_bytes(png or picture(seed))
    job = {"feature": 1, "channel": None, "timestep": t, "seed": seed}
    scores = {"activation": activation, "activation_reencoded": activation, "rank": 3}
    record = {"recipe": {"job": job} | ({"differs": differs} if differs else {}), "verdict": verdict, "scores": scores,
              "history": {}}
    path.write_text(json.dumps(record | ({"finished": finish(path, seed, finished)} if finished else {})))
    return path


def finish(path, seed, activation):
    """The finished picture beside a record, and what the record says of it."""
    path.with_suffix(".finished.png").write_bytes(picture(1000 + seed))
    scores = {"activation_start": 0.1, "activation": activation, "activation_no_noise": 1.0,
              "activation_reencoded": activation / 2, "rank": 2, "finish_scale": 0.4}
    return {"verdict": "raised", "scores": scores, "history": {"activation": [0.25, 0.5]}, "others": [[8, 0.125]],
            "heat": [[1.0, 0.0], [0.0, 0.5]]}


def measured(folder, auc=0.93, words=("rose", "petal <b>", "car"), alike=4):
    """A legibility.json that speaks of the results in a feature's folder; the third word is far from the first."""
    groups = {}
    for r in read_results(folder):
        groups.setdefault(r.folder, []).append(r)
    seen = {"agreement": {"auc": auc, "rank": 2, "of": 101}, "seeds": {"sameness": 0.5, "alike": alike, "of": 5},
            "name": {"words": [*zip(words, (0.5, 0.45, 0.1))], "margin": 0.05}}
    groups = {name: {"pictures": shown(results)} | seen for name, results in groups.items()}
    (folder / "legibility.json").write_text(json.dumps({"made_with": {}, "groups": groups}))


def activity(folder, largest=4.0, peaks=(100, 700), concept=("Tree",)):
    """activity.json: a profile that is 1 at the last of the peaks, lower at the others; `largest` at each t."""
    profile = [0.0] * 1001
    for i, t in enumerate(peaks):
        profile[t] = (i + 1) / len(peaks)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "activity.json").write_text(json.dumps({
        "profile": profile, "largest": [largest] * 1001, "peaks": list(peaks), "concept": list(concept), "images": 40,
        "examples": {}, "ever_among_the_top": True}))


def features(folder, count, finished=False):
    """Features 0..count - 1 with seeded scores, concepts and peaks."""
    rng, pictures = np.random.default_rng(0), [picture(k, 128) for k in range(48)]
    words = ["Tree", "Flower", "House", "Cat", "Tower", "Sea", "Winter", "Cartoon", "<b>Bear</b>"]
    for i in range(count):
        inside, strong = folder / f"feature_{i:05d}", float(rng.gamma(4, 0.5))
        result(inside, activation=strong, verdict="excited" if strong > 0.8 else "weak",
               png=pictures[i % len(pictures)], finished=strong / 2 if finished else None)
        peak = int(rng.integers(1000))
        activity(inside, 1.0, [peak], [str(w) for w in rng.choice(words, rng.integers(3), replace=False)])
    return folder


def jpeg(path, *pictures):
    """Pictures side by side as a JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tiles = [np.asarray(Image.open(io.BytesIO(data))) for data in pictures]
    Image.fromarray(np.concatenate(tiles, axis=1)).save(path, format="JPEG", quality=90, subsampling=0)


def feature(folder, times=(0, 300), seeds=(1, 2), prior="noise", prompts=("A Tree image", "A Tree photo", "A Tree"),
            png=None, finished=None, differs=None, **changes):
    """A feature's or channel's folder as a run of two steps leaves it, activity.json and two of three dataset images.

    `changes` are entries of the records; None takes one out. `finished` and `differs` as in `result`.
    """
    kind, number = folder.name.rsplit("_", 2)[-2:]
    for k in range(len(prompts) - 1):
        jpeg(folder.parent / f"activity/images/{k:05d}.jpg", picture(90 + k))
    for t in times:
        for seed in seeds:
            path = folder / (f"t{t:04d}" + "-1a2b3c4d" * bool(differs)) / f"seed_{seed}.json"
            config = {"num_steps": 2, "prior": prior, "learning_rate": 0.125} | (differs or {})
            jpeg(path.with_suffix(".steps.jpg"), *(picture(10 * seed + k) for k in range(3)))
            path.with_suffix(".png").write_bytes(png or picture(t + seed))
            job = {"feature": None, "channel": None, kind: int(number), "timestep": t, "seed": seed}
            recipe = {"job": job, "config": config, "differs": differs or {}, "hook_point": "up_blocks.1.attentions.1",
                      "weights": folder.parent.name, "fingerprints":
                      {"unet/config.json": "ab" * 32}, "device": "cpu", "dtype": "float32", "torch": "2.0"}
            scores = {"activation_start": 0.1, "activation": 1.5 + seed, "activation_no_noise": 2.0,
                      "activation_reencoded": 1 + seed / 4,
                      "rank": 1}
            record = {"recipe": recipe, "verdict": "excited", "scores": scores,
                      "history": {"activation": [0.1, 0.75], "moment": [0.5, 0.25]},
                      "others": [[7, 0.5], [9, 0.25]], "heat": [[0.0, 1.0], [2.0, 0.5]], "stored_steps": [0, 1, 2],
                      "nearest_channel": 5, "sha256": {}} | changes
            if finished:
                record["finished"] = finish(path, seed, finished)
            path.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
    examples = [{"image": k, "activation": 3.0 - k, "prompt": prompt,
                 "file": str(folder.parent / f"activity/images/{k:05d}.jpg")}
                for k, prompt in enumerate(prompts)]
    (folder / "activity.json").write_text(json.dumps({
        kind: int(number), "weights": folder.parent.name, "images": 40, "ever_among_the_top": True, "concept": ["Tree"],
        "active": 500,
        "peaks": [300], "examples": {"300": examples}, "profile": [t / 1000 for t in range(1001)],
        "largest": [1.0] * 1001}))
    return folder
