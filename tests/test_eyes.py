"""CLIP without the official library: recorded outputs, the published file's size, what reaches a vector; and the folder
that it is loaded from, whole or damaged.
"""
import json
import math
import shutil

import pytest
import torch
from PIL import Image
from torch import nn

from clip import END, MEAN, STD, preprocess
from tests.seeded import TOY, compare, filled, fingerprint, on_meta, pictures, shapes, stored, toy_outputs
from tests.tiny import EYES, edit_json, edit_tensors, write_eyes
from weights import eyes as module
from weights.disk import WeightsError
from weights.eyes import find_eyes, load_eyes

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG, MODEL = "config.json", "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_eyes(tmp_path_factory.mktemp("eyes") / "clip")


# --- the network ------------------------------------------------------------------------------------------------------

def test_toy_outputs_are_the_official_ones():
    """From pictures of five sizes and five texts: pixels to the bit, embeddings, logits, gradients of the pixels."""
    tensors, _ = stored("clip")
    assert torch.allclose(tensors.pop("fingerprint"), fingerprint("clip"), rtol=1e-6), "not the seeded weights recorded"
    ours = toy_outputs("clip")
    assert torch.equal(ours["pixels"], tensors["pixels"])
    compare(ours, tensors, "toy clip")


def test_names_and_shapes_give_the_published_size():
    """427,616,513 numbers; with their header, and the two position_ids of old files, the published file's bytes."""
    tensors = {f"{tower}_model.embeddings.position_ids": ("I64", 8, (1, n))
               for tower, n in (("text", 77), ("vision", 257))}
    ours = shapes(on_meta("clip"))
    assert len(ours) == 590 and sum(map(math.prod, ours.values())) == 427_616_513
    tensors |= {name: ("F32", 4, shape) for name, shape in sorted(ours.items())}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, size, shape) in tensors.items():
        begin, end = end, end + size * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    assert 8 + len(json.dumps(header, separators=(",", ":"))) + end == 1_710_540_580


def test_numbers_that_no_tensor_shows():
    """Every eps, the heads of both towers, which of them is causal, patches that do not overlap."""
    net = on_meta("clip")
    assert [m.eps for m in net.modules() if isinstance(m, nn.LayerNorm)] == [1e-5] * 75
    for tower, heads, causal, layers in ((net.text_model, 12, True, 12), (net.vision_model, 16, False, 24)):
        attention = [layer.self_attn for layer in tower.encoder.layers]
        assert [(a.heads, a.causal) for a in attention] == [(heads, causal)] * layers
    assert net.vision_model.embeddings.patch_embedding.stride == (14, 14)


@torch.no_grad()
def test_a_text_is_what_stands_before_its_first_end():
    net = filled("clip", TOY["clip"])
    ids = torch.full((1, 77), 49407)
    ids[0, :4] = torch.tensor([49406, 320, 1125, 539])
    behind, before = ids.clone(), ids.clone()
    behind[0, 5:], before[0, 3] = 7, 540
    plain = net.embed_texts(ids)
    assert torch.equal(net.embed_texts(behind), plain) and (net.embed_texts(before) - plain).abs().max() > 1e-3


def test_preprocess_by_hand():
    """Half as high as wide: the middle square alone is seen, enlarged; R, G, B each by its own mean and deviation."""
    picture = Image.new("RGB", (200, 100), (255, 0, 0))
    picture.paste((51, 102, 204), (50, 0, 150, 100))
    inner = preprocess(picture, 50)[:, :, 5:-5]
    expected = torch.tensor([(p / 255 - m) / s for p, m, s in zip((51, 102, 204), MEAN, STD)])
    assert inner.shape == (3, 50, 40) and torch.allclose(inner, expected[:, None, None].expand(3, 50, 40), atol=1e-6)
    assert preprocess(picture).shape == (3, 224, 224)


@pytest.mark.parametrize("width, height, left, top", [(35, 32, 1, 0), (32, 35, 0, 1), (34, 32, 1, 0)])
def test_an_odd_margin_is_rounded_down(width, height, left, top):
    """A picture whose short edge fits is only cut."""
    picture = pictures()[2].resize((width, height))
    assert torch.equal(preprocess(picture, 32), preprocess(picture.crop((left, top, left + 32, top + 32)), 32))


