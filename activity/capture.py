"""Images from prompts, and what every feature did while they were made: the material of profile.py.

Of every image, every sampling step and every feature (and raw channel) the mean activation over positions is looked at,
that of the ascent's objective: relu(W_enc[f] . (h - b_dec) + b_enc[f]) without top-k, h[:, c] for a channel. Kept of it
is what `combine` lists. Sources: the method's section 5, from Szokalski & Modrzejewski, arXiv 2605.08218, and its
implementation; prompts as `grid` says.

Under guidance the UNet sees every image twice, without and with its prompt. Looked at is the half with the prompt
(ours). With `halves` "both" the two count as two samples: counts and maxima run over both, the count is divided by the
number of images, and a share may reach 2, as in the original. Examples are those of the half with the prompt in either
case.

    out/<weights>/activity/images/00012.jpg     image 12: prompt 12 modulo the number of prompts, noise of seed 12
    .../activity.safetensors                    timesteps (N,); max_feature, share_feature (N, F); max_, share_channel
    .../examples.safetensors                    image_, activation_feature (N, F, EXAMPLES), -1: no image; _channel
    .../capture.json                            settings, prompts, fingerprints; last: without it there is no capture
    .../shard_0_of_1.safetensors                statistics of a capture under way, rewritten after every batch
    out/<weights>/activity_<hook point>/...     the same at another hook point than up1.1

But for the pictures, memory and disk do not grow with the number of images: 88 bytes for each step and feature or
channel while it runs, 48 or 68 when it is done. SD's 50 steps x (20,480 + 1,280): 96 MB, then 52 MB; all activations of
5,100 images would be 22 GB.

Axes: B images of a batch, R = B or, with both halves, 2B rows, N sampling steps in descending order of t, F features,
D channels, S positions.
"""
import dataclasses
import json
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from activity.profile import fingerprints, image_path
from config import HALVES, TOP
from weights.disk import WeightsError
from weights.configs import read_json
from weights.disk import alone, replacing
from vae import to_uint8
from schedule import SAMPLERS
from steering import sample

EXAMPLES = 10               # dataset examples kept for each step and feature (ours)
PROBE_PROMPTS, PROBE_STEPS = 80, 20                       # of the small capture that stands in for a missing one (ours)
KINDS = ("feature", "channel")

OBJECTS = ("Architectures Bears Birds Butterfly Cats Dogs Fishes Flame Flowers Frogs Horses Human Jellyfish Rabbits "
           "Sandwiches Sea Statues Towers Trees Waterfalls").split()
STYLES = ("Abstractionism Artist_Sketch Blossom_Season Bricks Byzantine Cartoon Cold_Warm Color_Fantasy Comic_Etch "
          "Crayon Cubism Dadaism Dapple Defoliation Early_Autumn Expressionism Fauvism French Glowing_Sunset "
          "Gorgeous_Love Greenfield Impressionism Ink_Art Joy Liquid_Dreams Magic_Cube Meta_Physics Meteor_Shower "
          "Monet Mosaic Neon_Lines On_Fire Pastel Pencil_Drawing Picasso Pop_Art Red_Blue_Ink Rust Sketch "
          "Sponge_Dabbed Structuralism Superstring Surrealism Ukiyoe Van_Gogh Vibrant_Flow Warm_Love Warm_Smear "
          "Watercolor Winter").split()
MORE_STYLES = ("Blue_Blooming Crypto_Punks Dreamweave Foliage_Patchwork Impasto Palette_Knife Pointillism Rainwash "
               "Realistic_Watercolor Techno").split()
GRIDS = ("thesis", "unlearncanvas")


@dataclass(frozen=True)
class Capture:
    """Settings of a capture; the defaults are the method's. A model's featviz.json may hold others under "capture"."""
    prompts: tuple
    images_per_prompt: int = 5
    steps: int = 50
    sampler: str = "pndm"
    guidance: float = 7.5
    batch_size: int = 8
    top: int = TOP
    halves: str = "conditional"

    @property
    def images(self):
        return len(self.prompts) * self.images_per_prompt


# --- prompts ----------------------------------------------------------------------------------------------------------

def grid(name="thesis"):
    """The prompts of one of GRIDS, every object in every style. [V] was looked up, [I] is inferred.

    thesis         20 x 61: "An" before every object, 60 styles and photo. [V] All four example prompts of the thesis
                   say "An", and one is in Pointillism style, which of UnlearnCanvas' two lists only that of 60 has. [I]
                   That the other prompts are like these, and photo is among them: the file that the original reads is
                   not public any more.
    unlearncanvas  20 x 51: "An" before Architectures alone, 50 styles and photo. [V] dataset_preparation.py of
                   UnlearnCanvas.

    [V] Objects and styles: constants/const.py of UnlearnCanvas' code, where the list of 60 is commented out; `photo` is
    its Seed_Images. Source: Zhang et al., arXiv 2402.11846.
    """
    styles = [*sorted(STYLES + MORE_STYLES * (name == "thesis")), "photo"]
    article = lambda o: "An" if name == "thesis" or o == "Architectures" else "A"
    return tuple(f"{article(o)} {o} image in {s.replace('_', ' ')} style" for o in OBJECTS for s in styles)


