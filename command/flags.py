"""Flags that several commands share, and their errors. Nothing here needs torch: help and wrong flags are answered at
once.
"""
import argparse
import sys
from functools import partial
from pathlib import Path

from command.progress import warn
from config import PRESETS, SETTINGS, StepOrAuto, flag


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line and help of a line a flag."""

    def __init__(self, **settings):
        form = partial(argparse.RawDescriptionHelpFormatter, max_help_position=34, width=118)
        super().__init__(**{"formatter_class": form} | settings)

    def error(self, message):
        self.exit(2, f"{self.prog.split()[0].removesuffix('.py')}: {message} (--help lists all flags)\n")


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


def whole_or(*words):
    """Return what reads a flag's value: a whole number, or one of these words."""
    def read(text):
        return text if text in words else int(text)
    read.__name__ = f"whole number or {' or '.join(words)}"     # argparse: "invalid whole number or auto value: 'x'"
    return read


def add_model(group):
    """Add the flags that say which model runs, on what, seen where."""
    group.add_argument("--weights", type=Path, metavar="PATH", help="model folder (default: Stable Diffusion's where "
                       "it is, else weights/toy); anything else goes through python weights/convert.py once")
    group.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    group.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), metavar="TYPE",
                       help="float32, float16, bfloat16 (default: float32; on a card bfloat16 where it has that, else "
                       "float16)")
    group.add_argument("--hook-point", metavar="NAME", help="attention, resnet or convolution by its name in the UNet "
                       "(default: the autoencoder's, or up1.1); away from an autoencoder there are only raw channels")


def add_out(group):
    group.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER", help="of results (default: out)")


READERS = {bool: lambda text: bool(("off", "on").index(text)), StepOrAuto: whole_or("auto")}      # of a setting


def add_settings(group):
    """Add a flag for every setting of config.Config."""
    group.add_argument("--preset", choices=(*PRESETS, "quick"), help="all of them at once; quick: fewer, larger steps "
                       "(default: sae, or raw with --channel)")
    for name, field in SETTINGS.items():
        sae, raw = (getattr(PRESETS[preset], name) for preset in ("sae", "raw"))
        choices = field.metadata["choices"]
        kind = {"type": READERS.get(field.type, field.type), "choices": choices, "metavar": None if choices else "X"}
        if field.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        elif name == "position":
            kind = {"type": int, "nargs": 2, "metavar": ("Y", "X")}
        differs = f"; raw {raw}" if raw != sae else ""
        group.add_argument(flag(name), default=argparse.SUPPRESS, help=f"{field.metadata['help']} [{sae}{differs}]",
                           **kind)


def guarded(name, work, *args):
    """Return the exit code of work(*args): what cannot be ends in one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):                      # a console that lacks a letter does not end the work
            stream.reconfigure(errors="replace")
    try:
        return work(*args)
    except KeyboardInterrupt:
        warn(f"\n{name}: interrupted; finished results stay, the same command goes on from there")
        return 130
    except OSError as e:
        error = f"{e}; finished results stay: make room or give another folder, and the same command goes on"
    except ValueError as e:
        error = e
    except ModuleNotFoundError as e:
        error = f"{e.name} is not installed; pip install -r requirements.txt"
    except RuntimeError as e:
        if type(e).__name__ != "OutOfMemoryError" and "not enough memory" not in str(e):        # of a card, of a CPU
            raise
        error = "memory ran out; give a smaller --batch-size, or --dtype float16 on a card"
    warn(f"{name}: " + " ".join(str(error).split()))
    return 2
