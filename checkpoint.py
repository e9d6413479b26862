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

from clip import END, START, TextEncoder, Tokenizer
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
LARGEST = {"layers_per_block": 16, "num_hidden_layers": 64, "block_out_channels": 2 ** 14}     # of other sizes: 2^24
HEADS_OF = {"attention_head_dim": "block_out_channels", "num_attention_heads": "hidden_size"}   # number of heads -> what it divides
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HOOK_POINT = "up_blocks.1.attentions.1"                         # of the method; an SAE's folder says otherwise
AGAIN = "fetch or copy this file again"
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
        raise WeightsError(f"{path}: cannot be read ({e.strerror}); expected a JSON file there, {AGAIN}") from e
    except (ValueError, RecursionError) as e:
        raise WeightsError(f"{path}: is not valid JSON ({e}); {AGAIN}") from e
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: expected a JSON object, found {type(value).__name__}; {AGAIN}")
    return value


def listed(value):
    return value if isinstance(value, list) else [value]


def check_sizes(path, sizes):
    """WeightsError for a value that cannot be what its key names, before it turns into a crash or an endless construction."""
    for key, value in sizes.items():
        if key == "input_unit_norm":
            kind, sound = "true or false", isinstance(value, bool)
        elif key in ("scaling_factor", "beta_start", "beta_end"):
            limit = 1 if key.startswith("beta") else float("inf")
            kind, sound = f"a number between 0 and {limit}", type(value) in (int, float) and 0 < value < limit
        else:
            limit = LARGEST.get(key, 2 ** 24)
            values = listed(value) if key == "block_out_channels" else [value]
            kind, sound = f"whole numbers from 1 to {limit}", values and all(type(v) is int and 1 <= v <= limit for v in values)
        if not sound:
            raise WeightsError(f"{path}: {key} is {value!r}, expected {kind}; {AGAIN}")
    for heads, width in HEADS_OF.items():
        if heads in sizes and any(w % sizes[heads] for w in listed(sizes.get(width, 0))):
            raise WeightsError(f"{path}: {heads} is {sizes[heads]}, which does not divide {width} {sizes[width]}; {AGAIN}")


def read_config(part, path):
    """The sizes that `part` is built with; WeightsError for a value that no code here implements."""
    config = read_json(path)
    for key, value in FIXED[part].items():
        if config.get(key, value) != value:
            raise WeightsError(f"{path}: {key} is {config[key]!r}, only {value!r} is implemented; give SD 1.x weights")
    sizes = {key: config[key] for key in SIZES[part] if key in config}
    check_sizes(path, sizes)
    return sizes


def read_tensors(path, expected, rename=lambda name: name, dtype=None, device="cpu"):
    """Tensors of a safetensors file under the names of `expected` {name: shape}; WeightsError names what does not fit."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            names = {new: old for old in file.keys() if (new := rename(old)) is not None}
            missing, extra = sorted(expected.keys() - names.keys()), sorted(names.keys() - expected.keys())
            if missing or extra:
                kind, first = ("lacks", missing) if missing else ("has an unexpected", extra)
                more = f" and {len(missing) + len(extra) - 1} more mismatches" if len(missing) + len(extra) > 1 else ""
                raise WeightsError(f"{path}: {kind} tensor {first[0]!r}{more}; the file does not belong to its config, "
                                   "fetch or copy both again")
            tensors = {}
            for name, shape in expected.items():
                found = tuple(file.get_slice(names[name]).get_shape())
                if found != shape:
                    raise WeightsError(f"{path}: {name} has shape {list(found)}, expected {list(shape)}; the file does not belong to "
                                       "its config, fetch or copy both again")
                tensor = file.get_tensor(names[name])
                if tensor.dtype not in FLOATS:
                    raise WeightsError(f"{path}: {name} holds {tensor.dtype}, expected 16-, 32- or 64-bit floats; {AGAIN}")
                tensors[name] = tensor.to(dtype)
                if not tensors[name].isfinite().all():
                    raise WeightsError(f"{path}: {name} holds NaN or infinite values as {tensors[name].dtype}; {AGAIN}")
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read ({e.strerror or e}); expected a safetensors file there, {AGAIN}") from e
    except SafetensorError as e:
        raise WeightsError(f"{path}: is not a whole safetensors file ({e}); {AGAIN}") from e
    return tensors


def build(part, network, config_path, weights_path, dtype, device):
    """Build `network` from its config without initialising it, then give it the file's tensors. Weights are frozen."""
    sizes = read_config(part, config_path)
    try:
        with torch.device("meta"):
            net = network(**sizes)
    except (TypeError, ValueError, RuntimeError) as e:
        raise WeightsError(f"{config_path}: gives sizes of which no network can be built ({str(e).splitlines()[0]}); "
                           f"{AGAIN}") from e
    expected = {name: tuple(p.shape) for name, p in net.state_dict().items()}
    tensors = read_tensors(weights_path, expected, lambda name: modern_name(part, name), dtype, device)
    net.load_state_dict(tensors, strict=True, assign=True)
    return net.requires_grad_(False).eval()


