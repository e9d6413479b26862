"""Sample images from prompts and record what every feature does meanwhile: the tables that profile.py reads.

A feature's mean activation over positions is taken without top-k. Under guidance the half with the prompt is counted
(ours), or with `halves` "both" both: then a share may reach 2, as in the original. Source: arXiv 2605.08218, section 5.

    out/<weights>/activity/images/00012.jpg     image 12: prompt 12 modulo the number of prompts, noise of seed 12
    .../activity.safetensors                    timesteps (N,); max_, max_null_ (empty prompt), share_ (N, width) and
                                                histogram_ (width, BINS) for feature and channel; max_gated (N, F)
    .../examples.safetensors                    image_, activation_ (N, width, EXAMPLES or fewer), image -1: none
    .../prompts.safetensors                     mean_feature (P, F): mean over a prompt's images and the steps
    .../capture.json                            settings, prompts, fingerprints; written last
    .../state.safetensors                       the statistics of a capture under way, rewritten after every batch
    out/<weights>/activity_<hook point>/...     at another hook point than up1.1; probe/...: a small capture

Axes: B images of a batch, R = B rows or, with guidance, 2B (empty prompt first), N sampling steps in descending order
of t, F features, D channels, width = F or D, P prompts, S positions.
"""
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save
from torch.nn.functional import one_hot

from activity.profile import find_capture, fingerprints, folder_name, image_path
from command.progress import Count, warn
from config import T, check_setting, setting
from results import to_json, write
from schedule import SAMPLERS
from steering import sample
from vae import to_uint8
from weights.load import WeightsError, open_tensors, read_json

EXAMPLES = 10               # dataset examples kept for each step and feature (ours)
BINS = 24                   # of the histogram: 0, below 2^-11, then one for each doubling (ours)
KINDS = ("feature", "channel")
PROBE, PROBE_STEPS = 80, 20     # prompts of a probe at most, one image each, and sampling steps (ours)

# Objects and styles of constants/const.py in UnlearnCanvas' code, Zhang et al., arXiv 2402.11846
WORDS = json.loads(Path(__file__).with_name("unlearncanvas.json").read_text(encoding="utf-8"))
STYLES = (*sorted(WORDS["styles"] + WORDS["more_styles"]), "photo")
ENDINGS = (".", *(f" in {style} style." for style in WORDS["styles"]))
GRIDS = {
    # 20 x 61, inferred from the thesis' four examples: all say "An", and only the longer list has Pointillism style
    "thesis": tuple(f"An {thing} image in {style} style" for thing in WORDS["objects"] for style in STYLES),
    # 20 x 51: every object alone and in 50 styles, spelled as in EIDOSLAB/SAEmnesia
    "saemnesia": tuple(f"An image of {thing}{ending}" for thing in WORDS["objects"] for ending in ENDINGS)}


@dataclass(frozen=True)
class Settings:
    """Settings of a capture; the defaults are the method's."""
    prompts: tuple
    images_per_prompt: int = setting(5, "images of each prompt", low=1)
    steps: int = setting(50, "sampling steps", low=1, high=T - 1)
    sampler: str = setting("pndm", "", tuple(SAMPLERS))
    guidance: float = setting(7.5, "classifier-free guidance; 1 is none", low=0)
    batch_size: int = setting(8, "images that are computed together", low=1)
    top: int = setting(20, "a feature is active in an image when it is among so many", low=1)
    halves: str = setting("conditional", "the half with the prompts counts, or both as in the original",
                          ("conditional", "both"))

    images = property(lambda self: len(self.prompts) * self.images_per_prompt)


FIELDS = {field.name: field for field in fields(Settings) if field.metadata}


