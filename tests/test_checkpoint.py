"""Weights folders: what fits is loaded exactly and frozen; what does not fit is refused in one line, with a remedy.

Every damaged folder here is something that happens: a download that stopped, a page saved in place of a file, a pointer
that git left behind, parts of two models mixed up. None may be loaded silently and none may end in a traceback.
"""
import hashlib
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from clip import END, START, number
from config import configure
from schedule import Schedule, ddim
from tests.layouts import LEGACY, legacy
from tests.tiny import CONFIGS, HOOK, PATHS, VOCAB, edit_json, edit_tensors, write_model
from weights import check
from weights import load as loading
from weights.load import WeightsError, load

SAE_FOLDER = f"sae/unet.{HOOK}"
UNET, VAE, TEXT, SAE = (PATHS[part][1] for part in ("unet", "vae", "text_encoder", "sae"))
UNET_CONFIG, CFG, NAME = "unet/config.json", f"{SAE_FOLDER}/cfg.json", "conv_in.weight"
SCHEDULER = "scheduler/scheduler_config.json"
AGAIN = "fetch or copy this file again"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("weights") / "tiny")


def networks(model):
    return {part: getattr(model, part) for part in ("unet", "vae", "text_encoder", "sae")}


def check_message(error, folder, *fragments):
    text = str(error)
    assert "\n" not in text and str(folder) in text, text
    for fragment in fragments:
        assert fragment in text, (fragment, text)


# --- what fits --------------------------------------------------------------------------------------------------------

def test_all_parts_hold_the_files_numbers_frozen(whole):
    model = load(whole, "cpu")
    for part, net in networks(model).items():
        stored = load_file(whole / PATHS[part][1])
        assert net.state_dict().keys() == stored.keys()
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, stored[name]), name
        assert not any(p.requires_grad for p in net.parameters()) and not any(m.training for m in net.modules())
    assert model.tokenizer.vocab == VOCAB and model.hook_point == HOOK and model.settings == CONFIGS["featviz"]
    assert len(model.schedule) == 1000 and model.latent_shape == (4, 8, 8) and model.name == "tiny"
    assert model.unet.conv_norm_out.num_groups == 8 and model.vae.factor == 4 and model.vae.scaling_factor == 0.5
    assert model.unet.mid_block.attentions[0].transformer_blocks[0].attn1.heads == 2
    assert model.text_encoder.encoder.layers[0].self_attn.heads == 2
    assert (model.sae.k, model.sae.norm, model.sae.gate, model.sae.reads, model.sae.timesteps) == (
        4, "none", "topk", "output", ())


def test_the_parts_work_together_and_stay_about_one(whole):
    """The tiny model is sound: everything is finite, of the promised shape, most features are active somewhere."""
    model = load(whole, "cpu")
    text, z = model.embed(["", "A tree"]), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([300, 20])
    h, noise = model.unet(z, t, text, until=model.hook_point), model.unet(z, t, text)
    assert text.shape == (2, 77, 16) and h.shape == (2, 32, 2, 2) and noise.shape == z.shape
    images = model.decode(z)
    assert images.shape == (2, 3, 32, 32) and model.encode(images).shape == z.shape
    assert all(0.1 < x.std() < 10 for x in (text, h, noise, images, model.encode(images)))
    assert (model.sae.pre_acts(h.flatten(2).mT) > 0).any(dim=1).any(dim=0).float().mean() > 0.8
    assert torch.equal(model.decode(z)[1:], model.decode(z[1:]))                                # a row at a time
    assert torch.equal(model.embed([""]), text[:1])


def test_half_precision_files_and_runs(folder, whole):
    """Files in half precision are the full numbers rounded; VAE and SAE run in float32 whatever the run's precision."""
    for path in (UNET, VAE, TEXT, SAE):
        edit_tensors(folder / path, lambda tensors: {k: v.half() for k, v in tensors.items()})
    full, half = networks(load(whole, "cpu")), networks(load(folder, "cpu"))
    for part, net in half.items():
        for name, p in net.state_dict().items():
            assert p.dtype == torch.float32 and torch.equal(p, full[part].state_dict()[name].half().float()), name
    for dtype in (torch.bfloat16, "bfloat16"):
        parts = networks(load(folder, "cpu", dtype))
        assert {part: {p.dtype for p in net.parameters()} for part, net in parts.items()} == {
            "unet": {torch.bfloat16}, "text_encoder": {torch.bfloat16}, "vae": {torch.float32}, "sae": {torch.float32}}


