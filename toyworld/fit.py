"""One training loop for every network of the toy: AdamW, warm-up and cosine, moving average, log, resume.

A step's randomness comes from a generator seeded by (seed, step), so a run that was killed and resumed takes the same
batches as one that was not. State goes to one safetensors file, written under a temporary name and renamed.
"""
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def atomic_save(tensors, path, metadata=None):
    """Write a safetensors file so that at every moment the old or the new one is there, whole."""
    partial = Path(f"{path}.partial")
    save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, partial, metadata=metadata)
    os.replace(partial, path)


def learning_rate(step, steps, peak, warmup):
    """Linear to `peak` over `warmup` steps, then a cosine to 0 at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class State:
    """Everything a resumed run needs: weights, their moving average, AdamW's two moments, the step."""

    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
        self.trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
        self.ema = {k: p.detach().clone() for k, p in self.trained.items()}
        self.step = 0

    def tensors(self):
        out = {f"model.{k}": v for k, v in self.model.state_dict().items()} | {f"ema.{k}": v for k,
                                                                               v in self.ema.items()}
        for k, p in self.trained.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                out[f"{moment}.{k}"] = self.optimizer.state[p][moment]
        return out

    def save(self, path):
        atomic_save(self.tensors(), path, {"step": str(self.step)})

    def load(self, path):
        with safe_open(path, framework="pt") as file:
            self.step = int(file.metadata()["step"])
            device = next(self.model.parameters()).device
            self.model.load_state_dict({k: file.get_tensor(f"model.{k}") for k in self.model.state_dict()})
            self.ema = {k: file.get_tensor(f"ema.{k}").to(device) for k in self.ema}
            for k, p in self.trained.items():
                self.optimizer.state[p] = {"step": torch.tensor(float(self.step), device=p.device)} | {
                    m: file.get_tensor(f"{m}.{k}").to(device) for m in ("exp_avg", "exp_avg_sq")}


def fit(name, model, loss, *, steps, lr, folder, device, warmup=200, ema=0.999, amp=False, clip=1.0,
        weight_decay=0.01, after=None, seed=0, save_seconds=120):
    """Train `model` in place and leave its moving average in it; return the path of its state.

    loss(step, generator) -> (scalar to minimise, dict of numbers to log). `after(model)` runs behind every update (the
    SAE renormalises its decoder there). Logs a JSON line every 50 steps to `folder/name.jsonl`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.safetensors"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, betas=(0.9, 0.999),
                                  eps=1e-8, weight_decay=weight_decay, fused=True)
    state = State(model, optimizer)
    if path.exists():
        state.load(path)
        print(f"{name}: resumed at step {state.step} of {steps}", file=sys.stderr)
    began, first, saved, sums, count = time.time(), state.step, time.time(), {}, 0
    with open(folder / f"{name}.jsonl", "a") as log:
        while state.step < steps:
            step = state.step
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, lr, warmup)
            generator = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp):
                value, numbers = loss(step, generator)
            if not torch.isfinite(value):
                raise SystemExit(
                    f"{name}: the loss became {value.item()} at step {step}; the last good state is {path}"
                )
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if after:
                after(model)
            decay = min(ema, (step + 1) / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(state.ema.values()), [p.detach() for p in state.trained.values()], 1 - decay)
            state.step += 1
            count += 1
            for k, v in ({"loss": value} | numbers).items():
                sums[k] = sums.get(k, 0.0) + v.item()
            if state.step % 50 == 0 or state.step == steps:
                left = (time.time() - began) / (state.step - first) * (steps - state.step)
                means = {k: round(v / count, 6) for k, v in sums.items()}
                log.write(json.dumps({"step": state.step, **means}) + "\n")
                log.flush()
                print(f"\r{name} {state.step}/{steps} " + " ".join(f"{k} {v:.4f}" for k, v in means.items())
                      + f", {left / 60:.1f} min left   ", end="", file=sys.stderr, flush=True)
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
