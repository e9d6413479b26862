"""Sample images from prompts and record what every feature does meanwhile: the tables that profile.py reads.

At every sampling step the mean activation over positions of every feature and raw channel is computed as in the
ascent's objective: without top-k for a feature, h[:, c] for a channel. Source: arXiv 2605.08218, section 5.

Under guidance the UNet sees every image twice, with the empty prompt and with its own. Activity is counted in the half
with its own (ours), or with `halves` "both" in both: then a share may reach 2, as in the original. Examples are always
those of the half with the prompt. The maxima under the empty prompt are kept too, since the ascent sees that prompt.

    out/<weights>/activity/images/00012.jpg     image 12: prompt 12 modulo the number of prompts, noise of seed 12
    .../activity.safetensors                    timesteps (N,); max_, max_null_ (empty prompt), share_ (N, width) and
                                                histogram_ (width, BINS) for feature and channel; max_gated (N, F)
    .../examples.safetensors                    image_, activation_ (N, width, EXAMPLES), image -1: none
    .../prompts.safetensors                     mean_feature (P, F): mean over a prompt's images and the steps
    .../capture.json                            settings, prompts, fingerprints; written last
    .../state.safetensors                       the statistics of a capture under way, rewritten after every batch
    out/<weights>/activity_<hook point>/...     the same at another hook point than up1.1

Axes: B images of a batch, R = B rows or, with guidance, 2B (empty prompt first), N sampling steps in descending order
of t, F features, D channels, width = F or D, P prompts, S positions.
"""
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch.nn.functional import one_hot, pad

from activity.profile import TOP, fingerprints, image_path
from activity.prompts import GRIDS, find_prompts
from config import check_setting, setting
from results import replacing, write
from schedule import SAMPLERS
from steering import sample
from vae import to_uint8
from weights.load import WeightsError, read_json

EXAMPLES = 10               # dataset examples kept for each step and feature (ours)
BINS = 24                   # of the histogram: 0, below 2^-11, then one for each doubling (ours)
PROMPTS = 2 ** 28           # bytes up to which mean_feature is kept; SD's thesis grid needs 100 MB
KINDS = ("feature", "channel")


@dataclass(frozen=True)
class Settings:
    """Settings of a capture; the defaults are the method's. A model's featviz.json may hold others under "capture"."""
    prompts: tuple
    images_per_prompt: int = setting(5, "images of each prompt", low=1)
    steps: int = setting(50, "sampling steps", low=1)
    sampler: str = setting("pndm", "", tuple(SAMPLERS))
    guidance: float = setting(7.5, "classifier-free guidance; 1 is none", low=0)
    batch_size: int = setting(8, "images that are computed together", low=1)
    top: int = setting(TOP, "a feature is active in an image when it is among so many", low=1)
    halves: str = setting("conditional", "the half with the prompts counts, or both as in the original",
                          ("conditional", "both"))

    @property
    def images(self):
        return len(self.prompts) * self.images_per_prompt


FIELDS = {field.name: field for field in dataclasses.fields(Settings) if field.name != "prompts"}


def configure(model, **given):
    """Combine the method's settings, those of the weights (featviz.json, "capture") and the given ones, the last first.

    `prompts` is one of prompts.GRIDS, a file, or a list of texts; a value of None counts as not given.
    """
    theirs = model.settings.get("capture", {})
    if not isinstance(theirs, dict) or theirs.keys() - {"prompts", *FIELDS}:
        raise WeightsError(f"{model.folder / 'featviz.json'}: \"capture\" must be an object with some of prompts, "
                           f"{', '.join(FIELDS)}")
    if isinstance(theirs.get("prompts"), str) and theirs["prompts"] not in GRIDS:
        theirs = theirs | {"prompts": model.folder / theirs["prompts"]}
    together = 8 if model.device.type == "cuda" or model.latent_shape[-1] <= 16 else 1  # small ones leave cores idle
    values = {"prompts": "thesis", "sampler": model.sampler, "batch_size": together} | theirs
    values |= {name: value for name, value in given.items() if value is not None}
    settings = Settings(**values | {"prompts": find_prompts(values["prompts"])})
    for name, field in FIELDS.items():
        check_setting(name, field, getattr(settings, name))
    model.schedule.timesteps(settings.steps)                    # raises where there cannot be so many
    return settings


# --- one batch --------------------------------------------------------------------------------------------------------