def test_names_as_published_for_sd14_give_identical_tensors(folder, whole):
    """The VAE attention by its names before 2023, the text encoder below `text_model.` with position_ids."""
    edit_tensors(folder / VAE, lambda tensors: {legacy(k): v for k, v in tensors.items()})
    edit_tensors(folder / TEXT, lambda tensors: {"text_model." + k: v for k, v in tensors.items()}
                 | {"text_model.embeddings.position_ids": torch.arange(77)[None]})
    assert sum(f".{name}." in k for k in load_file(folder / VAE) for name in LEGACY.values()) == 16
    ours, reference = networks(load(folder, "cpu")), networks(load(whole, "cpu"))
    for part in ("vae", "text_encoder"):
        for name, tensor in reference[part].state_dict().items():
            assert torch.equal(ours[part].state_dict()[name], tensor), name


def test_a_tokenizer_in_one_file_as_transformers_5_saves_it(folder):
    (folder / "tokenizer/vocab.json").unlink()
    (folder / "tokenizer/merges.txt").unlink()
    plain = {token: i for token, i in VOCAB.items() if token not in (START, END)}
    (folder / "tokenizer/tokenizer.json").write_text(json.dumps({
        "added_tokens": [{"id": VOCAB[token], "content": token} for token in (START, END)],
        "model": {"type": "BPE", "vocab": plain, "merges": []}}))
    model = load(folder, "cpu")
    assert model.tokenizer.vocab == VOCAB and "tokenizer/tokenizer.json" in model.fingerprints
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer/vocab.json").write_text(json.dumps(VOCAB))
    assert "tokenizer/tokenizer.json" not in load(folder, "cpu").fingerprints


def test_published_configs_may_hold_more_keys_and_lack_those_with_a_default(folder):
    edit_json(folder / UNET_CONFIG, _class_name="FlaxUNet2DConditionModel", norm_eps=1e-5, sample_size=[8, 16],
              class_embed_type=None, down_block_types=["FlaxDownBlock2D"] * 4)
    edit_json(folder / CFG, num_latents=0, expansion_factor=2, batch_topk=True, time_embedding_type="positional",
              time_embedding_dim=0, cond_encoder=False, num_timesteps=1000)
    settings = folder / "featviz.json"
    settings.write_bytes(b"\xef\xbb\xbf" + settings.read_bytes())                               # saved by an editor
    model = load(folder, "cpu")
    assert model.latent_shape == (4, 8, 16) and model.sae.features == 64 and model.settings["feature"] == 3


@pytest.mark.parametrize("version, size, latent", [("0.6.0", 32, 64), ("0.9.0", 32, 32), (None, 32, 32),
                                                   ("0.6.0", 96, 96), ("soon", 32, 32)])
def test_the_latent_size_of_early_configs(version, size, latent, folder):
    """Early SD 1.5 configs say 32; diffusers reads a size below 64 as 64 where the file is older than 0.9."""
    edit_json(folder / UNET_CONFIG, sample_size=size, **{"_diffusers_version": version} if version else {})
    assert loading.read_latent_size(folder / UNET_CONFIG) == (latent, latent)


def test_unused_files_of_a_published_folder_are_neither_read_nor_fingerprinted(folder):
    """Half-precision copies, pickles and the safety checker are beside what is used."""
    before = load(folder, "cpu").fingerprints
    (folder / "safety_checker").mkdir()
    for name in ("safety_checker/model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
                 "unet/diffusion_pytorch_model.bin", "model_index.json"):
        (folder / name).write_bytes(b"broken")
    assert load(folder, "cpu").fingerprints == before


@pytest.mark.parametrize("part", ["sae", "tokenizer", "text_encoder", "vae"])
def test_a_missing_part_is_named_when_it_is_used(part, tmp_path):
    model = load(write_model(tmp_path / "m", **{part: None}), "cpu")
    use = {"sae": lambda: model.require("sae"), "vae": lambda: model.decode(torch.zeros(1, 4, 8, 8))}
    assert getattr(model, part) is None
    assert model.unet(torch.zeros(1, 4, 8, 8), torch.tensor([1]), torch.zeros(1, 77, 16)).isfinite().all()
    with pytest.raises(WeightsError) as caught:
        use.get(part, lambda: model.embed([""]))()
    check_message(caught.value, model.folder / part, "is missing", "expected")


