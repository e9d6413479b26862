"""CLIP looks at pictures: recorded outputs, pictures as people have them, measures by hand, search, both commands."""
import io
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from clip import END
from legibility import __main__ as command
from legibility.__main__ import Legibility, agreement, best_words, read_words
from legibility.vision import BATCH, CLIPScorer
from results import StoredResult
from tests import made
from tests.seeded import compare, fingerprint, on_meta, pictures, shapes, stored, toy_outputs
from tests.tiny import CLIP_CONFIG, TIMES, edit_json, edit_tensors, write_clip, write_model
from vae import read_picture
from weights.load import WeightsError


@pytest.fixture(scope="module", autouse=True)
def whole(tmp_path_factory):
    """A tiny CLIP in place of the published one."""
    folder = write_clip(tmp_path_factory.mktemp("clip") / "clip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "PUBLISHED", folder)
        yield folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny model with labels, and a capture of twelve images of four prompts."""
    folder = write_model(tmp_path_factory.mktemp("weights") / "tiny")
    g = torch.Generator().manual_seed(0)
    images = torch.rand(len(TIMES), 64, 12, generator=g).argsort(dim=-1)[..., :4]
    images[torch.arange(4) >= torch.randint(1, 6, (len(TIMES), 64, 1), generator=g)] = -1      # 1 to 4 a feature
    images[:, 5] = -1
    save_file({"image_feature": images.to(torch.int16), "activation_feature": torch.ones(images.shape).half()},
              folder / "activity/examples.safetensors")
    for i in range(12):
        Image.open(io.BytesIO(made.picture(i))).save(folder / f"activity/images/{i:05d}.jpg")
    recipe = json.loads((folder / "activity/capture.json").read_text())["recipe"]
    prompts = ["A Tree in Winter", "A Tree in Neon", "A Cat in Winter", "A Cat in Neon"]
    edit_json(folder / "activity/capture.json", images=12, recipe=recipe | {"settings": {"prompts": prompts}})
    next(folder.glob("sae/*")).joinpath("labels.json").write_text('{"7": "an old rose", "9": "fish"}')
    return folder


def test_toy_outputs_are_the_official_ones():
    """From pictures of five sizes and five texts: pixels to the bit, embeddings, logits, gradients of the pixels."""
    tensors, _ = stored("clip")
    assert torch.allclose(tensors.pop("fingerprint"), fingerprint("clip"), rtol=1e-6), "not the weights recorded"
    ours = toy_outputs("clip")
    assert torch.equal(ours["pixels"], tensors["pixels"])
    compare(ours, tensors, "toy clip")


def test_numbers_of_the_published_network():
    """427,616,513 numbers in 590 tensors; heads, and which half is causal; patches do not overlap."""
    net = on_meta("clip")
    assert len(shapes(net)) == 590 and sum(map(math.prod, shapes(net).values())) == 427_616_513
    for tower, heads, causal, layers in ((net.text_model, 12, True, 12), (net.vision_model, 16, False, 24)):
        attention = [layer.self_attn for layer in tower.encoder.layers]
        assert [(a.heads, a.causal) for a in attention] == [(heads, causal)] * layers
    assert net.vision_model.embeddings.patch_embedding.stride == (14, 14)


def test_unit_vectors_whatever_the_batch(whole):
    scorer, texts = CLIPScorer(whole), [f"tree {i}" for i in range(20)]
    assert len(texts) > BATCH
    for embed, items in ((scorer.images, pictures() * 4), (scorer.texts, texts)):
        vectors = embed(items)
        assert vectors.shape == (20, 8) and torch.allclose(vectors.norm(dim=1), torch.ones(20))
        assert torch.allclose(vectors[17:], embed(items[17:]), atol=1e-6)


def test_without_a_tokenizer_the_vocabulary_is_openais(folder):
    shutil.rmtree(folder / "tokenizer")
    edit_json(folder / "config.json", text_config=CLIP_CONFIG["text_config"] | {"vocab_size": 49408})
    table = {"text_model.embeddings.token_embedding.weight": torch.randn(49408, 16)}
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors | table)
    assert CLIPScorer(folder).tokenizer.vocab[END] == 49407


@pytest.mark.parametrize("changes, says", [
    ({"vision_config": None}, "lacks tensor"), ({"projection_dim": None}, "projection.weight has shape"),
    ({"vision_config": CLIP_CONFIG["vision_config"] | {"hidden_act": "gelu"}}, "hidden_act is gelu")])
def test_a_config_that_does_not_fit_ends_in_one_line(folder, changes, says):
    edit_json(folder / "config.json", **changes)
    with pytest.raises(WeightsError, match=says):
        CLIPScorer(folder)


def test_pictures_as_people_have_them(tmp_path):
    """16 bits, a phone's photo on its side; what is no picture ends in one line."""
    picture, exif = pictures()[3].convert("L"), Image.Exif()
    Image.fromarray(np.asarray(picture).astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    exif[0x0112] = 6
    picture.rotate(90, expand=True).save(tmp_path / "phone.png", exif=exif)
    for name in ("sixteen.png", "phone.png"):
        assert np.array_equal(read_picture(tmp_path / name), picture.convert("RGB"))
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        read_picture(__file__)


def turned(*degrees):
    """Unit vectors at these angles: (n, 2); two of them have the similarity cos(difference)."""
    a = torch.tensor(degrees).double().deg2rad()
    return torch.stack([a.cos(), a.sin()], dim=1)


def test_agreement_by_hand():
    """Pictures at 0 degrees: an example's score is the cosine of its angle. 10 and 50 against 30, 40, 80 and 90: of the
    eight pairs 10 wins 4 and 50 wins 2. Against 10, 50 and 90 10 wins 2 and equals 1, and 50 wins 1 and equals 1."""
    assert agreement(turned(0, 0), turned(10, 50), turned(30, 40, 80, 90)) == pytest.approx(6 / 8)
    assert agreement(turned(0, 0), turned(10, 50), turned(10, 50, 90)) == pytest.approx(4 / 6)
    assert agreement(turned(0, 90), turned(45), turned(0, 90)) == 1


def test_words_by_hand():
    """Words at 0, 60, -60 and 180 degrees; without the mean picture at (1, 1/2) what is left points to -90 degrees."""
    words, embeddings = ["rose", "tree", "fish", "cat"], turned(0, 60, -60, 180)
    found = best_words(turned(10, -10), torch.zeros(2).double(), words, embeddings)
    assert found[0] == ("rose", pytest.approx(1)) and {w for w, _ in found[1:]} == {"tree", "fish"}
    found = best_words(turned(0), torch.tensor([1.0, 0.5]).double(), words, embeddings, top=1)
    assert found == [("fish", pytest.approx(math.cos(math.pi / 6)))]
    assert 2000 <= len(read_words()) <= 2600 and read_words()["rose"] == "a picture of rose"
    assert read_words()["bricks"] == "a picture in bricks style" and "" not in read_words()


def attached(model):
    opened = command.load(model, "cpu")
    command.attach(opened, model.parent)
    return opened


def run(capsys, work, model, given):
    out = model.parent / "out"
    code = command.main([work, str(given), "--weights", str(model), "--out", str(out), "--device", "cpu"])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err


def test_match_prints_ten_features_by_score(model, whole, capsys):
    """Each score is recomputed from the examples, which are all from the only peak, 281."""
    code, (_, *rows, last), _ = run(capsys, "match", model, "a photo of a tree")
    assert code == 0 and len(rows) == 10
    opened = attached(model)
    scorer, capture = CLIPScorer(whole), opened.capture
    query, means = scorer.texts(["a photo of a tree"])[0], {}
    for n in range(64):
        if found := capture.examples("feature", n, int(TIMES[5])):
            images = [Image.open(capture.folder / f"images/{i:05d}.jpg") for i, _ in found]
            means[n] = (scorer.images(images) @ query).mean().item()
    middle = sum(means.values()) / len(means)
    for row, n in zip(rows, sorted(means, key=means.get, reverse=True)):
        assert int(row.split()[0]) == n and float(row.split()[1]) == pytest.approx(means[n] - middle, abs=6e-4)
    assert last.startswith("see the first: ") and last.endswith(f"--feature {rows[0].split()[0]}")


def test_match_searches_labels_and_pictures(model, tmp_path, monkeypatch, capsys):
    code, lines, _ = run(capsys, "match", model, model / "activity/images/00007.jpg")
    assert code == 0 and len(lines) == 12
    code, lines, error = run(capsys, "match", model, "none.gif")
    assert code == 2 and lines == [] and "none.gif: cannot be read" in error and error.count("\n") == 1
    monkeypatch.setattr(command, "PUBLISHED", tmp_path)
    code, lines, _ = run(capsys, "match", model, "ROSE")                # a label needs no CLIP
    assert code == 0 and lines[0] == 'feature 7 has the label "an old rose"' and lines[-1].endswith("--feature 7")
    assert len(lines) == 2
    code, lines, error = run(capsys, "match", model, "tree")
    assert code == 2 and lines == [] and "python weights/fetch.py clip" in error


def test_measure_writes_words_and_agreement(model, tmp_path, monkeypatch, capsys):
    """Of the pictures of two seeds, against the examples at the time step nearest to 300."""
    job = {"kind": "feature", "target": 3, "timestep": 300, "seed": 1}
    paths = [tmp_path / f"t0300/seed_{seed}.png" for seed in (1, 2)]
    paths[0].parent.mkdir()
    for path, picture in zip(paths, pictures()):
        picture.save(path)
    monkeypatch.setattr(command, "read_results", lambda folder: [
        StoredResult(path, {"job": job}, "excited", {}, [], "") for path in paths])
    code, lines, _ = run(capsys, "measure", model, tmp_path)
    assert code == 0 and lines[0].startswith(f"wrote {tmp_path / 'legibility.json'}; python -m pages")
    found = json.loads((tmp_path / "legibility.json").read_text())["groups"]["t0300"]
    opened = attached(model)
    seen, numbers = Legibility(opened, tmp_path), opened.capture.stored_examples("feature", int(TIMES[5]))[0]
    embedded = [seen.images[[i for i in row if i >= 0]] for row in numbers.tolist()]
    others = [e for n, e in enumerate(embedded) if n != 3 and len(e) > 1]
    expected = agreement(seen.scorer.images(pictures()[:2]), embedded[3], torch.cat(others))
    assert found["agreement"] == {"auc": pytest.approx(expected)} and len(others) > 20
    assert len(found["words"]) == 3 and found["words"][0][0] in read_words()


def test_embeddings_are_kept_until_clip_or_the_capture_changes(model, tmp_path):
    opened = attached(model)
    first = Legibility(opened, tmp_path).images
    path = tmp_path / "tiny/activity_clip.safetensors"
    for made_with, expected in (({"clip": "?"}, first), (None, first + 1)):
        with safe_open(path, framework="pt") as file:
            save_file({"embeddings": first + 1}, path, made_with or file.metadata())
        assert torch.equal(Legibility(opened, tmp_path).images, expected)
