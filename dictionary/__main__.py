"""Train a sparse autoencoder on one's own model: `python -m dictionary --weights weights/sd15 --prompts prompts.txt`.

    collect.py   images from the prompts; activations at the hook point, at random positions
    train.py     the SAE, twice with different seeds; what it explains of prompts that it never saw

The SAE goes into the model's folder, sae/<hook point>/, where featviz.py finds it. The activations and the checkpoints
stay in --work, so that a run that was stopped goes on; they can be deleted afterwards.
"""
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from activity.capture import configure
from command.flags import Parser, add_model, guarded
from command.progress import CaptureProgress, Line, say, warn
from dictionary.collect import HELD_OUT, Request, Vectors, collect, key, observe
from dictionary.train import Recipe, export, found_again, report, train
from unet import updates
from weights.load import WeightsError, load

TRAIN_SECONDS = 2e-12       # of one multiplication and addition, about; the first steps correct it


class Training(Line):
    """Report the steps of the training and the time left."""
    first = None                                # steps that were done before

    def __call__(self, step, total, numbers):
        self.first = step - 1 if self.first is None else self.first
        left = (time.monotonic() - self.began) / (step - self.first) * (total - step)
        self.show(f"training step {step} of {total}, FVU {numbers['fvu']:.3f}, {numbers['dead']} dead features, "
                  f"{left:.0f} s left", step == total)


def run(weights, device, dtype, hook_point, check, again, work, seeds, positions, reads, batch_size, expansion, k,
        train_steps, vectors_together, rate, **sampling):
    """Collect, train, report and write the SAE; return the exit code."""
    model = load(weights, device, dtype, hook_point)
    model.require("text_encoder", "tokenizer")
    settings = configure(model, images_per_prompt=1, batch_size=batch_size, **sampling)
    request = Request(settings.prompts, model.hook_point, settings.steps, settings.sampler, settings.guidance,
                      positions, reads)
    if reads == "update" and not updates(model.hook_point):
        raise ValueError(f"--reads update: {model.hook_point} has no update, output minus input; an attention has")
    folder = model.folder / "sae" / f"unet.{model.hook_point}"
    if (folder / "cfg.json").exists() and not again and not check:
        raise WeightsError(f"{folder}: holds an SAE already; --again replaces it")
    recipe = Recipe(expansion, k, train_steps, vectors_together, rate)
    work = work / model.name / key(request)
    say(costs(model, request, recipe, settings.batch_size, work, seeds))
    if check:
        return 0
    files = collect(model, request, work, settings.batch_size, CaptureProgress())
    made = [train(Vectors(files, held=False), replace(recipe, seed=seed), work / f"training_{seed}.safetensors",
                  model.device, Training()) for seed in range(seeds)]
    timesteps, few = model.schedule.timesteps(settings.steps), len(request.prompts) < HELD_OUT
    if few:
        warn(f"fewer than {HELD_OUT} prompts: none is held out, and the report is of those that it was trained on")
    said = report(made[0], Vectors(files, held=not few).images(), timesteps)
    about = {"weights": model.name, "hook_point": model.hook_point, "reads": reads, "recipe": asdict(recipe),
             "request": {name: v for name, v in asdict(request).items() if name != "prompts"},
             "prompts": len(request.prompts), "report": said,
             "found_by_another_seed": found_again(made[0], made[1]) if seeds > 1 else None}
    export(made[0], folder, about)
    print_report(about)
    say(f"look at its features: python featviz.py --weights {model.folder} --feature 0-9"
        + ("" if not hook_point else f" --hook-point {model.hook_point}"))
    return 0


def costs(model, request, recipe, batch_size, work, seeds):
    """Say how many vectors, how much disk, memory and time a run takes; one batch of two steps is timed."""
    D, images = model.unet.width(model.hook_point), len(request.prompts)
    short, began = replace(request, steps=2, sampler="ddim"), time.monotonic()
    observe(model, short, range(min(batch_size, images)))
    each = (time.monotonic() - began) / 2
    sampling = each * request.steps * -(-images // batch_size)
    product = 12 * recipe.batch * D * D * recipe.expansion * recipe.steps * seeds       # two products, thrice each
    free = shutil.disk_usage(next(p for p in (work, *work.resolve().parents) if p.exists())).free
    state = 16 * 2 * D * D * recipe.expansion
    return (f"{images} prompts, {request.steps} {request.sampler} steps, {request.positions} positions: "
            f"{images * request.steps * request.positions:,} vectors of {D} at {request.hook_point}; disk "
            f"{request.size(D) / 2**20:,.0f} MiB in {work} ({free / 2**30:.0f} GiB are free), memory up to that and "
            f"{state / 2**20:,.0f} MiB; sampling about {sampling:,.0f} s on {model.device}, training about "
            f"{product * TRAIN_SECONDS:,.0f} s")


def print_report(about):
    say("on prompts held out   FVU   active   dead")
    for name, said in {"all": about["report"]["all"], **about["report"]["by_timestep"]}.items():
        where = name if name == "all" else f"t {name}"
        say(f"{where:>19} {said['fvu']:6.3f} {said['active']:7.1f} {said['dead']:6.1%}")
    if about["found_by_another_seed"] is not None:
        say(f"another seed finds {about['found_by_another_seed']:.0%} of the features again (cosine above 0.8)")


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
    parser.add_argument("--train-steps", type=int, default=2000, metavar="N", help="(default: 2000)")
    parser.add_argument("--vectors-together", type=int, default=4096, metavar="N", help="in a step (default: 4096)")
    parser.add_argument("--rate", type=float, default=4e-4, help="of Adam at first; falls to 0 (default: 4e-4)")
    parser.add_argument("--seeds", type=int, default=2, choices=(1, 2), help="2: a second SAE says which features are "
                        "found again (default: 2)")
    parser.add_argument("--work", type=Path, default=Path("out/dictionary"), metavar="FOLDER", help="of activations "
                        "and checkpoints (default: out/dictionary)")
    parser.add_argument("--again", action="store_true", help="replace an SAE that is there")
    parser.add_argument("--check", action="store_true", help="say what it would take, and stop")
    return guarded("dictionary", lambda: run(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
