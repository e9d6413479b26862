"""Convert what people hold into the folder that load.py reads: `python weights/convert.py IN OUT`.

    python weights/convert.py v1-5-pruned.ckpt weights/sd15     single file ("LDM"): .safetensors, .ckpt, .pt, .bin
    python weights/convert.py style50 weights/style50           folder with .bin, .fp16., shards, tokenizer.json, ...
    python weights/convert.py ae.pt weights/sd15/sae/unet.mid_block.attentions.0            an SAE of seven families

OUT is written beside its final place and renamed at the end, so that a conversion that fails leaves nothing. Tensors
keep their numbers and their precision and are copied one by one: it takes no more memory than IN. What no network reads
is left out and counted; what would change the mathematics is refused by name.

A pickle can run any code when it is read. `torch.load(weights_only=True)` runs none: it knows tensors and plain
containers alone. Checkpoints of a training framework also hold objects of its classes; each is replaced by an empty
stand-in.

Sources
 [1] the published folders of SD 1.4 and SD 1.5: file names, variants, the VAE attention's names before 2023
 [2] CompVis/latent-diffusion and stable-diffusion: the single file, its EMA copies, its schedule buffers
 [3] diffusers' converters and what tools for pictures write into single files: more spellings of the same names
"""
import argparse
import json
import os
import pickle
import re
import shutil
import sys
import tempfile
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":                                      # as a script this folder is on the path, not the root
    sys.path[:] = [str(ROOT), *(p for p in sys.path if p != str(ROOT / "weights"))]
from clip import Tokenizer  # noqa: E402
from command.progress import say, warn  # noqa: E402
from schedule import Schedule  # noqa: E402
from weights.load import (  # noqa: E402
    AGAIN, FILES, NETWORKS, PICKLES, WeightsError, check_config, check_widths, finite, foreign, on_meta, open_tensors,
    read_json, read_part, read_sae_config, read_scheduler, read_tokenizer, tokenizer_files, tokenizer_json)
from weights.saes import is_sae, read_sae  # noqa: E402

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
BROKEN = (RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError, OverflowError,
          pickle.UnpicklingError, zipfile.BadZipFile)           # what a damaged pickle makes torch.load raise
WHAT = {"unet": "UNet", "vae": "VAE", "text_encoder": "text encoder"}
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")   # of a network's file in a folder [1]
VARIANTS = ("", "fp16", "bf16", "non_ema")                      # between stem and suffix, in the order of choice
SAE_FILES = ("sae.safetensors", "sae_weights.safetensors", "state_dict.pth", "ae.pt")
CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "params", "unet")    # where a pickle keeps tensors
SIZES = {   # of SD 1.x; a single file has no configs [1]
    "unet": dict(block_out_channels=[320, 640, 1280, 1280], cross_attention_dim=768, attention_head_dim=8,
                 norm_num_groups=32, in_channels=4, out_channels=4, sample_size=64),
    "vae": dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4, norm_num_groups=32,
                scaling_factor=0.18215),
    "text_encoder": dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                         num_attention_heads=12),
}
SCHEDULER = dict(_class_name="PNDMScheduler", beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                 num_train_timesteps=1000, prediction_type="epsilon", set_alpha_to_one=False, skip_prk_steps=True,
                 steps_offset=1, clip_sample=False)
PREFIXES = {    # what may stand in front of a network's names; the empty one last [2, 3]
    "unet": ("model.diffusion_model.", "diffusion_model.", "module.unet.", "unet.", "module.", "_orig_mod.", ""),
    "vae": ("first_stage_model.", "module.vae.", "vae.", "module.", "_orig_mod.", ""),
    "text_encoder": tuple(start + middle for start in ("cond_stage_model.transformer.", "cond_stage_model.",
                                                       "text_encoder.", "module.", "_orig_mod.", "")
                          for middle in ("transformer.text_model.", "text_model.", "")),
}
V_PREDICTION = "predicts v (v-prediction); only models that predict the noise can be used"
EMA = "model_ema."                              # its names have no dots behind this one [2]
UNREAD = re.compile(r"(^|\.)(position_ids|logit_scale|text_projection(\.weight)?|logvar|loss\..*|model_ema\..*|"
                    r"num_batches_tracked|vision_model\..*|visual_projection\..*|safety_checker\..*)$")
