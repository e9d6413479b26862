"""Load a folder of weights of Stable Diffusion 1.x into a `Model`. One layout, strictly: what does not fit is named.

    folder/unet/{config.json, diffusion_pytorch_model.safetensors}          required
    folder/vae/{config.json, diffusion_pytorch_model.safetensors}           None in the Model where it is missing
    folder/text_encoder/{config.json, model.safetensors}
    folder/tokenizer/{vocab.json, merges.txt}
    folder/scheduler/scheduler_config.json                                  SD 1.x's numbers where it is missing
    folder/sae/<hook point>/{cfg.json, sae.safetensors, labels.json}        any number of them
    folder/featviz.json                                                     settings that suit these weights

This is diffusers' layout as it was published for SD 1.4 and SD 1.5, so tensors may also have two older spellings: the
VAE attention's `query, key, value, proj_attn`, and `text_model.` in front of the text encoder's names. Single files,
pickles, shards and other kinds of SAE are converted once: `python weights/convert.py IN OUT`.

On a CPU, in the file's own precision, tensors stay in the mapped file: loading takes no time, and what is never used
takes no memory. Otherwise they are converted one by one, and each is checked for NaN and infinity; `check_numbers`
looks at all.
"""
import copy
import hashlib
import json
import os
import re
import time
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from threading import Thread

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from clip import START, TextEncoder, Tokenizer, number
from config import HOOK_POINT, SETTINGS
from sae import GATES, NORMS, READS, SAE
from schedule import Schedule
from unet import UNet, updates
from vae import VAE
from weights.quick import quicken

ROOT = Path(__file__).resolve().parent
NETWORKS = {"unet": UNet, "vae": VAE, "text_encoder": TextEncoder}
FILES = {"unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors",
         "text_encoder": "model.safetensors"}
CONTENTS = {part: f"config.json and {file}" for part, file in FILES.items()} | {
    "tokenizer": "vocab.json and merges.txt", "sae": "<hook point>/cfg.json and <hook point>/sae.safetensors"}
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
AGAIN = "fetch or copy this file again"
LARGE = 2 ** 20             # numbers of a tensor, bytes of a file; below, reopening or remembering does not pay

# Keys of a config whose value changes the mathematics, with the only value for which there is code here.
FIXED = {
    "unet": {"layers_per_block": 2, "act_fn": "silu", "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0,
             "center_input_sample": False, "downsample_padding": 1, "mid_block_scale_factor": 1,
             "use_linear_projection": False, "only_cross_attention": False, "resnet_time_scale_shift": "default",
             "class_embed_type": None, "addition_embed_type": None},
    "vae": {"act_fn": "silu", "in_channels": 3, "out_channels": 3, "shift_factor": None},
    "text_encoder": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 77},
    "scheduler": {"beta_schedule": "scaled_linear", "trained_betas": None, "prediction_type": "epsilon",
                  "rescale_betas_zero_snr": False},
    "sae": {"activation": "topk", "signed": False, "skip_connection": False, "transcode": False, "cond_encoder": False,
            "time_embedding_dim": 0},
}
SIZES = {   # keys of a config that are handed to the network
    "unet": ("block_out_channels", "cross_attention_dim", "attention_head_dim", "norm_num_groups", "in_channels",
             "out_channels"),
    "vae": ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups", "scaling_factor"),
    "text_encoder": ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "scheduler": ("beta_start", "beta_end", "num_train_timesteps", "set_alpha_to_one"),
    "sae": ("d_in", "num_latents", "k", "centre"),
}
FRACTIONS, SWITCHES = ("scaling_factor", "beta_start", "beta_end"), ("centre", "set_alpha_to_one")
SAE_FIELDS = {  # of a cfg.json: those that are read, then those that only training or a reader of another tool needs
    *SIZES["sae"], *FIXED["sae"], "input_unit_norm", "norm", "gate", "threshold", "reads", "timesteps",
    "expansion_factor", "normalize_decoder", "batch_topk", "sample_topk", "multi_topk", "num_timesteps",
    "time_embedding_type", "source", "hook_point", "hookpoint"}
LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of the VAE, before 2023
INSTEAD = {     # what people find where weights should be, by its first bytes
    b"version https://git-lfs": "a git-lfs pointer; git lfs pull fetches the file itself",
    b"<": "a web page saved under this name; fetch the file again, signed in where the site asks for it",
    b"{": "JSON; fetch or copy the weights themselves",
    b"PK\3\4": "a pickle of torch.save; python weights/convert.py IN OUT makes a folder of it",
    b"\x80": "a pickle; python weights/convert.py IN OUT makes a folder of it",
}


class WeightsError(ValueError):
    """Weights that cannot be used. The text is one line: the file, the cause, what to do."""


# --- JSON -------------------------------------------------------------------------------------------------------------

def read_json(path):
    """Read a JSON object; WeightsError names what is wrong with the file."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read ({e.strerror or e}); expected a JSON file there") from e
    except (ValueError, RecursionError) as e:
        raise WeightsError(f"{path}: is not valid JSON in UTF-8 ({e})") from e
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def foreign(config):
    """Name the model that a UNet's config belongs to, where it is a known one other than SD 1.x; else ""."""
    if config.get("addition_embed_type") or config.get("cross_attention_dim") == 2048:
        return "this is Stable Diffusion XL"
    if config.get("cross_attention_dim") == 1024 or isinstance(config.get("attention_head_dim"), list):
        return "this is Stable Diffusion 2.x"
    return {9: "this is an inpainting UNet with 9 channels", 8: "this is an image-editing UNet with 8 channels",
            5: "this is a depth-guided UNet with 5 channels"}.get(config.get("in_channels"), "")


def pick_sizes(config, keys, path):
    """The entries `keys` of a config that are there; WeightsError for a value that is no size."""
    sizes = {key: config[key] for key in keys if key in config}
    for key, value in sizes.items():
        values = value if isinstance(value, list) else [value]
        if key in SWITCHES:
            kind, sound = "true or false", isinstance(value, bool)
        elif key in FRACTIONS:
            kind, sound = "a number above 0", type(value) in (int, float) and value > 0
        else:
            kind, sound = "whole numbers above 0", values and all(type(v) is int and v > 0 for v in values)
        if not sound:
            raise WeightsError(f"{path}: {key} is {str(value)[:80]}, expected {kind}")
    return sizes


def check_fixed(config, fixed, path, advice):
    """WeightsError for a value for which there is no code here."""
    for key, value in fixed.items():
        if config.get(key, value) not in (value, None):
            raise WeightsError(f"{path}: {key} is {str(config[key])[:80]}, only {value!r} is implemented; {advice}")


def check_config(part, config, path):
    """The sizes of a network, or the numbers of the schedule, in a config; WeightsError for what no code implements."""
    if part == "unet" and (other := foreign(config)):
        raise WeightsError(f"{path}: {other}; give weights of Stable Diffusion 1.x")
    check_fixed(config, FIXED[part], path, "give weights of Stable Diffusion 1.x")
    sizes = pick_sizes(config, SIZES[part], path)
    for heads, widths in (("attention_head_dim", "block_out_channels"), ("num_attention_heads", "hidden_size")):
        values = sizes.get(widths, [])
        if any(w % sizes.get(heads, 1) for w in (values if isinstance(values, list) else [values])):
            raise WeightsError(f"{path}: {heads} is {sizes[heads]}, which does not divide {widths} {values}")
    return sizes


def read_latent_size(path):
    """(H, W) that the UNet was trained at, 64 by default. Early SD 1.5 configs say 32; diffusers reads them as 64."""
    config = read_json(path)
    size = config.get("sample_size") or 64
    sizes = size if isinstance(size, list) else [size, size]
    if len(sizes) != 2 or not all(type(n) is int and n % 8 == 0 and 8 <= n <= 1024 for n in sizes):
        raise WeightsError(f"{path}: sample_size is {str(size)[:80]}, expected a multiple of 8 up to 1024")
    version = [int(n) for n in re.findall(r"\d{1,9}", str(config.get("_diffusers_version", "1")))[:2]]
    return tuple(max(n, 64) for n in sizes) if [] < version < [0, 9] else tuple(sizes)


