"""CLIP's tokenizer from OpenAI's one file (weights/clip, MIT licence), and SD's vocab.json and merges.txt from it."""
import json
from pathlib import Path

from clip import Tokenizer


def tokenizer():
    return Tokenizer.from_bpe(Path(__file__).parent.parent / "weights/clip/bpe_simple_vocab_16e6.txt.gz")


def write(folder):
    """Write vocab.json and merges.txt, to the byte as published."""
    clip = tokenizer()
    vocab = json.dumps(clip.vocab, indent=2, sort_keys=True, ensure_ascii=False)
    merges = "".join(f"{a} {b}\n" for a, b in clip.ranks)
    Path(folder, "vocab.json").write_bytes(f"{vocab}\n".encode())
    Path(folder, "merges.txt").write_bytes(f"#version: 0.2\n{merges}".encode())