@torch.no_grad()
def observe(model, settings, numbers):
    """Sample the images of these numbers: pictures (B, 3, 8H, 8W), and mean activations {"feature": (R, N, F),
    "channel": (R, N, D), "gated": (B, N, F)}.

    The B rows that saw the prompts come last; under guidance, those that saw the empty prompt come before them. "gated"
    is the mean of what the SAE's gate (top-k or threshold) leaves, of the rows with prompts. PNDM calls the UNet twice
    at its second time step; the later call counts, which sees the sample that the step starts from.
    """
    noise = torch.stack([torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(i)) for i in numbers])
    context = model.embed([settings.prompts[i % len(settings.prompts)] for i in numbers])
    sae, seen = model.sae, {}

    def see(t, h):
        halves = h.float().flatten(2).transpose(1, 2).split(len(numbers))                       # (B, S, D) each
        none = h.new_zeros(len(numbers), 0, dtype=torch.float32)
        feature = [sae.pre_acts(half).mean(1) if sae else none for half in halves]              # (B, F) each
        seen[t] = {"feature": torch.cat(feature), "channel": torch.cat([half.mean(1) for half in halves]),
                   "gated": sae.encode(halves[-1]).mean(1) if sae else none}

    z = sample(model, noise.to(model.device), context, settings.sampler, settings.steps, settings.guidance, see=see)
    times = model.schedule.timesteps(settings.steps)
    return model.decode(z), {name: torch.stack([seen[t][name] for t in times], dim=1) for name in (*KINDS, "gated")}


def strongest(means, kind, top=TOP):
    """Mark which are among the `top` of their row and step: (R, N, width) -> bool. A silent feature never is; equals
    are together (ours)."""
    least = means.topk(min(top, means.shape[-1]), dim=-1).values[..., -1:]
    return (means >= least) & (means > 0) if kind == "feature" else means >= least


def bins(values):
    """Sort values into the histogram's bins: 0 for 0 and below, then b where 2^(b - 13) <= value < 2^(b - 12)."""
    return torch.where(values > 0, (values.frexp().exponent + 12).clamp(1, BINS - 1), 0).long()


def summarize(means, numbers, top=TOP, halves="conditional"):
    """Compute the statistics of a batch from what `observe` returned for these image numbers (B,)."""
    B, stats = len(numbers), {"max_gated": means["gated"].amax(0)}
    for kind in KINDS:
        null, prompted = means[kind][:-B], means[kind][-B:]                                     # (0 or B, N, width)
        counted = means[kind] if halves == "both" else prompted
        member = strongest(counted, kind, top)
        no_half = torch.full_like(prompted[:1], -torch.inf)                                     # without guidance
        stats |= {f"count_{kind}": member.sum(0, dtype=torch.int32), f"max_{kind}": counted.amax(0),
                  f"max_null_{kind}": torch.cat([no_half, null]).amax(0)}
        found = one_hot(bins(prompted.amax(1)), BINS)                       # (B, width, BINS)
        stats[f"histogram_{kind}"] = found.sum(0, dtype=torch.int32)
        member = member[-B:]
        image = torch.as_tensor(list(numbers), dtype=torch.int32, device=member.device)[:, None, None].expand_as(member)
        stats |= {f"activation_{kind}": prompted.masked_fill(~member, -torch.inf).permute(1, 2, 0),
                  f"image_{kind}": image.masked_fill(~member, -1).permute(1, 2, 0)}
    return stats


def combine(*parts):
    """Put the statistics of sets of images together; in whichever order and grouping, the result is the same.

    count, histogram    rows or images: the sum
    max                 largest mean activations: the maximum
    activation          the EXAMPLES largest, equals in the order of their image numbers; image: these numbers
    """
    out = {name: sum(part[name] for part in parts) for name in parts[0] if name.startswith(("count", "histogram"))}
    out |= {name: torch.stack([part[name] for part in parts]).amax(0) for name in parts[0] if name.startswith("max")}
    for kind in KINDS:
        activation, image = (torch.cat([part[f"{name}_{kind}"] for part in parts], dim=-1)
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


def check_recipe(path, stored, made):
    """Raise a ValueError that names what differs between the recipe in `path` and the wanted one."""
    stored, made = (recipe | recipe.get("settings", {}) for recipe in (stored, made))
    if differs := [name for name, value in made.items() if name != "settings" and stored.get(name) != value]:
        raise ValueError(f"{path}: belongs to a capture with another {differs[0]}; give another --out, or delete "
                         f"{path.parent} to begin again")


def save_tensors(path, tensors, **metadata):
    write(path, serialize({name: t.cpu().contiguous() for name, t in tensors.items()}, metadata))


def begin(model, settings, path, made):
    """Read the state of a capture under way, or create that of no image: (images done, statistics).

    Beside what `combine` knows, the statistics hold sum_feature (P, F): the sum of a prompt's mean activations over its
    images and the sampling steps, or (0, F) where it would take more than PROMPTS bytes.
    """
    if not path.exists():
        F, P = model.sae.features if model.sae else 0, len(settings.prompts)
        return 0, {"sum_feature": torch.zeros(P if 4 * F * P <= PROMPTS else 0, F, device=model.device)}
    try:
        with safe_open(path, framework="pt", device=str(model.device)) as file:
            about = json.loads(file.metadata()["state"])
            stats = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path}: is not a whole state of a capture ({e}); delete it to begin again") from e
    check_recipe(path, about["recipe"], made)
    return about["done"], stats


