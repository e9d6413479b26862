"""Flags that several commands share, and their errors. Nothing here needs torch: help and wrong
flags are answered at once.
"""
import argparse
import os
import signal
import sys
from pathlib import Path

from config import PRESETS, ROBUSTNESS, SETTINGS, flag
from weights.disk import WeightsError

PROJECT = Path(__file__).resolve().parent.parent


class Parser(argparse.ArgumentParser):
    """argparse, with errors on one line and help of a line a flag."""

    def __init__(self, **settings):
        form = lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=118)
        super().__init__(**{"formatter_class": form} | settings)

    def error(self, message):
        name = self.prog.split()[0].removesuffix(".py")
        self.exit(2, f"{name}: {message} (python {self.how} --help lists all flags)\n")

    @property
    def how(self):
        """The command as it is typed after `python`."""
        return self.prog if self.prog.endswith(".py") else f"-m {self.prog}"


def shard(text):
    """"1/4" -> (1, 4): the second of four."""
    rank, shards = (int(part) for part in text.split("/"))
    if not 0 <= rank < shards:
        raise ValueError
    return rank, shards


def find_shard(given):
    """Which share of the work is this process's: --shard, else torchrun's, else a SLURM array's; (0, 1) when alone."""
    env = os.environ
    if given:
        return given
    for rank, shards, first in (("RANK", "WORLD_SIZE", ""),
                                ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN")):
        if rank in env and shards in env:
            try:
                return shard(f"{int(env[rank]) - int(env.get(first, 0))}/{env[shards]}")
            except ValueError as e:
                raise ValueError(f"{rank} is {env[rank]} and {shards} {env[shards]}: expected consecutive numbers; "
                                 "give --shard I/N") from e
    return 0, 1


def folder(text):
    """A flag's type: a path that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; give a folder, such as out")
    return Path(text)


def add_model(group):
    """Which model, on what: for every command that runs one."""
    group.add_argument("--weights", type=folder, metavar="PATH", help="model folder or single .safetensors file "
                       "(default: Stable Diffusion's folder where it is, else weights/toy)")
    group.add_argument("--ema", action="store_true", help="of a single file with two sets of weights, the averaged one")
    group.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    group.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), metavar="TYPE",
                       help="float32, float16, bfloat16 (default: float32, on cuda bfloat16)")


def add_out(group):
    group.add_argument("--out", type=folder, default=Path("out"), metavar="FOLDER", help="of results (default: out)")


def add_shard(group):
    group.add_argument("--shard", type=shard, metavar="I/N",
                       help="the I-th of N shares, I from 0 (default: torchrun's or SLURM's)")


def add_settings(group):
    """A flag for every setting of config.Config."""
    group.add_argument("--preset", choices=(*PRESETS, "quick"), help="all of them at once; quick: fewer, larger steps "
                       "(default: sae, or raw with --channel)")
    group.add_argument("--robustness", type=int, choices=range(len(ROBUSTNESS)), help="--jitter-max, --rotate-max and "
                       "--scale-max by level, 0 to 3 [1]")
    for name, field in SETTINGS.items():
        sae, raw = (getattr(PRESETS[preset], name) for preset in ("sae", "raw"))
        kind = {"type": field.type, "metavar": "X"}
        if field.type is bool:
            kind, sae = {"action": argparse.BooleanOptionalAction}, "on" if sae else "off"
        elif field.metadata["choices"]:
            kind = {"choices": field.metadata["choices"]}
        differs = f"; raw {raw}" if raw != getattr(PRESETS["sae"], name) else ""
        says = f"{field.metadata['help']} [{sae}{differs}]"
        group.add_argument(flag(name), default=argparse.SUPPRESS, help=says, **kind)


def check_numbers(args):
    """ValueError for a flag that is out of range whatever the model."""
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.frames != 0 and not 2 <= args.frames <= 50:
        raise ValueError(f"--frames must be 0 or between 2 and 50, got {args.frames}")


def check_steps(steps, num_steps):
    """ValueError for a step of --trace that the ascent does not have."""
    for k in steps:
        if not 0 <= k < num_steps:
            raise ValueError(f"--trace {k} is out of range: the ascent has {num_steps} steps, "
                             f"0..{num_steps - 1} (--num-steps sets how many)")


def load_torch():
    """Import torch, most of the start. Ctrl-C meanwhile counts when it is there: an import that is broken off leaves
    half of numpy behind, and torch hides that."""
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        import torch                                            # noqa: F401
    finally:
        signal.signal(signal.SIGINT, before)
    if came and callable(before):                               # else the shell wants it to be ignored
        raise KeyboardInterrupt


def guarded(name, work, *args):
    """The exit code of work(*args): what cannot be ends in one line on stderr and 2."""
    try:
        return work(*args)
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; finished results stay, the same command goes on from there", file=sys.stderr)
        return 130
    except (WeightsError, ValueError, OSError) as e:
        error, hint = e, "; make room or give another --out, finished results stay" if isinstance(e, OSError) else ""
    except ModuleNotFoundError as e:
        error, hint = f"{e.name} is not installed; pip install -r requirements.txt", ""
    except RuntimeError as e:
        if type(e).__name__ != "OutOfMemoryError":              # torch's, without importing torch
            raise
        error, hint = e, ""
    print(f"{name}: " + " ".join(str(error).split()) + hint, file=sys.stderr)
    return 2