def read_scheduler(path):
    """(numbers of the Schedule, "pndm" or "ddim") of a scheduler's config of any class: betas and prediction decide."""
    config = read_json(path)
    name, sizes = str(config.get("_class_name")), check_config("scheduler", config, path)
    if name.startswith(("FlowMatch", "EDM", "Karras", "ScoreSde")):
        raise WeightsError(f"{path}: {name} belongs to another kind of diffusion model; give weights of Stable "
                           "Diffusion 1.x")
    ddim = name == "DDIMScheduler"              # only this class ends at abar = 1 unless its file says otherwise
    return {"set_alpha_to_one": ddim} | sizes, "ddim" if ddim else "pndm"


def read_settings(path):
    """Read featviz.json: {"timestep": 361, "feature": 12, "presets": {name: {setting: value}}, ...}, all optional."""
    settings = read_json(path)
    presets = settings.get("presets", {})
    if not all(type(settings.get(key, 0)) is int for key in ("timestep", "feature")) or not isinstance(presets, dict) \
            or not all(isinstance(changes, dict) for changes in presets.values()):
        raise WeightsError(f"{path}: expected whole numbers for timestep and feature, and an object of objects for "
                           "presets")
    if unknown := [(preset, name) for preset, changes in presets.items() for name in changes if name not in SETTINGS]:
        raise WeightsError(f"{path}: preset {unknown[0][0]!r} sets {unknown[0][1]!r}, which is no setting; python "
                           "featviz.py --help lists them all")
    return settings


def read_sae_config(path):
    """Read what an SAE is built with: the fields of sae.SAE, SAeUron's where they are missing.

    A field that is on and that nobody here knows may change the mathematics, so it is refused.
    """
    config = read_json(path)
    check_fixed(config, FIXED["sae"], path, "python weights/convert.py IN OUT may know the file")
    if unknown := [key for key in config if key not in SAE_FIELDS and config[key]]:
        raise WeightsError(f"{path}: nobody here knows the field {unknown[0]!r}, which may change the mathematics; "
                           "take it out if it does not")
    if not config.get("num_latents"):
        config["num_latents"] = int(config.get("expansion_factor", 0) * config.get("d_in", 0))
    gate, times = config.get("gate", "topk"), config.get("timesteps", "all")
    if missing := [key for key in ("d_in", "num_latents", *["k"] * ("topk" in str(gate))) if not config.get(key)]:
        raise WeightsError(f"{path}: lacks {missing[0]!r}")
    sizes = {"k": 0} | pick_sizes(config, SIZES["sae"], path)
    norm = config.get("norm", "unit" if config.get("input_unit_norm") else "none")
    reads = config.get("reads", "output")
    for key, value, known in (("gate", gate, GATES), ("norm", norm, NORMS), ("reads", reads, READS)):
        if value not in known:
            raise WeightsError(f"{path}: {key} is {value!r}, expected one of {', '.join(known)}")
    if times != "all" and not (isinstance(times, list) and times and all(type(t) is int for t in times)):
        raise WeightsError(f'{path}: timesteps is {str(times)[:80]}, expected "all" or a list of time steps')
    if sizes["k"] > sizes["num_latents"]:
        raise WeightsError(f"{path}: k is {sizes['k']}, more than the {sizes['num_latents']} features")
    if type(threshold := config.get("threshold")) not in (int, float, type(None)):
        raise WeightsError(f"{path}: threshold is {str(threshold)[:80]}, expected one number for all features")
    return {"centre": True} | sizes | dict(norm=norm, gate=gate, reads=reads, threshold=threshold,
                                           timesteps=() if times == "all" else (*times,))


# --- tensors ----------------------------------------------------------------------------------------------------------

def open_tensors(path):
    """Open a safetensors file, for a `with`; WeightsError says what the file is instead."""
    try:
        return safe_open(path, framework="pt")
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read ({e.strerror or e}); expected a safetensors file there") from e
    except (SafetensorError, RuntimeError, ValueError) as e:
        with open(path, "rb") as file:
            first = file.read(32)
        why = next((f"is {what}" for begin, what in INSTEAD.items() if first.startswith(begin) and first[8:9] != b"{"),
                   f"is not a whole safetensors file ({' '.join(str(e).split())[:160]}); {AGAIN}")
        raise WeightsError(f"{path}: {why}") from e


