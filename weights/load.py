"""Load a folder of weights of Stable Diffusion 1.x into a `Model`. The layout is strict; errors name what does not fit.

    folder/unet/{config.json, diffusion_pytorch_model.safetensors}          required
    folder/vae/{config.json, diffusion_pytorch_model.safetensors}           None in the Model where it is missing
    folder/text_encoder/{config.json, model.safetensors}
    folder/tokenizer/{vocab.json, merges.txt}           or tokenizer.json, of transformers 5; CLIP's where it is missing
    folder/scheduler/scheduler_config.json                                  SD 1.x's numbers where it is missing
    folder/sae/<hook point>/{cfg.json, sae.safetensors, labels.json}        any number of them
    folder/featviz.json                                                     settings that suit these weights

This is diffusers' layout as published for SD 1.4 and 1.5. All else is converted: `python weights/convert.py IN OUT`.
"""
import hashlib
import inspect
import json
import os
import re
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from clip import TextEncoder, Tokenizer
from config import HOOK_POINT, SETTINGS, T
from sae import SAE
from schedule import Schedule
from unet import UNet, updates
from vae import VAE
from weights import WeightsError
from weights.quick import quicken
from weights.saes import read_sae_config

ROOT = Path(__file__).resolve().parent
NETWORKS = {"unet": UNet, "vae": VAE, "text_encoder": TextEncoder}
FILES = dict.fromkeys(NETWORKS, "diffusion_pytorch_model.safetensors") | {"text_encoder": "model.safetensors"}
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer.json")
AGAIN = "fetch or copy this file again"
CONVERT = "for a pickle, shards or other names: python weights/convert.py IN OUT"
FIXED = {       # keys of a config that change the mathematics, with the only value for which there is code here
    "unet": {"layers_per_block": 2, "act_fn": "silu", "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0,
             "center_input_sample": False, "downsample_padding": 1, "mid_block_scale_factor": 1,
             "use_linear_projection": False, "only_cross_attention": False, "resnet_time_scale_shift": "default",
             "class_embed_type": None, "addition_embed_type": None, "in_channels": 4, "out_channels": 4},
    "vae": {"act_fn": "silu", "in_channels": 3, "out_channels": 3, "latent_channels": 4, "shift_factor": None},
    "text_encoder": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 77},
    "scheduler": {"beta_schedule": "scaled_linear", "trained_betas": None, "prediction_type": "epsilon",
                  "num_train_timesteps": T, "rescale_betas_zero_snr": False},
}
FOREIGN = (     # keys of a UNet's config that show another model
    ("cross_attention_dim", 2048, "Stable Diffusion XL"), ("addition_embed_type", "text_time", "Stable Diffusion XL"),
    ("cross_attention_dim", 1024, "Stable Diffusion 2.x"), ("in_channels", 9, "an inpainting UNet with 9 channels"),
    ("in_channels", 8, "an image-editing UNet with 8 channels"), ("in_channels", 5, "a depth-guided UNet"))
