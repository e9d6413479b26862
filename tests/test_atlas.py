"""The atlas: what its tiles hold, thumbnails, broken files, names of hook points; and pictures of many features."""
import json
import re

import pytest
from PIL import Image

from pages import atlas, sheet
from pages.atlas import write_atlas
from tests.made import activity, picture, result
from tests.rows_picture import write_rows
from tests.test_page import Page

HOOK = "down_blocks.2.resnets.1.conv_shortcut"


def tiles(folder):
    """The data of the page, by folder name of each tile."""
    text = write_atlas(folder).read_text(encoding="utf-8")
    rows = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))
    return {row["link"].partition("/")[0]: row for row in rows}


@pytest.fixture
def folder(tmp_path):
    """Feature 3 with a finished picture, feature 12 without one, a feature at another hook point."""
    out = tmp_path / "toy"
    result(out / "feature_00003", finished="fragile", dataset_largest=5.0)
    activity(out / "feature_00003")
    result(out / "feature_00012", verdict="weak", activation=None)
    result(out / f"{HOOK}_channel_0002")
    return out


def test_a_tile_holds_both_pictures_and_what_the_feature_responds_to(folder):
    found = tiles(folder)
    row, other = found["feature_00003"], found[f"{HOOK}_channel_0002"]
    assert (row["kind"], row["number"], row["words"], row["peak"]) == ("feature", 3, "Tree", 300)
    assert [(face["verdict"], face["activation"], face["strength"]) for face in row["faces"]] == [
        ("fragile", 1.25, 0.25), ("excited", 2.5, 0.5)]
    assert found["feature_00012"]["faces"][0]["activation"] is None and found["feature_00012"]["words"] == ""
    assert (other["kind"], other["number"], other["hook"]) == ("channel", 2, HOOK)
    assert all((folder / face["picture"]).exists() for face in other["faces"])


def test_thumbnails_are_small_and_follow_the_best_result(folder):
    result(folder / "feature_00003", seed=9, png=picture(1, 512), finished="excited")
    faces = tiles(folder)["feature_00003"]["faces"]
    assert [Image.open(folder / face["picture"]).size for face in faces] == [(160, 160)] * 2
    assert [face["picture"].rpartition("seed_")[2] for face in faces] == ["9.jpg", "9_ascent.jpg"]
    time = (folder / faces[0]["picture"]).stat().st_mtime_ns
    (folder / "feature_00012/t0300/seed_1.json").write_text("{")                    # is left out
    assert set(tiles(folder)) == {"feature_00003", f"{HOOK}_channel_0002"}
    assert (folder / faces[0]["picture"]).stat().st_mtime_ns == time


def test_without_scripts_it_is_a_list_of_links_and_text_stays_text(tmp_path):
    for i in range(3):
        result(tmp_path / f"<b>toy/feature_{i:05d}")
        activity(tmp_path / f"<b>toy/feature_{i:05d}", concept=("<b>Bear</b>",))
    page = Page(write_atlas(tmp_path / "<b>toy"))
    assert len(page.all("li")) == 3 and "<b>Bear</b>" not in page.source.partition("<noscript>")[2]
    assert page.headings[0] == 1 and "\\u003cb>Bear" in page.source and "3 features of <b>toy" in page.text


def test_the_autoencoder_s_report_is_a_curve_and_a_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(atlas, "PROJECT", tmp_path)
    report = {"1": {"fvu": 0.25}, "501": {"fvu": 0.125}, "981": {"fvu": 0.5}}
    home = tmp_path / "weights/toy/sae/unet.up_blocks.1.attentions.1"
    home.mkdir(parents=True)
    (home / "training.json").write_text(json.dumps({"report": {"by_timestep": report}}))
    page = Page(write_atlas(folder))
    assert "The autoencoder leaves 12% to 50% of the variance." in page.text and len(page.all("svg")) == 1
    (home / "training.json").write_text("{}")
    assert "autoencoder leaves" not in write_atlas(folder).read_text()


def test_features_drawn_at_random_in_rows(folder, tmp_path):
    """The same ones each time; no letter of a long word is cut off: white is left at the right of its tile."""
    rows = write_rows(folder, tmp_path / "rows.png")
    made = rows.read_bytes()
    assert write_rows(folder, rows).read_bytes() == made
    width, height = Image.open(rows).size
    assert width == 6 * (128 + 12) + 12 and height >= 3 * (128 + 12)
    assert sheet.tile(None, "A " + "word" * 12, 128).crop((127, 0, 128, 68)).getextrema() == ((255, 255),) * 3
