"""SD's `vocab.json` and `merges.txt`, rebuilt from OpenAI's one file (weights/clip, MIT licence).

The rebuilt bytes are those of the published files: test_clip.py checks their git object names.
"""
import hashlib
import json
from pathlib import Path

from clip import Tokenizer

SOURCE = Path(__file__).parent.parent / "weights/clip/bpe_simple_vocab_16e6.txt.gz"
BLOBS = {"vocab.json": "469be27c5c01",
         "merges.txt": "76e821f1b6f0"}   # first digits of the published files' git object names


def tokenizer():
    return Tokenizer.from_bpe(SOURCE)


def merges():
    """The list of pairs in order of rank."""
    return list(tokenizer().ranks)


def vocab(pairs):
    """{token: id} of these very pairs, which are those of tokenizer()."""
    assert pairs == merges()
    return tokenizer().vocab


def files():
    """{file name: bytes} as published."""
    pairs = merges()
    return {"vocab.json": (json.dumps(vocab(pairs), indent=2, sort_keys=True,
                                      ensure_ascii=False) + "\n").encode("utf-8"),
            "merges.txt": ("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs)).encode("utf-8")}


def git_blob(data):
    """The name that git gives to a file with these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def write(folder):
    for name, data in files().items():
        (Path(folder) / name).write_bytes(data)