LEGACY = {"text_model.": "", ".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
OLD = re.compile("|".join(map(re.escape, LEGACY)))


def read_json(path):
    """Read a JSON object; WeightsError where there is none."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as e:
        raise WeightsError(f"{path}: cannot be read as JSON in UTF-8 ({getattr(e, 'strerror', e)})") from e
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def foreign(config):
    """Name the model that a UNet's config belongs to, where it is a known one other than SD 1.x; else ""."""
    return next((f"this is {name}" for key, value, name in FOREIGN if config.get(key) == value), "")


def check_config(part, config, path):
    """Return a network's sizes, or the schedule's numbers; WeightsError for what no code here implements."""
    if part == "unet" and (other := foreign(config)):
        raise WeightsError(f"{path}: {other}; give weights of Stable Diffusion 1.x")
    for key, value in FIXED[part].items():
        if config.get(key, value) not in (value, None):
            raise WeightsError(f"{path}: {key} is {str(config[key])[:80]}, only {value!r} is implemented (SD 1.x)")
    arguments = inspect.signature(NETWORKS.get(part, Schedule)).parameters          # named as in config.json
    sizes = {key: config[key] for key in arguments if config.get(key) is not None}
    for key, value in sizes.items():
        usual = arguments[key].default
        kinds = {tuple: (list,), float: (int, float)}.get(type(usual), (type(usual),))
        if type(value) not in kinds or type(usual) in (int, float) and value <= 0:
            raise WeightsError(f"{path}: {key} is {str(value)[:80]!r}, expected a value such as {usual}")
    return sizes


def read_latent_size(path):
    """(H, W) that the UNet was trained at, 64 by default. Early SD 1.5 configs say 32; diffusers reads them as 64."""
    config = read_json(path)
    size = config.get("sample_size") or 64
    height, width = size if isinstance(size, list) else (size, size)
    if height % 8 or width % 8:                                 # it is halved three times
        raise WeightsError(f"{path}: sample_size is {size}, expected a multiple of 8; the usual size is 64")
    early = re.match(r"0\.[0-8]\.", str(config.get("_diffusers_version")))
    return (max(height, 64), max(width, 64)) if early else (height, width)


def open_tensors(path):
    """Open a safetensors file, for a `with`; WeightsError says what the file is instead."""
    try:
        return safe_open(path, framework="pt")
    except OSError as e:
        raise WeightsError(f"{path}: cannot be read ({e.strerror or e}); {AGAIN}; {CONVERT}") from e
    except (SafetensorError, RuntimeError, ValueError) as e:
        with open(path, "rb") as file:
            first = file.read(32)
        why = f"not a whole safetensors file ({' '.join(str(e).split())}); {AGAIN}; {CONVERT}"
        if first.startswith(b"version https://git-lfs"):
            why = "a git-lfs pointer; git lfs pull fetches the file itself"
        elif first[:1] == b"<" and first[8:9] != b"{":
            why = "a web page saved under this name; fetch the file again, signed in where the site asks for it"
        raise WeightsError(f"{path}: is {why}") from e


def check_shapes(path, found, expected, advice):
    """WeightsError for the first of `found` {name: shape} that is missing, unexpected or of another shape."""
    lacks, more = expected.keys() - found.keys(), found.keys() - expected.keys()
    if names := lacks or more:
        what = "lacks" if lacks else "has an unexpected"
        raise WeightsError(f"{path}: {what} tensor {min(names)!r}, one of {len(names)}; {advice}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise WeightsError(f"{path}: {name} has shape {list(found[name])}, expected {list(shape)}; {advice}")


def finite(tensor):
    """Tell if no number is NaN or infinite. Both bounds pass NaN on, and take a sixtieth of the time of `isfinite`."""
    return not tensor.numel() or all(bound.isfinite() for bound in tensor.aminmax())


def read_vectors(path):
    """Read {name: vector} of a safetensors file, float32."""
    with open_tensors(path) as file:
        return {key: file.get_tensor(key).float().squeeze() for key in file.keys()}


def file_sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def on_meta(network, sizes, path):
    """Build `network(**sizes)` without memory; WeightsError blames `path` for impossible sizes."""
    try:
        with torch.device("meta"):
            net = network(**sizes)
        for name, module in net.named_modules():
            if hasattr(module, "heads") and (width := len(next(module.parameters()))) % module.heads:
                raise ValueError(f"{name} has {module.heads} heads for {width} channels")
        return net
    except (TypeError, ValueError, RuntimeError, LookupError) as e:
        raise WeightsError(f"{path}: gives sizes from which no network can be built ({str(e).splitlines()[0]})") from e


def build(network, sizes, config_path, weights_path, dtype=torch.float32, device="cpu"):
    """Build `network(**sizes)`, frozen, from a file with exactly its names and shapes. Tensors that are not converted
    stay in the mapped file. A large one that is converted has a mapping that ends with it, so that the whole file is
    never in memory beside the new numbers."""
    net, tensors = on_meta(network, sizes, config_path), {}
    shapes = {name: tuple(p.shape) for name, p in net.state_dict().items()}
    with open_tensors(weights_path) as file:
        keys = {key if key in shapes else OLD.sub(lambda old: LEGACY[old[0]], key): key for key in file.keys()
                if not key.endswith("position_ids")}            # 0, 1, ...
        found = {name: tuple(file.get_slice(key).get_shape()) for name, key in keys.items()}
        check_shapes(weights_path, found, shapes, f"give the file that belongs to its config; {CONVERT}")
        for name, p in net.state_dict().items():
            tensor = (open_tensors(weights_path) if p.numel() >= 2 ** 20 else file).get_tensor(keys[name])
            if not tensor.is_floating_point():
                raise WeightsError(f"{weights_path}: {name} holds {tensor.dtype}, expected real numbers; {AGAIN}")
            if dtype != tensor.dtype or torch.device(device).type != "cpu":
                tensor = tensor.to(device, dtype)
                if not finite(tensor):
                    raise WeightsError(f"{weights_path}: {name} holds NaN or infinite values as {dtype}; {AGAIN}")
            tensors[name] = tensor
    net.load_state_dict(tensors, strict=True, assign=True)
    return net.requires_grad_(False).eval()


def read_part(folder, part, dtype, device):
    """Read one network of a folder."""
    config = folder / part / "config.json"
    sizes = check_config(part, read_json(config), config)
    net = build(NETWORKS[part], sizes, config, folder / part / FILES[part], dtype, device)
    return quicken(net) if part == "unet" else net


def read_tokenizer(folder):
    """Read the tokenizer, CLIP's own where there is none; WeightsError where its merges make another vocabulary."""
    if not folder.exists():
        return Tokenizer.from_bpe(ROOT / "clip/bpe_simple_vocab_16e6.txt.gz")
    vocab, merges, both = (folder / name for name in TOKENIZER)
    try:
        if vocab.exists():
            expected, tokenizer = read_json(vocab), Tokenizer.from_bpe(merges)
        else:                                                   # of transformers 5
            value = read_json(both)
            model, added = value["model"], {token["content"]: token["id"] for token in value.get("added_tokens", ())}
            pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
            expected, tokenizer = model["vocab"] | added, Tokenizer([*map(tuple, pairs)])
        if tokenizer.vocab != expected:
            raise ValueError("vocabulary and merges disagree")
        return tokenizer
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise WeightsError(f"{folder}: the tokenizer cannot be used ({e!r}); fetch or copy it again") from e


def check_text(folder, unet, text_encoder, tokenizer):
    """WeightsError where a part for text and the one that reads it are of different models."""
    tokens, width = text_encoder.embeddings.token_embedding.weight.shape
    context = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.in_features
    for part, what, found, expected in (("tokenizer", "tokens", len(tokenizer.vocab), tokens),
                                        ("text_encoder", "wide text", width, context)):
        if found != expected:
            raise WeightsError(f"{folder / part}: has {found} {what}, expected {expected}; give parts of one model")


def read_sae(cfg, unet, hook_point, device):
    """Build the SAE of a cfg.json for a hook point of the UNet."""
    sizes, width = read_sae_config(read_json(cfg), cfg), unet.width(hook_point)
    if sizes["d_in"] != width:
        raise WeightsError(f"{cfg}: d_in is {sizes['d_in']}, but {hook_point} has {width} channels; give another SAE")
    if sizes["reads"] == "update" and not updates(hook_point):
        raise WeightsError(f"{cfg}: reads is 'update', output minus input; {hook_point} has none, an attention has")
    return build(SAE, sizes, cfg, cfg.with_name("sae.safetensors"), device=device)


def read_labels(path):
    """{feature: word} of a labels.json, {"12": "cat"} or {"12": {"word": "cat", ...}}; empty where there is none."""
    labels = read_json(path) if path.exists() else {}
    words = {key: entry.get("word") if isinstance(entry, dict) else entry for key, entry in labels.items()}
    if not all(key.isdecimal() and isinstance(word, str) for key, word in words.items()):
        raise WeightsError(f'{path}: expected features and words, {{"12": "cat"}}')
    return {int(key): word for key, word in words.items()}


@dataclass(eq=False)
class Model:
    """The parts of one folder of weights; axes as in unet.py and sae.py. A part that is missing is None."""
    folder: Path
    name: str                                                   # of the results' folder
    device: torch.device
    dtype: torch.dtype                                          # of UNet and text encoder; VAE and SAE stay float32
    unet: UNet
    schedule: Schedule
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
    fit: list | None = None                                     # rows that weights.check measured

    @cached_property
    def fingerprints(self):
        """Return {name: SHA-256} of every file that was read."""
        return {name: file_sha256(path) for name, path in sorted(self.files.items())}

    def feature(self, n):
        """Return the direction (D,) along which feature n is read; sums and differences are directions, too."""
        return self.sae.encoder.weight[n]

    def require(self, *parts):
        """WeightsError for a part that is missing."""
        for part in parts:
            if getattr(self, part) is None:
                where = f" for {self.hook_point}" if part == "sae" else ""
                raise WeightsError(f"{self.folder / part}: is missing{where}, and this needs it; see weights/README.md")

    @torch.no_grad()
    def embed(self, prompts):
        """Embed prompts (a list of B strings) for the UNet's cross-attention: (B, 77, Dc)."""
        self.require("text_encoder")
        return self.text_encoder(self.tokenizer(prompts).to(self.device))

    def encode(self, images):
        """Encode images (B, 3, 8H, 8W) in [0, 1] to scaled latents (B, 4, H, W), float32, a row at a time."""
        self.require("vae")
        return torch.cat([self.vae.encode(image) for image in images.float().split(1)])

    def decode(self, z):
        """Decode scaled latents (B, 4, H, W) to images (B, 3, 8H, 8W) in [0, 1], a row at a time, in float32, since
        half precision overflows in SD's decoder. WeightsError where NaN comes from the file."""
        self.require("vae")
        images = torch.cat([self.vae.decode(row) for row in z.float().split(1)])
        if z.isfinite().all() and not images.isfinite().all():
            self.check_numbers()
        return images

    def check_numbers(self):
        """WeightsError for the first NaN or infinite number of any part."""
        for part in (*NETWORKS, "sae"):
            net = getattr(self, part)
            for name, tensor in net.state_dict().items() if net else ():
                if not finite(tensor):
                    raise WeightsError(f"{self.folder / part}: {name} holds NaN or infinite values; {AGAIN}")


def choose_device(name=None):
    """Return the device of that name; None takes the GPU where there is one."""
    name = str(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"--device {name}: {str(e).splitlines()[0]}; use --device cpu") from e


def choose_dtype(device):
    """Return float32 for a CPU; for a GPU bfloat16 where it is native (Ampere and later), else float16."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def load(path=None, device=None, dtype=None, hook_point=None):
    """Load a folder of weights, by default the toy; WeightsError for what does not fit. device, dtype: None for
    choose_device's, choose_dtype's; hook_point: None for the only SAE's, or HOOK_POINT. Of tensors that stay in the
    mapped file, NaN shows when decoding, in the fit check, and in Model.check_numbers."""
    folder = Path(path) if path else ROOT / "toy"
    if not (folder / "unet/config.json").exists():
        what = "a single file" if folder.is_file() else "no folder of weights with unet/config.json"
        raise WeightsError(f"{folder}: is {what}; python weights/convert.py {folder} OUT, or see weights/README.md")
    device = choose_device(device)
    if device.type == "cuda":                   # kernels that give the same bytes each time; grid_sample's gradient, of
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")             # --rotate-max and --scale-max, has none
        warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype or choose_dtype(device)
    parts = {part: read_part(folder, part, torch.float32 if part == "vae" else dtype, device)
             for part in NETWORKS if (folder / part).exists()}
    if "text_encoder" in parts:
        parts["tokenizer"] = read_tokenizer(folder / "tokenizer")
        check_text(folder, parts["unet"], parts["text_encoder"], parts["tokenizer"])
    scheduler, featviz = folder / "scheduler/scheduler_config.json", folder / "featviz.json"
    numbers = check_config("scheduler", read_json(scheduler), scheduler) if scheduler.exists() else {}
    settings = read_json(featviz) if featviz.exists() else {}
    if unknown := set().union(*settings.get("presets", {}).values()) - SETTINGS.keys():
        raise WeightsError(f"{featviz}: a preset sets {min(unknown)!r}, which is no setting; see featviz.py --help")
    unet, files = parts["unet"], [scheduler, featviz, *(folder / "tokenizer" / name for name in TOKENIZER)]
    files += [folder / part / name for part in NETWORKS for name in ("config.json", FILES[part])]
    saes = {unet.hook_name(cfg.parent.name): cfg for cfg in sorted(folder.glob("sae/*/cfg.json"))}
    if not hook_point and len(saes) > 1 and HOOK_POINT not in saes:
        raise WeightsError(f"{folder / 'sae'}: has SAEs for {', '.join(saes)}; give one of these as hook point")
    hook_point = unet.hook_name(hook_point or (next(iter(saes)) if len(saes) == 1 else HOOK_POINT))
    if cfg := saes.get(hook_point):
        parts |= {"sae": read_sae(cfg, unet, hook_point, device), "labels": read_labels(cfg.with_name("labels.json"))}
        files += [cfg, cfg.with_name("sae.safetensors")]
    return Model(folder, folder.resolve().name, device, dtype, schedule=Schedule(**numbers, device=device),
                 hook_point=hook_point, latent_shape=(4, *read_latent_size(folder / "unet/config.json")),
                 files={path.relative_to(folder).as_posix(): path for path in files if path.exists()},
                 settings=settings, **parts)