def modern_name(part, name):
    """Today's name of a tensor that was published under an older one."""
    if part == "text_encoder":
        return name.removeprefix("text_model.")
    if part == "vae" and ".mid_block.attentions." in name:
        head, last, kind = name.rsplit(".", 2)
        return f"{head}.{LEGACY_ATTENTION.get(last, last)}.{kind}"
    return name


def find_tensors(file, path, shapes, part=None):
    """{name: its name in the open file}; WeightsError names the first tensor that is missing, unexpected or misshapen.
    """
    there = {}
    for key in file.keys():
        name = modern_name(part, key)
        if name in there:
            raise WeightsError(f"{path}: holds {name} twice, as {there[name]} and as {key}; {AGAIN}")
        if not name.endswith("position_ids"):                   # 0, 1, 2, ..., in old text encoders
            there[name] = key
    missing, extra = sorted(shapes.keys() - there.keys()), sorted(there.keys() - shapes.keys())
    if missing or extra:
        kind, first = ("lacks", missing) if missing else ("has an unexpected", extra)
        more = f" and {len(missing) + len(extra) - 1} more mismatches" if len(missing) + len(extra) > 1 else ""
        raise WeightsError(f"{path}: {kind} tensor {first[0]!r}{more}; the file does not belong to its config, or is "
                           "of another layout, which python weights/convert.py IN OUT may know")
    for name, shape in shapes.items():
        if tuple(found := file.get_slice(there[name]).get_shape()) != tuple(shape):
            raise WeightsError(f"{path}: {name} has shape {list(found)}, expected {list(shape)}; the file does not "
                               "belong to its config, fetch or copy both again")
    return there


def read_tensors(path, shapes, dtype=torch.float32, device="cpu", part=None):
    """{name: tensor} for `shapes` {name: shape}; exactly these names and shapes must be in the file.

    dtype None keeps the file's. A large tensor is converted from a mapping of its own, which ends with it, so that the
    file and the converted numbers are never in memory together.
    """
    with open_tensors(path) as file:
        found = find_tensors(file, path, shapes, part)
        return {name: read_tensor(path, key, dtype, device, file, prod(shapes[name]) >= LARGE)
                for name, key in found.items()}


def finite(tensor):
    """Whether no number is NaN or infinite. Both bounds pass NaN on, and take a sixtieth of the time of `isfinite`."""
    return not tensor.numel() or all(bound.isfinite() for bound in tensor.aminmax())


def read_vectors(path, width):
    """Read {name: vector (width,)} of a safetensors file, float32; WeightsError for another shape."""
    with open_tensors(path) as file:
        found = {key: file.get_tensor(key).float() for key in file.keys()}
    for key, vector in found.items():
        if vector.squeeze().shape != (width,):
            raise WeightsError(f"{path}: {key} has shape {list(vector.shape)}, expected [{width}], the channels of the "
                               "hook point; give the model that the vector belongs to (--weights)")
    return {key: vector.squeeze() for key, vector in found.items()}


def read_tensor(path, key, dtype, device, file, large):
    with open_tensors(path) if large else nullcontext(file) as file:
        tensor = file.get_tensor(key)
        if not tensor.is_floating_point():
            raise WeightsError(f"{path}: {key} holds {tensor.dtype}, expected floating-point numbers; {AGAIN}")
        if dtype in (None, tensor.dtype) and torch.device(device).type == "cpu":
            return tensor                                       # stays in the mapped file, and is not looked at here
        tensor = tensor.to(device, dtype)
    if not finite(tensor):
        raise WeightsError(f"{path}: {key} holds NaN or infinite values as {tensor.dtype}; {AGAIN}")
    return tensor


def on_meta(network, sizes, path):
    """Build `network(**sizes)` without memory; WeightsError blames `path` for impossible sizes."""
    try:
        with torch.device("meta"):
            return network(**sizes)
    except (TypeError, ValueError, RuntimeError) as e:
        why = str(e).splitlines()[0]
        raise WeightsError(f"{path}: gives sizes from which no network can be built ({why})") from e


def build(network, sizes, config_path, weights_path, dtype=torch.float32, device="cpu", part=None):
    """Build `network(**sizes)` and fill it strictly from a file; frozen."""
    net = on_meta(network, sizes, config_path)
    shapes = {name: tuple(p.shape) for name, p in net.state_dict().items()}
    net.load_state_dict(read_tensors(weights_path, shapes, dtype, device, part), strict=True, assign=True)
    return net.requires_grad_(False).eval()


