"""UNet, VAE and SAE without the official libraries: their recorded outputs, the published sizes, the doors of each."""
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sae import SAE
from steering import predict
from tests.seeded import (FIXTURES, HOOK, TOY, TOY_HOOKS, compare, filled, fingerprint, on_meta, randn, relative_error,
                          shapes, stored, toy_outputs, unet_inputs, vae_inputs)
from unet import EPS, TRANSFORMER_EPS, Transformer, time_embedding

COUNTS = {"unet": 859_520_964, "vae": 83_653_863, "clip_text": 123_060_480}


@pytest.fixture(scope="module")
def unet():
    return filled("unet", TOY["unet"])


@pytest.fixture(scope="module")
def vae():
    return filled("vae", TOY["vae"])


@pytest.mark.parametrize("part", ("unet", "vae"))
def test_toy_outputs_are_the_official_ones(part):
    """Noise, four hook outputs, decode, encode, gradients, against what diffusers gave on the same seeded weights."""
    tensors, _ = stored(part)
    assert torch.allclose(tensors.pop("fingerprint"), fingerprint(part), rtol=1e-6), "not the seeded weights recorded"
    compare(toy_outputs(part), tensors, f"toy {part}")


@pytest.mark.parametrize("part", COUNTS)
def test_published_names_and_shapes(part):
    """All tensors of SD 1.4's files and no other, by name and shape, and their number of parameters."""
    published = {}
    for line in (FIXTURES / "keys_sd14.txt").read_text().splitlines():
        owner, name, shape = line.split()
        if owner == part:
            published[name.removeprefix("text_model.")] = tuple(int(n) for n in shape.split("x"))
    net = on_meta(part)
    assert shapes(net) == published
    assert sum(p.numel() for p in net.parameters()) == COUNTS[part]


@pytest.mark.parametrize("part", COUNTS)
def test_eps_of_every_norm(part):
    """1e-5 in the UNet but 1e-6 at the entry of its 16 transformers; 1e-6 in the VAE; LayerNorm 1e-5 everywhere."""
    found, net = [], on_meta(part)
    for name, m in net.named_modules():
        if isinstance(m, nn.LayerNorm):
            found.append(("layer", m.eps))
        elif isinstance(m, nn.GroupNorm):
            entry = name.endswith(".norm") and isinstance(net.get_submodule(name.removesuffix(".norm")), Transformer)
            found.append(("transformer" if entry else "group", m.eps))
            assert m.num_groups == 32
    expected = {"unet": {("group", 1e-5): 45, ("transformer", 1e-6): 16, ("layer", 1e-5): 48},
                "vae": {("group", 1e-6): 52}, "clip_text": {("layer", 1e-5): 25}}
    assert {kind: found.count(kind) for kind in set(found)} == expected[part]
    assert (EPS, TRANSFORMER_EPS) == (1e-5, 1e-6)


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


@pytest.fixture(scope="module")
def full(unet):
    """A run without additions: names of the modules in order of their end, {hook point: its output}, prediction."""
    outputs = {}
    keep = lambda hook: lambda module, args, y: outputs.update({hook: y})
    handles = [unet.get_submodule(hook).register_forward_hook(keep(hook)) for hook in SOME_HOOKS]
    names, out = ran(unet)
    for handle in handles:
        handle.remove()
    return names, outputs, out


# what the checkpoint names: place -> how many; conv_out is none, its output is the prediction
PLACES = {"attentions": 16, "resnets": 22, "downsamplers": 3, "upsamplers": 3, "conv_in": 1}
SOME_HOOKS = ("conv_in", "down_blocks.0.resnets.1", "down_blocks.1.downsamplers.0.conv", "mid_block.resnets.1",
              "up_blocks.0.upsamplers.0.conv", *TOY_HOOKS)      # all of them: tests/oracle/test_parity.py


def test_hook_points(unet, full):
    """Every attention, resnet and convolution between them, with their widths."""
    names, *_ = full
    assert set(unet.hook_points) < set(names)
    assert {place: sum(place in name for name in unet.hook_points) for place in PLACES} == PLACES
    assert len(unet.hook_points) == sum(PLACES.values()) and on_meta("unet").hook_points == unet.hook_points
    assert [unet.width(name) for name in TOY_HOOKS] == [64, 112, 112, 32]
    assert on_meta("unet").width(HOOK) == 1280


@pytest.mark.parametrize("hook", SOME_HOOKS)
def test_stops_and_adds_at_the_hook(unet, full, hook):
    """The last module that runs is the hook point or holds it, and the output is the one that a full run has there.
    What is pushed there is what a forward hook adds to the output, and is not in what is read."""
    whole, outputs, plain = full
    names, y = ran(unet, until=hook)
    last = hook.removesuffix(".conv")                           # down- and upsamplers end with their convolution
    assert names[-1] == last and names == whole[:whole.index(last) + 1]
    assert torch.equal(y, outputs[hook]) and y.shape[1] == unet.width(hook)
    v = randn(2, unet.width(hook), seed=8)
    handle = unet.get_submodule(hook).register_forward_hook(lambda module, args, y: y + v[:, :, None, None])
    expected = unet(*SMALL)
    handle.remove()
    model = SimpleNamespace(unet=unet, hook_point=hook, sae=None, dtype=torch.float32)
    steered, read = predict(model, *SMALL, v)
    assert torch.equal(steered, expected) and relative_error(steered, plain) > 1e-3 and torch.equal(read, y)


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


def toy_sae(k=4, **kwargs):
    sae = SAE(24, 96, k, **kwargs)
    with torch.no_grad():
        for i, p in enumerate(sae.parameters()):
            p.copy_(0.3 * randn(*p.shape, seed=30 + i))
    return sae.requires_grad_(False)


def test_sae_values():
    """pre_acts, encode and decode of each position by SAeUron's forward, feature by feature, in float64."""
    sae, h = toy_sae(), randn(6, 24, seed=40)
    W, b, W_dec, b_dec = (p.double() for p in (sae.encoder.weight, sae.encoder.bias, sae.W_dec, sae.b_dec))
    for row, *ours in zip(h.double(), sae.pre_acts(h), sae.encode(h), sae.decode(sae.encode(h))):
        pre = [max(0.0, (W[f] @ (row - b_dec) + b[f]).item()) for f in range(96)]
        kept = sorted(range(96), key=lambda f: pre[f], reverse=True)[:4]
        acts = [pre[f] if f in kept else 0.0 for f in range(96)]
        expected = torch.tensor(pre), torch.tensor(acts), (b_dec + sum(acts[f] * W_dec[f] for f in kept)).float()
        assert (ours[1] > 0).sum() == 4 and all(relative_error(*pair) < 1e-5 for pair in zip(ours, expected))


def test_sae_one_feature_a_row():
    """linear(h, feature) picks for each row its own feature out of all of them."""
    sae, h, feature = toy_sae(), randn(3, 5, 24, seed=43), torch.tensor([7, 0, 95])
    few = sae.linear(h, feature)
    assert few.shape == (3, 5) and torch.allclose(few, sae.linear(h)[torch.arange(3), :, feature], atol=1e-5)


def test_sae_unit_norm():
    """Each position to mean 0 and (unbiased) deviation 1 first."""
    plain, unit, h = toy_sae(), toy_sae(norm="unit"), 3 + 2 * randn(4, 24, seed=45)
    normal = torch.stack([(x - x.mean()) / ((x - x.mean()).square().sum().div(23).sqrt() + 1e-5) for x in h])
    assert torch.equal(plain.preprocess(h), h)
    assert relative_error(unit.pre_acts(h), plain.pre_acts(normal)) < 1e-5
