"""Convert what people hold into the folder that load.py reads: `python weights/convert.py IN OUT`.

IN is a model as a single file ("LDM") or a folder with .bin, .fp16., shards or tokenizer.json, or an SAE, see saes.py.
OUT gets its name when it is complete. Tensors keep their precision and stay in the mapped file: no more memory than IN.
No code in a pickle runs (`torch.load(weights_only=True)`).

Sources
 [1] the published folders of SD 1.4 and SD 1.5: file names, variants, the VAE attention's names before 2023
 [2] CompVis/latent-diffusion and stable-diffusion: the single file, its EMA copies, its schedule buffers
 [3] diffusers' converters and what tools for pictures write into single files: more spellings of the same names
"""
import argparse
import inspect
import json
import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

if __name__ == "__main__":                                      # as a script this folder is on the path, not the root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from command.flags import Parser, guarded  # noqa: E402
from command.progress import say  # noqa: E402
from schedule import Schedule  # noqa: E402
from weights import WeightsError  # noqa: E402
from weights.load import (  # noqa: E402
    AGAIN, FILES, NETWORKS, check_config, check_shapes, finite, foreign, on_meta, open_tensors, read_json)
from weights.saes import MARKS, read_sae, read_sae_config  # noqa: E402

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model",   # of a network's file in a folder [1], and of an SAE's
         "sae", "sae_weights", "state_dict", "ae")
CONTAINERS = ("state_dict", "model_state_dict", "model", "module", "params", "unet")    # where a pickle keeps tensors
WRAPPERS = re.compile(r"((_orig_mod|module|sae|ae|model)\.)*")  # that training puts in front of all names
SIZES = {       # {part: config} of SD 1.x, which the networks' defaults are; a single file has no configs
    part: {p.name: list(p.default) if isinstance(p.default, tuple) else p.default
           for p in inspect.signature(network).parameters.values()} for part, network in NETWORKS.items()}
PIECE = re.compile(r"-(\d+)-of-(\d+)")       # of a network in several files
V_PREDICTION = "predicts v (v-prediction); only models that predict the noise can be used"
EMA = "model_ema."                              # model_ema.diffusion_modelinput_blocks00weight, without more dots [2]
UNREAD = re.compile(r"(^|\.)(position_ids|logit_scale|text_projection(\.weight)?|logvar|loss\..*|model_ema\..*|"
                    r"num_batches_tracked|vision_model\..*|visual_projection\..*|safety_checker\..*)$")
OTHERS = {      # names of tensors -> what such a file is
    r"lora|\.hada_|\.lokr_": "a LoRA", r"^(control_model|input_hint_block|controlnet_\w+)\.": "a ControlNet",
    r"string_to_param|^emb_params$|^<.*>$": "a textual inversion", r"motion_modules?\.": "a part of AnimateDiff",
    r"^conditioner\.embedders\.": "Stable Diffusion XL", r"^cond_stage_model\.model\.": "Stable Diffusion 2.x",
    r"double_blocks\.|joint_blocks\.|single_transformer_blocks\.": "a transformer such as FLUX or SD 3"}
WIDTHS = {      # a field of the UNet's config -> ends of the names of tensors whose second axis shows it
    "in_channels": ("input_blocks.0.0.weight", "conv_in.weight"), "cross_attention_dim": "attn2.to_k.weight"}
KINDS = {"0": "resnets", "1": "attentions"}     # of one block of the single file's UNet
PREFIXES = {    # what stands in front of a network's names in one file of several; nothing in a file of its own [2, 3]
    "unet": r"(model\.)?diffusion_model\.|unet\.|", "vae": r"first_stage_model\.|vae\.|",
    "text_encoder": r"((cond_stage_model|text_encoder)\.)?(transformer\.)*(text_model\.)?"}
