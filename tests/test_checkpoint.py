"""Weights folders: what fits is loaded exactly and frozen; what does not fit is refused in one line, with a remedy.

Every damaged folder here is something that happens: a download that stopped, a page saved in place of a file, a pointer
that git left behind, parts of two models mixed up. None may be loaded silently and none may end in a traceback.
"""
import hashlib
import shutil

import pytest
import torch
from safetensors.torch import load_file

from schedule import Schedule, ddim
from tests.layouts import legacy, tokenizer_json
from tests.tiny import CONFIGS, HOOK, PATHS, VOCAB, edit_json, edit_tensors, write_model
from weights import check
from weights import load as loading
from weights.load import load

SAE_FOLDER, OTHER = f"sae/unet.{HOOK}", "up_blocks.1.attentions.2"
UNET, VAE, TEXT, SAE = (PATHS[part][1] for part in ("unet", "vae", "text_encoder", "sae"))
UNET_CONFIG, CFG, SCHEDULER, NAME = PATHS["unet"][0], PATHS["sae"][0], PATHS["scheduler"][0], "conv_in.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("weights") / "tiny")


def networks(model):
    return {part: getattr(model, part) for part in ("unet", "vae", "text_encoder", "sae")}


def equal(ours, theirs):
    """Whether two {name: tensor} are the same to the bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def refused(call, *fragments):
    """The call ends in one line that holds these fragments."""
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(fragment in text for fragment in fragments), text


# --- what fits --------------------------------------------------------------------------------------------------------

def test_all_parts_hold_the_files_numbers_frozen(whole):
    model = load(whole, "cpu")
    for part, net in networks(model).items():
        assert equal(net.state_dict(), load_file(whole / PATHS[part][1]))
        assert not any(p.requires_grad for p in net.parameters()) and not any(m.training for m in net.modules())
    assert model.tokenizer.vocab == VOCAB and model.hook_point == HOOK and model.settings == CONFIGS["featviz"]
    assert len(model.schedule.alphas_cumprod) == 1000 and model.latent_shape == (4, 8, 8) and model.name == "tiny"
    assert model.unet.conv_norm_out.num_groups == 8 and model.vae.factor == 4 and model.vae.scaling_factor == 0.5
    assert model.unet.mid_block.attentions[0].transformer_blocks[0].attn1.heads == 2
    assert model.text_encoder.encoder.layers[0].self_attn.heads == 2
    assert model.fingerprints == {
        path.relative_to(whole).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in whole.rglob("*") if path.is_file() and path.parent.name not in ("activity", "images")}
    sae = model.sae
    assert (sae.k, sae.norm, sae.gate, sae.reads, sae.timesteps, sae.centre) == (4, "none", "topk", "output", (), True)


def test_half_precision_files_and_runs(folder, whole):
    """Files in half precision are the full numbers rounded; VAE and SAE run in float32 whatever the run's precision."""
    for path in (UNET, VAE, TEXT, SAE):
        edit_tensors(folder / path, lambda tensors: {k: v.half() for k, v in tensors.items()})
    full, half = networks(load(whole, "cpu")), networks(load(folder, "cpu"))
    for part, net in half.items():
        assert equal(net.state_dict(), {k: v.half().float() for k, v in full[part].state_dict().items()})
    parts = networks(load(folder, "cpu", "bfloat16"))
    assert {part: {p.dtype for p in net.parameters()} for part, net in parts.items()} == {
        "unet": {torch.bfloat16}, "text_encoder": {torch.bfloat16}, "vae": {torch.float32}, "sae": {torch.float32}}


def test_names_as_published_for_sd14_give_identical_tensors(folder, whole):
    """The VAE attention by its names before 2023, the text encoder below `text_model.` with position_ids."""
    edit_tensors(folder / VAE, lambda tensors: {legacy(k): v for k, v in tensors.items()})
    edit_tensors(folder / TEXT, lambda tensors: {"text_model." + k: v for k, v in tensors.items()}
                 | {"text_model.embeddings.position_ids": torch.arange(77)[None]})
    assert sum(k not in load_file(whole / VAE) for k in load_file(folder / VAE)) == 16
    ours, reference = networks(load(folder, "cpu")), networks(load(whole, "cpu"))
    assert all(equal(ours[part].state_dict(), reference[part].state_dict()) for part in ours)


