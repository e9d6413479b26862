"""Quick layers give what torch's own give; an ascent runs and reads no more than it needs; lower precision finds the
same. Nothing is timed."""
import copy
import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench import speed, ways
from weights import quick, tensors
from weights.disk import WeightsError
from weights.load import load
from config import Job, configure
from ascent import ascend, measure, readout, visualize
from weights.tensors import read_header
from tests.seeded import TOY, gradient, on_meta, randn, relative_error, shapes, unet_inputs, weights
from tests.test_checkpoint import check_message, networks
from tests.tiny import HOOK, PATHS, edit_tensors, write_model
from toyworld.judge import load_judge
from unet import GEGLU

TOY_WEIGHTS = "weights/toy"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(one_thread):
    return load(TOY_WEIGHTS)


def values_and_gradient(unet):
    z, t, context = unet_inputs()
    z.requires_grad_(True)
    h = unet(z, t, context, until=HOOK)
    return h.detach(), gradient(h, z)


@pytest.mark.parametrize("few", ["as measured", "every convolution a product"])
def test_quick_layers_are_the_plain_ones(few, monkeypatch):
    """Values and the latent's gradient; no name, shape or tensor changes, and weights that collect gradients take
    torch's way."""
    if few != "as measured":
        monkeypatch.setattr(quick, "FEW", 2 ** 20)
        monkeypatch.setattr(quick, "MANY", 0)
        monkeypatch.setattr(quick, "LARGE", 0)
    plain = on_meta("unet", TOY["unet"])
    plain.load_state_dict(weights(shapes(plain)), assign=True)
    unet, products, apply = quick.quicken(copy.deepcopy(plain)), [], quick.Product.apply
    monkeypatch.setattr(quick.Product, "apply", lambda *args: products.append(args[1].shape) or apply(*args))
    assert shapes(unet) == shapes(plain) and unet.hook_points == plain.hook_points
    collecting, none = values_and_gradient(unet), len(products)
    frozen = values_and_gradient(unet.requires_grad_(False))
    assert none == 0 < len(products) and (9 * 224 in {shape[1] for shape in products}) == (few != "as measured")
    for a, b, c in zip(values_and_gradient(plain), collecting, frozen):
        print(few, relative_error(c, a))
        assert torch.equal(a, b) and relative_error(c, a) <= 1e-5


def test_a_transformer_that_adds_nothing_is_passed_by():
    """Values and gradient are the same; one number that is not 0 and it is at work again."""
    plain = on_meta("unet", TOY["unet"])
    plain.load_state_dict(weights(shapes(plain)), assign=True)
    for silent in ("down_blocks.0.attentions.1", HOOK):
        for parameter in plain.get_submodule(silent).proj_out.parameters():
            nn.init.zeros_(parameter)
    plain.requires_grad_(False)
    unet, ran = quick.quicken(copy.deepcopy(plain)), []
    for name in unet.hook_points:
        if "attentions" in name:
            block = unet.get_submodule(name).transformer_blocks[0]
            block.register_forward_hook(lambda *_, name=name: ran.append(name))
    found = values_and_gradient(unet)
    assert {"down_blocks.0.attentions.1", HOOK}.isdisjoint(ran) and "down_blocks.0.attentions.0" in ran
    with torch.no_grad():
        unet.get_submodule(HOOK).proj_out.bias[0] = 1e-3
    changed = values_and_gradient(unet)
    assert HOOK in ran and not torch.equal(changed[0], found[0])
    for a, b in zip(values_and_gradient(plain), found):
        assert relative_error(b, a) <= 1e-5


