"""Models as people hold them -> the one folder that load reads: identical tensors, or one line that names the cause.

tests/test_saes.py converts SAEs.
"""
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import clip_vocab
from tests.layouts import EMA_SEED, FOUR_D, LEGACY, NAMES, SMALL, WIDTH, legacy, single_tensors, tokenizer_json
from tests.tiny import PATHS, edit_json, edit_tensors, tensors, write_model
from weights import convert
from weights.load import NETWORKS, WeightsError, load

UNET = "model.diffusion_model."
KEY = UNET + "input_blocks.0.0.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder as diffusers writes it today, with CLIP's tokenizer."""
    folder = write_model(tmp_path_factory.mktemp("layouts") / "sd", tokenizer=None, sae=WIDTH, **SMALL)
    (folder / "tokenizer").mkdir()
    clip_vocab.write(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def single(whole):
    return single_tensors(whole)


@pytest.fixture(autouse=True)
def small_sd(monkeypatch):
    """SD 1.x's sizes are not in a single file; here they are the small model's."""
    for part in SMALL:
        monkeypatch.setitem(convert.SIZES, part, SMALL[part])


def save(path, found):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous().clone() for k, v in found.items()}, path)
    else:
        torch.save({k: v.clone() for k, v in found.items()}, path)
    return path


def identical(made, whole):
    """The converted folder loads, with the same tensors; the model."""
    for part in SMALL:
        ours, theirs = load_file(made / PATHS[part][1]), load_file(whole / PATHS[part][1])
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in theirs), part
    return load(made, "cpu")


def respelt(change):
    """Change the names of the VAE's attention in a single file."""
    def new_name(name):
        start, inside, rest = name.partition(".mid.attn_1.")
        old = rest.rpartition(".")[0]
        return f"{start}{inside}{change[old]}{rest.removeprefix(old)}" if old in change else name
    return lambda found: {new_name(name): t for name, t in found.items()}


def squeezed(found):
    return {k: v.reshape(v.shape[:2]) if v.ndim == 4 and v.shape[2:] == (1, 1) else v for k, v in found.items()}


def unsqueezed(found):
    """Every matrix of the VAE's attention as a 1x1 convolution, every bias with two axes more."""
    return {k: v[..., None, None] if ".mid.attn_1." in k and v.ndim < 4 and ".norm" not in k else v
            for k, v in found.items()}


def beginning(part, new):
    old = {"unet": UNET, "vae": "first_stage_model.", "text": "cond_stage_model.transformer.text_model."}[part]
    return lambda found: {new + k.removeprefix(old) if k.startswith(old) else k: v for k, v in found.items()}