def read_part(folder, part, dtype, device):
    """One network of a folder; WeightsError with the command that converts it where it is there in another form."""
    config, path = folder / part / "config.json", folder / part / FILES[part]
    if not path.exists():
        others = [p.name for p in sorted((folder / part).iterdir()) if p.name.endswith((*PICKLES, ".safetensors"))]
        raise WeightsError(f"{path}: is missing; " + (f"the folder has {others[0]}, which python weights/convert.py "
                                                      f"{folder} {folder}_converted can use" if others else AGAIN))
    sizes = check_config(part, read_json(config), config)
    net = build(NETWORKS[part], sizes, config, path, dtype, device, part)
    return quicken(net) if part == "unet" and torch.device(device).type == "cpu" else net


def tokenizer_json(path):
    """(vocabulary, merges) of the one file in which transformers 5 keeps a tokenizer."""
    value = read_json(path)
    model = value.get("model") or {}
    if model.get("type", "BPE") != "BPE" or not {"vocab", "merges"} <= model.keys():
        raise WeightsError(f"{path}: is no byte-pair tokenizer, as CLIP's is")
    vocab = model["vocab"] | {token["content"]: token["id"] for token in value.get("added_tokens", ())}
    return vocab, [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]


def tokenizer_files(folder):
    """The files in which a tokenizer is: vocab.json and merges.txt, else tokenizer.json."""
    alone = (folder / "tokenizer.json").exists() and not (folder / "vocab.json").exists()
    return [folder / "tokenizer.json"] if alone else [folder / "vocab.json", folder / "merges.txt"]


def read_tokenizer(folder):
    """Read the tokenizer; WeightsError where the vocabulary is not what CLIP's rule makes of the merges."""
    files = tokenizer_files(folder)
    names = " and ".join(path.name for path in files)
    try:
        tokenizer = Tokenizer.from_files(*files) if len(files) == 2 else Tokenizer(*tokenizer_json(*files))
    except WeightsError:
        raise
    except OSError as e:
        raise WeightsError(f"{e.filename}: cannot be read ({e.strerror}); expected a text file there") from e
    except (ValueError, RecursionError) as e:
        raise WeightsError(f"{folder}: {names} cannot be used ({e}); fetch or copy the tokenizer again") from e
    if any(len(pair) != 2 for pair in tokenizer.ranks):
        raise WeightsError(f"{files[-1]}: is no list of pairs; {AGAIN}")
    made = number(tokenizer.ranks)
    if tokenizer.vocab != made:
        odd = sorted(made.items() ^ tokenizer.vocab.items())[0][0] if isinstance(tokenizer.vocab, dict) else START
        raise WeightsError(f"{folder}: {names} disagree about {odd!r}; fetch or copy the tokenizer again")
    return tokenizer


# --- SAEs -------------------------------------------------------------------------------------------------------------

def find_saes(folder, unet):
    """{hook point: cfg.json} of every SAE in the folder."""
    found = {}
    for cfg in sorted(folder.glob("sae/*/cfg.json")):
        try:
            found[unet.hook_name(cfg.parent.name)] = cfg
        except ValueError as e:
            raise WeightsError(f"{cfg.parent}: {e}; the folder must be named after the SAE's hook point") from e
    return found


def choose_hook_point(folder, unet, wanted):
    """The hook point that is asked for; without one that of the only SAE, or the method's."""
    if wanted:
        try:
            return unet.hook_name(wanted)
        except ValueError as e:
            raise WeightsError(f"{folder}: {e}") from e
    there = find_saes(folder, unet)
    if len(there) > 1 and HOOK_POINT not in there:
        raise WeightsError(f"{folder / 'sae'}: has SAEs for {', '.join(there)}; give one of these as hook point")
    return HOOK_POINT if HOOK_POINT in there or not there else next(iter(there))


