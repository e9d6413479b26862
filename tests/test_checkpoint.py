"""Weights folders: what fits is loaded exactly and frozen; what does not fit is refused in one line, with a remedy.

Every damaged folder here is something that happens: a download that stopped, a page saved in place of a file, a pointer
that git left behind, parts of two models mixed up. None may be loaded silently and none may end in a traceback.
"""
import copy
import errno
import functools
import hashlib
import json
import os
import shutil
from threading import Event

import pytest
import torch
from safetensors.torch import load_file, save

from activity import capture
from activity.profile import attach
from clip import END, number
from config import configure
from schedule import Schedule, ddim
from tests.tiny import ACTIVITY, CONFIGS, HOOK, PATHS, VOCAB, edit_json, edit_tensors, write_model
from weights import disk, fingerprints, preflight
from weights import load as loading
from weights.disk import WeightsError
from weights.layouts import LEGACY_ATTENTION
from weights.load import load

SAE_FOLDER = f"sae/unet.{HOOK}"
UNET, VAE, TEXT, SAE = (PATHS[part][1] for part in ("unet", "vae", "text_encoder", "sae"))
UNET_CONFIG, CFG, NAME = "unet/config.json", f"{SAE_FOLDER}/cfg.json", "conv_in.weight"
QUERY = "decoder.mid_block.attentions.0.to_q.weight"
AGAIN = "fetch or copy this file again"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("weights") / "tiny")


# --- what fits --------------------------------------------------------------------------------------------------------

def networks(model):
    """Every network with all its numbers, also those that the model itself reads when they are used."""
    return {part: source.read(loading.precision(part, model.dtype), model.device)
            for part, source in model.sources.items()}


def test_all_parts_hold_the_files_numbers_frozen(whole):
    model = load(whole)
    for part, net in {**networks(model), "unet": model.unet, "vae": model.vae, "sae": model.sae}.items():
        stored = load_file(whole / PATHS[part][1])
        assert net.state_dict().keys() == stored.keys()
        for name, tensor in net.state_dict().items():
            assert torch.equal(tensor, stored[name]), name
        assert not any(p.requires_grad for p in net.parameters()) and not any(m.training for m in net.modules())
    assert model.tokenizer.vocab == VOCAB and model.hook_point == HOOK and model.settings == CONFIGS["featviz"]
    assert len(model.schedule) == 1000 and model.latent_shape == (4, 8, 8) and model.name == "tiny"


def test_configs_reach_the_networks(whole):
    model = load(whole)
    assert model.unet.conv_norm_out.num_groups == 8
    assert model.unet.mid_block.attentions[0].transformer_blocks[0].attn1.heads == 2
    assert model.vae.scaling_factor == 0.5 and model.vae.factor == 4
    assert model.sae.k == 4 and not model.sae.input_unit_norm
    assert model.text_encoder.encoder.layers[0].self_attn.heads == 2


def test_the_parts_work_together_and_stay_about_one(whole):
    """The tiny model itself is sound: everything is finite, of the promised shape, and most features are active
    somewhere."""
    model = load(whole)
    text, z = model.embed(["", "A tree"]), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([300, 20])
    h, noise = model.unet(z, t, text, until=model.hook_point), model.unet(z, t, text)
    assert text.shape == (2, 77, 16) and h.shape == (2, 32, 2, 2) and noise.shape == z.shape
    images = model.decode(z)
    assert images.shape == (2, 3, 32, 32) and model.encode(images).shape == z.shape
    assert all(0.1 < x.std() < 10 for x in (text, h, noise, images, model.encode(images)))
    assert (model.sae.pre_acts(h.flatten(2).mT) > 0).any(dim=1).any(dim=0).float().mean() > 0.8


def test_fingerprints_are_of_every_file_and_see_one_changed_byte(folder):
    first = load(folder).fingerprints
    assert first.keys() == {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()
                            and p.parent.name not in
                            ("activity", "images")}
    edit_json(folder / "featviz.json", timestep=301)
    second = load(folder).fingerprints
    assert {name for name in first if first[name] != second[name]} == {"featviz.json"}


def test_half_precision_files_load_as_float32(folder, whole):
    for path in (UNET, VAE, TEXT, SAE):
        edit_tensors(folder / path, lambda tensors: {k: v.half() for k, v in tensors.items()})
    half, full = load(folder), load(whole)
    reference = networks(full)
    for part, net in networks(half).items():
        for name, p in net.state_dict().items():
            rounded = reference[part].state_dict()[name].half().float()
            assert p.dtype == torch.float32 and torch.equal(p, rounded), name


def test_dtype_is_that_of_unet_and_text_encoder_alone(whole):
    model = load(whole, dtype=torch.bfloat16)
    expected = {"unet": torch.bfloat16, "text_encoder": torch.bfloat16, "vae": torch.float32, "sae": torch.float32}
    for net in (networks(model), {part: getattr(model, part) for part in expected}):
        assert {part: {p.dtype for p in net[part].parameters()}
                for part in net} == {part: {t} for part, t in expected.items()}


def test_older_names_give_identical_tensors(folder, whole):
    """SD's published files: VAE attention by its names before 2023, the text encoder below `text_model.` with
    position_ids."""
    modern = {new: old for old, new in LEGACY_ATTENTION.items()}

    def older(name):
        head, _, kind = name.rpartition(".")
        for new, old in modern.items():
            if ".mid_block.attentions.0." in name and head.endswith("." + new):
                return f"{head.removesuffix(new)}{old}.{kind}"
        return name

    edit_tensors(folder / VAE, lambda tensors: {older(k): v for k, v in tensors.items()})
    edit_tensors(folder / TEXT, lambda tensors: {"text_model." + k: v for k, v in tensors.items()}
                 | {"text_model.embeddings.position_ids": torch.arange(77)[None]})
    assert sum(".proj_attn." in k or ".query." in k or ".key." in k or ".value." in k
               for k in load_file(folder / VAE)) == 16
    ours, reference = networks(load(folder)), networks(load(whole))
    for part in ("vae", "text_encoder"):
        for name, tensor in reference[part].state_dict().items():
            assert torch.equal(ours[part].state_dict()[name], tensor), name


MISSING_PARTS = {   # left out -> (what needs it, what the message names)
    "sae": (lambda m: m.sae, "sae"),
    "tokenizer": (lambda m: m.embed([""]), "tokenizer"),
    "text_encoder": (lambda m: m.embed([""]), "text_encoder"),
    "vae": (lambda m: m.decode(torch.zeros(1, 4, 8, 8)), "vae"),
}