OTHERS = {      # names of tensors -> what such a file is
    r"lora|\.hada_|\.lokr_": "a LoRA, which changes a model and is none: merge it into a model first",
    r"^conditioner\.embedders\.|^first_stage_model.*XL": "Stable Diffusion XL",
    r"^cond_stage_model\.model\.": "Stable Diffusion 2.x",
    r"double_blocks\.|joint_blocks\.|single_transformer_blocks\.": "a transformer such as FLUX or SD 3",
    r"^(control_model|input_hint_block|controlnet_\w+)\.": "a ControlNet, which steers a model and is none",
    r"string_to_param|^emb_params$|^<.*>$": "a textual inversion, which adds a word to a model and is none",
    r"motion_modules?\.": "a motion module of AnimateDiff, which adds time to a model and is none",
}
ATTENTION = re.compile(r"(encoder|decoder)\.(?:mid\.attn_1|mid_block\.attentions\.0)\.(\w+?)(\.0)?\.(weight|bias)")
ATTENTION_NAMES = {"norm": "group_norm", "group_norm": "group_norm"} | {
    old: new for new, olds in {"to_q": ("q", "query", "to_q"), "to_k": ("k", "key", "to_k"),
                               "to_v": ("v", "value", "to_v"), "to_out.0": ("proj_out", "proj_attn", "to_out")}.items()
    for old in olds}

# A name here -> the name in the single file: the first rule that fits the beginning, then every rule inside [2].
BEGINNINGS = {
    "unet": {
        r"conv_in": lambda: "input_blocks.0.0",
        r"time_embedding\.linear_(\d)": lambda n: f"time_embed.{2 * n - 2}",
        r"down_blocks\.(\d)\.resnets\.(\d)": lambda i, j: f"input_blocks.{3 * i + j + 1}.0",
        r"down_blocks\.(\d)\.attentions\.(\d)": lambda i, j: f"input_blocks.{3 * i + j + 1}.1",
        r"down_blocks\.(\d)\.downsamplers\.0\.conv": lambda i: f"input_blocks.{3 * i + 3}.0.op",
        r"mid_block\.resnets\.(\d)": lambda j: f"middle_block.{2 * j}",
        r"mid_block\.attentions\.0": lambda: "middle_block.1",
        r"up_blocks\.(\d)\.resnets\.(\d)": lambda i, j: f"output_blocks.{3 * i + j}.0",
        r"up_blocks\.(\d)\.attentions\.(\d)": lambda i, j: f"output_blocks.{3 * i + j}.1",
        r"up_blocks\.(\d)\.upsamplers\.0\.conv": lambda i: f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}.conv",
        r"conv_norm_out": lambda: "out.0",
        r"conv_out": lambda: "out.2",
    },
    "vae": {    # the decoder's levels are counted from the other end
        r"encoder\.down_blocks\.(\d)\.resnets\.(\d)": lambda i, j: f"encoder.down.{i}.block.{j}",
        r"encoder\.down_blocks\.(\d)\.downsamplers\.0\.conv": lambda i: f"encoder.down.{i}.downsample.conv",
        r"decoder\.up_blocks\.(\d)\.resnets\.(\d)": lambda i, j: f"decoder.up.{3 - i}.block.{j}",
        r"decoder\.up_blocks\.(\d)\.upsamplers\.0\.conv": lambda i: f"decoder.up.{3 - i}.upsample.conv",
        r"(en|de)coder\.mid_block\.resnets\.(\d)": lambda side, j: f"{side}coder.mid.block_{j + 1}",
    },
}
INSIDE = {
    "unet": {r"\.norm1": ".in_layers.0", r"\.conv1": ".in_layers.2", r"\.time_emb_proj": ".emb_layers.1",
             r"\.norm2": ".out_layers.0", r"\.conv2": ".out_layers.3", r"\.conv_shortcut": ".skip_connection"},
    "vae": {r"\.conv_shortcut": ".nin_shortcut", r"\.conv_norm_out": ".norm_out"},
}


# --- names ------------------------------------------------------------------------------------------------------------