def read_sae_config(path):
    """SAeUron's cfg.json: `num_latents` 0 means expansion_factor * d_in; fields that only training uses are ignored."""
    config = read_json(path)
    try:
        config["num_latents"] = config.get("num_latents") or config["expansion_factor"] * config["d_in"]
        sizes = {key: config[key] for key in ("d_in", "num_latents", "k")}
    except (KeyError, TypeError) as e:
        raise WeightsError(f"{path}: lacks {e} of SAeUron's format; {AGAIN}") from e
    sizes["input_unit_norm"] = config.get("input_unit_norm", False)
    check_sizes(path, sizes)
    if sizes["k"] > sizes["num_latents"]:
        raise WeightsError(f"{path}: k is {sizes['k']}, more than the {sizes['num_latents']} features; {AGAIN}")
    return sizes


def read_activity(path, sizes, device):
    """{"timesteps": (N,), "max_feature": (N, F), "max_channel": (N, D)}: the largest mean activation seen at each of N steps."""
    try:
        with safe_open(path, framework="pt") as file:
            n = sum(file.get_slice("timesteps").get_shape()[:1])
    except (OSError, SafetensorError) as e:
        raise WeightsError(f"{path}: is not a whole safetensors file with `timesteps` ({e}); {AGAIN}") from e
    if n == 0:
        raise WeightsError(f"{path}: `timesteps` holds no list of time steps; {AGAIN}")
    expected = {"timesteps": (n,), "max_feature": (n, sizes["num_latents"]), "max_channel": (n, sizes["d_in"])}
    return read_tensors(path, expected, dtype=torch.float32, device=device)


def read_tokenizer(folder):
    """The tokenizer of `folder`; WeightsError where its two files are not what CLIP's are: bytes, merges, start, end."""
    try:
        tokenizer = Tokenizer.from_files(folder / "vocab.json", folder / "merges.txt")
    except (OSError, ValueError, RecursionError) as e:
        raise WeightsError(f"{folder}: vocab.json or merges.txt cannot be used ({e}); fetch or copy both again") from e
    vocab, merges = tokenizer.vocab, tokenizer.ranks
    if not isinstance(vocab, dict) or not {START, END} <= vocab.keys() \
            or not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise WeightsError(f"{folder / 'vocab.json'}: is no map from tokens to ids with {START} and {END}; {AGAIN}")
    if any(len(pair) != 2 for pair in merges) or len(vocab) > 2 * 256 + len(merges) + 2:
        raise WeightsError(f"{folder / 'merges.txt'}: is no list of pairs as long as vocab.json asks for; {AGAIN}")
    return tokenizer