@pytest.mark.parametrize("part", MISSING_PARTS)
def test_a_missing_part_is_named_when_it_is_used(part, tmp_path):
    use, name = MISSING_PARTS[part]
    model = load(write_model(tmp_path / "m", **{part: None}))
    assert model.unet(torch.zeros(1, 4, 8, 8), torch.tensor([1]), torch.zeros(1, 77, 16)).isfinite().all()
    with pytest.raises(WeightsError) as caught:
        use(model)
    check_message(caught.value, model.folder, f"{name}: not there", "expected")


def test_without_scheduler_and_settings_there_are_sd_s_numbers(tmp_path):
    model = load(write_model(tmp_path / "m", scheduler=None, featviz=None))
    assert model.settings == {} and abs(model.schedule.alphas_cumprod[0].item() - (1 - 0.00085)) < 1e-6


def test_published_configs_may_hold_more_keys_and_lack_those_with_a_default(folder):
    edit_json(folder / UNET_CONFIG, _class_name="UNet2DConditionModel", norm_eps=1e-5, sample_size=[8, 16])
    edit_json(folder / CFG, num_latents=0, expansion_factor=2, batch_topk=True, time_embedding_type="positional")
    model = load(folder)
    assert model.latent_shape == (4, 8, 16) and model.sae.features == 64


# --- what does not ----------------------------------------------------------------------------------------------------

def check_message(error, folder, *fragments):
    text = str(error)
    assert "\n" not in text and str(folder) in text, text
    for fragment in fragments:
        assert fragment in text, (fragment, text)


def write(path, data):
    return lambda folder: (folder / path).write_bytes(data)


def config(path, **entries):
    return lambda folder: edit_json(folder / path, **entries)


def tensors(path, change):
    return lambda folder: edit_tensors(folder / path, change)


def unlink(path):
    return lambda folder: (folder / path).unlink()


def directory_at(path):
    return lambda folder: ((folder / path).unlink(), (folder / path).mkdir())


def cut(path, keep):
    """Keep the first `keep` bytes; a number below 0 counts from the end."""
    return lambda folder: (folder / path).write_bytes((folder / path).read_bytes()[:keep])