def ldm_name(part, name):
    """The name of a UNet's or VAE's tensor in the single file, without the part's prefix; the VAE attention keeps ours.
    """
    for pattern, there in BEGINNINGS[part].items():
        if found := re.match(pattern + r"(?=\.)", name):
            name = there(*(int(n) if n.isdecimal() else n for n in found.groups())) + name[found.end():]
            break
    if "transformer_blocks" not in name:                        # a transformer's norms keep their names
        for pattern, there in INSIDE[part].items():
            name = re.sub(pattern + r"(?=\.)", there, name, count=1)
    return name


def our_attention(name):
    """The VAE attention's tensors under today's names, whichever of four spellings they have."""
    found = ATTENTION.fullmatch(name)
    if not found or found[2] not in ATTENTION_NAMES:
        return name
    return f"{found[1]}.mid_block.attentions.0.{ATTENTION_NAMES[found[2]]}.{found[4]}"


def spellings(part, names):
    """{what a tensor may be called: our name}, without prefixes."""
    ldm = {} if part == "text_encoder" else {ldm_name(part, name): name for name in names}
    return {name: name for name in names} | ldm


def find_part(part, tensors, shapes, path, ema=False):
    """({our name: its key in `tensors`}, the prefixes that were met) of the tensors that are this part's."""
    table, prefixes = spellings(part, shapes), PREFIXES[part]
    if ema:                                                     # "model_ema.diffusion_modelinput_blocks00weight"
        table = {f"diffusion_model.{name}".replace(".", ""): ours for name, ours in table.items()}
        prefixes = (EMA,)
    found, met = {}, set()
    for key in tensors:
        for prefix in prefixes:
            rest = key.removeprefix(prefix)
            if key.startswith(prefix) and (name := table.get(our_attention(rest) if part == "vae" else rest)):
                if name in found:
                    raise WeightsError(f"{path}: holds {name} twice, as {found[name]} and as {key}; {AGAIN}")
                found[name] = key
                met.add(prefix)
                break
    return found, met


def cause(tensors):
    """What a file is that is no SD 1.x, judged by its names and shapes: "this is ..."; "" where that is not known."""
    for pattern, what in OTHERS.items():
        if any(re.search(pattern, name) for name in tensors):
            return f"this is {what}"
    widths = {}
    for name, tensor in tensors.items():
        if name.endswith(("input_blocks.0.0.weight", "conv_in.weight")) and "coder" not in name and tensor.ndim == 4:
            widths["in_channels"] = tensor.shape[1]
        if name.endswith("attn2.to_k.weight"):
            widths["cross_attention_dim"] = tensor.shape[1]
    return foreign(widths)


def same_numbers(shape, wanted):
    """Whether shapes differ by axes of length 1 alone, as a matrix and a 1x1 convolution do."""
    return [n for n in shape if n != 1] == [n for n in wanted if n != 1]


def pick_part(part, tensors, sizes, path, ema=False):
    """{our name: tensor} of one part, complete and of the right shapes, and the keys that were taken; empty where the
    file has no tensor of this part.
    """
    shapes = {name: tuple(p.shape) for name, p in on_meta(NETWORKS[part], sizes, path).state_dict().items()}
    found, met = find_part(part, tensors, shapes, path, ema)
    if not found:
        return {}, set()
    what, why = WHAT[part], cause(tensors) or AGAIN
    foreign_names = tuple(p for other in PREFIXES if other != part for p in PREFIXES[other] if p)
    extra = sorted(key for key in tensors.keys() - {*found.values()} if key.startswith(tuple(met))
                   and not UNREAD.search(key) and not key.startswith(foreign_names))
    if missing := sorted(shapes.keys() - found.keys()):
        raise WeightsError(f"{path}: lacks {missing[0]!r} of the {what}, and {len(missing) - 1} more; {why}")
    for name, key in sorted(found.items()):
        if not same_numbers(tensors[key].shape, shapes[name]):
            raise WeightsError(f"{path}: {key} has shape {list(tensors[key].shape)}, the {what} of Stable Diffusion "
                               f"1.x has {list(shapes[name])}; {why}")
    if extra:
        raise WeightsError(f"{path}: has {extra[0]!r}, and {len(extra) - 1} more, which the {what} of Stable Diffusion "
                           f"1.x has not; {why}")
    return {name: tensors[key].reshape(shapes[name]) for name, key in found.items()}, {*found.values()}


