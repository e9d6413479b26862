"""A weights folder in diffusers layout -> `Model`. Strict: every missing, unexpected or misshapen tensor is named.

    folder/unet/{config.json, diffusion_pytorch_model.safetensors}          required
    folder/vae/{config.json, diffusion_pytorch_model.safetensors}           what needs a missing part says so
    folder/text_encoder/{config.json, model.safetensors}
    folder/tokenizer/{vocab.json, merges.txt}
    folder/scheduler/scheduler_config.json                                  SD 1.x's numbers where it is missing
    folder/sae/<hook point>/{cfg.json, sae.safetensors}                     SAeUron's layout
    folder/sae/<hook point>/activity.safetensors                            largest mean activation at each sampling step
    folder/featviz.json                                                     settings that suit these weights

Sources: the published SD 1.4 and SD 1.5 folders (file names, config keys, tensor names); SAeUron's SAE folder. Sizes are read
from the configs; a config value for which there is no code here (another activation, another eps) is refused.
"""
import hashlib
import json
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from clip import TextEncoder, Tokenizer
from sae import SAE
from schedule import Schedule
from unet import UNet
from vae import VAE


class WeightsError(Exception):
    """Weights that cannot be used; the text is the one line that a user sees: the file, what was expected, what to do."""


# What the code does when the config is silent or must not say otherwise: config key -> the one value that is implemented.
FIXED = {
    "unet": {"layers_per_block": 2, "act_fn": "silu", "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0,
             "center_input_sample": False, "downsample_padding": 1, "mid_block_scale_factor": 1, "use_linear_projection": False},
    "vae": {"act_fn": "silu", "in_channels": 3, "out_channels": 3},
    "text_encoder": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 77},
    "scheduler": {"beta_schedule": "scaled_linear", "trained_betas": None, "prediction_type": "epsilon", "timestep_spacing": "leading"},
    "sae": {},
}
SIZES = {   # config key -> what a usable value looks like; these are passed on to the network
    "unet": ("block_out_channels", "cross_attention_dim", "attention_head_dim", "norm_num_groups", "in_channels", "out_channels"),
    "vae": ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups", "scaling_factor"),
    "text_encoder": ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "scheduler": ("beta_start", "beta_end", "num_train_timesteps"),
    "sae": ("d_in", "num_latents", "k", "input_unit_norm"),
}
WEIGHTS_FILE = {"unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors",
                "text_encoder": "model.safetensors"}
LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # VAE files before 2023


def modern_name(part, name):
    """A tensor's name in an older file -> the name here; None for one that carries nothing (position_ids)."""
    if part == "text_encoder":
        return None if name.endswith("position_ids") else name.removeprefix("text_model.")
    if part == "vae" and ".mid_block.attentions." in name:
        head, last, kind = name.rsplit(".", 2)
        return f"{head}.{LEGACY_ATTENTION.get(last, last)}.{kind}"
    return name


def read_json(path):
    """A JSON object from `path`, or a WeightsError that says what is wrong with the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read ({e.strerror}); expected a JSON file there") from e
    except ValueError as e:
        raise WeightsError(f"{path}: is not valid JSON ({e}); fetch or copy this file again") from e
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: expected a JSON object, found {type(value).__name__}; fetch or copy this file again")
    return value


def read_config(part, path):
    """The sizes that `part` is built with; WeightsError for a value that no code here implements."""
    config = read_json(path)
    for key, value in FIXED[part].items():
        if config.get(key, value) != value:
            raise WeightsError(f"{path}: {key} is {config[key]!r}, only {value!r} is implemented; these are not SD 1.x weights")
    return {key: config[key] for key in SIZES[part] if key in config}


def read_tensors(path, expected, rename=lambda name: name, dtype=None, device="cpu"):
    """Tensors of a safetensors file under the names of `expected` {name: shape}; WeightsError names what does not fit."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            names = {new: old for old in file.keys() if (new := rename(old)) is not None}
            missing, extra = sorted(expected.keys() - names.keys()), sorted(names.keys() - expected.keys())
            if missing or extra:
                kind, first = ("lacks", missing) if missing else ("has an unexpected", extra)
                more = f" and {len(missing) + len(extra) - 1} more mismatches" if len(missing) + len(extra) > 1 else ""
                raise WeightsError(f"{path}: {kind} tensor {first[0]!r}{more}; the file does not belong to its config.json")
            tensors = {}
            for name, shape in expected.items():
                found = tuple(file.get_slice(names[name]).get_shape())
                if found != shape:
                    raise WeightsError(f"{path}: {name} has shape {list(found)}, expected {list(shape)}; the file does not belong to "
                                       "its config.json")
                tensor = file.get_tensor(names[name])
                if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                    raise WeightsError(f"{path}: {name} holds {tensor.dtype} with NaN or infinite values or no numbers; "
                                       "fetch or copy this file again")
                tensors[name] = tensor.to(dtype)
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read ({e.strerror or e}); expected a safetensors file there") from e
    except SafetensorError as e:
        raise WeightsError(f"{path}: is not a whole safetensors file ({e}); fetch or copy this file again") from e
    return tensors


