"""Results on disk: where they lie, what they hold, when one counts as finished.

    out/<weights>/feature_00012/t0361/seed_1024.png           the picture; its text chunk "featviz" is the recipe
    out/<weights>/feature_00012/t0361/seed_1024.safetensors   the latent (4, H, W) float32
    out/<weights>/feature_00012/t0361/seed_1024.steps.jpg     pictures of the course, side by side; none with --frames 0
    out/<weights>/feature_00012/t0361/seed_1024.json          recipe, verdict, scores, curves, hashes; written last

Every file is written under a temporary name, `<name>.partial`, and renamed. The recipe holds every setting and the
fingerprints of all weights, and no date: the same recipe gives the same files. A run that is killed leaves at most one
`.partial`, which the next run of the same command overwrites; a result counts as finished when its record names this
very recipe and the other files are, byte for byte, what was written with it. The pictures of the course change no
result and are no part of the recipe: a run that asks for steps which are not among those that lie there makes the
result again, any other takes it as it is. Pages are made without torch, so nothing loads it here but a new result.
"""
import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save as save_tensors

from config import HOOK_POINT
from weights.disk import alone, replacing


def recipe(model, job, config):
    """Everything that decides the result, as JSON values."""
    import torch
    return {"job": dataclasses.asdict(job), "config": dataclasses.asdict(config), "hook_point": model.hook_point,
            "weights": model.name, "fingerprints": model.fingerprints, "device": model.device.type,
            "dtype": str(model.dtype).removeprefix("torch."), "torch": torch.__version__}


def path_of(out, recipe):
    """The result's path without suffix."""
    job = recipe["job"]
    kind = "channel" if job["feature"] is None else "feature"
    folder = folder_of(out, recipe["weights"], recipe["hook_point"], kind, job[kind])
    return folder / f"t{job['timestep']:04d}" / f"seed_{job['seed']}"


def folder_of(out, weights, hook_point, kind, number):
    """All that is known of one feature or channel."""
    name = f"feature_{number:05d}" if kind == "feature" else f"channel_{number:04d}"
    return Path(out) / weights / (name if hook_point == HOOK_POINT else f"{hook_point}_{name}")


def times_in(folder):
    """Time steps for which results lie in a feature's folder."""
    return {int(path.name[1:]) for path in folder.glob("t[0-9][0-9][0-9][0-9]")}


def finished(out, recipe, steps=()):
    """Whether this very recipe's result is there, whole: a copy that broke off or a file of another run does not count.
    `steps`: those of the course whose pictures it must have."""
    path = path_of(out, recipe)
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        stored = record.get("stored_steps", [])
        suffixes = (".png", ".safetensors", ".steps.jpg")[:3 if stored else 2]
        hashes = {suffix: sha256(path.with_suffix(suffix).read_bytes()) for suffix in suffixes}
        return record["recipe"] == recipe and record["sha256"] == hashes and set(steps) <= set(stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def save_activity(folder, record):
    """folder/activity.json, what activity.analysis gave; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder), replacing(folder / "activity.json") as file:
        file.write(json.dumps(record, indent=1).encode() + b"\n")
    return folder / "activity.json"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def prepare(out):
    """Make the folder, or raise OSError before any work is done."""
    Path(out).mkdir(parents=True, exist_ok=True)
    with alone(out):                                            # several shards begin at the same moment
        with replacing(Path(out) / ".writable") as file:
            file.write(b"")
        (Path(out) / ".writable").unlink()


def save(out, result, recipe):
    """Write the files of a result, the JSON last; returns the picture's path."""
    from vae import to_uint8
    path = path_of(out, recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".json", ".steps.jpg"):                      # from here on an older result is no longer finished
        path.with_suffix(suffix).unlink(missing_ok=True)
    text, picture = PngInfo(), io.BytesIO()
    text.add_text("featviz", json.dumps(recipe, sort_keys=True))
    Image.fromarray(to_uint8(result.image)).save(picture, format="PNG", pnginfo=text)
    files = {".png": picture.getvalue(), ".safetensors": save_tensors({"latent": result.latent.numpy()})}
    if result.frames:
        strip = io.BytesIO()
        side_by_side = np.concatenate([to_uint8(frame) for frame in result.frames], axis=1)
        Image.fromarray(side_by_side).save(strip, format="JPEG", quality=90, subsampling=0)
        files[".steps.jpg"] = strip.getvalue()
    finite = lambda v: v if np.isfinite(v) else None            # JSON has no NaN
    record = {"recipe": recipe, "verdict": result.verdict, "scores": {k: finite(v) for k, v in result.scores.items()},
              "history": {k: [finite(v) for v in values] for k, values in result.history.items()},
              "others": [[index, finite(a)] for index, a in result.others], "nearest_channel": result.nearest_channel,
              "heat": [[finite(v) for v in row] for row in result.heat.tolist()], "stored_steps": result.stored_steps,
              "sha256": {suffix: sha256(data) for suffix, data in files.items()}}
    files[".json"] = json.dumps(record, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
    with alone(path.parent):                                    # two that make the same result write the same files
        for suffix, data in files.items():
            with replacing(path.with_suffix(suffix)) as file:
                file.write(data)
    return path.with_suffix(".png")
