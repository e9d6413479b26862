"""Every layout in which Stable Diffusion 1.x is passed around loads to identical tensors.

The lists of real names are fixtures: keys_sd14.txt holds part, name and shape of every tensor of SD 1.4's folder,
keys_ldm_sd14.txt, line for line, name and shape of the same tensor in the original single file. At SD's size headers
alone are compared; a model of the same structure and few numbers is written in each layout and loaded.
"""
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from weights import load as loading
import featviz
from weights import layouts
from weights.load import BPE_FILE, find, load
from weights.disk import WeightsError
from weights.layouts import BUFFERS, COUNTERS, LEGACY_ATTENTION, ldm_name, modern_name
from weights.tensors import Entry
from tests import clip_vocab
from tests.seeded import FIXTURES
from tests.test_checkpoint import check_message, networks
from tests.tiny import CONFIGS, PATHS, edit_json, edit_tensors, tensors, write_model
from weights import convert

SMALL = {   # SD's structure: the same 1130 names, widths that change where SD's do
    "unet": CONFIGS["unet"] | dict(block_out_channels=[8, 16, 24, 24]),
    "vae": CONFIGS["vae"] | dict(block_out_channels=[8, 16, 24, 24], layers_per_block=2, scaling_factor=0.18215),
    "text_encoder": CONFIGS["text_encoder"] | dict(vocab_size=49408, num_hidden_layers=12),
}
PARTS, WIDTH = tuple(SMALL), dict(d_in=24)                      # of the SAE
EMA_SEED, POSITIONS = 7, "text_model.embeddings.position_ids"


def real_names():
    """[(part, name, shape, name in the single file, shape there)] of SD 1.4's 1130 tensors."""
    shape = lambda text: tuple(int(n) for n in text.split("x"))
    out = []
    for ours, theirs in zip(*((FIXTURES / f).read_text().splitlines() for f in ("keys_sd14.txt", "keys_ldm_sd14.txt")),
                            strict=True):
        (part, name, size), (other, other_size) = ours.split(), theirs.split()
        out.append(("text_encoder" if part == "clip_text" else part, name, shape(size), other, shape(other_size)))
    return out


NAMES = real_names()
THERE = {(part, name.removeprefix("text_model.")): other for part, name, _, other, _ in NAMES}


# --- real names, SD's size --------------------------------------------------------------------------------------------

def test_every_name_of_the_single_file_is_that_of_the_real_one():
    assert len(NAMES) == 1130
    for part, name, shape, other, other_shape in NAMES:
        if part == "text_encoder":
            assert other == layouts.PREFIX[part] + name
        else:
            assert ldm_name(part, name) == other
        squeezed = layouts.squeezes(part, other) and layouts.squeezes(part, name) and other_shape == (*shape, 1, 1)
        assert other_shape == shape or squeezed