RENAMES = {     # what else a name has in the single file and in older folders -> here, one after another [1, 2, 3]
    "unet": {
        r"^time_embed\.0": "time_embedding.linear_1", r"^time_embed\.2": "time_embedding.linear_2",
        r"^input_blocks\.0\.0": "conv_in", r"^out\.0": "conv_norm_out", r"^out\.2": "conv_out",
        r"^middle_block\.0": "mid_block.resnets.0", r"^middle_block\.2": "mid_block.resnets.1",
        r"^middle_block\.1": "mid_block.attentions.0",
        r"^input_blocks\.(\d+)\.0\.op": lambda m: f"down_blocks.{int(m[1]) // 3 - 1}.downsamplers.0.conv",
        r"^input_blocks\.(\d+)\.(0|1)":
            lambda m: f"down_blocks.{(int(m[1]) - 1) // 3}.{KINDS[m[2]]}.{(int(m[1]) - 1) % 3}",
        r"^output_blocks\.(\d+)\.(1|2)\.conv": lambda m: f"up_blocks.{int(m[1]) // 3}.upsamplers.0.conv",
        r"^output_blocks\.(\d+)\.(0|1)": lambda m: f"up_blocks.{int(m[1]) // 3}.{KINDS[m[2]]}.{int(m[1]) % 3}",
        r"in_layers\.0": "norm1", r"in_layers\.2": "conv1", r"out_layers\.0": "norm2", r"out_layers\.3": "conv2",
        r"emb_layers\.1": "time_emb_proj", r"skip_connection": "conv_shortcut"},
    "vae": {
        r"\.down\.(\d)": r".down_blocks.\1", r"\.up\.(\d)": lambda m: f".up_blocks.{3 - int(m[1])}",
        r"\.block\.": ".resnets.", r"\.downsample\.": ".downsamplers.0.", r"\.upsample\.": ".upsamplers.0.",
        r"mid\.block_1": "mid_block.resnets.0", r"mid\.block_2": "mid_block.resnets.1",
        r"mid\.attn_1": "mid_block.attentions.0", r"nin_shortcut": "conv_shortcut", r"\.norm_out": ".conv_norm_out",
        r"attentions\.0\.norm": "attentions.0.group_norm", r"\.(to_)?q(uery)?\.": ".to_q.",
        r"\.(to_)?k(ey)?\.": ".to_k.", r"\.(to_)?v(alue)?\.": ".to_v.",
        r"\.(to_out|proj_attn|proj_out)\.(?!0)": ".to_out.0."},
}


def find_part(part, tensors, names):
    """Find a part's tensors by any spelling: ({our name: its key in `tensors`}, the prefixes that were met)."""
    found, prefixes = {}, set()
    for key in sorted(tensors):
        prefix = re.match(PREFIXES[part], key)[0]
        name = key.removeprefix(prefix)
        for old, new in RENAMES.get(part, {}).items():
            name = re.sub(old, new, name)
        if name in names and name not in found:
            found[name] = key
            prefixes.add(prefix)
    return found, prefixes


def cause(tensors):
    """Name what a file is that is no SD 1.x, by its names and shapes, "this is ..."; else advise to fetch it again."""
    for pattern, what in OTHERS.items():
        if any(re.search(pattern, name) for name in tensors):
            return f"this is {what}"
    widths = {key: tensor.shape[1] for key, ends in WIDTHS.items() for name, tensor in tensors.items()
              if name.endswith(ends) and "coder" not in name and tensor.ndim > 1}
    return foreign(widths) or AGAIN


class StandIn:
    """Stand in for an object whose class is not loaded: what was pickled becomes its attributes."""

    def __init__(self, *args, **kwargs):
        pass


def unpickle(path):
    """Read a file of torch.save, mapped, without running any code in it."""
    misnamed = path.suffix == ".safetensors"                    # torch.load would believe the name
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(StandIn, name) for name in classes]), open(path, "rb") as file:
            return torch.load(file if misnamed else path, map_location="cpu", weights_only=True, mmap=not misnamed)
    except Exception as e:                                      # a damaged pickle may raise anything
        why = (str(e) or type(e).__name__).splitlines()[0]
        if code := re.search(r"GLOBAL (\S+) whose module", str(e)):
            why = f"it would call {code[1]}: do not use it"
        raise WeightsError(f"{path}: is no whole file of torch.save ({why}); {AGAIN}") from e


def entries(value, *kinds):
    """Return the entries of these types in a dict, or in the state of a pickled object."""
    found = vars(value) if isinstance(value, StandIn) else value if isinstance(value, dict) else {}
    return {key: entry for key, entry in found.items() if isinstance(key, str) and isinstance(entry, kinds)}


def tensors_in(value):
    """Return {name: tensor} of a pickle's value, or of the first of CONTAINERS in it that holds any."""
    inside = entries(value, dict)
    found = [tensors_in(inside[key]) for key in CONTAINERS if key in inside]
    return next(filter(None, found), entries(value, torch.Tensor))