def read_prompts(path):
    """One prompt a line, or in a .jsonl file one JSON object with a `text` a line; each once, in their order."""
    try:
        lines, prompts = Path(path).read_text(encoding="utf-8").splitlines(), []
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: cannot be read as a text file of prompts ({e})") from e
    for number, line in enumerate(lines, 1):
        if line.strip() and Path(path).suffix == ".jsonl":
            try:
                line = json.loads(line)["text"]
                if not isinstance(line, str):
                    raise TypeError("it is no string")
            except (ValueError, KeyError, TypeError) as e:
                raise ValueError(f"{path}: line {number} is no JSON object with a text ({e})") from e
        prompts.append(line.strip())
    prompts = tuple(dict.fromkeys(p for p in prompts if p))
    if not prompts:
        raise ValueError(f"{path}: holds no prompt; expected one a line, or in a .jsonl JSON objects with a key text")
    return prompts


def configure(model, **given):
    """The method's settings, then the model's own (featviz.json, "capture"), then what is given. `prompts`: a file, a
    grid, a list."""
    path = model.folder / "featviz.json"
    own, kinds = model.settings.get("capture", {}), {f.name: f.type for f in dataclasses.fields(Capture)}
    if not isinstance(own, dict) or own.keys() - kinds.keys():
        raise WeightsError(f"{path}: \"capture\" must be an object with some of {', '.join(kinds)}")
    if isinstance(own.get("prompts"), str) and own["prompts"] not in GRIDS:
        own = own | {"prompts": model.folder / own["prompts"]}
    values = {"prompts": "thesis", "sampler": model.sampler} | own | {k: v for k, v in given.items() if v is not None}
    if str(values["prompts"]) in GRIDS:
        values["prompts"] = grid(str(values["prompts"]))
    elif isinstance(values["prompts"], (str, Path)):
        values["prompts"] = read_prompts(values["prompts"])
    prompts = values["prompts"]
    if not isinstance(prompts, (list, tuple)) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise WeightsError(f"{path}: the prompts of \"capture\" must be a list of texts, a grid or a file beside it")
    choices = {"sampler": [*SAMPLERS], "halves": HALVES}
    for name, value in values.items():
        sound = {int: type(value) is int and value >= 1, str: value in choices.get(name, ()),
                 float: type(value) in (int, float) and 0 <= value <= 1000}.get(kinds[name], True)
        if not sound:
            raise ValueError(f"--{name.replace('_', '-')} of a capture cannot be {value!r}")
    settings = Capture(**values | {"prompts": tuple(prompts)})
    model.schedule.timesteps(settings.steps)                    # says so where there cannot be that many
    return settings


def probe_settings(settings):
    """A small capture: one image each of PROBE_PROMPTS prompts, drawn once and for all, in PROBE_STEPS steps."""
    order = torch.randperm(len(settings.prompts), generator=torch.Generator().manual_seed(0))[:PROBE_PROMPTS]
    prompts = tuple(settings.prompts[i] for i in sorted(order.tolist()))
    return dataclasses.replace(settings, prompts=prompts, images_per_prompt=1, steps=min(PROBE_STEPS, settings.steps))


@torch.no_grad()
def observe(model, settings, numbers):
    """Sample the images of these numbers: pictures (B, 3, 8H, 8W), and mean activations {"feature": (R, N, F),
    "channel": (R, N, D)}.

    The B rows that saw the prompts come last; before them, with both halves, those that did not.
    PNDM comes twice to its second time step; the later call counts, which sees the sample that the step starts from.
    """
    noise = torch.stack([torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(i)) for i in numbers])
    context = model.embed([settings.prompts[i % len(settings.prompts)] for i in numbers])
    sae, seen = model.parts.get("sae"), {}

    def see(t, h):
        rows = h if settings.halves == "both" else h[-len(numbers):]
        h = rows.float().flatten(2).transpose(1, 2)                                             # (R, S, D)
        feature = sae.pre_acts(h).mean(1) if sae else h.new_zeros(len(h), 0)
        seen[t] = {"feature": feature, "channel": h.mean(1)}

    z = sample(model, noise.to(model.device), context, settings.sampler, settings.steps, settings.guidance, see=see)
    times = model.schedule.timesteps(settings.steps)
    return model.decode(z), {kind: torch.stack([seen[t][kind] for t in times], dim=1) for kind in KINDS}


