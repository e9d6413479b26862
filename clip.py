"""CLIP ViT-L/14: two networks that put pictures and texts into one space, where what belongs together lies close.

Stable Diffusion 1.x reads its prompts with the text half, which is the same network. Here too are the byte-level BPE
tokenizer, and what a picture goes through before the vision half sees it.

Sources
 [1] Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", arXiv 2103.00020, and
     OpenAI's code to it
 [2] the published SD 1.x files `tokenizer/{vocab.json, merges.txt}` and `text_encoder/config.json`
 [3] CLIPModel, CLIPImageProcessor and CLIPTokenizer of transformers, against which tests/oracle/ compares values and
     gradients, pixels and token ids
 [4] the published `openai/clip-vit-large-patch14`: config.json, preprocessor_config.json and the names in
     model.safetensors

Axes: B prompts or pictures, L = 77 tokens, S = 224 pixels an edge, P = 256 patches of 14 x 14 pixels; C width, of text
768, of vision 1024, in heads of width 64; E = 768 the width of the space in which both meet.
"""
import gzip
import json
import re
import unicodedata
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

EPS = 1e-5                                                      # LayerNorm [2, 4: layer_norm_eps]
MERGES = 49152 - 2 * 128 - 2                                # of the 262,145 in OpenAI's file, that many are used [1]
LENGTH = 77                                                     # tokens of a prompt, start and end included [2]
START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL = re.compile(f"({re.escape(START)}|{re.escape(END)})")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)      # of R, G, B in [0, 1] [4]
LOGIT_SCALE = 2.6592                                            # ln(1 / 0.07), where training began [1, 4]
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


def preprocess(picture, size=224):
    """A picture of any size and mode -> pixels (3, S, S): (p / 255 - MEAN) / STD of its middle square, p = 0..255.

    The short edge becomes `size` by Pillow's bicubic filter, the long one in proportion; both the long edge and the
    corner of the square are rounded down [3]. Transparency is dropped [1].
    """
    short = min(picture.size)
    width, height = (int(size * edge / short) for edge in picture.size)
    picture = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = torch.from_numpy(np.array(picture.crop((left, top, left + size, top + size)))).permute(2, 0, 1)
    pixels = (pixels.double() * (1 / 255)).float()              # rounded to float32 here and not before [3]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))                 # (3, 1, 1)
    return (pixels - mean) / std


class Embedding(nn.Embedding):
    def reset_parameters(self):
        if not self.weight.is_meta:             # there torch would load 820 modules, 0.1 GB, to draw no number
            super().reset_parameters()


class TextEmbeddings(nn.Module):
    """x_l = token_embedding[ids_l] + position_embedding[l]."""

    def __init__(self, vocab_size, c):
        super().__init__()
        self.token_embedding = Embedding(vocab_size, c)
        self.position_embedding = Embedding(LENGTH, c)

    def forward(self, ids):                                                                     # (B, 77) -> (B, 77, C)
        return self.token_embedding(ids) + self.position_embedding.weight[:ids.shape[1]]


class VisionEmbeddings(nn.Module):
    """x_0 = class_embedding + position_embedding[0], x_p = patch_embedding(patch p) + position_embedding[p].

    Patches do not overlap and are counted row by row from 1. The class embedding shows no pixels: what the picture is
    gathers there.
    """

    def __init__(self, image_size, patch_size, c):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(c))
        self.patch_embedding = nn.Conv2d(3, c, patch_size, stride=patch_size, bias=False)
        self.position_embedding = Embedding(1 + (image_size // patch_size) ** 2, c)

    def forward(self, pixels):                                                                  # (B, 3, S, S)
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)                       # (B, P, C)
        first = self.class_embedding.expand(len(pixels), 1, -1)                                 # (B, 1, C)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight              # (B, 1 + P, C)


class SelfAttention(nn.Module):
    """out_proj(softmax(q k^T / sqrt(64)) v). Causal, as in text: a token sees itself and those before it, padding
    included [3]. Patches all see one another.
    """

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
    """fc2(quick_gelu(fc1 x)), quick_gelu(x) = x sigmoid(1.702 x) [2, 4: hidden_act]."""

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


class Encoder(nn.Module):
    def __init__(self, c, c_inner, layers, heads, causal):
        super().__init__()
        self.layers = nn.ModuleList(Layer(c, c_inner, heads, causal) for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class TextEncoder(nn.Module):
    """Ids (B, 77) -> final_layer_norm(encoder(embeddings)) (B, 77, C). Argument names are the config's, defaults
    SD 1.x's and CLIP ViT-L/14's [2, 4].
    """

    def __init__(self, vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                 num_attention_heads=12):
        super().__init__()
        self.embeddings = TextEmbeddings(vocab_size, hidden_size)
        self.encoder = Encoder(hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, causal=True)
        self.final_layer_norm = nn.LayerNorm(hidden_size, eps=EPS)

    def forward(self, ids):
        return self.final_layer_norm(self.encoder(self.embeddings(ids)))


class VisionEncoder(nn.Module):
    """Pixels (B, 3, S, S) -> post_layernorm(encoder(pre_layrnorm(embeddings))_0) (B, C), 0 the class embedding's place.
    Argument names are the config's, defaults CLIP ViT-L/14's, the spelling of the first norm the file's [4].
    """

    def __init__(self, image_size=224, patch_size=14, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                 num_attention_heads=16):
        super().__init__()
        self.embeddings = VisionEmbeddings(image_size, patch_size, hidden_size)
        self.pre_layrnorm = nn.LayerNorm(hidden_size, eps=EPS)
        self.encoder = Encoder(hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, causal=False)
        self.post_layernorm = nn.LayerNorm(hidden_size, eps=EPS)

    def forward(self, pixels):
        x = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))                            # (B, 1 + P, C)
        return self.post_layernorm(x[:, 0])                                                     # (B, C)


class CLIP(nn.Module):
    """Pictures and texts as unit vectors of one space; their dot product says how well they fit [1].

        picture  u = visual_projection(vision_model(pixels)),       e = u / |u|             (B, E)
        text     u = text_projection(text_model(ids)_end),          e = u / |u|             (B, E)
        logits = exp(logit_scale) e_picture . e_text                                        (pictures, texts)

    end is the place of the first end token. It is the highest id, and OpenAI's code finds it so [1]; transformers does
    the same where the config says eos_token_id 2, as the published one does, and looks for that id otherwise [3, 4].
    """

    def __init__(self, text_config=None, vision_config=None, projection_dim=768):
        super().__init__()
        self.text_model, self.vision_model = TextEncoder(**text_config or {}), VisionEncoder(**vision_config or {})
        width = lambda norm: norm.normalized_shape[0]
        self.visual_projection = nn.Linear(width(self.vision_model.post_layernorm), projection_dim, bias=False)
        self.text_projection = nn.Linear(width(self.text_model.final_layer_norm), projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(LOGIT_SCALE))

    def embed_images(self, pixels):                                                             # (B, 3, S, S)
        u = self.visual_projection(self.vision_model(pixels))                                   # (B, E)
        return u / u.norm(dim=-1, keepdim=True)

    def embed_texts(self, ids):                                                                 # (B, 77)
        x, end = self.text_model(ids), ids.argmax(dim=-1)                                       # (B, 77, C), (B,)
        u = self.text_projection(x[torch.arange(len(ids), device=ids.device), end])             # (B, E)
        return u / u.norm(dim=-1, keepdim=True)

    def forward(self, pixels, ids):                                                             # (pictures, texts)
        return self.logit_scale.exp() * self.embed_images(pixels) @ self.embed_texts(ids).T
