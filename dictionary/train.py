"""Train a sparse autoencoder on a model's own activations: collect them, train, measure what it explains.

A few positions of a map are kept: neighbours say nearly the same. Noise and positions follow from an image's number, so
the batch changes the vectors by rounding alone.

    work/collect.json           what was asked for; another request is refused
    work/vectors.float16        (images, N, P, D), image after image, those held out at the end
    work/training_0.safetensors the state of the training with seed 0

Sources
 [1] Bussmann et al., "BatchTopK Sparse Autoencoders", arXiv 2412.06410
 [2] Gao et al., "Scaling and evaluating sparse autoencoders", arXiv 2406.04093: auxiliary loss, start, Adam's epsilon
 [3] arXiv 2605.31518: features die where the mean of the activations is large against their deviation

Axes: B images of a batch, N sampling steps in descending order of t, P positions kept of S, D hook width, n vectors of
a batch, F features, k active features a vector.
"""
import json
import time
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from pathlib import Path
from types import SimpleNamespace

import torch

from activity.capture import load_state, sample_prompts, save_state, save_tensors
from command.progress import Count, warn
from config import setting
from results import to_json, write
from sae import READS, SAE, fvu
from weights.load import WeightsError

HELD_OUT = 10               # every tenth prompt is for the report alone
POSITION_SEED = 0x51AE0D1C  # an image's number XOR this: positions have a generator of their own
AUX_K_SHARE = 0.5           # dead features that explain the residual, as a share of D [2]
AUX_WEIGHT = 1 / 32         # [2]
DEAD_AFTER = 100            # batches without firing, then a feature counts as dead
SAVE_EVERY = 60             # seconds between checkpoints


@dataclass(frozen=True)
class Recipe:
    """How an SAE is trained, and on which activations; the defaults suit one GPU and 0.8 million vectors."""
    expansion: int = setting(4, "features per channel", low=1)
    k: int = setting(20, "active features a position, in the mean", low=1)
    train_steps: int = setting(2000, "training steps, of 4,096 vectors", low=1)
    batch: int = 4096
    rate: float = 4e-4                          # falls to 0 in a straight line
    seed: int = 0
    positions: int = setting(16, "positions that are kept of each image and step, at random", low=1)
    reads: str = setting("output", "what is encoded: the module's output, or its output minus its input", READS)


RECIPE = {field.name: field for field in fields(Recipe) if field.metadata}      # those that are flags


def observe(model, settings, recipe, numbers):
    """Sample the images of these numbers; return the activations at their positions, (B, N, P, D) float16."""
    P, choice = recipe.positions, [torch.Generator().manual_seed(POSITION_SEED ^ number) for number in numbers]

    def look(h):
        if P > h.shape[1]:
            raise ValueError(f"--positions {P}: {model.hook_point} has {h.shape[1]}")
        rows = torch.stack([torch.randperm(h.shape[1], generator=g)[:P] for g in choice]).to(h.device)      # (B, P)
        return h[-len(rows):].take_along_dim(rows[..., None], dim=1).half().cpu()               # (B, P, D)

    reader = replace(model, sae=SimpleNamespace(reads=recipe.reads))                # the SAE to come: what it reads
    return torch.stack(sample_prompts(reader, settings, numbers, look)[1], dim=1)


def describe(model, settings, recipe):
    """Describe what is collected, as JSON values."""
    sampling = {name: getattr(settings, name) for name in ("prompts", "steps", "sampler", "guidance")}
    return sampling | {"hook_point": model.hook_point, "positions": recipe.positions, "reads": recipe.reads}


