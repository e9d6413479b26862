"""Names: how other layouts of Stable Diffusion 1.x spell files and tensors, and what each is called here.

Here = today's diffusers names without the text encoder's prefix `text_model.`. Nothing is opened but by name.
Sources
 [1] the published folders of SD 1.4 and SD 1.5: file names, `.fp16.` variants, the VAE attention's names before 2023
 [2] CompVis/latent-diffusion and stable-diffusion: the single file ("LDM" layout), its EMA copies, its schedule buffers
 [3] the key lists of both, which tests/slow/test_layouts.py compares in full with these rules
"""
import re

from weights.disk import WeightsError

STEM = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
WEIGHTS_FILE = {part: stem + ".safetensors" for part, stem in STEM.items()}
VARIANTS = ("", ".fp16", ".bf16")                               # between stem and suffix; full precision first
PICKLES = (".bin", ".ckpt", ".pt", ".pth")              # can run code when they are read: weights/convert.py alone does
LEGACY_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of the VAE, before 2023


def weights_file(folder, part):
    """The file of a part that is to be read: full precision if it is there; WeightsError where only a pickle lies."""
    found = [path for v in VARIANTS if (path := folder / part / f"{STEM[part]}{v}.safetensors").exists()]
    pickles = sorted(path for suffix in PICKLES for path in (folder / part).glob("*" + suffix))
    if pickles and not found:
        raise pickled(pickles[0], folder)
    return found[0] if found else folder / part / WEIGHTS_FILE[part]


def pickled(path, source):
    """The refusal of a pickle, with the command that converts `source`: the file itself, or its folder."""
    out = source.with_name(source.name + "_converted") if source.is_dir() else source.with_suffix(".safetensors")
    return WeightsError(f"{path}: is a pickle, which can run code when it is read; python weights/convert.py {source} "
                        f"{out} makes safetensors of it without running any")


def modern_name(part, name):
    """A tensor's name in a diffusers folder of any age -> the name here; None for position_ids, which carry nothing."""
    if part == "text_encoder":
        return None if name.endswith("position_ids") else name.removeprefix("text_model.")
    if part == "vae" and ".mid_block.attentions." in name:
        head, last, kind = name.rsplit(".", 2)
        return f"{head}.{LEGACY_ATTENTION.get(last, last)}.{kind}"
    return name


def squeezes(part, name):
    """Whether a 1x1 convolution's [C, C, 1, 1] may stand for this matrix: only in the VAE's attention."""
    return part == "vae" and bool(re.search(r"\.(mid_block\.attentions\.0|mid\.attn_1)\.(?!.*norm).*weight$", name))


# --- the single file ("LDM") [2] --------------------------------------------------------------------------------------

PREFIX = {"unet": "model.diffusion_model.", "vae": "first_stage_model.",
          "text_encoder": "cond_stage_model.transformer."}
EMA = "model_ema."
BUFFERS = {"betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
           "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
           "posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"}
COUNTERS = {EMA + "decay", EMA + "num_updates"}
SIZES = {"unet": {}, "vae": {}, "text_encoder": {}}  # such a file has no config: {} is SD 1.x, the networks' defaults
LATENT = 64                                                     # sample_size of SD 1.x

# A name here -> the name there: the first rule that fits the beginning, then every rule in a resnet or an attention.
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
    },
}
INSIDE = {
    "unet": {r"\.norm1": ".in_layers.0", r"\.conv1": ".in_layers.2", r"\.time_emb_proj": ".emb_layers.1",
             r"\.norm2": ".out_layers.0",
             r"\.conv2": ".out_layers.3", r"\.conv_shortcut": ".skip_connection"},
    "vae": {r"mid_block\.resnets\.0": "mid.block_1", r"mid_block\.resnets\.1": "mid.block_2",
            r"mid_block\.attentions\.0": "mid.attn_1",
            r"\.group_norm": ".norm", r"\.to_([qkv])": r".\1", r"\.to_out\.0": ".proj_out",
            r"\.conv_shortcut": ".nin_shortcut",
            r"\.conv_norm_out": ".norm_out"},
}


def ldm_name(part, name, ema=False):
    """A UNet's or VAE's tensor in the single file; its moving average has a name of its own, without dots [2]."""
    for pattern, there in BEGINNINGS[part].items():
        if found := re.match(pattern + r"(?=\.)", name):
            name = there(*map(int, found.groups())) + name[found.end():]
            break
    if part == "vae" or not re.search(r"transformer_blocks", name):     # a transformer's norms keep their names
        for pattern, there in INSIDE[part].items():
            name = re.sub(pattern + r"(?=\.)", there, name, count=1)
    name = PREFIX[part] + name
    return EMA + name.removeprefix("model.").replace(".", "") if ema else name


def split_ldm(path, header, ema=False):
    """A single file's header -> ({part: its entries}, one sentence on which weights of the UNet are meant).

    Without `ema` the plain `model.*`: in a full file these are not averaged, in an `emaonly` file they are the average.
    WeightsError for a name that belongs to no part, and for `ema` where there is no second set.
    """
    averaged = {name for name in header if name.startswith(EMA)} - COUNTERS
    unet = EMA if ema else PREFIX["unet"]
    prefixes = PREFIX | {"unet": unet}
    parts = {part: {name: e for name, e in header.items() if name.startswith(start) and name not in COUNTERS}
             for part, start in prefixes.items()}
    known = BUFFERS | COUNTERS | averaged | {name for name in header if name.startswith(tuple(PREFIX.values()))}
    if strange := sorted(header.keys() - known):
        raise WeightsError(f"{path}: has an unexpected tensor {strange[0]!r}; expected the single file of Stable "
                           f"Diffusion 1.x, whose names begin with {', '.join(PREFIX.values())}, or a folder in "
                           "diffusers layout")
    if ema and not averaged:
        raise WeightsError(f"{path}: has no second set of weights ({EMA}*) for --ema; an `emaonly` file holds the "
                           "moving average under the plain names, leave --ema out")
    taken = "the UNet's only weights (model.*); an `emaonly` file holds the moving average there"
    if averaged:
        taken = "the moving average of the UNet (model_ema.*)" if ema else \
            "the UNet's plain weights (model.*), not their moving average; --ema takes that"
    return {part: entries for part, entries in parts.items() if entries}, taken
