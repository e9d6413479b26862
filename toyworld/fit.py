"""One training loop for every network of the toy: warm-up and linear decay, moving average, log, resume.

A step's randomness comes from a generator seeded by (seed, step), so a run that was killed and resumed takes the same
batches as one that was not. State goes to one safetensors file, written under a temporary name and renamed.

Source: [1] Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; with the step length of
[2] Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982. It learns many rarely seen things in fewer steps
than AdamW.
"""
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 4            # a, b, c of X <- a X + b (X X^T) X + c (X X^T)^2 X  [1]


def atomic_save(tensors, path, metadata=None):
    """Write a safetensors file so that at every moment the old or the new one is there, whole."""
    partial = Path(f"{path}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, partial, metadata=metadata)
    os.replace(partial, path)


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


def optimizers(model, lr, beta2, weight_decay, muon):
    """AdamW, and with `muon` Muon for matrices that have at least 64 rows and columns."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrix = lambda p: muon and p.ndim > 1 and min(p.flatten(1).shape) >= 64
    rest = [p for p in trained if not matrix(p)]
    adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, beta2), eps=1e-8, weight_decay=weight_decay, fused=True)
    return [adam, Muon([p for p in trained if matrix(p)], lr)] if muon else [adam]


class State:
    """Everything a resumed run needs: weights, their moving average, the optimizers' moments, the step."""

    def __init__(self, model, optimizers):
        self.model, self.optimizers = model, optimizers
        self.trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
        self.ema = {k: p.detach().clone() for k, p in self.trained.items()}
        self.step = 0

    def tensors(self):
        out = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        out |= {f"ema.{k}": v for k, v in self.ema.items()}
        for optimizer in self.optimizers:
            for k, p in self.trained.items():
                out |= {f"{moment}.{k}": v for moment, v in optimizer.state.get(p, {}).items() if moment != "step"}
        return out

    def save(self, path):
        atomic_save(self.tensors(), path, {"step": str(self.step)})

    def load(self, path):
        with safe_open(path, framework="pt") as file:
            self.step, names = int(file.metadata()["step"]), set(file.keys())
            device = next(self.model.parameters()).device
            read = lambda name: file.get_tensor(name).to(device)
            self.model.load_state_dict({k: read(f"model.{k}") for k in self.model.state_dict()})
            self.ema = {k: read(f"ema.{k}") for k in self.ema}
            for k, p in self.trained.items():
                moments = {m: read(f"{m}.{k}") for m in ("exp_avg", "exp_avg_sq", "momentum") if f"{m}.{k}" in names}
                if "exp_avg" in moments:
                    moments["step"] = torch.tensor(float(self.step), device=device)
                owner = self.optimizers[-1 if "momentum" in moments else 0]
                owner.state[p] = moments


def fit(name, model, loss, *, steps, stop=None, lr, folder, device, warmup=200, ema=0.999, amp=False, clip=1.0,
        weight_decay=0.01, beta2=0.999, muon=False, seed=0, save_seconds=120):
    """Train `model` in place and leave its moving average in it; return the path of its state.

    loss(step, generator) -> (scalar to minimise, dict of numbers to log). Logs a JSON line every 50 steps to
    `folder/name.jsonl`. `stop` ends it earlier, as a kill would.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    state = State(model, optimizers(model, lr, beta2, weight_decay, muon))
    if path.exists():
        state.load(path)
        print(f"{name}: resumed at step {state.step} of {steps}", file=sys.stderr)
    began, first, saved, sums, count = time.time(), state.step, time.time(), {}, 0
    with open(folder / f"{name}.jsonl", "a", encoding="utf-8") as log:
        while state.step < min(steps, stop or steps):
            step, rate = state.step, learning_rate(state.step, steps, lr, warmup)
            generator = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp):
                value, numbers = loss(step, generator)
            if not torch.isfinite(value):
                raise SystemExit(f"{name}: the loss became {value.item()} at step {step}; the last state is {path}")
            model.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(state.trained.values(), clip)
            for optimizer in state.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
            decay = min(ema, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(state.ema.values()), [p.detach() for p in state.trained.values()], 1 - decay)
            state.step, count = step + 1, count + 1
            for k, v in ({"loss": value} | numbers).items():
                sums[k] = sums.get(k, 0.0) + v.item()
            if state.step % 50 == 0 or state.step == steps:
                means = {k: round(v / count, 6) for k, v in sums.items()}
                report(name, state.step, steps, means, (time.time() - began) / (state.step - first), log)
                sums, count = {}, 0
            if time.time() - saved > save_seconds:
                state.save(path)
                saved = time.time()
    print(file=sys.stderr)
    state.save(path)
    with torch.no_grad():
        for k, p in state.trained.items():
            p.copy_(state.ema[k])
    return path


def report(name, step, steps, means, seconds, log):
    """Log the means of the last steps, and print them with the time left."""
    log.write(json.dumps({"step": step, **means, "seconds": round(seconds, 4)}) + "\n")
    log.flush()
    numbers = " ".join(f"{k} {v:.4f}" for k, v in means.items())
    print(f"\r{name} {step}/{steps} {numbers}, {seconds * (steps - step) / 60:.1f} min left   ", end="",
          file=sys.stderr, flush=True)
