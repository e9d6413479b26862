"""Before a run: how much memory it will take, known from headers alone, and whether UNet and SAE belong together.

Memory (no weights are read, no number is computed): the size of the weights is in the files' headers; what a step of
the ascent keeps for its gradient is counted by running the network on the meta device, which has shapes and no numbers.
Fused attention keeps no attention map, so maps are left out.

Fit: an SAE describes the activations that it was trained on. On those of its own UNet it leaves little variance
unexplained, with about k features active at a position; on another model's, or at another hook point, the same numbers
are far off. Inputs: two fixed prompts and seeds of noise, as a sampler's first step sees them; there alone the right
input is known without running the whole UNet. At full size this takes ten seconds, so the two numbers are remembered.
"""
import hashlib
import json
import math
import os
from pathlib import Path

import torch

from weights.load import PARTS
from weights.disk import WeightsError
from weights.fingerprints import recall, remember, settled
from sae import fvu

HALF = ("unet", "text_encoder")                         # the parts that take the run's dtype; the others are float32
FIT_PROMPTS = ("A Cat image in Sketch style", "A Flower image in Cartoon style")        # as SAeUron and the toy train
FIT_STEPS, FIT_BLOCK = 50, 256                          # the sampler whose first step it is; positions at a time
BACKWARD = 1.25                                         # measured at SD's size: 0.84 GiB at most, 0.67 of it kept
FVU_FITS, FVU_WRONG = 0.5, 0.8                  # fits below the one, does not from the other on; the mean alone has 1
ACTIVE_WRONG = 0.25                             # share of k; fewer active features at a position do not describe it
FIT_PARTS = ("unet", "text_encoder", "tokenizer", "scheduler", "sae")                   # whose files the fit depends on
FITS, MOST_FITS = "fits.json", 64               # in the user's cache folder: {occasion: [FVU, active, seal]}, so many
ROOT = Path(__file__).resolve().parent.parent


def weights_bytes(found, dtype):
    """Memory of the weights that `checkpoint.find` found, once they are loaded."""
    width = {part: dtype.itemsize if part in HALF else 4 for part in found.sources}
    return sum(width[part] * sum(p.numel() for p in source.net.state_dict().values())
               for part, source in found.sources.items())


