"""Results on disk: where they lie, what they hold, when one counts as finished.

    out/<weights>/feature_00012/t0361/seed_1024.png           the ascent's picture; its chunk "featviz" is the recipe
    out/<weights>/feature_00012/t0361/seed_1024.finished.png  what the model made of it (finish.py), likewise
    out/<weights>/feature_00012/t0361/seed_1024.safetensors   their latents (4, H, W) float32: latent, finished
    out/<weights>/feature_00012/t0361/seed_1024.steps.jpg     pictures of the course, side by side; none with --frames 0
    out/<weights>/feature_00012/t0361/seed_1024.json          recipe, verdicts, scores, curves, hashes; written last
    out/<weights>/feature_00012/t0361-1a2b3c4d/...            the same of other settings: settings.txt says which

Every file is written under a temporary name, `<name>.partial`, and renamed. The recipe holds every setting and the
fingerprints of all weights and of the method's code, and no date: the same recipe gives the same files. A run that is
killed leaves at most one `.partial`, which the next run of the same command overwrites; a result counts as finished
when its record names this very recipe and the other files are, byte for byte, what was written with it. A file of
the right size that the system saw no change of since its record was written is not read for that: a whole autoencoder
has hundreds of gigabytes. The pictures of the course change no result and are no part of the recipe: a run that asks
for steps which are not among those that lie there makes the result again, any other takes it as it is. Pages are made
without torch, so nothing loads it here but a new result.
"""
import ast
import dataclasses
import hashlib
import io
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save as save_tensors

from config import FINISH_FROM, HOOK_POINT, REFERENCE_WIDTH, STRENGTHS
from weights.disk import alone, replacing

PROJECT = Path(__file__).resolve().parent.parent
METHOD = ("ascent", "finish", "regularizers", "steering", "schedule", "sae", "unet", "vae", "clip", "weights/quick")
USUAL_DTYPE = {"cpu": "float32", "cuda": "bfloat16"}


def entry(name, brackets, *depths):
    """[(text before, text after)] of an entry of a record, as many levels deep as `depths` say; see `read_without`."""
    return [(f'\n{" " * n}"{name}": {brackets[0]}\n'.encode(), f'\n{" " * n}{brackets[1]},\n'.encode())
            for n in depths]


CURVES = entry("heat", "[]", 1, 2) + entry("history", "{}", 1, 2)               # of the ascent, of the finish


