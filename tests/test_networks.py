"""The networks without the official libraries: their recorded outputs, the published sizes, hook points, scales."""
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sae import SAE
from steering import predict
from tests.layouts import NAMES
from tests.seeded import (HOOK, TOY, TOY_HOOKS, compare, filled, fingerprint, on_meta, randn, relative_error, shapes,
                          stored, toy_outputs, unet_inputs, vae_inputs, weights)
from unet import time_embedding

NORMS = {       # part -> {(norm, its groups, eps): how many}; "entry" is the first of a transformer in the UNet
    "unet": {("GroupNorm", 32, 1e-5): 45, ("entry", 32, 1e-6): 16, ("LayerNorm", None, 1e-5): 48},
    "vae": {("GroupNorm", 32, 1e-6): 52}, "text_encoder": {("LayerNorm", None, 1e-5): 25}}


@pytest.fixture(scope="module")
def unet():
    return filled("unet", TOY["unet"])


@pytest.fixture(scope="module")
def vae():
    return filled("vae", TOY["vae"])


@pytest.mark.parametrize("part", ("unet", "vae", "clip_text"))
def test_toy_outputs_are_the_official_ones(part):
    """Noise, four hook outputs, decode, encode, text, gradients, against what the libraries gave on the same seeded
    weights."""
    tensors, _ = stored(part)
    assert torch.allclose(tensors.pop("fingerprint"), fingerprint(part), rtol=1e-6), "not the seeded weights recorded"
    compare(toy_outputs(part), tensors, f"toy {part}")


@pytest.mark.parametrize("part", NORMS)
def test_published_names_shapes_and_norms(part):
    """All tensors of SD 1.4's files and no other; each norm's eps, which is too small to be seen in the outputs."""
    published = {name.removeprefix("text_model."): shape for owner, name, shape, *_ in NAMES if owner == part}
    net = on_meta(part)
    assert shapes(net) == published
    assert NORMS[part] == Counter(
        ("entry" if name.endswith(".norm") else type(m).__name__, getattr(m, "num_groups", None), m.eps)
        for name, m in net.named_modules() if isinstance(m, (nn.GroupNorm, nn.LayerNorm)))


def test_golden_time_embedding():
    """For t = 981: cosines first, then sines, the fastest frequency first."""
    e = time_embedding(torch.tensor([981, 0]), 320)
    assert e.shape == (2, 320) and e.dtype == torch.float32
    golden = {0: 0.679957, 1: -0.798429, 159: 0.994606, 160: 0.733252, 161: 0.602089, 319: 0.103726}
    for i, value in golden.items():
        assert e[0, i].item() == pytest.approx(value, abs=1e-4)     # float32 angles near 981 are 6e-5 apart
    assert e[1].tolist() == [1.0] * 160 + [0.0] * 160


SMALL = unet_inputs(size=8)


def ran(net, **kwargs):
    """Names of the modules that ran, in order of their end, and the output of a run on the seeded inputs."""
    names = []
    handles = [m.register_forward_hook(lambda *_, name=name: names.append(name))
               for name, m in net.named_modules() if name]
    out = net(*SMALL, **kwargs)
    for handle in handles:
        handle.remove()
    return names, out


# what the checkpoint names: place -> how many; conv_out is none, its output is the prediction
PLACES = {"attentions": 16, "resnets": 22, "downsamplers": 3, "upsamplers": 3, "conv_in": 1}
SOME_HOOKS = ("conv_in", "down_blocks.0.resnets.1", "down_blocks.1.downsamplers.0.conv", "mid_block.resnets.1",
              "up_blocks.0.upsamplers.0.conv", *TOY_HOOKS)      # all of them: tests/oracle/test_parity.py


def test_hook_points(unet):
    """Every attention, resnet and convolution between them, with their widths."""
    assert set(unet.hook_points) < {*ran(unet)[0]}
    assert {place: sum(place in name for name in unet.hook_points) for place in PLACES} == PLACES
    assert len(unet.hook_points) == sum(PLACES.values()) and on_meta("unet").hook_points == unet.hook_points
    assert [unet.width(name) for name in TOY_HOOKS] == [64, 112, 112, 32]
    assert on_meta("unet").width(HOOK) == 1280