# --- running statistics -----------------------------------------------------------------------------------------------

def empty(N, F, D, device="cpu"):
    """The statistics of no image."""
    stats = {}
    for kind, width in (("feature", F), ("channel", D)):
        stats |= {f"count_{kind}": torch.zeros(N, width, dtype=torch.int32, device=device),
                  f"max_{kind}": torch.full((N, width), -torch.inf, device=device),
                  f"activation_{kind}": torch.full((N, width, EXAMPLES), -torch.inf, device=device),
                  f"image_{kind}": torch.full((N, width, EXAMPLES), -1, dtype=torch.int32, device=device)}
    return stats


def strongest(means, kind, top=TOP):
    """Which are among the `top` of their row and step: (R, N, width) -> bool. A silent feature never is; equals are
    together (ours)."""
    least = means.topk(min(top, means.shape[-1]), dim=-1).values[..., -1:]
    return (means >= least) & (means > 0) if kind == "feature" else means >= least


def summarize(means, numbers, top=TOP):
    """The statistics of a batch: {kind: (R, N, width)}, image numbers (B,)."""
    stats = {}
    for kind, values in means.items():
        member = strongest(values, kind, top)
        stats |= {f"count_{kind}": member.sum(0, dtype=torch.int32), f"max_{kind}": values.amax(0)}
        values, member = values[-len(numbers):], member[-len(numbers):]                     # (B, N, width) with prompts
        image = torch.as_tensor(list(numbers), dtype=torch.int32, device=values.device)[:, None, None].expand_as(values)
        stats |= {f"activation_{kind}": values.masked_fill(~member, -torch.inf).permute(1, 2, 0),
                  f"image_{kind}": image.masked_fill(~member, -1).permute(1, 2, 0)}
    return stats


def combine(a, b):
    """The statistics of two sets of images together; in whichever order and grouping, the same.

    count       rows in which the feature is among the `top`: a + b
    max         largest mean activation: max(a, b)
    activation  the EXAMPLES largest of those images, equals in the order of their numbers; image: their numbers
    """
    out = {}
    for kind in KINDS:
        out[f"count_{kind}"] = a[f"count_{kind}"] + b[f"count_{kind}"]
        out[f"max_{kind}"] = torch.maximum(a[f"max_{kind}"], b[f"max_{kind}"])
        activation, image = (torch.cat([side[f"{name}_{kind}"] for side in (a, b)], dim=-1)
                             for name in ("activation", "image"))
        order = image.argsort(dim=-1, stable=True)
        activation, image = activation.gather(-1, order), image.gather(-1, order)
        order = activation.argsort(dim=-1, descending=True, stable=True)[..., :EXAMPLES]
        out[f"activation_{kind}"], out[f"image_{kind}"] = activation.gather(-1, order), image.gather(-1, order)
    return out


# --- on disk ----------------------------------------------------------------------------------------------------------

def recipe(model, settings):
    """Everything that decides a capture, as JSON values."""
    return {"settings": json.loads(json.dumps(dataclasses.asdict(settings))), "hook_point": model.hook_point,
            "timesteps": model.schedule.timesteps(settings.steps), "fingerprints": fingerprints(model),
            "device": model.device.type, "dtype": str(model.dtype).removeprefix("torch."), "torch": torch.__version__}


def write(path, data):
    with replacing(path) as file:
        file.write(data)


def shard_path(folder, rank, shards):
    return folder / f"shard_{rank}_of_{shards}.safetensors"


