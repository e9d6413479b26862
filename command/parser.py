"""The command line of featviz.py: every flag, and what is wrong with one whatever the model."""
import argparse

from command.flags import READERS, Parser, add_model, add_out, add_settings, numbers, whole_or
from config import SEEDS, SETTINGS, check_setting

FRAMES = 8                                      # pictures of the course that a run keeps


def numbers_or_words(text):
    """Read a flag's value: numbers, or a word, such as live or a label: ["cat"]."""
    return numbers(text) if text[:1].isdigit() else [text]


def shard(text):
    """Read "1/4" -> (1, 4): the second of four shares, counted from 0."""
    rank, shards = map(int, text.split("/"))
    if not 0 <= rank < shards:
        raise ValueError
    return rank, shards


def axis(text):
    """Read "range_weight=0,0.5" -> ("range_weight", [0.0, 0.5])."""
    name, _, values = text.partition("=")
    if name not in SETTINGS:
        raise ValueError
    kind = SETTINGS[name].type
    return name, [READERS.get(kind, kind)(value) for value in values.split(",")]


def parse(argv=None):
    """Parse the command line: (flags, {setting: value} of those that are given). ValueError for one out of range."""
    parser = Parser(prog="featviz.py", usage="python featviz.py [--feature F ...] [--timestep T ...] ...",
                    description="See what one feature inside a latent diffusion model responds to. Several features, "
                    "time steps and seeds give every combination.")
    group = parser.add_argument_group("what to look at")
    what = group.add_mutually_exclusive_group()
    what.add_argument("--feature", type=numbers_or_words, nargs="+", metavar="F", help="features of the sparse "
                      "autoencoder by number, range (0-199) or label; live: all that are active in the capture")
    what.add_argument("--channel", type=numbers, nargs="+", metavar="C", help="raw channels at the hook point")
    what.add_argument("--direction", nargs="+", metavar="FILE [NAME]", help="vectors (D,) of a safetensors file, such "
                      "as a probe's weight or a difference of means: all, or those that are named")
    what.add_argument("--thesis", action="store_true", help="the thesis' five features, or the weights' own five, with "
                      "word and example prompt, on one page")
    group.add_argument("--timestep", type=whole_or("auto", "active"), nargs="+", metavar="T",
                       help="0..999; auto: 0 and the peaks of the feature's activity; active: 0 and all sampling "
                       "steps at which it is active (default: the weights' own, else auto)")
    group.add_argument("--seed", type=int, nargs="+", metavar="S",
                       help=f"a result each (default: {' '.join(map(str, SEEDS))})")
    group = parser.add_argument_group("how")
    add_model(group)
    group.add_argument("--batch-size", type=int, metavar="B", help="jobs that are computed together, at most (default: "
                       "what fits the device)")
    group.add_argument("--shard", type=shard, default=(0, 1), metavar="I/N", help="the I-th of N shares, I from 0, so "
                       "that several processes divide the features")
    group.add_argument("--check", action="store_true", help="say what would run, how long, in what memory; then stop")
    group = parser.add_argument_group("where to, and what beside the result")
    add_out(group)
    group.add_argument("--frames", type=int, default=FRAMES, metavar="N",
                       help=f"pictures of the course to keep, 2 to 50, or 0 (default: {FRAMES})")
    group.add_argument("--sound", action=argparse.BooleanOptionalAction, help="a .wav beside every picture, read as a "
                       "spectrogram (default: on where featviz.json of the weights says so, as Riffusion's)")
    group.add_argument("--again", action="store_true", help="compute results again that are there already")
    group = group.add_mutually_exclusive_group()
    group.add_argument("--trace", type=int, nargs="+", metavar="K", help="no results: open up these steps instead")
    group.add_argument("--sweep", type=axis, nargs="+", default=[], metavar="NAME=V,V",
                       help="every combination of these settings, such as range_weight=0,0.5 noise=on,off, on one "
                       "sheet, by default of one time step and seed")
    add_settings(parser.add_argument_group(
        "settings of the method", "in brackets what the preset sae has, and raw where it differs; weights may bring "
        "their own; docs/method.md explains each"))
    args = parser.parse_args(argv)
    size, frames = args.batch_size, args.frames
    if size is not None and size < 1 or frames != 0 and not 2 <= frames <= 50:
        raise ValueError(f"--batch-size must be at least 1 and --frames 0 or 2 to 50, got {size} and {frames}")
    given = {name: getattr(args, name) for name in SETTINGS if hasattr(args, name)}
    given |= {"position": tuple(given["position"])} if "position" in given else {}
    for name, value in given.items():
        check_setting(name, SETTINGS[name], value)
    return args, given
