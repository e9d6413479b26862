"""What `python -m activity` does: capture images, analyse a feature, sample steered images."""
import json
import re
from dataclasses import asdict

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from activity.analysis import analysis, save_activity
from activity.capture import EXAMPLES, configure
from activity.capture import capture as record
from activity.card import card, lines
from activity.label import find_labels, save_labels
from activity.probe import full_command, small_capture
from activity.profile import find_capture, folder_name
from activity.prompts import WORDS, read_prompts
from command.progress import CaptureProgress, say, warn
from config import Job
from results import file_name, folder_of, replacing, times_in
from steering import directions
from steering import sample as steered_sample
from vae import to_uint8
from weights.choose import choose_weights
from weights.load import WeightsError, load

JPEG_BYTES = 0.6            # of a pixel, about; small pictures take more than large ones


def open_model(weights, device, dtype, hook_point, kind="feature", numbers=()):
    """Load the weights that are named, or those that have these features or channels; at the hook point, if given."""
    model = load(choose_weights(weights, kind, numbers or ["any"]), device, dtype)
    return model.at(hook_point) if hook_point else model


def attach(model, out, make=False):
    """Attach the model's capture to it; where there is none, make a small one, or raise WeightsError."""
    model.capture = find_capture(model, out)
    if not model.capture and not make:
        raise WeightsError(f"{model.folder}: has no capture; run {full_command(model)}")
    model.capture = model.capture or small_capture(model, out, on_batch=CaptureProgress())


def check_numbers(model, kind, numbers):
    """Raise ValueError for a feature or channel that the model does not have."""
    if kind == "feature" and numbers:
        model.require("sae")
    count = model.sae.features if kind == "feature" and model.sae else model.unet.width(model.hook_point)
    if bad := [n for n in numbers if not 0 <= n < count]:
        raise ValueError(f"--{kind} {bad[0]} is out of range: {model.folder} has {count} {kind}s, 0..{count - 1}")


def capture(model, out, check, **settings):
    """Record a capture, or with `check` say what it would take."""
    settings, folder = configure(model, **settings), out / model.name / folder_name(model.hook_point)
    model.require("vae", "text_encoder", "tokenizer")
    what = (f"{settings.images} images of {len(settings.prompts)} prompts, {settings.steps} {settings.sampler} steps, "
            f"guidance {settings.guidance}, {model.folder} on {model.device}")
    if check:
        return say(f"{what}: {costs(model, settings)} in {folder}")
    warn(what)
    record(model, settings, folder, CaptureProgress())
    say(f"look at {folder}")


def costs(model, settings):
    """Say how many UNet passes and how much disk a capture takes, from the sizes of its tables."""
    F, D = model.sae.features if model.sae else 0, model.unet.width(model.hook_point)
    edge = model.latent_shape[-1] * 2 ** (len(model.vae.encoder.down_blocks) - 1)
    tables = settings.steps * (F + D) * (12 + 8 * EXAMPLES) + 4 * F * len(settings.prompts)
    rows = settings.images * settings.steps * (1 if settings.guidance == 1.0 else 2)
    disk = 2 * tables + settings.images * edge ** 2 * JPEG_BYTES                                # and its state
    return f"{rows:,} rows through the UNet, {settings.batch_size} images together, {disk / 2**20:.0f} MiB of disk"


def analyse(model, out, kind, numbers):
    """Print the profile, peaks and examples of features, and write activity.json for their pages."""
    check_numbers(model, kind, numbers)
    attach(model, out)
    for n in numbers:
        folder = folder_of(out, model.name, model.hook_point, kind, n)
        found = analysis(model, kind, n, times_in(folder))
        say(f"{kind} {n}: active at {found['active']} of 1001 time steps, peaks at {found['peaks'] or 'none'}")
        for t, examples in found["examples"].items():
            for e in examples[:3]:
                say(f"  t {t}: activation {e['activation']:.4f}, image {e['image']}: {e['prompt']}")
        say(f"look at {save_activity(folder, found)}")


def show(model, out, kind, numbers):
    """Print the cards of features."""
    check_numbers(model, kind, numbers)
    attach(model, out)
    for n in numbers:
        for line in lines(card(model, kind, n)):
            say(line)


def label(model, out, words):
    """Find the feature of each word in a file, print them, and write the SAE's labels.json."""
    model.require("sae")
    attach(model, out)
    texts = WORDS.get(str(words)) or read_prompts(words)
    found = find_labels(model.capture, [text.replace("_", " ") for text in texts])
    say(f"{'word':<24} {'feature':>7} {'score':>8} {'runner-up':>9} {'score':>8} {'prompts':>7}")
    for label in found:
        say(f"{label.word:<24} {label.feature:7d} {label.score:8.4f} {label.runner_up:9d} {label.runner_up_score:8.4f} "
            f"{label.prompts:7d}")
    path = next(path for name, path in model.files.items() if name.endswith("cfg.json")).with_name("labels.json")
    for label in save_labels(path, found):
        warn(f"{label.word}: its feature {label.feature} is kept for a word with a higher score")
    say(f"look at {path}")


def sample(model, out, prompt, steer, steer_channel, seeds, **settings):
    """Write an image of the prompt and, where something is steered, the same image steered beside it."""
    settings, push = configure(model, **settings), 0                                            # (1001, D)
    entries = {"feature": steer, "channel": steer_channel}
    for kind, pairs in entries.items():
        check_numbers(model, kind, [n for n, _ in pairs])
    if steer or steer_channel:
        attach(model, out, make=True)
    for kind, n, s in [(kind, n, s) for kind, pairs in entries.items() for n, s in pairs]:
        d = directions(model, [Job(kind, n)])                                                   # (1, D)
        push = push + s * model.capture.strength(kind, n)[:, None].to(d) * d
    adds = [None, lambda t: {model.hook_point: push[t][None].to(model.dtype)}][:2 if steer or steer_channel else 1]
    context, sampling = model.embed([prompt]), (settings.sampler, settings.steps, settings.guidance)
    for seed in seeds:
        noise = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(seed)).to(model.device)
        images = [model.decode(steered_sample(model, noise, context, *sampling, add))[0] for add in adds]
        made = asdict(settings) | {
            "prompt": prompt, "seed": seed, "steer": steer, "steer_channel": steer_channel, "weights": model.name,
            "hook_point": model.hook_point, "fingerprints": model.fingerprints}
        say(f"look at {save_sample(out, made, torch.cat(images, dim=2).cpu())}")


def save_sample(out, made, image):
    """Write a picture with its recipe in the text chunk "featviz"; returns its path."""
    name = file_name(re.sub(r"\W+", "-", made["prompt"].lower()).strip("-")) or "empty"
    name += file_name("".join(f"_{kind}{n}={s:g}" for kind, key in (("f", "steer"), ("c", "steer_channel"))
                              for n, s in made[key]))
    path = out / made["weights"] / folder_name(made["hook_point"], "samples") / f"{name}_seed_{made['seed']}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = PngInfo()
    text.add_text("featviz", json.dumps({k: v for k, v in made.items() if k != "prompts"}, sort_keys=True))
    with replacing(path) as file:
        Image.fromarray(to_uint8(image)).save(file, format="PNG", pnginfo=text)
    return path