def collect(model, settings, recipe, folder):
    """Collect what is not there yet; return the vectors for training and those held out, each (images, N, P, D)
    float16, which stay in the mapped file."""
    total, progress = settings.images, Count("images")
    stored, path = folder / "collect.json", folder / "vectors.float16"
    weights = {name: sha for name, sha in model.fingerprints.items() if not name.startswith(("sae/", "featviz"))}
    wanted = json.dumps({"request": describe(model, settings, recipe), "weights": weights}, indent=1, sort_keys=True)
    if stored.exists() and stored.read_text(encoding="utf-8") != wanted:
        raise WeightsError(f"{folder}: holds activations of other prompts, settings or weights; give another --work, "
                           "or delete this folder")
    write(stored, wanted.encode())
    shape = (settings.steps, recipe.positions, model.unet.width(model.hook_point))
    order = sorted(range(total), key=lambda number: number % HELD_OUT == HELD_OUT - 1)          # stable
    with open(path, "ab") as file:
        done = file.tell() // (2 * prod(shape))
        file.truncate(done * 2 * prod(shape))                   # a kill may have left a part of an image
        progress(done, total)
        while done < total:
            h = observe(model, settings, recipe, order[done:done + settings.batch_size])
            if not h.isfinite().all():
                raise ValueError("activations are NaN, or beyond the 65504 of float16; try --dtype float32")
            file.write(h.numpy())
            done += len(h)
            progress(done, total)
    vectors = torch.from_file(str(path), size=total * prod(shape), dtype=torch.float16).view(total, *shape)
    return vectors.split([total - total // HELD_OUT, total // HELD_OUT])


@torch.no_grad()
def init(sae, generator, mean):
    """Set b_dec to the mean (D,), against features that die [3], W_dec and encoder to random rows of norm 1 [2]."""
    sae.b_dec.copy_(mean)
    sae.W_dec.copy_(torch.randn(sae.W_dec.shape, generator=generator))
    normalize_decoder(sae)
    sae.encoder.weight.copy_(sae.W_dec)
    sae.encoder.bias.zero_()


@torch.no_grad()
def normalize_decoder(sae):
    """Scale every row of W_dec to norm 1."""
    sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)


def batch_topk(pre, k):
    """Keep the k * n largest of n positions together [1]: pre (n, F) -> (those kept, the least above 0)."""
    top = pre.flatten().topk(k * len(pre))
    kept = torch.zeros_like(pre.flatten()).scatter(0, top.indices, top.values).reshape(pre.shape)
    return kept, top.values.masked_fill(top.values <= 0, torch.inf).min()


def training_loss(sae, h, dead):
    """Compute FVU of the batch top-k reconstruction + 1/32 of the share of its residual that dead features leave
    unexplained [2]: h (n, D), dead (F,) bool -> (loss, fired (F,) bool, the least activation that was kept).

    The residual is detached, it is h - h^, and dead features explain it without b_dec: widely copied code differs.
    """
    pre = sae.pre_acts(h)                                                                       # (n, F)
    acts, least = batch_topk(pre, sae.k)
    h_hat = sae.decode(acts)
    loss = fvu(sae.preprocess(h), h_hat)
    k_aux = min(int(dead.sum()), int(AUX_K_SHARE * h.shape[-1]))
    if k_aux:
        residual = (sae.preprocess(h) - h_hat).detach()
        top = pre.masked_fill(~dead, 0.0).topk(k_aux, dim=-1)
        guess = torch.zeros_like(pre).scatter(-1, top.indices, top.values) @ sae.W_dec
        loss = loss + AUX_WEIGHT * fvu(residual, guess)
    return loss, (acts > 0).any(dim=0), least.detach()


def train(data, recipe, path, device="cpu"):
    """Train an SAE on data (m, D); return it frozen. A checkpoint at `path` of this recipe goes on to the same result.
    The threshold, the mean of the least activation that each batch kept, does at inference what batch top-k did [1]."""
    saved, progress, wanted = time.monotonic(), Count("training steps"), asdict(recipe)
    some = data[torch.randint(len(data), (min(len(data), 65_536),), generator=torch.Generator().manual_seed(0))]
    D, generator = data.shape[1], torch.Generator().manual_seed(recipe.seed)
    sae = SAE(D, recipe.expansion * D, k=recipe.k, reads=recipe.reads).to(device)
    init(sae, generator, some.to(device, torch.float32).mean(dim=0))
    optimizer = torch.optim.Adam(sae.parameters(), eps=6.25e-10)                                   # [2]
    silent = torch.zeros(sae.features, dtype=torch.int64, device=device)                        # batches since it fired
    step, threshold = 0, torch.zeros((), device=device)
    about, state = load_state(path) if Path(path).exists() else (None, {})
    if about == wanted:
        sae.load_state_dict(state["sae"])
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state["adam"]})
        generator.set_state(state["generator"])
        step, silent, threshold = int(state["step"]), state["silent"].to(device), state["threshold"].to(device)

    progress(step, recipe.train_steps)
    while step < recipe.train_steps:
        rows = torch.randint(len(data), (recipe.batch,), generator=generator)
        h = data[rows].to(device, torch.float32)                                                # (n, D)
        optimizer.param_groups[0]["lr"] = recipe.rate * (1 - step / recipe.train_steps)
        normalize_decoder(sae)
        loss, fired, least = training_loss(sae, h, silent >= DEAD_AFTER)
        optimizer.zero_grad()
        loss.backward()
        along = (sae.W_dec.grad * sae.W_dec).sum(dim=1, keepdim=True)                           # rows keep norm 1
        sae.W_dec.grad -= along.detach() * sae.W_dec.detach()
        optimizer.step()
        silent = torch.where(fired, 0, silent + 1)
        threshold = threshold.lerp(least, max(0.01, 1 / (step + 1)))                            # a plain mean at first
        step += 1
        progress(step, recipe.train_steps)
        if time.monotonic() - saved > SAVE_EVERY or step == recipe.train_steps:
            saved, moments = time.monotonic(), optimizer.state_dict()["state"]
            save_state(path, wanted, {"step": step, "sae": sae.state_dict(), "adam": moments, "silent": silent,
                                      "threshold": threshold, "generator": generator.get_state()})
    normalize_decoder(sae)
    sae.gate, sae.threshold = "threshold", threshold.item()
    return sae.requires_grad_(False)


