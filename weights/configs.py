"""The JSON files of a weights folder: read, checked, and reduced to the sizes that a network is built with.

Scope: config.json of the networks and of CLIP, scheduler_config.json, SAeUron's cfg.json, featviz.json. A value for
which there is no code here (another activation, another eps) is refused, and so is a size that cannot be one, before it
turns into a crash or an endless construction.
Sources: the published configs of SD 1.4 and SD 1.5; what diffusers does with old ones.
"""
import json
import re
from reprlib import repr as short                               # a value out of a broken file may be megabytes long

from config import SETTINGS
from weights.disk import AGAIN, WeightsError, open_regular, unreadable

# What the code does when the config is silent or must not say otherwise: config key -> the only value with code.
FIXED = {
    "unet": {"layers_per_block": 2, "act_fn": "silu", "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0,
             "center_input_sample": False, "downsample_padding": 1, "mid_block_scale_factor": 1,
             "use_linear_projection": False, "only_cross_attention": False, "resnet_time_scale_shift": "default",
             "class_embed_type": None},
    "vae": {"act_fn": "silu", "in_channels": 3, "out_channels": 3},
    "text_encoder": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 77},
    "text_config": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 77},
    "vision_config": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_channels": 3},
    "scheduler": {"beta_schedule": "scaled_linear", "trained_betas": None, "prediction_type": "epsilon",
                  "timestep_spacing": "leading", "skip_prk_steps": True, "thresholding": False,
                  "rescale_betas_zero_snr": False},
    "sae": {},
}
SIZES = {   # config key -> what a usable value looks like; these are passed on to the network
    "unet": ("block_out_channels", "cross_attention_dim", "attention_head_dim", "norm_num_groups", "in_channels",
             "out_channels"),
    "vae": ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups", "scaling_factor"),
    "text_encoder": ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "text_config": ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "vision_config": ("image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                      "num_attention_heads"),
    "scheduler": ("beta_start", "beta_end", "num_train_timesteps", "set_alpha_to_one"),
    "sae": ("d_in", "num_latents", "k", "input_unit_norm"),
}
SAMPLER = {None: "pndm", "PNDMScheduler": "pndm", "DDIMScheduler": "ddim"}      # a scheduler file's _class_name -> ours
MOST_LEVELS = 8                                                 # of a network; SD has 4
LARGEST = {"layers_per_block": 16, "num_hidden_layers": 64, "block_out_channels": 2 ** 14}     # of other sizes: 2^24
DIVIDES = {"attention_head_dim": "block_out_channels", "num_attention_heads": "hidden_size", "patch_size": "image_size"}


def read_json(path):
    """A JSON object from `path`, or a WeightsError that says what is wrong with the file."""
    try:
        with open_regular(path) as file:
            value = json.loads(file.read().decode("utf-8"))
    except OSError as e:
        raise unreadable(path, e, "JSON") from e
    except (ValueError, RecursionError) as e:
        raise WeightsError(f"{path}: is not valid JSON ({e}); {AGAIN}") from e
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: expected a JSON object, found {type(value).__name__}; {AGAIN}")
    return value


def listed(value):
    return value if isinstance(value, list) else [value]


def check_sizes(path, sizes):
    """WeightsError for a value that cannot be what its key names, before it becomes a crash or an endless loop."""
    for key, value in sizes.items():
        if key in ("input_unit_norm", "set_alpha_to_one"):
            kind, sound = "true or false", isinstance(value, bool)
        elif key in ("scaling_factor", "beta_start", "beta_end"):
            limit = 1 if key.startswith("beta") else float("inf")
            kind, sound = f"a number between 0 and {limit}", type(value) in (int, float) and 0 < value < limit
        else:
            limit = LARGEST.get(key, 2 ** 24)
            values = listed(value) if key == "block_out_channels" else [value]
            kind = f"whole numbers from 1 to {limit}"
            sound = 1 <= len(values) <= MOST_LEVELS and all(type(v) is int and 1 <= v <= limit for v in values)
        if not sound:
            raise WeightsError(f"{path}: {key} is {short(value)}, expected {kind}; {AGAIN}")
    for part, whole in DIVIDES.items():
        if part in sizes and any(w % sizes[part] for w in listed(sizes.get(whole, 0))):
            raise WeightsError(f"{path}: {part} is {sizes[part]}, which does not divide {whole} {sizes[whole]}; "
                               f"{AGAIN}")


def read_config(part, path):
    """The sizes that `part` is built with; WeightsError for a value that no code here implements."""
    return read_sizes(part, read_json(path), path, "SD 1.x")


def read_sizes(part, config, path, model):
    """The same, of an object in a JSON file; `model` has what is implemented."""
    for key, value in FIXED[part].items():
        if config.get(key, value) != value:
            raise WeightsError(f"{path}: {key} is {short(config[key])}, only {value!r} is implemented; give {model} "
                               "weights")
    sizes = {key: config[key] for key in SIZES[part] if key in config}
    check_sizes(path, sizes)
    return sizes


def read_eyes_config(path):
    """What clip.CLIP is built with, every size of it: for one that is left out, others take another CLIP's."""
    config = read_json(path)
    sizes = {"projection_dim": config.get("projection_dim")}
    for part in ("text_config", "vision_config"):
        if not isinstance(config.get(part), dict):
            raise WeightsError(f"{path}: has no object {part!r}, which CLIP's config has; {AGAIN}")
        sizes[part] = read_sizes(part, config[part], f"{path}: {part}", "CLIP ViT-L/14's")
        if missing := [key for key in SIZES[part] if key not in sizes[part]]:
            raise WeightsError(f"{path}: {part} lacks {missing[0]!r}; {AGAIN}")
    check_sizes(path, {"projection_dim": sizes["projection_dim"]})
    last = sizes["text_config"]["vocab_size"] - 1
    if (end := config["text_config"].get("eos_token_id", 2)) not in (2, last):          # 2 is the last, see clip.CLIP
        raise WeightsError(f"{path}: text_config: eos_token_id is {short(end)}, only 2 or the last token, {last}, is "
                           "implemented; give CLIP ViT-L/14's weights")
    return sizes


def read_scheduler(path):
    """(what Schedule is built with, the sampler that the file names); DDIM ends at abar 1 unless it says otherwise."""
    name, sizes = read_json(path).get("_class_name"), read_config("scheduler", path)
    if not isinstance(name, str | None) or name not in SAMPLER:
        raise WeightsError(f"{path}: _class_name is {short(name)}, only PNDMScheduler and DDIMScheduler are "
                           "implemented; give SD 1.x weights")
    return {"set_alpha_to_one": name == "DDIMScheduler"} | sizes, SAMPLER[name]


def read_sae_config(path):
    """SAeUron's cfg.json: `num_latents` 0 means expansion_factor * d_in; fields that only training uses are ignored."""
    config = read_json(path)
    derived = not config.get("num_latents")
    needed = ("d_in", "expansion_factor", "k") if derived else ("d_in", "num_latents", "k")
    if missing := [key for key in needed if key not in config]:
        raise WeightsError(f"{path}: lacks {missing[0]!r} of SAeUron's format; {AGAIN}")
    check_sizes(path, {key: config[key] for key in needed})
    if derived:
        config["num_latents"] = config["expansion_factor"] * config["d_in"]
    sizes = {"input_unit_norm": False} | {key: config[key] for key in SIZES["sae"] if key in config}
    check_sizes(path, sizes)
    if sizes["k"] > sizes["num_latents"]:
        raise WeightsError(f"{path}: k is {sizes['k']}, more than the {sizes['num_latents']} features; {AGAIN}")
    return sizes


def read_latent_size(path):
    """(H, W) that the UNet was trained at, 64 by default. Early SD 1.5 configs say 32; diffusers reads them as 64."""
    config = read_json(path)
    size = config.get("sample_size", 64)
    sizes = size if isinstance(size, list) else [size, size]
    if len(sizes) != 2 or not all(type(n) is int and n % 8 == 0 and 8 <= n <= 1024 for n in sizes):
        raise WeightsError(f"{path}: sample_size is {short(size)}, expected a multiple of 8 up to 1024; {AGAIN}")
    version = [int(n) for n in re.findall(r"\d{1,9}", str(config.get("_diffusers_version", "1")))[:2]]
    return tuple(max(n, 64) for n in sizes) if [] < version < [0, 9] else tuple(sizes)


def read_settings(path):
    """featviz.json: {"timestep": 361, "feature": 12, "presets": {name: {setting: value}}}, every entry optional."""
    settings = read_json(path)
    presets = settings.get("presets", {})
    if not all(type(settings.get(key, 0)) is int for key in ("timestep", "feature")) or not isinstance(presets, dict) \
            or not all(isinstance(changes, dict) for changes in presets.values()):
        raise WeightsError(f"{path}: expected whole numbers for timestep and feature, and an object of objects for "
                           f"presets; {AGAIN}")
    if unknown := [(preset, name) for preset, changes in presets.items() for name in changes if name not in SETTINGS]:
        raise WeightsError(f"{path}: preset {unknown[0][0]!r} sets {unknown[0][1]!r}, which is no setting; python "
                           "featviz.py --help lists them all")
    return settings
