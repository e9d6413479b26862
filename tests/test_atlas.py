"""The atlas: what its tiles hold, thumbnails, broken files, names of hook points."""
import json
import re

import pytest
from PIL import Image, ImageFont

from pages import atlas, sheet
from pages.__main__ import main
from pages.atlas import write_atlas
from tests.made import activity, features, picture, result
from tests.test_page import Page

HOOK = "down_blocks.2.resnets.1.conv_shortcut"


def tiles(folder):
    """The data of the page, by folder name of each tile."""
    text = write_atlas(folder).read_text(encoding="utf-8")
    rows = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))
    return {row["link"].partition("/")[0]: row for row in rows}


@pytest.fixture
def folder(tmp_path):
    """Feature 3 with a page and a finished picture, feature 12 with neither, a channel, a feature at another hook."""
    out = tmp_path / "toy"
    result(out / "feature_00003", finished="fragile", dataset_largest=5.0)
    activity(out / "feature_00003")
    (out / "feature_00003/index.html").write_text("")
    result(out / "feature_00012", verdict="weak", activation=None)
    result(out / "channel_0037")
    result(out / f"{HOOK}_channel_0002")
    return out


def test_a_tile_holds_both_pictures_and_what_the_feature_responds_to(folder):
    found = tiles(folder)
    row = found["feature_00003"]
    assert (row["kind"], row["number"], row["words"], row["peak"]) == ("feature", 3, "Tree", 300)
    assert row["link"] == "feature_00003/index.html"
    assert [face["verdict"] for face in row["faces"]] == ["fragile", "excited"]
    assert [face["activation"] for face in row["faces"]] == [1.25, 2.5]
    assert [face["strength"] for face in row["faces"]] == [0.25, 0.5]
    assert found["feature_00012"]["link"] == "feature_00012/t0300/seed_1.png"
    assert found["feature_00012"]["faces"][0]["activation"] is None and found["feature_00012"]["words"] == ""


def test_another_hook_point_has_its_name_and_its_picture(folder):
    row = tiles(folder)[f"{HOOK}_channel_0002"]
    assert (row["kind"], row["number"], row["hook"]) == ("channel", 2, HOOK)
    assert all((folder / face["picture"]).exists() for face in row["faces"])


def test_thumbnails_are_small_and_follow_the_best_result(folder):
    result(folder / "feature_00003", seed=9, png=picture(1, 512))
    tiles(folder)
    assert len(list((folder / "atlas").glob("feature_00003*"))) == 1
    result(folder / "feature_00003", seed=9, png=picture(1, 512), finished="excited")
    faces = tiles(folder)["feature_00003"]["faces"]
    assert [Image.open(folder / face["picture"]).size for face in faces] == [(160, 160)] * 2
    assert [face["picture"].rpartition("seed_")[2] for face in faces] == ["9.jpg", "9_ascent.jpg"]
    assert len(list((folder / "atlas").glob("feature_00003*"))) == 2
    time = (folder / faces[0]["picture"]).stat().st_mtime_ns
    tiles(folder)
    assert (folder / faces[0]["picture"]).stat().st_mtime_ns == time


def test_broken_files_are_left_out_and_counted(folder, capsys):
    (folder / "feature_00012/t0300/seed_1.json").write_text("{")
    (folder / "channel_0037/t0300/seed_1.png").write_bytes(b"no picture")
    assert set(tiles(folder)) == {"feature_00003", f"{HOOK}_channel_0002"}
    assert "cannot be read: 2 files" in capsys.readouterr().err
    assert "2 files could not be read" in (folder / "index.html").read_text()


def test_without_scripts_it_is_a_list_of_links_and_text_stays_text(tmp_path):
    page = Page(write_atlas(features(tmp_path / "<b>toy", 20)))
    assert len(page.all("li")) == 20 and "<b>Bear</b>" not in page.source.partition("<noscript>")[2]
    assert page.headings[0] == 1 and "\\u003cb>Bear" in page.source and "20 features of <b>toy" in page.text
    assert not re.search(r"(https?:)?//(?!\*)", re.sub(r"\s// .*|  //.*", "", page.source))


def test_a_folder_without_results_ends_in_one_line(tmp_path, capsys):
    (tmp_path / "toy").mkdir()
    assert main([str(tmp_path / "toy"), "--atlas"]) == 2
    assert "holds no result" in capsys.readouterr().err


def test_pages_and_atlas_by_one_command(folder, capsys):
    assert main([str(folder), "--atlas"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"look at {folder / 'index.html'}"]
    assert all(row["link"].endswith("index.html") for row in tiles(folder).values())
    assert "All of toy" in (folder / "feature_00003/index.html").read_text()


def test_the_autoencoder_s_report_is_two_curves_and_a_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(atlas, "PROJECT", tmp_path)
    assert "autoencoder leaves" not in write_atlas(folder).read_text()
    report = {"1": {"fvu": 0.25, "dead": 0.5}, "501": {"fvu": 0.125, "dead": 0.1}, "981": {"fvu": 0.5, "dead": 0.0}}
    home = tmp_path / "weights/toy/sae/unet.up_blocks.1.attentions.1"
    home.mkdir(parents=True)
    (home / "training.json").write_text(json.dumps({"report": {"by_timestep": report}}))
    page = Page(write_atlas(folder))
    assert "The autoencoder leaves 12% to 50% of the variance." in page.text and len(page.all("svg")) == 2
    (home / "training.json").write_text("{}")
    assert "autoencoder leaves" not in write_atlas(folder).read_text()


def test_features_drawn_at_random_in_rows_and_on_a_wall(folder, tmp_path, capsys):
    files = tmp_path / "rows.png", tmp_path / "wall.png"
    for i in range(20, 29):
        result(folder / f"feature_{i:05d}", finished="excited", png=picture(i))
        activity(folder / f"feature_{i:05d}", concept=("A", "word" * 12))
    flags = ["--rows", str(files[0]), "3", "--wall", str(files[1])]
    assert main([str(folder), *flags]) == 0
    rows, wall = map(Image.open, files)
    assert rows.width == 6 * (128 + 12) + 12 and rows.height >= 3 * (128 + 12)
    assert wall.width == 8 * (128 + 12) + 12 and wall.height >= 2 * (128 + 12)           # 12 features
    made = [file.read_bytes() for file in files]
    assert main([str(folder), *flags]) == 0 and [file.read_bytes() for file in files] == made
    font = ImageFont.load_default(13)
    lines = sheet.wrapped("A " + "word" * 12, font, 128)
    assert "".join(lines).replace(" ", "") == "A" + "word" * 12 and max(map(font.getlength, lines)) <= 128
    capsys.readouterr()
    assert main([str(folder), "--wall", "wall.png", "many"]) == 2
    assert "must be a file and how many features" in capsys.readouterr().err
