"""Measure a step of the ascent against the original's way, and predict the memory of a run from shapes: see README.md.
"""
import argparse
import json
import math
import statistics
import subprocess
import sys
import time
import weakref
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import regularizers as reg
from ascent import activation, ascend, draw
from clip import TextEncoder, Tokenizer
from config import HOOK_POINT, Job, configure
from finish import redraw
from sae import SAE
from schedule import Schedule
from steering import predict as predict_noise
from steering import read_hook
from unet import UNet
from vae import VAE
from visualize import start
from weights.check import peak_memory
from weights.load import Model, choose_device, choose_dtype, load, read_json
from weights.quick import quicken

META, GIB = torch.device("meta"), 2 ** 30
FEATURES, TIMES, SEEDS = 20_480, 4, 5   # of SAeUron's SAE; time steps (0 and three peaks) and seeds of a feature
RESERVE, SHARE = 1.0 * GIB, 0.9         # for CUDA and its libraries; of a card that a desktop leaves (both assumed)
BARE = configure({}, "sae", prior="noise", num_steps=10 ** 5)


@torch.no_grad()
def full_size(device, dtype):
    """Make a Model of Stable Diffusion 1.x's sizes with random weights; on the meta device without numbers."""
    with META:
        nets = {"unet": UNet().to(dtype), "text_encoder": TextEncoder().to(dtype), "vae": VAE(),
                "sae": SAE(1280, FEATURES)}
    for net in nets.values():
        net.requires_grad_(False).eval()
        if device != META:
            net.to_empty(device=device)
            for name, p in net.named_parameters():              # norms about 1, biases about 0, the rest by fan in
                p.normal_(std=0.1 if p.ndim == 1 else math.prod(p.shape[1:]) ** -0.5)
                p += float(p.ndim == 1 and name.endswith("weight"))
    if device.type == "cpu":
        quicken(nets["unet"])
    tokenizer = Tokenizer.from_bpe(ROOT / "weights/clip/bpe_simple_vocab_16e6.txt.gz")
    return Model(Path("random"), "random", device, dtype, schedule=Schedule(device=device),
                 hook_point=HOOK_POINT, latent_shape=(4, 64, 64), tokenizer=tokenizer, **nets)


# --- seconds ----------------------------------------------------------------------------------------------------------

def original(model, jobs, config, unet=None):
    """Run the steps of the code of arXiv 2605.08218, on another `unet` where one is given; yields activations (B,).

    All weights of UNet and SAE collect gradients, which nobody clears, and all features are computed to use one, in
    float32; on a card under float16 autocast with a GradScaler.
    """
    unet = unet or (lambda x, t, context: model.unet(x, t, context, until=model.hook_point))
    cuda = model.device.type == "cuda"
    scaler = torch.amp.GradScaler("cuda", enabled=cuda)
    generators, z = start(model, jobs, config)
    z = z.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([z], config.learning_rate, weight_decay=config.weight_decay)
    context = model.embed([""]).expand(len(jobs), -1, -1)
    t = torch.tensor([job.timestep for job in jobs], device=model.device)
    rows, targets = torch.arange(len(jobs)), [job.target for job in jobs]
    model.unet.requires_grad_(True)             # as the original leaves them, though only z is updated
    model.sae.requires_grad_(True)
    for _ in range(config.num_steps):
        drawn = zip(*(draw(g, z.shape[1:], config) for g in generators))
        shift, angle, zoom, eps = (torch.stack(numbers).to(z) for numbers in drawn)
        x = model.schedule.add_noise(reg.transform(z, shift, angle, zoom), eps, t)
        with torch.autocast("cuda", torch.float16, enabled=cuda):
            h = unet(x, t, context).flatten(2).transpose(1, 2)                                  # (B, S, D)
            a = activation(model.sae.linear(h)[rows, :, targets].float(), "feature")            # (B,), of F features
        loss = (-a + config.range_weight * reg.range_penalty(z, config.range_threshold)
                + config.moment_weight * reg.moment_penalty(z))
        optimizer.zero_grad()
        scaler.scale(loss.sum()).backward()
        scaler.unscale_(optimizer)
        z.grad = reg.spectral_filter(z.grad)
        scaler.step(optimizer)
        scaler.update()
        yield a.detach()