def test_a_folder_as_newer_and_older_tools_write_it(folder):
    """More keys, those with a default missing, a byte-order mark, transformers 5's tokenizer, files beside."""
    edit_json(folder / UNET_CONFIG, _class_name="FlaxUNet2DConditionModel", norm_eps=1e-5, sample_size=[8, 16],
              class_embed_type=None, down_block_types=["FlaxDownBlock2D"] * 4)
    edit_json(folder / CFG, num_latents=0, expansion_factor=2, batch_topk=True, time_embedding_type="positional",
              time_embedding_dim=0, cond_encoder=False, num_timesteps=1000)
    settings = folder / "featviz.json"
    settings.write_bytes(b"\xef\xbb\xbf" + settings.read_bytes())
    (folder / SCHEDULER).unlink()
    tokenizer_json(folder)
    for name in ("unet/diffusion_pytorch_model.fp16.safetensors", "vae/broken.bin", "model_index.json"):
        (folder / name).write_bytes(b"broken")
    model = load(folder, "cpu")
    assert model.latent_shape == (4, 8, 16) and model.sae.features == 64 and model.settings["feature"] == 3
    assert model.tokenizer.vocab == VOCAB and abs(model.schedule.alphas_cumprod[0].item() - (1 - 0.00085)) < 1e-6
    assert model.fingerprints.keys() == {
        *(path for part in ("unet", "vae", "text_encoder", "sae") for path in PATHS[part]), "featviz.json",
        "tokenizer/tokenizer.json"}


@pytest.mark.parametrize("version, size, latent", [("0.6.0", 32, 64), ("0.9.0", 32, 32), (None, 32, 32),
                                                   ("0.6.0", 96, 96)])
def test_the_latent_size_of_early_configs(version, size, latent, folder):
    """Early SD 1.5 configs say 32; diffusers reads a size below 64 as 64 where the file is older than 0.9."""
    edit_json(folder / UNET_CONFIG, sample_size=size, **{"_diffusers_version": version} if version else {})
    assert loading.read_latent_size(folder / UNET_CONFIG) == (latent, latent)


@pytest.mark.parametrize("part", ["sae", "text_encoder", "vae"])
def test_a_missing_part_is_named_when_it_is_used(part, tmp_path):
    model = load(write_model(tmp_path / "m", **{part: None}), "cpu")
    use = {"sae": lambda: model.require("sae"), "vae": lambda: model.decode(torch.zeros(1, 4, 8, 8))}
    assert getattr(model, part) is None
    assert model.unet(torch.zeros(1, 4, 8, 8), torch.tensor([1]), torch.zeros(1, 77, 16)).isfinite().all()
    refused(use.get(part, lambda: model.embed([""])), f"{model.folder / part}: is missing")


# --- what does not ----------------------------------------------------------------------------------------------------

def write(path, data):
    return lambda folder: (folder / path).write_bytes(data)


def config(path, **entries):
    return lambda folder: edit_json(folder / path, **entries)


def tensors(path, change):
    return lambda folder: edit_tensors(folder / path, change)


def changed(name, change):
    return lambda found: found | {name: change(found[name])}


def transplant(folder, part, **sizes):
    """Config and tensors of one part come from another tiny model."""
    other = write_model(folder.parent / "other", **{part: sizes})
    for file in PATHS[part]:
        shutil.copy(other / file, folder / file)


HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head>\n<body>Not found</body></html>\n" * 20
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3438167536\n"
BAD = {     # name: (damage, fragments of the message)
    "no model": (lambda f: shutil.rmtree(f / "unet"), ("is no folder of weights",)),
    "a single file": (lambda f: [shutil.rmtree(f), f.write_bytes(b"PK")], ("single file; python weights/convert.py ",)),
    "no config": (lambda f: (f / "vae/config.json").unlink(), ("vae/config.json: cannot be read as JSON", "(No such")),
    "config is a page": (write(UNET_CONFIG, HTML), (f"{UNET_CONFIG}: cannot be read as JSON", "(Expecting")),
    "another activation": (config(UNET_CONFIG, act_fn="gelu"), ("act_fn is gelu, only 'silu' is implemented",)),
    "v-prediction": (config(SCHEDULER, prediction_type="v_prediction"), ("prediction_type is v_prediction",)),
    "linear betas": (config(SCHEDULER, beta_schedule="linear"), ("only 'scaled_linear' is implemented",)),
    "SD 2.x": (config(UNET_CONFIG, attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024), ("Diffusion 2.x",)),
    "SDXL": (config(UNET_CONFIG, addition_embed_type="text_time"), ("this is Stable Diffusion XL",)),
    "heads that do not divide": (config(UNET_CONFIG, attention_head_dim=3), ("has 3 heads for 16 channels",)),
    "500 time steps": (config(SCHEDULER, num_train_timesteps=500), ("num_train_timesteps is 500, only 1000 is",)),
    "betas below 0": (config(SCHEDULER, beta_start=-1), (f"{SCHEDULER}: beta_start is '-1', expected",)),
    "a latent that cannot be halved": (config(UNET_CONFIG, sample_size=[8, 12]), ("sample_size is [8, 12]",)),
    "width as text": (config(UNET_CONFIG, cross_attention_dim="16"), ("cross_attention_dim is '16', expected",)),

    "no weights file": (lambda f: (f / UNET).unlink(), (f"{UNET}: cannot be read (No such file", "weights/convert.py")),
    "a page": (write(UNET, HTML), (f"{UNET}: is a web page saved under this name",)),
    "a git-lfs pointer": (write(UNET, POINTER), (f"{UNET}: is a git-lfs pointer; git lfs pull",)),
    "a pickle by that name": (lambda f: torch.save({"state_dict": {}}, f / UNET), ("python weights/convert.py",)),
    "cut in the header": (lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:1000]),
                          (UNET, "is not a whole safetensors file", "fetch or copy this file again")),
    "missing tensor": (tensors(UNET, lambda x: {k: v for k, v in x.items() if k != NAME}), (f"lacks tensor '{NAME}'",)),
    "unexpected tensor": (tensors(UNET, lambda x: x | {"up.extra": torch.ones(2)}), ("unexpected tensor 'up.extra'",)),
    "transposed tensor": (tensors(UNET, changed(NAME, lambda x: x.transpose(0, 1))),
                          (f"{NAME} has shape [4, 16, 3, 3], expected [16, 4, 3, 3]",)),
    "integers": (tensors(UNET, changed(NAME, lambda x: x.long())), (f"{NAME} holds torch.int64",)),
    "parts swapped": (lambda f: ((f / UNET).rename(f / "x"), (f / VAE).rename(f / UNET), (f / "x").rename(f / VAE)),
                      (f"{UNET}: lacks tensor 'conv_in.bias', one of",)),
    "text of another width": (lambda f: transplant(f, "text_encoder", hidden_size=24),
                              ("text_encoder: has 24 wide text, expected 16", "give parts of one model")),
    "VAE of another latent": (lambda f: transplant(f, "vae", latent_channels=8), ("latent_channels is 8, only 4 is",)),

    "SAE of another width": (config(CFG, d_in=16), ("d_in is 16, but", "has 32 channels")),
    "SAE with another number of features": (config(CFG, num_latents=128), ("shape [64, 32], expected [128, 32]",)),
    "SAE at an unknown hook": (lambda f: (f / SAE_FOLDER).rename(f / "sae/unet.up_blocks.9.attentions.1"),
                               ("up_blocks.9.attentions.1", "nearest: up_blocks")),
    "no k": (config(CFG, k=None), (f"{CFG}: k is 0, expected 1 to 64",)),
    "SAE of a gate that nobody knows": (config(CFG, gate="sparsemax"), ("gate is sparsemax, for which there is no",)),
    "SAE with a field that nobody knows": (config(CFG, twice=True), ("field twice = True, which may change the math",)),
    "SAE that skips": (config(CFG, skip_connection=True), ("skip_connection is True, for which there is no code",)),
    "SAE of no time steps": (config(CFG, timesteps=["all"]), ("expected \"all\" or a list of time steps",)),
    "labels of no feature": (write(f"{SAE_FOLDER}/labels.json", b'{"cat": 12}'), ('{"12": "cat"}',)),

    "no merges": (lambda f: (f / "tokenizer/merges.txt").unlink(), ("tokenizer: the tokenizer cannot be used",)),
    "merges of another vocabulary": (write("tokenizer/merges.txt", b"#version: 0.2\nt h\nth e</w>\n"), ("disagree",)),
    "tokenizer.json of words": (lambda f: (f / "tokenizer/vocab.json").rename(f / "tokenizer/tokenizer.json"),
                                ("tokenizer cannot be used (KeyError('model'))",)),
    "settings that nobody knows": (config("featviz.json", presets={"sae": {"speed": 1}}), ("sets 'speed', which is",)),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_in_one_line(name, folder):
    damage, fragments = BAD[name]
    damage(folder)
    refused(lambda: load(folder, "cpu"), *fragments)


def poison(value):
    """One bad number among many good ones."""
    return lambda tensor: tensor.flatten().index_fill(0, torch.tensor([5]), value).reshape(tensor.shape)


