"""CLIP's text side as Stable Diffusion 1.x uses it: byte-level BPE tokenizer and text encoder.

Sources
 [1] Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020
 [2] the published SD 1.x files `tokenizer/{vocab.json, merges.txt}` and `text_encoder/config.json`
 [3] CLIPTextModel and CLIPTokenizer of transformers, against which tests/oracle/ compares embeddings and token ids

Axes: B prompts, L = 77 tokens, C width (768), heads of width 64.
"""
import gzip
import json
import re
import unicodedata
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-5                                                      # LayerNorm [2: layer_norm_eps]
MERGES = 49152 - 2 * 128 - 2                                # of the 262,145 in OpenAI's file, that many are used [1]
LENGTH = 77                                                     # tokens of a prompt, start and end included [2]
START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL = re.compile(f"({re.escape(START)}|{re.escape(END)})")
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")    # tried in this order before character classes [1]


@lru_cache
def byte_symbols():
    """256 printable characters, one for each byte: itself where printable, else chr(256 + n) for
    the n-th that is not [1].
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def split_words(text):
    """Pre-split: English contractions, runs of letters, single digits, runs of anything else; no spaces.

    The classes are Unicode's general categories L and N, which `re` cannot name. U+001C..1F are spaces to Python alone
    [3].
    """
    words, i = [], 0
    space = lambda ch: ch.isspace() and not "\x1c" <= ch <= "\x1f"
    major = lambda ch: unicodedata.category(ch)[0]
    kind = lambda ch: " " if space(ch) else major(ch) if major(ch) in "LN" else "other"
    while i < len(text):
        literal = next((s for s in CONTRACTIONS if text.startswith(s, i)), None)
        end = i + len(literal or " ")
        if not literal and (k := kind(text[i])) in ("L", "other"):
            while end < len(text) and kind(text[end]) == k:
                end += 1
        if literal or k != " ":
            words.append(text[i:end])
        i = end
    return words


def number(merges):
    """{token: id}: the bytes, the bytes at a word's end, what the merges make in their order, start, end;
    SD's vocab.json is this [2].
    """
    symbols = list(byte_symbols().values())
    tokens = [*symbols, *(s + "</w>" for s in symbols), *map("".join, merges), START, END]
    return {token: i for i, token in enumerate(tokens)}


class Tokenizer:
    """Lower-cased text -> ids [start, at most 75 tokens, end, end, ...]: padding is the end token [2].

    A word becomes the symbols of its UTF-8 bytes, `</w>` on the last; then the adjacent pair that comes first in
    `merges` is joined, over and over, until no pair is in the list.
    """

    def __init__(self, vocab, merges):
        self.vocab, self.ranks = vocab, {pair: rank for rank, pair in enumerate(merges)}
        self.cache = {}

    @classmethod
    def from_files(cls, vocab_path, merges_path):
        with open(vocab_path, encoding="utf-8") as file:
            vocab = json.load(file)
        with open(merges_path, encoding="utf-8") as file:       # the first line is a version comment
            merges = [tuple(line.split()) for line in file.read().split("\n")[1:] if line]
        return cls(vocab, merges)

    @classmethod
    def from_bpe(cls, path):
        """From OpenAI's own list of merges, a .txt.gz."""
        lines = gzip.decompress(Path(path).read_bytes()).decode("utf-8").split("\n")
        merges = [tuple(line.split()) for line in lines[1:MERGES + 1]]
        return cls(number(merges), merges)

    def bpe(self, word):
        """One word of `split_words` -> its tokens."""
        if word not in self.cache:
            symbols = [byte_symbols()[b] for b in word.encode("utf-8")]
            symbols[-1] += "</w>"
            while len(symbols) > 1:
                pair = min(zip(symbols, symbols[1:]), key=lambda p: self.ranks.get(p, float("inf")))
                if pair not in self.ranks:
                    break
                merged, i = [], 0
                while i < len(symbols):
                    hit = tuple(symbols[i:i + 2]) == pair
                    merged.append("".join(pair) if hit else symbols[i])
                    i += 2 if hit else 1
                symbols = merged
            self.cache[word] = symbols
        return self.cache[word]

    def ids(self, text):
        """Token ids without start, end and padding. Start and end, spelt exactly, may stand anywhere in the text [3].
        """
        tokens = []
        for piece in SPECIAL.split(text):
            if piece in (START, END):
                tokens.append(piece)
                continue
            # Lower case letter by letter [3]: of a whole word, Python turns a final capital sigma into another letter.
            lower = "".join(ch.lower() for ch in unicodedata.normalize("NFC", piece))
            tokens += [token for word in split_words(lower) for token in self.bpe(word)]
        return [self.vocab.get(token, self.vocab[END]) for token in tokens]                     # unknown = end [2]

    def __call__(self, prompts):
        """Prompts (a list of B strings) -> ids (B, 77) int64."""
        rows = [[self.vocab[START], *self.ids(p)[:LENGTH - 2], self.vocab[END]] for p in prompts]
        return torch.tensor([row + [self.vocab[END]] * (LENGTH - len(row)) for row in rows], dtype=torch.int64)


class Embedding(nn.Embedding):
    def reset_parameters(self):
        if not self.weight.is_meta:             # there torch would load 820 modules, 0.1 GB, to draw no number
            super().reset_parameters()


class Embeddings(nn.Module):
    def __init__(self, vocab_size, c):
        super().__init__()
        self.token_embedding = Embedding(vocab_size, c)
        self.position_embedding = Embedding(LENGTH, c)

    def forward(self, ids):                                                                     # (B, 77) -> (B, 77, C)
        return self.token_embedding(ids) + self.position_embedding.weight[:ids.shape[1]]


class SelfAttention(nn.Module):
    """Causal: a token sees itself and those before it, padding included [3]."""

    def __init__(self, c, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(c, c) for _ in range(4))

    def forward(self, x):                                                                       # (B, 77, C)
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1,
                                                                      2)                     # (B, heads, 77, C/heads)
        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """fc2(quick_gelu(fc1 x)), quick_gelu(x) = x sigmoid(1.702 x) [2: hidden_act]."""

    def __init__(self, c, c_inner):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c, c_inner), nn.Linear(c_inner, c)

    def forward(self, x):
        h = self.fc1(x)
        return self.fc2(h * torch.sigmoid(1.702 * h))


class Layer(nn.Module):
    def __init__(self, c, c_inner, heads):
        super().__init__()
        self.layer_norm1, self.self_attn = nn.LayerNorm(c, eps=EPS), SelfAttention(c, heads)
        self.layer_norm2, self.mlp = nn.LayerNorm(c, eps=EPS), MLP(c, c_inner)

    def forward(self, x):
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, c, c_inner, layers, heads):
        super().__init__()
        self.layers = nn.ModuleList(Layer(c, c_inner, heads) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class TextEncoder(nn.Module):
    """Ids (B, 77) -> final_layer_norm(encoder(embeddings)) (B, 77, C). Argument names are the
    config's, defaults SD 1.x [2].
    """

    def __init__(self, vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                 num_attention_heads=12):
        super().__init__()
        self.embeddings = Embeddings(vocab_size, hidden_size)
        self.encoder = Encoder(hidden_size, intermediate_size, num_hidden_layers, num_attention_heads)
        self.final_layer_norm = nn.LayerNorm(hidden_size, eps=EPS)

    def forward(self, ids):
        return self.final_layer_norm(self.encoder(self.embeddings(ids)))
