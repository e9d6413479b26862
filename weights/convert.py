"""Convert what people hold into the folder that load.py reads: `python weights/convert.py IN OUT`.

    python weights/convert.py v1-5-pruned.ckpt weights/sd15     single file ("LDM"): .safetensors, .ckpt, .pt, .bin
    python weights/convert.py style50 weights/style50           folder with .bin, .fp16., shards, tokenizer.json, ...
    python weights/convert.py ae.pt weights/sd15/sae/unet.mid_block.attentions.0            an SAE, see saes.py

OUT is written under another name and renamed at the end, so that a conversion that fails leaves nothing. Tensors keep
their precision and stay in the mapped file: it takes no more memory than IN. No code in a pickle runs
(`torch.load(weights_only=True)`); objects of a training framework become empty stand-ins.

Sources
 [1] the published folders of SD 1.4 and SD 1.5: file names, variants, the VAE attention's names before 2023
 [2] CompVis/latent-diffusion and stable-diffusion: the single file, its EMA copies, its schedule buffers
 [3] diffusers' converters and what tools for pictures write into single files: more spellings of the same names
"""
import inspect
import json
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":                                      # as a script this folder is on the path, not the root
    sys.path[:] = [str(ROOT), *(p for p in sys.path if p != str(ROOT / "weights"))]
from command.flags import Parser, guarded  # noqa: E402
from command.progress import say  # noqa: E402
from schedule import Schedule  # noqa: E402
from weights import WeightsError  # noqa: E402
from weights.load import (  # noqa: E402
    AGAIN, FILES, NETWORKS, check_config, check_shapes, finite, foreign, on_meta, open_tensors, read_json)
from weights.saes import MARKS, read_sae, read_sae_config  # noqa: E402

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")   # of a network's file in a folder [1]
SAE_FILES = ("sae.safetensors", "sae_weights.safetensors", "state_dict.pth", "ae.pt")
CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "params", "unet")    # where a pickle keeps tensors
WRAPPERS = ("_orig_mod.", "module.", "sae.", "ae.", "model.")   # that training puts in front of all names
SIZES = {       # {part: config} of SD 1.x, which the networks' defaults are; a single file has no configs
    part: {p.name: list(p.default) if isinstance(p.default, tuple) else p.default
           for p in inspect.signature(network).parameters.values()} for part, network in NETWORKS.items()}
V_PREDICTION = "predicts v (v-prediction); only models that predict the noise can be used"
EMA = "model_ema."                              # model_ema.diffusion_modelinput_blocks00weight, without more dots [2]
UNREAD = re.compile(r"(^|\.)(position_ids|logit_scale|text_projection(\.weight)?|logvar|loss\..*|model_ema\..*|"
                    r"num_batches_tracked|vision_model\..*|visual_projection\..*|safety_checker\..*)$")
OTHERS = {      # names of tensors -> what such a file is
    r"lora|\.hada_|\.lokr_": "a LoRA", r"^(control_model|input_hint_block|controlnet_\w+)\.": "a ControlNet",
    r"string_to_param|^emb_params$|^<.*>$": "a textual inversion", r"motion_modules?\.": "a part of AnimateDiff",
    r"^conditioner\.embedders\.": "Stable Diffusion XL", r"^cond_stage_model\.model\.": "Stable Diffusion 2.x",
    r"double_blocks\.|joint_blocks\.|single_transformer_blocks\.": "a transformer such as FLUX or SD 3"}
