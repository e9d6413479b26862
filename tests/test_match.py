"""Which features fit a text or a picture: the score by hand, the table, and one line for whatever cannot be."""
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from activity import __main__ as command
from activity import match, profile
from activity.album import Album
from tests.tiny import HOOK, TIMES, edit_json, edit_tensors, write_examples, write_eyes, write_model
from weights import eyes as looking
from weights.eyes import load_eyes

pytestmark = pytest.mark.usefixtures("one_thread", "loaded_once")
ROW = 5                     # of TIMES, where every profile of the tiny capture has its peak


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The tiny model with eyes of its own and a capture of twelve images of four prompts."""
    folder = write_model(tmp_path_factory.mktemp("weights") / "tiny")
    write_eyes(folder / "clip")
    write_examples(folder / "activity", 64)
    recipe = json.loads((folder / "activity/capture.json").read_text())["recipe"]
    prompts = ["A Tree in Winter", "A Tree in Neon", "A Cat in Winter", "A Cat in Neon"]
    edit_json(folder / "activity/capture.json", images=12, recipe=recipe | {"settings": {"prompts": prompts}})
    return folder


def run(weights, query, *flags):
    argv = ["match", query, "--weights", weights, "--out", weights.parent / "out", "--device", "cpu", *flags]
    try:
        return command.main([str(a) for a in argv])
    except SystemExit as e:
        return e.code


def test_the_score_by_hand(tmp_path):
    """Four features, images 0 to 3 with similarities 0.5, 0.25, -0.25, 0. Feature 0 has no peak, 2 no example at its
    own; 1 and 3 have means 0.375 and -0.125, each less the mean of both. Feature 3 has two peaks, the higher at 701."""
    n = len(TIMES)
    image, activation = torch.full((n, 4, 2), -1), torch.full((n, 4, 2), -torch.inf)
    image[0] = 1                                                # where nobody has a peak
    image[ROW, 0], image[ROW, 1], image[2, 3] = (torch.tensor(pair) for pair in ([0, 1], [0, 1], [2, 3]))
    activation[ROW, 1], activation[2, 3] = torch.tensor([2.0, 1.0]), torch.tensor([4.0, 3.0])
    save_file({"image_feature": image, "activation_feature": activation}, tmp_path / "examples.safetensors")
    settings = {"prompts": ["A Tree", "A Tree", "A Cat", "A Fish", "A Sun"]}
    (tmp_path / "capture.json").write_text(json.dumps({"recipe": {"settings": settings, "timesteps": TIMES.tolist()}}))
    share = (1 - (TIMES - 281).abs() / 1000)[:, None].repeat(1, 4)
    share[:, 0], share[:, 3] = 0, torch.tensor([0.1, 0.2, 0.9, 0.2, 0.1, 0.8, 0.2, 0.1])
    tables, album = {"timesteps": TIMES, "share_feature": share}, Album(tmp_path, None)
    album.seen = dict(enumerate(torch.tensor([[0.5, 9], [0.25, 9], [-0.25, 9], [0.0, 9]])))
    found = match.matches(album, tables, "feature", torch.tensor([1.0, 0.0]))
    assert found == [match.Match(1, 0.25, 2.0, ["Tree"], 281), match.Match(3, -0.25, 4.0, [], 701)]
    assert match.matches(album, tables, "feature", torch.tensor([1.0, 0.0]), most=1) == found[:1]


def test_ten_rows_and_the_command_for_the_first(whole, capsys):
    """The order is that of the scores, recomputed here; the command is one that can be typed."""
    assert run(whole, "a photo of a tree") == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    eyes, capture = load_eyes(whole / "clip"), whole / "activity"
    query, means = eyes.texts(["a photo of a tree"])[0], {}
    for f in range(64):
        numbers = [i for i, _ in profile.examples(capture, "feature", f, 281)]
        if numbers:
            pictures = eyes.images([Image.open(profile.image_path(capture, i)) for i in numbers])
            means[f] = (pictures @ query).mean().item()
    middle = sum(means.values()) / len(means)
    assert head.split()[:3] == ["feature", "score", "activation"] and len(rows) == 10
    for row, f in zip(rows, sorted(means, key=means.get, reverse=True)):
        number, score, activation, *words = row.split()
        assert int(number) == f and float(score) == pytest.approx(means[f] - middle, abs=6e-4)
        strongest = profile.examples(capture, "feature", f, 281)[0][1]
        assert float(activation) == pytest.approx(strongest, rel=1e-3) and words
    assert last == f"see the first: python featviz.py --weights {whole} --feature {rows[0].split()[0]}"


def test_a_picture_and_raw_channels(whole, tmp_path, capsys):
    """An example of the capture as the query; at a hook point without an SAE channels are found."""
    shutil.copy(whole / "activity/images/00007.jpg", tmp_path / "mine.jpg")
    assert run(whole, tmp_path / "mine.jpg") == 0
    first = int(capsys.readouterr().out.splitlines()[1].split()[0])
    assert 7 in [i for i, _ in profile.examples(whole / "activity", "feature", first, 281)]
    bare = shutil.copytree(whole, tmp_path / "bare")
    shutil.rmtree(bare / "sae")
    recipe = json.loads((bare / "activity/capture.json").read_text())["recipe"]
    kept = {name: value for name, value in recipe["fingerprints"].items() if not name.startswith("sae/")}
    edit_json(bare / "activity/capture.json", recipe=recipe | {"fingerprints": kept})
    tables = [t[:, :32] for t in profile.stored_examples(bare / "activity", "feature")]
    save_file({f"{name}_channel": t.contiguous() for name, t in zip(("image", "activation"), tables)},
              bare / "activity/examples.safetensors")
    edit_tensors(bare / "activity/activity.safetensors",
                 lambda tensors: {k: v[:, :0] if k.endswith("feature") else v for k, v in tensors.items()})
    assert run(bare, "a tree", "--hook-point", HOOK) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[0] == "channel" and f"--channel {out[1].split()[0]} --hook-point {HOOK}" in out[-1]


@pytest.mark.parametrize("query, says", [
    (" \n", "the text is empty"), ("none.png", "none.png: there is no such picture"),
    (__file__, "is no picture that can be read")])
def test_a_query_that_is_none(query, says, whole, capsys):
    refused(capsys, run(whole, query), says)


def test_without_eyes_or_capture(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(looking, "ROOT", tmp_path)              # where fetch.py puts CLIP
    blind, new = (shutil.copytree(whole, tmp_path / name) for name in ("blind", "new"))
    shutil.rmtree(blind / "clip")
    refused(capsys, run(blind, "a tree"), f"{blind}: has no eyes", "python weights/fetch.py clip")
    shutil.rmtree(new / "activity")
    refused(capsys, run(new, "a tree"), f"{new}: has no capture; run python -m activity capture --weights {new}")
    (whole / "activity/images/00003.jpg").rename(tmp_path / "away.jpg")
    refused(capsys, run(whole, "a tree"), "images/00003.jpg: cannot be read as a picture")
    (tmp_path / "away.jpg").rename(whole / "activity/images/00003.jpg")


def refused(capsys, code, *fragments):
    captured = capsys.readouterr()
    error = captured.err.splitlines()[-1]
    assert code == 2 and captured.out == "" and error.startswith("activity: ")
    assert all(fragment in error for fragment in fragments) and len(captured.err.splitlines()) <= 2
