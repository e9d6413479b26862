"""Train a sparse autoencoder on one's own model: `python -m dictionary --weights weights/sd15 --prompts prompts.txt`.

    collect.py   images from the prompts; activations at the hook point, at random positions
    train.py     the SAE, twice with different seeds; what it explains of prompts that it never saw

The SAE goes into the model's folder, sae/<hook point>/, where featviz.py finds it. Activations and checkpoints stay in
--work, so that a run that was stopped goes on.
"""
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from activity.capture import configure
from command.flags import Parser, add_model, guarded
from command.progress import say
from dictionary.collect import Request, observe
from dictionary.train import Recipe, export, learn
from unet import updates
from weights.load import WeightsError, load

TRAIN_SECONDS = 2e-12       # of one multiplication and addition, about; the first steps correct it


def run(args):
    """Collect, train, report and write the SAE; return the exit code."""
    model = load(args.weights, args.device, args.dtype, args.hook_point)
    settings = configure(model, images_per_prompt=1, prompts=args.prompts, steps=args.steps, sampler=args.sampler,
                         guidance=args.guidance, batch_size=args.batch_size)
    if args.reads == "update" and not updates(model.hook_point):
        raise ValueError(f"--reads update: {model.hook_point} has no update, output minus input; an attention has")
    folder, work = model.folder / "sae" / f"unet.{model.hook_point}", args.work / model.name / model.hook_point
    if (folder / "cfg.json").exists() and not args.again and not args.check:
        raise WeightsError(f"{folder}: holds an SAE already; --again replaces it")
    request = Request(settings.prompts, model.hook_point, settings.steps, settings.sampler, settings.guidance,
                      args.positions, args.reads)
    recipe = Recipe(args.expansion, args.k, args.train_steps)
    say(costs(model, request, recipe, settings.batch_size, args.seeds, work))
    if args.check:
        return 0
    sae, about = learn(model, request, recipe, range(args.seeds), work, settings.batch_size)
    say("on prompts held out   FVU   active   dead")
    for name, row in {"all": about["report"]["all"], **about["report"]["by_timestep"]}.items():
        say(f"{name:>19} {row['fvu']:6.3f} {row['active']:7.1f} {row['dead']:6.1%}")
    if args.seeds > 1:
        say(f"another seed finds {about['found_by_another_seed']:.0%} of the features again (cosine above 0.8)")
    export(sae, folder, asdict(request) | {"weights": model.name} | about)
    say(f"then python featviz.py --weights {model.folder} --hook-point {model.hook_point} --feature 0-9 draws features")
    return 0


def costs(model, request, recipe, batch_size, seeds, work):
    """Say how many vectors, how much disk, memory and time a run takes; one batch of two steps is timed."""
    D, images = model.unet.width(request.hook_point), len(request.prompts)
    began = time.monotonic()
    observe(model, replace(request, steps=2, sampler="ddim"), range(min(batch_size, images)))
    sampling = (time.monotonic() - began) / 2 * request.steps * -(-images // batch_size)
    numbers = 2 * recipe.expansion * D * D                      # of encoder and decoder
    training = TRAIN_SECONDS * 6 * recipe.batch * numbers * recipe.steps * seeds        # each is multiplied thrice
    vectors = images * request.steps * request.positions
    return (f"{images} prompts, {request.steps} {request.sampler} steps, {request.positions} positions: {vectors:,} "
            f"vectors of {D} at {request.hook_point}; disk {2 * vectors * D / 2**20:,.0f} MiB in {work}, memory up to "
            f"that and {16 * numbers / 2**20:,.0f} MiB; sampling about {sampling:,.0f} s on {model.device}, training "
            f"about {training:,.0f} s")


def main(argv=None):
    parser = Parser(prog="dictionary", description="Train a sparse autoencoder on a model's own activations.")
    add_model(parser)
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one a line (default: those of the weights, or "
                        "the thesis' grid); every tenth is held out for the report")
    parser.add_argument("--steps", type=int, metavar="N", help="sampling steps (default: 50)")
    parser.add_argument("--sampler", choices=("pndm", "ddim"), help="(default: that of the weights, or pndm)")
    parser.add_argument("--guidance", type=float, metavar="G", help="(default: that of the weights, or 7.5)")
    parser.add_argument("--batch-size", type=int, metavar="B", help="images that are sampled together")
    parser.add_argument("--positions", type=int, default=16, metavar="P", help="kept of each image and step, at random "
                        "(default: 16)")
    parser.add_argument("--reads", choices=("output", "update"), default="output", help="what is encoded: the module's "
                        "output, or its output minus its input (default: output)")
    parser.add_argument("--expansion", type=int, default=4, metavar="E", help="features per channel (default: 4)")
    parser.add_argument("-k", type=int, default=20, help="active features a position, in the mean (default: 20)")
    parser.add_argument("--train-steps", type=int, default=2000, metavar="N", help="of 4,096 vectors (default: 2000)")
    parser.add_argument("--seeds", type=int, default=2, choices=(1, 2), help="2: a second SAE says which features are "
                        "found again (default: 2)")
    parser.add_argument("--work", type=Path, default=Path("out/dictionary"), metavar="FOLDER", help="of activations "
                        "and checkpoints (default: out/dictionary)")
    parser.add_argument("--again", action="store_true", help="replace an SAE that is there")
    parser.add_argument("--check", action="store_true", help="say what it would take, and stop")
    return guarded("dictionary", run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