# --- reading ----------------------------------------------------------------------------------------------------------

class StandIn:
    """Takes the place of an object whose class is not loaded; keeps the state that was pickled, and does nothing."""
    state = None

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        self.state = state

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        pass


def unpickle(path, zipped):
    """Read a pickle without running any of its code. zipped: torch.save's since 2020; only this kind can be mapped."""
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipped else []
        misnamed = path.suffix == ".safetensors"                # torch.load would believe the name
        with torch.serialization.safe_globals([(type("StandIn", (StandIn,), {}), name) for name in classes]), \
                open(path, "rb") as file:
            return torch.load(file if misnamed else path, map_location="cpu", weights_only=True,
                              mmap=zipped and not misnamed)
    except BROKEN as e:
        if code := re.search(r"GLOBAL (\S+) whose module", str(e)):
            raise WeightsError(f"{path}: would call {code[1]} when it is read as a pickle; that is no file of weights, "
                               "do not use it") from e
        raise WeightsError(f"{path}: is no whole file of torch.save ({(str(e) or type(e).__name__).splitlines()[0]}); "
                           f"{AGAIN}") from e


def entries(value):
    """The entries of a dict, or of a pickled object's state."""
    value = value.state if isinstance(value, StandIn) else value
    return value if isinstance(value, dict) else {}


def module_tensors(value, start=""):
    """{name: tensor} of a pickled network, as its state_dict would name them."""
    out = {}
    for kind in ("_parameters", "_buffers"):
        out |= {start + name: t for name, t in entries(entries(value).get(kind)).items() if isinstance(t, torch.Tensor)}
    for name, part in entries(entries(value).get("_modules")).items():
        out |= module_tensors(part, f"{start}{name}.")
    return out


def tensors_in(value):
    """{name: tensor} in a pickle's value, which may keep them in an entry; {} where there are none."""
    if isinstance(value, StandIn):
        return module_tensors(value)
    for key in CONTAINERS:
        if key in entries(value) and (inside := tensors_in(value[key])):
            return inside
    return {k: v for k, v in entries(value).items() if isinstance(k, str) and isinstance(v, torch.Tensor)}


def config_in(value):
    """The plain values of a config that is pickled beside the tensors, or of a pickled network."""
    config = next((entries(value)[key] for key in ("cfg", "config") if key in entries(value)), value)
    return {k: v for k, v in entries(config).items() if isinstance(v, (bool, int, float, str))}


def read_file(path):
    """({name: tensor}, config) of a file of either format, whatever its name ends in; mapped where it can be.
    """
    if path.suffix in (".gguf", ".onnx", ".msgpack", ".h5"):
        raise WeightsError(f"{path}: files of this kind cannot be converted; give the model's .safetensors or .ckpt")
    try:
        with open(path, "rb") as file:
            first = file.read(9)
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read ({e.strerror or e})") from e
    if first.startswith((b"PK", b"\x80")) and first[8:] != b"{":            # safetensors has a length, then {
        value = unpickle(path, first.startswith(b"PK"))
        if not (tensors := tensors_in(value)):
            raise WeightsError(f"{path}: holds no tensors by name; expected a state_dict")
        return tensors, config_in(value)
    with open_tensors(path) as file:
        if (file.metadata() or {}).get("modelspec.prediction_type") in ("v", "v_prediction"):
            raise WeightsError(f"{path}: {V_PREDICTION}")
        return {name: file.get_tensor(name) for name in file.keys()}, {}


def choose_files(folder):
    """The files of one network in a folder: of several, full precision before half, safetensors before pickles."""
    sets = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", *PICKLES):
            sets.setdefault(re.sub(r"-\d+-of-\d+", "", path.name), []).append(path)
    for index in folder.glob("*.index.json"):
        files = {*read_json(index).get("weight_map", {}).values()}
        sets[index.name.removesuffix(".index.json")] = [folder / name for name in sorted(files)]

    def rank(name):
        stem, *variant, suffix = name.split(".")
        variant = ".".join(variant)
        return (stem not in STEMS, VARIANTS.index(variant) if variant in VARIANTS else len(VARIANTS),
                suffix != "safetensors", name)
    if not sets:
        raise WeightsError(f"{folder}: holds no weights (.safetensors or .bin)")
    name = min(sets, key=rank)
    if rank(name)[0] and len(sets) > 1:
        raise WeightsError(f"{folder}: which of {', '.join(sorted(sets))} is meant? Leave one")
    paths = sets[name]
    if (count := re.search(r"-of-(\d+)", paths[0].name)) and len(paths) != int(count[1]):
        raise WeightsError(f"{folder}: has {len(paths)} of the {int(count[1])} pieces of {name}; fetch the others")
    return paths


