"""The official networks on our seeded weights, and the script that stores what they give: `python
tests/oracle/record.py`.

Needs diffusers and transformers. The fast tests read tests/fixtures/parity_*.safetensors and need neither. Stored are
outputs only; weights and inputs come from the seeds of tests/seeded.py.
"""
import json
import random
import sys
import unicodedata
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[2])
)  # run as a script, it is not started from the root by itself

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests import clip_vocab
from tests.seeded import (FIXTURES, SEED, TEXTS, TOY, TOY_HOOKS, fingerprint, gradient, pictures, randn, text_inputs,
                          toy_eps, unet_inputs, vae_inputs, weights)

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
                steps_offset=1,
                set_alpha_to_one=False, prediction_type="epsilon", timestep_spacing="leading")
TRAJECTORY_STEPS = (1, 2, 3, 4, 20, 50)
UNET_STEPS = (3, 20)                                            # trajectories with the toy UNet; these cost more


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


def our_names(net):
    """{official name: ours}. Older releases of transformers keep a level `text_model.` in front of the text encoder;
    ours has none, but in CLIP, where there are two. position_ids are no weights.
    """
    return {name: name if isinstance(net, CLIPModel) else name.removeprefix("text_model.")
            for name in net.state_dict() if not name.endswith("position_ids")}


def shapes(net):
    tensors = net.state_dict()
    return {ours: tuple(tensors[name].shape) for name, ours in our_names(net).items()}


def official(part, sizes=None, tensors=None):
    """An official network with seeded weights (or with `tensors`, under our names), frozen."""
    net = on_meta(part, sizes or SD[part])
    tensors = tensors or weights(shapes(net))
    net.load_state_dict({name: tensors[ours] for name, ours in our_names(net).items()}, strict=True, assign=True)
    for module in net.modules():
        if hasattr(module, "position_ids"):                     # a buffer that is not in the state dict
            module.position_ids = torch.arange(module.position_ids.shape[1])[None]
    return net.requires_grad_(False).eval()


def unet_outputs(net, z, t, context, hooks, gradients):
    """The same as seeded.unet_outputs: one run, in which every hook's output is captured."""
    captured = {}
    catch = lambda name: lambda module, args, output: captured.__setitem__(name, output[0])
    handles = [net.get_submodule(name).register_forward_hook(catch(name)) for name in hooks]
    leaf = z.clone().requires_grad_(bool(gradients))
    out = {"noise": net(leaf, t, encoder_hidden_states=context).sample.detach()}
    for handle in handles:
        handle.remove()
    for name in hooks:
        out[name] = captured[name].detach()
        if name in gradients:
            out[f"gradient {name}"] = gradient(captured[name], leaf, retain_graph=True)
    return out


def vae_outputs(net, z, images, gradients=True):
    """The same as seeded.vae_outputs."""
    z, images = z.clone().requires_grad_(gradients), images.clone().requires_grad_(gradients)
    decoded = net.decode(z / SCALING).sample
    out = {"decode": decoded.detach()}
    moments = net.encode(2 * images - 1).latent_dist
    out["mean"], out["logvar"] = moments.mean.detach(), moments.logvar.detach()
    if gradients:
        out["gradient decode"], out["gradient mean"] = gradient(decoded, z), gradient(moments.mean, images)
    return out


def text_outputs(net, ids):
    with torch.no_grad():
        return {"embedding": net(ids).last_hidden_state}


def official_pixels(images, size=224):
    """By the library's processor with the published settings, one picture at a time."""
    process = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return torch.cat([process([image], return_tensors="pt")["pixel_values"] for image in images])


def clip_inputs(images, texts, size=224):
    """The library's own way from pictures and strings to pixels and token ids."""
    return official_pixels(images, size), official_ids(official_tokenizer(), list(texts))


def clip_outputs(net, pixels, ids):
    """The same as seeded.clip_outputs."""
    leaf = pixels.clone().requires_grad_()
    out = net(input_ids=ids, pixel_values=leaf)
    return {"image": out.image_embeds.detach(), "text": out.text_embeds, "logits": out.logits_per_image.detach(),
            "gradient image": gradient(out.image_embeds, leaf, retain_graph=True),
            "gradient logits": gradient(out.logits_per_image, leaf)}


def toy_outputs(part):
    net = official(part, TOY[part])
    if part == "clip":
        pixels, ids = clip_inputs(pictures(), TEXTS, TOY[part]["vision_config"]["image_size"])
        return {"pixels": pixels} | clip_outputs(net, pixels, ids)
    if part == "unet":
        return unet_outputs(net, *unet_inputs(), TOY_HOOKS, TOY_HOOKS)
    return vae_outputs(net, *vae_inputs()) if part == "vae" else text_outputs(net, text_inputs())


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


@torch.no_grad()
def guided_eps(net, context, null, guidance):
    """(x, t) -> noise as the official pipeline combines it."""
    def predict(x, t):
        at = torch.tensor([t])
        e_null, e_text = (net(x, at, encoder_hidden_states=c.expand(len(x), -1, -1)).sample for c in (null, context))
        return e_null + guidance * (e_text - e_null)
    return torch.no_grad()(predict)


