"""Tokenizer and text encoder without the official library: its recorded ids, the published files, the causal mask."""
import hashlib
import json

import pytest
import torch

from clip import END, START, Tokenizer
from tests import clip_vocab
from tests.seeded import TOY, filled, stored, text_inputs


@pytest.fixture(scope="module")
def tokenizer():
    return clip_vocab.tokenizer()


def test_rebuilt_files_are_the_published_ones(tmp_path, tokenizer):
    """Byte for byte, by their git object names; read back from disk they give the same tokenizer."""
    clip_vocab.write(tmp_path)
    for name, first in (("vocab.json", "469be27c5c01"), ("merges.txt", "76e821f1b6f0")):
        data = (tmp_path / name).read_bytes()
        assert hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest().startswith(first)
    read = Tokenizer.from_bpe(tmp_path / "merges.txt")
    assert read.vocab == json.loads((tmp_path / "vocab.json").read_text()) and read.ranks == tokenizer.ranks
    assert len(read.vocab) == 49408 and len(read.ranks) == 48894
    assert [read.vocab[s] for s in ("!", "!</w>", START, END)] == [0, 256, 49406, 49407]


def test_stored_ids(tokenizer):
    """200 odd strings by the official tokenizer: contractions, digits, scripts, spaces and special tokens of all kinds,
    any code point, and what is longer than 75 tokens."""
    tensors, metadata = stored("tokens")
    prompts = json.loads(metadata["prompts"])
    ids = tokenizer(prompts).int()
    assert len(prompts) > 200 and ids.shape == tensors["ids"].shape
    assert [p for p, a, b in zip(prompts, ids, tensors["ids"]) if not torch.equal(a, b)] == []


@torch.no_grad()
def test_a_token_sees_only_those_before_it():
    """Changing token 40 leaves positions 0..39 as they are and moves all others, padding or not."""
    net, ids = filled("clip_text", TOY["clip_text"]), text_inputs(batch=1)
    other = ids.clone()
    other[0, 40] = (other[0, 40] + 1) % 1000
    moved = (net(ids) - net(other)).abs().amax(dim=-1)[0]
    assert moved[:40].max() < 1e-5 and moved[40:].min() > 1e-5