PREFIXES = {    # what stands in front of a network's names in one file of several; nothing in a file of its own [2, 3]
    "unet": ("model.diffusion_model.", "diffusion_model.", "unet.", ""),
    "vae": ("first_stage_model.", "vae.", ""),
    "text_encoder": [start + middle for middle in ("transformer.text_model.", "text_model.", "")
                     for start in ("cond_stage_model.transformer.", "cond_stage_model.", "text_encoder.", "")],
}
BLOCKS = {      # the beginning of a name here -> in the single file; the VAE decoder's levels count from its end [2]
    r"conv_in": lambda: "input_blocks.0.0",
    r"conv_norm_out": lambda: "out.0",
    r"conv_out": lambda: "out.2",
    r"time_embedding\.linear_(\d)": lambda n: f"time_embed.{2 * n - 2}",
    r"down_blocks\.(\d)\.resnets\.(\d)": lambda i, j: f"input_blocks.{3 * i + j + 1}.0",
    r"down_blocks\.(\d)\.attentions\.(\d)": lambda i, j: f"input_blocks.{3 * i + j + 1}.1",
    r"down_blocks\.(\d)\.downsamplers\.0\.conv": lambda i: f"input_blocks.{3 * i + 3}.0.op",
    r"mid_block\.resnets\.(\d)": lambda j: f"middle_block.{2 * j}",
    r"mid_block\.attentions\.0": lambda: "middle_block.1",
    r"up_blocks\.(\d)\.resnets\.(\d)": lambda i, j: f"output_blocks.{3 * i + j}.0",
    r"up_blocks\.(\d)\.attentions\.(\d)": lambda i, j: f"output_blocks.{3 * i + j}.1",
    r"up_blocks\.(\d)\.upsamplers\.0\.conv": lambda i: f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}.conv",
    r"encoder\.down_blocks\.(\d)": lambda i: f"encoder.down.{i}",
    r"decoder\.up_blocks\.(\d)": lambda i: f"decoder.up.{3 - i}",
}
LAYERS = {      # inside a block, here -> in the single file, one after another [2]
    "unet": {".norm1.": ".in_layers.0.", ".conv1.": ".in_layers.2.", ".time_emb_proj.": ".emb_layers.1.",
             ".norm2.": ".out_layers.0.", ".conv2.": ".out_layers.3.", ".conv_shortcut.": ".skip_connection."},
    "vae": {".mid_block.resnets.0.": ".mid.block_1.", ".mid_block.resnets.1.": ".mid.block_2.",
            ".resnets.": ".block.", ".downsamplers.0.": ".downsample.", ".upsamplers.0.": ".upsample.",
            ".conv_shortcut.": ".nin_shortcut.", ".conv_norm_out.": ".norm_out."},
    "text_encoder": {},
}
ATTENTION = {   # layers of the VAE's attention by all their names [1, 2, 3]
    "group_norm": ("group_norm", "norm"), "to_q": ("to_q", "query", "q"), "to_k": ("to_k", "key", "k"),
    "to_v": ("to_v", "value", "v"), "to_out.0": ("to_out.0", "to_out", "proj_attn", "proj_out")}


# --- names ------------------------------------------------------------------------------------------------------------

def spellings(part, name):
    """Every name under which a tensor was published, without prefixes: the folder's, the single file's, older ones."""
    single = name
    for pattern, there in BLOCKS.items():
        if found := re.match(pattern + r"(?=\.)", name):
            single = there(*map(int, found.groups())) + name[found.end():]
            break
    if "transformer_blocks" not in name:                        # a transformer's norms keep their names
        for ours, theirs in LAYERS[part].items():
            single = single.replace(ours, theirs)
    head, _, kind = name.rpartition(".")
    side, _, layer = head.partition(".mid_block.attentions.0.")
    return [name, single, *(f"{side}.{place}.{old}.{kind}" for old in ATTENTION.get(layer, ())
                            for place in ("mid.attn_1", "mid_block.attentions.0"))]


def find_part(part, tensors, names):
    """({our name: its key in `tensors`}, the prefixes that were met) of the tensors that are this part's."""
    table = {prefix + spelling: (name, prefix)
             for name in names for spelling in spellings(part, name) for prefix in PREFIXES[part]}
    keys = sorted(tensors.keys() & table.keys())
    return {table[key][0]: key for key in keys}, {table[key][1] for key in keys}


def cause(tensors):
    """What a file is that is no SD 1.x, judged by its names and shapes, "this is ..."; else that it is damaged."""
    widths = {}
    for name, tensor in tensors.items():
        for pattern, what in OTHERS.items():
            if re.search(pattern, name):
                return f"this is {what}"
        if name.endswith(("input_blocks.0.0.weight", "conv_in.weight")) and "coder" not in name and tensor.ndim == 4:
            widths["in_channels"] = tensor.shape[1]
        if name.endswith("attn2.to_k.weight"):
            widths["cross_attention_dim"] = tensor.shape[1]
    return foreign(widths) or AGAIN