def read_state(path):
    """({"done", "batches", "recipe"}, statistics) of a shard."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["shard"]), {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path}: is no whole state of a capture ({e}); delete it, and its shard begins again") from e


def check_recipe(path, stored, made):
    """ValueError that names what differs. A setting that a capture does not name is younger: it was made with the
    default."""
    younger = {name: getattr(Capture, name) for name in ("top", "halves")}
    flat = lambda r: younger | {k: v for k, v in r.items() if k != "settings"} | r["settings"]
    if flat(stored) == flat(made):
        return
    names = [name for name, value in flat(made).items() if flat(stored).get(name) != value]
    raise ValueError(f"{path}: belongs to a capture with another {names[0] if names else 'recipe'}; give another "
                     f"--out, or delete {path.parent} to begin again")


def begin(model, settings, folder, shard):
    """(recipe, this shard's batches of image numbers, batches done, statistics so far); ValueError in another capture's
    folder."""
    (rank, shards), made, size = shard, recipe(model, settings), settings.batch_size
    if others := [p for p in folder.glob("shard_*_of_*.safetensors") if not p.stem.endswith(f"_of_{shards}")]:
        raise ValueError(f"{others[0]}: was begun in another number of shards; go on with that, or delete {folder}")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    batches = [range(i, min(i + size, settings.images)) for i in range(0, settings.images, size)][rank::shards]
    if (path := shard_path(folder, rank, shards)).exists():
        about, stats = read_state(path)
        check_recipe(path, about["recipe"], made)
        done = about["done"]
    else:
        sae = model.parts.get("sae")
        done, stats = 0, empty(settings.steps, sae.features if sae else 0, model.unet.width(model.hook_point))
    return made, batches, done, {name: tensor.to(model.device) for name, tensor in stats.items()}


def capture(model, settings, folder, shard=(0, 1), on_batch=lambda done, total: None):
    """Sample all images of `settings`, or every n-th batch for shard (rank, n); whether the whole capture is there.

    Begins where a killed run stopped: after every batch, pictures first, the statistics are written. Batches have a
    fixed size, the last one is filled up with copies, since kernels of another shape round differently. Shards share
    nothing but the folder; whichever is the last one merges. on_batch(images done, images of this shard) is called at
    the start and after each batch.
    """
    folder = Path(folder)
    if (finished := folder / "capture.json").exists():
        check_recipe(finished, read_json(finished).get("recipe", {"settings": {}}), recipe(model, settings))
        return merge(folder)                                    # deletes what a kill may have left
    made, batches, done, stats = begin(model, settings, folder, shard)
    path, size = shard_path(folder, *shard), settings.batch_size
    counted = [0, *accumulate(len(b) for b in batches)]
    on_batch(counted[done], counted[-1])
    write_shard(path, stats, done, len(batches), made)
    for numbers in batches[done:]:
        n = len(numbers)
        images, means = observe(model, settings, [*numbers, *[numbers[-1]] * (size - n)])
        means = {kind: v.unflatten(0, (-1, size))[:, :n].flatten(0, 1) for kind, v in means.items()}        # no copies
        if not all(values.isfinite().all() for values in means.values()):
            raise ValueError(f"images {numbers[0]} to {numbers[-1]}: activations are NaN or infinite in {model.dtype}; "
                             "use --dtype float32")
        for number, image in zip(numbers, images.cpu()):
            with replacing(image_path(folder, number)) as file:
                Image.fromarray(to_uint8(image)).save(file, format="JPEG", quality=90, subsampling=0)
        stats, done = combine(stats, summarize(means, numbers, settings.top)), done + 1
        write_shard(path, stats, done, len(batches), made)
        on_batch(counted[done], counted[-1])
    return merge(folder)


def write_shard(path, stats, done, batches, made):
    about = {"done": done, "batches": batches, "recipe": made}
    write(path, save_tensors({k: v.cpu().contiguous() for k, v in stats.items()}, {"shard": json.dumps(about)}))


def merge(folder):
    """Make the capture's files from its shards and delete those; whether the capture is there. Nothing is done while a
    shard is missing or unfinished.

    Counts add, maxima and the best examples combine exactly, so the files are the ones that a single process writes.
    """
    folder = Path(folder)
    with alone(folder):                                         # two shards may be done at the same moment
        paths = sorted(folder.glob("shard_*_of_*.safetensors"))
        stats, made, there = None, None, (folder / "capture.json").exists()
        for path in paths if not there else ():
            about, part = read_state(path)
            if about["done"] < about["batches"] or len(paths) < int(path.stem.split("_")[-1]):
                break
            check_recipe(path, about["recipe"], made := made or about["recipe"])
            stats = combine(stats, part) if stats else part
        else:
            if stats:
                write_capture(folder, stats, made)
                there = True
            for path in paths:
                path.unlink()
        return there


def write_capture(folder, stats, made):
    """The three files of a finished capture, capture.json last."""
    settings = made["settings"]
    images = len(settings["prompts"]) * settings["images_per_prompt"]
    number = torch.int16 if images < 2 ** 15 else torch.int32
    tables = {"timesteps": torch.tensor(made["timesteps"], dtype=torch.float32)}
    examples = {}
    for kind in KINDS:
        tables[f"max_{kind}"], tables[f"share_{kind}"] = stats[f"max_{kind}"], stats[f"count_{kind}"].float() / images
        kept = stats[f"activation_{kind}"].masked_fill(stats[f"image_{kind}"] < 0, 0)
        examples[f"activation_{kind}"] = kept.clamp(-65504, 65504).half()
        examples[f"image_{kind}"] = stats[f"image_{kind}"].to(number)
    write(folder / "activity.safetensors", save_tensors({k: v.contiguous() for k, v in tables.items()}))
    write(folder / "examples.safetensors", save_tensors({k: v.contiguous() for k, v in examples.items()}))
    record = json.dumps({"images": images, "recipe": made}, indent=1, sort_keys=True)
    write(folder / "capture.json", record.encode() + b"\n")
