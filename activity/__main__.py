"""Capture what the features of a model do, look one up, find those of words, sample steered images."""
import json
import re
import sys
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from activity.analysis import analysis, save_activity
from activity.capture import FIELDS, capture, configure
from activity.card import card, lines
from activity.label import find_labels, save_labels
from activity.probe import attach
from activity.profile import folder_name
from activity.prompts import GRIDS, WORDS, read_prompts
from command.flags import Parser, add_model, add_out, guarded, numbers
from command.progress import CaptureProgress, say, warn
from config import SEEDS, Job, flag
from results import file_name, folder_of, replacing, times_in
from steering import directions
from steering import sample as steered_sample
from vae import to_uint8
from visualize import check_jobs
from weights.choose import choose_weights
from weights.load import load


def run_capture(model, out, settings):
    """Record a capture."""
    settings, folder = configure(model, **settings), out / model.name / folder_name(model.hook_point)
    model.require("vae", "text_encoder", "tokenizer")
    warn(f"{settings.images} images of {len(settings.prompts)} prompts, {settings.steps} {settings.sampler} steps, "
         f"guidance {settings.guidance}, {model.folder} on {model.device}")
    capture(model, settings, folder, CaptureProgress())
    say(f"look at {folder}")


def analyse(model, out, kind, given):
    """Print card, peaks and examples of features, and write activity.json for their pages."""
    wanted = given or [model.settings.get("feature", 0)]
    check_jobs(model, [Job(kind, n) for n in wanted])
    attach(model, out)
    for n in wanted:
        folder = folder_of(out, model.name, model.hook_point, kind, n)
        found = analysis(model, kind, n, times_in(folder))
        for line in lines(card(model, kind, n)):
            say(line)
        say(f"  active at {found['active']} of 1001 time steps, peaks at {found['peaks'] or 'none'}")
        for t, examples in found["examples"].items():
            for e in examples[:3]:
                say(f"  t {t}: activation {e['activation']:.4f}, image {e['image']}: {e['prompt']}")
        say(f"look at {save_activity(folder, found)}")


def show(model, out, kind, given):
    """Print the card of features, and write nothing."""
    check_jobs(model, [Job(kind, n) for n in given])
    attach(model, out)
    for n in given:
        for line in lines(card(model, kind, n)):
            say(line)


def label(model, out, words):
    """Find the feature of each word in a file, print them, and write the SAE's labels.json."""
    model.require("sae")
    attach(model, out)
    texts = WORDS.get(str(words)) or read_prompts(words)
    found = find_labels(model.capture, [text.replace("_", " ") for text in texts])
    say(f"{'word':<24} {'feature':>7} {'score':>8} {'runner-up':>9} {'score':>8} {'prompts':>7}")
    for one in found:
        say(f"{one.word:<24} {one.feature:7d} {one.score:8.4f} {one.runner_up:9d} {one.runner_up_score:8.4f} "
            f"{one.prompts:7d}")
    path = next(path for name, path in model.files.items() if name.endswith("cfg.json")).with_name("labels.json")
    for one in save_labels(path, found):
        warn(f"{one.word}: its feature {one.feature} is kept for a word with a higher score")
    say(f"look at {path}")


def sample(model, out, prompt, seeds, entries, settings):
    """Write an image of the prompt and, where `entries` [(kind, number, scale)] steer, the steered one beside it."""
    settings, push, adds = configure(model, **settings), 0, [None]
    if entries:
        for kind, n, _ in entries:
            check_jobs(model, [Job(kind, n)])
        attach(model, out, make=True)
        adds.append(lambda t: {model.hook_point: push[t][None].to(model.dtype)})
    for kind, n, scale in entries:
        d = directions(model, [Job(kind, n)])                                                   # (1, D)
        push = push + scale * model.capture.strength(kind, n)[:, None].to(d) * d                # (1001, D)
    context, sampling = model.embed([prompt]), (settings.sampler, settings.steps, settings.guidance)
    made = {name: value for name, value in asdict(settings).items() if name != "prompts"} | {
        "prompt": prompt, "steer": entries, "weights": model.name, "hook_point": model.hook_point,
        "fingerprints": model.fingerprints}
    name = file_name(re.sub(r"\W+", "-", prompt.lower()).strip("-")) or "empty"
    name += file_name("".join(f"_{kind[0]}{n}={scale:g}" for kind, n, scale in entries))
    for seed in seeds:
        noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(seed)).to(model.device)
        images = [model.decode(steered_sample(model, noise, context, *sampling, add))[0] for add in adds]
        path = out / model.name / folder_name(model.hook_point, "samples") / f"{name}_seed_{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = PngInfo()
        text.add_text("featviz", json.dumps(made | {"seed": seed}, sort_keys=True))
        with replacing(path) as file:
            Image.fromarray(to_uint8(torch.cat(images, dim=2).cpu())).save(file, format="PNG", pnginfo=text)
        say(f"look at {path}")


# --- the command line -------------------------------------------------------------------------------------------------

def steering(text):
    """Read "12=300" as (12, 300.0)."""
    target, scale = text.split("=")
    return int(target), float(scale)


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
    add_settings(sub, *FIELDS)
    sub.add_argument("--prompts", type=Path, metavar="FILE", help="one a line, or .jsonl with a key text; or a grid of "
                     f"objects and styles, {' or '.join(GRIDS)} [thesis, or as the weights say]")

    sub = commands.add_parser("analyse", help="card, profile, peaks and dataset examples of features")
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--feature", type=numbers, nargs="+", default=(), metavar="F")
    what.add_argument("--channel", type=numbers, nargs="+", default=(), metavar="C")

    sub = commands.add_parser("show", help="the card of features: how often, how strongly, with which others")
    sub.add_argument("feature", type=numbers, nargs="+", metavar="F")

    sub = commands.add_parser("label", help="find the feature of each of some words, and write the SAE's labels.json")
    sub.add_argument("--words", type=Path, metavar="FILE", required=True, help="one a line, spelled as in the prompts; "
                     "or objects or styles, those of UnlearnCanvas")

    sub = commands.add_parser("sample", help="generate an image, and the same one steered by features")
    add_settings(sub, "steps", "sampler", "guidance")
    sub.add_argument("prompt")
    sub.add_argument("--steer", type=steering, nargs="+", default=[], metavar="F=S",
                     help="feature F, S times its largest mean activation")
    sub.add_argument("--steer-channel", type=steering, nargs="+", default=[], metavar="C=S",
                     help="the same for raw channels")
    sub.add_argument("--seed", type=int, nargs="+", default=[SEEDS[0]], dest="seeds")
    for sub in commands.choices.values():
        add_model(sub)
        add_out(sub)
    return parser.parse_args(argv)


def run(args):
    settings = {name: getattr(args, name) for name in (*FIELDS, "prompts") if hasattr(args, name)}
    kind = "channel" if getattr(args, "channel", ()) else "feature"
    given = list(chain(*getattr(args, kind, ())))
    model = load(choose_weights(args.weights, kind, given or ["any"]), args.device, args.dtype, args.hook_point)
    if args.command == "capture":
        run_capture(model, args.out, settings)
    elif args.command == "analyse":
        analyse(model, args.out, kind, given)
    elif args.command == "show":
        show(model, args.out, kind, given)
    elif args.command == "label":
        label(model, args.out, args.words)
    else:
        entries = [("feature", *pair) for pair in args.steer] + [("channel", *pair) for pair in args.steer_channel]
        sample(model, args.out, args.prompt, args.seeds, entries, settings)
    return 0


def main(argv=None):
    return guarded("activity", lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
