"""The command line of the activity: capture, analyse, show, label, sample. run.py does the work."""
import sys
from itertools import chain
from pathlib import Path

from activity import run
from activity.capture import FIELDS
from activity.prompts import GRIDS
from command.flags import Parser, add_model, add_out, guarded, numbers
from config import SEEDS, flag


def steering(text):
    """Read "12=300" as (12, 300.0)."""
    target, scale = text.split("=")
    return int(target), float(scale)


def add_common(parser):
    add_model(parser)
    add_out(parser)
    parser.add_argument("--hook-point", metavar="NAME", help="where in the UNet (default: where the SAE is, or up1.1); "
                        "away from an SAE there are only raw channels")


def add_settings(parser, *names):
    """Add flags for these settings of a capture, whose defaults the weights may change."""
    for name in names:
        field = FIELDS[name]
        choices, says = field.metadata["choices"], f"{field.metadata['help']} [{field.default}, or as the weights say]"
        parser.add_argument(flag(name), type=field.type, choices=choices, metavar=None if choices else "X", help=says)


def parse(argv):
    parser = Parser(prog="activity", description="When, and on which images, the features of a model fire.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    sub = commands.add_parser("capture", help="generate images from prompts, record what every feature does")
    add_common(sub)
    add_settings(sub, *FIELDS)
    sub.add_argument("--prompts", type=Path, metavar="FILE", help="one a line, or .jsonl with a key text; or a grid of "
                     f"objects and styles, {' or '.join(GRIDS)} [thesis, or as the weights say]")
    sub.add_argument("--check", action="store_true", help="say what it would take, and stop")

    sub = commands.add_parser("analyse", help="profile, peaks and dataset examples of features")
    add_common(sub)
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--feature", type=numbers, nargs="+", metavar="F")
    what.add_argument("--channel", type=numbers, nargs="+", metavar="C")

    sub = commands.add_parser("show", help="cards of features: how often and how strongly active, and their neighbours")
    add_common(sub)
    sub.add_argument("numbers", type=numbers, nargs="+", metavar="N")
    sub.add_argument("--channel", action="store_true", help="raw channels in place of features")

    sub = commands.add_parser("label", help="find the feature of each of some words, and write the SAE's labels.json")
    add_common(sub)
    sub.add_argument("--words", type=Path, metavar="FILE", required=True, help="one a line, spelled as in the prompts; "
                     "or objects or styles, those of UnlearnCanvas")

    sub = commands.add_parser("sample", help="generate an image, and the same one steered by features")
    add_common(sub)
    add_settings(sub, "steps", "sampler", "guidance")
    sub.add_argument("prompt")
    sub.add_argument("--steer", type=steering, nargs="+", default=[], metavar="F=S",
                     help="feature F, S times its largest mean activation")
    sub.add_argument("--steer-channel", type=steering, nargs="+", default=[], metavar="C=S",
                     help="the same for raw channels")
    sub.add_argument("--seed", type=int, nargs="+", default=[SEEDS[0]], dest="seeds")
    return vars(parser.parse_args(argv))


def start(command, weights, device, dtype, hook_point, out, **values):
    kind = "channel" if values.get("channel") else "feature"
    given = list(chain(*(values.get("numbers") or values.get(kind) or ())))
    model = run.open_model(weights, device, dtype, hook_point, kind, given)
    if command in ("analyse", "show"):
        values = {"kind": kind, "numbers": given or [model.settings.get("feature", 0)]}
    getattr(run, command)(model, out, **values)
    return 0


def main(argv=None):
    return guarded("activity", lambda: start(**parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
