"""--thesis: the five features, with words and prompts, on one page."""
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import featviz
from activity import capture, thesis
from pages.thesis import write_thesis
from tests.made import activity, picture, result
from tests.tiny import edit_json, write_model
from toyworld.drawings import OBJECTS, STYLES, caption, labels
from weights.load import load

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = ["--device", "cpu", "--num-steps", "2", "--prior-steps", "2", "--seed", "1", "5", "--timestep", "300",
         "--no-finish"]
OWN = [{"feature": 7, "word": "a <b>knot</b>", "prompt": "A Tree image in Winter style"},
       {"feature": 3, "word": "nothing", "prompt": None}]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("weights") / "tiny")
    edit_json(folder / "featviz.json", thesis=OWN, capture={"steps": 3, "sampler": "ddim"})
    return folder


def run(weights, out, *flags):
    return featviz.main([str(a) for a in ("--thesis", "--weights", weights, "--out", out, *SHORT, *flags)])


@pytest.fixture(scope="module")
def made(weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert run(weights, out) == 0
    return out


def read(path):
    return json.loads(path.read_text())


# --- the five ---------------------------------------------------------------------------------------------------------

def test_the_thesis_five():
    assert [(row["feature"], row["word"]) for row in thesis.FEATURES] == [
        (14, "cables"), (10204, "roses"), (10272, "inward perspective"), (10331, "human"), (10538, "foam")]
    prompts = [row["prompt"] for row in thesis.FEATURES if row["prompt"]]
    assert len(prompts) == 4 and set(prompts) <= set(capture.grid("thesis"))       # spelled as the thesis' own prompts


def test_the_toy_s_five_follow_a_rule():
    """Of the features whose meaning is known, the most active first: those of three objects and of two styles. The
    prompt names what the drawing shows that excites the feature most."""
    known, five = read(ROOT / "weights/toy/concepts.json")["features"], []
    for kind, most in (("object", 3), ("style", 2)):
        first = {}
        for row in sorted((row for row in known if row["kind"] == kind), key=lambda row: -row["activation"]):
            first.setdefault(row[kind], row)
        five += list(first.items())[:most]
    drawn = lambda row: [names[i] for names, i in zip((OBJECTS, STYLES), labels(row["examples"][0]))]
    assert read(ROOT / "weights/toy/featviz.json")["thesis"] == [
        {"feature": row["feature"], "word": word.lower(), "prompt": caption(*drawn(row))} for word, row in five]


@pytest.mark.parametrize("wrong", [[], "five", [7], [{"feature": 7}], [{"feature": "7", "word": "a", "prompt": "b"}]])
def test_a_list_of_the_weights_that_is_none(wrong, tmp_path, capsys):
    folder = write_model(tmp_path / "tiny")
    edit_json(folder / "featviz.json", thesis=wrong)
    assert run(folder, tmp_path / "out") == 2
    assert '"thesis" must be a list of objects with feature, word and prompt' in capsys.readouterr().err


def test_the_thesis_numbers_elsewhere(tmp_path, capsys):
    assert run(write_model(tmp_path / "tiny"), tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "has 64 features, the thesis' are those of Style50" in error
    model = load(write_model(tmp_path / "large", activity=None, sae=dict(num_latents=10539)))
    assert thesis.features(model) is thesis.FEATURES and "mean something else" in thesis.elsewhere(model)
    model.name = "style50"
    assert thesis.elsewhere(model) == ""


# --- what is written --------------------------------------------------------------------------------------------------

def test_the_image_and_the_activity_are_the_model_s(weights, made):
    """Drawn by the capture's settings with a fixed seed; the activity is the feature's own at its most active step."""
    record = read(made / "tiny/thesis/feature_00007.json")
    model = load(weights)
    settings = capture.configure(model, prompts=[OWN[0]["prompt"]], batch_size=1)
    image, means = capture.observe(model, settings, [thesis.SEED])
    acts, found = means["feature"][-1], record["activity"]
    own = acts[:, 7]
    assert [a for _, a in found["curve"]] == pytest.approx(own.tolist(), abs=1e-5)
    assert [t for t, _ in found["curve"]] == model.schedule.timesteps(3)
    assert found["activation"] == pytest.approx(own.max().item(), abs=1e-5)
    assert found["timestep"] == model.schedule.timesteps(3)[own.argmax()]
    assert found["rank"] == 1 + (acts[own.argmax()] > own.max()).sum() and found["features"] == 64
    with Image.open(made / "tiny/thesis/feature_00007.png") as file:
        pixels = torch.from_numpy(np.array(file)) / 255
    assert torch.allclose(pixels, image[0].permute(1, 2, 0), atol=0.003)
    assert not (made / "tiny/thesis/feature_00003.png").exists() and "activity" not in read(
        made / "tiny/thesis/feature_00003.json")


def test_the_page(made):
    page = (made / "tiny/thesis/index.html").read_text()
    assert page.count("<section ") == 2 and page.index('id="f7"') < page.index('id="f3"')      # in the list's order
    record = read(made / "tiny/thesis/feature_00007.json")
    assert f"rank {record['activity']['rank']} of 64" in page and "Drawn from: A Tree image in Winter style" in page
    assert html.escape(OWN[0]["word"]) in page and OWN[0]["word"] not in page
    assert page.count('alt="What excites feature 7, time step 300, seed') == 2 and "There is no prompt for it." in page
    for target in re.findall(r'href="\.\./([^"]+)"', page):
        assert (made / "tiny" / target).exists()
    assert page.count('href="../feature_0000') == 2


def test_again_nothing_is_computed(weights, made, monkeypatch):
    files = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    monkeypatch.setattr(thesis, "draw", lambda *_: pytest.fail("an image that is there was drawn again"))
    assert run(weights, made) == 0
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == files


def test_an_image_is_drawn_again_where_the_record_is_broken_or_of_other_weights(weights, made, tmp_path):
    row, folder, model = OWN[0], tmp_path / "thesis", load(weights)
    path = thesis.sample(model, row, folder, [])
    first = path.read_bytes()
    for damage in (b"{", b"[]", first.replace(b'"steps": 3', b'"steps": 4')):
        path.write_bytes(damage)
        path.with_suffix(".png").write_bytes(b"")
        assert thesis.sample(model, row, folder, []).read_bytes() == first
        assert path.with_suffix(".png").read_bytes() == (made / "tiny/thesis/feature_00007.png").read_bytes()


def test_only_the_results_of_this_run_are_shown_and_the_redrawn_ones_too(tmp_path):
    home, folder = tmp_path / "feature_00007", tmp_path / "thesis"
    for seed in (1, 2, 3):
        result(home, t=600, seed=seed)
    (home / "t0600/seed_2.finished.png").write_bytes((home / "t0600/seed_2.png").read_bytes())
    folder.mkdir()
    row = {"feature": 7, "word": "w", "prompt": None, "weights": "w", "note": "a <i>note</i>",
           "results": ["../feature_00007/t0600/seed_1", "../feature_00007/t0600/seed_2"]}
    (folder / "feature_00007.json").write_text(json.dumps(row))
    (folder / "feature_00008.json").write_text("{")
    page = write_thesis(folder).read_text()
    assert page.count("seed 1: excited") == page.count("seed 2: excited") == 1 and "seed 3" not in page
    assert page.count("redrawn by the model: feature") == 1 and "There is no prompt for it." in page
    assert "a &lt;i&gt;note&lt;/i&gt;" in page


def test_without_a_prompt_the_capture_s_strongest_image_stands_there(tmp_path):
    home, folder = tmp_path / "feature_00007", tmp_path / "thesis"
    result(home, t=600)
    activity(home)
    (tmp_path / "00000.jpg").write_bytes(picture())
    seen = [{"image": 0, "activation": 2.5, "prompt": "A Cat & a Hat", "file": str(tmp_path / "00000.jpg")}]
    edit_json(home / "activity.json", examples={"600": seen})
    folder.mkdir()
    row = {"feature": 7, "word": "w", "prompt": None, "weights": "w", "note": "",
           "results": ["../feature_00007/t0600/seed_1"]}
    (folder / "feature_00007.json").write_text(json.dumps(row))
    page = write_thesis(folder).read_text()
    assert "Dataset image: A Cat &amp; a Hat" in page
    assert "of 40 images this one excites it most at time step 600: 2.5" in page


def test_a_folder_without_records(tmp_path):
    with pytest.raises(ValueError, match="holds no record of a feature"):
        write_thesis(tmp_path)


def test_two_processes_share_the_five(weights, tmp_path, capsys):
    assert run(weights, tmp_path, "--shard", "1/2") == 0
    page = (tmp_path / "tiny/thesis/index.html").read_text()
    assert 'id="f3"' in page and 'id="f7"' not in page
    assert run(weights, tmp_path, "--shard", "0/2") == 0
    page = (tmp_path / "tiny/thesis/index.html").read_text()
    assert page.index('id="f7"') < page.index('id="f3"')


def test_thesis_is_a_choice_of_its_own(capsys):
    with pytest.raises(SystemExit) as stop:
        featviz.parse(["--thesis", "--feature", "3"])
    assert stop.value.code == 2 and "not allowed with argument" in capsys.readouterr().err