def read_lines(path):
    """Read the lines of a text file that are not blank, each once."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        if not lines:
            raise ValueError("it is empty")
    except (OSError, ValueError) as e:
        raise ValueError(f"{path}: cannot be read ({e}); give a text file in UTF-8 with one entry a line") from e
    return tuple(dict.fromkeys(lines))


def configure(model, prompts=None, **given):
    """Combine the given settings that are not None, the weights' ("capture" in featviz.json) and the method's."""
    theirs = model.settings.get("capture", {})
    if theirs.keys() - {"prompts", *FIELDS}:
        raise WeightsError(f"{model.folder}/featviz.json: \"capture\" must hold some of prompts, {', '.join(FIELDS)}")
    name = prompts or theirs.get("prompts", "thesis")
    together = 8 if model.device.type == "cuda" or model.latent_shape[-1] <= 16 else 1  # small ones leave cores idle
    values = {"batch_size": together} | theirs | {k: value for k, value in given.items() if value is not None}
    values["prompts"] = GRIDS.get(str(name)) or read_lines(prompts or model.folder / name)
    settings = Settings(**values)
    for name, field in FIELDS.items():
        check_setting(name, field, getattr(settings, name))
    return settings


def sample_prompts(model, settings, numbers, look):
    """Sample the images of these numbers: (latents (B, 4, H, W), [look(h (R, S, D) float32), by step]). Of the two
    calls of PNDM at its second time step the later counts, which sees the sample that the step starts from."""
    noise = torch.stack([torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(i)) for i in numbers])
    context, seen = model.embed([settings.prompts[i % len(settings.prompts)] for i in numbers]), {}

    def see(_, step):
        seen[step.timestep] = look(step.hook.float().flatten(2).transpose(1, 2))

    z = sample(model, noise.to(model.device), context, settings.sampler, settings.steps, settings.guidance, None, see)
    return z, [seen[t] for t in model.schedule.timesteps(settings.steps)]


def observe(model, settings, numbers):
    """Sample the images of these numbers: pictures (B, 3, 8H, 8W), and mean activations {"feature": (R, N, F),
    "channel": (R, N, D), "gated", what the SAE's gate leaves of the rows with prompts: (B, N, F)}."""
    def look(h):
        halves, none = h.split(len(numbers)), h.new_zeros(len(numbers), 0)                      # (B, S, D) each
        feature = [model.sae.pre_acts(half).mean(1) if model.sae else none for half in halves]  # (B, F) each
        return {"feature": torch.cat(feature), "channel": torch.cat([half.mean(1) for half in halves]),
                "gated": model.sae.encode(halves[-1]).mean(1) if model.sae else none}

    z, seen = sample_prompts(model, settings, numbers, look)
    return model.decode(z), {name: torch.stack([means[name] for means in seen], dim=1) for name in seen[0]}


def bins(values):
    """Sort values into the histogram's bins: 0 for 0 and below, else b where 2^(b - 13) <= value < 2^(b - 12)."""
    return torch.where(values > 0, (values.frexp().exponent + 12).clamp(1, BINS - 1), 0).long()


def summarize(means, numbers, settings):
    """Compute a batch's statistics from the means of `observe`. Of equals all are among the `top` (ours)."""
    B, P, total = len(numbers), len(settings.prompts), means["feature"].sum(1)                  # (R, F)
    images = torch.tensor([*numbers], device=total.device)                                      # (B,)
    stats = {"max_gated": means["gated"].amax(0),
             "sum_feature": total.new_zeros(P, total.shape[1]).index_add(0, images % P, total[-B:])}
    for kind in KINDS:
        null, prompted = means[kind][:-B], means[kind][-B:]                                     # (0 or B, N, width)
        counted = means[kind] if settings.halves == "both" else prompted
        least = counted.topk(min(settings.top, counted.shape[-1]), dim=-1).values[..., -1:]
        member = (counted >= least) & ((counted > 0) | (kind == "channel"))     # a silent feature never is one (ours)
        shown = member[-B:]
        stats |= {f"count_{kind}": member.sum(0, dtype=torch.int32), f"max_{kind}": counted.amax(0),
                  f"histogram_{kind}": one_hot(bins(prompted.amax(1)), BINS).sum(0, dtype=torch.int32),
                  f"activation_{kind}": torch.where(shown, prompted, -torch.inf).permute(1, 2, 0),
                  f"image_{kind}": torch.where(shown, images.int()[:, None, None], -1).permute(1, 2, 0)}
        if len(null):
            stats[f"max_null_{kind}"] = null.amax(0)
    return stats


def combine(*parts):
    """Combine the statistics of images in ascending order; of equal examples the earlier are kept."""
    tables = {name: [part[name] for part in parts if part] for name in parts[-1]}
    out = {name: sum(some) for name, some in tables.items() if name.startswith(("count", "histogram", "sum"))}
    out |= {name: torch.stack(some).amax(0) for name, some in tables.items() if name.startswith("max")}
    for kind in KINDS:
        activation, image = (torch.cat(tables[f"{name}_{kind}"], dim=-1) for name in ("activation", "image"))
        order = activation.argsort(dim=-1, descending=True, stable=True)[..., :EXAMPLES]
        out[f"activation_{kind}"], out[f"image_{kind}"] = activation.gather(-1, order), image.gather(-1, order)
    return out


def capture(model, settings, folder):
    """Sample all images of `settings` and write the capture into `folder`; ValueError where that holds another one. A
    killed run goes on with the same result: pictures are written before the state, batches hold the same images."""
    recipe = {"settings": json.loads(json.dumps(asdict(settings))), "hook_point": model.hook_point,
              "timesteps": model.schedule.timesteps(settings.steps), "fingerprints": fingerprints(model),
              "device": model.device.type, "dtype": str(model.dtype).removeprefix("torch."), "torch": torch.__version__}
    made, stats, progress = {"recipe": recipe, "done": 0}, {}, Count("images")
    state, finished = folder / "state.safetensors", folder / "capture.json"
    if finished.exists():
        made = read_json(finished)
    elif state.exists():
        made, stats = load_state(state, model.device)
    if made.get("recipe") != recipe:
        raise ValueError(f"{folder}: holds a capture with other settings, weights or torch; give another --out, or "
                         "delete it first")
    if finished.exists():
        return state.unlink(missing_ok=True)                    # a kill may have left it
    (folder / "images").mkdir(parents=True, exist_ok=True)
    progress(made["done"], settings.images)
    for first in range(made["done"], settings.images, settings.batch_size):
        numbers = range(first, min(first + settings.batch_size, settings.images))
        images, means = observe(model, settings, numbers)
        if not all(values.isfinite().all() for values in means.values()):
            raise ValueError(f"images {first} to {numbers[-1]}: activations are NaN or infinite in {model.dtype}; "
                             "use --dtype float32")
        for number, image in zip(numbers, images.cpu()):
            Image.fromarray(to_uint8(image)).save(image_path(folder, number), quality=90, subsampling=0)
        stats = combine(stats, summarize(means, numbers, settings))
        save_state(state, {"done": numbers.stop, "recipe": recipe}, stats)
        progress(numbers.stop, settings.images)
    tables = {name: table for name, table in stats.items() if name.startswith(("max", "histogram"))}
    tables |= {f"share_{kind}": stats[f"count_{kind}"] / settings.images for kind in KINDS}
    tables["timesteps"] = torch.tensor(recipe["timesteps"], dtype=torch.float32)
    examples = {name: table for name, table in stats.items() if name.startswith(("image", "activation"))}
    mean = {"mean_feature": stats["sum_feature"] / (settings.images_per_prompt * settings.steps)}
    for name, written in (("activity", tables), ("examples", examples), ("prompts", mean)):
        save_tensors(folder / f"{name}.safetensors", written)
    write(finished, to_json({"images": settings.images, "recipe": recipe}, indent=1, sort_keys=True))
    state.unlink()


def save_tensors(path, tensors, **metadata):
    write(path, save({name: t.cpu().contiguous() for name, t in tensors.items()}, metadata))


def save_state(path, about, state):
    """Write a safetensors file of `about`, a JSON value, and `state`, tensors and numbers by name in nested dicts."""
    tensors, left = {}, [*state.items()]
    for name, value in left:                                    # what is inside of a dict comes to the end of the list
        if isinstance(value, dict):
            left += [(f"{name}/{inner}", one) for inner, one in value.items()]
        else:
            tensors[name] = torch.as_tensor(value)
    save_tensors(path, tensors, state=json.dumps(about))


def load_state(path, device="cpu"):
    """Read (about, state) as `save_state` wrote them, numbers as tensors."""
    state = {}
    with open_tensors(path) as file:
        for name in file.keys():
            *outer, last = (int(part) if part.isdigit() else part for part in name.split("/"))
            inside = state
            for part in outer:
                inside = inside.setdefault(part, {})
            inside[last] = file.get_tensor(name).to(device)
        return json.loads((file.metadata() or {}).get("state", "null")), state


def full_command(model):
    return f"python -m activity capture --weights {model.folder} --hook-point {model.hook_point}"


def attach(model, out):
    """Attach the model's capture to it; WeightsError where there is none."""
    model.capture = find_capture(model, out)
    if not model.capture:
        raise WeightsError(f"{model.folder}: has no capture; run {full_command(model)}")


def probe(model, out, batch_size=None):
    """Return a small capture of these weights, made now where there is none."""
    folder = Path(out) / model.name / folder_name(model.hook_point, "probe")
    warn(f"{model.folder} has no capture: a probe in {folder} stands in for it; for the full one run "
         f"{full_command(model)}; an ascent with --prior noise --timestep 361 needs none")
    if not find_capture(model, out, "probe"):
        settings = configure(model, batch_size=batch_size, images_per_prompt=1)
        some = settings.prompts[::-(-len(settings.prompts) // PROBE)]
        capture(model, replace(settings, prompts=some, steps=min(PROBE_STEPS, settings.steps)), folder)
    return find_capture(model, out, "probe")