STRAY = {
    "cond_stage_model.logit_scale": torch.tensor(4.6), "cond_stage_model.text_projection": torch.eye(16),
    "cond_stage_model.transformer.text_projection.weight": torch.eye(16), "logvar": torch.zeros(1000),
    "scale_factor": torch.tensor(0.18215), "embedding_manager.embedder.string_to_param_dict.*": torch.zeros(1, 16),
    "first_stage_model.loss.logvar": torch.zeros(()), "first_stage_model.model_ema.decay": torch.zeros(()),
    "optimizer_states.0": torch.zeros(3), "lvlb_weights": torch.zeros(1000), "control_model.x.weight": torch.ones(2),
}
PIPELINE = (beginning("vae", "vae."), beginning("unet", "unet."), beginning("text", "text_encoder.text_model."))
SINGLES = {     # name: changes of the single file's tensors, one after another
    "as published, and tensors that no network reads": [lambda x: x | STRAY],
    "attention as folders name it, matrices; shorter beginnings": [
        respelt({"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}), squeezed,
        beginning("text", "cond_stage_model.transformer."), beginning("unet", "diffusion_model.")],
    "attention as folders named it before 2023, biases with more axes; text below another name": [
        respelt({"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"}), unsqueezed,
        beginning("text", "cond_stage_model.transformer.transformer.text_model.")],
    "attention of two times, every 1x1 convolution a matrix; parts by the names of a pipeline": [
        respelt({"q": "to_q", "k": "to_k", "v": "value", "proj_out": "to_out"}), squeezed, *PIPELINE],
}


def test_the_rules_give_the_real_names_of_all_1130_tensors():
    """Real names and shapes of SD 1.4's folder and of its single file."""
    assert len(NAMES) == 1130
    for part, network in NETWORKS.items():
        shapes = {name.removeprefix("text_model."): shape for owner, name, shape, *_ in NAMES if owner == part}
        there = {other: torch.empty(shape, device="meta") for owner, *_, other, shape in NAMES if owner == part}
        net = convert.on_meta(network, {}, part)
        assert shapes == {name: tuple(p.shape) for name, p in net.state_dict().items()}
        found, _ = convert.find_part(part, there, shapes)
        assert found == {name.removeprefix("text_model."): other for owner, name, _, other, _ in NAMES if owner == part}
    assert len(FOUR_D) == 8


@pytest.mark.parametrize("name", SINGLES)
def test_single_files(name, whole, single, tmp_path, capsys):
    found = single
    for change in SINGLES[name]:
        found = change(found)
    path = save(tmp_path / "sd.safetensors", found)
    assert convert.main([str(path), str(tmp_path / "new/sd")]) == 0
    said = capsys.readouterr().out
    model = identical(tmp_path / "new/sd", whole)
    assert "unet 686, vae 248, text_encoder 196 tensors" in said and "that no network reads are left out" in said
    assert model.tokenizer.vocab == clip_vocab.tokenizer().vocab and model.latent_shape[0] == 4
    assert abs(model.schedule.alphas_cumprod[0].item() - 0.99915) < 1e-6


def test_two_sets_of_weights_in_one_file(whole, tmp_path, capsys):
    path = save(tmp_path / "full.safetensors", single_tensors(whole, copies=True))
    assert convert.main([str(path), str(tmp_path / "a")]) == 0
    assert convert.main([str(path), str(tmp_path / "b"), "--ema"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "--ema takes the moving average" in said[0] and "the UNet is the moving average" in said[1]
    identical(tmp_path / "a", whole)
    averaged, ours = tensors("unet", SMALL["unet"], EMA_SEED), load_file(tmp_path / "b" / PATHS["unet"][1])
    assert all(torch.equal(ours[name], averaged[name]) for name in averaged)
    path = save(tmp_path / "one.safetensors", single_tensors(whole))
    assert convert.main([str(path), str(tmp_path / "c"), "--ema"]) == 2
    assert "no second set of weights" in capsys.readouterr().err and not (tmp_path / "c").exists()


def to_pieces(folder, count, suffix="bin"):
    for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"),
                       ("text_encoder", "pytorch_model" if suffix == "bin" else "model")):
        path = folder / PATHS[part][1]
        found = load_file(path)
        path.unlink()
        files = [path.with_name(f"{stem}-0000{i + 1}-of-0000{count}.{suffix}") for i in range(count)]
        for i, file in enumerate(files):
            save(file, {k: found[k] for k in sorted(found)[i::count]})


def rename(part, new):
    return lambda f: (f / PATHS[part][1]).rename((f / PATHS[part][1]).with_name(new))


def edited(part, change):
    return lambda f: edit_tensors(f / PATHS[part][1], change)


FOLDERS = {     # name: changes of the folder, of one part each
    "pickles in pieces; tokenizer.json with merges as text": [lambda f: to_pieces(f, 3),
                                                              lambda f: tokenizer_json(f, " ".join)],
    "safetensors in pieces; tokenizer.json": [lambda f: to_pieces(f, 2, "safetensors"), tokenizer_json],
    "half-precision names, no tokenizer": [
        rename("unet", "diffusion_pytorch_model.fp16.safetensors"), rename("text_encoder", "model.fp16.safetensors"),
        rename("vae", "diffusion_pytorch_model.bf16.safetensors"), lambda f: shutil.rmtree(f / "tokenizer")],
    "only non_ema, wrapped for several GPUs; VAE of 2022; a text encoder with its projection": [
        edited("unet", lambda x: {"module." + k: v for k, v in x.items()}),
        rename("unet", "diffusion_pytorch_model.non_ema.safetensors"),
        edited("vae", lambda x: {legacy(k): v for k, v in x.items()}),
        edited("text_encoder", lambda x: {"text_model." + k: v for k, v in x.items()} | {
            "text_model.embeddings.position_ids": torch.arange(77)[None], "text_projection.weight": torch.eye(16)})],
    "linear projections; VAE of 2022 with 1x1 convolutions; any name": [
        edited("unet", squeezed), lambda f: edit_json(f / "unet/config.json", use_linear_projection=True),
        rename("unet", "model.safetensors"), edited("vae", lambda x: {
            legacy(k): v[..., None, None] if any(f".{n}.weight" in k for n in LEGACY) else v for k, v in x.items()}),
        rename("vae", "finetuned.safetensors")],
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(name, folder, whole, tmp_path):
    for change in FOLDERS[name]:
        change(folder)
    convert.convert(folder, tmp_path / "new")
    model = identical(tmp_path / "new", whole)
    assert model.tokenizer.vocab == clip_vocab.tokenizer().vocab and model.sae.features == 64
    assert not list((tmp_path / "new").rglob("*.bin"))


def test_full_precision_before_half_and_the_moving_average_of_a_training(folder, whole, tmp_path):
    """Precision stays what it is in the file."""
    half = {k: v.half() for k, v in load_file(folder / PATHS["unet"][1]).items()}
    save(folder / "unet/diffusion_pytorch_model.fp16.safetensors", half)
    save(folder / "unet/diffusion_pytorch_model.bin", half)
    averaged = {k: v.bfloat16() for k, v in half.items()}
    save(folder / "unet_ema/diffusion_pytorch_model.safetensors", averaged)
    convert.convert(folder, tmp_path / "a")
    identical(tmp_path / "a", whole)
    convert.convert(folder, tmp_path / "b", ema=True)
    ours = load_file(tmp_path / "b" / PATHS["unet"][1])
    assert all(torch.equal(ours[name], averaged[name]) and ours[name].dtype == torch.bfloat16 for name in averaged)


def without(start):
    return lambda x: {k: v for k, v in x.items() if not k.startswith(start)}


def wider(key, *shape):
    return lambda x: x | {k: torch.zeros(shape) for k in x if k.endswith(key)}


BAD_SINGLES = {     # name: (change, what the line says)
    "a tensor of the UNet missing": (without(KEY), "lacks tensor 'conv_in.weight'"),
    "a tensor of the UNet too many": (lambda x: x | {KEY + "s": torch.ones(2)}, f"has '{KEY}s'"),
    "text by two names": (lambda x: x | {k.replace("text_model.", ""): v for k, v in x.items()
                                         if k.endswith("final_layer_norm.bias")}, "layer_norm.bias', which Stable"),
    "transposed": (lambda x: x | {KEY: x[KEY].transpose(0, 1)}, "conv_in.weight has shape [4, 8, 3, 3]"),
    "inpainting": (lambda x: x | {KEY: torch.zeros(8, 9, 3, 3)}, "an inpainting UNet with 9 channels"),
    "SD 2.x": (wider("attn2.to_k.weight", 8, 1024), "Stable Diffusion 2.x"),
    "SDXL": (lambda x: {"conditioner.embedders.0.x": torch.ones(1)} | without("cond")(x)
             | wider("attn2.to_k.weight", 8, 2048)(without("cond")(x)), "Stable Diffusion XL"),
    "v-prediction": (lambda x: x | {"v_pred": torch.ones(())}, "v-prediction"),
    "zero terminal SNR": (lambda x: x | {"alphas_cumprod": torch.linspace(1, 0, 1000)}, "zero terminal SNR"),
    "a LoRA": (lambda x: {"lora_unet_down_blocks_0.lora_up.weight": torch.ones(2)}, "a LoRA"),
    "a ControlNet": (lambda x: {"control_model.input_hint_block.0.weight": torch.ones(2)}, "a ControlNet"),
    "a textual inversion": (lambda x: {"string_to_param.*": torch.ones(2)}, "a textual inversion"),
    "AnimateDiff": (lambda x: x | {UNET + "input_blocks.1.0.motion_modules.0.weight": torch.ones(2)}, "AnimateDiff"),
    "nothing known": (lambda x: {"layer.weight": torch.ones(2)}, "has 'layer.weight', which"),
    "NaN": (lambda x: x | {KEY: x[KEY] * float("nan")}, "conv_in.weight holds NaN"),
}


def test_a_prediction_type_in_metadata_or_beside_the_file(single, tmp_path):
    save_file(single, tmp_path / "a.safetensors", {"modelspec.prediction_type": "v"})
    save_file(single, tmp_path / "b.safetensors")
    (tmp_path / "b.yaml").write_text('model:\n  params:\n    parameterization: "v"\n')
    for name in ("a", "b"):
        with pytest.raises(WeightsError, match="v-prediction"):
            convert.convert(tmp_path / f"{name}.safetensors", tmp_path / "new")


class Callback:
    """Stands for the objects of a training framework that checkpoints carry along."""


def test_objects_in_a_checkpoint_are_left_out_and_run_nothing(whole, single, tmp_path, monkeypatch):
    torch.save({"state_dict": single, "callbacks": {Callback: Callback()}}, tmp_path / "sd.ckpt")
    monkeypatch.setattr(Callback, "__init__", lambda *_: pytest.fail("ran"))
    convert.convert(tmp_path / "sd.ckpt", tmp_path / "new")
    identical(tmp_path / "new", whole)


BAD_FOLDERS = {
    "a piece missing": (lambda f: (to_pieces(f, 3), (f / "unet/diffusion_pytorch_model-00002-of-00003.bin").unlink()),
                        "diffusion_pytorch_model-00002-of-00003.bin: cannot be read (No such file"),
    "which file?": (lambda f: [(f / "unet").joinpath(n).write_bytes(b"") for n in ("a.bin", "b.bin")]
                    and (f / PATHS["unet"][1]).unlink(), "which of a.bin, b.bin is meant"),
    "no weights": (lambda f: (f / PATHS["vae"][1]).unlink(), "vae: holds no weights"),
}


class Payload:
    def __reduce__(self):
        import os
        return os.mkdir, ("ran",)


BAD_PICKLES = {     # name: (what is saved, or bytes in its place, what the line says)
    "a page": (lambda data: b"<!DOCTYPE html><html>" * 100, "is a web page"),
    "cut": (lambda data: data[:-300], "is no whole file of torch.save"),
    "another kind": (lambda data: b"GGUF" + bytes(100), "is not a whole safetensors file"),
    "code": (lambda data: Payload(), "would call posix.mkdir: do not use it"),
    "a list": (lambda data: [1, 2], "holds no tensors by name"),
}


def bad_pickle(path, damage):
    torch.save({"state_dict": {"a": torch.ones(100)}}, path)
    value = damage(path.read_bytes())
    path.write_bytes(value) if isinstance(value, bytes) else torch.save(value, path)


@pytest.mark.parametrize("name", [*BAD_SINGLES, *BAD_FOLDERS, *BAD_PICKLES])
def test_what_cannot_be_converted_leaves_one_line_and_nothing_else(name, folder, single, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, says = (BAD_SINGLES | BAD_FOLDERS | BAD_PICKLES)[name]
    source = folder
    if name in BAD_SINGLES:
        source = save(folder / "sd.safetensors", change(single))
    elif name in BAD_PICKLES:
        bad_pickle(source := folder / "sd.ckpt", change)
    else:
        change(folder)
    assert convert.main([str(source), str(tmp_path / "deep/new")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("convert: ") and error.count("\n") == 1 and says in error, error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sd"]


def test_a_conversion_that_fails_can_be_repeated(folder, whole, tmp_path, capsys):
    """The VAE's pickle is cut; nothing is left of the UNet that was written before it."""
    path, call = folder / PATHS["vae"][1], lambda: convert.main([str(folder), str(tmp_path / "new")])
    pickle = save(path.with_suffix(".bin"), load_file(path))
    path.unlink()
    good = pickle.read_bytes()
    pickle.write_bytes(good[:-400])
    assert call() == 2 and [p.name for p in tmp_path.iterdir()] == ["sd"]
    pickle.write_bytes(good)
    assert call() == 0
    identical(tmp_path / "new", whole)
    assert call() == 2 and "exists already" in capsys.readouterr().err