# --- reading ----------------------------------------------------------------------------------------------------------

class StandIn:
    """Takes the place of an object whose class is not loaded; keeps what was pickled, and does nothing."""

    def __init__(self, *args, **kwargs):
        pass


def unpickle(path):
    """Read a file of torch.save, mapped, without running any code in it."""
    misnamed = path.suffix == ".safetensors"                    # torch.load would believe the name
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(type("StandIn", (StandIn,), {}), name) for name in classes]), \
                open(path, "rb") as file:
            return torch.load(file if misnamed else path, map_location="cpu", weights_only=True, mmap=not misnamed)
    except Exception as e:                                      # a damaged pickle may raise anything
        why = (str(e) or type(e).__name__).splitlines()[0]
        if code := re.search(r"GLOBAL (\S+) whose module", str(e)):
            why = f"it would call {code[1]}: do not use it"
        raise WeightsError(f"{path}: is no whole file of torch.save ({why}); {AGAIN}") from e


def entries(value, *kinds):
    """The entries of these types in a dict, or in the state of a pickled object."""
    found = vars(value) if isinstance(value, StandIn) else value if isinstance(value, dict) else {}
    return {key: entry for key, entry in found.items() if isinstance(key, str) and isinstance(entry, kinds)}


def tensors_in(value):
    """{name: tensor} in a pickle's value, which may keep them in an entry; {} where there are none."""
    inside = entries(value, dict)
    return next(filter(None, (tensors_in(inside[key]) for key in CONTAINERS if key in inside)),
                entries(value, torch.Tensor))


def unwrapped(tensors):
    """The tensors without the beginnings that all their names share."""
    for start in WRAPPERS:
        if tensors and all(name.startswith(start) for name in tensors):
            return unwrapped({name.removeprefix(start): tensor for name, tensor in tensors.items()})
    return tensors


def read_file(path):
    """({name: tensor}, the plain values that a pickle holds beside them) of a file, whatever its name ends in."""
    try:
        with open(path, "rb") as file:
            first = file.read(9)
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read ({e.strerror or e})") from e
    if first.startswith((b"PK", b"\x80")) and first[8:] != b"{":            # safetensors has a length, then {
        value = unpickle(path)
        if not (tensors := tensors_in(value)):
            raise WeightsError(f"{path}: holds no tensors by name; expected a state_dict")
        inside = entries(value, dict, StandIn)
        return unwrapped(tensors), entries(inside.get("cfg", inside.get("config", value)), bool, int, float, str)
    with open_tensors(path) as file:
        if (file.metadata() or {}).get("modelspec.prediction_type") in ("v", "v_prediction"):
            raise WeightsError(f"{path}: {V_PREDICTION}")
        return unwrapped({name: file.get_tensor(name) for name in file.keys()}), {}


def find_files(folder):
    """The files of one network in a folder: of several the plain name, before a variant (.fp16., .non_ema.), and
    safetensors before pickles.
    """
    def rank(name):
        stem, *variant, suffix = name.split(".")
        return name not in SAE_FILES and stem not in STEMS, len(variant), suffix != "safetensors", name

    files = {re.sub(r"-\d+-of-\d+", "", path.name): path for path in folder.glob("*") if path.suffix in SUFFIXES}
    if not files:
        raise WeightsError(f"{folder}: holds no weights (.safetensors or .bin)")
    name = min(files, key=rank)
    if rank(name)[0] and len(files) > 1:
        raise WeightsError(f"{folder}: which of {', '.join(sorted(files))} is meant? Leave one")
    if not (piece := re.search(r"-(\d+)-of-(\d+)", files[name].name)):
        return [files[name]]
    return [folder / files[name].name.replace(piece[0], f"-{n:0{len(piece[1])}}-of-{piece[2]}")
            for n in range(1, int(piece[2]) + 1)]


