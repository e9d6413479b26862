"""legibility.json: what is measured of which pictures, when it is kept, when it is not shown, and where it is shown."""
import html
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import legibility
from activity import profile
from activity.album import Album
from pages import read, words
from pages.__main__ import main
from pages.atlas import write_atlas
from pages.feature import write_page
from pages.measure import Measurer, alike
from pages.thesis import write_thesis
from tests.made import feature, measured
from tests.tiny import edit_json, write_capture, write_examples, write_eyes
from weights import eyes as looking
from weights.eyes import load_eyes

pytestmark = pytest.mark.usefixtures("one_thread")
LINE = "Reads as: rose, petal <b>; agreement 0.93, rank 2 of 101; one thing in 4 of 5 seeds"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The tiny model's folder, as far as it is looked at here: its eyes, and words."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    write_eyes(folder / "clip")
    (folder / "clip/words.txt").write_text("rose\npetal\ncar\nfoam\n")
    return folder


@pytest.fixture
def folder(tmp_path):
    """A feature's results at two time steps from two seeds, beside a capture of the weights that made them."""
    folder = feature(tmp_path / "tiny/feature_00003", finished=1.25)
    write_capture(folder.parent, 64, 32)
    home = folder.parent / "activity"
    recipe = json.loads((home / "capture.json").read_text())["recipe"]
    edit_json(home / "capture.json", recipe=recipe | {"fingerprints": {"unet/config.json": "ab" * 32}})
    write_examples(home, 64)
    return folder


def hashed(folder, t=300, seed=1, value="1"):
    """What the record says of its pictures' hashes."""
    edit_json(folder / f"t{t:04d}/seed_{seed}.json", sha256={".png": "0" + value, ".finished.png": value})


# --- what is measured -------------------------------------------------------------------------------------------------

def test_every_measure_is_that_of_the_pictures_shown(folder, weights):
    """The finished ones, against the examples of the sampling step nearest to t."""
    assert Measurer(weights).write(folder) == folder / "legibility.json"
    groups, eyes = json.loads((folder / "legibility.json").read_text())["groups"], load_eyes(weights / "clip")
    capture, opened = folder.parent / "activity", lambda paths: eyes.images([Image.open(p) for p in paths])
    examples = lambda f: profile.examples(capture, "feature", f, 300)
    look = lambda f: opened(profile.image_path(capture, i) for i, _ in examples(f))
    group, others = groups["t0300"], [look(f) for f in range(64) if f != 3 and len(examples(f)) > 1]
    pictures = opened(folder / f"t0300/seed_{seed}.finished.png" for seed in (1, 2))
    assert list(groups) == ["t0000", "t0300"] and list(group["pictures"]) == [
        f"t0300/seed_{seed}.finished.png" for seed in (1, 2)]
    expected = legibility.agreement(pictures, look(3), others)
    assert group["agreement"] == pytest.approx(expected) and expected["of"] == 1 + len(others) > 20
    assert group["seeds"]["sameness"] == pytest.approx(legibility.sameness(pictures), abs=1e-6)
    own = legibility.sameness(look(3), torch.tensor([a for _, a in examples(3)]))
    assert group["examples"] == {"sameness": pytest.approx(own), "of": len(examples(3)), "timestep": 300}
    found, margin = legibility.name(pictures, torch.cat(others).mean(0), ["rose", "petal", "car", "foam"],
                                    eyes.texts(["rose", "petal", "car", "foam"]))
    assert [w for w, _ in group["name"]["words"]] == [w for w, _ in found] and len(found) == 3
    assert group["name"]["margin"] == pytest.approx(margin, abs=1e-5)


def test_how_many_show_one_thing_by_hand():
    """Pictures at 0, 10 and 80 degrees: to the other two they have mean cosines 0.58, 0.66 and 0.26. The examples of a
    feature at 75 degrees are nearer to the third alone; at 5 they are nearer to each."""
    turned = lambda *degrees: torch.stack([f(torch.tensor(degrees).double().deg2rad()) for f in (torch.cos, torch.sin)],
                                          dim=1)
    pictures = turned(0, 10, 80)
    assert alike(pictures, [turned(-90)]) == 3 and alike(pictures, [turned(75)]) == 2
    assert alike(pictures, [turned(75)] + [turned(-90)] * 99) == 3 and alike(pictures, [turned(5)]) == 0
    assert alike(pictures, [turned(75)] + [turned(-90)] * 98) == 2