def read_file(path):
    """Read ({name: tensor} without WRAPPERS, plain values that a pickle holds beside them)."""
    first = b""
    with suppress(OSError), open(path, "rb") as file:           # open_tensors names the error
        first = file.read(9)
    if first.startswith((b"PK", b"\x80")) and first[8:] != b"{":            # safetensors has a length, then {
        value = unpickle(path)
        tensors, inside = tensors_in(value), entries(value, dict, StandIn)
        config = entries(inside.get("cfg", inside.get("config", value)), bool, int, float, str)
    else:
        with open_tensors(path) as file:
            tensors, config = {name: file.get_tensor(name) for name in file.keys()}, {}
            if (file.metadata() or {}).get("modelspec.prediction_type") in ("v", "v_prediction"):
                raise WeightsError(f"{path}: {V_PREDICTION}")
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors by name; expected a state_dict")
    start = WRAPPERS.match(os.path.commonprefix([*tensors]))[0]
    return {name.removeprefix(start): tensor for name, tensor in tensors.items()}, config


def find_files(folder):
    """Find the files of one network or SAE: the plain name before variants (.fp16.), safetensors before pickles."""
    def rank(name):
        stem, *variant, suffix = name.split(".")
        return stem not in STEMS, len(variant), suffix != "safetensors", name

    files = {PIECE.sub("", path.name): path for path in folder.glob("*") if path.suffix in SUFFIXES}
    if not files:
        raise WeightsError(f"{folder}: holds no weights (.safetensors or .bin)")
    name = min(files, key=rank)
    if rank(name)[0] and len(files) > 1:
        raise WeightsError(f"{folder}: which of {', '.join(sorted(files))} is meant? Leave one")
    pieces = PIECE.search(files[name].name)
    return [folder / PIECE.sub(f"-{n:0{len(pieces[1])}}-of-{pieces[2]}", files[name].name)
            for n in range(1, int(pieces[2]) + 1)] if pieces else [files[name]]


def read_set(source):
    """Read ({name: tensor}, plain values in a pickle, path for messages) of a file, or of the files of a folder."""
    tensors, config, paths = {}, {}, find_files(source) if source.is_dir() else [source]
    for path in paths:
        found, config = read_file(path)
        tensors |= found
    return tensors, config, path if len(paths) == 1 else source