def read_folder(folder):
    """({name: tensor}, text for the user) of a network's folder."""
    paths, out = choose_files(folder), {}
    for path in paths:
        out |= read_file(path)[0]
    return out, paths[0] if len(paths) == 1 else folder


# --- writing ----------------------------------------------------------------------------------------------------------

@contextmanager
def building(target):
    """A temporary folder beside `target` that takes its place when all went well, and is gone when not."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise WeightsError(f"{target}: exists already; remove it or give another OUT")
    new = [path for path in target.absolute().parents if not path.exists()]
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
    try:
        yield folder
        with suppress(OSError):
            target.rmdir()
        with suppress(OSError):                                 # a drive may have no permissions
            folder.chmod(0o777 & ~umask())
        os.rename(folder, target)
    except WeightsError as e:
        raise WeightsError(str(e).replace(str(folder), str(target))) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for path in new:
            with suppress(OSError):                             # not empty: all went well
                path.rmdir()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_tensors(path, tensors):
    """Write a safetensors file tensor by tensor, so that no second copy of all is in memory."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in sorted(tensors.items()):
        if tensor.dtype not in NAMES:
            raise WeightsError(f"{path}: {name} holds {tensor.dtype}, expected 16-, 32- or 64-bit floats")
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in sorted(tensors.items()):
            if not finite(tensor):
                raise WeightsError(f"{path}: {name} holds NaN or infinite values; {AGAIN}")
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_part(folder, part, tensors, config, path, ema=False):
    """Write one network of `tensors` with its config; returns ("unet 686", the keys that were taken), ("", {}) where
    there is none.
    """
    config = {key: value for key, value in config.items() if key != "use_linear_projection"}    # the same numbers
    found, keys = pick_part(part, tensors, check_config(part, config, path), path, ema)
    if not found:
        return "", set()
    write_tensors(folder / part / FILES[part], found)
    write_json(folder / part / "config.json", config)
    return f"{part} {len(found)}", keys


def write_tokenizer(folder, vocab, merges):
    """vocab.json and merges.txt as published for SD 1.x [1]."""
    folder.mkdir(parents=True)
    text = json.dumps(vocab, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / "vocab.json").write_bytes(text.encode("utf-8"))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_bytes(("\n".join(lines) + "\n").encode("utf-8"))


def write_clip_tokenizer(folder):
    """CLIP's tokenizer, which every SD 1.x has, from OpenAI's list."""
    tokenizer = Tokenizer.from_bpe(ROOT / "weights/clip/bpe_simple_vocab_16e6.txt.gz")
    write_tokenizer(folder, tokenizer.vocab, tokenizer.ranks)


# --- a single file ----------------------------------------------------------------------------------------------------

def check_marks(path, tensors):
    """WeightsError where a single file says that its noise schedule or its prediction is not SD 1.x's."""
    if "v_pred" in tensors:
        raise WeightsError(f"{path}: {V_PREDICTION}")
    abar = tensors.get("alphas_cumprod")
    if "ztsnr" in tensors or abar is not None and abar[-1] < 1e-4 and abar.any():
        raise WeightsError(f"{path}: was trained with zero terminal SNR; only SD 1.x's own noise schedule can be used")
    usual = Schedule().alphas_cumprod
    if abar is not None and abar.any() and (len(abar) != len(usual) or (abar.float() - usual).abs().max() > 1e-2):
        raise WeightsError(f"{path}: has another noise schedule than Stable Diffusion 1.x (alphas_cumprod)")
    for yaml in (path.with_suffix(".yaml"), path.with_suffix(".yml")):
        if yaml.exists() and re.search(r"parameterization:\s*[\"']?v", yaml.read_text(errors="replace")):
            raise WeightsError(f"{yaml}: {path.name} {V_PREDICTION}")