class Reached(Exception):
    """Raised at the hook point, with its output: diffusers' UNet has no other way to stop there."""


def official(model, jobs, config):
    """Run the original's steps on diffusers' UNet with the model's own numbers; yields activations (B,)."""
    from diffusers import UNet2DConditionModel                   # optional, and seconds to load
    path = model.folder / "unet/config.json"
    with META:
        theirs = UNet2DConditionModel(**{"cross_attention_dim": 768} | (read_json(path) if path.exists() else {}))
    theirs.load_state_dict(model.unet.state_dict(), strict=True, assign=True)
    model.unet = theirs

    def reach(module, args, output):
        raise Reached(output[0] if isinstance(output, tuple) else output)
    theirs.get_submodule(model.hook_point).register_forward_hook(reach)

    def until_hook(x, t, context):
        try:
            theirs(x, t, context)
        except Reached as reached:
            return reached.args[0]
    return original(model, jobs, config, until_hook)


WAYS = {"original": original, "official": official,
        "ascent": lambda model, jobs, config: ascend(model, jobs, config, start(model, jobs, config)),
        "finish": lambda model, jobs, config: redraw(model, jobs, start(model, jobs, config)[1],
                                                     [361] * config.num_steps, config)}


def seconds(work, device):
    """Time work(), waiting for a card before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else time.perf_counter
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def measure(way, full, dtype, batch, device):
    """Measure one way in this process: median seconds a step, peak bytes, operations a second of a large product."""
    model = full_size(device, dtype) if full else load(None, device, dtype)
    jobs = [Job("feature", 7 * i % model.sae.features, 361, 1000 + i) for i in range(batch)]
    run, times = WAYS[way](model, jobs, BARE), []
    for _ in range(2):                          # the first steps allocate and choose kernels
        next(run)
    while len(times) < 3 or sum(times) < 5 and len(times) < 30:
        times.append(seconds(lambda: next(run), device))
    peak, rate = peak_memory(device), 0.0
    fast = torch.float16 if way in ("original", "official") and device.type == "cuda" else dtype
    for n in (4096, 8192) if device.type == "cuda" else (1024, 2048):
        a, b = (torch.randn(n, n, device=device).to(fast) for _ in range(2))
        rate = max(rate, *(2 * n ** 3 / seconds(lambda: a @ b, device) for _ in range(4)))
    return statistics.median(times), peak, rate


def compare(full, dtypes, batches, device):
    """Measure all ways, each in a process of its own; print a table, and the hours for all of SAeUron's features."""
    from torch.utils.flop_counter import FlopCounterMode         # 70 MB, which the measured processes should not load
    model = full_size(META, torch.float32) if full else load(None, "cpu")
    run = WAYS["ascent"](model, [Job("feature", 0, 361)], BARE)
    next(run)                                   # which also reads the prompt
    with FlopCounterMode(display=False) as counter:
        next(run)
    operations = counter.get_total_flops()      # of an ascent's step of one job
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{'full size' if full else 'toy'} on {name}, torch {torch.__version__}, {operations / 1e9:.3g} GFLOP\n")
    print("| batch | way | precision | seconds a step | of the original's | peak GiB | of the product rate |\n"
          "|---|---|---|---|---|---|---|")
    best, base, ways = {}, math.nan, [(way, dtype) for dtype in dtypes for way in ("ascent", "finish")]
    ways = [("original", "float32"), *[("official", "float32")] * bool(find_spec("diffusers")), *ways]
    for batch, (way, dtype) in product(batches, ways):
        command = [sys.executable, __file__, "--child", way, "--dtype", dtype, "--batch", batch, "--device", device]
        done = subprocess.run([*map(str, command), *["--full"] * full], stdout=subprocess.PIPE, text=True)
        took, peak, rate = json.loads(done.stdout or "[NaN, NaN, NaN]")                         # its error is on stderr
        base = took if way == "original" else base              # the first of a batch
        best[way] = min(best.get(way, math.inf), took / batch)
        share = "" if way == "finish" else f"{batch * operations / took / rate:.0%}"
        cells = batch, way, dtype, f"{took:.3g}", f"{took / base:.2f}", f"{peak / GIB:.2f}", share
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    if full:
        hours = FEATURES * TIMES * SEEDS * (100 * best["ascent"] + 30 * best["finish"]) / 3600
        print(f"\n{FEATURES:,} features at {TIMES} time steps from {SEEDS} seeds, 100 steps and 30 of the finish: "
              f"{hours:,.0f} hours; starts and scores are about a tenth more")


