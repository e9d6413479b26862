"""The official networks on our seeded weights; `python tests/oracle/record.py` stores what they give.

Needs diffusers and transformers. The fast tests read tests/fixtures/parity_*.safetensors and need neither. Stored are
outputs only; weights and inputs come from the seeds of tests/seeded.py.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))    # run as a script, it does not start from the root

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests import clip_vocab
from tests.seeded import (FIXTURES, INPUTS, LEAVES, TEXTS, TOY, TOY_HOOKS, fingerprint, outputs, pictures, randn,
                          shapes, stored, toy_eps, unet_inputs, weights)

SD = {
    "unet": dict(block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8,
                 norm_num_groups=32),
    "vae": dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32),
    "clip_text": dict(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                      num_attention_heads=12),
}
SD["clip"] = dict(text_config=SD["clip_text"], projection_dim=768,
                  vision_config=dict(image_size=224, patch_size=14, hidden_size=1024, intermediate_size=4096,
                                     num_hidden_layers=24, num_attention_heads=16))
SCALING = 0.18215
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
                steps_offset=1, set_alpha_to_one=False, prediction_type="epsilon", timestep_spacing="leading")
PARTS = (*TOY, "schedule", "tokens")


def on_meta(part, sizes):
    """An official network in SD's configuration, without memory."""
    with torch.device("meta"):
        if part == "unet":
            return UNet2DConditionModel(in_channels=4, out_channels=4, layers_per_block=2, **sizes)
        if part == "vae":
            n = len(sizes["block_out_channels"])
            return AutoencoderKL(latent_channels=4, down_block_types=("DownEncoderBlock2D",) * n,
                                 up_block_types=("UpDecoderBlock2D",) * n, scaling_factor=SCALING, **sizes)
        if part == "clip":                                      # what the library does not default to is as published
            text = sizes["text_config"] | {"eos_token_id": 2}
            return CLIPModel(CLIPConfig(**sizes | {"text_config": text}))
        return CLIPTextModel(CLIPTextConfig(max_position_embeddings=77, hidden_act="quick_gelu", layer_norm_eps=1e-5,
                                            **sizes))


def official(part, sizes=None, tensors=None):
    """An official network with seeded weights (or with `tensors`), frozen. Its tensors have our names."""
    net = on_meta(part, sizes or SD[part])
    net.load_state_dict(tensors or weights(shapes(net)), strict=True, assign=True)
    for module in net.modules():
        if hasattr(module, "position_ids"):                     # a buffer that is not in the state dict
            module.position_ids = torch.arange(module.position_ids.shape[1])[None]
    return net.requires_grad_(False).eval()


def unet_run(net, z, t, context, hooks=TOY_HOOKS):
    """One run, in which every hook's output is captured."""
    captured = {}
    catch = lambda name: lambda module, args, output: captured.__setitem__(name, output[0])
    handles = [net.get_submodule(name).register_forward_hook(catch(name)) for name in hooks]
    noise = net(z, t, encoder_hidden_states=context).sample
    for handle in handles:
        handle.remove()
    return {"noise": noise} | captured


def vae_run(net, z, images):
    moments = net.encode(2 * images - 1).latent_dist
    return {"decode": net.decode(z / SCALING).sample, "mean": moments.mean, "logvar": moments.logvar}


def clip_run(net, pixels, ids):
    out = net(input_ids=ids, pixel_values=pixels)
    return {"pixels": pixels, "image": out.image_embeds, "text": out.text_embeds, "logits": out.logits_per_image}


RUNS = {"unet": unet_run, "vae": vae_run, "clip_text": lambda net, ids: {"embedding": net(ids).last_hidden_state},
        "clip": clip_run}               # as seeded.RUNS


def official_pixels(images, size=224):
    """By the library's processor with the published settings, one picture at a time."""
    process = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return torch.cat([process([image], return_tensors="pt")["pixel_values"] for image in images])


def clip_inputs(images, texts, size=224):
    """The library's way from pictures and strings to pixels and token ids."""
    return official_pixels(images, size), official_ids(texts)


def toy_outputs(part):
    """As seeded.toy_outputs."""
    size = TOY["clip"]["vision_config"]["image_size"]
    inputs = clip_inputs(pictures(), TEXTS, size) if part == "clip" else INPUTS[part]()
    return outputs(RUNS[part], official(part, TOY[part]), inputs, LEAVES.get(part))


def scheduler(kind):
    if kind == "ddim":
        return DDIMScheduler(clip_sample=False, **SCHEDULE)
    return PNDMScheduler(skip_prk_steps=True, **SCHEDULE)


def trajectory(kind, predict, x, steps):
    """The official sampler: ([t], samples after each step stacked)."""
    s = scheduler(kind)
    s.set_timesteps(steps)
    out = []
    for t in s.timesteps:
        x = s.step(predict(x, int(t)), t, x).prev_sample
        out.append(x)
    return s.timesteps.tolist(), torch.stack(out)


def guided_eps(net, context, null, guidance):
    """(x, t) -> noise as the official pipeline combines it."""
    def predict(x, t):
        at = torch.tensor([t])
        e_null, e_text = (net(x, at, encoder_hidden_states=c.expand(len(x), -1, -1)).sample for c in (null, context))
        return e_null + guidance * (e_text - e_null)
    return torch.no_grad()(predict)


def schedule_outputs():
    """Trajectories of both samplers, with the stand-in network and, first, middle and last sample, with the toy UNet
    under guidance 7.5.
    """
    out = {"alphas_cumprod": scheduler("ddim").alphas_cumprod}
    z, _, contexts = unet_inputs()
    predict = guided_eps(official("unet", TOY["unet"]), contexts[:1], contexts[1:], 7.5)
    for kind in ("ddim", "pndm"):
        for steps in (1, 2, 3, 4, 20, 50):
            out[f"{kind} {steps}"] = trajectory(kind, toy_eps, randn(2, 4, 4, 4, seed=7), steps)[1]
        out[f"{kind} unet 3"] = trajectory(kind, predict, z[:1], 3)[1][[0, 1, -1]]
    return out


def official_ids(prompts):
    ours = clip_vocab.tokenizer()
    theirs = CLIPTokenizer(vocab=ours.vocab, merges=list(ours.ranks))
    return torch.tensor(theirs(list(prompts), padding="max_length", max_length=77, truncation=True)["input_ids"])


def recorded(part):
    """What tests/fixtures/parity_*.safetensors hold: {name: tensor}. The prompts of "tokens" are edge cases and strings
    of random characters; they are kept.
    """
    if part == "tokens":
        return {"ids": official_ids(json.loads(stored(part)[1]["prompts"])).int()}
    if part == "schedule":
        return {**schedule_outputs(), "fingerprint": fingerprint("unet")}
    return {**toy_outputs(part), "fingerprint": fingerprint(part)}


def main():
    versions = {module.__name__: module.__version__ for module in (torch, diffusers, transformers)}
    for part in PARTS:
        path, metadata = FIXTURES / f"parity_{part}.safetensors", stored(part)[1] | versions
        save_file({name: tensor.contiguous() for name, tensor in recorded(part).items()}, path, metadata)
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
