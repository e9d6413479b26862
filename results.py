"""Results on disk: where they are, what a record holds, when a result counts as finished.

    out/<weights>/feature_00012/t0361/seed_1024.png           the ascent's picture; its chunk "featviz" is the recipe
    out/<weights>/feature_00012/t0361/seed_1024.finished.png  what the model made of it (finish.py), likewise
    out/<weights>/feature_00012/t0361/seed_1024.safetensors   their latents (4, H, W) float32: latent, finished
    out/<weights>/feature_00012/t0361/seed_1024.steps.jpg     pictures of the course, side by side; none with --frames 0
    out/<weights>/feature_00012/t0361/seed_1024.wav           with --sound: as a spectrogram; .start.wav, .finished.wav
    out/<weights>/feature_00012/t0361/seed_1024.curves.json   a number a step
    out/<weights>/feature_00012/t0361/seed_1024.json          recipe, verdicts, scores, sizes; written last
    out/<weights>/feature_00012/t0361-1a2b3c4d/...            the same with other settings

The recipe holds every setting and the fingerprints of all weights and of the method's code, and no date: the same
recipe gives the same files. A result counts as finished when its record holds this very recipe and every file has the
size that the record says.
"""
import ast
import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from PIL import Image
from safetensors.numpy import save as save_tensors

from config import HOOK_POINT, PRIORS
from vae import to_file, to_png, to_uint8

PROJECT = Path(__file__).resolve().parent
METHOD = ("config", "ascent", "finish", "visualize", "regularizers", "steering", "schedule", "sae", "unet", "vae",
          "clip", "weights/load", "weights/quick", "weights/saes", "activity/profile")     # each can change a latent
USUAL_DTYPES = {"cpu": ("float32",), "cuda": ("bfloat16", "float16")}
DIGITS = {"feature": 5, "channel": 4}
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError)     # what reading JSON of another shape may raise


