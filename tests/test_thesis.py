"""--thesis: the table's features, with words and prompts, on one page."""
import json
import re

import featviz
from tests.test_page import Page, check
from tests.tiny import edit_json, write_model


def test_a_row_holds_word_prompt_image_and_every_seed(tmp_path):
    """Of an SAE with labels its first five, here two, with prompts in SAEmnesia's spelling."""
    weights = write_model(tmp_path / "tiny")
    edit_json(weights / "featviz.json", capture={"steps": 3, "sampler": "ddim"})
    (cfg,) = weights.glob("sae/*/cfg.json")
    cfg.with_name("labels.json").write_text(json.dumps({"7": "a <b>knot</b>", "3": "Cats"}))
    flags = ["--weights", weights, "--out", tmp_path / "out", "--timestep", 300, "--prior", "noise", "--no-finish"]
    assert featviz.main([*map(str, flags), "--thesis", "--device", "cpu", "--seed", "1", "5"]) == 0
    folder = tmp_path / "out/tiny/thesis"
    page = Page(folder / "index.html")
    check(page, folder)
    rows = page.source.split("<section")[1:]
    assert [re.sub(r"<[^>]*>", "", row.partition("</h2>")[0].partition(">")[2]) for row in rows] == [
        "Feature 3: Cats", "Feature 7: a &lt;b&gt;knot&lt;/b&gt;"]
    assert [row.count("<h3>Seed") for row in rows] == [2, 2] and "Drawn from: An image of Cats." in rows[0]
