"""Capture what the features of a model do, look one up, find those of words, sample steered images."""
import json
import sys
from pathlib import Path

import torch

from activity.analysis import analysis, find_labels, lines, save_activity, save_labels
from activity.capture import FIELDS, GRIDS, WORDS, attach, capture, configure, probe, read_lines
from activity.profile import find_capture, folder_name
from command.flags import Parser, add_model, add_out, add_settings, guarded, numbers
from command.progress import say
from config import SEEDS, Job
from results import file_name, folder_of, read_results, write
from steering import directions, sample
from vae import to_png
from visualize import check_numbers
from weights.fetch import choose_weights
from weights.load import load


def record(model, args):
    model.require("vae", "text_encoder", "tokenizer")
    folder = args.out / model.name / folder_name(model.hook_point)
    capture(model, configure(model, **args.settings), folder)
    say(f"look at {folder}")


def describe(model, args):
    """Print what is known of features; `analyse` also writes it to activity.json."""
    kind, wanted = args.kind, args.targets or [model.settings.get("feature", 0)]
    check_numbers(model, kind, wanted)
    attach(model, args.out)
    for n in wanted:
        folder = folder_of(args.out, model.name, model.hook_point, kind, n)
        found = analysis(model, kind, n, {r.t for r in read_results(folder)})
        say("\n".join(lines(kind, n, found)))
        if args.command == "analyse":
            say(f"look at {save_activity(folder, found)}")


def label(model, args):
    """Find the feature of each word in a file, print them, and write the SAE's labels.json."""
    model.require("sae")
    attach(model, args.out)
    found = find_labels(model.capture, WORDS.get(str(args.words)) or read_lines(args.words))
    say(f"{'word':<24} {'feature':>7} {'score':>8} {'runner-up':>9} {'score':>8} {'prompts':>7}")
    for one in found:
        say("{word:<24} {feature:7d} {score:8.4f} {runner_up:9d} {runner_up_score:8.4f} {prompts:7d}".format(**one))
    path = next(path for name, path in model.files.items() if name.endswith("cfg.json")).with_name("labels.json")
    save_labels(path, found)
    say(f"look at {path}")


def draw(model, args):
    """Write an image of the prompt and, with --steer, the steered one beside it."""
    settings, kind, adds = configure(model, **args.settings), "feature" if model.sae else "channel", [None]
    if args.steer:
        jobs = [Job(kind, n) for n, _ in args.steer]
        check_numbers(model, kind, [job.target for job in jobs])
        known = find_capture(model, args.out) or probe(model, args.out)
        s = torch.stack([scale * known.strength(kind, n) for n, scale in args.steer], dim=1)                # (1001, J)
        push = (s.to(model.device) @ directions(model, jobs)).to(model.dtype)                   # (1001, D)
        adds.append(lambda t: push[t][None])
    name = "_".join(["-".join(args.prompt.lower().split()), *(f"{kind[0]}{n}={scale:g}" for n, scale in args.steer)])
    context, sampling = model.embed([args.prompt]), (settings.sampler, settings.steps, settings.guidance)
    for seed in args.seed:
        noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(seed)).to(model.device)
        images = [model.decode(sample(model, noise, context, *sampling, add))[0].cpu() for add in adds]
        path = args.out / model.name / folder_name(model.hook_point, "samples") / f"{file_name(name)}_seed_{seed}.png"
        said = {"prompt": args.prompt, "steer": args.steer, "seed": seed}
        write(path, to_png(torch.cat(images, dim=2), featviz=json.dumps(said)))
        say(f"look at {path}")


def steering(text):
    """Read "12=300" as (12, 300.0)."""
    target, scale = text.split("=")
    return int(target), float(scale)


def parse(argv):
    parser = Parser(prog="activity", description="When, and on which images, the features of a model fire.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    def command(name, work, says, settings=()):
        sub = commands.add_parser(name, help=says)
        sub.set_defaults(work=work, feature=[], channel=[])
        add_settings(sub, [FIELDS[name] for name in settings])  # their defaults are the model's
        add_model(sub)
        add_out(sub)
        return sub

    sub = command("capture", record, "generate images from prompts, record what every feature does", FIELDS)
    sub.add_argument("--prompts", type=Path, metavar="FILE", help="one a line; or a grid of objects and styles, "
                     f"{' or '.join(GRIDS)} [thesis]")
    sub = command("analyse", describe, "card, profile, peaks and dataset examples of features, for their pages")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--feature", type=numbers, nargs="+", metavar="F")
    which.add_argument("--channel", type=numbers, nargs="+", metavar="C")
    sub = command("show", describe, "the same in the terminal alone")
    sub.add_argument("feature", type=numbers, nargs="+", metavar="F")
    sub = command("label", label, "find the feature of each of some words, and write the SAE's labels.json")
    sub.add_argument("--words", type=Path, metavar="FILE", required=True, help="one a line, spelled as in the prompts; "
                     "or objects or styles, those of UnlearnCanvas")
    sub = command("sample", draw, "generate an image, and the same one steered by features",
                  ("steps", "sampler", "guidance"))
    sub.add_argument("prompt")
    sub.add_argument("--steer", type=steering, nargs="+", default=[], metavar="F=S", help="feature F, S times its "
                     "largest mean activation; away from an autoencoder: channel F")
    sub.add_argument("--seed", type=int, nargs="+", default=SEEDS[:1])
    return parser.parse_args(argv)


def run(args):
    args.kind, args.targets = "channel" if args.channel else "feature", sum(args.channel or args.feature, [])
    args.settings = {name: value for name, value in vars(args).items() if name in ("prompts", *FIELDS)}
    path = choose_weights(args.weights, args.kind, args.targets or ["any"])
    args.work(load(path, args.device, args.dtype, args.hook_point), args)


def main(argv=None):
    return guarded("activity", run, parse(argv))


if __name__ == "__main__":
    sys.exit(main())
