"""Make the toy's tokenizer and text encoder, before the UNet, and frozen as CLIP's was for Stable Diffusion.

Source: [1] Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020.
"""
import re
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn

from clip import TextEncoder, Tokenizer, byte_symbols, split_words
from toyworld import drawings

SIZES = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2)
CONFIG = SIZES | {"hidden_act": "quick_gelu", "max_position_embeddings": 77}
TEMPERATURE = 0.07          # of the dot products, CLIP's at the start [1]
THUMBNAIL = 16              # pixels an edge of what the picture's side sees


def learn_bpe(words):
    """Merge symbols until each of `words` (a Counter) is one token, the most frequent pair first, ties by name."""
    spelled = {word: " ".join(byte_symbols()[b] for b in word.encode()) + "</w>" for word in words}
    merges = []
    while any(" " in symbols for symbols in spelled.values()):
        totals = Counter()
        for word, symbols in spelled.items():
            symbols = symbols.split(" ")
            for pair in zip(symbols, symbols[1:]):
                totals[pair] += words[word]
        best = max(sorted(totals), key=totals.get)
        merges.append(best)
        together = re.compile(rf"(?<!\S){re.escape(' '.join(best))}(?!\S)")       # two whole symbols
        spelled = {word: together.sub("".join(best), symbols) for word, symbols in spelled.items()}
    return merges


def make_tokenizer(chosen):
    """Make a tokenizer in CLIP's format that spells every word of the captions as one token."""
    words = Counter(word for text in drawings.captions(chosen) for word in split_words(text.lower()))
    return Tokenizer(learn_bpe(words))


def caption_table(tokenizer, chosen):
    """Make token ids (T + 1, 5, 77) of the captions of all things and houses; the last of either is none."""
    names, houses = [thing.name for thing in chosen] + [None], [*drawings.HOUSES, None]
    return torch.stack([tokenizer([drawings.caption(name, house) for house in houses]) for name in names])


class Pair(nn.Module):
    """Compare texts, by their encoder, with pictures, by a linear map of thumbnails: unit vectors (B, C) [1].

        text     e = u / |u|,  u = text_projection(mean over places of text_encoder(ids))
        picture  e = u / |u|,  u = picture_projection(16 x 16 thumbnail)
    """

    def __init__(self, vocab_size):
        super().__init__()
        C = SIZES["hidden_size"]
        torch.randn(vocab_size + CONFIG["max_position_embeddings"], C)     # unused; the toy was made after these draws
        self.text_encoder = TextEncoder(vocab_size, **SIZES)
        for table in (self.text_encoder.embeddings.token_embedding, self.text_encoder.embeddings.position_embedding):
            nn.init.normal_(table.weight, std=0.1)
        self.text_projection = nn.Linear(C, C, bias=False)
        self.picture_projection = nn.Linear(3 * THUMBNAIL ** 2, C)

    def forward(self, ids, images):
        """Token ids (B, 77), drawings (B, 3, 64, 64) -> logits (texts, pictures)."""
        text = F.normalize(self.text_projection(self.text_encoder(ids).mean(1)), dim=-1)               # (B, C)
        thumbnails = F.avg_pool2d(2 * images - 1, drawings.SIZE // THUMBNAIL).flatten(1)               # (B, 768)
        return text @ F.normalize(self.picture_projection(thumbnails), dim=-1).T / TEMPERATURE


def contrast(logits):
    """Cross-entropy of finding the picture of each text and the text of each picture, averaged [1]."""
    right = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