def test_the_ascents_pictures_where_nothing_was_finished(folder, weights):
    for path in folder.glob("t*/seed_*.json"):
        edit_json(path, finished=None)
    Measurer(weights).write(folder)
    groups = json.loads((folder / "legibility.json").read_text())["groups"]
    assert list(groups["t0000"]["pictures"]) == ["t0000/seed_1.png", "t0000/seed_2.png"]


def test_a_feature_without_examples_has_no_agreement(folder, weights):
    home = folder.parent / "activity"
    images, activations = profile.stored_examples(home, "feature")
    images[:, 3] = -1
    tables = {"image_feature": images, "activation_feature": activations}
    save_file(tables, home / "examples.safetensors")
    Measurer(weights).write(folder)
    group = json.loads((folder / "legibility.json").read_text())["groups"]["t0300"]
    assert group.keys() == {"pictures", "seeds", "name"}
    images[profile.row_at(home, 300), 3, :2] = torch.tensor([5, 7], dtype=images.dtype)         # at its peak
    save_file(tables, home / "examples.safetensors")
    Measurer(weights).write(folder)
    groups = json.loads((folder / "legibility.json").read_text())["groups"]
    assert [groups[name]["examples"]["timestep"] for name in ("t0000", "t0300")] == [300, 300]


def test_the_lot_is_always_the_same_and_looks_at_each_image_once(folder, weights):
    home, eyes = folder.parent / "activity", load_eyes(weights / "clip")
    first, second = Album(home, eyes), Album(home, eyes)
    drawn = [f for f, _ in first.lot("feature", 300, 5)]
    assert drawn == [f for f, _ in second.lot("feature", 300, 5)] != sorted(drawn) and len(set(drawn)) == 5
    assert all(len(profile.examples(home, "feature", f, 300)) == len(e) > 1 for f, e in first.lot("feature", 300, 5))
    shutil.rmtree(home / "images")
    assert torch.equal(first.vectors([*first.seen]), torch.stack([*first.seen.values()]))


# --- what is kept, what is stale --------------------------------------------------------------------------------------

def test_what_fits_is_kept_and_what_does_not_is_measured_again(folder, weights, monkeypatch):
    path, counted = folder / "legibility.json", []
    monkeypatch.setattr(Measurer, "measure", lambda self, *args, plain=Measurer.measure: counted.append(1) or
                        plain(self, *args))
    Measurer(weights).write(folder)
    assert len(counted) == 2
    Measurer(weights).write(folder)
    assert len(counted) == 2
    hashed(folder)                                              # a picture was made again
    Measurer(weights).write(folder)
    assert len(counted) == 4
    path.write_text("{")
    Measurer(weights).write(folder)
    (weights / "clip/words.txt").write_text("rose\npetal\ncar\nink\n")
    Measurer(weights).write(folder)
    write_examples(folder.parent / "activity", 64, seed=1)
    Measurer(weights).write(folder)
    assert len(counted) == 10


@pytest.mark.parametrize("change", [lambda f: hashed(f, value="2"), lambda f: (f / "t0300/seed_2.json").unlink(),
                                    lambda f: edit_json(f / "t0300/seed_2.json", finished=None)])
def test_what_speaks_of_other_pictures_is_not_shown(change, folder):
    hashed(folder)
    measured(folder)
    assert write_page(folder).read_text().count("agreement 0.93") == 3         # two time steps, the first on top, too
    shutil.rmtree(folder / "t0000")
    before = write_page(folder).read_text(), write_atlas(folder.parent).read_text()
    assert before[0].count("agreement 0.93") == 1 and "petal" in before[1]
    change(folder)
    assert "petal" not in write_page(folder).read_text() + write_atlas(folder.parent).read_text()


@pytest.mark.parametrize("text", ["{", "[]", '{"groups": {"t0300": 3}}', '{"groups": []}'])
def test_a_broken_file_is_not_shown(text, folder):
    without = write_page(folder).read_text()
    (folder / "legibility.json").write_text(text)
    assert write_page(folder).read_text() == without


# --- pages ------------------------------------------------------------------------------------------------------------

def test_the_page_says_it_under_its_heading(folder):
    measured(folder)
    head = write_page(folder).read_text().partition("</header>")[0]
    assert f"</h1><p class=\"reads\"><b>{LINE.replace('<b>', '&lt;b&gt;')}</b><br>" in head
    assert all(text in html.unescape(head) for text in words.READ.values())


