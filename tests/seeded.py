"""Seeded weights and inputs, the same for our networks and for the official libraries, and what is compared on them.

A seed and a sorted list of tensor names give the same numbers on both sides. Every tensor is random, also biases and
norms, because official initialisations leave many of them at 0 or 1, where a missing one would not show.
"""
import math
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open

from clip import TextEncoder
from config import HOOK_POINT as HOOK
from legibility.vision import CLIP, preprocess
from sae import SAE
from tests import clip_vocab
from unet import UNet
from vae import VAE
from weights.quick import quicken

FIXTURES = Path(__file__).parent / "fixtures"
SEED = 20
TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4                      # max abs difference / max abs reference, float32
NETWORKS = {"unet": UNet, "vae": VAE, "clip_text": TextEncoder, "text_encoder": TextEncoder, "clip": CLIP, "sae": SAE}
TOY = {     # the proportions of SD, small; widths that differ from level to level where that tells two of them apart
    "unet": dict(block_out_channels=(32, 64, 112, 112), cross_attention_dim=64, attention_head_dim=2,
                 norm_num_groups=16),
    "vae": dict(block_out_channels=(32, 48, 64), layers_per_block=1, norm_num_groups=16),
    "clip_text": dict(vocab_size=1000, hidden_size=64, intermediate_size=256, num_hidden_layers=2,
                      num_attention_heads=2),
    "clip": dict(text_config=dict(vocab_size=49408, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                  num_attention_heads=2),
                 vision_config=dict(image_size=32, patch_size=8, hidden_size=48, intermediate_size=96,
                                    num_hidden_layers=2, num_attention_heads=3), projection_dim=24),
}
TOY_HOOKS = ("down_blocks.1.attentions.0", "mid_block.attentions.0", HOOK, "up_blocks.3.attentions.2")


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(shapes, seed=SEED):
    """{name: shape} -> {name: tensor}, filled in sorted order: norms about 1, biases about 0, else by 1 / sqrt(fan in).
    """
    g, out = torch.Generator().manual_seed(seed), {}
    for name in sorted(shapes):
        w = torch.randn(shapes[name], generator=g)
        if w.ndim == 0:
            w = w.mul_(0.1).add_(4.6)                           # CLIP's logit_scale, which ends at ln 100
        elif w.ndim == 1:
            w = w.mul_(0.1).add_(1.0 if name.endswith("weight") else 0.0)
        else:
            w = w.div_(math.sqrt(w[0].numel()))
        out[name] = w
    return out


def on_meta(part, sizes=None):
    """One of our networks without any memory behind it, by default of SD 1.x's sizes."""
    with torch.device("meta"):
        return NETWORKS[part](**(sizes or {}))


def shapes(net):
    return {name: tuple(p.shape) for name, p in net.state_dict().items()}


def filled(part, sizes=None, tensors=None):
    """One of our networks with seeded weights (or with `tensors`), frozen, the UNet quick as load() leaves it."""
    net = on_meta(part, sizes)
    net.load_state_dict(tensors or weights(shapes(net)), strict=True, assign=True)
    net = quicken(net) if part == "unet" else net
    return net.requires_grad_(False).eval()


def unet_inputs(batch=2, size=16, width=64):
    """z, t, context; rows differ in everything, so that a row that reads another one shows."""
    t = torch.tensor([981, 41])[:batch]
    return randn(batch, 4, size, size, seed=1), t, randn(batch, 77, width, seed=2)


def vae_inputs(batch=2, size=8, factor=4):
    """Latents, and images in [0, 1]."""
    g = torch.Generator().manual_seed(4)
    return randn(batch, 4, size, size, seed=3), torch.rand(batch, 3, size * factor, size * factor, generator=g)


def text_inputs(batch=2, vocab=1000):
    return torch.randint(0, vocab, (batch, 77), generator=torch.Generator().manual_seed(5))