def measure(sae, h):
    """Measure vectors h (n, D): {"fvu", "active": features active at a position, "dead": share that never is}."""
    left = sums = squares = active = 0                          # float64, in blocks: h may be larger than memory
    fired = torch.zeros(sae.features, dtype=torch.bool, device=sae.W_dec.device)
    for some in h.split(8192):
        some = some.to(sae.W_dec.device, torch.float32)
        acts = sae.encode(some)                                                                 # (n, F)
        active, fired = active + (acts > 0).sum().item(), fired | (acts > 0).any(dim=0)
        left = left + (some - sae.decode(acts)).double().square().sum()
        sums, squares = sums + some.double().sum(dim=0), squares + some.double().square().sum()
    return {"fvu": (left / (squares - sums.square().sum() / len(h))).item(), "active": active / len(h),
            "dead": 1 - fired.float().mean().item()}


def found_again(sae, other):
    """Return the share of an SAE's features that another seed found: largest cosine of decoder rows above 0.8."""
    return ((sae.W_dec @ other.W_dec.T).amax(dim=1) > 0.8).float().mean().item()


def learn(model, settings, recipe, seeds, work):
    """Collect activations, train an SAE from each seed and measure the first: (it, what its training.json says)."""
    data, held = collect(model, settings, recipe, work)
    saes = [train(data.flatten(0, 2), replace(recipe, seed=seed), work / f"training_{seed}.safetensors", model.device)
            for seed in seeds]
    if not len(held):
        warn(f"fewer than {HELD_OUT} prompts: none is held out, and the report is of those that it was trained on")
        held = data
    times = model.schedule.timesteps(settings.steps)
    ten = sorted({round(i * (len(times) - 1) / 9) for i in range(10)})
    report = {"all": measure(saes[0], held.flatten(0, 2)),
              "by_timestep": {str(times[row]): measure(saes[0], held[:, row].flatten(0, 1)) for row in ten}}
    return saes[0], describe(model, settings, recipe) | {
        "prompts": len(settings.prompts), "weights": model.name, "recipe": asdict(recipe), "report": report,
        "found_by_another_seed": found_again(*saes) if len(saes) > 1 else None}


def export(sae, folder, about):
    """Write cfg.json and sae.safetensors as SAeUron's code reads them, and training.json."""
    D, F = sae.W_dec.shape[1], sae.features
    config = {"d_in": D, "num_latents": F, "expansion_factor": F // D, "k": sae.k, "normalize_decoder": True,
              "batch_topk": True, "input_unit_norm": False, "gate": "threshold", "threshold": sae.threshold,
              "reads": sae.reads, "timesteps": "all"}
    save_tensors(folder / "sae.safetensors", sae.state_dict())
    write(folder / "training.json", to_json(about, indent=1))
    write(folder / "cfg.json", to_json(config, indent=1))
