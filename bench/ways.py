"""Ways to make a step of the ascent, what its arithmetic is, and how fast this machine multiplies matrices.

    original    the cost path of the method's original implementation on our networks: every weight of UNet and SAE
                collects a gradient (and keeps adding to it, nobody clears it), all features of the SAE are computed to
                use one; it does leave the UNet at the hook point and uses no guidance, as we do
    official    the same on the UNet of diffusers with the same weights, left by an exception at the hook, as the
                original does
    ours        ascent.ascend, the very loop that makes the results
    pixel       the same with --space pixel: the encoder is in front, and its gradient is taken as well
    floor       the counted operations of our step over the rate of a large matrix product, same machine, same precision

Source of the original's path: shared code of arXiv 2605.08218. Random weights are as good as trained ones here: no cost
depends on them.
"""
import dataclasses
import json
import math
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

import regularizers as reg
from weights.load import BPE_FILE, PARTS, skeleton
from config import HOOK_POINT
from clip import TextEncoder, Tokenizer
from config import Job, configure
from ascent import activation, ascend, draw, start
from finish import redraw
from weights.layouts import WEIGHTS_FILE
from weights.quick import Product, quick
from sae import SAE
from unet import UNet
from vae import VAE

WIDTH, FEATURES = 1280, 20480
SAE_CONFIG = {"d_in": WIDTH, "num_latents": FEATURES, "k": 32, "input_unit_norm": False}
BLOCK = 2 ** 24                                                 # numbers drawn at once


# --- weights of full size --------------------------------------------------------------------------------------------

def write_random(path, shapes):
    """A safetensors file of float32 numbers: norms about 1, biases about 0, the rest scaled by 1 / sqrt(fan in)."""
    numbers = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0))
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            scale, middle = (0.1, float(name.endswith("weight"))) if len(shape) == 1 else (math.prod(shape[1:]) ** -0.5,
                                                                                           0.0)
            left = math.prod(shape)
            while left:
                n = min(left, BLOCK)
                file.write((numbers[:n] * scale + middle).numpy().tobytes())
                left -= n


def write_full(folder):
    """A model folder of Stable Diffusion 1.4's sizes with SAeUron's SAE, 4.5 GB of random numbers; only
    written where it is missing.
    """
    if (folder / "scheduler/scheduler_config.json").exists():
        return folder
    print(f"writing 4.5 GB of random weights to {folder}", file=sys.stderr)
    for part, network in zip(PARTS, (UNet, VAE, TextEncoder)):
        net = skeleton(network, {}, folder)
        write_random(folder / part / WEIGHTS_FILE[part], {name: tuple(p.shape) for name, p in net.state_dict().items()})
        (folder / part / "config.json").write_text("{}")        # SD 1.x's sizes
    sae = skeleton(SAE, SAE_CONFIG, folder)
    place = folder / "sae" / HOOK_POINT
    write_random(place / "sae.safetensors", {name: tuple(p.shape) for name, p in sae.state_dict().items()})
    (place / "cfg.json").write_text(json.dumps(SAE_CONFIG))
    tokenizer = Tokenizer.from_bpe(BPE_FILE)
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer/vocab.json").write_text(json.dumps(tokenizer.vocab), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in tokenizer.ranks)
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n" + merges + "\n", encoding="utf-8")
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler/scheduler_config.json").write_text("{}")  # last: everything is there
    return folder


# --- the ways --------------------------------------------------------------------------------------------------------

def jobs_of(model, batch, timestep=361):
    """Different features and seeds, side by side."""
    return [Job(feature=7 * i % model.sae.features, timestep=timestep, seed=1000 + i) for i in range(batch)]


def original(model, jobs, config, until_hook=None):
    """The original's steps: yields (B,) activations. `until_hook`(x, t, context) -> the hook's output,
    where it is another UNet's.
    """
    unet = until_hook or (lambda x, t, context: model.unet(x, t, context, until=model.hook_point))
    collecting = [*getattr(until_hook, "parameters", model.unet.parameters)(), *model.sae.parameters()]
    generators, z = start(model, jobs, dataclasses.replace(config, prior="noise"))
    z = z.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([z], config.learning_rate, (config.beta1, config.beta2), config.epsilon,
                                  config.weight_decay)
    context = model.embed([""]).expand(len(jobs), -1, -1)
    t = torch.tensor([job.timestep for job in jobs], device=model.device)
    rows, targets = torch.arange(len(jobs)), [job.target for job in jobs]
    for _ in range(config.num_steps):
        for p in collecting:  # only while this way's step runs: others share the weights
            p.requires_grad_(True)
        shift, angle, zoom, eps = (torch.stack(d).to(z) for d in zip(*(draw(g, z.shape[1:], config)
                                                                       for g in generators)))
        x = model.schedule.add_noise(reg.transform(z, shift, angle, zoom), eps, t)
        h = unet(x.to(model.dtype), t, context).float().flatten(2).transpose(1, 2)              # (B, S, D)
        a = activation(model.sae.linear(h)[rows, :, targets],
                       "feature")  # all F features, of which one is used
        loss = (
            -a
            + config.range_weight * reg.range_penalty(z, config.range_threshold)
            + config.moment_weight * reg.moment_penalty(z)
        )
        optimizer.zero_grad()
        loss.sum().backward()
        z.grad = reg.spectral_filter(z.grad)
        optimizer.step()
        for p in collecting:
            p.requires_grad_(False)
        yield a.detach()
    for p in collecting:
        p.grad = None


class Reached(Exception):
    """Thrown at the hook point: the rest of the official UNet is not run."""