def test_nan_is_named_by_check_by_a_picture_and_by_the_fit_check(folder):
    """Numbers that stay in a mapped file are not looked at when they are loaded; those that are converted are."""
    name = "decoder.conv_in.weight"
    edit_tensors(folder / VAE, changed(name, poison(float("nan"))))
    model = load(folder, "cpu")
    for use in (model.check_numbers, lambda: model.decode(torch.zeros(1, *model.latent_shape))):
        refused(use, f"{folder / 'vae'}: {name} holds NaN or infinite values")
    edit_tensors(folder / UNET, changed(NAME, poison(float("inf"))))
    refused(lambda: check.fit(load(folder, "cpu")), f"{folder / 'unet'}: {NAME} holds NaN or infinite values")
    edit_tensors(folder / UNET, changed(NAME, lambda x: torch.full_like(x, 1e9)))               # no number of float16
    refused(lambda: load(folder, "cpu", torch.float16), f"{folder / UNET}: {NAME} holds", "values as torch.float16")


# --- the scheduler's file, several SAEs, the machine ------------------------------------------------------------------

@pytest.mark.parametrize("entries, last", [
    ({}, "first"), (dict(_class_name="DDIMScheduler", set_alpha_to_one=True), 1),
    (dict(_class_name="EulerAncestralDiscreteScheduler", timestep_spacing="linspace"), "first")])
def test_a_scheduler_of_any_class(entries, last, folder):
    """The sampler is ours: betas, prediction and the last step decide."""
    edit_json(folder / SCHEDULER, **entries)
    schedule = load(folder, "cpu").schedule
    assert schedule.last == (schedule.alphas_cumprod[0] if last == "first" else 1)


def test_at_abar_1_sampling_ends_at_the_predicted_picture():
    """x0 = (x - sqrt(1 - abar_t) eps) / sqrt(abar_t) at the last step, t = 1, by hand."""
    z, eps = torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), 0.5)
    schedule = Schedule(set_alpha_to_one=True)
    (_, before), (t, after) = list(ddim(schedule, lambda x, t: eps, z))[-2:]
    abar = schedule.alphas_cumprod[1].item()
    assert t == 1 and torch.allclose(after, (before - (1 - abar) ** 0.5 * eps) / abar ** 0.5)
    assert not torch.equal(after, list(ddim(Schedule(), lambda x, t: eps, z))[-1][1])


def test_the_hook_point_chooses_the_sae(folder):
    """SAEs for up1.1 and up1.2, as SAeUron publishes them; they differ in k. Only the second has labels."""
    shutil.copytree(folder / SAE_FOLDER, folder / f"sae/unet.{OTHER}")
    edit_json(folder / f"sae/unet.{OTHER}/cfg.json", k=5)
    (folder / f"sae/unet.{OTHER}/labels.json").write_text('{"12": "cat"}')
    for wanted, hook_point, k, labels in ((None, HOOK, 4, {}), (f"unet.{OTHER}", OTHER, 5, {12: "cat"})):
        model = load(folder, "cpu", hook_point=wanted)
        assert (model.hook_point, model.sae.k, model.labels) == (hook_point, k, labels)
        assert [name for name in model.fingerprints if "sae/" in name] == [
            f"sae/unet.{hook_point}/{name}" for name in ("cfg.json", "sae.safetensors")]
    model = load(folder, "cpu", hook_point="conv_in")
    assert model.sae is None
    refused(lambda: model.require("sae"), "sae: is missing for conv_in")
    shutil.rmtree(folder / SAE_FOLDER)
    assert load(folder, "cpu").hook_point == OTHER
    shutil.copytree(folder / f"sae/unet.{OTHER}", folder / "sae/mid_block.attentions.0")
    refused(lambda: load(folder, "cpu"), "has SAEs for mid_block.attentions.0, ", "give one of these as hook point")
    refused(lambda: load(folder, "cpu", hook_point="mid_block.attentions.7"), "mid_block.attentions.7", "nearest:")


def test_the_machine_chooses_device_and_precision(monkeypatch):
    """bfloat16 where a card has it natively, float16 elsewhere; there may be no such card here."""
    assert loading.choose_device("cpu").type == "cpu" and loading.choose_dtype(torch.device("cpu")) == torch.float32
    for native, dtype in ((False, torch.float16), (True, torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert loading.choose_dtype(torch.device("cuda")) == dtype
    for name in ("abacus", *["cuda"] * (not torch.cuda.is_available())):
        refused(lambda name=name: loading.choose_device(name), f"--device {name}: ", "use --device cpu")