def read_set(source):
    """({name: tensor}, values in a pickle, path to name in messages) of a file, or of the files of a folder."""
    paths, tensors = find_files(source) if source.is_dir() else [source], {}
    for path in paths:
        found, config = read_file(path)
        tensors |= found
    return tensors, config, path if len(paths) == 1 else source


# --- writing ----------------------------------------------------------------------------------------------------------

def write_tensors(path, tensors, source):
    """Write a safetensors file of floats; WeightsError for NaN and infinity, which load.py would meet late."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS or not finite(tensor):
            what = "NaN or infinite values" if tensor.dtype in FLOATS else tensor.dtype
            raise WeightsError(f"{source}: {name} holds {what}, expected finite floats of 16 bits or more; {AGAIN}")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_networks(folder, tensors, configs, path):
    """Write the networks of `configs` {part: config} that are in the tensors, each complete and of the right shapes.

    Returns what was written and what was left out, as a text.
    """
    chosen, shapes, prefixes, left = {}, {}, set(), {*tensors}
    for part, config in configs.items():
        net = on_meta(NETWORKS[part], check_config(part, config, path), path)
        shapes[part] = {name: tuple(p.shape) for name, p in net.state_dict().items()}
        found, met = find_part(part, tensors, shapes[part])
        if found:
            chosen[part] = {name: tensors[key] for name, key in found.items()}
        prefixes |= met
        left -= {*found.values()}
    extra = [key for key in left if key.startswith((*prefixes,)) and not UNREAD.search(key)] if prefixes else tensors
    if extra or not chosen:
        first = min(extra, default="no tensor")
        raise WeightsError(f"{path}: has {first!r}, which Stable Diffusion 1.x has not; {cause(tensors)}")
    squeeze = lambda shape: tuple(n for n in shape if n > 1)                    # a matrix may be a 1x1 convolution
    for part, found in chosen.items():
        check_shapes(path, {name: squeeze(tensor.shape) for name, tensor in found.items()},
                     {name: squeeze(shape) for name, shape in shapes[part].items()}, cause(tensors))
        write_tensors(folder / part / FILES[part], {k: v.reshape(shapes[part][k]) for k, v in found.items()}, path)
        write_json(folder / part / "config.json", configs[part])
    kinds = sorted({key.split(".")[0] for key in left})
    note = f"; {len(left)} tensors that no network reads are left out ({', '.join(kinds[:6])})" if left else ""
    return ", ".join(f"{part} {len(found)}" for part, found in chosen.items()) + f" tensors{note}"


# --- models, SAEs, the command ----------------------------------------------------------------------------------------

def check_schedule(path, tensors):
    """WeightsError where a single file says that its noise schedule or its prediction is not SD 1.x's."""
    yaml = path.with_suffix(".yaml")
    if "v_pred" in tensors or yaml.is_file() and re.search(r"parameterization:\s*[\"']?v", yaml.read_text("utf-8")):
        raise WeightsError(f"{path}: {V_PREDICTION}")
    abar, usual = tensors.get("alphas_cumprod", torch.zeros(())), Schedule().alphas_cumprod
    if "ztsnr" in tensors or abar.any() and abar[-1] < 1e-4:
        raise WeightsError(f"{path}: was trained with zero terminal SNR; only SD 1.x's own noise schedule can be used")
    if abar.any() and (len(abar) != len(usual) or (abar.float() - usual).abs().max() > 1e-2):
        raise WeightsError(f"{path}: has another noise schedule than Stable Diffusion 1.x (alphas_cumprod)")


def convert_folder(source, folder, ema):
    """Write every network of a folder in diffusers layout, and what lies beside them; returns a text on it."""
    said = []
    for part in NETWORKS:
        home = source / ("unet_ema" if ema and part == "unet" else part)
        if part == "unet" or home.exists():
            tensors, _, path = read_set(home)
            config = read_json(home / "config.json") if (home / "config.json").exists() else SIZES[part]
            config.pop("use_linear_projection", None)           # the same numbers as those of a 1x1 convolution
            said.append(write_networks(folder, tensors, {part: config}, path))
    for path in (source / name for name in ("tokenizer", "scheduler", "sae", "featviz.json", "prompts.txt")):
        if path.exists():
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, folder / path.name)
    if (scheduler := source / "scheduler/scheduler_config.json").exists():
        check_config("scheduler", read_json(scheduler), scheduler)
    return "; ".join(said)