def real_single(copies):
    """Header of the real single file, `emaonly` or (copies) full, in half precision."""
    shapes = {other: shape for *_, other, shape in NAMES}
    shapes |= {name: (1000,) for name in BUFFERS} | {name: () for name in COUNTERS}
    shapes["cond_stage_model.transformer.text_model.embeddings.position_ids"] = (1, 77)
    if copies:
        shapes |= {"model_ema." + name.removeprefix("model.").replace(".", ""): shape for name, shape in shapes.items()
                   if name.startswith("model.diffusion_model.")}
    return {name: Entry(name, "I64" if "position_ids" in name else "F16", shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("copies, ema", [(False, False), (True, False), (True, True)])
def test_the_real_single_file_fits_sd_s_networks(copies, ema, monkeypatch, tmp_path):
    header = real_single(copies)
    assert len(header) == (1831 if copies else 1145)            # the published files have as many
    monkeypatch.setattr(loading, "read_header", lambda path: header)
    (path := tmp_path / "v1-5.safetensors").touch()
    sources, taken = loading.find_single(path, ema)
    assert {part: len(source.entries)
            for part, source in sources.items()} == {"unet": 686, "vae": 248, "text_encoder": 196}
    assert ("moving average of the UNet (model_ema.*)" in taken) == ema
    assert ("--ema takes that" in taken) == (copies and not ema)


@pytest.mark.parametrize("layout", ["modern", "legacy", "legacy 4-D", "modern 4-D", "no prefix"])
def test_the_real_folders_fit_sd_s_networks(layout, tmp_path):
    back = {new: old for old, new in LEGACY_ATTENTION.items()}
    for part, network in zip(PARTS, (loading.UNet, loading.VAE, loading.TextEncoder)):
        header = {}
        for owner, name, shape, *_ in NAMES:
            if owner == part:
                if "4-D" in layout and layouts.squeezes(part, name):
                    shape = (*shape, 1, 1)
                key = older(name, back) if "legacy" in layout and part == "vae" else name
                key = key.removeprefix("text_model.") if layout == "no prefix" else key
                header[key] = Entry(key, "F32", shape)
        if part == "text_encoder" and layout != "no prefix":
            header[POSITIONS] = Entry(POSITIONS, "I64", (1, 77))
        net = loading.skeleton(network, {}, part)
        source = loading.fit(net, tmp_path, header, part, rename=lambda name: modern_name(part, name))
        assert source.entries.keys() == net.state_dict().keys()
    assert sum(name.split(".")[-2] in LEGACY_ATTENTION for name in map(lambda n: older(n[1], back), NAMES)) == 16


def older(name, back):
    """The VAE attention's name before 2023."""
    if ".mid_block.attentions.0." not in name or "transformer_blocks" in name:
        return name
    for new, old in back.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


# --- small files in every layout --------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder as diffusers writes it today, with CLIP's tokenizer."""
    folder = write_model(tmp_path_factory.mktemp("layouts") / "sd", tokenizer=None, sae=WIDTH, **SMALL)
    (folder / "tokenizer").mkdir()
    clip_vocab.write(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def reference(whole):
    return load(whole)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "sd")


def loaded(model):
    return {(part, name): tensor for part, net in networks(model).items() if part in PARTS
            for name, tensor in net.state_dict().items()}


def identical(model, reference):
    ours, theirs = loaded(model), loaded(reference)
    assert ours.keys() == theirs.keys() and len(ours) == 1130
    for key in theirs:
        assert torch.equal(ours[key], theirs[key]), key
    assert model.tokenizer.vocab == reference.tokenizer.vocab and model.tokenizer.ranks == reference.tokenizer.ranks


def rename(path, change):
    path.rename(path.with_name(path.name.replace(*change)))


def four_d(part):
    return lambda found: {k: v[:, :, None, None] if layouts.squeezes(part, k) and v.ndim == 2 else v
                          for k, v in found.items()}


def legacy(found):
    back = {new: old for old, new in LEGACY_ATTENTION.items()}
    return {older(k, back): v for k, v in found.items()}


def prefixed(found):
    return {"text_model." + k: v
            for k, v in found.items()} | {"text_model.embeddings.position_ids": torch.arange(77)[None]}


def older_writer(folder):
    """A header that is not padded, holds the format's name and lists tensors in no order, as files from 2022 do."""
    path = folder / PATHS["vae"][1]
    found = load_file(path)
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name in sorted(found, key=hash):
        data = found[name].numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(found[name].shape),
                        "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (3 - len(text) % 8 if len(text) % 8 < 3 else 11 - len(text) % 8)
    assert len(text) % 8 == 3
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


LAYOUTS = {
    "VAE of 2022, names before 2023": lambda f: edit_tensors(f / PATHS["vae"][1], legacy),
    "VAE of 2022, 1x1 convolutions": lambda f: edit_tensors(f / PATHS["vae"][1], lambda x: legacy(four_d("vae")(x))),
    "VAE of today, 1x1 convolutions": lambda f: edit_tensors(f / PATHS["vae"][1], four_d("vae")),
    "text encoder with prefix and position_ids": lambda f: edit_tensors(f / PATHS["text_encoder"][1], prefixed),
    "published configs, with more keys and fewer": lambda f: (
        edit_json(f / "vae/config.json", scaling_factor=None, _class_name="FlaxAutoencoderKL", sample_size=512),
        edit_json(f / "unet/config.json", _class_name="FlaxUNet2DConditionModel",
                  down_block_types=["FlaxDownBlock2D"] * 4)),
    "header of an older writer": older_writer,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_load_to_identical_tensors(layout, folder, reference):
    LAYOUTS[layout](folder)
    identical(load(folder), reference)


@pytest.mark.parametrize("dtype, suffix",
                         [(torch.float16, ""), (torch.bfloat16, ""), (torch.float16, ".fp16"),
                          (torch.bfloat16, ".bf16")])
def test_half_precision_folders_and_variants(dtype, suffix, folder, reference):
    """Every number is the full one, rounded; as float32 and as the file's own type."""
    for part in PARTS:
        path = folder / PATHS[part][1]
        edit_tensors(path, lambda x: {k: v.to(dtype) for k, v in x.items()})
        rename(path, (".safetensors", f"{suffix}.safetensors"))
    full = loaded(reference)
    for ours in (load(folder), load(folder, dtype=dtype)):
        for key, tensor in loaded(ours).items():
            assert torch.equal(tensor.float(), full[key].to(dtype).float()), key
    assert load(folder, dtype=dtype).unet.conv_in.weight.dtype == dtype


def test_full_precision_is_preferred(folder, reference):
    for part in PARTS:
        path = folder / PATHS[part][1]
        half = {k: v.half() for k, v in load_file(path).items()}
        save_file(half, path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    identical(load(folder), reference)


@pytest.mark.parametrize("version, size, latent",
                         [("0.6.0", 32, 64), ("0.8.1.dev0", 32, 64), ("0.9.0", 32, 32), ("0.10.2", 32, 32),
                          (None, 32, 32), ("0.7.0.dev0", 64, 64), ("0.6.0", 96, 96),
                          ("soon", 32, 32)])
def test_the_latent_size_of_early_configs(version, size, latent, folder):
    """Early SD 1.5 configs say 32; diffusers reads a size below 64 as 64 where the file is older than 0.9."""
    edit_json(folder / "unet/config.json", sample_size=size, **{"_diffusers_version": version} if version else {})
    assert find(folder).latent == (latent, latent)


# --- the single file --------------------------------------------------------------------------------------------------

def single_tensors(whole, copies=False, prefix="text_model."):
    """The small model under the real names of the single file. Its UNet's copies hold other numbers than the plain
    weights."""
    out = {}
    for part in PARTS:
        for name, tensor in load_file(whole / PATHS[part][1]).items():
            other = THERE[part, name]
            out[other if part != "text_encoder" else other.replace("text_model.", prefix)] = \
                tensor[:, :, None, None] if layouts.squeezes(part, other) else tensor
    out |= {name: torch.zeros(1000) for name in BUFFERS} | {name: torch.zeros(()) for name in COUNTERS}
    out[f"cond_stage_model.transformer.{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    if copies:
        out |= {"model_ema." + THERE["unet", name].removeprefix("model.").replace(".", ""): tensor
                for name, tensor in tensors("unet", SMALL["unet"], EMA_SEED).items()}
    return {k: v.contiguous() for k, v in out.items()}


@pytest.fixture
def small_sd(monkeypatch):
    """SD 1.x's sizes are not in a single file; here they are the small model's."""
    for part in PARTS:
        monkeypatch.setitem(layouts.SIZES, part, {k: v for k, v in SMALL[part].items() if k != "sample_size"})


@pytest.fixture
def single(whole, tmp_path, small_sd):
    """A full file with an SAE beside it."""
    path = tmp_path / "v1-5.safetensors"
    save_file(single_tensors(whole, copies=True), path)
    shutil.copytree(write_model(tmp_path / "x", sae=WIDTH) / "sae", tmp_path / "sae")
    return path


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_an_emaonly_file(prefix, whole, reference, tmp_path, small_sd):
    path = tmp_path / "v1-4.safetensors"
    save_file(single_tensors(whole, prefix=prefix), path)
    model = load(path)
    identical(model, reference)
    assert model.name == "v1-4" and "emaonly" in model.note and model.latent_shape == (4, 64, 64)
    assert model.fingerprints.keys() == {"unet/v1-4.safetensors", "tokenizer/" + BPE_FILE.name}
    assert torch.equal(model.embed(["A tree"]), reference.embed(["A tree"]))
    with pytest.raises(WeightsError) as caught:
        load(path, ema=True)
    check_message(caught.value, path, "has no second set of weights (model_ema.*) for --ema", "leave --ema out")


def test_a_full_file_and_the_choice_of_its_weights(single, reference):
    plain, averaged = load(single), load(single, ema=True)
    identical(plain, reference)
    theirs = tensors("unet", SMALL["unet"], EMA_SEED)
    for name, tensor in averaged.unet.state_dict().items():
        assert torch.equal(tensor, theirs[name]) and not torch.equal(tensor, plain.unet.state_dict()[name]), name
    assert torch.equal(averaged.vae.quant_conv.weight, plain.vae.quant_conv.weight)
    assert "not their moving average; --ema takes that" in plain.note and "moving average" in averaged.note
    assert plain.sae.features == 64                             # from beside the file
    assert (plain.name, averaged.name) == ("v1-5",
                                           "v1-5_ema") and plain.fingerprints.keys() != averaged.fingerprints.keys()


def test_a_run_says_which_weights_it_takes_and_keeps_the_results_of_both_apart(single, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(layouts, "LATENT", 8)
    flags = ["--weights", single, "--out", tmp_path / "out", "--device", "cpu", "--feature", 3, "--timestep", 300,
             "--seed", 1, "--num-steps", 1,
             "--prior", "noise"]
    for ema, name, says in (([], "v1-5", "--ema takes that"),
                            (["--ema"], "v1-5_ema", "the moving average of the UNet (model_ema.*)")):
        assert featviz.main([str(a) for a in [*flags, *ema]]) == 0
        assert f"{single}: takes the" in (error := capsys.readouterr().err) and says in error
        record, = (tmp_path / f"out/{name}/feature_00003").glob("t0300*/seed_1.json")
        record = json.loads(record.read_text())["recipe"]
        assert record["weights"] == name and any(name.endswith("v1-5.safetensors") for name in record["fingerprints"])


def without_prefix(start):
    return lambda x: {k: v for k, v in x.items() if not k.startswith(start)}


def test_a_single_file_may_lack_vae_and_text_encoder(single):
    edit_tensors(single, without_prefix(("first_stage_model.", "cond_stage_model.")))
    model = load(single)
    for part in ("vae", "text_encoder", "tokenizer"):
        with pytest.raises(WeightsError):
            getattr(model, part)


KEY, ATTENTION = "model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.encoder.mid.attn_1.q.weight"
COPY = "model_ema.diffusion_modelinput_blocks00weight"
BAD_SINGLE = {   # name: (edit, ema, fragments)
    "a tensor of another kind of model": (lambda x: x | {"control_model.zero.weight": torch.ones(2)}, False,
                                          ("has an unexpected tensor 'control_model.zero.weight'",
                                           "or a folder in diffusers layout")),
    "names of a folder": (lambda x: {"conv_in.weight": torch.ones(2)}, False,
                          ("has an unexpected tensor 'conv_in.weight'",)),
    "no UNet": (without_prefix("model."), False,
                ("lacks tensor 'model.diffusion_model.input_blocks.0.0.bias' and 685 more",)),
    "a tensor of the UNet missing": (without_prefix(KEY), False, (f"lacks tensor '{KEY}'; the file",)),
    "a tensor of the VAE missing": (without_prefix(ATTENTION), False, (f"lacks tensor '{ATTENTION}'; the file",)),
    "a tensor too many": (lambda x: x | {KEY + "s": x[KEY].clone()}, False, (f"has an unexpected tensor '{KEY}s'",)),
    "a level too many in the VAE": (lambda x: x | {"first_stage_model.decoder.up.4.block.0.conv1.bias": torch.ones(8)},
                                    False,
                                    ("has an unexpected tensor 'first_stage_model.decoder.up.4.block.0.conv1.bias'",)),
    "a copy missing": (without_prefix(COPY), True, (f"lacks tensor '{COPY}'",)),
    "a copy too many": (lambda x: x | {COPY + "s": x[COPY].clone()}, True, (f"has an unexpected tensor '{COPY}s'",)),
    "text under two names": (lambda x: x
                             | {k.replace("text_model.", ""): v.clone() for k, v in x.items()
                                if k.endswith("final_layer_norm.bias")},
                             False, ("holds 'final_layer_norm.bias' twice",)),
    "transposed": (lambda x: x | {KEY: x[KEY].transpose(0, 1).contiguous()}, False,
                   (f"{KEY} has shape [4, 8, 3, 3], expected [8, 4,",)),
    "SD 2's projections": (lambda x: {k: v[..., 0, 0].contiguous() if ".proj_in.weight" in k else v
                                      for k, v in x.items()}, False,
                           ("1.1.proj_in.weight has shape [8, 8], expected [8, 8, 1, 1]",)),
    "integers": (lambda x: x | {KEY: x[KEY].int()}, False, (f"{KEY} holds I32",)),
}


@pytest.mark.parametrize("name", BAD_SINGLE)
def test_a_bad_single_file_is_refused_in_one_line(name, single):
    change, ema, fragments = BAD_SINGLE[name]
    edit_tensors(single, change)
    with pytest.raises(WeightsError) as caught:
        load(single, ema=ema)
    check_message(caught.value, single, *fragments)


def test_nan_in_a_single_file_is_named_by_check(single):
    edit_tensors(single, lambda x: x | {KEY: x[KEY] * float("nan")})
    with pytest.raises(WeightsError) as caught:
        load(single).check_numbers()
    check_message(caught.value, single, "conv_in.weight holds NaN or infinite values")


@pytest.mark.parametrize("name, says", [("sd.ckpt", "is a pickle, which can run code when it is read; python "
                                                    "weights/convert.py"),
                                        ("sd.bin", "is a pickle"),
                                        ("sd.gguf", "is no model folder and no .safetensors file")])
def test_other_single_files(name, says, tmp_path):
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(WeightsError) as caught:
        load(tmp_path / name)
    check_message(caught.value, tmp_path / name, says)


def test_ema_of_a_folder(whole):
    with pytest.raises(WeightsError) as caught:
        load(whole, ema=True)
    check_message(caught.value, whole, "--ema chooses between two sets of weights in a single file", "leave it out")


# --- pickles, converted -----------------------------------------------------------------------------------------------

class Callback:
    """Stands for the objects of a training framework that checkpoints carry along."""


def test_a_pickled_folder_is_refused_and_converted(folder, reference, tmp_path, capsys):
    for part, stem in convert.PICKLE_STEM.items():
        path = folder / PATHS[part][1]
        torch.save({k: v.clone() for k, v in load_file(path).items()}, path.with_name(stem + ".bin"))
        path.unlink()
    with pytest.raises(WeightsError) as caught:
        load(folder)
    check_message(caught.value, folder, "diffusion_pytorch_model.bin: is a pickle",
                  f"convert.py {folder} {folder}_converted")
    assert convert.main([str(folder), str(tmp_path / "new")]) == 0 and capsys.readouterr().out.count("\n") == 3
    identical(load(tmp_path / "new"), reference)
    assert load(tmp_path / "new").sae.features == 64 and not list((tmp_path / "new").rglob("*.bin"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_single_file_with_objects_in_it_is_converted(zipped, whole, reference, tmp_path, small_sd,
                                                               monkeypatch, capsys):
    """The objects' classes are not there when it is converted, and nothing of theirs runs."""
    path, out = tmp_path / "sd.ckpt", tmp_path / "sd.safetensors"
    held = {"state_dict": single_tensors(whole), "global_step": 470_000,
            "callbacks": {Callback: Callback()} if zipped else {}}
    torch.save(held, path, _use_new_zipfile_serialization=zipped)
    monkeypatch.setattr(Callback, "__setstate__", lambda *_: pytest.fail("ran"), raising=False)
    monkeypatch.setattr(Callback, "__init__", lambda *_: pytest.fail("ran"))
    assert convert.main([str(path), str(out)]) == 0 and "1145 tensors" in capsys.readouterr().out
    identical(load(out), reference)


class Payload:
    def __reduce__(self):
        import os
        return os.mkdir, ("ran",)


BAD_PICKLES = {
    "a page": (b"<html>" * 100, "is no whole file of torch.save"),
    "empty": (b"", "is no whole file of torch.save"),
    "cut": (lambda data: data[:-300], "is no whole file of torch.save"),
    "cut early": (lambda data: data[:100], "is no whole file of torch.save"),
    "code": (lambda data: Payload(), "would call posix.mkdir when it is read as a pickle; that is no file of weights"),
    "a list": (lambda data: [1, 2], "holds no tensors by name"),
    "no tensors": (lambda data: {"state_dict": {"a": 1}}, "holds no tensors by name"),
    "NaN": (lambda data: {"a": torch.tensor([float("nan")])}, "a holds NaN or infinite values"),
    "complex": (lambda data: {"a": torch.ones(2, dtype=torch.complex64)},
                "a holds torch.complex64, which has no place"),
}


@pytest.mark.parametrize("name", BAD_PICKLES)
def test_bad_pickles_end_in_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    damage, says = BAD_PICKLES[name]
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.ones(100)}}, path)
    value = damage(path.read_bytes()) if callable(damage) else damage
    path.write_bytes(value) if isinstance(value, bytes) else torch.save(value, path)
    assert convert.main([str(path), str(tmp_path / "a.safetensors")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("convert: ") and error.count("\n") == 1 and says in error, error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ckpt"]


@pytest.mark.parametrize("source, target, says",
                         [("none", "b.safetensors", "cannot be read"), ("a.ckpt", "b.bin", "give OUT the suffix"),
                          ("a.ckpt", "a.ckpt", "exists already"),
                          (".", "b", "holds no pickled network")])
def test_convert_s_own_refusals(source, target, says, tmp_path, capsys):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.ckpt")
    assert convert.main([str(tmp_path / source), str(tmp_path / target)]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "b").exists()
