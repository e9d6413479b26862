"""Results on disk that no model made: as many as a test needs, at once."""
import io
import json

import numpy as np
from PIL import Image

from results import write

HOOK = "up_blocks.1.attentions.1"


def picture(seed=0, edge=32):
    """Bytes of a PNG of soft colours."""
    y, x = np.mgrid[:edge, :edge] / edge
    waves = np.random.default_rng(seed).normal(size=(3, 3)) * 5
    image = np.stack([np.sin(a * x + b * y + c) / 2 + 0.5 for a, b, c in waves], axis=-1)
    file = io.BytesIO()
    Image.fromarray((image * 255).round().astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()


def jpeg(*pictures):
    """Bytes of a JPEG of pictures side by side."""
    tiles, file = [np.asarray(Image.open(io.BytesIO(data))) for data in pictures], io.BytesIO()
    Image.fromarray(np.concatenate(tiles, axis=1)).save(file, format="JPEG", quality=90, subsampling=0)
    return file.getvalue()


def result(folder, t=300, seed=1, verdict="excited", finished=None, differs=None, png=None, **scores):
    """Write a result of two steps into a feature's folder and return its record's path.

    finished   the verdict of what the model made of it, which has half of the activation
    differs    settings that are not usual: the result is in a folder of their own
    """
    *hook, kind, target = folder.name.rsplit("_", 2)
    path = folder / (f"t{t:04d}" + "-1a2b3c4d" * bool(differs)) / f"seed_{seed}"
    scores = {"activation_start": 0.1, "activation": 1.5 + seed, "activation_no_noise": 2.0,
              "activation_reencoded": 1 + seed / 4, "rank": 1, "dataset_largest": None} | scores
    job = {"kind": kind, "target": int(target), "timestep": t, "seed": seed}
    recipe = {"job": job, "config": {"num_steps": 2, "prior": "steer", "learning_rate": 0.125} | (differs or {}),
              "differs": differs or {}, "hook_point": hook[0] if hook else HOOK, "weights": folder.parent.name,
              "fingerprints": {"unet/config.json": "ab" * 32}, "code": "c", "device": "cpu", "dtype": "float32",
              "torch": "2.0"}
    record = {"recipe": recipe, "verdict": verdict, "scores": scores, "others": [[7, 0.5], [9, 0.25]], "fit": "",
              "stored_steps": [0, 1, 2], "finished": None}
    curves = {"ascent": {"history": {"activation": [0.1, 0.75], "moment": [0.5, 0.25]}}, "finished": None}
    files = {".png": png or picture(t + seed), ".steps.jpg": jpeg(*(picture(10 * seed + k) for k in range(3)))}
    if finished:
        half = scores | {"activation": scores["activation"] / 2, "activation_reencoded": scores["activation"] / 4,
                         "rank": 2}
        record["finished"] = {"verdict": finished, "scores": half, "others": [[8, 0.125]]}
        curves["finished"] = {"history": {"activation": [0.25, 0.5]}}
        files[".finished.png"] = png or picture(1000 + t + seed)
    record["sha256"] = record["bytes"] = dict.fromkeys(files, "")
    files |= {".curves.json": json.dumps(curves).encode(), ".json": json.dumps(record).encode()}
    for suffix, data in files.items():
        write(path.with_suffix(suffix), data)
    return path.with_suffix(".json")


def activity(folder, peaks=(300,), concept=("Tree",), prompts=("A Tree image", "A Tree photo"), top=4):
    """Write activity.json: a profile that is highest at the last of the peaks, dataset images beside the folder."""
    profile = [0.0] * 1001
    for i, t in enumerate(peaks):
        profile[t] = (i + 1) / len(peaks)
    examples = []
    for k, prompt in enumerate(prompts):
        path = folder.parent / f"activity/images/{k:05d}.jpg"
        write(path, jpeg(picture(90 + k)))
        examples.append({"image": k, "activation": 3.0 - k, "prompt": prompt, "file": str(path)})
    card = {"images": 40, "active": 7, "histogram": [[0, 0, 33], [0.5, 1.0, 7]], "alive": True, "timestep": 361,
            "largest": 0.875, "gated": 0.25, "nearest": [[37, 0.75]], "examples": 5, "together": [[4, 3]]}
    record = {"profile": profile, "strength": [1.0] * 1001, "peaks": list(peaks), "images": 40, "label": "",
              "concept": list(concept), "top": top, "examples": {str(t): examples for t in peaks}, "card": card}
    write(folder / "activity.json", json.dumps(record).encode())


def feature(folder, times=(0, 300), seeds=(1, 2), **changes):
    """Write a feature's folder as a run leaves it and return it; `changes` as in `result`."""
    for t in times:
        for seed in seeds:
            result(folder, t, seed, **changes)
    activity(folder)
    return folder


def features(folder, count):
    """Write features 0..count - 1 with seeded scores, concepts and peaks, and return the folder."""
    rng, words = np.random.default_rng(0), ["Tree", "Flower", "House", "Cat", "Sea", "Winter", "<b>Bear</b>"]
    for i in range(count):
        inside, strong = folder / f"feature_{i:05d}", float(rng.gamma(4, 0.5))
        result(inside, verdict="excited" if strong > 0.8 else "weak", finished="raised", activation=strong)
        activity(inside, [int(rng.integers(1000))], rng.choice(words, rng.integers(3), replace=False).tolist(), ())
    return folder