def test_transparency_is_dropped():
    picture = pictures()[0]
    clear = picture.copy()
    clear.putalpha(0)
    assert torch.equal(preprocess(clear, 32), preprocess(picture, 32))


# --- the eyes ---------------------------------------------------------------------------------------------------------

def test_unit_vectors_one_a_picture_or_text_whatever_the_batch(whole):
    eyes, images, texts = load_eyes(whole), pictures() * 4, [f"tree {i}" for i in range(20)]
    assert len(images) > module.BATCH
    for embed, items in ((eyes.images, images), (eyes.texts, texts)):
        vectors = embed(items)
        assert vectors.shape == (20, 8) and torch.allclose(vectors.norm(dim=1), torch.ones(20))
        assert torch.allclose(vectors, torch.cat([embed([item]) for item in items]), atol=1e-6)
        assert embed([]).shape == (0, 8) and not vectors.requires_grad
    assert eyes.images(images[:5]).std(dim=0).max() > 0.01
    assert not any(p.requires_grad for p in eyes.net.parameters())


def test_without_a_tokenizer_it_is_clips_own(folder):
    shutil.rmtree(folder / "tokenizer")
    edit_json(folder / CONFIG, text_config=EYES["text_config"] | {"vocab_size": 49408, "eos_token_id": 49407})
    name = "text_model.embeddings.token_embedding.weight"
    edit_tensors(folder / MODEL, lambda t: t | {name: torch.randn(49408, 16)})
    eyes = load_eyes(folder)
    assert eyes.tokenizer.vocab[END] == 49407 and eyes.texts(["a", "b"]).shape == (2, 8)


def test_position_ids_and_half_precision_are_read(folder, whole):
    towers = {f"{tower}_model.embeddings.position_ids": torch.arange(9)[None] for tower in ("text", "vision")}
    edit_tensors(folder / MODEL, lambda t: {k: v.half() for k, v in t.items()} | towers)
    half, full = load_eyes(folder), load_eyes(whole)
    for name, tensor in half.net.state_dict().items():
        assert torch.equal(tensor, full.net.state_dict()[name].half().float()), name
    assert torch.allclose(half.images(pictures()), full.images(pictures()), atol=0.01)


def test_the_fingerprint_sees_every_file(folder, whole):
    first = load_eyes(whole).fingerprint
    assert len(first) == 64 and load_eyes(folder).fingerprint == first
    seen = {first}
    edit_json(folder / CONFIG, vision_config=EYES["vision_config"] | {"num_attention_heads": 4})
    seen.add(load_eyes(folder).fingerprint)
    edit_tensors(folder / MODEL, lambda t: t | {"logit_scale": t["logit_scale"] + 1})
    seen.add(load_eyes(folder).fingerprint)
    with open(folder / "tokenizer/merges.txt", "a", encoding="utf-8") as file:
        file.write("\n")
    seen.add(load_eyes(folder).fingerprint)
    assert len(seen) == 4


