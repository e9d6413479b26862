"""Train a sparse autoencoder on collected activations, and measure what it explains.

Batch top-k while training; at inference a threshold, the mean of the least activation that each batch kept, so that an
SAE does the same in both [1]. Before each step the decoder's rows have norm 1, and of their gradient the part along the
row is taken out. The mean of the data is subtracted as b_dec, which keeps features from dying at the start [2]. The
loss is in loss.py.

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
from sae import SAE, fvu

EPSILON = 6.25e-10          # of Adam [3]
DEAD_AFTER = 100            # batches without firing, then a feature counts as dead
AVERAGE = 0.01              # weight of the newest batch in the threshold's running mean
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


class State:
    """An SAE under training, with Adam's moments and the counters; saved and read as one safetensors file."""

    def __init__(self, recipe, mean, device):
        self.sae = SAE(len(mean), recipe.expansion * len(mean), k=recipe.k).to(device)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        init(self.sae, self.generator, mean)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=recipe.rate, betas=(0.9, 0.999), eps=EPSILON)
        self.silent = torch.zeros(self.sae.features, dtype=torch.int64, device=device)          # batches since it fired
        self.threshold, self.step, self.recipe = torch.zeros((), device=device), 0, recipe

    def save(self, path):
        tensors = {f"sae.{name}": p for name, p in self.sae.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": value for name, value in state.items()}
        tensors |= {"silent": self.silent, "threshold": self.threshold, "generator": self.generator.get_state()}
        about = {"step": str(self.step), "recipe": json.dumps(dataclasses.asdict(self.recipe))}
        write(path, save({name: value.contiguous().cpu() for name, value in tensors.items()}, about))

    def load(self, path):
        """Take up where `save` left off; a file of another recipe is left alone. Returns whether it was taken."""
        with safe_open(path, framework="pt") as file:
            if json.loads(file.metadata()["recipe"]) != dataclasses.asdict(self.recipe):
                return False
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            self.step = int(file.metadata()["step"])
        self.sae.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("sae.")})
        adam = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, i, entry = name.split(".")
                adam.setdefault(int(i), {})[entry] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": adam})
        self.silent.copy_(tensors["silent"])
        self.threshold.copy_(tensors["threshold"])
        self.generator.set_state(tensors["generator"])
        return True


def train(data, recipe, path, device="cpu", on_step=lambda step, total, numbers: None):
    """Train an SAE on collect.Vectors, or any data[rows] -> (m, D) with a length; return it with its threshold, frozen.

    path     of the checkpoint, from which a run that was stopped goes on to the same result
    on_step  is called after each step with its number, the number of steps and {"fvu", "dead"}
    """
    path, saved = Path(path), time.monotonic()
    sample = data[torch.randint(len(data), (min(len(data), 65_536),), generator=torch.Generator().manual_seed(0))]
    state = State(recipe, sample.to(device, torch.float32).mean(dim=0), device)
    if path.exists():
        state.load(path)
    sae = state.sae
    while state.step < recipe.steps:
        rows = torch.randint(len(data), (recipe.batch,), generator=state.generator)
        h = data[rows].to(device, torch.float32)                                                # (n, D)
        for group in state.optimizer.param_groups:
            group["lr"] = recipe.rate * (1 - state.step / recipe.steps)
        normalize_decoder(sae)
        loss, fired, least, main = training_loss(sae, h, state.silent >= DEAD_AFTER)
        state.optimizer.zero_grad()
        loss.backward()
        along = (sae.W_dec.grad * sae.W_dec).sum(dim=1, keepdim=True)                           # rows have norm 1
        sae.W_dec.grad -= along.detach() * sae.W_dec.detach()
        state.optimizer.step()
        state.silent = torch.where(fired, 0, state.silent + 1)
        weight = max(AVERAGE, 1 / (state.step + 1))                                             # a plain mean at first
        state.threshold = state.threshold.lerp(least, weight)
        state.step += 1
        on_step(state.step, recipe.steps, {"fvu": main.item(), "dead": (state.silent >= DEAD_AFTER).sum().item()})
        if time.monotonic() - saved > SAVE_EVERY or state.step == recipe.steps:
            state.save(path)
            saved = time.monotonic()
    normalize_decoder(sae)
    sae.gate, sae.threshold = "threshold", state.threshold.item()       # stands for batch top-k at inference
    return sae.requires_grad_(False)


@torch.no_grad()
def measure(sae, h):
    """Measure vectors h (n, D): {"fvu", "active": features active at a position, "dead": share that never is}."""
    device = sae.W_dec.device
    active, fired, h_hat = 0, torch.zeros(sae.features, dtype=torch.bool, device=device), []
    for some in h.split(BLOCK):
        acts = sae.encode(some.to(device, torch.float32))                                       # (n, F)
        active, fired = active + (acts > 0).sum().item(), fired | (acts > 0).any(dim=0)
        h_hat.append(sae.decode(acts).cpu())
    return {"fvu": fvu(h.float(), torch.cat(h_hat)).item(), "active": active / len(h),
            "dead": 1 - fired.float().mean().item()}


def report(sae, held, timesteps, times=10):
    """Measure vectors held out (images, N, P, D) together, and at ten of their time steps."""
    rows = sorted({round(i * (len(timesteps) - 1) / (times - 1)) for i in range(times)})
    flat = lambda h: h.flatten(0, -2)
    return {"all": measure(sae, flat(held)),
            "by_timestep": {str(timesteps[row]): measure(sae, flat(held[:, row])) for row in rows}}


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
    tensors = {name: p.contiguous().cpu() for name, p in sae.state_dict().items()}
    write(Path(folder) / "sae.safetensors", save(tensors))
    write(Path(folder) / "training.json", json.dumps(about, indent=1).encode() + b"\n")
    write(Path(folder) / "cfg.json", json.dumps(config, indent=1).encode() + b"\n")
