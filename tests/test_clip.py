"""Tokenizer and text encoder without the official library: published ids, stored ids and embeddings, edge cases."""
import json

import pytest
import torch

from clip import END, START, Tokenizer, split_words
from tests import clip_vocab
from tests.seeded import TOY, compare, filled, fingerprint, stored, text_inputs, toy_outputs

GOLDEN = {
    "a photo of an astronaut riding a horse on mars": [320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496],
    "An Architectures image in Van Gogh style": [550, 3359, 2400, 2867, 530, 2451, 19697, 1844],
    "A Dogs image in photo style": [320, 3255, 2867, 530, 1125, 1844],
    "A Bears image in Ukiyoe style": [320, 6182, 2867, 530, 37435, 586, 324, 1844],
    "it's 3:45pm, 1234 dogs!! don't...": [585, 568, 274, 281, 275, 276, 990, 267, 272, 273, 274, 275, 3255, 748, 847,
                                          713, 678],
    "": [],
}


@pytest.fixture(scope="module")
def tokenizer():
    return clip_vocab.tokenizer()


def test_rebuilt_files_are_the_published_ones(tmp_path, tokenizer):
    """Byte for byte, by their git object names; read back from disk they give the same tokenizer."""
    for name, data in clip_vocab.files().items():
        assert clip_vocab.git_blob(data).startswith(clip_vocab.BLOBS[name])
    clip_vocab.write(tmp_path)
    read = Tokenizer.from_files(tmp_path / "vocab.json", tmp_path / "merges.txt")
    assert read.vocab == tokenizer.vocab and read.ranks == tokenizer.ranks
    assert len(read.vocab) == 49408 and len(read.ranks) == 48894
    assert [read.vocab[s] for s in ("!", "!</w>", START, END)] == [0, 256, 49406, 49407]


@pytest.mark.parametrize("prompt", GOLDEN)
def test_golden_ids(tokenizer, prompt):
    """Start, the words, end; the rest is the end token."""
    ids = tokenizer([prompt])[0].tolist()
    assert ids == [49406, *GOLDEN[prompt]] + [49407] * (76 - len(GOLDEN[prompt]))


def test_stored_ids(tokenizer):
    """200 odd strings from the official tokenizer: contractions, scripts, glued special tokens, any code point."""
    tensors, metadata = stored("tokens")
    prompts = json.loads(metadata["prompts"])
    ids = tokenizer(prompts).int()
    assert len(prompts) > 200 and ids.shape == tensors["ids"].shape
    assert [p for p, a, b in zip(prompts, ids, tensors["ids"]) if not torch.equal(a, b)] == []


def test_long_prompts_are_cut(tokenizer):
    """75 tokens between start and end, of whatever length the prompt is."""
    ids = tokenizer(["dog " * 200, "dog " * 75, "dog " * 74])
    assert ids.shape == (3, 77) and ids.dtype == torch.int64
    dog = tokenizer.ids("dog")[0]
    assert ids[0].tolist() == ids[1].tolist() == [49406] + [dog] * 75 + [49407]
    assert ids[2].tolist() == [49406] + [dog] * 74 + [49407] * 2


@pytest.mark.parametrize("text, words", (
    ("it's", ["it", "'s"]), ("o'clock", ["o", "'", "clock"]), ("we'll've", ["we", "'ll", "'ve"]),
    ("'sand", ["'s", "and"]), ("a1b22", ["a", "1", "b", "2", "2"]), ("½²ⅷ", ["½", "²", "ⅷ"]), ("a_b", ["a", "_", "b"]),
    (" \t\n\u00a0\u3000", []), ("!!'s", ["!!'", "s"]), ("日本語", ["日本語"]), ("a\x1cb", ["a", "\x1c", "b"]),
))
def test_split_words(text, words):
    """Contractions before classes, digits one by one, `_` and control characters with the rest."""
    assert split_words(text) == words


def test_toy_embedding_is_the_official_one():
    tensors, _ = stored("clip_text")
    assert torch.allclose(tensors.pop("fingerprint"), fingerprint("clip_text"), rtol=1e-6), "not the weights recorded"
    compare(toy_outputs("clip_text"), tensors, "toy clip_text")


@torch.no_grad()
def test_a_token_sees_only_those_before_it():
    """Changing token 40 leaves positions 0..39 as they are and moves all others, padding or not."""
    net, ids = filled("clip_text", TOY["clip_text"]), text_inputs(batch=1)
    other = ids.clone()
    other[0, 40] = (other[0, 40] + 1) % 1000
    moved = (net(ids) - net(other)).abs().amax(dim=-1)[0]
    assert moved[:40].max() < 1e-5 and moved[40:].min() > 1e-5
