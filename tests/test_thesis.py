"""--thesis: the table's features, with words and prompts, on one page."""
import json
import re

import pytest

import featviz
from activity import capture, thesis
from tests.test_page import Page, check
from tests.tiny import edit_json, write_model
from weights.load import load

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = ["--device", "cpu", "--seed", "1", "5", "--timestep", "300", "--no-finish"]
OWN = [{"feature": 7, "word": "a <b>knot</b>", "prompt": "A Tree image in Winter style"},
       {"feature": 3, "word": "nothing", "prompt": None}]


def run(weights, out):
    return featviz.main(["--thesis", "--weights", str(weights), "--out", str(out), *SHORT])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("weights") / "tiny")
    edit_json(folder / "featviz.json", thesis=OWN, capture={"steps": 3, "sampler": "ddim"})
    return folder


def test_the_thesis_five():
    assert [(row["feature"], row["word"]) for row in thesis.FEATURES] == [
        (14, "cables"), (10204, "roses"), (10272, "inward perspective"), (10331, "human"), (10538, "foam")]
    prompts = [row["prompt"] for row in thesis.FEATURES if row["prompt"]]
    assert len(prompts) == 4 and set(prompts) <= set(capture.GRIDS["thesis"])      # spelled alike


def test_a_row_holds_word_prompt_image_and_every_seed(weights, tmp_path):
    assert run(weights, tmp_path) == 0
    folder = tmp_path / "tiny/thesis"
    page = Page(folder / "index.html")
    check(page, folder)
    rows = page.source.split("<section")[1:]
    assert [re.sub(r"<[^>]*>", "", row.partition("</h2>")[0].partition(">")[2]) for row in rows] == [
        "Feature 7: a &lt;b&gt;knot&lt;/b&gt;", "Feature 3: nothing"]
    assert [row.count("<h3>Seed") for row in rows] == [2, 2]
    assert "Drawn from: A Tree image in Winter style" in rows[0] and "Drawn from" not in rows[1]
    picture = folder / "7.png"
    made = picture.stat().st_mtime_ns
    assert run(weights, tmp_path) == 0 and picture.stat().st_mtime_ns == made       # drawn once


def test_an_sae_with_labels_brings_its_own_five(tmp_path):
    """As SAEmnesia's, whose labels.json python -m activity label writes: words and prompts in its spelling."""
    folder = write_model(tmp_path / "tiny")
    (cfg,) = folder.glob("sae/*/cfg.json")
    cfg.with_name("labels.json").write_text(json.dumps({str(n): f"thing {n}" for n in (9, 2, 7, 4, 1, 3)}))
    rows = thesis.features(load(folder, "cpu"))
    assert [row["feature"] for row in rows] == [1, 2, 3, 4, 7]
    assert rows[0] == {"feature": 1, "word": "thing 1", "prompt": "An image of thing 1."}


def test_weights_without_these_features_end_in_one_line(tmp_path, capsys):
    folder = write_model(tmp_path / "tiny")
    assert run(folder, tmp_path / "out") == 2
    assert "has 64 features, the thesis' are those of Style50" in capsys.readouterr().err