# --- memory -----------------------------------------------------------------------------------------------------------

class Live(TorchDispatchMode):
    """Count the bytes of all tensors that live at a time, but for weights; `peak` is the most."""

    def __init__(self, nets):
        super().__init__()
        self.bytes = {p.untyped_storage()._cdata: 0 for net in nets for p in net.parameters()}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for storage in [t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]:
            if storage._cdata not in self.bytes:
                self.bytes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.free, storage._cdata)
        return out

    def free(self, key):
        self.now -= self.bytes.pop(key)


class Fused(torch.autograd.Function):
    """Attention as a card computes it, without a map in memory. Shapes alone, no numbers."""

    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v, out := torch.empty_like(q))
        return out

    @staticmethod
    def backward(ctx, gradient):
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors[:3])


def predict(dtype, batch):
    """Predict the bytes of a run at full size on a card: weights, {phase: bytes beside the weights}."""
    model, found = full_size(META, dtype), {}
    nets = model.unet, model.vae, model.text_encoder, model.sae
    z, t = torch.zeros(batch, *model.latent_shape, device=META), torch.zeros(batch, dtype=torch.int64, device=META)
    context = torch.zeros(batch, 77, 768, device=META, dtype=dtype)
    again = dtype == torch.float16              # the gradient may be taken again, see ascent.gradient_of
    work = {"ascent": lambda: read_hook(model, z.clone().requires_grad_(True), t, context).sum().backward(
                retain_graph=again),
            "finish": lambda: predict_noise(model, z.clone().requires_grad_(True), t, context)[1].sum().backward(
                retain_graph=again),
            "decode": lambda: model.vae.decode(z[:1])}          # a row at a time, in float32
    for phase, run in work.items():
        with patch.object(F, "scaled_dot_product_attention", Fused.apply), Live(nets) as live:
            run()
        found[phase] = live.peak
    return sum(p.nbytes for net in nets for p in net.parameters()), found


def print_memory(batches):
    """Print the predicted bytes by phase, and which cards are enough."""
    print("| precision | batch | weights | ascent | finish | decode | in all | 8 GB card | 6 GB card |\n"
          "|---|---|---|---|---|---|---|---|---|")
    for dtype, batch in product((torch.float32, torch.bfloat16, torch.float16), batches):
        weights, found = predict(dtype, batch)
        whole = weights + max(found.values())
        cells = [str(dtype)[6:], str(batch), *(f"{n / GIB:.2f}" for n in (weights, *found.values(), whole))]
        cells += ["enough" if whole + RESERVE <= SHARE * card * GIB else "too small" for card in (8, 6)]
        print("| " + " | ".join(cells) + " |")
    print(f"\nGiB, from shapes; enough: with {RESERVE / GIB:g} GiB for CUDA in {SHARE:.0%} of the card")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="Stable Diffusion's size (up to 9 GB of memory)")
    parser.add_argument("--memory", action="store_true", help="predict memory from shapes; measure nothing")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--dtype", nargs="+", help="precisions of our ways (default: the one that a run would take)")
    parser.add_argument("--batch", type=int, nargs="+", help="jobs together (default: 1 4 8; 1 with --full on a CPU)")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = choose_device(args.device)
    dtypes = args.dtype or [str(choose_dtype(device)).removeprefix("torch.")]
    batches = args.batch or ([1] if args.full and device.type == "cpu" and not args.memory else [1, 4, 8])
    if args.memory:
        print_memory(batches)
    elif args.child:
        print(json.dumps(measure(args.child, args.full, getattr(torch, dtypes[0]), batches[0], device)))
    else:
        compare(args.full, dtypes, batches, device)


if __name__ == "__main__":
    main()