def pictures():
    """Noise, so that the resampling overshoots 0 and 255: square, nearly square, wide, high, tiny."""
    g, sizes = torch.Generator().manual_seed(9), ((32, 32), (33, 32), (300, 45), (61, 130), (7, 5))
    return [Image.fromarray(torch.randint(0, 256, (h, w, 3), generator=g, dtype=torch.uint8).numpy()) for w, h in sizes]


TEXTS = ("a photo of a rose", "", "A Trees image in Van_Gogh style", "cables, " * 60, "a <|endoftext|> in between")


def gradient(y, x, retain_graph=False):
    """Of a fixed random projection of y, with respect to x."""
    return torch.autograd.grad((y * randn(*y.shape, seed=6)).sum(), x, retain_graph=retain_graph)[0]


def outputs(run, net, inputs, leaves=None, **more):
    """What run(net, *inputs) gives, {name: tensor}, without its graph; for each of `leaves`, {name: n}, the gradient of
    that output with respect to input n.
    """
    leaves = leaves or {}
    inputs = [x.clone().requires_grad_(n in leaves.values()) for n, x in enumerate(inputs)]
    found = run(net, *inputs, **more)
    gradients = {f"gradient {name}": gradient(found[name], inputs[n], True) for name, n in leaves.items()}
    return {name: y.detach() for name, y in found.items()} | gradients


def unet_run(net, z, t, context, hooks=TOY_HOOKS):
    return {"noise": net(z.detach(), t, context)} | {hook: net(z, t, context, until=hook) for hook in hooks}


def clip_run(net, pixels, ids):
    image, text = net.embed_images(pixels), net.embed_texts(ids)
    return {"pixels": pixels, "image": image, "text": text, "logits": net.logit_scale.exp() * image @ text.T}


RUNS = {        # part -> what is compared of it: of the VAE decoded images before the clamp, then what encode gives
    "unet": unet_run,
    "vae": lambda net, z, images: dict(zip(("decode", "mean", "logvar"), (net.decode_raw(z), *net.moments(images)))),
    "clip_text": lambda net, ids: {"embedding": net(ids)},
    "clip": clip_run,
}
LEAVES = {"unet": dict.fromkeys(TOY_HOOKS, 0), "vae": {"decode": 0, "mean": 1}, "clip": {"image": 0, "logits": 0}}


def clip_inputs():
    size = TOY["clip"]["vision_config"]["image_size"]
    return torch.stack([preprocess(picture, size) for picture in pictures()]), clip_vocab.tokenizer()(list(TEXTS))


INPUTS = {"unet": unet_inputs, "vae": vae_inputs, "clip_text": lambda: [text_inputs()], "clip": clip_inputs}


def toy_outputs(part):
    """All that is compared at toy size, from our network with seeded weights."""
    return outputs(RUNS[part], filled(part, TOY[part]), INPUTS[part](), LEAVES.get(part))


def toy_eps(x, t):
    """A stand-in for a network in trajectories: depends on the sample and on the time step."""
    return x / 2 + t / 2000


def relative_error(ours, reference):
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def compare(ours, reference, label):
    """Assert that two dicts of tensors agree within the tolerances; the errors are printed (pytest -s shows them)."""
    assert ours.keys() == reference.keys()
    for key in reference:
        assert reference[key].isfinite().all() and reference[key].abs().max() > 1e-2, f"{label} {key} is nothing"
        error = relative_error(ours[key], reference[key])
        print(f"{label:14s} {key:40s} {error:.1e}")
        assert error <= (GRADIENT_TOLERANCE if key.startswith("gradient") else TOLERANCE), (label, key, error)


def fingerprint(part):
    """Sums over the seeded weights and inputs, stored beside outputs: tell a changed generator from a wrong network."""
    parts = [*weights(shapes(on_meta(part, TOY[part]))).values(), *unet_inputs(), *vae_inputs(), text_inputs()]
    return torch.stack([p.double().abs().sum() for p in parts])


def stored(part):
    """A fixture that tests/oracle/record.py wrote: ({name: tensor}, {metadata})."""
    with safe_open(str(FIXTURES / f"parity_{part}.safetensors"), framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()