def read_sae(folder, unet, hook_point, device):
    """(SAE, {name: path} of its files, labels) at a hook point; (None, {}, {}) where the folder has none for it."""
    if not (cfg := find_saes(folder, unet).get(hook_point)):
        return None, {}, {}
    sizes, path = read_sae_config(cfg), cfg.with_name("sae.safetensors")
    if sizes["d_in"] != unet.width(hook_point):
        raise WeightsError(f"{cfg}: d_in is {sizes['d_in']}, but {hook_point} of {folder / 'unet'} has "
                           f"{unet.width(hook_point)} channels; give the SAE of this UNet")
    if sizes["reads"] == "update" and not updates(hook_point):
        raise WeightsError(f"{cfg}: reads is 'update', output minus input; {hook_point} has none, an attention has")
    sae = build(SAE, sizes, cfg, path, torch.float32, device)
    return sae, {p.relative_to(folder).as_posix(): p for p in (cfg, path)}, read_labels(cfg.with_name("labels.json"))


def read_labels(path):
    """{feature: word} of a labels.json, {"12": "cat"} or {"12": {"word": "cat", ...}}; empty where there is none."""
    if not path.exists():
        return {}
    labels = {key: entry.get("word") if isinstance(entry, dict) else entry for key, entry in read_json(path).items()}
    if not all(key.isdecimal() and isinstance(word, str) for key, word in labels.items()):
        raise WeightsError(f'{path}: expected features and words, {{"12": "cat"}}')
    return {int(key): word for key, word in labels.items()}


# --- fingerprints -----------------------------------------------------------------------------------------------------

class Fingerprints:
    """SHA-256 of files {name: path}, computed in a thread from now on; `result()` waits for them."""

    def __init__(self, files):
        self.files, self.found, self.error = files, {}, None
        self.thread = Thread(target=self.work, daemon=True)
        self.thread.start()

    def work(self):
        known = recall()
        before = dict(known)
        try:
            self.found = {name: fingerprint(path, known) for name, path in sorted(self.files.items())}
        except OSError as e:
            self.error = e
        if known != before:
            remember(known)

    def result(self):
        self.thread.join()
        if self.error:
            raise WeightsError(f"{self.error.filename}: cannot be read any more ({self.error.strerror})")
        return self.found


def fingerprint(path, known):
    """SHA-256 of a file. `known` {path: [size, mtime, SHA-256]} spares large files that did not change, and grows."""
    stat, key = os.stat(path), os.path.abspath(path)
    if known.get(key, ())[:2] == [stat.st_size, stat.st_mtime_ns]:
        return known[key][2]
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if stat.st_size >= LARGE and time.time() - stat.st_mtime > 2:                   # younger files may change unseen
        known[key] = [stat.st_size, stat.st_mtime_ns, found]
    return found