def capture(model, settings, folder, on_batch=lambda done, images: None):
    """Sample all images of `settings` and write the capture into `folder`.

    A killed run goes on where it stopped, with the same result: after every batch the pictures are written, then the
    state, and the batches always hold the same images. on_batch(images done, images) is called at the start and after
    each batch.
    """
    folder, made = Path(folder), recipe(model, settings)
    state, finished = folder / "state.safetensors", folder / "capture.json"
    if finished.exists():
        check_recipe(finished, read_json(finished).get("recipe", {}), made)
        return state.unlink(missing_ok=True)                    # a kill may have left it
    (folder / "images").mkdir(parents=True, exist_ok=True)
    done, stats = begin(model, settings, state, made)
    sums = stats.pop("sum_feature")
    on_batch(done, settings.images)
    while done < settings.images:
        numbers = range(done, min(done + settings.batch_size, settings.images))
        images, means = observe(model, settings, numbers)
        if not all(values.isfinite().all() for values in means.values()):
            raise ValueError(f"images {numbers[0]} to {numbers[-1]}: activations are NaN or infinite in {model.dtype}; "
                             "use --dtype float32")
        for number, image in zip(numbers, images.cpu()):
            with replacing(image_path(folder, number)) as file:
                Image.fromarray(to_uint8(image)).save(file, format="JPEG", quality=90, subsampling=0)
        found, done = summarize(means, numbers, settings.top, settings.halves), numbers.stop
        stats = combine(stats, found) if stats else combine(found)
        for number, row in zip(numbers, means["feature"][-len(numbers):]) if len(sums) else ():
            sums[number % len(sums)] += row.sum(0)
        save_tensors(state, stats | {"sum_feature": sums}, state=json.dumps({"done": done, "recipe": made}))
        on_batch(done, settings.images)
    write_capture(folder, stats | {"sum_feature": sums}, made)
    state.unlink()


def write_capture(folder, stats, made):
    """Write the files of a finished capture, capture.json last."""
    settings, steps = made["settings"], len(made["timesteps"])
    images = len(settings["prompts"]) * settings["images_per_prompt"]
    tables = {"timesteps": torch.tensor(made["timesteps"], dtype=torch.float32), "max_gated": stats["max_gated"]}
    examples = {}
    for kind in KINDS:
        tables |= {f"max_{kind}": stats[f"max_{kind}"], f"share_{kind}": stats[f"count_{kind}"].float() / images,
                   f"histogram_{kind}": stats[f"histogram_{kind}"]}
        if settings["guidance"] != 1.0:
            tables[f"max_null_{kind}"] = stats[f"max_null_{kind}"]
        image, activation = stats[f"image_{kind}"], stats[f"activation_{kind}"]
        missing = (0, EXAMPLES - image.shape[-1])               # where there are so few images
        examples |= {f"image_{kind}": pad(image, missing, value=-1),
                     f"activation_{kind}": pad(activation.masked_fill(image < 0, 0), missing)}
    save_tensors(folder / "activity.safetensors", tables)
    save_tensors(folder / "examples.safetensors", examples)
    if len(stats["sum_feature"]):
        mean = stats["sum_feature"] / (settings["images_per_prompt"] * steps)
        save_tensors(folder / "prompts.safetensors", {"mean_feature": mean})
    record = json.dumps({"images": images, "recipe": made}, indent=1, sort_keys=True)
    write(folder / "capture.json", record.encode() + b"\n")
