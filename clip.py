"""The tokenizer and text encoder of CLIP ViT-L/14, with which Stable Diffusion 1.x reads its prompts.

Sources
 [1] Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020, and
     OpenAI's code for it
 [2] the published SD 1.x files `tokenizer/{vocab.json, merges.txt}` and `text_encoder/config.json`
 [3] CLIPTextModel and CLIPTokenizer of transformers, against which tests/oracle/ compares values and token ids

Axes: B prompts, N tokens (77 of a prompt), C = 768 channels in heads of width 64.
"""
import gzip
import re
import unicodedata
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from unet import chain

EPS = 1e-5                                                      # of every LayerNorm [2: layer_norm_eps]
MERGES = 49152 - 2 * 128 - 2                                    # used of the 262,145 pairs in OpenAI's file [1]
LENGTH = 77                                                     # tokens of a prompt, start and end included [2]
START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL = re.compile(f"({re.escape(START)}|{re.escape(END)})")
CONTRACTION = re.compile("'(s|t|re|ve|m|ll|d)")                 # tried before character classes [1]
RUN = re.compile("L+|N|O+| ")                                   # of character classes


@cache
def byte_symbols():
    """Map each of the 256 bytes to itself where printable, else to chr(256 + n) for the n-th byte that is not [1]."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def character_class(ch):
    """Return "L" for a letter, "N" for a digit, " " for a space, "O" for the rest: Unicode's general categories, which
    `re` cannot name. Python alone counts U+001C..1F as spaces [3]."""
    if ch.isspace() and not "\x1c" <= ch <= "\x1f":
        return " "
    major = unicodedata.category(ch)[0]
    return major if major in "LN" else "O"


def split_words(text):
    """Split text into English contractions, runs of letters, single digits and runs of other characters; spaces go."""
    classes, words, start = "".join(map(character_class, text)), [], 0
    while start < len(text):
        found = CONTRACTION.match(text, start) or RUN.match(classes, start)
        if classes[start] != " ":
            words.append(text[start:found.end()])
        start = found.end()
    return words


class Tokenizer:
    """Byte-pair encoding: lower-cased text -> ids [start, at most 75 tokens, end, end, ...], padded with the end [2].
    A word becomes the symbols of its UTF-8 bytes, `</w>` on the last. Then the adjacent pair that comes first in
    `merges` is joined, over and over, until no pair is in the list."""

    def __init__(self, merges):
        symbols = list(byte_symbols().values())
        tokens = [*symbols, *(s + "</w>" for s in symbols), *map("".join, merges), START, END]
        self.vocab = {token: i for i, token in enumerate(tokens)}       # as SD's vocab.json
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}

    @classmethod
    def from_bpe(cls, path):
        """Read merges.txt, or OpenAI's own list, a .txt.gz; the first line is a version comment."""
        opened = gzip.open if Path(path).suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")[1:MERGES + 1]
        return cls([tuple(line.split()) for line in lines if line])

    @cache
    def bpe(self, word):
        """Split one word of `split_words` into its tokens."""
        symbols = [byte_symbols()[b] for b in word.encode("utf-8")]
        symbols[-1] += "</w>"
        while len(symbols) > 1:
            pair = min(zip(symbols, symbols[1:]), key=lambda p: self.ranks.get(p, float("inf")))
            if pair not in self.ranks:
                break
            for i in range(len(symbols)):                       # the list gets shorter on the way
                if tuple(symbols[i:i + 2]) == pair:
                    symbols[i:i + 2] = ["".join(pair)]
        return symbols

    def ids(self, text):
        """Return a text's ids, without start, end and padding; START and END in it are tokens, unknown ones END [3]."""
        tokens = []
        for piece in SPECIAL.split(text):
            if piece in (START, END):
                tokens.append(piece)
                continue
            # letter by letter [3]: in a whole word, Python's lower() turns a final capital sigma into another letter
            lower = "".join(ch.lower() for ch in unicodedata.normalize("NFC", piece))
            tokens += [token for word in split_words(lower) for token in self.bpe(word)]
        return [self.vocab.get(token, self.vocab[END]) for token in tokens]

    def __call__(self, prompts):
        """Prompts (a list of B strings) -> ids (B, 77) int64."""
        start, end = self.vocab[START], self.vocab[END]
        rows = [[start, *self.ids(prompt)[:LENGTH - 2], end] for prompt in prompts]
        return torch.tensor([row + [end] * (LENGTH - len(row)) for row in rows], dtype=torch.int64)


def embedding(n, c):
    """Make a table of n vectors (c,) without numbers: torch would import 820 modules (2 s) to draw some on meta."""
    return nn.Embedding.from_pretrained(torch.empty(n, c), freeze=False)


class SelfAttention(nn.Module):
    """out_proj(softmax(q k^T / sqrt(C / heads)) v); causal: a token sees itself and those before it, as in text [3]."""

    def __init__(self, c, heads, causal):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(c, c) for _ in range(4))

    def forward(self, x):                                                                       # (B, N, C)
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)                      # (B, heads, N, C/heads)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(y.transpose(1, 2).flatten(2))                                      # (B, N, C)


class MLP(nn.Module):
    """fc2(quick_gelu(fc1 x)), quick_gelu(x) = x sigmoid(1.702 x) [2: hidden_act]."""

    def __init__(self, c, c_inner):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c, c_inner), nn.Linear(c_inner, c)

    def forward(self, x):
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h))


class Layer(nn.Module):
    """x <- x + self_attn(layer_norm1(x)), then x <- x + mlp(layer_norm2(x))."""

    def __init__(self, c, c_inner, heads, causal):
        super().__init__()
        self.layer_norm1, self.self_attn = nn.LayerNorm(c, eps=EPS), SelfAttention(c, heads, causal)
        self.layer_norm2, self.mlp = nn.LayerNorm(c, eps=EPS), MLP(c, c_inner)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


def encoder(c, c_inner, layers, heads, causal):
    """Make layers that run one after another; checkpoints name them `encoder.layers.0` and so on."""
    return chain(layers=nn.Sequential(*(Layer(c, c_inner, heads, causal) for _ in range(layers))))


class TextEncoder(nn.Module):
    """Ids (B, 77) -> final_layer_norm(encoder(x)) (B, 77, C), x_n = token_embedding[ids_n] + position_embedding[n];
    arguments are named as in config.json, defaults are SD 1.x's [2]."""

    def __init__(self, vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                 num_attention_heads=12):
        super().__init__()
        self.embeddings = nn.ModuleDict({"token_embedding": embedding(vocab_size, hidden_size),
                                         "position_embedding": embedding(LENGTH, hidden_size)})
        self.encoder = encoder(hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, causal=True)
        self.final_layer_norm = nn.LayerNorm(hidden_size, eps=EPS)

    def forward(self, ids):
        tokens, positions = self.embeddings.token_embedding, self.embeddings.position_embedding
        return self.final_layer_norm(self.encoder(tokens(ids) + positions.weight[:ids.shape[1]]))