def convert_single(path, tensors, folder, ema, configs=None):
    """Write every network that is in one set of tensors; tokenizer and scheduler are SD 1.x's."""
    check_marks(path, tensors)
    said, taken = zip(*(write_part(folder, part, tensors, (configs or SIZES)[part], path, ema and part == "unet")
                        for part in NETWORKS))
    if ema and not (folder / "unet").exists():
        raise WeightsError(f"{path}: has no second set of weights ({EMA}*) for --ema; an `emaonly` file holds the "
                           "moving average under the plain names, leave --ema out")
    if not any(said):
        raise WeightsError(f"{path}: holds no network of Stable Diffusion 1.x; "
                           + (cause(tensors) or f"its first tensor is {min(tensors)!r}"))
    if (folder / "text_encoder").exists():
        write_clip_tokenizer(folder / "tokenizer")
    write_json(folder / "scheduler/scheduler_config.json", SCHEDULER)
    which = "the moving average" if ema else "the plain one, --ema takes the moving average"
    note = f"; the UNet is {which}" if sum(key.startswith(EMA) for key in tensors) > 2 else ""
    return f"{', '.join(filter(None, said))} tensors{note}" + left_out(tensors.keys() - set().union(*taken))


def left_out(keys):
    """The line about tensors that no network reads: how many, and of what kinds."""
    kinds = sorted({key.split(".")[0] for key in keys})
    some = ", ".join(kinds[:6]) + ", ..." * (len(kinds) > 6)
    return f"; {len(keys)} tensors that no network reads are left out ({some})" if keys else ""


# --- a folder ---------------------------------------------------------------------------------------------------------