def build(part, network, config_path, weights_path, dtype, device):
    """Build `network` from its config without initialising it, then give it the file's tensors. Weights are frozen."""
    sizes = read_config(part, config_path)
    try:
        with torch.device("meta"):
            net = network(**sizes)
    except (TypeError, ValueError, RuntimeError) as e:
        raise WeightsError(f"{config_path}: gives sizes of which no network can be built ({str(e).splitlines()[0]}); "
                           "fetch or copy this file again") from e
    expected = {name: tuple(p.shape) for name, p in net.state_dict().items()}
    tensors = read_tensors(weights_path, expected, lambda name: modern_name(part, name), dtype, device)
    net.load_state_dict(tensors, strict=True, assign=True)
    return net.requires_grad_(False).eval()


def read_sae_config(path):
    """SAeUron's cfg.json: `num_latents` 0 means expansion_factor * d_in; fields that only training uses are ignored."""
    config = read_json(path)
    try:
        config["num_latents"] = config.get("num_latents") or config["expansion_factor"] * config["d_in"]
        return {key: config[key] for key in SIZES["sae"] if key in config}
    except (KeyError, TypeError) as e:
        raise WeightsError(f"{path}: lacks {e} of SAeUron's format; fetch or copy this file again") from e


def read_activity(path, sizes, device):
    """{"timesteps": (N,), "max_feature": (N, F), "max_channel": (N, D)}: the largest mean activation seen at each of N steps."""
    try:
        with safe_open(path, framework="pt") as file:
            n = file.get_slice("timesteps").get_shape()[0]
    except (OSError, SafetensorError) as e:
        raise WeightsError(f"{path}: is not a whole safetensors file with `timesteps` ({e}); fetch or copy this file again") from e
    expected = {"timesteps": (n,), "max_feature": (n, sizes["num_latents"]), "max_channel": (n, sizes["d_in"])}
    return read_tensors(path, expected, dtype=torch.float32, device=device)