@pytest.mark.parametrize("stride, kernel, shape", [(1, 3, (2, 5, 7)), (2, 3, (1, 6, 4)), (1, 1, (3, 3, 5))])
def test_a_convolution_as_a_product(stride, kernel, shape, monkeypatch):
    """Maps that are not square, more than one row; a stride of 2 stays torch's."""
    monkeypatch.setattr(quick, "MANY", 0)
    B, h, w = shape
    plain = nn.Conv2d(6, 10, kernel, stride=stride, padding=kernel // 2).requires_grad_(False)
    x = randn(B, 6, h, w, seed=1).requires_grad_(True)
    y, reference = quick.Conv2d(plain)(x), plain(x)
    assert relative_error(y, reference) <= 1e-5 and relative_error(gradient(y, x), gradient(reference, x)) <= 1e-5


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_halves_of_a_large_gated_unit_are_not_kept(dtype, onednn, monkeypatch):
    """Not even on a processor whose oneDNN lacks the precision; what is kept is x, not what is 8 times as wide."""
    monkeypatch.setattr(quick, "LARGE", 0)
    if not onednn:
        monkeypatch.setattr(quick, "quick", lambda x, weight: False)
    plain = GEGLU(8, 32).to(dtype).requires_grad_(False)
    x, kept = randn(2, 5, 8, seed=1).to(dtype).requires_grad_(True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.shape) or saved, lambda saved: saved):
        y = quick.GEGLU(plain)(x)
    reference = plain(x)
    assert sorted(kept) == [(2, 5, 8), (64,), (64, 8)]
    close = 1e-5 if dtype == torch.float32 else 2e-2
    assert relative_error(y, reference) <= close and relative_error(gradient(y, x), gradient(reference, x)) <= close


def test_a_whole_ascent_is_that_of_the_plain_path(model, monkeypatch):
    config = configure(model.settings, num_steps=5, prior="noise")
    jobs = [Job(model.settings["feature"], 600, seed=s) for s in (1, 2)]
    steps = list(ascend(model, jobs, config))
    monkeypatch.setattr(quick, "quick", lambda x, weight: False)
    for a, b in zip(steps, ascend(model, jobs, config)):
        assert relative_error(a.hook, b.hook) <= 1e-5 and relative_error(a.after, b.after) <= 1e-5


def test_the_originals_way_climbs_the_same(model):
    """The bench compares costs of one and the same computation: equal activations, step by step, of two features that
    are not silent (silent ones stay there in the original)."""
    config = configure(model.settings, num_steps=4, prior="noise")
    jobs = [Job(feature=f, timestep=600, seed=s) for f, s in ((4, 1024), (48, 1111))]
    again = list(ways.ours(model, jobs, config))                # first, so that layers which are read late are there
    for theirs, ours in zip(ways.original(model, jobs, config), again):
        assert torch.allclose(theirs, ours, rtol=1e-4, atol=1e-6) and ours.min() > 0
    assert all(p.grad is None and not p.requires_grad for net in (model.unet, model.sae) for p in net.parameters())


def test_bfloat16_finds_the_same(model):
    """Final activation, measured in float32, and what the judge sees in the pictures."""
    half, judge = load(TOY_WEIGHTS, dtype=torch.bfloat16), load_judge(TOY_WEIGHTS)
    jobs = [Job(model.settings["feature"], 600, seed=s) for s in (1024, 1111)]
    seen, reached = [], []
    for net in (model, half):
        results = visualize(net, jobs, configure(model.settings, num_steps=20, prior="noise"), batch_size=2)
        reached.append(measure(model, torch.stack([r.latent for r in results]), jobs)[0].mean().item())
        seen.append(judge.verdict(torch.stack([r.image for r in results]))[0].tolist())
    print(reached, seen)
    assert seen[0] == seen[1] and reached[1] >= 0.9 * reached[0]


# --- arithmetic -------------------------------------------------------------------------------------------------------

def test_operations_of_full_size():
    """Exit at the hook, frozen weights: 790 GFLOP; weights that collect gradients cost the forward pass's layers once
    more."""
    unet, shape = on_meta("unet"), (4, 64, 64)
    (forward, maps), (step, _) = (ways.count(unet, shape, backward=b) for b in (False, True))
    whole, collecting = ways.count(unet, shape, until=None,
                                   backward=False)[0], ways.count(unet, shape, collecting=True)[0]
    assert 370e9 < forward < 372e9 and 788e9 < step < 791e9 and whole > 2 * forward
    assert collecting - step == pytest.approx(forward - maps, rel=0.01)


