"""The command line of the activity: capture, merge, analyse, match, sample. run.py does the work.

Whatever cannot be ends in one line on stderr that says what to do, and exit code 2.
"""
import argparse
import sys
from pathlib import Path

from command.flags import Parser, add_model, add_out, add_shard, guarded, load_torch
from config import DISTANCE, HALVES, PEAKS, SEEDS, SETTINGS, TOP


def steering(text):
    """"12=300" -> (12, 300.0)."""
    target, scale = text.split("=")
    return int(target), float(scale)


def add_hook_point(parser):
    parser.add_argument("--hook-point", metavar="NAME", help="where in the UNet (default: where the SAE is, or up1.1); "
                        "away from the SAE there are raw channels alone")


def add_sampling(parser):
    parser.add_argument("--steps", type=int, metavar="N", help="sampling steps (default: 50)")
    parser.add_argument("--sampler", choices=SETTINGS["prior_sampler"].metadata["choices"],
                        help="(default: pndm, or the weights' own)")
    parser.add_argument("--guidance", type=float, metavar="G", help="(default: 7.5, or the weights' own)")
    parser.add_argument("--batch-size", type=int, metavar="B", help="images that are computed together")


def parse(argv):
    parser = Parser(prog="activity", description="When, and on which images, the features of a model fire.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    plain = dict(formatter_class=argparse.RawDescriptionHelpFormatter)

    sub = commands.add_parser("capture", help="generate images from prompts, record what every feature does", **plain)
    add_model(sub)
    add_out(sub)
    add_hook_point(sub)
    add_sampling(sub)
    add_shard(sub)
    sub.add_argument("--prompts", type=Path, metavar="FILE", help="one a line, or .jsonl with a key text; or a grid of "
                     "objects and styles, thesis (20 x 61) or unlearncanvas (20 x 51) (default: the weights' own, or "
                     "thesis)")
    sub.add_argument("--images-per-prompt", type=int, metavar="N", help="(default: 5, or the weights' own)")
    sub.add_argument("--top", type=int, metavar="K", help="a feature is active in an image when it is among so many "
                     f"(default: {TOP}, or the weights' own)")
    sub.add_argument("--halves", choices=HALVES, help="of the guided batch: the one that saw the prompts, or as in the "
                     "original both (default: conditional, or the weights' own)")
    sub.add_argument("--check", action="store_true", help="say how long it would take, how much disk and memory")

    sub = commands.add_parser("merge", help="put a capture's shards together; the last to finish does it by itself")
    sub.add_argument("folder", type=Path)

    sub = commands.add_parser("analyse", help="profile, peaks and dataset examples of features", **plain)
    add_model(sub)
    add_out(sub)
    add_hook_point(sub)
    sub.add_argument("--distance", type=int, default=DISTANCE, metavar="T",
                     help=f"time steps between peaks (default: {DISTANCE})")
    sub.add_argument("--most-peaks", type=int, default=PEAKS, metavar="N",
                     help=f"peaks kept, the highest (default: {PEAKS})")
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--feature", type=int, nargs="+", metavar="F")
    what.add_argument("--channel", type=int, nargs="+", metavar="C")

    sub = commands.add_parser("match", help="the features that fit a text or a picture", **plain)
    add_model(sub)
    add_out(sub)
    add_hook_point(sub)
    sub.add_argument("query", metavar="TEXT", help="such as \"a photo of a tree\", or the path of a picture")

    sub = commands.add_parser("sample", help="generate an image, and the same one steered by features", **plain)
    add_model(sub)
    add_out(sub)
    add_hook_point(sub)
    add_sampling(sub)
    sub.add_argument("prompt")
    sub.add_argument("--steer", type=steering, nargs="+", default=[], metavar="F=S",
                     help="feature F, S times its largest mean activation")
    sub.add_argument("--steer-channel", type=steering, nargs="+", default=[], metavar="C=S",
                     help="the same for raw channels")
    sub.add_argument("--seed", type=int, nargs="+", default=[SEEDS[0]])
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    return guarded("activity", start, args)


def start(args):
    load_torch()
    from activity import run                    # torch, which help and wrong flags need not wait for
    return getattr(run, args.command)(args)


if __name__ == "__main__":
    sys.exit(main())