class Model:
    """The parts of one weights folder, loaded; axes as in unet.py and sae.py.

    unet, vae, sae, text_encoder, tokenizer, schedule; `hook_point` is the SAE's; `settings` is featviz.json. A part that the
    folder lacks raises WeightsError when it is used.
    """

    def __init__(self, folder, device, dtype, parts, schedule, hook_point, settings):
        self.folder, self.device, self.dtype = Path(folder), torch.device(device), dtype
        self.parts, self.schedule, self.hook_point, self.settings = parts, schedule, hook_point, settings
        self.unet = parts["unet"]

    def part(self, name, contents):
        if name not in self.parts:
            raise WeightsError(f"{self.folder / name}: not there, and this needs it; expected {contents} "
                               "(see weights/README.md for where they come from)")
        return self.parts[name]

    vae = property(lambda self: self.part("vae", "config.json and diffusion_pytorch_model.safetensors"))
    sae = property(lambda self: self.part("sae", "a folder named after its hook point with cfg.json and sae.safetensors"))
    text_encoder = property(lambda self: self.part("text_encoder", "config.json and model.safetensors"))
    tokenizer = property(lambda self: self.part("tokenizer", "vocab.json and merges.txt"))
    activity = property(lambda self: self.part("sae/*/activity.safetensors", "the largest activations, from which a steered prior "
                                               "takes its strength; --prior noise does without"))

    @property
    def name(self):
        return self.folder.resolve().name

    @torch.no_grad()
    def embed(self, prompts):
        """Prompts (a list of B strings) -> text (B, 77, Dc) for the UNet's cross-attention."""
        return self.text_encoder(self.tokenizer(prompts).to(self.device))

    def encode(self, images):
        """Images (B, 3, 8H, 8W) in [0, 1] -> scaled latents (B, 4, H, W), float32."""
        return self.vae.encode(images.float())

    def decode(self, z):
        """Scaled latents (B, 4, H, W) -> images (B, 3, 8H, 8W) in [0, 1], float32: half precision overflows in SD's decoder."""
        return self.vae.decode(z.float())

    @cached_property
    def latent_shape(self):
        """(4, H, W) of the size that the UNet was trained at (`sample_size` of its config)."""
        size = read_json(self.folder / "unet/config.json").get("sample_size", 64)
        return (self.unet.conv_in.in_channels, *(size if isinstance(size, list) else (size, size)))

    @cached_property
    def fingerprints(self):
        """{file below the folder: SHA-256 of its bytes} of everything that a result depends on."""
        out = {}
        for path in sorted(p for p in self.folder.rglob("*") if p.suffix in (".safetensors", ".json", ".txt")):
            with open(path, "rb") as file:
                out[path.relative_to(self.folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
        return out


def load(folder, device="cpu", dtype=torch.float32):
    """Load a weights folder (layout above). The UNet, text encoder and SAE take `dtype`; the VAE stays float32.

    Raises WeightsError, whose text is one line: the file, what was expected, what to do.
    """
    folder = Path(folder)
    if not (folder / "unet" / "config.json").exists():
        raise WeightsError(f"{folder}: is no model folder: no unet/config.json in it; give --weights a folder in diffusers layout, "
                           "such as weights/toy (weights/README.md says how to get Stable Diffusion's)")
    parts = {}
    for part, network, kind in (("unet", UNet, dtype), ("vae", VAE, torch.float32), ("text_encoder", TextEncoder, dtype)):
        if (folder / part).exists():
            parts[part] = build(part, network, folder / part / "config.json", folder / part / WEIGHTS_FILE[part], kind, device)
    if (folder / "tokenizer").exists():
        try:
            parts["tokenizer"] = Tokenizer.from_files(folder / "tokenizer/vocab.json", folder / "tokenizer/merges.txt")
        except (OSError, ValueError) as e:
            raise WeightsError(f"{folder / 'tokenizer'}: vocab.json or merges.txt cannot be used ({e}); fetch them again") from e
    scheduler = folder / "scheduler/scheduler_config.json"
    schedule = Schedule(**(read_config("scheduler", scheduler) if scheduler.exists() else {}), device=device)
    hook_point = None
    for cfg in sorted(folder.glob("sae/*/cfg.json"))[:1]:
        sizes = read_sae_config(cfg)
        try:
            hook_point = parts["unet"].hook_name(cfg.parent.name)
        except ValueError as e:
            raise WeightsError(f"{cfg.parent}: {e}; the folder must be named after the SAE's hook point") from e
        with torch.device("meta"):
            sae = SAE(**sizes)
        if sizes["d_in"] != parts["unet"].width(hook_point):
            raise WeightsError(f"{cfg}: d_in is {sizes['d_in']}, but {hook_point} of {folder / 'unet'} has "
                               f"{parts['unet'].width(hook_point)} channels; this SAE belongs to another UNet")
        expected = {name: tuple(p.shape) for name, p in sae.state_dict().items()}
        sae.load_state_dict(read_tensors(cfg.with_name("sae.safetensors"), expected, dtype=torch.float32, device=device), assign=True)
        parts["sae"] = sae.requires_grad_(False)
        if (path := cfg.with_name("activity.safetensors")).exists():
            parts["sae/*/activity.safetensors"] = read_activity(path, sizes, device)
    settings = read_json(folder / "featviz.json") if (folder / "featviz.json").exists() else {}
    return Model(folder, device, dtype, parts, schedule, hook_point, settings)