def test_operations_of_the_encoder_of_full_size():
    """What --space pixel adds to a step: 2,268 GFLOP, 2.9 times the step itself."""
    assert 2266e9 < ways.count_encoder(on_meta("vae"), (4, 64, 64)) < 2270e9


def test_one_row_of_the_sae_needs_no_matrix_product(model):
    h = torch.randn(1, model.sae.b_dec.numel(), 4, 4)
    with FlopCounterMode(display=False) as one:
        readout(model, h, [Job(3)])
    with FlopCounterMode(display=False) as every:
        model.sae.linear(h.flatten(2).transpose(1, 2))
    assert one.get_total_flops() == 0 and every.get_total_flops() == 2 * 16 * h.shape[1] * model.sae.features


# --- reading no more than is needed -----------------------------------------------------------------------------------

@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "tiny")


def ascent(model, **changes):
    config = dataclasses.replace(configure(model.settings, num_steps=2, prior="noise"), **changes)
    return [step.after for step in ascend(model, [Job(3, 300)], config)]


def converted(folder):
    """The model in bfloat16 with every number read, as a model that reads late must come out."""
    model = load(folder, dtype=torch.bfloat16)
    model.parts = model.parts | networks(model)
    return model


def names_of(unet, there):
    return {name for name, p in unet.named_parameters() if p.is_meta != there}


def test_what_a_hook_point_needs_is_what_is_converted(folder):
    """Of every hook point: what runs up to it, and nothing after it."""
    whole, ran = load(folder).unet, []
    for name, module in whole.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    for hook_point in whole.hook_points:
        ran.clear()
        whole(torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 77, 16), until=hook_point)
        unet = load(folder, dtype=torch.bfloat16).unet
        unet(torch.randn(1, 4, 8, 8).bfloat16(), torch.tensor([5]), torch.randn(1, 77, 16).bfloat16(), until=hook_point)
        assert names_of(unet, there=True) == {name for name in whole.state_dict() if name.rpartition(".")[0] in ran}


def test_a_converted_ascent_reads_the_unet_up_to_the_hook(folder):
    model, whole = load(folder, dtype=torch.bfloat16), converted(folder)
    assert all(torch.equal(a, b) for a, b in zip(ascent(model), ascent(whole)))
    there = names_of(model.unet, there=True)
    assert "up_blocks.1.attentions.1.proj_out.weight" in there and "up_blocks.1.resnets.2.conv1.weight" not in there
    z, t, text = torch.randn(1, *model.latent_shape).bfloat16(), torch.tensor([5]), model.embed(["a"])
    assert torch.equal(model.unet(z, t, text), whole.unet(z, t, text)) and torch.equal(text, whole.embed(["a"]))
    assert not names_of(model.unet, there=False) and {p.dtype for p in model.unet.parameters()} == {torch.bfloat16}
    assert not any(module._forward_pre_hooks for module in model.unet.modules()
                   if list(module.parameters(recurse=False)))


def test_a_late_layer_looks_at_itself_alone(folder, monkeypatch):
    """The file is opened once for each module that runs, though every tensor is converted; each is asked for once."""
    opened, read = [], []
    monkeypatch.setattr(tensors, "opened", lambda path, open=tensors.opened: opened.append(path) or open(path))
    monkeypatch.setattr(tensors, "read_one", lambda path, name, *rest, one=tensors.read_one:
                        read.append(name) or one(path, name, *rest))
    model = load(folder, dtype=torch.bfloat16)
    opened.clear()
    z, text = torch.randn(1, *model.latent_shape).bfloat16(), torch.randn(1, 77, 16).bfloat16()
    model.unet(z, torch.tensor([5]), text)
    assert sorted(read) == sorted(model.unet.state_dict()) and len(opened) == len(model.unet.hook_points) + 3


def test_a_model_from_half_precision_files_reads_late_and_right(folder):
    for part in ("unet", "vae", "text_encoder"):
        edit_tensors(folder / PATHS[part][1], lambda tensors: {k: v.half() for k, v in tensors.items()})
    model, whole = load(folder), load(folder)
    whole.parts = whole.parts | networks(whole)
    assert all(p.is_meta for net in (model.unet, model.vae) for p in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(ascent(model), ascent(whole)))
    z = torch.randn(1, *model.latent_shape)
    images = whole.decode(z)
    assert torch.equal(model.decode(z), images) and torch.equal(model.encode(images), whole.encode(images))