def test_a_models_own_eyes_come_first(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROOT", tmp_path / "repository")
    model = tmp_path / "model"
    assert find_eyes(model) is None and find_eyes(tmp_path / "single.safetensors") is None
    shutil.copytree(folder, tmp_path / "repository/clip")
    assert find_eyes(model) == tmp_path / "repository/clip"
    (model / "clip").mkdir(parents=True)
    assert find_eyes(model) == tmp_path / "repository/clip"     # an empty folder has no eyes
    shutil.copytree(folder, model / "clip", dirs_exist_ok=True)
    assert find_eyes(model) == model / "clip"


# --- what does not fit ------------------------------------------------------------------------------------------------

def changed(part, **entries):
    """Entries of one object in the config; None takes one out."""
    def damage(folder):
        config = {k: v for k, v in (EYES[part] | entries).items() if v is not None}
        edit_json(folder / CONFIG, **{part: config})
    return damage


def entries(**changes):
    return lambda folder: edit_json(folder / CONFIG, **changes)


def tensors(change):
    return lambda folder: edit_tensors(folder / MODEL, change)


def cut(folder):
    data = (folder / MODEL).read_bytes()
    (folder / MODEL).unlink()
    (folder / MODEL).write_bytes(data[:-1000])


POSITIONS = "vision_model.embeddings.position_embedding.weight"
AGAIN = "fetch or copy this file again"
BAD = {     # name: (damage, fragments of the message)
    "no folder": (shutil.rmtree, ("holds no CLIP", "python weights/fetch.py clip")),
    "no config": (lambda f: (f / CONFIG).unlink(), ("no config.json in it", "python weights/fetch.py clip")),
    "no weights": (lambda f: (f / MODEL).unlink(), (f"{MODEL}: cannot be read (No such file", AGAIN)),
    "weights cut short": (cut, (f"{MODEL}: is not a whole safetensors file", AGAIN)),
    "config is a list": (lambda f: (f / CONFIG).write_text("[]"), ("expected a JSON object, found list", AGAIN)),
    "a text encoder's config": (entries(vision_config=None), ("no object 'vision_config'", AGAIN)),
    "no width of the space": (entries(projection_dim=None), ("projection_dim is None, expected",)),
    "a size left out": (changed("vision_config", patch_size=None), ("vision_config lacks 'patch_size'", AGAIN)),
    "another activation": (changed("vision_config", hidden_act="gelu"),
                           ("vision_config: hidden_act is 'gelu', only 'quick_gelu'", "give CLIP ViT-L/14's weights")),
    "another eps": (changed("text_config", layer_norm_eps=1e-6), ("text_config: layer_norm_eps is 1e-06, only 1e-05",)),
    "four colours": (changed("vision_config", num_channels=4), ("num_channels is 4, only 3",)),
    "another end": (changed("text_config", eos_token_id=7), ("eos_token_id is 7, only 2 or the last token, 513",)),
    "patches that leave a rest": (changed("vision_config", patch_size=7), ("patch_size is 7, which does not divide",)),
    "heads that do not divide": (changed("vision_config", num_attention_heads=3), ("num_attention_heads is 3, which",)),
    "another picture size": (changed("vision_config", image_size=64), (f"{POSITIONS} has shape [17, 16], expected",)),
    "more layers": (changed("text_config", num_hidden_layers=3), ("lacks tensor 'text_model.encoder.layers.2.",)),
    "a tensor missing": (tensors(lambda t: {k: v for k, v in t.items() if k != "logit_scale"}),
                         ("lacks tensor 'logit_scale'", "does not belong to its config")),
    "a tensor too many": (tensors(lambda t: t | {"a": torch.ones(1)}), ("has an unexpected tensor 'a'",)),
    "whole numbers": (tensors(lambda t: t | {"logit_scale": torch.tensor(1)}), ("logit_scale holds I64, expected",)),
    "another tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), ("49408 tokens of CLIP's own, but", "has 514; ")),
    "no vocabulary": (lambda f: (f / "tokenizer/vocab.json").unlink(), ("vocab.json: cannot be read (No such", AGAIN)),
    "NaN for pictures": (tensors(lambda t: t | {POSITIONS: t[POSITIONS] * math.nan}), (f"{POSITIONS} holds NaN",)),
    "infinity for texts": (tensors(lambda t: t | {"text_projection.weight": t["text_projection.weight"] / 0}),
                           ("text_projection.weight holds NaN or infinite values", AGAIN)),
    "no length": (tensors(lambda t: t | {"visual_projection.weight": t["visual_projection.weight"] * 0}),
                  (f"{MODEL}: gives vectors without a length", AGAIN)),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_ends_in_one_line(folder, name):
    damage, fragments = BAD[name]
    damage(folder)
    with pytest.raises(WeightsError) as e:
        eyes = load_eyes(folder)
        eyes.images(pictures()[:1])
        eyes.texts(["a tree"])
    text = str(e.value)
    assert "\n" not in text and str(folder) in text and all(fragment in text for fragment in fragments), text


def test_a_file_that_is_replaced_while_it_is_in_use(folder):
    eyes = load_eyes(folder)
    edit_tensors(folder / MODEL, lambda t: t | {"logit_scale": t["logit_scale"] + 1})
    for use in (lambda: eyes.images(pictures()[:1]), lambda: eyes.texts(["a"]), lambda: eyes.fingerprint):
        with pytest.raises(WeightsError, match="was changed while it was in use"):
            use()
