"""From the record of a result back to the command that makes it.

The record says what its settings have other than those of a run without flags; that is what has to be typed. Records of
older versions do not say it: of them every setting is spelled out.
"""
import json
import shlex

from config import HOOK_POINT, SETTINGS, flag

FRAMES = 8                  # pictures of the course that a run keeps when no flag says otherwise


def flags(recipe):
    """The settings of a recipe that are not usual, as they are typed: ["--no-noise", "--num-steps", "3"]."""
    differs = recipe.get("differs", recipe["config"] | {"dtype": recipe.get("dtype")})
    named = {name: value for name, value in differs.items() if name in SETTINGS or name == "dtype" and value}
    pairs = ([flag(k if v else f"no-{k}")] if isinstance(v, bool) else [flag(k), str(v)] for k, v in named.items())
    return [word for pair in pairs for word in pair]


def command(recipe, times, seeds, frames=FRAMES, weights=None):
    """The command for this recipe at these time steps and seeds. `weights`: their folder, by default weights/<name>."""
    kind = "channel" if recipe["job"]["feature"] is None else "feature"
    hook = ["--hook-point", recipe["hook_point"]] if kind == "channel" or recipe["hook_point"] != HOOK_POINT else []
    kept = ["--frames", frames] if frames != FRAMES else []
    words = ["python", "featviz.py", "--weights", weights or f"weights/{recipe['weights']}", f"--{kind}",
             recipe["job"][kind], *hook, "--timestep", *times, "--seed", *seeds, "--device", recipe["device"],
             *flags(recipe), *kept]
    return shlex.join(map(str, words))


def commands(found):
    """The commands for all results (read.Found) of a folder: one for those that differ in time step and seed only."""
    alike, together = {}, {}
    for r in found:
        how = json.dumps([r.recipe["config"], r.recipe["device"], r.recipe["dtype"], len(r.steps)], sort_keys=True)
        alike.setdefault((how, r.t), []).append(r)
    for (how, _), results in alike.items():
        together.setdefault((how, tuple(r.seed for r in results)), []).append(results[0])
    return [command(results[0].recipe, [r.t for r in results], seeds, len(results[0].steps))
            for (_, seeds), results in together.items()]
