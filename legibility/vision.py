"""CLIP ViT-L/14 with both halves: pictures and texts as vectors of one space, close where they belong together.

Sources
 [1] Radford et al., arXiv 2103.00020, and OpenAI's code for it
 [2] CLIPModel and CLIPImageProcessor of transformers, against which tests/oracle/ compares values, gradients and pixels
 [3] the published `openai/clip-vit-large-patch14`: both configs and the names in model.safetensors

Axes: B pictures or texts, S = 224 pixels an edge, P = 256 patches, C = 1024 channels (768 of text), E = 768 numbers of
an embedding.
"""
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import normalize

from clip import EPS, TextEncoder, embedding, encoder
from weights.load import WeightsError, build, check_config, read_json, read_tokenizer

BATCH = 16                  # pictures or texts at a time
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)      # of R, G, B in [0, 1] [3]


def preprocess(picture, size=224):
    """Scale a PIL picture's short edge to S, crop the middle and normalise: pixels (3, S, S) = (p / 255 - MEAN) / STD.
    Bicubic; the long edge and the corner are rounded down [2]."""
    short = min(picture.size)
    width, height = (int(size * edge / short) for edge in picture.size)
    picture = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = torch.from_numpy(np.array(picture.crop((left, top, left + size, top + size)))).permute(2, 0, 1)
    pixels = (pixels.double() * (1 / 255)).float()              # rounded to float32 here and not before [2]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))                 # (3, 1, 1)
    return (pixels - mean) / std


class VisionEncoder(nn.Module):
    """Pixels (B, 3, S, S) -> post_layernorm(encoder(pre_layrnorm(x))_0) (B, C).

        x_0 = class_embedding + position_embedding[0]
        x_p = patch_embedding(patch p) + position_embedding[p]

    Patches are counted row by row from 1. Names and defaults are the published file's, "layrnorm" as well [3].
    """

    def __init__(self, image_size=224, patch_size=14, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                 num_attention_heads=16):
        super().__init__()
        self.embeddings = nn.ModuleDict({
            "patch_embedding": nn.Conv2d(3, hidden_size, patch_size, stride=patch_size, bias=False),
            "position_embedding": embedding(1 + (image_size // patch_size) ** 2, hidden_size)})
        self.embeddings.class_embedding = nn.Parameter(torch.zeros(hidden_size))
        self.pre_layrnorm = nn.LayerNorm(hidden_size, eps=EPS)
        self.encoder = encoder(hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, causal=False)
        self.post_layernorm = nn.LayerNorm(hidden_size, eps=EPS)

    def forward(self, pixels):                                                                  # (B, 3, S, S)
        patches = self.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)            # (B, P, C)
        first = self.embeddings.class_embedding.expand(len(pixels), 1, -1)                      # (B, 1, C)
        x = torch.cat([first, patches], dim=1) + self.embeddings.position_embedding.weight      # (B, 1 + P, C)
        return self.post_layernorm(self.encoder(self.pre_layrnorm(x))[:, 0])


class CLIP(nn.Module):
    """Two encoders, two projections; the dot product of two embeddings says how well picture and text fit [1].

        picture  u = visual_projection(vision_model(pixels)),       e = u / |u|             (B, E)
        text     u = text_projection(text_model(ids)_end),          e = u / |u|             (B, E)

    end is the place of the first end token, which has the highest id [1]. logit_scale is of the training [3].
    """

    def __init__(self, text_config=None, vision_config=None, projection_dim=768):
        super().__init__()
        self.text_model, self.vision_model = TextEncoder(**text_config or {}), VisionEncoder(**vision_config or {})
        self.visual_projection = nn.Linear(len(self.vision_model.post_layernorm.weight), projection_dim, bias=False)
        self.text_projection = nn.Linear(len(self.text_model.final_layer_norm.weight), projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.zeros(()))

    def embed_images(self, pixels):                                                             # (B, 3, S, S)
        return normalize(self.visual_projection(self.vision_model(pixels)), dim=-1)             # (B, E)

    def embed_texts(self, ids):                                                                 # (B, 77)
        x, end = self.text_model(ids), ids.argmax(dim=-1)                                       # (B, 77, C), (B,)
        return normalize(self.text_projection(x[torch.arange(len(ids), device=ids.device), end]), dim=-1)   # (B, E)


class CLIPScorer:
    """CLIP, frozen, in float32. `images` and `texts` return unit vectors (n, E) on the CPU."""

    def __init__(self, folder, device="cpu"):
        path, self.device, self.weights = folder / "config.json", device, folder / "model.safetensors"
        if not self.weights.exists():
            raise WeightsError(f"{self.weights}: is missing; python weights/fetch.py clip fetches CLIP (1.7 GB)")
        config = read_json(path)
        sizes = {part: check_config("text_encoder", config.get(part, {}), f"{path}: {part}")   # both have these layers
                 for part in ("text_config", "vision_config")}
        edges = {"image_size": 224, "patch_size": 14} | config.get("vision_config", {})        # pixels
        self.size = edges["image_size"]
        sizes["vision_config"] |= {"image_size": self.size, "patch_size": edges["patch_size"]}
        sizes["projection_dim"] = config.get("projection_dim", 768)
        self.net = build(CLIP, sizes, path, self.weights, device=device)
        self.tokenizer = read_tokenizer(folder / "tokenizer")

    def images(self, pictures):
        """Embed n PIL pictures of any size: (n, E)."""
        pixels = torch.stack([preprocess(picture, self.size) for picture in pictures])
        return self.net.embed_images(pixels.to(self.device)).cpu()

    def texts(self, strings):
        """Embed n strings: (n, E)."""
        ids = self.tokenizer(strings).split(BATCH)
        return torch.cat([self.net.embed_texts(some.to(self.device)).cpu() for some in ids])