def schedule_outputs():
    """Trajectories of both samplers, with the stand-in network and with the toy UNet under guidance 7.5, and the betas.
    """
    s = scheduler("ddim")
    out = {"betas": s.betas, "alphas_cumprod": s.alphas_cumprod}
    net, (z, _, contexts) = official("unet", TOY["unet"]), unet_inputs()
    for kind in ("ddim", "pndm"):
        for steps in TRAJECTORY_STEPS:
            out[f"{kind} {steps}"] = trajectory(kind, toy_eps, randn(2, 4, 4, 4, seed=7), steps)[1]
        for steps in UNET_STEPS:
            predict = guided_eps(net, contexts[:1], contexts[1:], 7.5)
            out[f"{kind} unet {steps}"] = trajectory(kind, predict, z[:1], steps)[1][[0, steps // 2, -1]]
    return out


EDGE_CASES = (
    "", " ", "\t\n", "a", "A", "!", "...",
    "don't can't we're they've I'm you'll he'd it's", "DON'T CAN'T WE'RE", "'s 't 're 'x ''s 's's",
    "rock'n'roll o'clock '90s", "1 12 123 1234567890", "3.14159e-10", "x2y3z",
    "½ ² Ⅷ ٣ 五 ①", "snake_case __init__ a_1", "C++ C# F♯",
    "<|startoftext|>", "<|endoftext|>", "a <|endoftext|> b", "<|startoftext|>a dog<|endoftext|>",
    "x<|endoftext|>y<|endoftext|>z",
    "<|ENDOFTEXT|>", "<|endoftext", "endoftext|>",
    "</w>", "a</w> b</w>", "&amp; &lt;b&gt;",
    "a\u00a0b\u2003c\u3000d", "e\u0301 \u00e9 E\u0301",
    "\ufb01 ﬁne", "naïve café résumé", "ΑΒΓΣ ΟΔΟΣ ΣΑΣ", "İstanbul IŞIK", "Straße GROSS ẞ", "привет мир",
    "日本語のテキスト 漢字",
    "한국어 문장",
    "مرحبا بالعالم", "नमस्ते दुनिया", "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽", "e\u200bf\u200dg\ufeffh", "a\u0000b\u0007c",
    "\u001ca\u001db\u001ec\u001fd", "a\u0085b\u2028c",
    "a" * 300, "word " * 100, "1" * 90, "!?" * 60, " ".join("'s" for _ in range(80)),
    "supercalifragilisticexpialidocious " * 9, "日" * 80,
)


def random_prompts(count=400, seed=0):
    """Seeded strings: printable ASCII, ASCII with words, letters of one script, any assigned code point."""
    rng, out = random.Random(seed), []
    scripts = ((0xC0, 0x24F), (0x370, 0x3FF), (0x400, 0x52F), (0x5D0, 0x6FF), (0x900, 0x97F), (0x3040, 0x30FF),
               (0x4E00, 0x9FFF),
               (0xAC00, 0xD7A3), (0x2000, 0x2BFF), (0x300, 0x36F), (0x1F300, 0x1FAFF))
    words = ("a", "The", "dog", "image", "it's", "we'll", "Van", "Gogh", "2024", "--", "style.", "(red)", "ﬁ", "É", "_",
             "<|endoftext|>")
    for i in range(count):
        length = rng.randrange(1, 60)
        if i % 4 == 0:
            text = "".join(chr(rng.randrange(32, 127)) for _ in range(length))
        elif i % 4 == 1:
            text = "".join(rng.choice(words) + rng.choice(("", " ", "  ", ", ", "\n")) for _ in range(length // 2 + 1))
        elif i % 4 == 2:
            first, last = rng.choice(scripts)
            letter = lambda: chr(rng.randrange(first, last + 1))
            text = "".join(rng.choice((" ", letter(), letter())) for _ in range(length))
        else:
            text = "".join(chr(rng.randrange(rng.choice((0x3000, 0x10000, 0x30000)))) for _ in range(length))
        # Surrogates are no text; classes of code points that this Python does not know depend on its age, not on the
        # tokenizer.
        out.append("".join(c for c in text if unicodedata.category(c) not in ("Cs", "Cn")))
    return out


def official_tokenizer():
    pairs = clip_vocab.merges()
    return CLIPTokenizer(vocab=clip_vocab.vocab(pairs), merges=pairs)


def official_ids(tokenizer, prompts):
    return torch.tensor(tokenizer(prompts, padding="max_length", max_length=77, truncation=True)["input_ids"])


def token_outputs():
    prompts = [*EDGE_CASES, *random_prompts(150, seed=1)]
    return {"ids": official_ids(official_tokenizer(), prompts).to(torch.int32)}, prompts


def store(part, tensors, **metadata):
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__,
                "transformers": transformers.__version__}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, FIXTURES / f"parity_{part}.safetensors", {"seed": str(SEED), **versions, **metadata})


def main():
    for part in TOY:
        store(part, {**toy_outputs(part), "fingerprint": fingerprint(part)})
    store("schedule", {**schedule_outputs(), "fingerprint": fingerprint("unet")})
    tokens, prompts = token_outputs()
    store("tokens", tokens, prompts=json.dumps(prompts))
    for path in sorted(FIXTURES.glob("parity_*.safetensors")):
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