def convert_folder(source, folder, ema):
    """Write the networks, tokenizer, scheduler and settings of a folder in diffusers layout of any age."""
    said, left = [], set()
    for part in NETWORKS:
        home = source / ("unet_ema" if ema and part == "unet" else part)
        if not home.exists():
            if part == "unet":
                raise WeightsError(f"{home}: is missing" + "; leave --ema out" * ema)
            continue
        tensors, path = read_folder(home)
        config = home / "config.json"
        text, keys = write_part(folder, part, tensors, read_json(config) if config.exists() else SIZES[part], path)
        if not text:
            raise WeightsError(f"{path}: holds no tensor of the {WHAT[part]} of Stable Diffusion 1.x; "
                               + (cause(tensors) or AGAIN))
        said.append(text + f" (from {path.name})" * (path.name != FILES[part]))
        left |= tensors.keys() - keys
    convert_tokenizer(source / "tokenizer", folder)
    for name in ("scheduler/scheduler_config.json", "featviz.json", "prompts.txt"):
        if (source / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
    return f"{', '.join(said)} tensors" + left_out(left)


def convert_tokenizer(source, folder):
    """vocab.json and merges.txt: copied, taken out of tokenizer.json, or CLIP's where the folder has none."""
    files, target = tokenizer_files(source), folder / "tokenizer"
    if files[0].name == "tokenizer.json":
        write_tokenizer(target, *tokenizer_json(*files))
    elif files[0].exists():
        target.mkdir()
        for path in files:
            shutil.copyfile(path, target / path.name)
    elif (folder / "text_encoder").exists():
        write_clip_tokenizer(target)


def snapshot(source):
    """The snapshot in a folder of the hub's cache; else the folder itself."""
    found = sorted((source / "snapshots").glob("*")) if source.name.startswith("models--") else []
    return max(found, key=lambda path: path.stat().st_mtime) if found else source


def verify(folder):
    """WeightsError unless load.py takes the folder."""
    parts = {part: read_part(folder, part, None, "cpu") for part in NETWORKS if (folder / part).exists()}
    if (folder / "tokenizer").exists():
        parts["tokenizer"] = read_tokenizer(folder / "tokenizer")
    if "unet" in parts:
        check_widths(folder, parts)
    if (path := folder / "scheduler/scheduler_config.json").exists():
        read_scheduler(path)


# --- SAEs -------------------------------------------------------------------------------------------------------------

def sae_file(folder):
    """The file with the tensors in an SAE's folder; None where there is none of a known name."""
    return next((folder / name for name in SAE_FILES if (folder / name).exists()), None)


def convert_sae(path, tensors, config, folder, changes=None):
    """Write sae.safetensors and cfg.json in our form, and labels.json where there is one; `changes` to its cfg.json."""
    beside = next((path.with_name(name) for name in ("cfg.json", "config.json") if path.with_name(name).exists()), None)
    config = read_json(beside) if beside else config
    parts, fields, left = read_sae(tensors, config, path, beside.name if beside else "")
    fields |= changes or {}
    write_tensors(folder / "sae.safetensors", parts)
    write_json(folder / "cfg.json", fields)
    read_sae_config(folder / "cfg.json")
    if (labels := path.with_name("labels.json")).exists():
        shutil.copyfile(labels, folder / "labels.json")
    times = "all time steps" if fields["timesteps"] == "all" else f"time steps {fields['timesteps']}"
    note = f"; fields that change nothing here: {', '.join(left)}" if left else ""
    return (f"an SAE of {fields['source']}: {fields['num_latents']} features of {fields['d_in']} channels, gate "
            f"{fields['gate']}, reads the {fields['reads']} at {times} (--reads, --timesteps say otherwise){note}")


def convert_saes(source, folder, changes=None):
    """Write every SAE in the folders of `source`; returns a text on each."""
    said = []
    for path in filter(None, map(sae_file, sorted(p for p in source.glob("*") if p.is_dir()))):
        said.append(f"{path.parent.name}: " + convert_sae(path, *read_file(path), folder / path.parent.name, changes))
    return said


def convert(source, target, ema=False, changes=None):
    """Convert IN to OUT; returns the text that says what was written."""
    source, target = snapshot(Path(source)), Path(target)
    if target.suffix in (".safetensors", *PICKLES):
        raise WeightsError(f"{target}: OUT is a folder; give {target.with_suffix('')}")
    if not source.exists():
        raise WeightsError(f"{source}: there is no such file or folder")
    with building(target) as folder:
        said = convert_any(source, folder, ema, changes)
        verify(folder)
    return f"{target}: {said}"


def convert_any(source, folder, ema, changes):
    if (source / "unet").exists():
        said = convert_folder(source, folder, ema)
        return "; ".join([said, *convert_saes(source / "sae", folder / "sae", changes)])
    path, configs = source, None
    if source.is_dir() and not (path := sae_file(source)):
        if said := convert_saes(source, folder, changes):
            return "; ".join(said)
        tensors, path = read_folder(source)
        config = read_json(source / "config.json") if (source / "config.json").exists() else {}
        configs = dict.fromkeys(NETWORKS, config) if config else None
    else:
        tensors, config = read_file(path)
    if is_sae(tensors):
        return convert_sae(path, tensors, config, folder, changes)
    return convert_single(path, tensors, folder, ema, configs)


def time_steps(text):
    """Read --timesteps: all, or numbers with commas."""
    return text if text == "all" else [int(t) for t in text.split(",")]


def main(argv=None):
    parser = argparse.ArgumentParser(description="Convert weights and SAEs of Stable Diffusion 1.x for --weights.")
    parser.add_argument("source", metavar="IN", help="a single file or a folder, of a model or of an SAE")
    parser.add_argument("target", metavar="OUT", help="the folder to make; of an SAE weights/<model>/sae/<hook point>")
    parser.add_argument("--ema", action="store_true", help="of two sets of weights for the UNet, the moving average")
    parser.add_argument("--reads", choices=("output", "update"), help="what an SAE was trained on: the output of the "
                        "hook point's module, or its update, output - input")
    parser.add_argument("--timesteps", type=time_steps, metavar="T,T", help="those an SAE was trained on, or all")
    args = parser.parse_args(argv)
    changes = {key: value for key in ("reads", "timesteps") if (value := getattr(args, key))}
    try:
        say(convert(args.source, args.target, args.ema, changes))
    except WeightsError as e:
        warn("convert: " + " ".join(str(e).split()))
        return 2
    except OSError as e:
        warn(f"convert: {e.filename or args.target}: {e.strerror or e}; make room or give another OUT, nothing is left "
             "of this one")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