@pytest.mark.parametrize("hook", SOME_HOOKS)
def test_stops_and_adds_at_the_hook(unet, hook):
    """The last module that runs is the hook point or holds it, and the output is the one that a full run has there.
    What is pushed there is what a forward hook adds to the output, and is not in what is read."""
    names, y = ran(unet, until=hook)
    v, outputs = randn(2, unet.width(hook), seed=8), []
    push = lambda module, args, output: outputs.append(output) or output + v[:, :, None, None]
    handle = unet.get_submodule(hook).register_forward_hook(push)
    whole, expected = ran(unet)
    handle.remove()
    last = hook.removesuffix(".conv")                           # down- and upsamplers end with their convolution
    assert names == whole[:whole.index(last) + 1]
    assert torch.equal(y, outputs[0]) and y.shape[1] == unet.width(hook)
    model = SimpleNamespace(unet=unet, hook_point=hook, sae=None, dtype=torch.float32)
    steered, read = predict(model, *SMALL, v)
    assert torch.equal(steered, expected) and relative_error(steered, unet(*SMALL)) > 1e-3 and torch.equal(read, y)


@pytest.mark.parametrize("wrong, near", (
    ("up_blocks.1.attention.1", HOOK), ("unet.up_blocks.1.attentions.7", "up_blocks.1.attentions."),
    ("mid_block", "mid_block."), ("conv_out", "conv_in")))
def test_unknown_hook_point(unet, wrong, near):
    """ValueError that names what was asked for and the nearest that exist; `unet.` in front is the same place."""
    with pytest.raises(ValueError, match=f"{wrong}.*nearest: .*{near}"):
        unet(*SMALL, until=wrong)
    assert torch.equal(unet(*SMALL, until=f"unet.{HOOK}"), unet(*SMALL, until=HOOK))


def test_inputs_are_left_as_they_were(unet):
    inputs = unet_inputs(size=8)
    unet(*inputs, until=HOOK)
    assert all(map(torch.equal, inputs, SMALL))


@torch.no_grad()
def test_vae_scales_and_clamps(vae):
    """decode = clamp(raw / 2 + 0.5) of z / 0.18215; encode = the mean times 0.18215; the log variance is in -30..20."""
    z, images = vae_inputs()
    raw = vae.decoder(vae.post_quant_conv(z / 0.18215))
    assert vae.factor == 4 and raw.shape == (2, 3, 32, 32)
    assert torch.equal(vae.decode_raw(z), raw)
    assert torch.equal(vae.decode(z), (raw / 2 + 0.5).clamp(0, 1)) and raw.abs().max() > 1
    mean, logvar = vae.moments(images)
    assert torch.equal(vae.encode(images), mean * 0.18215) and mean.shape == (2, 4, 8, 8)
    assert torch.equal(torch.cat([mean, logvar], dim=1), vae.quant_conv(vae.encoder(2 * images - 1)))
    assert vae.moments(1e6 * images)[1].abs().max() <= 30
    extreme = filled("vae", TOY["vae"])
    extreme.quant_conv.bias[4:] = torch.tensor([-1e3, -1e3, 1e3, 1e3])
    assert extreme.moments(images)[1].amin(dim=(0, 2, 3)).tolist() == [-30, -30, 20, 20]


def test_one_row_of_the_sae_for_each_row():
    """linear(h, feature) picks for each row its own feature out of all of them. What an SAE computes: test_saes.py."""
    sae, h, feature = SAE(24, 96, k=4), randn(3, 5, 24, seed=43), torch.tensor([7, 0, 95])
    sae.load_state_dict(weights(shapes(sae)))
    few = sae.linear(h, feature)
    assert few.shape == (3, 5) and torch.allclose(few, sae.linear(h)[torch.arange(3), :, feature], atol=1e-5)
