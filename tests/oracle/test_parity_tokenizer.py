"""Token ids against the CLIPTokenizer of transformers, with the published vocabulary."""
import json

import pytest
import torch

from tests import clip_vocab, seeded
from tests.oracle import record

OBJECTS = """
Architectures Bears Birds Butterfly Cats Dogs Fishes Flame Flowers Frogs Horses Human Jellyfish Rabbits Sandwiches
Sea Statues Towers Trees Waterfalls""".split()
STYLES = """
Abstractionism Artist_Sketch Blossom_Season Bricks Byzantine Cartoon Cold_Warm Color_Fantasy Comic_Etch Crayon
Cubism Dadaism Dapple Defoliation Early_Autumn Expressionism Fauvism French Glowing_Sunset Gorgeous_Love Greenfield
Impressionism Ink_Art Joy Liquid_Dreams Magic_Cube Meta_Physics Meteor_Shower Monet Mosaic Neon_Lines On_Fire Pastel
Pencil_Drawing Picasso Pop_Art Red_Blue_Ink Rust Sketch Sponge_Dabbed Structuralism Superstring Surrealism Ukiyoe
Van_Gogh Vibrant_Flow Warm_Love Warm_Smear Watercolor Winter photo""".split()


@pytest.fixture(scope="module")
def tokenizers():
    return clip_vocab.tokenizer(), record.official_tokenizer()


def differing(tokenizers, prompts):
    """The prompts whose ids differ."""
    ours, theirs = tokenizers[0](prompts), record.official_ids(tokenizers[1], prompts)
    assert ours.shape == theirs.shape == (len(prompts), 77)
    return [p for p, a, b in zip(prompts, ours, theirs) if not torch.equal(a, b)]


def test_unlearncanvas_prompts(tokenizers):
    """All 20 objects in all 51 styles, as the published data set words them, with underscores and without."""
    prompts = [f"A{'n' * (o == 'Architectures')} {o} image in {s} style" for o in OBJECTS for s in STYLES]
    assert len(prompts) == 20 * 51
    assert differing(tokenizers, prompts + [p.replace("_", " ") + "." for p in prompts]) == []


def test_random_strings(tokenizers):
    """ASCII, words glued together, eleven scripts, and any code point at all."""
    assert differing(tokenizers, record.random_prompts(800)) == []


def test_edge_cases(tokenizers):
    """Empty, too long, contractions, digits, special tokens inside the text, spaces of all kinds, combining marks."""
    assert differing(tokenizers, list(record.EDGE_CASES)) == []


def test_stored_ids_are_the_official_ones(tokenizers):
    """The fixture of the fast tests is what the library gives today."""
    tensors, metadata = seeded.stored("tokens")
    assert torch.equal(record.official_ids(tokenizers[1], json.loads(metadata["prompts"])).int(), tensors["ids"])
