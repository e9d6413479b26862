"""What `python -m activity` does: capture images, put shards together, analyse a feature, find those that fit a
text, sample steered images."""
import dataclasses
import json
import re
import sys
import time

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from activity import capture as recording
from activity import match as matching
from activity import profile
from activity.album import Album
from activity.times import full, probe
from ascent import check_jobs, default_batch_size
from command.device import open_model, peak_memory
from command.flags import find_shard
from command.progress import CaptureProgress
from config import Job
from pages.files import folder_of, save_activity, times_in
from pages.sheet import write_profiles
from steering import directions
from steering import sample as sampled
from vae import to_uint8
from weights.disk import WeightsError, replacing
from weights.eyes import open_eyes

JPEG_BYTES = 0.6            # of a pixel, about; small pictures take more than large ones


def model_of(args, wanted):
    """The model of the flags, looked at through --hook-point."""
    model = open_model(args, wanted)
    return profile.at(model, args.hook_point) if args.hook_point else model


def settings_of(args, model, **given):
    size = args.batch_size or default_batch_size(model.device, model.latent_shape)
    return recording.configure(model, steps=args.steps, sampler=args.sampler, guidance=args.guidance, batch_size=size,
                               **given)


def capture(args):
    shard, model = find_shard(args.shard), model_of(args, True)
    settings = settings_of(args, model, prompts=args.prompts, images_per_prompt=args.images_per_prompt, top=args.top,
                           halves=args.halves)
    folder = args.out / model.name / profile.home(model.hook_point)
    if args.check:
        return check_capture(model, settings, folder, shard)
    model.vae, model.text_encoder, model.tokenizer              # each says so where it is missing
    print(f"{settings.images} images of {len(settings.prompts)} prompts, {settings.steps} {settings.sampler} steps, "
          f"guidance {settings.guidance}, {model.folder} on {model.device}, shard {shard[0]} of {shard[1]}",
          file=sys.stderr)
    if recording.capture(model, settings, folder, shard, CaptureProgress()):
        print(f"look at {folder}")
    else:
        print(f"shard {shard[0]} of {shard[1]} is done; whichever is the last puts all together in {folder}")
    return 0


def timed(model, settings, steps):
    """Seconds of one batch in so many steps."""
    few = dataclasses.replace(settings, steps=steps, sampler="ddim")
    began = time.time()
    images, _ = recording.observe(model, few, range(settings.batch_size))
    images.sum().item()                                         # waits for a GPU
    return time.time() - began