def convert_single(tensors, path, folder, ema):
    """Write every network in a single file; returns a text on it."""
    check_schedule(path, tensors)
    averaged = {key: EMA + key.removeprefix("model.").replace(".", "") for key in tensors}
    averaged = {key: tensors[other] for key, other in averaged.items() if other in tensors}
    if ema and not averaged:
        raise WeightsError(f"{path}: has no second set of weights ({EMA}*) for --ema; leave --ema out")
    said = write_networks(folder, tensors | averaged if ema else tensors, SIZES, path)
    taken = "the moving average" if ema else "the plain one, --ema takes the moving average"
    return said + f"; the UNet is {taken}" * bool(averaged)


def convert_sae(tensors, config, path, folder, changes):
    """Write sae.safetensors and cfg.json in our form, and labels.json where there is one; `changes` to its cfg.json."""
    beside = next((path.with_name(name) for name in ("cfg.json", "config.json") if path.with_name(name).exists()), None)
    config = read_json(beside) if beside else config
    parts, fields, left = read_sae(tensors, config, path, beside.name if beside else "")
    fields |= changes or {}
    read_sae_config(fields, path)
    write_tensors(folder / "sae.safetensors", parts, path)
    write_json(folder / "cfg.json", fields)
    if (labels := path.with_name("labels.json")).exists():
        shutil.copyfile(labels, folder / "labels.json")
    times = "all time steps" if fields["timesteps"] == "all" else f"time steps {fields['timesteps']}"
    note = f"; fields that change nothing here: {', '.join(left)}" if left else ""
    return (f"an SAE of {fields['source']}: {fields['num_latents']} features of {fields['d_in']} channels, gate "
            f"{fields['gate']}, reads the {fields['reads']} at {times} (--reads, --timesteps say otherwise){note}")


def convert(source, target, ema=False, changes=None):
    """Convert IN to OUT; returns the text that says what was written. `changes` are to an SAE's cfg.json."""
    source, target = Path(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise WeightsError(f"{target}: exists already; remove it or give another OUT")
    home = next(path for path in target.absolute().parents if path.exists())
    with TemporaryDirectory(prefix=f".{target.name}.", dir=home) as temporary:
        folder = Path(temporary, "new")
        folder.mkdir()
        if (source / "unet").exists():
            said = convert_folder(source, folder, ema)
        else:
            tensors, config, path = read_set(source)
            said = (convert_sae(tensors, config, path, folder, changes) if MARKS & tensors.keys()
                    else convert_single(tensors, path, folder, ema))
        target.mkdir(parents=True, exist_ok=True)
        target.rmdir()
        folder.rename(target)
    return f"{target}: {said}"


def time_steps(text):
    """Read --timesteps: all, or numbers with commas."""
    return text if text == "all" else [int(t) for t in text.split(",")]


def main(argv=None):
    parser = Parser(prog="weights/convert.py", description="Convert weights and SAEs of Stable Diffusion 1.x.")
    parser.add_argument("source", metavar="IN", help="a single file or a folder, of a model or of an SAE")
    parser.add_argument("target", metavar="OUT", help="the folder to make; of an SAE weights/<model>/sae/<hook point>")
    parser.add_argument("--ema", action="store_true", help="of two sets of weights for the UNet, the moving average")
    parser.add_argument("--reads", choices=("output", "update"), help="what an SAE was trained on: the output of the "
                        "hook point's module, or its update, output - input")
    parser.add_argument("--timesteps", type=time_steps, metavar="T,T", help="those an SAE was trained on, or all")
    args = parser.parse_args(argv)
    changes = {key: value for key in ("reads", "timesteps") if (value := getattr(args, key))}
    return guarded("convert", lambda: say(convert(args.source, args.target, args.ema, changes))) or 0


if __name__ == "__main__":
    sys.exit(main())