def cache_file():
    """Where fingerprints are remembered; None where the user has no home folder."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    except (RuntimeError, KeyError):
        return None
    return Path(base) / "featviz" / "fingerprints.json"


def recall():
    """The remembered entries that are well formed."""
    cache = cache_file()
    try:
        found = json.loads(cache.read_text(encoding="utf-8")) if cache else {}
        return {key: entry for key, entry in found.items() if len(entry) == 3 and isinstance(entry[2], str)}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def remember(known):
    """Write the cache anew; one that cannot be written costs a minute of hashing at each start, and no error."""
    if not (cache := cache_file()):
        return
    partial = cache.with_name(f"{cache.name}.{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({key: entry for key, entry in known.items() if os.path.exists(key)}))
        os.replace(partial, cache)
    except OSError:
        return


# --- the model --------------------------------------------------------------------------------------------------------

@dataclass(eq=False)
class Model:
    """The parts of one folder of weights; axes as in unet.py and sae.py. A part that is missing is None."""
    folder: Path
    name: str                                                   # of the results' folder
    device: torch.device
    dtype: torch.dtype                                          # of UNet and text encoder; VAE and SAE stay float32
    unet: UNet
    schedule: Schedule
    sampler: str                                                # "pndm", or "ddim" where the scheduler's file says so
    hook_point: str
    latent_shape: tuple                                         # (4, H, W) that the UNet was trained at
    vae: VAE | None = None
    text_encoder: TextEncoder | None = None
    tokenizer: Tokenizer | None = None
    sae: SAE | None = None
    labels: dict = field(default_factory=dict)                  # feature -> word, from the SAE's labels.json
    settings: dict = field(default_factory=dict)                # featviz.json
    files: dict = field(default_factory=dict)                   # name -> path of every file that was read
    capture: object = None                                      # activity.profile.Capture, where one is attached
    directions: dict = field(default_factory=dict)              # name -> vector (D,) that was asked for
    fit: tuple | None = None                                    # what weights.check.fit found, and
    fit_rows: list = field(default_factory=list)                # at which time steps

    def __post_init__(self):
        self.hashing = Fingerprints(self.files)

    @property
    def fingerprints(self):
        """{name: SHA-256} of every file that was read."""
        return self.hashing.result()

    def feature(self, n):
        """Return the direction (D,) along which feature n is read; sums and differences are directions, too."""
        return self.sae.encoder.weight[n]

    def channel(self, n):
        """Return the unit vector (D,) of raw channel n."""
        return torch.eye(self.unet.width(self.hook_point), device=self.device)[n]

    def require(self, *parts):
        """WeightsError for a part that is missing."""
        for part in parts:
            if getattr(self, part) is not None:
                continue
            if part == "sae" and (there := find_saes(self.folder, self.unet)):
                raise WeightsError(f"{self.folder / part}: has no SAE for {self.hook_point}; there are SAEs for "
                                   f"{', '.join(there)}: give --hook-point, or --channel for a raw channel")
            raise WeightsError(f"{self.folder / part}: is missing, and this needs it; expected {CONTENTS[part]}; see "
                               "weights/README.md")

    def at(self, hook_point):
        """A copy at another hook point; its SAE is the folder's SAE for that hook point, or None."""
        hook_point = choose_hook_point(self.folder, self.unet, hook_point)
        if hook_point == self.hook_point:
            return self
        other = copy.copy(self)
        other.hook_point, other.capture, other.fit = hook_point, None, None
        other.sae, files, other.labels = read_sae(self.folder, self.unet, hook_point, self.device)
        other.files = {name: path for name, path in self.files.items() if not name.startswith("sae/")} | files
        other.hashing = Fingerprints(other.files)
        return other

    @torch.no_grad()
    def embed(self, prompts):
        """Embed prompts (a list of B strings) for the UNet's cross-attention: (B, 77, Dc)."""
        return self.empty_prompt if prompts == [""] else self.encode_text(prompts)

    @cached_property
    def empty_prompt(self):
        """The text (1, 77, Dc) of "", which every ascent uses."""
        return self.encode_text([""])

    @torch.no_grad()
    def encode_text(self, prompts):
        self.require("text_encoder", "tokenizer")
        return self.text_encoder(self.tokenizer(prompts).to(self.device))

    def encode(self, images):
        """Encode images (B, 3, 8H, 8W) in [0, 1] to scaled latents (B, 4, H, W), float32, a row at a time."""
        self.require("vae")
        return torch.cat([self.vae.encode(image) for image in images.float().split(1)])

    def decode(self, z):
        """Decode scaled latents (B, 4, H, W) to images (B, 3, 8H, 8W) in [0, 1], a row at a time.

        In float32, since half precision overflows in SD's decoder. WeightsError where NaN comes from the file.
        """
        self.require("vae")
        images = torch.cat([self.vae.decode(row) for row in z.float().split(1)])
        if z.isfinite().all() and not images.isfinite().all():
            self.check_numbers()
        return images

    def check_numbers(self):
        """WeightsError for the first NaN or infinite number of any part."""
        for part in (*NETWORKS, "sae"):
            net = getattr(self, part)
            for name, tensor in net.state_dict().items() if isinstance(net, nn.Module) else ():
                if not finite(tensor):
                    raise WeightsError(f"{self.folder / part}: {name} holds NaN or infinite values as {tensor.dtype}; "
                                       f"{AGAIN}")


def check_widths(folder, parts):
    """WeightsError where two parts that work together differ in a width."""
    unet, vae, text, tokenizer = (parts.get(part) for part in ("unet", "vae", "text_encoder", "tokenizer"))
    latent = unet.conv_in.in_channels
    context = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.in_features
    pairs = [("unet", "latent channels out", unet.conv_out.out_channels, "UNet takes", latent)]
    if vae:
        pairs.append(("vae", "latent channels", vae.post_quant_conv.in_channels, "UNet takes", latent))
    if text:
        pairs.append(("text_encoder", "wide text", text.final_layer_norm.normalized_shape[0], "UNet takes", context))
    if text and tokenizer:
        known = text.embeddings.token_embedding.num_embeddings
        pairs.append(("tokenizer", "tokens", len(tokenizer.vocab), "text encoder knows", known))
    for part, what, found, other, expected in pairs:
        if found != expected:
            raise WeightsError(f"{folder / part}: has {found} {what}, the {other} {expected}; give parts of one model")


