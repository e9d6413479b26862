"""The command line of activity.py: capture, merge, analyse, sample.

Whatever cannot be ends in one line on stderr that says what to do, and exit code 2, as in cli.py.
"""
import argparse
import dataclasses
import json
import re
import sys
import time
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import activity
import capture
from checkpoint import WeightsError
from cli import FULL, CaptureProgress, Parser, add_common, add_shard, find_shard, guarded, open_model, peak_memory, probe
from featviz import SEEDS, Job, check_jobs, default_batch_size
from report import write_profiles
from results import folder_of, replacing, save_activity, times_in, to_uint8
from schedule import SAMPLERS
from steering import directions, sample, strengths

JPEG_BYTES = 0.6            # of a pixel, about; small pictures take more than large ones


def steering(text):
    """"12=300" -> (12, 300.0)."""
    target, scale = text.split("=")
    return int(target), float(scale)


def add_sampling(parser):
    parser.add_argument("--steps", type=int, metavar="N", help="sampling steps (default: 50)")
    parser.add_argument("--sampler", choices=SAMPLERS, help="(default: pndm, or the weights' own)")
    parser.add_argument("--guidance", type=float, metavar="G", help="(default: 7.5, or the weights' own)")
    parser.add_argument("--batch-size", type=int, metavar="B", help="images that are computed together")