def cut_header(folder):
    """Stop in the middle of the list of tensors, which the file's first 8 bytes say is longer."""
    data = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(data[:8 + int.from_bytes(data[:8], "little") // 2])


def without(name):
    return lambda found: {k: v for k, v in found.items() if k != name}


def with_tensor(name, change):
    return lambda found: found | {name: change(found[name])}


def poison(value):
    """One bad number among many good ones."""
    return lambda tensor: tensor.flatten().index_fill(0, torch.tensor([5]), value).reshape(tensor.shape)


def change(path, edit):
    return lambda folder: (folder / path).write_bytes(edit((folder / path).read_bytes()))


def header(edit):
    """Rewrite the header of the UNet's file, its body stays."""
    def damage(folder):
        data = (folder / UNET).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        text = json.dumps(edit(json.loads(data[8:end]))).encode()
        (folder / UNET).write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    return damage


def entry(**changes):
    """Change or, with None, remove what the header says of one tensor."""
    return header(lambda h: h | {NAME: {k: v for k, v in (h[NAME] | changes).items() if v is not None}})


def shifted(by):
    """All tensors behind the first lie `by` bytes further on; the file keeps its length."""
    def edit(h):
        for name in h:
            begin, end = h[name]["data_offsets"]
            h[name]["data_offsets"] = [begin + by, end + by] if begin else [begin, end]
        return h
    return header(edit)


overlap, gap = shifted(-4), shifted(4)


def twice(data):
    """The same name two times in one header; most JSON readers keep the last silently."""
    end = 8 + int.from_bytes(data[:8], "little")
    text = data[8:end].rstrip()
    text = text[:-1] + b', "conv_in.bias": ' + json.dumps(json.loads(text)["conv_in.bias"]).encode() + b"}"
    return len(text).to_bytes(8, "little") + text + data[end:]


def sparse(path, length):
    """A file of `length` bytes and more that takes no room on the disk."""
    def damage(folder):
        with open(folder / path, "wb") as file:
            file.write(length.to_bytes(8, "little"))
            file.truncate(length + 100)
    return damage


HTML = b"<!DOCTYPE html>\n<html><head><title>404</title></head>\n<body>Not found</body></html>\n" * 20
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3438167536\n"
NOT_WHOLE, MISMATCH = ("is not a whole safetensors file",
                       AGAIN), "does not belong to its config, fetch or copy both again"

BAD = {     # name: (damage, fragments of the message)
    "folder without a model": (lambda f: shutil.rmtree(f / "unet"), ("is no model folder", "give --weights")),
    "no config": (unlink("vae/config.json"), ("vae/config.json: cannot be read (No such file", AGAIN)),
    "config is a directory": (directory_at(UNET_CONFIG), (f"{UNET_CONFIG}: cannot be read", AGAIN)),
    "config is empty": (write(UNET_CONFIG, b""), (f"{UNET_CONFIG}: is not valid JSON", AGAIN)),
    "config is a page": (write(UNET_CONFIG, HTML), (f"{UNET_CONFIG}: is not valid JSON", AGAIN)),
    "config is cut": (cut(UNET_CONFIG, -3), (f"{UNET_CONFIG}: is not valid JSON", AGAIN)),
    "config is no text": (write(UNET_CONFIG, b"\xff\xfe\x00"), (f"{UNET_CONFIG}: is not valid JSON", AGAIN)),
    "config is endless": (write(UNET_CONFIG, b"[" * 100_000), (f"{UNET_CONFIG}: is not valid JSON", AGAIN)),
    "config is a list": (write(UNET_CONFIG, b"[1]"), (f"{UNET_CONFIG}: expected a JSON object, found list", AGAIN)),
    "another activation": (config(UNET_CONFIG, act_fn="gelu"),
                           ("act_fn is 'gelu', only 'silu' is implemented", "give SD 1.x weights")),
    "another eps": (config(UNET_CONFIG, norm_eps=1e-6), ("norm_eps is 1e-06, only 1e-05 is implemented",)),
    "another text activation": (config("text_encoder/config.json", hidden_act="gelu"), ("hidden_act is 'gelu'",)),
    "another prediction": (config("scheduler/scheduler_config.json", prediction_type="v_prediction"),
                           ("'v_prediction'", "'epsilon'")),
    "three levels": (config(UNET_CONFIG, block_out_channels=[16, 16, 32]),
                     (f"{UNET_CONFIG}: gives sizes of which no network", AGAIN)),
    "one width": (config(UNET_CONFIG, block_out_channels=16), (UNET_CONFIG, AGAIN)),
    "no widths": (config("vae/config.json", block_out_channels=[]), ("block_out_channels is []", AGAIN)),
    "width 0": (config(UNET_CONFIG, block_out_channels=[0] * 4),
                ("block_out_channels is [0, 0, 0, 0], expected whole", AGAIN)),
    "width of billions": (config(UNET_CONFIG, block_out_channels=[10 ** 9] * 4),
                          ("block_out_channels is [1000000000,", AGAIN)),
    "negative width": (config(UNET_CONFIG, cross_attention_dim=-1),
                       ("cross_attention_dim is -1, expected whole", AGAIN)),
    "width as text": (config(UNET_CONFIG, cross_attention_dim="16"),
                      ("cross_attention_dim is '16', expected whole", AGAIN)),
    "broken width": (config(UNET_CONFIG, in_channels=4.5), ("in_channels is 4.5, expected whole", AGAIN)),
    "no groups": (config(UNET_CONFIG, norm_num_groups=0), ("norm_num_groups is 0, expected whole", AGAIN)),
    "groups that do not divide": (config(UNET_CONFIG, norm_num_groups=7), ("must be divisible by num_groups", AGAIN)),
    "heads that do not divide": (config(UNET_CONFIG, attention_head_dim=3),
                                 ("attention_head_dim is 3, which does not divide", AGAIN)),
    "text heads that do not divide": (config("text_encoder/config.json", num_attention_heads=3),
                                      ("which does not divide", AGAIN)),
    "endless layers": (config("text_encoder/config.json", num_hidden_layers=10 ** 9),
                       ("num_hidden_layers is 1000000000", AGAIN)),
    "levels without end": (config("vae/config.json", block_out_channels=[8] * 100_000),
                           ("block_out_channels is [8, 8,", AGAIN)),
    "SD 2's heads": (config(UNET_CONFIG, attention_head_dim=[5, 10, 20, 20]),
                     ("attention_head_dim is [5, 10, 20, 20], expected", AGAIN)),
    "another embedding of classes": (config(UNET_CONFIG, class_embed_type="timestep"),
                                     ("class_embed_type is 'timestep', only None",)),
    "config is a pipe": (lambda f: ((f / "vae/config.json").unlink(), os.mkfifo(f / "vae/config.json")),
                         ("vae/config.json: cannot be read (no regular file)", AGAIN)),
    "NaN in a config": (write("scheduler/scheduler_config.json", b'{"beta_start": NaN}'),
                        ("beta_start is nan, expected a number", AGAIN)),
    "latent size 9": (config(UNET_CONFIG, sample_size=9), ("sample_size is 9, expected a multiple of 8", AGAIN)),
    "latent size of billions": (config(UNET_CONFIG, sample_size=8 * 10 ** 9), ("sample_size is 8000000000", AGAIN)),
    "latent size as text": (config(UNET_CONFIG, sample_size="8"), ("sample_size is '8'", AGAIN)),
    "scaling factor 0": (config("vae/config.json", scaling_factor=0),
                         ("scaling_factor is 0, expected a number", AGAIN)),
    "negative beta": (config("scheduler/scheduler_config.json", beta_start=-0.1),
                      ("beta_start is -0.1, expected a number", AGAIN)),
    "another sampler": (config("scheduler/scheduler_config.json", _class_name="EulerDiscreteScheduler"),
                        ("_class_name is 'EulerDiscreteScheduler', only PNDMScheduler and DDIMScheduler",
                         "give SD 1.x weights")),
    "a sampler that is no name": (config("scheduler/scheduler_config.json", _class_name=["DDIMScheduler"]),
                                  ("_class_name is ['DDIMScheduler'], only PNDM",)),
    "Runge-Kutta steps": (config("scheduler/scheduler_config.json", _class_name="PNDMScheduler", skip_prk_steps=False),
                          ("skip_prk_steps is False, only True is implemented", "give SD 1.x weights")),
    "a last step that is no truth value": (config("scheduler/scheduler_config.json", set_alpha_to_one=1),
                                           ("set_alpha_to_one is 1, expected true or false", AGAIN)),
    "no time steps": (config("scheduler/scheduler_config.json", num_train_timesteps=0),
                      ("num_train_timesteps is 0", AGAIN)),

    "no weights file": (unlink(UNET), (f"{UNET}: cannot be read", "No such file", AGAIN)),
    "weights are a directory": (directory_at(UNET), (f"{UNET}: cannot be read", AGAIN)),
    "weights are empty": (write(UNET, b""), (UNET, *NOT_WHOLE)),
    "weights are a page": (write(UNET, HTML), (f"{UNET}: is not a whole safetensors file (it is a web page)", AGAIN)),
    "weights are a git-lfs pointer": (write(UNET, POINTER),
                                      (f"{UNET}: is not a whole safetensors file (it is a pointer that git left",
                                                             "git lfs pull", AGAIN)),
    "weights are JSON": (lambda f: shutil.copy(f / UNET_CONFIG, f / UNET),
                         (f"{UNET}: is not a whole safetensors file (it is JSON)",)),
    "weights are a pickle": (lambda f: torch.save({"state_dict": {}}, f / UNET),
                             ("(it is a pickle of torch.save, python weights/convert.py", AGAIN)),
    "weights are an old pickle": (write(UNET, b"\x80\x02}q\x00."),
                                  ("(it is a pickle, python weights/convert.py", AGAIN)),
    "weights are a pipe": (lambda f: ((f / UNET).unlink(), os.mkfifo(f / UNET)),
                           (f"{UNET}: cannot be read (no regular file)", AGAIN)),
    "weights are a link to nowhere": (lambda f: ((f / UNET).unlink(), (f / UNET).symlink_to("away")),
                                      ("cannot be read (No such", AGAIN)),
    "only a pickle": (lambda f: (f / UNET).rename(f / "unet/diffusion_pytorch_model.bin"),
                      ("unet/diffusion_pytorch_model.bin: is a pickle, which can run code",
                       "python weights/convert.py")),
    "zeros": (write(UNET, bytes(1000)), (UNET, "invalid JSON in header", *NOT_WHOLE)),
    "header of 2^63 bytes": (change(UNET, lambda data: (2 ** 63).to_bytes(8, "little") + data[8:]),
                             ("header too large", *NOT_WHOLE)),
    "header larger than the format allows": (sparse(UNET, 150_000_000), ("header too large", *NOT_WHOLE)),
    "header length one too small": (change(UNET, lambda data: bytes([data[0] - 1]) + data[1:]), (UNET, *NOT_WHOLE)),
    "header length one too large": (change(UNET, lambda data: bytes([data[0] + 1]) + data[1:]), (UNET, *NOT_WHOLE)),
    "header is a list": (header(lambda h: list(h)), ("invalid type: sequence", *NOT_WHOLE)),
    "header is no text": (change(UNET, lambda data: data[:9] + b"\xff" + data[10:]), (UNET, *NOT_WHOLE)),
    "header is endless": (lambda f: (f / UNET).write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000),
                          (UNET, *NOT_WHOLE)),
    "header names a tensor twice": (change(UNET, twice), ("its header names something twice", *NOT_WHOLE)),
    "metadata that are no texts": (header(lambda h: h | {"__metadata__": {"format": 1}}),
                                   ("expected a string", *NOT_WHOLE)),
    "entry without offsets": (entry(data_offsets=None), ("missing field `data_offsets`", *NOT_WHOLE)),
    "entry with more than the format knows": (entry(compressed=True),
                                              (f"'{NAME}' is not described by dtype, shape", *NOT_WHOLE)),
    "unknown type": (entry(dtype="F31"), ("unknown variant `F31`", *NOT_WHOLE)),
    "type as a list": (entry(dtype=["F32"]), ("invalid type: sequence, expected string", *NOT_WHOLE)),
    "another type than the bytes": (entry(dtype="F16"), ("invalid shape, data type, or offset", *NOT_WHOLE)),
    "another shape than the bytes": (entry(shape=[16, 4, 3, 4]), ("invalid shape, data type, or offset", *NOT_WHOLE)),
    "negative shape": (entry(shape=[-16, 4, -3, 3]), ("integer `-16`, expected usize", *NOT_WHOLE)),
    "shape of true": (entry(shape=[16, 4, 3, True]), ("boolean `true`, expected usize", *NOT_WHOLE)),
    "three offsets": (entry(data_offsets=[0, 2304, 2304]), ("invalid length 3, expected 2", *NOT_WHOLE)),
    "offsets beyond the file": (entry(data_offsets=[10 ** 15, 10 ** 15 + 2304]),
                                ("invalid offset for tensor", *NOT_WHOLE)),
    "overlapping offsets": (overlap, ("invalid offset for tensor", *NOT_WHOLE)),
    "gap between tensors": (gap, ("invalid offset for tensor", *NOT_WHOLE)),
    "a block too many": (change(UNET, lambda data: data + bytes(4096)), ("file not fully covered", *NOT_WHOLE)),
    "header cut in its length": (cut(UNET, 5), (UNET, *NOT_WHOLE)),
    "header cut at its start": (cut(UNET, 8), (UNET, *NOT_WHOLE)),
    "header cut in the middle": (cut_header, (UNET, *NOT_WHOLE)),
    "a byte short": (cut(UNET, -1), (UNET, *NOT_WHOLE)),
    "half a file": (cut(UNET, -150_000), (UNET, *NOT_WHOLE)),
    "a byte too many": (lambda f: (f / UNET).write_bytes((f / UNET).read_bytes() + b"\0"), (UNET, *NOT_WHOLE)),
    "missing tensor": (tensors(UNET, without(NAME)), (f"{UNET}: lacks tensor '{NAME}'", MISMATCH)),
    "unexpected tensor": (tensors(UNET, lambda x: x | {"up.extra": torch.ones(2)}),
                          ("has an unexpected tensor 'up.extra'", MISMATCH)),
    "several mismatches": (tensors(UNET, lambda x: {"a." + k: v for k, v in x.items()}),
                           ("and 1367 more mismatches", MISMATCH)),
    "transposed tensor": (tensors(UNET, with_tensor(NAME, lambda x: x.transpose(0, 1))),
                          (f"{NAME} has shape [4, 16, 3, 3], expected [16, 4, 3, 3]", MISMATCH)),
    "no numbers": (tensors(UNET, with_tensor(NAME, lambda x: x[:0])), (f"{NAME} has shape [0, 4, 3, 3]", MISMATCH)),
    "one dimension more": (tensors(UNET, with_tensor("time_embedding.linear_1.weight", lambda x: x[:, :, None, None])),
                           ("time_embedding.linear_1.weight has shape [64, 16, 1, 1], expected [64, 16]", MISMATCH)),
    "projections as matrices": (tensors(UNET,
                                        lambda x: {k: v.squeeze() if ".proj_in.weight" in k else v
                                                   for k, v in x.items()}),
                                ("proj_in.weight has shape [16, 16], expected [16, 16, 1, 1]", MISMATCH)),
    "attention 1x1 of another width": (tensors(VAE, with_tensor(QUERY, lambda x: x[:8, :8, None, None])),
                                       (f"{QUERY} has shape [8, 8, 1, 1], expected [16, 16]", MISMATCH)),
    "a tensor by its old and its new name": (
        tensors(VAE, lambda x: x | {QUERY.replace("to_q", "query"): torch.zeros_like(x[QUERY])}),
        (f"{VAE}: holds '{QUERY}' twice, as", "which one is meant cannot be known", AGAIN)),
    "truth values": (tensors(UNET, with_tensor(NAME, lambda x: x > 0)), (f"{NAME} holds BOOL, expected", AGAIN)),
    "files of two parts swapped": (lambda f: ((f / UNET).rename(f / "x"), (f / VAE).rename(f / UNET),
                                              (f / "x").rename(f / VAE)),
                                   (f"{UNET}: lacks tensor 'conv_in.bias' and 835 more", MISMATCH)),
    "integers": (tensors(UNET, with_tensor(NAME, lambda x: x.long())), (f"{NAME} holds I64, expected", AGAIN)),
    "8-bit floats": (tensors(UNET, with_tensor(NAME, lambda x: x.to(torch.float8_e4m3fn))),
                     (f"{NAME} holds F8_E4M3, expected", AGAIN)),

    "text of another width": (lambda f: transplant(f, TEXT, text_encoder=dict(hidden_size=24)),
                              ("text_encoder: has 24 wide text, the UNet takes 16", "give parts of one model")),
    "VAE of another latent": (lambda f: transplant(f, VAE, vae=dict(latent_channels=8)),
                              ("vae: has 8 latent channels, the UNet takes 4", "give parts of one model")),
    "ids with a gap": (lambda f: write_vocab(f, VOCAB | {END: 5000}),
                                    ("is no map from tokens to ids 0, 1, 2, ...", AGAIN)),

    "SAE of another width": (lambda f: transplant(f, SAE, sae=dict(d_in=16)),
                             (f"d_in is 16, but {HOOK}", "has 32 channels", "give the SAE of this UNet")),
    "SAE with another number of features": (config(CFG, num_latents=128),
                                            ("shape [64, 32], expected [128, 32]", MISMATCH)),
    "SAE at an unknown hook": (lambda f: (f / SAE_FOLDER).rename(f / "sae/unet.up_blocks.9.attentions.1"),
                               ("up_blocks.9.attentions.1", "nearest: up_blocks", "must be named after")),
    "no d_in": (config(CFG, d_in=None), (f"{CFG}: lacks 'd_in'", AGAIN)),
    "no d_in and no num_latents": (config(CFG, d_in=None, num_latents=0, expansion_factor=2), ("lacks 'd_in'", AGAIN)),
    "no number of features": (config(CFG, num_latents=0), ("lacks 'expansion_factor'", AGAIN)),
    "neither features nor factor": (config(CFG, num_latents=None), (f"{CFG}: lacks 'expansion_factor'", AGAIN)),
    "no k": (config(CFG, k=None), (f"{CFG}: lacks 'k'", AGAIN)),
    "no k beside a factor": (config(CFG, k=None, num_latents=0, expansion_factor=2), (f"{CFG}: lacks 'k'", AGAIN)),
    "expansion factor as text": (config(CFG, num_latents=0, d_in=10 ** 6, expansion_factor="x" * 1000),
                                 ("expansion_factor is 'x", "expected whole", AGAIN)),
    "d_in as text": (config(CFG, d_in="32"), ("d_in is '32', expected whole", AGAIN)),
    "negative number of features": (config(CFG, num_latents=-1), ("num_latents is -1, expected whole", AGAIN)),
    "k 0": (config(CFG, k=0), ("k is 0, expected whole", AGAIN)),
    "k above the number of features": (config(CFG, k=65), ("k is 65, more than the 64 features", AGAIN)),
    "cfg is broken": (write(CFG, b"{"), (f"{CFG}: is not valid JSON", AGAIN)),
    "no SAE weights": (unlink(SAE), (f"{SAE}: cannot be read", AGAIN)),

    "vocabulary is broken": (cut("tokenizer/vocab.json", 100),
                             ("tokenizer: vocab.json or merges.txt cannot be used", "fetch or copy both")),
    "vocabulary is a list": (write("tokenizer/vocab.json", b"[]"), ("vocab.json: is no map from tokens to ids", AGAIN)),
    "vocabulary lacks its end": (lambda f: write_vocab(f, without(END)(VOCAB)),
                                 (f"with <|startoftext|> and {END}", AGAIN)),
    "vocabulary with an id twice": (lambda f: write_vocab(f, VOCAB | {"!": 1}),
                                    ("is no map from tokens to ids 0, 1, 2", AGAIN)),
    "merges of another vocabulary": (
        write("tokenizer/merges.txt", b"#version: 0.2\nt h\nth e</w>\n"),
        ("tokenizer: vocab.json and merges.txt disagree about '<|endoftext|>', and 3 tokens more",
         "fetch or copy both again")),
    "another vocabulary than the text encoder's": (
        lambda f: ((f / "tokenizer/merges.txt").write_text("#version: 0.2\nt h\n"),
                   write_vocab(f, number([("t", "h")]))),
        ("tokenizer: has 515 tokens, the text encoder knows 514", "give parts of one model")),
    "vocabulary is a directory": (directory_at("tokenizer/vocab.json"),
                                  ("vocab.json: cannot be read (a folder)", AGAIN)),
    "merges are no text": (write("tokenizer/merges.txt", b"#\n\xff\xfe"),
                           ("tokenizer: vocab.json or merges.txt cannot be used", "copy both")),
    "no vocabulary": (unlink("tokenizer/vocab.json"), ("tokenizer/vocab.json: cannot be read (No such file", AGAIN)),
    "no merges": (unlink("tokenizer/merges.txt"), ("tokenizer/merges.txt: cannot be read (No such file", AGAIN)),
    "merges are a page": (write("tokenizer/merges.txt", HTML), ("merges.txt: is no list of pairs", AGAIN)),
    "merges are cut": (lambda f: write_vocab(f, VOCAB | {"th": 515, "the</w>": 514}),
                       ("tokenizer: vocab.json and merges.txt disagree about 'th', and 1 tokens more",
                        "copy both again")),
    "two ids swapped": (lambda f: write_vocab(f, VOCAB | {"a": VOCAB["b"], "b": VOCAB["a"]}),
                        ("disagree about 'a', and 1 tokens more",)),
    "a merge twice": (write("tokenizer/merges.txt", b"#version: 0.2\nt h\nt h\n"),
                      ("merges.txt: makes the same token twice", AGAIN)),
    "a merge of nothing new": (write("tokenizer/merges.txt", b"#version: 0.2\na </w>\n"),
                               ("merges.txt: makes the same token twice",)),

    "settings are a list": (write("featviz.json", b"[]"), ("featviz.json: expected a JSON object", AGAIN)),
    "settings with a text as time step": (config("featviz.json", timestep="300"),
                                          ("expected whole numbers for timestep", AGAIN)),
    "settings with a list of presets": (config("featviz.json", presets=[]),
                                        ("an object of objects for presets", AGAIN)),
}


BAD_NUMBERS = {     # they load, since nobody looks at numbers that lie in a mapped file; name: (damage, fragments)
    "NaN": (tensors(UNET, with_tensor(NAME, poison(float("nan")))), (f"{NAME} holds NaN or infinite values", AGAIN)),
    "infinity": (tensors(VAE, with_tensor("quant_conv.weight", poison(float("inf")))),
                 ("quant_conv.weight holds NaN or inf", AGAIN)),
    "too large for float32": (tensors(UNET, with_tensor(NAME, lambda x: x.double() * 1e300)),
                              ("infinite values as torch.float32", AGAIN)),
    "minus infinity in half precision": (tensors(UNET, with_tensor(NAME, lambda x: poison(float("-inf"))(x.half()))),
                                         (f"{NAME} holds NaN or infinite values", AGAIN)),
}

BAD_ACTIVITY = {
    "activity is empty": (write(ACTIVITY, b""), (ACTIVITY, *NOT_WHOLE)),
    "activity is cut": (cut(ACTIVITY, -9), (ACTIVITY, *NOT_WHOLE)),
    "activity is a directory": (directory_at(ACTIVITY), (f"{ACTIVITY}: cannot be read (a folder)", AGAIN)),
    "activity lacks its time steps": (tensors(ACTIVITY, without("timesteps")),
                                      (f"{ACTIVITY}: lacks a tensor 'timesteps'", AGAIN)),
    "activity lacks its channels": (tensors(ACTIVITY, without("max_channel")),
                                    (f"{ACTIVITY}: lacks tensor 'max_channel'", MISMATCH)),
    "activity of no time step": (tensors(ACTIVITY, lambda x: {k: v[:0] for k, v in x.items()}),
                                 ("lacks a tensor 'timesteps' with a list of time steps", AGAIN)),
    "activity of a single number": (tensors(ACTIVITY, with_tensor("timesteps", lambda x: x[0])),
                                    ("lacks a tensor 'timesteps' with a list of time steps", AGAIN)),
    "activity of other features": (tensors(ACTIVITY, with_tensor("max_feature", lambda x: x[:, :9])),
                                   ("max_feature has shape", MISMATCH)),
}


def transplant(folder, path, **change):
    """Config and tensors of one part come from another tiny model."""
    other = write_model(folder.parent / "other", **change)
    (part,) = change
    for file in PATHS[part]:
        shutil.copy(other / file, folder / file)


def write_vocab(folder, vocab):
    (folder / "tokenizer/vocab.json").write_text(json.dumps(vocab), encoding="utf-8")


@functools.cache
def built(network, sizes):
    return network(**json.loads(sizes))


@pytest.mark.parametrize("name", BAD)
def test_refused_in_one_line(name, folder, monkeypatch):
    """Networks are built once for all of these: no model is ever returned that could share them, and building is the
    slow part."""
    damage, fragments = BAD[name]
    for network in ("UNet", "VAE", "TextEncoder"):
        monkeypatch.setattr(loading, network,
                            lambda _n=getattr(loading, network), **sizes: built(_n, json.dumps(sizes)))
    damage(folder)
    with pytest.raises(WeightsError) as caught:
        load(folder)
    check_message(caught.value, folder, *fragments)


@pytest.mark.parametrize("name", BAD_NUMBERS)
def test_bad_numbers_are_named_by_check(name, folder):
    damage, fragments = BAD_NUMBERS[name]
    damage(folder)
    model = load(folder)
    with pytest.raises(WeightsError) as caught:
        model.check_numbers()
    check_message(caught.value, folder, *fragments)


def test_nan_is_named_by_the_fit_check_and_by_a_picture(folder):
    name = "decoder.conv_in.weight"
    edit_tensors(folder / VAE, with_tensor(name, poison(float("nan"))))
    model = load(folder)
    with pytest.raises(WeightsError) as caught:
        model.decode(torch.zeros(1, *model.latent_shape))
    check_message(caught.value, folder / VAE, f"{name} holds NaN", AGAIN)
    edit_tensors(folder / UNET, with_tensor(NAME, poison(float("nan"))))
    with pytest.raises(WeightsError) as caught:
        preflight.fit(load(folder))
    check_message(caught.value, folder / UNET, f"{NAME} holds NaN", AGAIN)


def test_the_fit_check_is_worked_out_once_for_a_model_and_its_copies(folder, monkeypatch):
    model, made = load(folder), []
    monkeypatch.setattr(preflight, "fit", lambda model: made.append(model) or (0.5, 8.0))
    assert preflight.fit_once(model) == preflight.fit_once(copy.copy(model)) == (0.5, 8.0) and len(made) == 1
    assert "0.500 of the variance" in preflight.check_fit(model) and len(made) == 1


@pytest.mark.parametrize("name", BAD_ACTIVITY)
def test_bad_tables_of_a_capture_are_refused_in_one_line(name, folder):
    damage, fragments = BAD_ACTIVITY[name]
    damage(folder)
    with pytest.raises(WeightsError) as caught:
        attach(load(folder), folder / "activity")
    check_message(caught.value, folder, *fragments)


@pytest.mark.parametrize("path", ["nowhere", "a file"])
def test_no_such_folder(path, tmp_path):
    (tmp_path / "a file").write_text("")
    with pytest.raises(WeightsError) as caught:
        load(tmp_path / path)
    check_message(caught.value, tmp_path / path, "is no model folder", "give --weights")


def test_a_file_cut_anywhere_is_refused(folder):
    """Not only at the places of the table: at 12 evenly spaced ones of a part, header and body."""
    data = (folder / UNET).read_bytes()
    for i in range(12):
        (folder / UNET).write_bytes(data[:len(data) * i // 12])
        with pytest.raises(WeightsError) as caught:
            load(folder)
        check_message(caught.value, folder / UNET, *NOT_WHOLE)


def test_what_half_precision_cannot_hold_is_refused(folder):
    edit_tensors(folder / UNET, with_tensor(NAME, lambda x: x * 1e9))
    load(folder).check_numbers()
    model = load(folder, dtype=torch.float16)
    z, text = torch.zeros(1, *model.latent_shape).half(), torch.zeros(1, 77, 16).half()
    for use in (model.check_numbers, lambda: model.unet(z, torch.tensor([1]), text)):
        with pytest.raises(WeightsError) as caught:
            use()
        check_message(caught.value, folder / UNET, "infinite values as torch.float16", AGAIN)


@pytest.mark.parametrize("path", [UNET, UNET_CONFIG, "tokenizer/merges.txt"])
def test_a_file_that_may_not_be_read(path, folder, monkeypatch):
    """As the system says it; the owner of a test run may read everything, so the refusal is played."""
    def closed(name, *args, **kwargs):
        if str(name) == str(folder / path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))
        return open(name, *args, **kwargs)

    monkeypatch.setattr(disk, "open", closed, raising=False)
    with pytest.raises(WeightsError) as caught:
        load(folder)
    check_message(caught.value, folder / path, "cannot be read (Permission denied)", AGAIN)


def test_a_file_that_shrinks_before_it_is_read(folder):
    """Between header and numbers; and where they are converted, before a layer's first run."""
    found, late = loading.find(folder), load(folder, dtype=torch.bfloat16)
    cut(UNET, -150_000)(folder)
    z, text = torch.zeros(1, *late.latent_shape).bfloat16(), torch.zeros(1, 77, 16).bfloat16()
    for use in (lambda: load(found), lambda: late.unet(z, torch.tensor([1]), text)):
        with pytest.raises(WeightsError) as caught:
            use()
        check_message(caught.value, folder / UNET, "was changed while it was in use", "start again")


def test_a_file_that_is_rewritten_under_a_model(folder):
    """The same size, other numbers, in place: the picture is not handed out. By renaming: the model keeps the old
    file."""
    model, new = load(folder), load_file(folder / UNET)
    data, z = save({k: 2 * v for k, v in new.items()}), torch.zeros(1, *model.latent_shape)
    (folder / "new").write_bytes(data)
    before = model.unet.conv_in.weight.clone()
    (folder / "new").rename(folder / UNET)
    assert torch.equal(model.unet.conv_in.weight, before)
    other = load(folder)
    with open(folder / UNET, "r+b") as file:
        file.write(data)
    for changed in (model, other):
        with pytest.raises(WeightsError) as caught:
            changed.decode(z)
        check_message(caught.value, folder / UNET, "was changed while it was in use", "start again")


def test_a_file_that_changes_between_reading_and_its_fingerprint(folder):
    model = load(folder)
    edit_json(folder / UNET_CONFIG, act_fn="silu", sample_size=8, added=1)
    with pytest.raises(WeightsError) as caught:
        model.fingerprints
    check_message(caught.value, folder / UNET_CONFIG, "was changed while it was in use", "start again")


def test_hashes_are_worked_out_beside_and_their_errors_told_where_they_are_wanted(folder, monkeypatch):
    begin, model, hashed = Event(), load(folder), fingerprints.sha256
    monkeypatch.setattr(fingerprints, "sha256", lambda paths: begin.wait(20) and hashed(paths))
    assert not model.hashes.done()
    model.embed([""])                                           # goes on meanwhile
    begin.set()
    assert model.fingerprints == {name: hashlib.sha256(path.read_bytes()).hexdigest()
                                  for name, (path, _) in model.files.items()}
    model = load(folder)
    (folder / UNET_CONFIG).unlink()
    with pytest.raises(WeightsError) as caught:
        model.fingerprints
    check_message(caught.value, folder / UNET_CONFIG)


def test_no_memory_for_a_tensor(folder, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory")

    source = loading.find(folder).sources["unet"]
    monkeypatch.setattr(torch.Tensor, "to", full)
    with pytest.raises(WeightsError) as caught:
        source.read(torch.bfloat16, "cpu")
    check_message(caught.value, folder / UNET, "finds no room on cpu", "--dtype bfloat16 takes half",
                  "--check says how much")


def test_a_large_file_s_fingerprint_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    """Also where the change keeps size and time; a memory that is broken or cannot be written costs only time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "SETTLED", -1.0)
    hashed, digest = [], hashlib.file_digest
    monkeypatch.setattr(fingerprints.hashlib, "file_digest",
                        lambda file, kind: hashed.append(file.name) or digest(file, kind))
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes(fingerprints.SMALL))
    first = fingerprints.sha256([path])
    direct = lambda: {path: hashlib.sha256(path.read_bytes()).hexdigest()}
    assert fingerprints.sha256([path]) == first == direct() and len(hashed) == 1
    times = path.stat()
    path.write_bytes(bytes(fingerprints.SMALL - 1) + b"1")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprints.sha256([path]) == direct() != first and len(hashed) == 2
    for broken in ("[]", "{", json.dumps({str(path): 5}), json.dumps({str(path): [[], 5]})):
        fingerprints.cache_path().write_text(broken)
        assert fingerprints.sha256([path]) != first
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder")
    assert fingerprints.sha256([path]) != first and (tmp_path / "cache").read_text() == "no folder"


@pytest.fixture
def fits(tmp_path, monkeypatch):
    """The models whose fit was worked out, in order. The memory is empty, and takes files however new they are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "SETTLED", -1.0)
    made, real = [], preflight.fit
    monkeypatch.setattr(preflight, "fit", lambda model: made.append(model) or real(model))
    return made


def nudged(tensors):
    """The same tensors, of which the first changed in one number."""
    name, first = next(iter(tensors.items()))
    return tensors | {name: (first.flatten() + (torch.arange(first.numel()) == 0)).view(first.shape)}


def test_the_fit_check_of_the_same_files_is_remembered(folder, fits):
    """The numbers to the last bit, so the same sentence; what the fit does not depend on may change."""
    first, warning = preflight.fit_once(load(folder)), preflight.check_fit(load(folder))
    assert "do not belong together" in warning and len(fits) == 1
    edit_tensors(folder / VAE, nudged)
    edit_json(folder / "featviz.json", feature=5)
    assert preflight.fit_once(load(folder)) == first and preflight.check_fit(load(folder)) == warning
    assert len(fits) == 1 and {path.name for path in fingerprints.cache_path().parent.iterdir()} == {preflight.FITS}


@pytest.mark.parametrize("path", [UNET, TEXT, SAE, PATHS["unet"][0], PATHS["sae"][0], "scheduler/scheduler_config.json",
                                  "tokenizer/merges.txt"])
def test_the_fit_check_is_worked_out_again_for_a_changed_file(path, folder, fits):
    """Also where its size and its time stay."""
    before = preflight.fit_once(load(folder))
    times = (folder / path).stat()
    if path.endswith(".safetensors"):
        edit_tensors(folder / path, nudged)
        assert (folder / path).stat().st_size == times.st_size
    else:
        (folder / path).write_bytes((folder / path).read_bytes() + b"\n")
    os.utime(folder / path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = preflight.fit_once(load(folder))
    assert len(fits) == 2 and (after != before) == (path in (UNET, TEXT, SAE))


def test_the_fit_check_is_worked_out_again_on_another_occasion(folder, fits, monkeypatch):
    """In another precision, at another hook point, with other code; and in a copy, whose files are others."""
    preflight.fit_once(load(folder))
    preflight.fit_once(load(folder, dtype=torch.bfloat16))
    model = load(folder)
    model.hook_point = "mid_block.attentions.0"
    preflight.fit_once(model)
    preflight.fit_once(load(shutil.copytree(folder, folder.with_name("copy"))))
    with monkeypatch.context() as patch:
        patch.setattr(preflight.Path, "read_bytes", lambda path: b"other code")
        preflight.fit_once(load(folder))
    assert len(fits) == 5
    preflight.fit_once(load(folder))
    assert len(fits) == 5


def test_a_damaged_memory_of_the_fit_check_is_not_believed(folder, fits, monkeypatch):
    """Numbers that would hide the misfit, an entry of another key, half a file, other shapes: worked out again."""
    misfit, model = (1.25, 3.5), load(folder)
    monkeypatch.setattr(preflight, "fit", lambda model: fits.append(model) or misfit)
    again = lambda: preflight.fit_once(copy.copy(model))        # of a model whose fit is not known yet
    assert again() == again() == misfit and len(fits) == 1
    path = fingerprints.cache_path(preflight.FITS)
    whole = path.read_text()
    (key, entry), = json.loads(whole).items()
    assert preflight.verdict(4, *misfit) and not preflight.verdict(4, 0.1, 4.0)
    moved = [0.1, 4.0, preflight.digest("other", 0.1, 4.0)]
    broken = [{key: [0.1, 4.0, entry[2]]}, {key: moved}, {key: [0.1, 4.0]}, {key: entry[:2]}, {key: [*entry[:2], None]},
              {key: None}, {key: {}}, {key: 5}, {key: [[0.1], 4.0, entry[2]]}, {key: "abc"}, {"other": entry}, [], None]
    for text in [*map(json.dumps, broken), "", whole[:-1], whole[:40], "[" * 100_000, "\0"]:
        path.write_text(text)
        fits.clear()
        assert again() == misfit and len(fits) == 1, text[:80]
        assert json.loads(path.read_text())[key] == entry       # and mended
    path.write_bytes(b"\xff\xfe")
    assert again() == misfit
    path.unlink()
    path.mkdir()
    assert again() == misfit


def test_a_fit_that_is_no_number_and_files_just_written_are_not_remembered(folder, fits, monkeypatch):
    fitted = preflight.fit
    monkeypatch.setattr(preflight, "fit", lambda model: (fits.append(model), (float("nan"), 4.0))[1])
    assert all("do not belong" in preflight.check_fit(load(folder)) for _ in range(2)) and len(fits) == 2
    monkeypatch.setattr(preflight, "fit", fitted)
    monkeypatch.setattr(fingerprints, "SETTLED", 1e9)
    assert preflight.fit_once(load(folder)) == preflight.fit_once(load(folder)) and len(fits) == 4
    assert not fingerprints.cache_path(preflight.FITS).exists()


def test_the_memory_of_fit_checks_keeps_the_latest(fits, folder, monkeypatch):
    monkeypatch.setattr(preflight, "MOST_FITS", 3)
    for i in range(5):
        monkeypatch.setattr(preflight.torch, "__version__", f"2.{i}.0")
        preflight.fit_once(load(folder))
    known = json.loads(fingerprints.cache_path(preflight.FITS).read_text())
    assert len(known) == 3 and len(fits) == 5
    monkeypatch.setattr(preflight.torch, "__version__", "2.2.0")
    preflight.fit_once(load(folder))
    assert len(fits) == 5


def test_unused_files_of_a_published_folder_are_neither_read_nor_fingerprinted(folder):
    """Half-precision copies, pickles and the safety checker lie beside what is used."""
    before = load(folder).fingerprints
    (folder / "safety_checker").mkdir()
    for name in ("safety_checker/model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
                 "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors",
                 "model_index.json"):
        (folder / name).write_bytes(b"broken")
    assert load(folder).fingerprints == before


# --- the scheduler's file, several SAEs -------------------------------------------------------------------------------

@pytest.mark.parametrize("entries, sampler, last", [
    ({}, "pndm", "first"), (dict(_class_name="PNDMScheduler", skip_prk_steps=True), "pndm", "first"),
    (dict(_class_name="PNDMScheduler", set_alpha_to_one=True), "pndm", 1),
    (dict(_class_name="DDIMScheduler"), "ddim", 1),
    (dict(_class_name="DDIMScheduler", set_alpha_to_one=False), "ddim", "first")])
def test_the_scheduler_file_chooses_sampler_and_last_step(entries, sampler, last, folder):
    edit_json(folder / "scheduler/scheduler_config.json", **entries)
    model = load(folder)
    assert model.sampler == sampler == configure(model.settings).prior_sampler == capture.configure(model).sampler
    assert configure({"presets": {}} | model.settings, prior_sampler="pndm").prior_sampler == "pndm"
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
    """SAEs for up1.1 and up1.2, as SAeUron publishes them; they differ in k."""
    shutil.copytree(folder / SAE_FOLDER, folder / f"sae/unet.{OTHER}")
    edit_json(folder / f"sae/unet.{OTHER}/cfg.json", k=5)
    return folder


@pytest.mark.parametrize("wanted, hook_point, k",
                         [(None, HOOK, 4), (OTHER, OTHER, 5), (f"unet.{OTHER}", OTHER, 5), (HOOK, HOOK, 4)])
def test_the_hook_point_chooses_the_sae(wanted, hook_point, k, two):
    model = load(two, hook_point=wanted)
    assert model.hook_point == hook_point and model.sae.k == k
    assert f"sae/unet.{hook_point}/sae.safetensors" in model.fingerprints
    assert len([name for name in model.files if "sae/" in name]) == 2
    assert model.note == f"the SAE of {hook_point}, one of 2"


def test_the_only_sae_is_taken_and_no_other_is_made_up(two):
    shutil.rmtree(two / SAE_FOLDER)
    model = load(two)
    assert model.hook_point == OTHER and model.note == ""
    with pytest.raises(WeightsError) as caught:
        load(two, hook_point=HOOK)
    check_message(caught.value, two, f"has SAEs for {OTHER}, none for {HOOK}", "give one of these")
    (two / f"sae/unet.{OTHER}").rename(two / "sae/mid_block.attentions.0")
    shutil.copytree(two / "sae/mid_block.attentions.0", two / "sae/down_blocks.2.attentions.0")
    with pytest.raises(WeightsError) as caught:
        load(two)
    check_message(caught.value, two, "has SAEs for down_blocks.2.attentions.0, mid_block.attentions.0",
                  "which one is meant was not said")


def test_a_hook_point_without_any_sae(tmp_path):
    folder = write_model(tmp_path / "m", sae=None)
    assert load(folder, hook_point="unet.mid_block.attentions.0").hook_point == "mid_block.attentions.0"
    with pytest.raises(WeightsError) as caught:
        load(folder, hook_point="mid_block.attentions.7")
    check_message(caught.value, folder, "is no attention, resnet or convolution of this UNet; nearest:")
