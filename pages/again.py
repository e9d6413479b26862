"""From the record of a result back to the command that makes it.

The command says what the recipe has other than usual. What is usual follows from the preset and from the weights' own
featviz.json; where that file is not at hand, or is not the one that the recipe names, every setting is spelled out.
"""
import dataclasses
import hashlib
import json
import shlex
from pathlib import Path

from config import PRESETS, SETTINGS, flag

ROOT = Path(__file__).resolve().parent.parent
FRAMES = 8                  # pictures of the course that a run keeps when no flag says otherwise


def usual(recipe, weights):
    """{setting: value} that a run without flags takes; empty where that cannot be known."""
    preset, own = "raw" if recipe["job"]["feature"] is None else "sae", {}
    known = recipe["fingerprints"].get("featviz.json")
    if known:
        try:
            data = (weights / "featviz.json").read_bytes()
        except OSError:
            return {}
        if hashlib.sha256(data).hexdigest() != known:
            return {}
        own = json.loads(data).get("presets", {}).get(preset, {})
    return dataclasses.asdict(PRESETS[preset]) | own


def command(recipe, times, seeds, frames=FRAMES, weights=None):
    """The command for this recipe at these time steps and seeds. `weights`: their folder, by default weights/<name> of
    this project."""
    kind, flags = "channel" if recipe["job"]["feature"] is None else "feature", []
    plain = usual(recipe, weights or ROOT / "weights" / recipe["weights"])
    for name in SETTINGS:
        if name in recipe["config"] and (name not in plain or plain[name] != recipe["config"][name]):
            value = recipe["config"][name]
            flags += [flag(name) if value else flag(f"no-{name}")] if isinstance(value, bool) else [flag(name), value]
    hook = ["--hook-point", recipe["hook_point"]] if kind == "channel" else []
    kept = ["--frames", frames] if frames != FRAMES else []
    words = ["python", "featviz.py", "--weights", weights or f"weights/{recipe['weights']}", f"--{kind}",
             recipe["job"][kind], *hook, "--timestep", *times, "--seed", *seeds, "--device", recipe["device"],
             "--dtype", recipe["dtype"], *flags, *kept]
    return shlex.join(map(str, words))


def commands(found):
    """The commands for all results (read.Found) of a folder: one for those that differ in time step and seed only."""
    alike, together = {}, {}
    for r in found:
        how = json.dumps([r.recipe["config"], r.recipe["device"], r.recipe["dtype"], len(r.steps)], sort_keys=True)
        alike.setdefault((how, r.t), []).append(r)
    for (how, t), results in alike.items():
        together.setdefault((how, tuple(r.seed for r in results)), []).append(results[0])
    return [command(results[0].recipe, [r.t for r in results], seeds, len(results[0].steps))
            for (_, seeds), results in together.items()]
