"""Stable Diffusion 1.x under the names and shapes in which people pass it around.

keys_sd14.txt holds part, name and shape of every tensor of SD 1.4's folder; keys_ldm_sd14.txt, line for line, name and
shape of the same tensor in the original single file. Small models have the same 1130 names.
"""
import json

import torch
from safetensors.torch import load_file

from clip import END, START
from tests.seeded import FIXTURES
from tests.tiny import CONFIGS, PATHS, tensors

SMALL = {   # SD's structure: the same 1130 names, widths that change where SD's do
    "unet": CONFIGS["unet"] | dict(block_out_channels=[8, 16, 24, 24]),
    "vae": CONFIGS["vae"] | dict(block_out_channels=[8, 16, 24, 24], layers_per_block=2, scaling_factor=0.18215),
    "text_encoder": CONFIGS["text_encoder"] | dict(vocab_size=49408, num_hidden_layers=12),
}
WIDTH = dict(d_in=24)                                           # of the SAE
EMA_SEED = 7
BUFFERS = ("betas", "alphas_cumprod", "posterior_variance", "sqrt_recip_alphas_cumprod")
COUNTERS = ("model_ema.decay", "model_ema.num_updates")
LEGACY = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def real_names():
    """[(part, name, shape, name in the single file, shape there)] of SD 1.4's 1130 tensors."""
    lines = lambda file: map(str.split, (FIXTURES / file).read_text().splitlines())
    shape = lambda text: tuple(int(n) for n in text.split("x"))
    pairs = zip(lines("keys_sd14.txt"), lines("keys_ldm_sd14.txt"), strict=True)
    return [("text_encoder" if part == "clip_text" else part, name, shape(size), other, shape(there))
            for (part, name, size), (other, there) in pairs]


NAMES = real_names()
THERE = {(part, name.removeprefix("text_model.")): other for part, name, _, other, _ in NAMES}
FOUR_D = {other for *_, shape, other, there in NAMES if len(there) > len(shape)}


def legacy(name):
    """The VAE attention's name before 2023."""
    if ".mid_block.attentions.0." in name:
        for new, old in LEGACY.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name


def single_tensors(whole, copies=False, prefix="text_model."):
    """The small model in the folder `whole` under the real names of the single file. Its UNet's copies hold other
    numbers than the plain weights.
    """
    out = {}
    for part in SMALL:
        for name, tensor in load_file(whole / PATHS[part][1]).items():
            other = THERE[part, name]
            out[other if part != "text_encoder" else other.replace("text_model.", prefix)] = \
                tensor[:, :, None, None] if other in FOUR_D else tensor
    out |= {name: torch.zeros(1000) for name in BUFFERS} | {name: torch.zeros(()) for name in COUNTERS}
    out[f"cond_stage_model.transformer.{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    if copies:
        out |= {"model_ema." + THERE["unet", name].removeprefix("model.").replace(".", ""): tensor
                for name, tensor in tensors("unet", SMALL["unet"], EMA_SEED).items()}
    return {k: v.contiguous() for k, v in out.items()}


def tokenizer_json(folder, pairs=list):
    """Put the one file of transformers 5 in the place of vocab.json and merges.txt."""
    tokens = folder / "tokenizer"
    vocab = json.loads((tokens / "vocab.json").read_text(encoding="utf-8"))
    merges = [pairs(line.split()) for line in (tokens / "merges.txt").read_text(encoding="utf-8").split("\n")[1:-1]]
    added = [{"id": vocab.pop(token), "content": token} for token in (START, END)]
    (tokens / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {
        "type": "BPE", "vocab": vocab, "merges": merges}}), encoding="utf-8")
    (tokens / "vocab.json").unlink(), (tokens / "merges.txt").unlink()