def test_all_headers_are_checked_however_little_is_read(folder):
    edit_tensors(folder / PATHS["vae"][1], lambda x: {k: v for k, v in x.items() if k != "quant_conv.bias"})
    with pytest.raises(WeightsError, match="lacks tensor 'quant_conv.bias'"):
        load(folder)


def test_a_file_that_changed_before_it_was_read_to_the_end(folder):
    model = load(folder, dtype=torch.bfloat16)
    ascent(model)
    edit_tensors(folder / PATHS["unet"][1], lambda x: {k: 2 * v for k, v in x.items()})
    with pytest.raises(WeightsError) as caught:
        model.unet(torch.randn(1, *model.latent_shape).bfloat16(), torch.tensor([5]), model.embed([""]))
    check_message(caught.value, folder / PATHS["unet"][1], "was changed while it was in use", "start again")


def test_no_nan_is_converted_late_either(folder):
    edit_tensors(folder / PATHS["unet"][1], lambda x: x | {"conv_out.bias": x["conv_out.bias"] * float("nan")})
    model = load(folder, dtype=torch.bfloat16)
    ascent(model)
    for _ in range(2):                                          # refused each time, never half read
        with pytest.raises(WeightsError, match="conv_out.bias holds NaN"):
            model.unet(torch.randn(1, *model.latent_shape).bfloat16(), torch.tensor([5]), model.embed([""]))


# --- the bench --------------------------------------------------------------------------------------------------------

def test_the_bench_runs_and_prints_its_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "TOY", write_model(tmp_path / "tiny"))
    monkeypatch.setattr(ways, "rates", lambda device, dtype: {"torch": 1e11})
    sections = "step,growth,space,paper,table"
    speed.main(["--toy", "--quick", "--device", "cpu", "--only", sections, "--out", str(tmp_path)])
    stored, printed = json.loads((tmp_path / "speed_cpu.json").read_text()), capsys.readouterr().out
    assert {(r["way"], r["dtype"])
            for r in stored["step"]["toy"]["rows"]} >= {("original", "float32"), ("ours", "float32"),
                                                        ("ours", "bfloat16")}
    latent, pixel = stored["space"]["toy"]["rows"]
    assert (latent["way"], pixel["way"]) == ("ours", "pixel") and latent["operations"] < pixel["operations"]
    assert "| toy | pixels / latent | " in printed
    growth = stored["growth"]["toy"]
    assert [n for n, _ in growth["batch"]] == [1, 2] and growth["processes"][0][0] == 1
    assert all(seconds > 0 for rows in growth.values() for _, seconds in rows)
    assert "| 1 | ours | float32 |" in printed and "409,600 jobs" in printed and stored["paper"]["jobs"] == 409600


def test_full_size_weights_are_a_folder_that_loads(tmp_path, monkeypatch):
    """The writer, at small sizes."""
    small = {"unet": dict(block_out_channels=[16, 16, 32, 32], cross_attention_dim=16, attention_head_dim=2,
                          norm_num_groups=8),
             "vae": dict(block_out_channels=[8, 8, 16], layers_per_block=1, norm_num_groups=4),
             "text_encoder": dict(hidden_size=16)}
    nets = {ways.UNet: "unet", ways.VAE: "vae", ways.TextEncoder: "text_encoder"}
    monkeypatch.setattr(ways, "skeleton", lambda network, sizes, path, build=ways.skeleton: build(
        network, small[nets[network]] if network in nets else sizes, path))
    monkeypatch.setattr(ways, "SAE_CONFIG", ways.SAE_CONFIG | {"d_in": 32, "num_latents": 64})
    folder = ways.write_full(tmp_path / "random")
    assert read_header(folder / PATHS["unet"][1])["conv_in.weight"].shape == (16, 4, 3, 3)
    vocab = json.loads((folder / "tokenizer/vocab.json").read_text(encoding="utf-8"))
    assert len(vocab) == 49408 and ways.write_full(folder) == folder
