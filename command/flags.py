"""Flags of featviz.py and of several commands, and errors on one line. Without torch: help is shown at once."""
import argparse
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

from command.progress import warn
from config import PRESETS, SEEDS, SETTINGS, StepOrAuto, check_setting, flag


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line and help of a line a flag."""

    def __init__(self, **settings):
        form = partial(argparse.RawDescriptionHelpFormatter, max_help_position=34, width=118)
        super().__init__(formatter_class=form, **settings)

    def error(self, message):
        self.exit(2, f"{self.prog.split()[0].removesuffix('.py')}: {message} (--help lists all flags)\n")


def numbers(text):
    """Read "12" as [12], "0-199" as [0, ..., 199]."""
    first, dash, last = text.partition("-")
    with suppress(ValueError):
        if found := list(range(int(first), int(last if dash else first) + 1)):
            return found
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number and no range such as 0-199")


def numbers_or_word(text):
    """Read numbers, or a word, such as live or a label: ["cat"]."""
    return numbers(text) if text[:1].isdigit() else [text]


def step(text):
    """Read a time step, or a word that stands for some."""
    return text if text in ("auto", "active") else int(text)


def shard(text):
    """Read "1/4" as (1, 4): the second of four shares, counted from 0."""
    rank, shards = map(int, text.split("/"))
    if not 0 <= rank < shards:
        raise ValueError
    return rank, shards


READERS = {bool: lambda text: bool(("off", "on").index(text)), StepOrAuto: step}                # of a setting


def axis(text):
    """Read "range_weight=0,0.5" as ("range_weight", [0.0, 0.5])."""
    name, _, values = text.partition("=")
    if name not in SETTINGS:
        raise ValueError
    kind = SETTINGS[name].type
    return name, [READERS.get(kind, kind)(value) for value in values.split(",")]


def add_model(group):
    """Add the flags that say which model runs, on what, seen where."""
    group.add_argument("--weights", type=Path, metavar="PATH",
                       help="model folder (default: Stable Diffusion's where it is, else weights/toy)")
    group.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    group.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), metavar="TYPE",
                       help="float32, float16, bfloat16 (default: float32; on a card bfloat16, else float16)")
    group.add_argument("--hook-point", metavar="NAME", help="attention, resnet or convolution by its name in the UNet "
                       "(default: the SAE's, or up1.1); without an SAE there are only raw channels")


def add_out(group):
    group.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER", help="of results (default: out)")


def add_settings(group, fields, raw=None):
    """Add a flag for each field of settings; the help says where the preset `raw` has another default."""
    for field in fields:
        choices, other = field.metadata["choices"], getattr(raw, field.name, field.default)
        kind = {"type": READERS.get(field.type, field.type), "choices": choices, "metavar": None if choices else "X"}
        if field.type is bool:
            kind = {"action": argparse.BooleanOptionalAction}
        elif field.name == "position":
            kind = {"type": int, "nargs": 2, "metavar": ("Y", "X")}
        differs = f"; raw {other}" if other != field.default else ""
        group.add_argument(flag(field.name), default=argparse.SUPPRESS, **kind,
                           help=f"{field.metadata['help']} [{field.default}{differs}]")


def parse(argv=None):
    """Parse the command line: (flags, {setting: value} of those that are given). ValueError for one out of range."""
    parser = Parser(prog="featviz.py", usage="python featviz.py [--feature F ...] [--timestep T ...] ...",
                    description="See what one feature inside a latent diffusion model responds to. Several features, "
                    "time steps and seeds give every combination.")
    group = parser.add_argument_group("what to look at")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--feature", type=numbers_or_word, nargs="+", metavar="F", help="features of the sparse "
                      "autoencoder by number, range (0-199) or label; live: all that are active in the capture")
    what.add_argument("--channel", type=numbers, nargs="+", metavar="C", help="raw channels at the hook point")
    what.add_argument("--direction", nargs="+", metavar="FILE [NAME]", help="vectors (D,) of a safetensors file, such "
                      "as a probe's weight or a difference of means: all, or those that are named")
    what.add_argument("--thesis", action="store_true", help="the thesis' five features, or the weights' own five, with "
                      "word and example prompt, on one page")
    group.add_argument("--timestep", type=step, nargs="+", metavar="T", help="0..999; auto: 0 and the peaks of the "
                       "activity; active: 0 and all steps where it is active (default: the weights' own, else auto)")
    group.add_argument("--seed", type=int, nargs="+", metavar="S", help=f"a result each (default: {str(SEEDS)[1:-1]})")
    group = parser.add_argument_group("how")
    add_model(group)
    group.add_argument("--batch-size", type=int, metavar="B",
                       help="jobs that are computed together, at most (default: what fits the device)")
    group.add_argument("--shard", type=shard, default=(0, 1), metavar="I/N",
                       help="the I-th of N shares, I from 0, so that several processes divide the features")
    group.add_argument("--check", action="store_true", help="say what would run, how long, in what memory; then stop")
    group = parser.add_argument_group("where to, and what beside the result")
    add_out(group)
    group.add_argument("--frames", type=int, default=8, metavar="N", help="pictures to keep, 2 to 50 or 0 (default: 8)")
    group.add_argument("--sound", action=argparse.BooleanOptionalAction, help="a .wav beside every picture, read as a "
                       "spectrogram (default: on where featviz.json of the weights says so, as Riffusion's)")
    group.add_argument("--again", action="store_true", help="compute results again that are there already")
    group = group.add_mutually_exclusive_group()
    group.add_argument("--trace", type=int, nargs="+", metavar="K", help="no results: open up these steps instead")
    group.add_argument("--sweep", type=axis, nargs="+", default=[], metavar="NAME=V,V", help="every combination of "
                       "settings, such as range_weight=0,0.5 noise=on,off, on a sheet; by default of one seed and T")
    group = parser.add_argument_group("settings of the method", "in brackets what the preset sae has, and raw where it "
                                      "differs; weights may bring their own; docs/method.md explains each")
    group.add_argument("--preset", choices=(*PRESETS, "quick"), help="all of them at once; quick: fewer, larger steps "
                       "(default: sae, or raw with --channel)")
    add_settings(group, SETTINGS.values(), PRESETS["raw"])
    args = parser.parse_args(argv)
    size, frames, given = args.batch_size, args.frames, {}
    if size is not None and size < 1 or frames != 0 and not 2 <= frames <= 50:
        raise ValueError(f"--batch-size must be at least 1 and --frames 0 or 2 to 50, got {size} and {frames}")
    for name in [name for name in SETTINGS if name in args]:
        value = getattr(args, name)
        check_setting(name, SETTINGS[name], value)
        given[name] = tuple(value) if name == "position" else value
    return args, given


def guarded(name, work, *args):
    """Return what work(*args) does, or 0, as exit code; 2 after one line on stderr where it cannot be done."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):                      # a console that lacks a letter does not end the work
            stream.reconfigure(errors="replace")
    try:
        return work(*args) or 0
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
