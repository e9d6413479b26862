"""Sentences of the pages: numbers to read, verdicts with their numbers, meanings of terms, the command of a result."""
import shlex
import tomllib

from config import SETTINGS, flag
from pages.web import asset

TEXTS = tomllib.loads(asset("words.toml"))


def short(value):
    """Format a number to read."""
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def count(n, thing):
    """Format a number of things: "1 file", "1,200 files"."""
    return f"{n:,} {thing}{'s' * (n != 1)}"


def label(r):
    """Name a result, for headings and alternative texts."""
    return ", ".join(filter(None, (f"{r.kind} {r.target}", f"time step {r.t}", f"seed {r.seed}", typed(r.recipe))))


def meaning(r):
    """Say what a picture's verdict means."""
    return TEXTS["verdicts"].get(r.verdict.partition(" ")[0], "")


def reason(r):
    """Explain a picture's verdict by its own numbers, in one sentence."""
    rank, most = r.scores.get("rank"), r.scores.get("dataset_largest")
    small = r.verdict == "raised" and rank is not None and rank <= 10 and most
    said = TEXTS["reasons"].get("small" if small else r.verdict, meaning(r))
    return said.format_map({name: short(score) for name, score in r.scores.items()})


def typed(recipe):
    """Write the settings of a recipe that are not usual as they are typed: "--no-noise --num-steps 3"; "" for none."""
    words = []
    for name, value in recipe["differs"].items():
        if isinstance(value, bool):
            words.append(flag(name if value else f"no-{name}"))
        elif name in SETTINGS or name == "dtype":
            words += [flag(name), *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)


def command(recipe, times, seeds):
    """Write the command that makes this recipe's result at these time steps and seeds."""
    kind, target = recipe["job"]["kind"], recipe["job"]["target"]
    words = ["python", "featviz.py", "--weights", f"weights/{recipe['weights']}", "--hook-point", recipe["hook_point"]]
    words += [f"--{kind}", *["FILE.safetensors"] * (kind == "direction"), target]
    words += ["--timestep", *times, "--seed", *seeds, "--device", recipe["device"]]
    return f"{shlex.join(map(str, words))} {typed(recipe)}".strip()
