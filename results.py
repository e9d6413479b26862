"""Results on disk: where they lie, what they hold, when one counts as finished.

    out/<weights>/feature_00012/t0361/seed_1024.png           the picture; its text chunk "featviz" is the recipe
    out/<weights>/feature_00012/t0361/seed_1024.safetensors   the latent (4, H, W) float32
    out/<weights>/feature_00012/t0361/seed_1024.json          recipe, verdict, scores, one number a step, hashes of both; written last

Every file is written under a temporary name, `<name>.partial`, and renamed. The recipe holds every setting and the fingerprints of
all weights, and no date: the same recipe gives the same files. A run that is killed leaves at most one `.partial`, which the next run
of the same command overwrites; a result counts as finished when its record names this very recipe and the two other files are, byte
for byte, what was written with it.
"""
import dataclasses
import hashlib
import io
import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save as save_tensors

from checkpoint import HOOK_POINT


def recipe(model, job, config):
    """Everything that decides the result, as JSON values."""
    return {"job": dataclasses.asdict(job), "config": dataclasses.asdict(config), "hook_point": model.hook_point,
            "weights": model.name, "fingerprints": model.fingerprints, "device": model.device.type,
            "dtype": str(model.dtype).removeprefix("torch."), "torch": torch.__version__}


def path_of(out, recipe):
    """The result's path without suffix."""
    job = recipe["job"]
    target = f"feature_{job['feature']:05d}" if job["feature"] is not None else f"channel_{job['channel']:04d}"
    if recipe["hook_point"] != HOOK_POINT:
        target = f"{recipe['hook_point']}_{target}"
    return Path(out) / recipe["weights"] / target / f"t{job['timestep']:04d}" / f"seed_{job['seed']}"


def finished(out, recipe):
    """Whether this very recipe's result is there, whole: a copy that broke off or a file of another run does not count."""
    path = path_of(out, recipe)
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        hashes = {suffix: sha256(path.with_suffix(suffix).read_bytes()) for suffix in (".png", ".safetensors")}
        return record["recipe"] == recipe and record["sha256"] == hashes
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def prepare(out):
    """Make the folder, or raise OSError before any work is done."""
    Path(out).mkdir(parents=True, exist_ok=True)
    with replacing(Path(out) / ".writable") as file:
        file.write(b"")
    (Path(out) / ".writable").unlink()


@contextmanager
def replacing(path):
    """A binary file to write; takes `path`'s place when all went well, leaves nothing behind when not."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as e:
        if e.errno and not e.filename:                          # a full disk does not say which file
            raise OSError(e.errno, e.strerror, str(path)) from e
        raise
    finally:
        partial.unlink(missing_ok=True)


def to_uint8(image):
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8, rounded; NaN, which only a non-finite result has, is black."""
    return (image.permute(1, 2, 0).nan_to_num(0).clamp(0, 1) * 255).round().numpy().astype(np.uint8)


def save(out, result, recipe):
    """Write the three files of a result, the JSON last; returns the picture's path."""
    path = path_of(out, recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)           # from here on an older result no longer counts as finished
    text, picture = PngInfo(), io.BytesIO()
    text.add_text("featviz", json.dumps(recipe, sort_keys=True))
    Image.fromarray(to_uint8(result.image)).save(picture, format="PNG", pnginfo=text)
    files = {".png": picture.getvalue(), ".safetensors": save_tensors({"latent": result.latent.contiguous()})}
    finite = lambda v: v if np.isfinite(v) else None            # JSON has no NaN
    record = {"recipe": recipe, "verdict": result.verdict, "scores": {k: finite(v) for k, v in result.scores.items()},
              "history": {k: [finite(v) for v in values] for k, values in result.history.items()},
              "sha256": {suffix: sha256(data) for suffix, data in files.items()}}
    files[".json"] = json.dumps(record, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
    for suffix, data in files.items():
        with replacing(path.with_suffix(suffix)) as file:
            file.write(data)
    return path.with_suffix(".png")
