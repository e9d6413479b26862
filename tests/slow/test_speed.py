"""Quick layers give what torch's own give, and lower precision finds the same. Nothing is timed."""
import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ascent import readout
from config import Job, configure
from tests.seeded import TOY, gradient, on_meta, relative_error, shapes, unet_inputs, weights
from tests.tiny import HOOK
from visualize import measure, run
from weights import quick
from weights.load import load

TOY_WEIGHTS = "weights/toy"


@pytest.fixture(scope="module")
def model():
    return load(TOY_WEIGHTS)


def values_and_gradient(unet):
    z, t, context = unet_inputs()
    z.requires_grad_(True)
    h = unet(z, t, context, until=HOOK)
    return h.detach(), gradient(h, z)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_quick_layers_are_the_plain_ones(monkeypatch):
    """Every convolution as a product, and two transformers that add nothing, which are skipped: values and the latent's
    gradient. No name, shape or tensor changes, and weights that collect gradients take torch's way."""
    monkeypatch.setattr(quick, "FEW", 2 ** 20)
    monkeypatch.setattr(quick, "MANY", 0)
    plain, silent = on_meta("unet", TOY["unet"]), ("down_blocks.0.attentions.1", HOOK)
    numbers = weights(shapes(plain))
    numbers |= {name: torch.zeros_like(numbers[name]) for hook in silent for name in numbers
                if name.startswith(f"{hook}.proj_out.")}
    plain.load_state_dict(numbers, assign=True)
    unet, products, ran, apply = quick.quicken(copy.deepcopy(plain)), [], [], quick.Product.apply
    monkeypatch.setattr(quick.Product, "apply", lambda *args: products.append(args[1].shape) or apply(*args))
    for name in unet.hook_points:
        if "attentions" in name:
            block = unet.get_submodule(name).transformer_blocks[0]
            block.register_forward_hook(lambda *_, name=name: ran.append(name))
    assert shapes(unet) == shapes(plain) and unet.hook_points == plain.hook_points
    collecting = values_and_gradient(unet)
    assert not products and set(silent) <= {*ran}
    ran.clear()
    frozen = values_and_gradient(unet.requires_grad_(False))
    assert 9 * 224 in {shape[1] for shape in products}
    assert not {*silent} & {*ran} and "down_blocks.0.attentions.0" in ran
    for a, b, c in zip(values_and_gradient(plain), collecting, frozen):
        assert torch.equal(a, b) and relative_error(c, a) <= 1e-5
    unet.get_submodule(HOOK).proj_out.bias[0] = 1e-3            # one number that is not 0
    assert not torch.equal(values_and_gradient(unet)[0], frozen[0]) and HOOK in ran


def test_bfloat16_finds_the_same(model):
    """Final activation, measured in float32, and the verdicts."""
    config = configure(model.settings, num_steps=10, prior="noise", finish=False)
    jobs = [Job("feature", model.settings["feature"], 600, seed=s) for s in (1024, 1111)]
    found = [run(net, jobs, config) for net in (model, load(TOY_WEIGHTS, "cpu", torch.bfloat16))]
    reached = [measure(model, torch.stack([r.latent for r in results]), jobs, config)[0].mean() for results in found]
    assert [r.verdict for r in found[0]] == [r.verdict for r in found[1]] and reached[1] >= 0.9 * reached[0]


def test_one_row_of_the_sae_needs_no_matrix_product(model):
    h = torch.randn(1, model.sae.b_dec.numel(), 4, 4)
    with FlopCounterMode(display=False) as one:
        readout(model, h, [Job("feature", 3)])
    with FlopCounterMode(display=False) as every:
        model.sae.linear(h.flatten(2).transpose(1, 2))
    assert one.get_total_flops() == 0 and every.get_total_flops() == 2 * 16 * h.shape[1] * model.sae.features
