"""One training loop for every network of the toy: warm-up and linear decay, moving average, log, resume.

A step's randomness comes from a generator seeded by its number, so a run that was killed and resumed takes the same
batches as one that was not. State goes to one safetensors file.

Source: [1] Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; with the step length of
[2] Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982. It learns many rarely seen things in fewer steps
than AdamW.
"""
import json
import time
from collections import defaultdict

import torch
from safetensors import safe_open
from safetensors.torch import save

from command.progress import Count
from results import write

NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 4            # a, b, c of X <- a X + b (X X^T) X + c (X X^T)^2 X  [1]
SAVE_EVERY = 120                                            # seconds between two states on disk
LOG_EVERY = 50                                              # steps, whose means are logged


def write_tensors(path, tensors, metadata=None):
    """Write tensors from any device to a safetensors file."""
    write(path, save({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, metadata))


def learning_rate(step, steps, peak, warmup, decay=0.4):
    """Linear to `peak` over `warmup` steps, constant, and linear to 0 over the last `decay` of all steps."""
    return peak * min(1, (step + 1) / warmup, (steps - step) / (decay * steps))


def orthogonal(X):
    """Matrices (n, r, c) with their singular values brought near 1, by Newton and Schulz's iteration [1]."""
    tall = X.shape[1] > X.shape[2]
    X = X.mT if tall else X
    X = (X / (X.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for a, b, c in NEWTON_SCHULZ:
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return (X.mT if tall else X).float()


class Muon(torch.optim.Optimizer):
    """m <- momentum m + g,  W <- W - lr 0.2 sqrt(max(r, c)) orthogonal(g + momentum m), convolutions as matrices."""

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            alike = defaultdict(list)                           # matrices of one shape are turned together
            for p in group["params"]:
                m = self.state[p].setdefault("momentum", torch.zeros_like(p))
                m.mul_(group["momentum"]).add_(p.grad)
                alike[p.flatten(1).shape].append((p, p.grad.add(m, alpha=group["momentum"]).flatten(1)))
            for shape, pairs in alike.items():
                updates = orthogonal(torch.stack([update for _, update in pairs]))
                for (p, _), update in zip(pairs, updates):
                    p.add_(update.view_as(p), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)


class State:
    """Hold everything a resumed run needs: weights, their moving average, the optimizers' moments, the step.

    The optimizer is AdamW, and with `muon` Muon for matrices that have at least 64 rows and columns.
    """

    def __init__(self, model, lr, beta2, muon):
        self.model, self.step = model, 0
        self.trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
        self.ema = {k: p.detach().clone() for k, p in self.trained.items()}
        matrices = [k for k, p in self.trained.items() if muon and p.ndim > 1 and min(p.flatten(1).shape) >= 64]
        rest = [p for k, p in self.trained.items() if k not in matrices]
        self.optimizers = [torch.optim.AdamW(rest, lr, (0.9, beta2), eps=1e-8, weight_decay=0.01, fused=True)]
        if muon:
            self.optimizers.append(Muon([self.trained[k] for k in matrices], lr))

    def save(self, path):
        out = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        out |= {f"ema.{k}": v for k, v in self.ema.items()}
        for optimizer in self.optimizers:
            for k, p in self.trained.items():
                out |= {f"{moment}.{k}": v for moment, v in optimizer.state.get(p, {}).items() if moment != "step"}
        write_tensors(path, out, {"step": str(self.step)})

    def load(self, path):
        device = next(self.model.parameters()).device
        with safe_open(path, framework="pt") as file:
            self.step = int(file.metadata()["step"])
            stored = {name: file.get_tensor(name).to(device) for name in file.keys()}
        self.model.load_state_dict({k: stored[f"model.{k}"] for k in self.model.state_dict()})
        self.ema = {k: stored[f"ema.{k}"] for k in self.ema}
        for k, p in self.trained.items():
            if f"momentum.{k}" in stored:
                self.optimizers[1].state[p] = {"momentum": stored[f"momentum.{k}"]}
            elif f"exp_avg.{k}" in stored:                      # not of a parameter that the loss does not reach
                self.optimizers[0].state[p] = {"step": torch.tensor(float(self.step), device=device),
                                               "exp_avg": stored[f"exp_avg.{k}"],
                                               "exp_avg_sq": stored[f"exp_avg_sq.{k}"]}


def fit(name, model, loss, *, steps, lr, folder, device, warmup=200, ema=0.999, amp=False, beta2=0.999, muon=False):
    """Train `model` in place and leave its moving average in it.

    loss(step, generator) -> (scalar to minimise, dict of numbers to log). State and log are `folder/name.safetensors`
    and `folder/name.jsonl`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, progress, rows = folder / f"{name}.safetensors", Count(f"{name} steps"), []
    state = State(model, lr, beta2, muon)
    if path.exists():
        state.load(path)
    progress(state.step, steps)
    began, first, saved = time.time(), state.step, time.time()
    with open(folder / f"{name}.jsonl", "a", encoding="utf-8") as log:
        while state.step < steps:
            step = state.step
            generator = torch.Generator(device).manual_seed(step)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp):
                value, numbers = loss(step, generator)
            if not torch.isfinite(value):
                raise SystemExit(f"{name}: the loss became {value.item()} at step {step}; the last state is {path}")
            model.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(state.trained.values(), 1.0)
            for optimizer in state.optimizers:
                optimizer.param_groups[0]["lr"] = learning_rate(step, steps, lr, warmup)
                optimizer.step()
            decay = min(ema, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(state.ema.values()), [p.detach() for p in state.trained.values()], 1 - decay)
            state.step = step + 1
            progress(state.step, steps)
            rows.append({k: v.item() for k, v in ({"loss": value} | numbers).items()})
            if state.step % LOG_EVERY == 0 or state.step == steps:
                means = {k: round(sum(row[k] for row in rows) / len(rows), 6) for k in rows[0]}
                seconds = round((time.time() - began) / (state.step - first), 4)
                log.write(json.dumps({"step": state.step, **means, "seconds": seconds}) + "\n")
                log.flush()
                rows = []
            if time.time() - saved > SAVE_EVERY or state.step == steps:
                state.save(path)
                saved = time.time()
    with torch.no_grad():
        for k, p in state.trained.items():
            p.copy_(state.ema[k])
