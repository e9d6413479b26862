"""Token ids against the CLIPTokenizer of transformers, with the published vocabulary."""
import json
import random
import string
import unicodedata

import pytest
import torch

from activity.capture import GRIDS
from tests import clip_vocab, seeded
from tests.oracle import record

WORDS = ("a", "The", "dog", "it's", "we'll", "Van", "Gogh", "2024", "--", "style.", "(red)", "ﬁ", "É", "_", "\n",
         "<|endoftext|>")
SCRIPTS = (0xC0, 0x300, 0x370, 0x400, 0x5D0, 0x900, 0x2000, 0x3040, 0x4E00, 0xAC00, 0x1F300)    # their first letters


def random_prompts(count, seed=0):
    """Seeded strings of printable ASCII, of words, of neighbours in one script, or of any code points."""
    rng, made = random.Random(seed), []
    assigned = [chr(n) for n in range(0x110000) if unicodedata.category(chr(n)) not in ("Cs", "Cn")]
    for _ in range(count):
        first = rng.choice(SCRIPTS)
        script = [chr(n) for n in range(first, first + 80) if unicodedata.category(chr(n)) != "Cn"]
        alphabet = rng.choice((string.printable, WORDS, script, assigned))
        made.append("".join(rng.choice(alphabet) + rng.choice(("", "", " ")) for _ in range(rng.randrange(60))))
    return made


@pytest.fixture(scope="module")
def tokenizers():
    return clip_vocab.tokenizer(), record.official_tokenizer()


def differing(tokenizers, prompts):
    """The prompts whose ids differ."""
    ours, theirs = tokenizers[0](prompts), record.official_ids(tokenizers[1], prompts)
    assert ours.shape == theirs.shape == (len(prompts), 77)
    return [p for p, a, b in zip(prompts, ours, theirs) if not torch.equal(a, b)]


@pytest.mark.parametrize("name", GRIDS)
def test_prompts_of_captures(tokenizers, name):
    """All objects in all styles, as the published data sets word them, with underscores and without."""
    assert differing(tokenizers, [*GRIDS[name], *(p.replace(" ", "_") for p in GRIDS[name])]) == []


def test_random_strings(tokenizers):
    """ASCII, words glued together, scripts, and any code point at all."""
    assert differing(tokenizers, random_prompts(800)) == []


def test_stored_ids_are_the_official_ones(tokenizers):
    """The fixture of the fast tests is what the library gives today."""
    tensors, metadata = seeded.stored("tokens")
    assert torch.equal(record.official_ids(tokenizers[1], json.loads(metadata["prompts"])).int(), tensors["ids"])