@cache
def method_code():
    """SHA-256 of what the method's files do: of their parsed code, so that comments and docstrings change nothing."""
    digest = hashlib.sha256()
    for name in METHOD:
        tree = ast.parse((PROJECT / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        digest.update(f"{name}\n{ast.unparse(tree)}\n".encode())
    digest.update(repr((FINISH_FROM, STRENGTHS, REFERENCE_WIDTH)).encode())         # what a recipe does not name
    return digest.hexdigest()


def recipes(model, jobs, config, usual):
    """{job: everything that decides its result, as JSON values}. `usual`: the config of a run without flags.

    The recipes share all but the job, so that those of 400,000 jobs fit into memory: nobody changes one.
    """
    import torch
    config, usual = dataclasses.asdict(config), dataclasses.asdict(usual)
    dtype = str(model.dtype).removeprefix("torch.")
    differs = {name: value for name, value in config.items() if value != usual[name]}
    if dtype != USUAL_DTYPE.get(model.device.type, dtype):
        differs["dtype"] = dtype
    same = {"config": config, "differs": differs, "hook_point": model.hook_point, "weights": model.name,
            "fingerprints": model.fingerprints, "code": method_code(), "device": model.device.type, "dtype": dtype,
            "torch": torch.__version__}
    return {job: {"job": vars(job).copy(), **same} for job in jobs}


def recipe(model, job, config, usual):
    """That of a single job."""
    return recipes(model, [job], config, usual)[job]


def path_of(out, recipe):
    """The result's path without suffix."""
    job = recipe["job"]
    kind = "channel" if job["feature"] is None else "feature"
    folder = folder_of(out, recipe["weights"], recipe["hook_point"], kind, job[kind])
    other = "-" + sha256(json.dumps(recipe["differs"], sort_keys=True).encode())[:8] if recipe["differs"] else ""
    return folder / f"t{job['timestep']:04d}{other}" / f"seed_{job['seed']}"


@cache
def folder_of(out, weights, hook_point, kind, number):
    """All that is known of one feature or channel."""
    name = f"feature_{number:05d}" if kind == "feature" else f"channel_{number:04d}"
    return Path(out) / weights / (name if hook_point == HOOK_POINT else f"{hook_point}_{name}")


def times_in(folder):
    """Time steps for which results lie in a feature's folder."""
    return {int(path.name[1:5]) for path in folder.glob("t[0-9][0-9][0-9][0-9]*") if path.is_dir()}


def lacking(out, recipe, steps=(), keep=False):
    """Why a result is still to be made: "" where this very recipe's result is there, whole; "new" where none is; else
    what the one that is there differs in ("code", "fingerprints", ...), or "broken".

    steps  those of the course whose pictures it must have
    keep   take results of other code and of another torch as they are
    """
    path = path_of(out, recipe)
    try:
        record, written = read_without(f"{path}.json", CURVES), os.stat(f"{path}.json").st_ctime_ns
        sizes = record.get("bytes", {})                         # which a record of an older version does not hold
        stored, made = record.get("stored_steps", []), record["recipe"]
        known = dict.fromkeys((".png", ".safetensors")) | record["sha256"]
        whole = all(unchanged(f"{path}{suffix}", known[suffix], sizes.get(suffix), written) for suffix in known)
        same = recipe | {name: made.get(name) for name in ("code", "torch")} if keep else recipe
        if different := [name for name in same if made.get(name) != same[name]]:
            return different[0]
        return "" if whole and set(steps) <= set(stored) else "broken"
    except FileNotFoundError:
        return "new"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "broken"


def read_without(path, entries):
    """A record without some of its entries, which are cut out of its text: curves are most of it, and only a page
    shows them. What does not stand there as `save` writes it is read."""
    with open(path, "rb") as file:
        text = file.read()
    for begin, end in entries:
        before, found, after = text.partition(begin)
        if found:
            text = before + b"\n" + after.partition(end)[2]
    return json.loads(text)


def unchanged(path, sha, size, written):
    """Whether a file is what was written before its record, which was at the moment `written`, in ns. One that the
    system saw a change of after that is read; nobody can set this time as one can that of the last change."""
    now = os.stat(path)
    untouched = now.st_size == size and max(now.st_ctime_ns, now.st_mtime_ns) < written
    return untouched or sha256(Path(path).read_bytes()) == sha


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
    path, last = path_of(out, recipe), result.finished
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".json", ".steps.jpg", ".finished.png"):     # from here on an older result is no longer finished
        path.with_suffix(suffix).unlink(missing_ok=True)
    latents = {"latent": result.latent.numpy()} | ({"finished": last.latent.numpy()} if last else {})
    files = {".png": picture(result.image, recipe), ".safetensors": save_tensors(latents)}
    if last:
        files[".finished.png"] = picture(last.image, recipe)
    if result.frames:
        files[".steps.jpg"] = strip(result.frames)
    made = {"recipe": recipe, **numbers(result), "nearest_channel": result.nearest_channel,
            "stored_steps": result.stored_steps, "finished": numbers(last) if last else None,
            "sha256": {suffix: sha256(data) for suffix, data in files.items()},
            "bytes": {suffix: len(data) for suffix, data in files.items()}}
    files[".json"] = json.dumps(made, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
    with alone(path.parent):                                    # two that make the same result write the same files
        if recipe["differs"]:
            write(path.parent / "settings.txt", "".join(f"{k}: {v}\n" for k, v in recipe["differs"].items()).encode())
        for suffix, data in files.items():
            write(path.with_suffix(suffix), data)
    return path.with_suffix(".png")


def write(path, data):
    with replacing(path) as file:
        file.write(data)


def numbers(result):
    """What a record says of a picture; JSON has no NaN."""
    finite = lambda v: v if np.isfinite(v) else None
    return {"verdict": result.verdict, "scores": {k: finite(v) for k, v in result.scores.items()},
            "history": {k: [finite(v) for v in values] for k, values in result.history.items()},
            "others": [[index, finite(a)] for index, a in result.others],
            "heat": [[finite(v) for v in row] for row in result.heat.tolist()]}


def picture(image, recipe):
    """(3, H, W) in [0, 1] -> PNG bytes that carry the recipe."""
    from vae import to_uint8
    text, file = PngInfo(), io.BytesIO()
    text.add_text("featviz", json.dumps(recipe, sort_keys=True))
    Image.fromarray(to_uint8(image)).save(file, format="PNG", pnginfo=text)
    return file.getvalue()


def strip(frames):
    """Pictures of equal size, side by side -> JPEG bytes."""
    from vae import to_uint8
    file = io.BytesIO()
    side_by_side = np.concatenate([to_uint8(frame) for frame in frames], axis=1)
    Image.fromarray(side_by_side).save(file, format="JPEG", quality=90, subsampling=0)
    return file.getvalue()