def write(path, data):
    """Write bytes to `<name>.partial`, and rename it to `path` when all was written; make the folder. OSError of a full
    disk has the file's name, which the system leaves out, and the half that was written goes."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as e:
        partial.unlink(missing_ok=True)
        if e.errno and e.filename is None:
            e.filename = str(path)
        raise


def sha256(data):
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def to_json(value, **layout):
    """Encode a value as JSON; NaN and infinity, which JSON does not have, become null."""
    value = json.loads(json.dumps(value), parse_constant=lambda name: None)
    return json.dumps(value, **layout).encode() + b"\n"


@cache
def method_code():
    """Return the SHA-256 of the method's files as Python reads them: comments and docstrings change nothing."""
    digest = hashlib.sha256()
    for name in METHOD:
        tree = ast.parse((PROJECT / f"{name}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
                node.body = node.body[1:] or [ast.Pass()]
        digest.update(f"{name}\n{ast.unparse(tree)}\n".encode())
    return digest.hexdigest()


def recipe(model, job, config, usual):
    """Return everything that decides a job's result, as JSON values. `usual`: the config of a run without flags."""
    settings, standard = (json.loads(json.dumps(asdict(one))) for one in (config, usual))
    dtype = str(model.dtype).removeprefix("torch.")
    differs = {name: value for name, value in settings.items() if value != standard[name]}
    if dtype not in USUAL_DTYPES.get(model.device.type, (dtype,)):
        differs["dtype"] = dtype
    fingerprints = dict(model.fingerprints)
    if model.capture is not None:
        fingerprints["activity.safetensors"] = model.capture.sha256
    if config.prior not in PRIORS:
        fingerprints["prior"] = sha256(Path(config.prior).read_bytes())
    if job.kind == "direction":
        fingerprints["direction"] = sha256(model.directions[job.target].cpu().numpy().tobytes())
    return {"job": asdict(job), "config": settings, "differs": differs, "hook_point": model.hook_point,
            "weights": model.name, "fingerprints": fingerprints, "code": method_code(), "device": model.device.type,
            "dtype": dtype, "torch": torch.__version__}


def file_name(text):
    """Turn text into a part of a file's name. What is cut or replaced ends in a hash of the whole text."""
    name = re.sub(r"[^\w.=+-]+", "-", text).strip("-.")[:50]
    return name if name == text else f"{name}-{sha256(text.encode())[:8]}".lstrip("-")


def folder_of(out, weights, hook_point, kind, target):
    """Return the folder of all that is known of one feature, channel or direction."""
    name = f"{kind}_{target:0{DIGITS[kind]}d}" if kind in DIGITS else f"{kind}_{file_name(target)}"
    return Path(out) / weights / (name if hook_point == HOOK_POINT else f"{hook_point}_{name}")


def path_of(out, recipe):
    """Return a result's path without suffix."""
    job = recipe["job"]
    folder = folder_of(out, recipe["weights"], recipe["hook_point"], job["kind"], job["target"])
    other = "-" + sha256(json.dumps(recipe["differs"], sort_keys=True).encode())[:8] if recipe["differs"] else ""
    return folder / f"t{job['timestep']:04d}{other}" / f"seed_{job['seed']}"


def feature_folders(folder):
    """List the folder itself if results are in it, else all in it that have some; ValueError where there is none."""
    found = [path for pattern in ("t*/seed_*.json", "*/t*/seed_*.json") for path in Path(folder).glob(pattern)]
    if not found:
        raise ValueError(f"{folder}: holds no results; give a folder that featviz.py wrote, such as out/toy")
    return sorted({path.parent.parent for path in found})


def save(out, result, recipe, fit="", sounds=None):
    """Write the files of a result, the record last, and return the picture's path. `fit`: the fit check's warning,
    `sounds`: {suffix: bytes of a WAV file}."""
    path = path_of(out, recipe)
    for older in path.parent.glob(f"{path.name}.*"):
        older.unlink()
    latents, curves, numbers, files = {}, {}, {"finished": None}, {}
    for name, suffix, one in (("ascent", ".png", result), ("finished", ".finished.png", result.finished)):
        if one:
            files[suffix] = to_png(one.image, featviz=json.dumps(recipe, sort_keys=True))
            latents["latent" if one is result else name] = one.latent.numpy()
            curves[name] = {"history": one.history}
            numbers[name] = {"verdict": one.verdict, "scores": one.scores, "others": one.others}
    files |= {".safetensors": save_tensors(latents), ".curves.json": to_json(curves), **(sounds or {})}
    if result.frames:
        film = Image.fromarray(to_uint8(torch.cat(list(result.frames.values()), dim=2)))
        files[".steps.jpg"] = to_file(film, format="JPEG", quality=90, subsampling=0)
    record = {"recipe": recipe, **numbers["ascent"], "finished": numbers["finished"], "fit": fit,
              "stored_steps": list(result.frames), "bytes": {suffix: len(data) for suffix, data in files.items()}}
    for suffix, data in files.items():
        write(path.with_suffix(suffix), data)
    write(path.with_suffix(".json"), to_json(record, indent=1, sort_keys=True))
    return path.with_suffix(".png")


def why_to_compute(out, recipe, steps=(), sound=False):
    """Return why a result is still to be computed: "" where it is not, "other" where other weights, code or settings
    made it, "missing" where it, a part of it, a picture of these `steps` or the sound is."""
    path = path_of(out, recipe)
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        whole = all(os.stat(path.with_suffix(suffix)).st_size == n for suffix, n in record["bytes"].items())
        has_all = set(steps) <= set(record["stored_steps"]) and (not sound or ".wav" in record["bytes"])
        return "other" if record["recipe"] != recipe else "" if whole and has_all else "missing"
    except BROKEN:
        return "missing"


@dataclass
class StoredResult:
    """A result on disk, of the ascent; `finished` is what the model made of it."""
    path: Path                          # of the picture
    recipe: dict
    verdict: str
    scores: dict                        # name -> number, None where it was not finite
    others: list                        # [[index, activation]] of what the picture excites most beside the target
    fit: str                            # the fit check's warning
    steps: list = ()                    # after how many steps a picture was kept
    finished: "StoredResult | None" = None

    def __post_init__(self):
        self.path.stat()                # FileNotFoundError where the picture is gone
        job = self.recipe["job"]
        self.kind, self.target, self.t, self.seed = job["kind"], job["target"], job["timestep"], job["seed"]
        self.folder = self.path.parent.name         # of its time step and settings: t0600, or t0600-1a2b3c4d

    @property
    def last(self):
        """The finished picture and its numbers, or the ascent's where there is none."""
        return self.finished or self

    def curves(self):
        """Read {"history": {name: one number a step}}; of a finished picture its own."""
        part = "finished" if self.path.name.endswith(".finished.png") else "ascent"
        path = self.path.with_name(f"seed_{self.seed}.curves.json")
        return json.loads(path.read_text(encoding="utf-8"))[part]

    def frame(self, k):
        """Return the k-th of the kept pictures."""
        with Image.open(self.path.with_suffix(".steps.jpg")) as strip:
            width = strip.width // len(self.steps)
            return strip.crop((k * width, 0, (k + 1) * width, strip.height)).convert("RGB")


def read_result(path):
    """Read a record, seed_1024.json; raises one of BROKEN for what is none."""
    record = json.loads(path.read_text(encoding="utf-8"))
    recipe, fit, last = record["recipe"], record["fit"], record["finished"]
    finished = StoredResult(path.with_suffix(".finished.png"), recipe, fit=fit, **last) if last else None
    return StoredResult(path.with_suffix(".png"), recipe, record["verdict"], record["scores"], record["others"], fit,
                        record["stored_steps"], finished)


def read_results(folder):
    """List the results in a feature's folder, but broken ones, by time step, settings (the usual first) and seed."""
    found = []
    for path in Path(folder).glob("t*/seed_*[0-9].json"):
        with suppress(*BROKEN):
            found.append(read_result(path))
    return sorted(found, key=lambda r: (r.t, r.folder, r.seed))