def read_settings(path):
    """featviz.json: {"timestep": 361, "feature": 12, "presets": {name: {setting: value}}}, every entry optional."""
    settings = read_json(path)
    presets = settings.get("presets", {})
    if not all(type(settings.get(key, 0)) is int for key in ("timestep", "feature")) or not isinstance(presets, dict) \
            or not all(isinstance(changes, dict) for changes in presets.values()):
        raise WeightsError(f"{path}: expected whole numbers for timestep and feature, and an object of objects for presets; {AGAIN}")
    return settings


def check_fit(folder, parts):
    """WeightsError where two parts that work together differ in a width."""
    unet, vae, text, tokenizer = (parts.get(part) for part in ("unet", "vae", "text_encoder", "tokenizer"))
    latent = unet.conv_in.in_channels
    context = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.in_features
    fits = [("unet", "latent channels out", unet.conv_out.out_channels, latent)]
    if vae:
        fits.append(("vae", "latent channels", vae.post_quant_conv.in_channels, latent))
    if text:
        fits.append(("text_encoder", "wide text", text.final_layer_norm.normalized_shape[0], context))
    for part, what, found, expected in fits:
        if found != expected:
            raise WeightsError(f"{folder / part}: has {found} {what}, the UNet takes {expected}; give parts of one model")
    if text and tokenizer and max(tokenizer.vocab.values()) >= text.embeddings.token_embedding.num_embeddings:
        raise WeightsError(f"{folder / 'tokenizer'}: has larger ids than the text encoder knows; give parts of one model")


class Model:
    """The parts of one weights folder, loaded; axes as in unet.py and sae.py.

    unet, vae, sae, text_encoder, tokenizer, schedule; `hook_point` is the SAE's, or up1.1; `settings` is featviz.json. A part that the
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
        path = self.folder / "unet/config.json"
        size = read_json(path).get("sample_size", 64)
        sizes = size if isinstance(size, list) else [size, size]
        if len(sizes) != 2 or not all(type(n) is int and n % 8 == 0 and 8 <= n <= 1024 for n in sizes):
            raise WeightsError(f"{path}: sample_size is {size!r}, expected a multiple of 8 up to 1024; {AGAIN}")
        return (self.unet.conv_in.in_channels, *sizes)

    @cached_property
    def fingerprints(self):
        """{file below the folder: SHA-256 of its bytes} of everything that a result depends on."""
        out = {}
        for path in sorted(p for p in self.folder.rglob("*") if p.suffix in (".safetensors", ".json", ".txt")):
            with open(path, "rb") as file:
                out[path.relative_to(self.folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
        return out


def load(folder, device="cpu", dtype=torch.float32):
    """Load a weights folder (layout above). The UNet and the text encoder take `dtype`; the VAE and the SAE stay float32.

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
        parts["tokenizer"] = read_tokenizer(folder / "tokenizer")
    check_fit(folder, parts)
    scheduler = folder / "scheduler/scheduler_config.json"
    schedule = Schedule(**(read_config("scheduler", scheduler) if scheduler.exists() else {}), device=device)
    hook_point = parts["unet"].hook_name(HOOK_POINT)
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
                               f"{parts['unet'].width(hook_point)} channels; give the SAE of this UNet")
        expected = {name: tuple(p.shape) for name, p in sae.state_dict().items()}
        sae.load_state_dict(read_tensors(cfg.with_name("sae.safetensors"), expected, dtype=torch.float32, device=device), assign=True)
        parts["sae"] = sae.requires_grad_(False).eval()
        if (path := cfg.with_name("activity.safetensors")).exists():
            parts["sae/*/activity.safetensors"] = read_activity(path, sizes, device)
    settings = read_settings(folder / "featviz.json") if (folder / "featviz.json").exists() else {}
    model = Model(folder, device, dtype, parts, schedule, hook_point, settings)
    model.latent_shape                                          # read now, so that a bad size shows here
    return model
