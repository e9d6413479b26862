"""SD's `vocab.json` and `merges.txt`, rebuilt from OpenAI's one file (weights/clip, MIT licence).

The rebuilt bytes are those of the published files: test_clip.py checks their git object names.
"""
import gzip
import hashlib
import json
from pathlib import Path

from clip import END, START, Tokenizer, byte_symbols

SOURCE = Path(__file__).parent.parent / "weights/clip/bpe_simple_vocab_16e6.txt.gz"
MERGES = 49152 - 256 - 2                                        # how many of the file's 262,145 CLIP uses
BLOBS = {"vocab.json": "469be27c5c01", "merges.txt": "76e821f1b6f0"}   # first digits of the published files' git object names


def merges():
    """The list of pairs in order of rank."""
    lines = gzip.decompress(SOURCE.read_bytes()).decode("utf-8").split("\n")
    return [tuple(line.split()) for line in lines[1:MERGES + 1]]


def vocab(pairs):
    """{token: id}: the bytes, the bytes at a word's end, the merged symbols, start and end."""
    symbols = list(byte_symbols().values())
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(pair) for pair in pairs), START, END]
    return {token: i for i, token in enumerate(tokens)}


def files():
    """{file name: bytes} as published."""
    pairs = merges()
    return {"vocab.json": (json.dumps(vocab(pairs), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8"),
            "merges.txt": ("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs)).encode("utf-8")}


def git_blob(data):
    """The name that git gives to a file with these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def write(folder):
    for name, data in files().items():
        (Path(folder) / name).write_bytes(data)


def tokenizer():
    pairs = merges()
    return Tokenizer(vocab(pairs), pairs)
