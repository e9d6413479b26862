"""CLIPScorer: embeddings of pictures and texts, whose dot products say how well they fit.

    folder/config.json              sizes: text_config, vision_config, projection_dim, as the hub's
    folder/model.safetensors        both networks
    folder/tokenizer/               vocab.json, merges.txt; OpenAI's own vocabulary where the folder is missing

The folder is the model's own `clip/`, else weights/clip, where `python weights/fetch.py clip` puts CLIP ViT-L/14.
"""
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from activity.profile import image_path
from clip import Tokenizer
from command.progress import Count
from legibility.vision import CLIP, preprocess
from results import write
from vae import read_picture
from weights.fingerprints import Fingerprints
from weights.load import WeightsError, build, check_config, read_json, read_tokenizer

PUBLISHED = Path(__file__).resolve().parent.parent / "weights/clip"     # where fetch.py puts CLIP
BATCH = 16                                                      # pictures or texts at a time
LAYERS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SIZES = {"text_config": ("vocab_size", *LAYERS), "vision_config": ("image_size", "patch_size", *LAYERS)}


class CLIPScorer:
    """CLIP, frozen, in float32. `images` and `texts` return unit vectors (n, E) on the CPU."""

    def __init__(self, folder, device="cpu"):
        """Load it from `folder` (of find_clip); WeightsError, one line, for what is missing or does not fit."""
        if folder is None:
            raise WeightsError(f"{PUBLISHED}/model.safetensors: is missing; python weights/fetch.py clip fetches CLIP "
                               "(1.7 GB)")
        self.folder, self.device, path = folder, device, folder / "config.json"
        config = read_json(path)
        try:
            sizes = {part: {key: config[part][key] for key in keys} for part, keys in SIZES.items()}
            sizes["projection_dim"] = config["projection_dim"]
        except (KeyError, TypeError) as e:
            raise WeightsError(f"{path}: lacks {e}; fetch or copy CLIP's own config.json") from e
        for part in SIZES:                                      # both halves have the same layers
            check_config("text_encoder", config[part], f"{path}: {part}")
        self.size = sizes["vision_config"]["image_size"]        # pixels an edge
        self.net = build(CLIP, sizes, path, folder / "model.safetensors", device=device)
        published, given = PUBLISHED / "bpe_simple_vocab_16e6.txt.gz", folder / "tokenizer"
        self.tokenizer = read_tokenizer(given) if given.exists() else Tokenizer.from_bpe(published)

    @torch.no_grad()
    def images(self, pictures):
        """Embed n PIL pictures of any size: (n, E)."""
        pixels = (torch.stack([preprocess(picture, self.size) for picture in some]) for some in batches(pictures))
        return torch.cat([self.net.embed_images(some.to(self.device)).cpu() for some in pixels])

    @torch.no_grad()
    def texts(self, strings):
        """Embed n strings: (n, E)."""
        ids = (self.tokenizer(some) for some in batches(strings))
        return torch.cat([self.net.embed_texts(some.to(self.device)).cpu() for some in ids])


def batches(items):
    return [items[i:i + BATCH] for i in range(0, len(items), BATCH)]


def find_clip(model_folder):
    """Return the folder of the CLIP to use with a model, or None where there is none."""
    folders = (Path(model_folder) / "clip", PUBLISHED)
    return next((folder for folder in folders if (folder / "model.safetensors").exists()), None)


def embed_examples(scorer, capture, path):
    """Embed all images of a capture (n, E) and keep them in `path`: CLIP ViT-L/14 on a CPU needs a second an image."""
    made_with = Fingerprints({"clip": scorer.folder / "model.safetensors"}).result() | {"capture": capture.sha256}
    if path.exists():
        with safe_open(path, framework="pt") as file:
            if file.metadata() == made_with:
                return file.get_tensor("embeddings")
    progress, vectors = Count("images seen by CLIP"), []
    progress(0, capture.images)
    for numbers in batches(range(capture.images)):
        vectors.append(scorer.images([read_picture(image_path(capture.folder, n)) for n in numbers]))
        progress(numbers[-1] + 1, capture.images)
    write(path, save({"embeddings": torch.cat(vectors)}, made_with))
    return torch.cat(vectors)