def official(model):
    """The UNet of diffusers on the model's own numbers, as original() takes it; None where diffusers is not installed.
    """
    try:
        from diffusers import UNet2DConditionModel
    except ImportError:
        return None
    ours, z = model.unet, torch.zeros(1, *model.latent_shape, device=model.device, dtype=model.dtype)
    with torch.no_grad():
        ours(z, torch.zeros(1, device=model.device), model.embed([""]))                        # reads what is read late
    sizes = dict(block_out_channels=[level.resnets[0].conv1.out_channels for level in ours.down_blocks],
                 cross_attention_dim=ours.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.in_features,
                 attention_head_dim=ours.mid_block.attentions[0].transformer_blocks[0].attn1.heads,
                 norm_num_groups=ours.conv_norm_out.num_groups)
    with torch.device("meta"):
        theirs = UNet2DConditionModel(in_channels=4, out_channels=4, layers_per_block=2, **sizes)
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)

    def reach(module, args, output):
        raise Reached(output[0] if isinstance(output, tuple) else output.sample)

    def until_hook(x, t, context):
        handle = theirs.get_submodule(model.hook_point).register_forward_hook(reach)
        try:
            theirs(x, t, context)
        except Reached as reached:
            return reached.args[0]
        finally:
            handle.remove()
    until_hook.parameters = theirs.requires_grad_(False).eval().parameters
    return until_hook


def ours(model, jobs, config):
    return (step.activation for step in ascend(model, jobs, dataclasses.replace(config, prior="noise")))


def pixel(model, jobs, config):
    return ours(model, jobs, dataclasses.replace(config, space="pixel"))


def finish(model, jobs, config):
    """The activations of step after step of the finish: the whole UNet forward, back from the hook."""
    noise = torch.randn(len(jobs), *model.latent_shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    return (step.activation for step in redraw(model, jobs, noise, [jobs[0].timestep] * config.num_steps, 0.5, config))


def endless(model):
    """The method's settings, from noise, with more steps than will be asked for."""
    return configure(model.settings, prior="noise", num_steps=10 ** 5)


# --- arithmetic ------------------------------------------------------------------------------------------------------

def count(net, shape, batch=1, until=HOOK_POINT, backward=True, collecting=False):
    """Operations (a multiplication and an addition are two) of a UNet on the meta device: (all,
    those of attention maps).
    """
    from torch.utils.flop_counter import FlopCounterMode         # takes 70 MB, which the memory section must not count
    width = net.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.in_features
    net.requires_grad_(collecting)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        z = torch.empty(batch, *shape, requires_grad=True)
        h = net(z, torch.empty(batch, dtype=torch.int64), torch.empty(batch, 77, width), until=until)
        if backward:
            h.sum().backward()
    net.requires_grad_(False)
    maps = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "bmm" in str(op) or "attention" in str(op))
    return counter.get_total_flops(), maps


def count_encoder(vae, shape, batch=1):
    """Operations of the encoder of latents of this shape, forward and back to the pixels, on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode
    vae.requires_grad_(False)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        vae.encode(torch.empty(batch, 3, *(vae.factor * n for n in shape[1:]), requires_grad=True)).sum().backward()
    return counter.get_total_flops()


def meta_unet(found):
    """A UNet without memory, of the sizes of the one in `checkpoint.Found`."""
    unet = found.sources["unet"].net
    with torch.device("meta"):
        return UNet([level.resnets[0].conv1.out_channels for level in unet.down_blocks],
                    unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.in_features,
                    unet.mid_block.attentions[0].transformer_blocks[0].attn1.heads, unet.conv_norm_out.num_groups)


def machine(device):
    """The processor's or card's name, and what it runs."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        name = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
                    name)
    return f"{name}, {torch.get_num_threads()} cores, torch {torch.__version__}"


def synchronize(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds(work, device, clock=time.perf_counter):
    synchronize(device)
    began = clock()
    work()
    synchronize(device)
    return clock() - began


def rates(device, dtype, repeat=4):
    """Operations a second of a large matrix product: {"torch": a @ b, "onednn": quick.Product, on a
    CPU}, the best of some sizes.
    """
    ways = {"torch": lambda a, b: a @ b}
    if quick(one := torch.ones(1, 1, device=device, dtype=dtype), one):
        ways["onednn"] = lambda a, b: Product.apply(a, b, None)
    out = {}
    for name, way in ways.items():
        for n in (1024, 2048) if torch.device(device).type == "cpu" else (4096, 8192):
            a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
            took = [seconds(lambda: way(a, b), device)]
            took += [seconds(lambda: way(a, b), device) for _ in range(repeat) if took[0] < 1]
            out[name] = max(out.get(name, 0.0), 2 * n ** 3 / min(took))
            if took[0] >= 1:                    # emulated bfloat16: more would take minutes
                break
    return out


def alternate(ways, rounds, device, budget=math.inf, clock=time.perf_counter):
    """{name: seconds of each call} of ways {name: work()}, in turns after one call each that does not count; stops at
    `budget` seconds, after two rounds at the earliest. Progress on stderr. clock: time.process_time counts the
    processor's seconds instead, which other work on the machine hardly changes.
    """
    times, began = {name: [] for name in ways}, time.perf_counter()
    for i in range(rounds + 1):
        for name, work in ways.items():
            took = seconds(work, device, clock)
            if i:
                times[name].append(took)
        spent = time.perf_counter() - began
        print(f"\r  round {i} of {rounds}, {spent / (i + 1) * (rounds - i):.0f} s left   ", end="", file=sys.stderr,
              flush=True)
        if i >= 2 and spent * (i + 2) / (i + 1) > budget:
            break
    print(file=sys.stderr)
    return times


def summary(times):
    return {"seconds": statistics.median(times), "rounds": len(times), "fastest": min(times), "slowest": max(times)}
