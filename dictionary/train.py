"""Train a sparse autoencoder on collected activations, and measure what it explains.

Batch top-k while training; at inference a threshold, the mean of the least activation that each batch kept, so that an
SAE does the same in both [1]. The decoder's rows have norm 1, and of their gradient the part along them is taken out.
The mean of the data is subtracted as b_dec, which keeps features from dying at the start [2]. The loss is in loss.py.

Sources
 [1] Bussmann et al., "BatchTopK Sparse Autoencoders", arXiv 2412.06410
 [2] arXiv 2605.31518: features die where the mean of the activations is large against their deviation
 [3] Gao et al., "Scaling and evaluating sparse autoencoders", arXiv 2406.04093: Adam with epsilon 6.25e-10

Axes: n vectors of a batch, D hook width, F features, N sampling steps.
"""
import dataclasses
import json
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from dictionary.loss import init, normalize_decoder, training_loss
from results import write
from sae import SAE

EPSILON = 6.25e-10          # of Adam [3]
DEAD_AFTER = 100            # batches without firing, then a feature counts as dead
AVERAGE = 0.01              # weight of the newest batch in the threshold's running mean
MEAN_OF = 65_536            # vectors whose mean is b_dec at the start
SAVE_EVERY = 60             # seconds between checkpoints
BLOCK = 8192                # vectors measured at a time


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an SAE is trained; the defaults suit one GPU and 0.8 million vectors."""
    expansion: int = 4
    k: int = 20
    steps: int = 2000
    batch: int = 4096
    rate: float = 4e-4                          # falls to 0 in a straight line
    seed: int = 0


def train(data, recipe, path, device="cpu", on_step=lambda step, total, numbers: None):
    """Train an SAE on collect.Vectors, or any data[rows] -> (m, D) with a length; return it with its threshold, frozen.

    path     of the checkpoint, from which a run that was stopped goes on to the same result; one of another recipe is
             left alone, and replaced
    on_step  is called at the start and after each step: steps done, steps, {"fvu", "dead"} of the last one
    """
    path, saved = Path(path), time.monotonic()
    some = data[torch.randint(len(data), (min(len(data), MEAN_OF),), generator=torch.Generator().manual_seed(0))]
    D = some.shape[1]
    sae, generator = SAE(D, recipe.expansion * D, k=recipe.k).to(device), torch.Generator().manual_seed(recipe.seed)
    init(sae, generator, some.to(device, torch.float32).mean(dim=0))
    optimizer = torch.optim.Adam(sae.parameters(), lr=recipe.rate, betas=(0.9, 0.999), eps=EPSILON)
    silent = torch.zeros(sae.features, dtype=torch.int64, device=device)                        # batches since it fired
    step, threshold = 0, torch.zeros((), device=device)
    stored, about = read_checkpoint(path)
    if about.get("recipe") == json.dumps(dataclasses.asdict(recipe)):
        sae.load_state_dict({name: stored[f"sae.{name}"] for name in sae.state_dict()})
        moments = {i: {name: stored[f"adam.{i}.{name}"] for name in ("step", "exp_avg", "exp_avg_sq")}
                   for i in range(len(list(sae.parameters())))}
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
        generator.set_state(stored["generator"])
        silent, threshold, step = stored["silent"].to(device), stored["threshold"].to(device), int(about["step"])

    on_step(step, recipe.steps, {})
    while step < recipe.steps:
        rows = torch.randint(len(data), (recipe.batch,), generator=generator)
        h = data[rows].to(device, torch.float32)                                                # (n, D)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * (1 - step / recipe.steps)
        normalize_decoder(sae)
        loss, fired, least, main = training_loss(sae, h, silent >= DEAD_AFTER)
        optimizer.zero_grad()
        loss.backward()
        along = (sae.W_dec.grad * sae.W_dec).sum(dim=1, keepdim=True)                           # rows have norm 1
        sae.W_dec.grad -= along.detach() * sae.W_dec.detach()
        optimizer.step()
        silent = torch.where(fired, 0, silent + 1)
        threshold = threshold.lerp(least, max(AVERAGE, 1 / (step + 1)))                         # a plain mean at first
        step += 1
        on_step(step, recipe.steps, {"fvu": main.item(), "dead": (silent >= DEAD_AFTER).sum().item()})
        if time.monotonic() - saved > SAVE_EVERY or step == recipe.steps:
            saved = time.monotonic()
            state = {f"sae.{name}": p for name, p in sae.state_dict().items()}
            for i, moments in optimizer.state_dict()["state"].items():
                state |= {f"adam.{i}.{name}": value for name, value in moments.items()}
            state |= {"generator": generator.get_state(), "silent": silent, "threshold": threshold}
            about = {"recipe": json.dumps(dataclasses.asdict(recipe)), "step": str(step)}
            write(path, save({name: value.contiguous().cpu() for name, value in state.items()}, about))
    normalize_decoder(sae)
    sae.gate, sae.threshold = "threshold", threshold.item()     # stands for batch top-k at inference
    return sae.requires_grad_(False)


def read_checkpoint(path):
    """Read {name: tensor} and {"recipe", "step"} of a training that was stopped; both are empty where there is none."""
    if not path.exists():
        return {}, {}
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


@torch.no_grad()
def measure(sae, h):
    """Measure vectors h (n, D): {"fvu", "active": features active at a position, "dead": share that never is}."""
    left = sums = squares = active = 0                          # float64, block by block: h may be larger than memory
    fired = torch.zeros(sae.features, dtype=torch.bool, device=sae.W_dec.device)
    for some in h.split(BLOCK):
        some = some.to(sae.W_dec.device, torch.float32)
        acts = sae.encode(some)                                                                 # (n, F)
        active, fired = active + (acts > 0).sum().item(), fired | (acts > 0).any(dim=0)
        left = left + (some - sae.decode(acts)).double().square().sum()
        sums, squares = sums + some.double().sum(dim=0), squares + some.double().square().sum()
    return {"fvu": (left / (squares - sums.square().sum() / len(h))).item(), "active": active / len(h),
            "dead": 1 - fired.float().mean().item()}


def report(sae, held, timesteps, times=10):
    """Measure vectors held out (images, N, P, D) together, and at ten of their time steps."""
    rows = sorted({round(i * (len(timesteps) - 1) / (times - 1)) for i in range(times)})
    return {"all": measure(sae, held.flatten(0, -2)),
            "by_timestep": {str(timesteps[row]): measure(sae, held[:, row].flatten(0, -2)) for row in rows}}


@torch.no_grad()
def found_again(sae, other, cosine=0.8):
    """Return the share of an SAE's features that another seed found: largest cosine of decoder rows above `cosine`."""
    best = torch.cat([(rows @ other.W_dec.T).amax(dim=1) for rows in sae.W_dec.split(BLOCK)])
    return (best > cosine).float().mean().item()


def export(sae, folder, about):
    """Write cfg.json and sae.safetensors as SAeUron's code reads them, and training.json.

    That code drops the fields it does not know (gate, threshold, reads) and infers with top-k at k.
    """
    D, F = sae.W_dec.shape[1], sae.features
    config = {"d_in": D, "num_latents": F, "expansion_factor": F // D, "k": sae.k, "normalize_decoder": True,
              "batch_topk": True, "input_unit_norm": False, "gate": "threshold", "threshold": sae.threshold,
              "reads": about["reads"], "timesteps": "all"}
    write(Path(folder) / "sae.safetensors", save({name: p.contiguous().cpu() for name, p in sae.state_dict().items()}))
    for name, value in (("training.json", about), ("cfg.json", config)):
        write(Path(folder) / name, json.dumps(value, indent=1).encode() + b"\n")