def kept_bytes(net, run, heads=None, positions=()):
    """What run() of a network keeps between forward and backward, counted on the meta device in float32; without
    weights and without attention maps: ([B,] heads, N, N or L), N and L of `positions`."""
    weights, kept = {p.untyped_storage()._cdata for p in net.parameters()}, {}

    def keep(t):
        is_map = (t.ndim == 3 or t.ndim == 4 and t.shape[1] == heads) and {*t.shape[-2:]} <= {*positions}
        if not is_map and (storage := t.untyped_storage())._cdata not in weights:
            kept[storage._cdata] = storage                      # held, so that no other takes its address
        return t

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def unet_bytes(unet, shape, hook_point, batch, dtype):
    """What one step of the ascent keeps of the UNet."""
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    positions = {77} | {shape[1] * shape[2] // 4 ** level for level in range(4)}
    run = lambda: unet(torch.empty(batch, *shape, requires_grad=True), torch.empty(batch, dtype=torch.int64),
                       torch.empty(batch, 77, attention.to_k.in_features), until=hook_point)
    return kept_bytes(unet, run, attention.heads, positions) * dtype.itemsize // 4


def encode_bytes(vae, shape, batch):
    """What one step keeps of the encoder in front of it, with --space pixel."""
    edges = (vae.factor * edge for edge in shape[1:])
    return kept_bytes(vae, lambda: vae.encode(torch.empty(batch, 3, *edges, requires_grad=True)))


def decode_bytes(vae, shape, batch):
    """The maps that live at once in the decoder: about four of full size, as wide as the level before last."""
    widths = [block.resnets[0].conv1.in_channels for block in vae.decoder.up_blocks]
    return 4 * 4 * batch * widths[-1] * shape[1] * shape[2] * vae.factor ** 2


def predict(found, dtype, batch, space="latent"):
    """(bytes of the weights, bytes that the ascent of `batch` jobs adds)."""
    unet, vae = found.sources["unet"].net, found.sources.get("vae")
    shape = (unet.conv_in.in_channels, *found.latent)
    working = BACKWARD * unet_bytes(unet.requires_grad_(False), shape, found.hook_point, batch, dtype)
    if space == "pixel" and vae:
        working += BACKWARD * encode_bytes(vae.net.requires_grad_(False), shape, batch)
    return weights_bytes(found, dtype), max(int(working), decode_bytes(vae.net, shape, batch) if vae else 0)


def free_bytes(device):
    """Memory that is free on the device; None where the system does not tell."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def check_memory(found, device, dtype, batch, space="latent"):
    """One line on the memory that weights and ascents of `batch` jobs take; WeightsError for more than is free."""
    (weights, working), free = predict(found, dtype, batch, space), free_bytes(device)
    amount = lambda n: f"{n / 2**30:.1f} GiB" if n >= 2 ** 30 else f"{n / 2**20:.0f} MiB"
    parts = ", ".join(f"{part} {sum(p.numel() for p in found.sources[part].net.parameters()) / 1e6:.1f} M"
                      for part in (*PARTS, "sae") if part in found.sources)
    print(f"{found.name}: {parts} numbers; the weights take {amount(weights)} in {str(dtype).removeprefix('torch.')}, "
          f"ascents of {batch} together about {amount(working)} more" + (f"; {amount(free)} are free" if free else ""))
    if free and weights + working > free:
        raise WeightsError(f"{found.folder}: takes about {amount(weights + working)}, {amount(free)} are free on "
                           f"{device}; give a smaller --batch-size, --dtype bfloat16, or another --device")


@torch.no_grad()
def fit(model):
    """Of the SAE on the known inputs: (fraction of variance unexplained, mean number of active features)."""
    generators = [torch.Generator().manual_seed(seed) for seed, _ in enumerate(FIT_PROMPTS)]
    noise = torch.stack([torch.randn(model.latent_shape, generator=g) for g in generators])     # (B, 4, H, W)
    noise = noise.to(model.device)
    context = model.embed(list(FIT_PROMPTS))                                                    # (B, 77, Dc)
    t = torch.full((len(noise),), model.schedule.timesteps(FIT_STEPS)[0], device=model.device)
    h = model.unet(noise.to(model.dtype), t, context, until=model.hook_point).float()           # (B, D, h, w)
    h = h.flatten(2).transpose(1, 2).flatten(0, 1)                                              # (B * S, D)
    h_hat, active = [], 0
    for positions in h.split(FIT_BLOCK):                                                        # (n, F) at a time
        acts = model.sae.encode(positions)
        h_hat.append(model.sae.decode(acts))
        active += (acts > 0).sum().item()
    unexplained = fvu(model.sae.preprocess(h), torch.cat(h_hat)).item()
    if not math.isfinite(unexplained):
        model.check_numbers()                                   # names the file and the tensor, if it is one
    return unexplained, active / len(h)


def digest(*parts):
    """SHA-256 of what JSON can say."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def occasion(model):
    """SHA-256 of all that `fit` depends on: path, size, times and inode of every file, as fingerprints.py tells a file
    that has changed; hook point, precision, device; torch, and the code with its constants."""
    files = {name: [os.path.abspath(path), then] for name, (path, then) in sorted(model.files.items())
             if name.split("/")[0] in FIT_PARTS}
    code = [[str(path.relative_to(ROOT)), hashlib.sha256(path.read_bytes()).hexdigest()]
            for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("weights/*.py")])]
    return digest(files, model.hook_point, str(model.dtype), model.device.type, torch.__version__, code)


def fit_before(key):
    """What `fit` gave on this occasion before; None where it is not known, or the entry is not as it was written."""
    match recall(FITS).get(key):
        case [float() as unexplained, float() as active, seal] if seal == digest(key, unexplained, active):
            return unexplained, active


def fit_once(model):
    """`fit`, worked out once for a model and its copies, and not again in a later run on the same occasion."""
    if model.fit is None:
        key = occasion(model)
        model.fit = fit_before(key)
        if model.fit is None:
            model.fit = fit(model)
            if all(map(math.isfinite, model.fit)) and all(settled(*file) for file in model.files.values()):
                lately = {*list(recall(FITS))[1 - MOST_FITS:], key}
                remember({key: [*model.fit, digest(key, *model.fit)]}, FITS, lately.__contains__)
    return model.fit


def verdict(k, unexplained, active):
    """What the two numbers mean: "" when UNet and SAE fit, else one sentence for the user."""
    if unexplained < FVU_FITS and active >= ACTIVE_WRONG * k:
        return ""
    sure = not unexplained < FVU_WRONG or active < ACTIVE_WRONG * k                   # NaN is sure, too
    return (f"UNet and SAE {'do not' if sure else 'may not'} belong together: of the activations' variance the SAE "
            f"leaves {unexplained:.2f} unexplained (below {FVU_FITS} where they do), {active:.1f} of its features are "
            f"active at a position (k is {k}); give the UNet that it was trained on")


def check_fit(model):
    """The line of --check about UNet and SAE."""
    unexplained, active = fit_once(model)
    return (f"fit of UNet and SAE: {unexplained:.3f} of the variance unexplained, {active:.1f} features active at a "
            f"position (k is {model.sae.k}): {verdict(model.sae.k, unexplained, active) or 'they belong together'}")
