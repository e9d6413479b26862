"""A complete model folder with random weights, so small that a run takes a second; ways to change such a folder."""
import hashlib
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clip import Tokenizer
from tests.seeded import HOOK, on_meta, shapes, weights

VOCAB = Tokenizer([]).vocab
TIMES = torch.arange(981.0, 0.0, -140.0)                        # measured time steps of the activity table

QUICK = dict(num_steps=2, prior_steps=2, steer_scale=2.0, finish_steps=2, finish_scale=0.4)     # its usual settings
CONFIGS = {
    "unet": dict(block_out_channels=[16, 16, 32, 32], cross_attention_dim=16, attention_head_dim=2, norm_num_groups=8,
                 in_channels=4, out_channels=4, sample_size=8),
    "vae": dict(block_out_channels=[8, 8, 16], layers_per_block=1, norm_num_groups=4, latent_channels=4,
                scaling_factor=0.5),
    "text_encoder": dict(vocab_size=len(VOCAB), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2),
    "scheduler": dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000),
    "sae": dict(d_in=32, num_latents=64, k=4, input_unit_norm=False),
    "featviz": dict(timestep=300, feature=3, presets={"sae": QUICK, "raw": QUICK}),
}
PATHS = {   # part -> (its JSON file, its tensors)
    "unet": ("unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
    "vae": ("vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    "text_encoder": ("text_encoder/config.json", "text_encoder/model.safetensors"),
    "scheduler": ("scheduler/scheduler_config.json", None),
    "sae": (f"sae/unet.{HOOK}/cfg.json", f"sae/unet.{HOOK}/sae.safetensors"),
    "featviz": ("featviz.json", None),
}
CLIP_CONFIG = dict(text_config=CONFIGS["text_encoder"], projection_dim=8,
                   vision_config=dict(image_size=32, patch_size=8, hidden_size=16, intermediate_size=32,
                                      num_hidden_layers=1, num_attention_heads=2))


def tensors(part, config, seed=0):
    """Seeded tensors of one part; activations stay about 1, because every matrix is divided by sqrt(fan in)."""
    sizes = {key: value for key, value in config.items() if key not in ("sample_size", "input_unit_norm")}
    out = weights(shapes(on_meta(part, sizes)), seed)
    if part == "sae":
        out["W_dec"] /= out["W_dec"].norm(dim=1, keepdim=True)
        out["encoder.weight"] *= 0.5
        out["encoder.bias"] += 2.0              # nearly every feature is active at some position of any input
    return out


def activity(features, width, seed=0):
    """The tables of a capture: largest mean activations in [0.5, 1.5], every profile with its one peak at t = 281."""
    g = torch.Generator().manual_seed(seed)
    table = lambda n: 0.5 + torch.rand(len(TIMES), n, generator=g)
    share = 1 - (TIMES - 281).abs() / 1000
    tables = {"timesteps": TIMES.clone(), "max_feature": table(features), "max_channel": table(width)}
    tables["max_gated"] = tables["max_feature"] / 2
    for kind, n in (("feature", features), ("channel", width)):
        tables |= {f"max_null_{kind}": 0.8 * tables[f"max_{kind}"], f"share_{kind}": share[:, None].repeat(1, n),
                   f"histogram_{kind}": torch.ones(n, 1, dtype=torch.int32) * (torch.arange(24) == 12)}
    return tables


def write_capture(folder, features, width, seed=0):
    """A capture of the model in `folder`, of one image, as activity/capture.py leaves it."""
    home, n = folder / "activity", len(TIMES)
    (home / "images").mkdir(parents=True, exist_ok=True)
    save_file(activity(features, width, seed), home / "activity.safetensors")
    examples = {"feature": features, "channel": width}
    save_file({f"{name}_{kind}": torch.full((n, count, 1), fill, dtype=dtype) for kind, count in examples.items()
               for name, fill, dtype in (("image", 0, torch.int16), ("activation", 1.0, torch.float16))},
              home / "examples.safetensors")
    Image.new("RGB", (32, 32), "gray").save(home / "images/00000.jpg")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "featviz.json"
             and home not in path.parents]
    prints = {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    settings = {"prompts": ["A Tree image in Winter style"], "top": 20}
    recipe = {"settings": settings, "timesteps": [int(t) for t in TIMES], "fingerprints": prints, "hook_point": HOOK}
    (home / "capture.json").write_text(json.dumps({"images": 1, "recipe": recipe}))


def write_model(folder, seed=0, **changes):
    """Write the folder and return its path. `changes`: part=dict(...) replaces entries of that part's config (its
    tensors follow), part=None leaves the part out; parts are the keys of CONFIGS and "tokenizer", "activity".
    """
    folder = Path(folder)
    for part, (config_path, tensors_path) in PATHS.items():
        if (change := changes.get(part, {})) is None:
            continue
        config = CONFIGS[part] | change
        (folder / config_path).parent.mkdir(parents=True, exist_ok=True)
        (folder / config_path).write_text(json.dumps(config))
        if tensors_path:
            save_file(tensors(part, config, seed), folder / tensors_path)
    if changes.get("tokenizer", {}) is not None:
        write_tokenizer(folder)
    if changes.get("activity", {}) is not None and changes.get("sae", {}) is not None:
        sizes = CONFIGS["sae"] | changes.get("sae", {})
        write_capture(folder, sizes["num_latents"], sizes["d_in"], seed)
    return folder


def write_tokenizer(folder):
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.json").write_text(json.dumps(VOCAB), encoding="utf-8")
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


def write_clip(folder, seed=0):
    """A CLIP with random weights and its tokenizer, as legibility/vision.py reads it; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CLIP_CONFIG))
    save_file(tensors("clip", CLIP_CONFIG, seed), folder / "model.safetensors")
    write_tokenizer(folder)
    return folder


def edit_json(path, **entries):
    """Replace entries of a JSON object; None removes one."""
    value = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def edit_tensors(path, change):
    """Put another safetensors file in its place, with change({name: tensor}); who has the old one mapped keeps it."""
    save_file({k: v.contiguous() for k, v in change(load_file(path)).items()}, path.with_name("edited"))
    path.with_name("edited").replace(path)