def test_without_scheduler_and_settings_there_are_sd_s_numbers(tmp_path):
    model = load(write_model(tmp_path / "m", scheduler=None, featviz=None), "cpu")
    assert model.settings == {} and abs(model.schedule.alphas_cumprod[0].item() - (1 - 0.00085)) < 1e-6


# --- what does not ----------------------------------------------------------------------------------------------------

def write(path, data):
    return lambda folder: (folder / path).write_bytes(data)


def config(path, **entries):
    return lambda folder: edit_json(folder / path, **entries)


def tensors(path, change):
    return lambda folder: edit_tensors(folder / path, change)


def unlink(path):
    return lambda folder: (folder / path).unlink()


def cut(path, keep):
    """Keep the first `keep` bytes; a number below 0 counts from the end."""
    return lambda folder: (folder / path).write_bytes((folder / path).read_bytes()[:keep])


def without(name):
    return lambda found: {k: v for k, v in found.items() if k != name}


def changed(name, change):
    return lambda found: found | {name: change(found[name])}


def transplant(folder, path, **change):
    """Config and tensors of one part come from another tiny model."""
    other = write_model(folder.parent / "other", **change)
    (part,) = change
    for file in PATHS[part]:
        shutil.copy(other / file, folder / file)


def write_vocab(folder, vocab, merges=None):
    (folder / "tokenizer/vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    if merges:
        (folder / "tokenizer/merges.txt").write_text(merges)


HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head>\n<body>Not found</body></html>\n" * 20
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3438167536\n"
BAD = {     # name: (damage, fragments of the message)
    "no model": (lambda f: shutil.rmtree(f / "unet"), ("is no folder of weights", "give a folder in diffusers layout")),
    "no config": (unlink("vae/config.json"), ("vae/config.json: cannot be read (No such file",)),
    "config is a page": (write(UNET_CONFIG, HTML), (f"{UNET_CONFIG}: is not valid JSON",)),
    "config in UTF-16": (write(UNET_CONFIG, "{}".encode("utf-16")), (f"{UNET_CONFIG}: is not valid JSON in UTF-8",)),
    "another activation": (config(UNET_CONFIG, act_fn="gelu"), ("act_fn is gelu, only 'silu' is implemented",)),
    "v-prediction": (config(SCHEDULER, prediction_type="v_prediction"), ("prediction_type is v_prediction",)),
    "zero terminal SNR": (config(SCHEDULER, rescale_betas_zero_snr=True), ("rescale_betas_zero_snr is True",)),
    "flow matching": (config(SCHEDULER, _class_name="FlowMatchEulerDiscreteScheduler"), ("another kind of diffusion",)),
    "linear betas": (config(SCHEDULER, beta_schedule="linear"), ("only 'scaled_linear' is implemented",)),
    "inpainting": (config(UNET_CONFIG, in_channels=9), ("an inpainting UNet with 9 channels",)),
    "SD 2.x": (config(UNET_CONFIG, attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024),
               ("this is Stable Diffusion 2.x",)),
    "SDXL": (config(UNET_CONFIG, addition_embed_type="text_time"), ("this is Stable Diffusion XL",)),
    "three levels": (config(UNET_CONFIG, block_out_channels=[16, 16, 32]), ("from which no network can be built",)),
    "heads that do not divide": (config(UNET_CONFIG, attention_head_dim=3), ("head_dim is 3, which does not",)),
    "width as text": (config(UNET_CONFIG, cross_attention_dim="16"), ("cross_attention_dim is 16, expected whole",)),
    "latent size 9": (config(UNET_CONFIG, sample_size=9), ("sample_size is 9, expected a multiple of 8",)),

    "no weights file": (unlink(UNET), (f"{UNET}: is missing", AGAIN)),
    "empty": (write(UNET, b""), (f"{UNET}: is not a whole safetensors file", AGAIN)),
    "a page": (write(UNET, HTML), (f"{UNET}: is a web page saved under this name",)),
    "a git-lfs pointer": (write(UNET, POINTER), (f"{UNET}: is a git-lfs pointer; git lfs pull",)),
    "a pickle by that name": (lambda f: torch.save({"state_dict": {}}, f / UNET), ("python weights/convert.py",)),
    "a pickle beside": (lambda f: (f / UNET).rename(f / "unet/diffusion_pytorch_model.bin"),
                        ("diffusion_pytorch_model.bin, which python weights/convert.py",)),
    "shards": (lambda f: (f / UNET).rename(f / "unet/diffusion_pytorch_model-00001-of-00002.safetensors"),
               ("00001-of-00002.safetensors, which python weights/convert.py",)),
    "cut in the header": (cut(UNET, 1000), (UNET, "is not a whole safetensors file", AGAIN)),
    "a byte short": (cut(UNET, -1), (UNET, "is not a whole safetensors file", AGAIN)),
    "missing tensor": (tensors(UNET, without(NAME)), (f"{UNET}: lacks tensor '{NAME}'", "not belong to its config")),
    "unexpected tensor": (tensors(UNET, lambda x: x | {"up.extra": torch.ones(2)}), ("unexpected tensor 'up.extra'",)),
    "transposed tensor": (tensors(UNET, changed(NAME, lambda x: x.transpose(0, 1))),
                          (f"{NAME} has shape [4, 16, 3, 3], expected [16, 4, 3, 3]",)),
    "a tensor by its old and its new name": (
        tensors(VAE, lambda x: x | {legacy(k): v.clone() for k, v in x.items()}), (f"{VAE}: holds ", " twice, as")),
    "integers": (tensors(UNET, changed(NAME, lambda x: x.long())), (f"{NAME} holds torch.int64", AGAIN)),
    "parts swapped": (lambda f: ((f / UNET).rename(f / "x"), (f / VAE).rename(f / UNET), (f / "x").rename(f / VAE)),
                      (f"{UNET}: lacks tensor 'conv_in.bias' and 835 more",)),
    "text of another width": (lambda f: transplant(f, TEXT, text_encoder=dict(hidden_size=24)),
                              ("text_encoder: has 24 wide text, the UNet takes 16", "give parts of one model")),
    "VAE of another latent": (lambda f: transplant(f, VAE, vae=dict(latent_channels=8)), ("has 8 latent channels",)),

    "SAE of another width": (lambda f: transplant(f, SAE, sae=dict(d_in=16)), ("d_in is 16, but", "has 32 channels")),
    "SAE with another number of features": (config(CFG, num_latents=128), ("shape [64, 32], expected [128, 32]",)),
    "SAE at an unknown hook": (lambda f: (f / SAE_FOLDER).rename(f / "sae/unet.up_blocks.9.attentions.1"),
                               ("nearest: up_blocks", "must be named after")),
    "no k": (config(CFG, k=None), (f"{CFG}: lacks 'k'",)),
    "k above the number of features": (config(CFG, k=65), ("k is 65, more than the 64 features",)),
    "SAE of a gate that nobody knows": (config(CFG, gate="sparsemax"), ("gate is 'sparsemax', expected one of topk",)),
    "SAE that reads something else": (config(CFG, reads="input"), ("reads is 'input', expected one of output",)),
    "SAE of no time steps": (config(CFG, timesteps=["all"]), ("expected \"all\" or a list of time steps",)),
    "labels of no feature": (write(f"{SAE_FOLDER}/labels.json", b'{"cat": 12}'), ('{"12": "cat"}',)),

    "vocabulary is cut": (cut("tokenizer/vocab.json", 100), ("vocab.json and merges.txt cannot be used",)),
    "merges of another vocabulary": (write("tokenizer/merges.txt", b"#version: 0.2\nt h\nth e</w>\n"),
                                     ("tokenizer: vocab.json and merges.txt disagree about",)),
    "merges are a page": (write("tokenizer/merges.txt", HTML), ("merges.txt: is no list of pairs", AGAIN)),
    "another vocabulary than the text encoder's": (
        lambda f: write_vocab(f, number([("t", "h")]), "#version: 0.2\nt h\n"),
        ("tokenizer: has 515 tokens, the text encoder knows 514",)),
    "no merges": (unlink("tokenizer/merges.txt"), ("tokenizer/merges.txt: cannot be read (No such file",)),
    "tokenizer.json of words": (lambda f: (f / "tokenizer/vocab.json").rename(f / "tokenizer/tokenizer.json"),
                                ("tokenizer.json: is no byte-pair tokenizer",)),
    "settings with a text as time step": (config("featviz.json", timestep="300"), ("whole numbers for timestep",)),
    "settings that nobody knows": (config("featviz.json", presets={"sae": {"speed": 1}}), ("sets 'speed', which is",)),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_in_one_line(name, folder):
    damage, fragments = BAD[name]
    damage(folder)
    with pytest.raises(WeightsError) as caught:
        load(folder, "cpu")
    check_message(caught.value, folder, *fragments)


@pytest.mark.parametrize("name", ["sd.safetensors", "sd.ckpt", "sd.bin", "nowhere"])
def test_single_files_are_answered_with_the_command(name, tmp_path):
    (tmp_path / name).write_bytes(b"PK\3\4")
    if name == "nowhere":
        (tmp_path / name).unlink()
    with pytest.raises(WeightsError) as caught:
        load(tmp_path / name)
    says = f"python weights/convert.py {tmp_path / name} {tmp_path / 'sd'} makes" if name != "nowhere" else "no folder"
    check_message(caught.value, tmp_path / name, says)


def poison(value):
    """One bad number among many good ones."""
    return lambda tensor: tensor.flatten().index_fill(0, torch.tensor([5]), value).reshape(tensor.shape)


def test_nan_is_named_by_check_by_a_picture_and_by_the_fit_check(folder):
    """Numbers that stay in a mapped file are not looked at when they are loaded; those that are converted are."""
    name = "decoder.conv_in.weight"
    edit_tensors(folder / VAE, changed(name, poison(float("nan"))))
    model = load(folder, "cpu")
    for use in (model.check_numbers, lambda: model.decode(torch.zeros(1, *model.latent_shape))):
        with pytest.raises(WeightsError) as caught:
            use()
        check_message(caught.value, folder / "vae", f"{name} holds NaN or infinite values", AGAIN)
    edit_tensors(folder / UNET, changed(NAME, poison(float("inf"))))
    for use in (lambda: check.fit(load(folder, "cpu")), lambda: load(folder, "cpu", torch.bfloat16)):
        with pytest.raises(WeightsError) as caught:
            use()
        check_message(caught.value, folder / "unet", f"{NAME} holds NaN or infinite values")


def test_what_half_precision_cannot_hold_is_refused(folder):
    edit_tensors(folder / UNET, changed(NAME, lambda x: x * 1e9))
    load(folder, "cpu").check_numbers()
    with pytest.raises(WeightsError) as caught:
        load(folder, "cpu", torch.float16)
    check_message(caught.value, folder / UNET, "infinite values as torch.float16", AGAIN)


# --- fingerprints -----------------------------------------------------------------------------------------------------

def test_fingerprints_are_of_every_file_and_see_one_changed_byte(folder):
    first = load(folder, "cpu").fingerprints
    assert first == {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
                     for path in folder.rglob("*") if path.is_file() and path.parent.name not in ("activity", "images")}
    edit_json(folder / "featviz.json", timestep=301)
    second = load(folder, "cpu").fingerprints
    assert {name for name in first if first[name] != second[name]} == {"featviz.json"}
    model = load(folder, "cpu")
    model.hashing.thread.join()
    (folder / UNET_CONFIG).unlink()
    assert model.fingerprints == second                         # known by then
    missing = loading.Fingerprints({"unet/config.json": folder / UNET_CONFIG})
    with pytest.raises(WeightsError) as caught:
        missing.result()
    check_message(caught.value, folder / UNET_CONFIG, "cannot be read any more")


def test_a_large_file_s_fingerprint_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    """A memory that is broken, cannot be written or has no home folder costs only time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hashed, digest = [], hashlib.file_digest
    monkeypatch.setattr(loading.hashlib, "file_digest", lambda file, kind: hashed.append(1) or digest(file, kind))
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes(loading.LARGE))
    os.utime(path, (1e9, 1e9))
    known = lambda: loading.Fingerprints({"a": path}).result()["a"]
    direct = lambda: hashlib.sha256(path.read_bytes()).hexdigest()
    assert known() == known() == direct() and len(hashed) == 1
    path.write_bytes(bytes(loading.LARGE - 1) + b"1")
    assert known() == known() == direct() and len(hashed) == 3                                  # too young to remember
    os.utime(path, (1e9, 1e9 + 1))
    assert known() == known() == direct() and len(hashed) == 4
    for broken in ("[]", "{", json.dumps({str(path): 5}), json.dumps({str(path): [[], 5, 6]})):
        loading.cache_file().write_text(broken)
        assert known() == direct()
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder")
    assert known() == direct() and (tmp_path / "cache").read_text() == "no folder"
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")
    monkeypatch.setattr(loading.Path, "home", homeless)
    assert loading.cache_file() is None and known() == direct()


# --- the scheduler's file, several SAEs, the machine ------------------------------------------------------------------

@pytest.mark.parametrize("entries, sampler, last", [
    ({}, "pndm", "first"), (dict(_class_name="PNDMScheduler", set_alpha_to_one=True), "pndm", 1),
    (dict(_class_name="DDIMScheduler"), "ddim", 1), (dict(_class_name="DDIMScheduler", set_alpha_to_one=False), "ddim",
                                                     "first"),
    (dict(_class_name="EulerAncestralDiscreteScheduler", timestep_spacing="linspace"), "pndm", "first"),
    (dict(_class_name="DPMSolverMultistepScheduler", thresholding=False, lower_order_final=True), "pndm", "first")])
def test_the_scheduler_file_chooses_sampler_and_last_step(entries, sampler, last, folder):
    """Whatever class it names: the sampler is ours."""
    edit_json(folder / SCHEDULER, **entries)
    model = load(folder, "cpu")
    assert model.sampler == sampler == configure(model.settings).prior_sampler
    assert model.schedule.last == (model.schedule.alphas_cumprod[0] if last == "first" else 1)


def test_at_abar_1_sampling_ends_at_the_predicted_picture():
    """x0 = (x - sqrt(1 - abar_t) eps) / sqrt(abar_t) at the last step, t = 1, by hand."""
    z, eps = torch.full((1, 4, 2, 2), 2.0), torch.full((1, 4, 2, 2), 0.5)
    schedule = Schedule(set_alpha_to_one=True)
    (_, before), (t, after) = list(ddim(schedule, lambda x, t: eps, z))[-2:]
    abar = schedule.alphas_cumprod[1].item()
    assert t == 1 and torch.allclose(after, (before - (1 - abar) ** 0.5 * eps) / abar ** 0.5)
    assert not torch.equal(after, list(ddim(Schedule(), lambda x, t: eps, z))[-1][1])


OTHER = "up_blocks.1.attentions.2"


@pytest.fixture
def two(folder):
    """SAEs for up1.1 and up1.2, as SAeUron publishes them; they differ in k. Only the second has labels."""
    shutil.copytree(folder / SAE_FOLDER, folder / f"sae/unet.{OTHER}")
    edit_json(folder / f"sae/unet.{OTHER}/cfg.json", k=5)
    (folder / f"sae/unet.{OTHER}/labels.json").write_text('{"12": "cat"}')
    return folder


@pytest.mark.parametrize("wanted, hook_point, k",
                         [(None, HOOK, 4), (OTHER, OTHER, 5), (f"unet.{OTHER}", OTHER, 5), (HOOK, HOOK, 4),
                          ("conv_in", "conv_in", None)])
def test_the_hook_point_chooses_the_sae(wanted, hook_point, k, two):
    for model in (load(two, "cpu", hook_point=wanted), load(two, "cpu").at(wanted or HOOK)):
        assert model.hook_point == hook_point and (model.sae.k if k else model.sae) == k
        assert [name for name in model.files if "sae/" in name] == [
            f"sae/unet.{hook_point}/{name}" for name in ("cfg.json", "sae.safetensors") if k]
        assert model.labels == ({12: "cat"} if hook_point == OTHER else {})
        assert model.fingerprints.keys() == model.files.keys()
    if not k:
        with pytest.raises(WeightsError) as caught:
            model.require("sae")
        check_message(caught.value, two, "has no SAE for conv_in", f"there are SAEs for {HOOK}, {OTHER}: give")


def test_the_only_sae_is_taken_and_of_several_one_must_be_named(two):
    shutil.rmtree(two / SAE_FOLDER)
    assert load(two, "cpu").hook_point == OTHER
    (two / f"sae/unet.{OTHER}").rename(two / "sae/mid_block.attentions.0")
    shutil.copytree(two / "sae/mid_block.attentions.0", two / "sae/down_blocks.2.attentions.0")
    for wanted, says in ((None, "has SAEs for down_blocks.2.attentions.0, mid_block.attentions.0; give one"),
                         ("mid_block.attentions.7", "is no attention, resnet or convolution of this UNet; nearest:")):
        with pytest.raises(WeightsError) as caught:
            load(two, "cpu", hook_point=wanted)
        check_message(caught.value, two, says)


def test_the_machine_chooses_device_and_precision(monkeypatch):
    """bfloat16 where a card has it itself, float16 elsewhere; there may be no such card here."""
    assert loading.choose_device("cpu").type == "cpu" and loading.choose_dtype(torch.device("cpu")) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert loading.choose_dtype(torch.device("cuda")) == torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert loading.choose_dtype(torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:1", "abacus"):
        with pytest.raises(ValueError, match="use --device cpu"):
            loading.choose_device(name)
    assert END in VOCAB and START in VOCAB
