"""Flags that several commands share, and their errors. Nothing here needs torch: help and wrong flags are answered at
once.
"""
import argparse
import difflib
import os
import sys
from pathlib import Path

from command.progress import warn
from config import PRESETS, SETTINGS, StepOrAuto, check_setting, flag


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line and help of a line a flag."""

    def __init__(self, **settings):
        form = lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=118)
        super().__init__(**{"formatter_class": form} | settings)

    def error(self, message):
        name = self.prog.split()[0].removesuffix(".py")
        typed = self.prog if self.prog.endswith(".py") else f"-m {self.prog}"
        self.exit(2, f"{name}: {message} (python {typed} --help lists all flags)\n")


def numbers(text):
    """Read a flag's value: "12" -> [12], "0-199" -> [0, ..., 199]."""
    first, dash, last = text.partition("-")
    try:
        found = range(int(first), int(last if dash else first) + 1)
    except ValueError:
        found = ()
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number and no range such as 0-199")
    return list(found)


def numbers_or_words(text):
    """Read a flag's value: numbers as `numbers` reads them, or a word, such as live or a label: ["cat"]."""
    return numbers(text) if text[:1].isdigit() else [text]


def whole_or(*words):
    """Return what reads a flag's value: a whole number, or one of these words."""
    def read(text):
        try:
            return text if text in words else int(text)
        except ValueError:
            wanted = ", ".join(("a whole number", *words[:-1])) + f" or {words[-1]}"
            raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}") from None
    return read


def read_setting(name, text):
    """Read a setting's value as people type it; ValueError for what is none."""
    kind, switch = SETTINGS[name].type, {"on": True, "off": False}
    read = {bool: switch.__getitem__, StepOrAuto: lambda t: t if t == "auto" else int(t)}.get(kind, kind)
    try:
        value = read(text)
    except (KeyError, ValueError):
        wanted = {bool: "on or off", float: "a number"}.get(kind, "a whole number")
        raise ValueError(f"{flag(name)} takes {wanted}, got {text!r}") from None
    check_setting(name, SETTINGS[name], value)
    return value


def shard(text):
    """Read "1/4" -> (1, 4): the second of four shares, counted from 0."""
    rank, _, shards = text.partition("/")
    if not (rank.isdigit() and shards.isdigit() and int(rank) < int(shards)):
        raise argparse.ArgumentTypeError(f"{text!r} is no share of a whole, such as 0/4, the first of four")
    return int(rank), int(shards)


def find_shard(given):
    """Return (rank, shards) of this process: --shard, else torchrun's, else a SLURM array's, said aloud; (0, 1) when
    alone. Variables that are left over, empty or no numbers are not followed, and a line says so."""
    if given:
        return given
    for rank, shards, first in (("RANK", "WORLD_SIZE", ""),
                                ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN")):
        if rank not in os.environ and shards not in os.environ:
            continue
        own, whole = os.environ.get(rank, ""), os.environ.get(shards, "")
        offset = os.environ.get(first, "0")
        if not (own.isdigit() and whole.isdigit() and offset.isdigit() and 0 <= int(own) - int(offset) < int(whole)):
            warn(f"{rank}={own!r} and {shards}={whole!r} in the environment are no share of a whole: all jobs are done "
                 "here (--shard I/N divides them)")
        elif int(whole) > 1:
            share = int(own) - int(offset), int(whole)
            warn(f"share {share[0]} of {share[1]}, as {rank} and {shards} in the environment say (--shard 0/1 does all "
                 "jobs here)")
            return share
    return 0, 1


def folder(text):
    """Read a flag's value: a path that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a folder, such as out")
    return Path(text)


def add_model(group):
    """Add the flags that say which model runs, on what, seen where."""
    group.add_argument("--weights", type=folder, metavar="PATH", help="model folder (default: Stable Diffusion's where "
                       "it is, else weights/toy); anything else goes through python weights/convert.py once")
    group.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    group.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), metavar="TYPE",
                       help="float32, float16, bfloat16 (default: float32; on a card bfloat16 where it has that, else "
                       "float16)")
    group.add_argument("--hook-point", metavar="NAME", help="attention, resnet or convolution by its name in the UNet "
                       "(default: the autoencoder's, or up1.1); away from an autoencoder there are only raw channels")


def add_out(group):
    group.add_argument("--out", type=folder, default=Path("out"), metavar="FOLDER", help="of results (default: out)")


def add_settings(group):
    """Add a flag for every setting of config.Config."""
    group.add_argument("--preset", choices=(*PRESETS, "quick"), help="all of them at once; quick: fewer, larger steps "
                       "(default: sae, or raw with --channel)")
    for name, field in SETTINGS.items():
        sae, raw = (getattr(PRESETS[preset], name) for preset in ("sae", "raw"))
        kind = {"type": whole_or("auto") if field.type == StepOrAuto else field.type, "metavar": "X"}
        if field.type is bool:
            kind, sae = {"action": argparse.BooleanOptionalAction}, "on" if sae else "off"
        elif field.metadata["choices"]:
            kind = {"choices": field.metadata["choices"]}
        elif name == "position":
            kind, sae = {"type": int, "nargs": 2, "metavar": ("Y", "X")}, "the mean"
        differs = f"; raw {raw}" if raw != getattr(PRESETS["sae"], name) else ""
        says = f"{field.metadata['help']} [{sae}{differs}]"
        group.add_argument(flag(name), default=argparse.SUPPRESS, help=says, **kind)


def nearest(word, words):
    """Spell out the words that are most like this one."""
    return ", ".join(difflib.get_close_matches(word, words, n=3, cutoff=0.0))


def guarded(name, work, *args):
    """Return the exit code of work(*args): what cannot be ends in one line on stderr and exit code 2."""
    hint = ""
    try:
        return work(*args)
    except KeyboardInterrupt:
        warn(f"\n{name}: interrupted; finished results stay, the same command goes on from there")
        return 130
    except OSError as e:
        error, hint = e, "; finished results stay: make room or give another folder, and the same command goes on"
    except ValueError as e:
        error = e
    except ModuleNotFoundError as e:
        if e.name.partition(".")[0] not in ("torch", "safetensors", "numpy", "PIL"):
            raise
        error = f"{e.name} is not installed; pip install -r requirements.txt"
    except RuntimeError as e:
        if type(e).__name__ != "OutOfMemoryError" and "not enough memory" not in str(e):        # of a card, of a CPU
            raise
        error = "memory ran out; give a smaller --batch-size, or --dtype float16 on a card"
    warn(f"{name}: " + " ".join(str(error).split()) + hint)
    return 2


def forgiving_console():
    """Let text that a console cannot show be replaced instead of ending the work."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