def write(path, tensors, config_name, config, source):
    """Write a safetensors file and its config; WeightsError for NaN and infinity, which load.py would meet late."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS or not finite(tensor):
            what = "NaN or infinite values" if tensor.dtype in FLOATS else tensor.dtype
            raise WeightsError(f"{source}: {name} holds {what}, expected finite floats of 16 bits or more; {AGAIN}")
    path.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})
    path.with_name(config_name).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def write_networks(folder, tensors, configs, path):
    """Write the networks of `configs` {part: config} that are in the tensors; return a text on what was left out."""
    chosen, prefixes, left = {}, set(), {*tensors}
    for part, config in configs.items():
        expected = on_meta(NETWORKS[part], check_config(part, config, path), path).state_dict()
        keys, met = find_part(part, tensors, expected)
        if keys:                                                # a matrix may be stored as a 1x1 convolution
            check_shapes(path, {name: tensors[key].squeeze().shape for name, key in keys.items()},
                         {name: p.squeeze().shape for name, p in expected.items()}, cause(tensors))
            chosen[part] = {name: tensors[key].reshape(expected[name].shape) for name, key in keys.items()}
        prefixes |= met
        left -= {*keys.values()}
    extra = [key for key in left if key.startswith((*prefixes,)) and not UNREAD.search(key)] if prefixes else left
    if extra:
        raise WeightsError(f"{path}: has {min(extra)!r}, which Stable Diffusion 1.x has not; {cause(tensors)}")
    for part, found in chosen.items():
        write(folder / part / FILES[part], found, "config.json", configs[part], path)
    kinds = sorted({key.split(".")[0] for key in left})
    note = f"; {len(left)} tensors that no network reads are left out ({', '.join(kinds[:6])})" if left else ""
    return ", ".join(f"{part} {len(found)}" for part, found in chosen.items()) + f" tensors{note}"


def convert_folder(source, folder, ema):
    """Write every network of a folder in diffusers layout, and what is beside them; return a text on it."""
    said = []
    for part in NETWORKS:
        home = source / ("unet_ema" if ema and part == "unet" else part)
        if part == "unet" or home.exists():
            tensors, _, path = read_set(home)
            config = read_json(home / "config.json") if (home / "config.json").exists() else SIZES[part]
            config.pop("use_linear_projection", None)           # the same numbers as those of a 1x1 convolution
            said.append(write_networks(folder, tensors, {part: config}, path))
    if (scheduler := source / "scheduler/scheduler_config.json").exists():
        check_config("scheduler", read_json(scheduler), scheduler)
    for path in (source / name for name in ("tokenizer", "scheduler", "sae", "featviz.json", "prompts.txt")):
        if path.exists():
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, folder / path.name)
    return "; ".join(said)


def convert_single(tensors, path, folder, ema):
    """Write every network in a single file; return a text on it. WeightsError for another schedule or prediction."""
    yaml, usual = path.with_suffix(".yaml"), Schedule().alphas_cumprod
    if "v_pred" in tensors or yaml.is_file() and re.search(r"parameterization:\s*[\"']?v", yaml.read_text("utf-8")):
        raise WeightsError(f"{path}: {V_PREDICTION}")
    abar = tensors.get("alphas_cumprod", usual).float()
    if "ztsnr" in tensors or abar.any() and abar[-1] < 1e-4:
        raise WeightsError(f"{path}: was trained with zero terminal SNR; only SD 1.x's own noise schedule can be used")
    if abar.any() and (len(abar) != len(usual) or (abar - usual).abs().max() > 1e-2):
        raise WeightsError(f"{path}: has another noise schedule than Stable Diffusion 1.x (alphas_cumprod)")
    averaged = {key: EMA + key.removeprefix("model.").replace(".", "") for key in tensors}
    averaged = {key: tensors[other] for key, other in averaged.items() if other in tensors}
    if ema and not averaged:
        raise WeightsError(f"{path}: has no second set of weights ({EMA}*) for --ema; leave --ema out")
    said = write_networks(folder, tensors | averaged if ema else tensors, SIZES, path)
    taken = "the moving average" if ema else "the plain one, --ema takes the moving average"
    return f"{said}; the UNet is {taken}" if averaged else said


def convert_sae(tensors, config, path, folder, changes):
    """Write an SAE in our form, with `changes` to its cfg.json, and the labels beside it; return a text on it."""
    beside = next((path.with_name(name) for name in ("cfg.json", "config.json") if path.with_name(name).exists()), None)
    config = read_json(beside) if beside else config
    parts, fields, left = read_sae(tensors, config, path, beside.name if beside else "")
    fields |= changes
    read_sae_config(fields, path)
    write(folder / "sae.safetensors", parts, "cfg.json", fields, path)
    if (labels := path.with_name("labels.json")).exists():
        shutil.copyfile(labels, folder / "labels.json")
    note = f"; fields that change nothing here: {', '.join(left)}" if left else ""
    return (f"an SAE of {fields['source']}: {fields['num_latents']} features of {fields['d_in']} channels, gate "
            f"{fields['gate']}, reads the {fields['reads']} at time steps {fields['timesteps']} "
            f"(--reads, --timesteps say otherwise){note}")


def convert(source, target, ema=False, **changes):
    """Convert IN to OUT; return a text on what was written. `changes` are to an SAE's cfg.json."""
    source, target = Path(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise WeightsError(f"{target}: exists already; remove it or give another OUT")
    home = next(path for path in target.absolute().parents if path.exists())
    with TemporaryDirectory(prefix=f".{target.name}.", dir=home) as temporary:
        (folder := Path(temporary, "new")).mkdir()
        if (source / "unet").exists():
            said = convert_folder(source, folder, ema)
        else:
            tensors, config, path = read_set(source)
            said = (convert_sae(tensors, config, path, folder, changes) if MARKS & tensors.keys()
                    else convert_single(tensors, path, folder, ema))
        target.mkdir(parents=True, exist_ok=True)
        target.rmdir()                                          # or Windows would not rename
        folder.rename(target)
    return f"{target}: {said}"


def time_steps(text):
    """Read --timesteps: all, or numbers with commas."""
    return text if text == "all" else [int(t) for t in text.split(",")]


def main(argv=None):
    parser = Parser(prog="weights/convert.py", description="Convert weights and SAEs of Stable Diffusion 1.x.",
                    argument_default=argparse.SUPPRESS)
    parser.add_argument("source", metavar="IN", help="a single file or a folder, of a model or of an SAE")
    parser.add_argument("target", metavar="OUT", help="the folder to make; of an SAE weights/<model>/sae/<hook point>")
    parser.add_argument("--ema", action="store_true", help="of two sets of weights for the UNet, the moving average")
    parser.add_argument("--reads", choices=("output", "update"), help="of an SAE: output, or update (output - input)")
    parser.add_argument("--timesteps", type=time_steps, metavar="T,T", help="those an SAE was trained on, or all")
    flags = vars(parser.parse_args(argv))
    return guarded("convert", lambda: say(convert(**flags)))


if __name__ == "__main__":
    sys.exit(main())
