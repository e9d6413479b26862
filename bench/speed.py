"""Measure a step of the ascent against the original's way: see README.md.

All ways share the numbers of weights, not the parameters: nothing is switched between steps that take turns.
"""
import argparse
import copy
import dataclasses
import statistics
import sys
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import cache, partial
from itertools import product
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from torch.utils.flop_counter import FlopCounterMode

import regularizers as reg
from ascent import activation, ascend, draw
from clip import TextEncoder, Tokenizer
from config import HOOK_POINT, Job, configure
from finish import redraw
from sae import SAE
from schedule import Schedule
from unet import UNet
from vae import VAE
from visualize import start
from weights.check import peak_memory
from weights.load import Model, choose_device, choose_dtype, load, read_json
from weights.quick import Linear, quicken

META, GIB = torch.device("meta"), 2 ** 30
FEATURES, TIMES, SEEDS = 20_480, 4, 5   # of SAeUron's SAE; time steps (0 and three peaks) and seeds of a feature
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BARE = configure({}, "sae", prior="noise", num_steps=10 ** 5)


@torch.no_grad()
def full_size(device, dtype):
    """Make a Model of Stable Diffusion 1.x's sizes with random weights; on the meta device without numbers."""
    with META:
        nets = {"unet": quicken(UNet().to(dtype)), "text_encoder": TextEncoder().to(dtype), "vae": VAE(),
                "sae": SAE(1280, FEATURES)}
    for net in nets.values():
        net.requires_grad_(False).eval().to_empty(device=device)
        for name, p in net.named_parameters():                  # norms about 1, biases about 0, the rest by fan in
            p.normal_(std=0.1 if p.ndim == 1 else p[0].numel() ** -0.5)
            p += float(p.ndim == 1 and name.endswith("weight"))
    tokenizer = Tokenizer.from_bpe(ROOT / "weights/clip/bpe_simple_vocab_16e6.txt.gz")
    return Model(Path("random"), "random", device, dtype, schedule=Schedule(device=device),
                 hook_point=HOOK_POINT, latent_shape=(4, 64, 64), tokenizer=tokenizer, **nets)


@cache
def model_of(full, dtype, device, collects):
    """Load a model, once. One that `collects` shares the frozen one's numbers; gradients of its UNet and SAE add up."""
    if not collects:
        return full_size(device, dtype) if full else load(None, device, dtype)
    model = model_of(full, dtype, device, False)
    nets = {"unet": model.unet, "sae": model.sae}
    own = {id(p): torch.nn.Parameter(p.detach()) for net in nets.values() for p in net.parameters()}
    return dataclasses.replace(model, **copy.deepcopy(nets, own))


def original(model, jobs, config, begun):
    """Run the steps of the code of arXiv 2605.08218; yields activations (B,). Weights collect gradients, which nobody
    clears, and all features are computed to use one, in float32; on a card under float16 autocast with a GradScaler."""
    cuda = model.device.type == "cuda"
    scaler = torch.amp.GradScaler("cuda", enabled=cuda)
    generators, z = begun
    optimizer = torch.optim.AdamW([z.requires_grad_(True)], config.learning_rate, weight_decay=config.weight_decay)
    context = model.embed([""]).expand(len(jobs), -1, -1)
    t = torch.tensor([job.timestep for job in jobs], device=model.device)
    targets = [job.target for job in jobs]
    for _ in range(config.num_steps):
        drawn = zip(*(draw(g, z.shape[1:], config) for g in generators))
        shift, angle, zoom, eps = (torch.stack(numbers).to(z) for numbers in drawn)
        x = model.schedule.add_noise(reg.transform(z, shift, angle, zoom), eps, t)
        with torch.autocast("cuda", torch.float16, enabled=cuda):
            h = model.unet(x, t, context, until=model.hook_point).flatten(2).transpose(1, 2)    # (B, S, D)
            a = activation(model.sae.linear(h)[range(len(jobs)), :, targets].float(), "feature")    # (B,)
        loss = (-a + config.range_weight * reg.range_penalty(z, config.range_threshold)
                + config.moment_weight * reg.moment_penalty(z))
        optimizer.zero_grad()
        scaler.scale(loss.sum()).backward()
        scaler.unscale_(optimizer)
        z.grad = reg.spectral_filter(z.grad)
        scaler.step(optimizer)
        scaler.update()
        yield a.detach()


def official(model, jobs, config, begun):
    """Run the original's steps on diffusers' UNet with the model's own parameters; yields activations (B,)."""
    from diffusers import UNet2DConditionModel                   # optional, and seconds to load
    path = model.folder / "unet/config.json"
    with META:
        net = UNet2DConditionModel(**{"cross_attention_dim": 768} | (read_json(path) if path.exists() else {}))
    net.load_state_dict(model.unet.state_dict(keep_vars=True), strict=True, assign=True)
    last = net.up_blocks[1]                     # what comes after up_blocks.1.attentions.1 is cut off
    del net.up_blocks[2:], last.resnets[2:], last.attentions[2:]
    last.upsamplers, net.conv_norm_out, net.conv_out = None, None, torch.nn.Identity()
    return original(dataclasses.replace(model, unet=lambda *inputs, until: net(*inputs).sample), jobs, config, begun)