def test_what_is_not_proven_is_shown_nowhere(folder, monkeypatch):
    measured(folder)
    monkeypatch.setattr(read, "PROVEN", {"finished": ("seeds",)})
    page, atlas = write_page(folder).read_text(), write_atlas(folder.parent).read_text()
    assert "<b>One thing in 4 of 5 seeds</b>" in page and "petal" not in page and "agreement 0" not in page
    assert "petal" not in atlas and "0.93" not in atlas and 'name="agreement"' not in atlas
    monkeypatch.setattr(read, "PROVEN", {"finished": ()})
    assert 'class="reads"' not in write_page(folder).read_text()


def test_of_the_ascents_pictures_nothing_is_shown(folder):
    """There the measures proved to tell next to nothing."""
    for path in folder.glob("t*/seed_*.json"):
        edit_json(path, finished=None)
    measured(folder)
    assert "petal" not in write_page(folder).read_text() + write_atlas(folder.parent).read_text()


def test_the_atlas_holds_agreement_and_words(folder):
    feature(folder.with_name("feature_00004"))                  # of which nobody measured anything
    assert 'name="agreement"' not in write_atlas(folder.parent).read_text()
    measured(folder)
    text = write_atlas(folder.parent).read_text()
    rows = json.loads(text.partition('id="data">')[2].partition("</script>")[0])["rows"]
    assert [row[-1] for row in rows] == [[0.93, ["rose", "petal <b>"]], None]
    assert '<option>agreement</option>' in text and 'name="agreement"' in text and "a suggestion" in text


def test_the_thesis_page_prints_it_beside_the_word(folder):
    home = folder.parent / "thesis"
    home.mkdir()
    results = [f"../{folder.name}/t0300/seed_{seed}" for seed in (1, 2)]
    record = {"feature": 3, "word": "roses", "prompt": None, "weights": "tiny", "note": "", "results": results}
    (home / "feature_00003.json").write_text(json.dumps(record))
    assert "agreement" not in write_thesis(home).read_text()
    measured(folder)
    head = write_thesis(home).read_text().partition("</header></section>")[0]
    assert f"<b>roses</b></h2><p>{LINE[0].lower() + LINE[1:].replace('<b>', '&lt;b&gt;')}</p>" in head


# --- commands ---------------------------------------------------------------------------------------------------------

def test_old_results_are_measured_when_asked(folder, weights, capsys):
    assert main([str(folder.parent)]) == 0 and not (folder / "legibility.json").exists()
    assert main([str(folder.parent), "--measure", "--weights", str(weights)]) == 0
    assert 'class="reads"' in (folder / "index.html").read_text() and capsys.readouterr().err == ""


def test_without_eyes_one_line_says_so_to_who_asked(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(looking, "ROOT", tmp_path)              # where fetch.py puts CLIP
    assert main([str(folder)]) == 0
    before, quiet = (folder / "index.html").read_bytes(), capsys.readouterr()
    assert quiet.err == "" and main([str(folder), "--measure", "--weights", str(tmp_path / "bare")]) == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "python weights/fetch.py clip" in error and str(tmp_path / "bare") in error
    assert (folder / "index.html").read_bytes() == before and not (folder / "legibility.json").exists()


def test_without_a_capture_of_these_weights_nothing_is_measured(folder, weights, capsys):
    capture = folder.parent / "activity/capture.json"
    recipe = json.loads(capture.read_text())["recipe"]
    edit_json(capture, recipe=recipe | {"fingerprints": {"unet/config.json": "cd" * 32}})
    assert main([str(folder), "--measure", "--weights", str(weights)]) == 0
    error = capsys.readouterr().err
    assert error == (f"not measured: 1 of 1 folders, first {folder}: there is no capture of the weights that made "
                     "them\n")
    assert not (folder / "legibility.json").exists()


def test_damaged_eyes_and_measuring_nothing_end_in_one_line(folder, weights, tmp_path, capsys):
    broken = shutil.copytree(weights, tmp_path / "broken")
    (broken / "clip/model.safetensors").write_bytes(b"x")
    assert main([str(folder), "--measure", "--weights", str(broken)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "clip/model.safetensors" in error
    with pytest.raises(SystemExit) as stop:
        main(["--atlas", str(folder.parent), "--measure"])
    assert stop.value.code == 2 and "--measure needs folders" in capsys.readouterr().err
