"""Eyes: CLIP from a folder, to look at pictures with. Strict, like load.py: what does not fit is named in one line.

    folder/config.json              sizes: text_config, vision_config, projection_dim, as the hub's
    folder/model.safetensors        both networks; what `python weights/fetch.py clip` puts into weights/clip
    folder/tokenizer/               vocab.json, merges.txt; CLIP's own, made from weights/clip, where it is missing
"""
import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from clip import Tokenizer
from legibility.vision import CLIP, preprocess
from weights.configs import read_eyes_config
from weights.disk import AGAIN, WeightsError
from weights.fingerprints import sha256, signature
from weights.load import BPE_FILE, Source, check_unchanged, fit, read_tokenizer, skeleton
from weights.tensors import read_header

ROOT = Path(__file__).parent
MISSING = ("{}: has no eyes of its own to look at pictures with, and CLIP is not there; python weights/fetch.py clip "
           "fetches it")
BATCH = 16                                                      # pictures or texts at a time


@dataclass(frozen=True)
class Eyes:
    """CLIP, frozen, in float32. Both doors give unit vectors (n, E) on the CPU: their dot products are similarities."""
    net: CLIP
    tokenizer: Tokenizer
    size: int                                                   # pixels an edge of what the network sees
    source: Source                                              # of the network's tensors
    files: dict                                                 # name -> (path, signature) of all that was read
    device: torch.device

    @torch.no_grad()
    def images(self, pictures):
        """PIL images (a list of n, of any size) -> (n, E)."""
        pixels = lambda some: torch.stack([preprocess(picture, self.size) for picture in some]).to(self.device)
        return self.batches(pictures, lambda some: self.net.embed_images(pixels(some)))

    @torch.no_grad()
    def texts(self, strings):
        """Strings (a list of n) -> (n, E)."""
        return self.batches(strings, lambda some: self.net.embed_texts(self.tokenizer(some).to(self.device)))

    def batches(self, items, embed):
        """WeightsError where numbers in the file are the reason that a vector has no length."""
        some = [embed(items[i:i + BATCH]).cpu() for i in range(0, len(items), BATCH)]
        vectors = torch.cat([torch.zeros(0, self.net.text_projection.out_features), *some])
        self.check_unchanged()
        if not vectors.isfinite().all():
            self.source.check_numbers(torch.float32)
            raise WeightsError(f"{self.source.path}: gives vectors without a length; {AGAIN}")
        return vectors

    def check_unchanged(self):
        for path, then in self.files.values():
            check_unchanged(path, then)

    @cached_property
    def fingerprint(self):
        """SHA-256 over the names and SHA-256s of all files that were read."""
        self.check_unchanged()
        hashes = sha256([path for path, _ in self.files.values()])
        lines = [f"{name} {hashes[path]}\n" for name, (path, _) in sorted(self.files.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def find_eyes(weights_folder):
    """The folder of the eyes for a model: its own `clip/`, else CLIP where fetch.py puts it, else None."""
    folders = (Path(weights_folder) / "clip", ROOT / "clip")
    return next((folder for folder in folders if (folder / "model.safetensors").exists()), None)


def open_eyes(weights_folder, device="cpu"):
    """`Eyes` for a model; WeightsError that says how to get some where there are none."""
    if not (folder := find_eyes(weights_folder)):
        raise WeightsError(MISSING.format(weights_folder))
    return load_eyes(folder, device)


def load_eyes(folder, device="cpu"):
    """`Eyes` of a folder; WeightsError, whose text is one line: the file, what was expected, what to do.

    Names, shapes and types are checked here, NaN and infinity when they reach a vector.
    """
    folder, device = Path(folder), torch.device(device)
    config, path, tokens = folder / "config.json", folder / "model.safetensors", folder / "tokenizer"
    if not config.exists():
        raise WeightsError(f"{folder}: holds no CLIP: no config.json in it; expected config.json and model.safetensors,"
                           " python weights/fetch.py clip fetches both into weights/clip")
    sizes, header = read_eyes_config(config), read_header(path)
    own = {name: entry for name, entry in header.items() if not name.endswith(".position_ids")}     # 0, 1, 2, ...
    source = fit(skeleton(CLIP, sizes, config), path, own)
    tokenizer = read_tokenizer(tokens) if tokens.exists() else Tokenizer.from_bpe(BPE_FILE)
    if len(tokenizer.vocab) != (known := sizes["text_config"]["vocab_size"]):
        raise WeightsError(f"{tokens}: {len(tokenizer.vocab)} tokens" + " of CLIP's own" * (not tokens.exists())
                           + f", but {config} has {known}; give the tokenizer of these weights")
    read = [config, path, *((tokens / "vocab.json", tokens / "merges.txt") if tokens.exists() else (BPE_FILE,))]
    files = {file.name: (file, signature(file)) for file in read}
    net, size = source.read(torch.float32, device), sizes["vision_config"]["image_size"]
    return Eyes(net, tokenizer, size, source, files, device)
