"""Train a sparse autoencoder on one's own model: `python -m dictionary --weights weights/sd15 --prompts FILE`."""
import sys
import time
from dataclasses import replace
from pathlib import Path

from activity.capture import FIELDS, configure
from command.flags import Parser, add_model, add_settings, guarded
from command.progress import say
from config import check_setting
from dictionary.train import RECIPE, Recipe, export, learn, observe
from unet import updates
from weights.load import WeightsError, load


def run(args):
    """Collect, train, report and write the SAE."""
    model, given = load(args.weights, args.device, args.dtype, args.hook_point), vars(args)
    settings = configure(model, args.prompts, images_per_prompt=1, **{n: given[n] for n in FIELDS if n in given})
    recipe = Recipe(**{name: given[name] for name in RECIPE if name in given})
    for name, field in RECIPE.items():
        check_setting(name, field, getattr(recipe, name))
    if recipe.reads == "update" and not updates(model.hook_point):
        raise ValueError(f"--reads update: {model.hook_point} has no update, output minus input; an attention has")
    folder, work = model.folder / "sae" / f"unet.{model.hook_point}", args.work / model.name / model.hook_point
    if (folder / "cfg.json").exists() and not args.again and not args.check:
        raise WeightsError(f"{folder}: holds an SAE already; --again replaces it")
    say(costs(model, settings, recipe, args.seeds, work))
    if args.check:
        return
    sae, about = learn(model, settings, recipe, range(args.seeds), work)
    say("on prompts held out   FVU   active   dead")
    for name, row in {"all": about["report"]["all"], **about["report"]["by_timestep"]}.items():
        say(f"{name:>19} {row['fvu']:6.3f} {row['active']:7.1f} {row['dead']:6.1%}")
    if args.seeds > 1:
        say(f"another seed finds {about['found_by_another_seed']:.0%} of the features again (cosine above 0.8)")
    export(sae, folder, about)
    say(f"then python featviz.py --weights {model.folder} --hook-point {model.hook_point} --feature 0-9 draws features")


def costs(model, settings, recipe, seeds, work):
    """Say how many vectors, how much disk, memory and time a run takes; one batch of two steps is timed."""
    D, images, batch = model.unet.width(model.hook_point), settings.images, settings.batch_size
    began = time.monotonic()
    observe(model, replace(settings, steps=2, sampler="ddim"), recipe, range(min(batch, images)))
    sampling = (time.monotonic() - began) / 2 * settings.steps * -(-images // batch)
    numbers = 2 * recipe.expansion * D * D                      # of encoder and decoder
    products = 3 * recipe.batch * numbers * recipe.train_steps * seeds                      # each is multiplied thrice
    vectors = images * settings.steps * recipe.positions
    return (f"{images} prompts, {settings.steps} {settings.sampler} steps, {recipe.positions} positions: {vectors:,} "
            f"vectors of {D} at {model.hook_point}; disk {2 * vectors * D / 2**20:,.0f} MiB in {work}, memory up to "
            f"that and {16 * numbers / 2**20:,.0f} MiB; sampling about {sampling:,.0f} s on {model.device}, training "
            f"about {4e-12 * products:,.0f} s")


def main(argv=None):
    parser = Parser(prog="dictionary", description="Train a sparse autoencoder on a model's own activations. In "
                    "brackets the defaults; for sampling the weights may bring their own.")
    add_model(parser)
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one a line (default: those of the weights, or "
                        "the thesis' grid); every tenth is held out for the report")
    add_settings(parser, [FIELDS[name] for name in ("steps", "sampler", "guidance", "batch_size")])
    add_settings(parser, RECIPE.values())
    parser.add_argument("--seeds", type=int, default=2, choices=(1, 2), help="2: a second SAE says which features are "
                        "found again [2]")
    parser.add_argument("--work", type=Path, default=Path("out/dictionary"), metavar="FOLDER", help="of activations "
                        "and checkpoints [out/dictionary]")
    parser.add_argument("--again", action="store_true", help="replace an SAE that is there")
    parser.add_argument("--check", action="store_true", help="say what it would take, and stop")
    return guarded("dictionary", run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