def parse(argv):
    parser = Parser(prog="activity.py", description="When, and on which images, the features of a model fire.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    plain = dict(formatter_class=argparse.RawDescriptionHelpFormatter)

    sub = commands.add_parser("capture", help="generate images from prompts and record what every feature does", **plain)
    add_common(sub)
    add_sampling(sub)
    add_shard(sub)
    sub.add_argument("--prompts", type=Path, metavar="FILE", help="one a line, or .jsonl with a key text (default: the weights' own, or "
                     "the 20 x 51 grid of UnlearnCanvas)")
    sub.add_argument("--images-per-prompt", type=int, metavar="N", help="(default: 5, or the weights' own)")
    sub.add_argument("--check", action="store_true", help="say how long it would take, how much disk and memory; then stop")

    sub = commands.add_parser("merge", help="put the shards of a capture together; the last shard to finish does it by itself")
    sub.add_argument("folder", type=Path)

    sub = commands.add_parser("analyse", help="profile, peaks and dataset examples of features", **plain)
    add_common(sub)
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--feature", type=int, nargs="+", metavar="F")
    what.add_argument("--channel", type=int, nargs="+", metavar="C")

    sub = commands.add_parser("sample", help="generate an image, and the same one steered by features", **plain)
    add_common(sub)
    add_sampling(sub)
    sub.add_argument("prompt")
    sub.add_argument("--steer", type=steering, nargs="+", default=[], metavar="F=S", help="feature F, S times its largest mean activation")
    sub.add_argument("--steer-channel", type=steering, nargs="+", default=[], metavar="C=S", help="the same for raw channels")
    sub.add_argument("--seed", type=int, nargs="+", default=[SEEDS[0]])
    return parser.parse_args(argv)


def capture_folder(args, model):
    return args.out / model.name / "activity"


def settings_of(args, model, **given):
    return capture.configure(model, steps=args.steps, sampler=args.sampler, guidance=args.guidance,
                             batch_size=args.batch_size or default_batch_size(model), **given)


def run_capture(args):
    shard, model = find_shard(args), open_model(args, True)
    settings, folder = settings_of(args, model, prompts=args.prompts, images_per_prompt=args.images_per_prompt), capture_folder(args, model)
    if args.check:
        return check_capture(model, settings, folder, shard)
    model.vae, model.text_encoder, model.tokenizer              # each says so where it is missing
    print(f"{settings.images} images of {len(settings.prompts)} prompts, {settings.steps} {settings.sampler} steps, guidance "
          f"{settings.guidance}, {model.folder} on {model.device}, shard {shard[0]} of {shard[1]}", file=sys.stderr)
    if capture.capture(model, settings, folder, shard, CaptureProgress()):
        print(f"look at {folder}")
    else:
        print(f"shard {shard[0]} of {shard[1]} is done; whichever is the last puts all together in {folder}")
    return 0


def timed(model, settings, steps):
    """Seconds of one batch in so many steps."""
    few = dataclasses.replace(settings, steps=steps, sampler="ddim")
    began = time.time()
    images, _ = capture.observe(model, few, range(settings.batch_size))
    images.sum().item()                                         # waits for a GPU
    return time.time() - began


def check_capture(model, settings, folder, shard):
    """What --check prints: a step of a batch is timed, disk and memory follow from the sizes of the tables; nothing is written."""
    timed(model, settings, 1)                                   # pays for allocation
    one, three = timed(model, settings, 1), timed(model, settings, 3)
    step, batches = max(three - one, 0) / 2, -(-settings.images // settings.batch_size)
    calls = settings.steps + (settings.sampler == "pndm" and settings.steps > 1)
    hours = batches * (one + step * (calls - 1)) / shard[1] / 3600
    sae, D = model.parts.get("sae"), model.unet.width(model.hook_point)
    edge = model.latent_shape[-1] * 2 ** (len(model.vae.encoder.down_blocks) - 1)
    cost = costs(settings.steps, sae.features if sae else 0, D, settings.images, edge, settings.batch_size)
    print(f"{settings.images} images of {len(settings.prompts)} prompts in {batches} batches, {calls} steps each, {model.folder} on "
          f"{model.device} in {model.dtype}: {hours:.2f} h on each of {shard[1]} processes; disk {cost['disk'] / 2**20:.0f} MiB in {folder}, "
          f"{cost['running'] / 2**20:.0f} MiB more for each process while it runs; memory {peak_memory(model) / 2**30:.2f} GiB for the "
          f"networks and {cost['memory'] / 2**30:.2f} GiB for the statistics")
    return 0


def costs(N, F, D, images, edge, size):
    """Bytes: of the finished files, of the statistics on disk while it runs, and in memory while a batch is worked into them."""
    cells, number = N * (F + D), 2 if images < 2 ** 15 else 4
    running = cells * (8 + 8 * capture.EXAMPLES)
    work = cells * (capture.EXAMPLES + size) * (8 + 16)         # `combine`: both lists joined, twice sorted with 8-byte positions
    return {"disk": cells * (8 + (2 + number) * capture.EXAMPLES) + int(images * edge ** 2 * JPEG_BYTES), "running": running,
            "memory": 2 * running + work + 12 * size * cells}   # before and after, and a batch's activations thrice


def run_merge(args):
    if not args.folder.is_dir():
        raise ValueError(f"{args.folder}: is no folder; give the capture's, such as out/toy/activity")
    if not capture.merge(args.folder):
        raise ValueError(f"{args.folder}: shards are missing or unfinished: {sorted(p.name for p in args.folder.glob('shard_*'))}")
    print(f"look at {args.folder}")
    return 0


def with_tables(args, model, make=False):
    """(model with the tables of a capture, its folder); a probe is made if there is none and `make`, otherwise WeightsError."""
    folder = activity.find(model, args.out)
    if not folder and not make:
        raise WeightsError(f"{model.folder}: has no capture; run {FULL.format(model.folder)}")
    folder = folder or probe(model, args.out, default_batch_size(model))
    return activity.attach(model, folder), folder


def run_analyse(args):
    model = open_model(args, args.feature or args.channel)
    kind = "channel" if args.channel else "feature"
    targets = args.channel or args.feature or [model.settings.get("feature", 0)]
    check_jobs(model, [Job(**{"feature": None, kind: n}) for n in targets])
    model, folder = with_tables(args, model)
    for n in targets:
        home = folder_of(args.out, model.name, model.hook_point, kind, n)
        record = activity.analysis(model, folder, kind, n, times_in(home))
        path = save_activity(home, record)
        print(f"{kind} {n}: active at {record['active']} of 1001 time steps, peaks at {record['peaks'] or 'none'}")
        for t, found in record["examples"].items():
            for e in found[:3]:
                print(f"  t {t}: activation {e['activation']:.4f}, image {e['image']}: {e['prompt']}")
        print(f"look at {write_profiles([path], path.with_suffix('.png'))}")
    return 0


def run_sample(args):
    model = open_model(args, args.steer or args.steer_channel)
    settings = settings_of(args, model)
    jobs = {"feature": [(Job(feature=f), s) for f, s in args.steer], "channel": [(Job(channel=c), s) for c, s in args.steer_channel]}
    for entries in jobs.values():
        if entries:
            check_jobs(model, [job for job, _ in entries])
    steered = bool(args.steer or args.steer_channel)
    if steered:
        model, _ = with_tables(args, model, make=True)
    push = sum((torch.tensor([s for _, s in entries], device=model.device)[:, None] * strengths(model, [j for j, _ in entries], kind)).T
               @ directions(model, [j for j, _ in entries], kind) for kind, entries in jobs.items() if entries)     # (1001, D)
    adds = [None, lambda t: {model.hook_point: push[t][None].to(model.dtype)}][:1 + steered]
    for seed in args.seed:
        noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(seed)).to(model.device)
        images = [model.decode(sample(model, noise, model.embed([args.prompt]), settings.sampler, settings.steps, settings.guidance, add))[0]
                  for add in adds]
        made = {"prompt": args.prompt, "seed": seed, "steer": args.steer, "steer_channel": args.steer_channel, "sampler": settings.sampler,
                "steps": settings.steps, "guidance": settings.guidance, "weights": model.name, "fingerprints": model.fingerprints}
        print(f"look at {save_sample(args.out, made, torch.cat(images, dim=2).cpu())}")
    return 0


def save_sample(out, made, image):
    """One picture: the plain image and, to its right, the steered one; the recipe is in its text chunk "featviz"."""
    name = re.sub(r"\W+", "-", made["prompt"].lower()).strip("-")[:80] or "empty"
    name += "".join(f"_{kind}{n}={s:g}" for kind, key in (("f", "steer"), ("c", "steer_channel")) for n, s in made[key])
    path = out / made["weights"] / "samples" / f"{name}_seed_{made['seed']}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = PngInfo()
    text.add_text("featviz", json.dumps(made, sort_keys=True))
    with replacing(path) as file:
        Image.fromarray(to_uint8(image)).save(file, format="PNG", pnginfo=text)
    return path


RUN = {"capture": run_capture, "merge": run_merge, "analyse": run_analyse, "sample": run_sample}


def main(argv=None):
    args = parse(argv)
    return guarded("activity", RUN[args.command], args)


if __name__ == "__main__":
    sys.exit(main())
