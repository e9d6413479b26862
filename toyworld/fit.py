"""Train a network of the toy: warm-up and linear decay, moving average, log, resume.

A step's generator is seeded by its number, so a run that was killed takes the same batches as one that was not.

Sources: [1] Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; with the step length of
[2] Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982. It learns rare things in fewer steps than AdamW.
"""
import copy
import json
import time

import torch

from activity.capture import load_state, save_state
from command.progress import Count

SAVE_EVERY = 120                                            # seconds between two states on disk


def learning_rate(step, steps, peak, warmup, decay=0.4):
    """Rise linearly to `peak` over `warmup` steps, stay, and fall linearly to 0 over the last `decay` of all steps."""
    return peak * min(1, (step + 1) / warmup, (steps - step) / (decay * steps))


def make_optimizers(trained, lr, beta2, muon):
    """Make AdamW; and with `muon` Muon [1, 2] for what as a matrix has at least 64 rows and columns: ([the optimizers],
    {parameter: the matrix (rows, columns) in its memory that Muon moves})."""
    matrices = {p: p.detach().view(len(p), -1) for p in trained
                if muon and p.ndim > 1 and min(len(p), p.numel() // len(p)) >= 64}
    rest = [p for p in trained if p not in matrices]
    optimizers = [torch.optim.AdamW(rest, lr, (0.9, beta2), eps=1e-8, weight_decay=0.01, fused=True)]
    if muon:
        optimizers.append(torch.optim.Muon(matrices.values(), lr, weight_decay=0.0, momentum=0.95, ns_steps=4,
                                           adjust_lr_fn="match_rms_adamw"))
    return optimizers, matrices


def fit(name, model, loss, *, steps, lr, folder, device, warmup=200, ema=0.999, amp=False, beta2=0.999, muon=False):
    """Train `model` in place and leave its moving average in it; name.safetensors and name.jsonl are its state and log.
    loss(step, generator) -> (scalar to minimise, dict of numbers to log)"""
    folder.mkdir(parents=True, exist_ok=True)
    path, progress, rows, step = folder / f"{name}.safetensors", Count(f"{name} steps"), [], 0
    trained, average = [p for p in model.parameters() if p.requires_grad], copy.deepcopy(model)
    optimizers, matrices = make_optimizers(trained, lr, beta2, muon)
    about, state = load_state(path, device) if path.exists() else (None, {})
    if about == name:                                           # else it is of an earlier version
        step = int(state["step"])
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, moments in zip(optimizers, state["optimizers"].values()):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    progress(step, steps)
    began, first, saved = time.time(), step, time.time()
    while step < steps:
        generator = torch.Generator(device).manual_seed(step)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=amp):
            value, numbers = loss(step, generator)
        if not torch.isfinite(value):
            raise SystemExit(f"{name}: the loss became {value.item()} at step {step}; the last state is {path}")
        model.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for p, matrix in matrices.items():
            matrix.grad = p.grad.view_as(matrix)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = learning_rate(step, steps, lr, warmup)
            optimizer.step()
        decay = min(ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        step += 1
        progress(step, steps)
        rows.append({k: v.item() for k, v in ({"loss": value} | numbers).items()})
        if step % 50 == 0 or step == steps:                     # the means of these steps
            means = {k: round(sum(row[k] for row in rows) / len(rows), 6) for k in rows[0]}
            seconds = round((time.time() - began) / (step - first), 4)
            with open(folder / f"{name}.jsonl", "a", encoding="utf-8") as log:
                log.write(json.dumps({"step": step, **means, "seconds": seconds}) + "\n")
            rows = []
        if time.time() - saved > SAVE_EVERY or step == steps:
            moments = {i: optimizer.state_dict()["state"] for i, optimizer in enumerate(optimizers)}
            save_state(path, name, {"step": step, "model": model.state_dict(), "average": average.state_dict(),
                                    "optimizers": moments})
            saved = time.time()
    model.load_state_dict(average.state_dict())