ORIGINALS = {"original": original, "official": official}
WAYS = ORIGINALS | {"ascent": ascend, "finish": lambda model, jobs, config, begun: redraw(
    model, jobs, begun[1], [361] * config.num_steps, config)}


def begin(way, model, batch):
    """Begin a way: return a function that takes its next step."""
    jobs = [Job("feature", 7 * i % model.sae.features, 361, 1000 + i) for i in range(batch)]
    return partial(next, WAYS[way](model, jobs, BARE, start(model, jobs, BARE)))


def measure(ways, batch, full, device, products=()):
    """Take steps of `ways` [(name, precision)] in turns, and with them `products` of n x n numbers in some precisions;
    return {way or precision: median seconds of the steps after the first}, n, the peak bytes of this process."""
    work = {(way, dtype): begin(way, model_of(full, dtype, device, way in ORIGINALS), batch) for way, dtype in ways}
    n = 8192 if device.type == "cuda" else 2048
    for dtype in products:                      # on a CPU by oneDNN, as ours are
        layer = Linear(n, n, bias=False, device=device, dtype=dtype).requires_grad_(False)
        work[dtype] = partial(layer, torch.randn(n, n, device=device).to(dtype))
    times = {key: [] for key in work}
    for _ in range(8 if products else 2):       # the first allocates and chooses kernels
        for key, step in work.items():
            before = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[key].append(time.perf_counter() - before)
    return {key: statistics.median(took[1:]) for key, took in times.items()}, n, peak_memory(device)


def compare(full, dtypes, batches, device):
    """Measure all ways; print a table, with the hours that all features of the model would take."""
    half = torch.float16 if device.type == "cuda" else torch.float32
    products, peaks = {(way, torch.float32): half for way in ORIGINALS}, {}         # way: what it multiplies in
    products |= {(way, dtype): dtype for dtype in dtypes for way in ("ascent", "finish")}
    for batch, way in product(batches, products):               # now: a child's peak is at least its parent's size
        try:
            with ProcessPoolExecutor(1, max_tasks_per_child=1) as pool:
                peaks[batch, way] = pool.submit(measure, [way], batch, full, device).result()[-1]
        except (BrokenExecutor, ImportError, torch.OutOfMemoryError) as error:
            print(f"{way[0]} is left out at batch {batch}: {error}", file=sys.stderr)
    model = full_size(META, torch.float32) if full else load(None, "cpu")
    step = begin("ascent", model, 1)
    step()                                      # which also reads the prompt
    with patch("weights.quick.quick", return_value=False), FlopCounterMode(display=False) as counter:
        step()                                  # with torch's products: those of oneDNN are not counted
    operations = counter.get_total_flops()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{'full size' if full else 'toy'} on {name}, torch {torch.__version__}, {operations / 1e9:.3g} GFLOP\n\n"
          "| batch | way | precision | seconds a step | of the original's | peak GiB | of the product rate | hours |\n"
          "|---|---|---|---|---|---|---|---|")
    for batch in batches:
        ways = [way for way in products if (batch, way) in peaks]
        took, n, _ = measure(ways, batch, full, device, {products[way] for way in ways})
        for way in ways:
            ratio = took[way] / took.get(("original", torch.float32), float("nan"))
            share = f"{batch * operations / took[way] / (2 * n ** 3 / took[products[way]]):.0%}"
            hours = model.sae.features * TIMES * SEEDS * (30 if way[0] == "finish" else 100) * took[way] / batch / 3600
            print(f"| {batch} | {way[0]} | {str(way[1])[6:]} | {took[way]:.3g} | {ratio:.2f} | "
                  f"{peaks[batch, way] / GIB:.2f} | {'' if way[0] == 'finish' else share} | {hours:,.0f} |", flush=True)
    print(f"\nHours: {model.sae.features:,} features, {TIMES} time steps, {SEEDS} seeds; 100 steps, 30 of the finish")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="Stable Diffusion's size (13 GB of memory)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="of our ways (default: what a run would take)")
    parser.add_argument("--batch", type=int, nargs="+", help="jobs together (default: 1 4 8; 1 with --full on a CPU)")
    args = parser.parse_args()
    device = choose_device(args.device)
    batches = args.batch or ([1] if args.full and device.type == "cpu" else [1, 4, 8])
    compare(args.full, [DTYPES[name] for name in args.dtype or ()] or [choose_dtype(device)], batches, device)


if __name__ == "__main__":
    main()