def check_capture(model, settings, folder, shard):
    """What --check prints: a step of a batch is timed, disk and memory follow from the sizes of the tables; nothing is
    written."""
    timed(model, settings, 1)                                   # pays for allocation
    one, three = timed(model, settings, 1), timed(model, settings, 3)
    step, batches = max(three - one, 0) / 2, -(-settings.images // settings.batch_size)
    calls = settings.steps + (settings.sampler == "pndm" and settings.steps > 1)
    hours = batches * (one + step * (calls - 1)) / shard[1] / 3600
    sae, D = model.parts.get("sae"), model.unet.width(model.hook_point)
    edge = model.latent_shape[-1] * 2 ** (len(model.vae.encoder.down_blocks) - 1)
    rows = settings.batch_size * (2 if settings.halves == "both" else 1)
    cost = costs(settings.steps, sae.features if sae else 0, D, settings.images, edge, rows)
    print(f"{settings.images} images of {len(settings.prompts)} prompts in {batches} batches, {calls} steps each, "
          f"{model.folder} on {model.device} in {model.dtype}: {hours:.2f} h on each of {shard[1]} processes; disk "
          f"{cost['disk'] / 2**20:.0f} MiB in {folder}, {cost['running'] / 2**20:.0f} MiB more for each process while "
          f"it runs; memory {peak_memory(model.device) / 2**30:.2f} GiB for the networks and "
          f"{cost['memory'] / 2**30:.2f} GiB for the statistics")
    return 0


def costs(N, F, D, images, edge, size):
    """Bytes: of the finished files, of the statistics on disk while it runs, and in memory while `size` rows are worked
    into them."""
    cells, number = N * (F + D), 2 if images < 2 ** 15 else 4
    running = cells * (8 + 8 * recording.EXAMPLES)
    work = cells * (recording.EXAMPLES + size) * (8 + 16)       # `combine`: lists joined, twice sorted by 8 bytes
    disk = cells * (8 + (2 + number) * recording.EXAMPLES) + int(images * edge ** 2 * JPEG_BYTES)
    return {"disk": disk, "running": running,
            "memory": 2 * running + work + 12 * size * cells}   # before and after, and a batch's activations thrice


def merge(args):
    if not args.folder.is_dir():
        raise ValueError(f"{args.folder}: is no folder; give the capture's, such as out/toy/activity")
    if not recording.merge(args.folder):
        there = sorted(p.name for p in args.folder.glob("shard_*"))
        raise ValueError(f"{args.folder}: shards are missing or unfinished: {there}")
    print(f"look at {args.folder}")
    return 0


def with_tables(args, model, make=False):
    """The model with the tables of a capture; a probe is made if there is none and `make`, otherwise WeightsError."""
    folder = profile.find(model, args.out)
    if not folder and not make:
        raise WeightsError(f"{model.folder}: has no capture; run {full(model)}")
    folder = folder or probe(model, args.out, default_batch_size(model.device, model.latent_shape), CaptureProgress())
    return profile.attach(model, folder)


def analyse(args):
    model = model_of(args, args.feature or args.channel)
    kind = "channel" if args.channel else "feature"
    targets = args.channel or args.feature or [model.settings.get("feature", 0)]
    check_jobs(model, [Job(**{"feature": None, kind: n}) for n in targets])
    if args.distance < 1 or args.most_peaks < 1:
        raise ValueError("--distance and --most-peaks must be at least 1")
    model = with_tables(args, model)
    for n in targets:
        home = folder_of(args.out, model.name, model.hook_point, kind, n)
        record = profile.analysis(model, kind, n, times_in(home), args.distance, args.most_peaks)
        path = save_activity(home, record)
        print(f"{kind} {n}: active at {record['active']} of 1001 time steps, peaks at {record['peaks'] or 'none'}")
        for t, found in record["examples"].items():
            for e in found[:3]:
                print(f"  t {t}: activation {e['activation']:.4f}, image {e['image']}: {e['prompt']}")
        print(f"look at {write_profiles([path], path.with_suffix('.png'))}")
    return 0


def match(args):
    """The features whose dataset examples fit a text or a picture best, and the command that shows the first."""
    model = model_of(args, True)
    model, kind = with_tables(args, model), "feature" if "sae" in model.parts else "channel"
    eyes = open_eyes(model.folder, model.device)
    query = matching.embed(eyes, args.query)
    print(f"looks at the dataset examples of {model.captured} on {model.device}", file=sys.stderr)
    found = matching.matches(Album(model.captured, eyes), model.activity, kind, query)
    print(*matching.table(found, kind), sep="\n")
    hook = f" --hook-point {model.hook_point}" if args.hook_point else ""
    print(f"see the first: python featviz.py --weights {model.folder} --{kind} {found[0].number}{hook}")
    return 0


def sample(args):
    model = model_of(args, args.steer or args.steer_channel)
    settings = settings_of(args, model)
    jobs = {"feature": [(Job(feature=f), s) for f, s in args.steer],
            "channel": [(Job(channel=c), s) for c, s in args.steer_channel]}
    for entries in jobs.values():
        if entries:
            check_jobs(model, [job for job, _ in entries])
    steered = bool(args.steer or args.steer_channel)
    if steered:
        model = with_tables(args, model, make=True)
    push = 0                                                                                    # (1001, D)
    for kind, entries in jobs.items():
        if entries:
            curves = torch.stack([s * model.strength(kind, job.target) for job, s in entries]).to(model.device)
            push = push + curves.T @ directions(model, [job for job, _ in entries])
    adds = [None, lambda t: {model.hook_point: push[t][None].to(model.dtype)}][:1 + steered]
    context, how = model.embed([args.prompt]), (settings.sampler, settings.steps, settings.guidance)
    for seed in args.seed:
        noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(seed)).to(model.device)
        images = [model.decode(sampled(model, noise, context, *how, add))[0] for add in adds]
        made = {"prompt": args.prompt, "seed": seed, "steer": args.steer, "steer_channel": args.steer_channel,
                "sampler": settings.sampler, "steps": settings.steps, "guidance": settings.guidance,
                "hook_point": model.hook_point, "weights": model.name, "fingerprints": model.fingerprints}
        print(f"look at {save_sample(args.out, made, torch.cat(images, dim=2).cpu())}")
    return 0


def save_sample(out, made, image):
    """One picture: the plain image and, to its right, the steered one; the recipe is in its text chunk "featviz"."""
    name = re.sub(r"\W+", "-", made["prompt"].lower()).strip("-")[:80] or "empty"
    name += "".join(f"_{kind}{n}={s:g}" for kind, key in (("f", "steer"), ("c", "steer_channel")) for n, s in made[key])
    path = out / made["weights"] / profile.home(made["hook_point"], "samples") / f"{name}_seed_{made['seed']}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = PngInfo()
    text.add_text("featviz", json.dumps(made, sort_keys=True))
    with replacing(path) as file:
        Image.fromarray(to_uint8(image)).save(file, format="PNG", pnginfo=text)
    return path