def choose_device(name=None):
    """The device of that name; None takes the GPU where there is one, under torchrun each process its own."""
    name = str(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: no CUDA device is visible to torch {torch.__version__}; use --device cpu")
    if name == "cuda" and (rank := os.environ.get("LOCAL_RANK", "")).isdecimal():
        name = f"cuda:{int(rank) % torch.cuda.device_count()}"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise ValueError(f"--device {name}: {str(e).splitlines()[0]}; use --device cpu") from e
    return torch.device(name)


def choose_dtype(device):
    """float32 on a CPU; on a GPU bfloat16 where it is native (Ampere and later), else float16."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def be_reproducible():
    """Make a card take kernels that give the same bytes each time. The gradient of grid_sample has none: an ascent with
    rotation or zoom (--rotate-max, --scale-max) may differ in the last bits."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
    torch.use_deterministic_algorithms(True, warn_only=True)


def check_folder(path):
    """WeightsError with what to do instead where `path` is no folder of weights."""
    if path.is_file():
        raise WeightsError(f"{path}: is a single file; python weights/convert.py {path} {path.with_suffix('')} makes a "
                           f"folder of it, then --weights {path.with_suffix('')}")
    if not (path / "unet" / "config.json").exists():
        raise WeightsError(f"{path}: is no folder of weights: it has no unet/config.json; give a folder in diffusers "
                           "layout, such as weights/toy (weights/README.md says how to get Stable Diffusion's)")


def load(path=None, device=None, dtype=None, hook_point=None):
    """Load a folder of weights; without one, the toy of the project.

    device, dtype   chosen by the machine where they are None, see choose_device and choose_dtype
    hook_point      with or without `unet.` in front; None is the only SAE's, or up_blocks.1.attentions.1

    WeightsError, one line, for whatever does not fit. NaN and infinity are noticed where numbers are converted, where
    a picture is decoded, in the fit check (check.py), and by Model.check_numbers.
    """
    folder = Path(path) if path else ROOT / "toy"
    check_folder(folder)
    device = choose_device(device)
    if device.type == "cuda":
        be_reproducible()
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype or choose_dtype(device)
    parts, files = {}, {}
    for part in NETWORKS:
        if (folder / part).exists():
            parts[part] = read_part(folder, part, torch.float32 if part == "vae" else dtype, device)
            files |= {f"{part}/{name}": folder / part / name for name in ("config.json", FILES[part])}
    if (folder / "tokenizer").exists():
        parts["tokenizer"] = read_tokenizer(folder / "tokenizer")
        files |= {f"tokenizer/{path.name}": path for path in tokenizer_files(folder / "tokenizer")}
    check_widths(folder, parts)
    numbers, sampler = {}, "pndm"
    if (scheduler := folder / "scheduler/scheduler_config.json").exists():
        numbers, sampler = read_scheduler(scheduler)
        files["scheduler/scheduler_config.json"] = scheduler
    settings = {}
    if (path := folder / "featviz.json").exists():
        settings = read_settings(path)
        files["featviz.json"] = path
    if sampler != "pndm":                       # what the scheduler's file says, unless featviz.json says otherwise
        presets = settings.get("presets", {})
        presets |= {name: {"prior_sampler": sampler} | presets.get(name, {}) for name in ("sae", "raw")}
        settings |= {"presets": presets}
    unet = parts["unet"]
    hook_point = choose_hook_point(folder, unet, hook_point)
    sae, sae_files, labels = read_sae(folder, unet, hook_point, device)
    shape = (unet.conv_in.in_channels, *read_latent_size(folder / "unet/config.json"))
    return Model(folder, folder.resolve().name, device, dtype, schedule=Schedule(**numbers, device=device),
                 sampler=sampler, hook_point=hook_point, latent_shape=shape, sae=sae, labels=labels, settings=settings,
                 files=files | sae_files, **parts)
