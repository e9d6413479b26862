"""The atlas: which result stands for a feature, what is left out, what it holds. How it behaves: tests/browser."""
import errno
import json
import os
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import featviz
from activity import times
from pages import atlas, wall
from pages.__main__ import main
from tests import made
from tests.tiny import CONFIGS, write_capture, write_model

SCRIPT = "</script><script>alert(1)</script>"


class Page(HTMLParser):
    """(tag, attributes) in order, the text within each script, links."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts.append(data)

    @property
    def rows(self):
        return json.loads(self.scripts[0])["rows"]

    @property
    def links(self):
        return [a["href"] for tag, a in self.tags if tag == "a"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "toy"


def page(out):
    return Page(atlas.write_atlas(out))


def test_what_its_page_shows_first_stands_for_a_feature(out):
    folder = out / "feature_00012"
    made.result(folder, 600, 2, 1.5)
    made.result(folder, 600, 3, 1.25)
    assert page(out).rows == [["feature_00012", "t0600", "2", 1.5, None, "excited", 3, None, [], 0, None, None]]
    made.activity(folder, concept=["Tree", "Winter"])
    words = ["Tree", "Winter"]
    assert page(out).rows == [["feature_00012", "t0600", "2", 1.5, 0.375, "excited", 3, 700, words, 0, None, None]]
    record = json.loads((folder / "activity.json").read_text())
    record["largest"][0] = 0.5                                  # at t = 0 the strongest drawing reaches little
    (folder / "activity.json").write_text(json.dumps(record))
    made.result(folder, 0, 1, 1.25)
    assert page(out).rows == [["feature_00012", "t0000", "1", 1.25, 2.5, "excited", 3, 700, words, 0, None, None]]
    made.result(folder, 600, 4, 9.0, differs={"noise": False})  # usual settings come first
    assert page(out).rows[0][1:4] == ["t0000", "1", 1.25]


def test_a_finished_picture_stands_before_the_ascent_s(out):
    """Both have a thumbnail and their numbers; there is no switch where nothing was finished."""
    made.result(out / "feature_00001", seed=1, activation=3.0, finished=1.0)
    made.result(out / "feature_00001", seed=2, activation=2.0, finished=1.5)
    made.activity(out / "feature_00001")
    row, = page(out).rows
    assert row[1:7] == ["t0600", "2", 1.5, 0.375, "raised", 2] and row[-2] == [2.0, 0.5, "excited", 3]
    thumbnails = [out / f"atlas/feature_00001_t0600_seed_2{suffix}.jpg" for suffix in ("", "_ascent")]
    assert sorted((out / "atlas").iterdir()) == thumbnails
    source = out / "feature_00001/t0600/seed_2.png"
    for thumbnail, picture in zip(thumbnails, (source.with_suffix(".finished.png"), source)):
        drawn, shown = (np.asarray(Image.open(path).convert("RGB"), float) for path in (thumbnail, picture))
        assert np.abs(drawn - shown).mean() < 4
    assert 'name="ascent"' in (out / "index.html").read_text()
    made.result(out / "feature_00001", seed=2)
    made.result(out / "feature_00001", seed=1)
    page(out)
    assert 'name="ascent"' not in (out / "index.html").read_text()


def test_results_of_other_settings_have_the_path_of_their_folder(out):
    made.result(out / "feature_00001", differs={"noise": False})
    found = page(out)
    assert found.rows[0][1] == "t0600-1a2b3c4d" and found.links == ["feature_00001/t0600-1a2b3c4d/seed_1.png"]
    assert [path.name for path in (out / "atlas").iterdir()] == ["feature_00001_t0600-1a2b3c4d_seed_1.jpg"]


@pytest.mark.parametrize("activation, largest, strength", [(1.0, 0.0, None), (1.0, -2.0, None), (None, 4.0, None),
                                                           (-1.0, 4.0, -0.25)])
def test_strength_is_unknown_where_it_means_nothing(activation, largest, strength, out):
    made.activity(out / "channel_0003", largest)
    verdict = "weak" if activation else "non-finite at step 5"
    made.result(out / "channel_0003", activation=activation, verdict=verdict)
    assert page(out).rows[0][3:6] == [activation, strength, verdict.split()[0]]


def test_features_and_channels_of_all_hook_points_and_nothing_else(out):
    names = ["channel_0003", "feature_00002", "feature_20000", "mid_block.attentions.0_channel_0003"]
    for name in [*names, "samples", "feature_x", "activity"]:
        made.result(out / name)
    (out / "feature_00007").write_text("no folder")
    (out / "feature_00002" / "index.html").write_text("its page")
    found = page(out)
    assert [row[0] for row in found.rows] == names
    assert found.links == [f"{name}/index.html" if name == "feature_00002" else f"{name}/t0600/seed_1.png"
                           for name in names]
    text = (out / "index.html").read_text()
    assert "<h1>2 features and 2 channels of toy</h1>" in text and ">channel 3 at mid_block.attentions.0</a>" in text
    assert sorted(p.name for p in (out / "atlas").iterdir()) == [f"{name}_t0600_seed_1.jpg" for name in names]


DAMAGE = {"cut": lambda text: text[:20], "not JSON": lambda text: "{", "a list": lambda text: "[]",
          "no scores": lambda text: '{"verdict": "weak"}',
          "a word for a number": lambda text: text.replace("2.0", '"high"'),
          "no verdict": lambda text: text.replace('"excited"', "3"),
          "deep": lambda text: "[" * 100000, "not UTF-8": lambda text: b"\xff\xfe"}


@pytest.mark.parametrize("damage", DAMAGE)
def test_broken_records_are_left_out_and_counted(damage, out, capsys):
    made.result(out / "feature_00001", seed=5)
    path = made.result(out / "feature_00002")
    broken = DAMAGE[damage](path.read_text())
    path.write_bytes(broken if isinstance(broken, bytes) else broken.encode())
    assert [row[0] for row in page(out).rows] == ["feature_00001"]
    assert capsys.readouterr().err == f"left out because they cannot be read: 1 file, first {path}\n"
    assert "Left out because they cannot be read: 1 file." in (out / "index.html").read_text()


def test_of_a_feature_with_a_broken_picture_the_next_best_is_shown(out, capsys):
    folder = out / "feature_00001"
    made.result(folder, seed=1, activation=1.0)
    made.result(folder, seed=2, activation=2.0).with_suffix(".png").write_bytes(made.picture()[:200])
    made.result(folder, seed=3, activation=3.0).with_suffix(".png").unlink()
    assert page(out).rows[0][:4] == ["feature_00001", "t0600", "1", 1.0]
    assert capsys.readouterr().err.startswith("left out because they cannot be read: 2 files, first ")


@pytest.mark.parametrize("text", ["{}", "[", '{"largest": [1], "profile": [1], "peaks": [7], "concept": []}'])
def test_with_broken_activity_the_rest_is_shown(text, out, capsys):
    made.result(out / "feature_00001")
    (out / "feature_00001" / "activity.json").write_text(text)
    assert page(out).rows[0][3:9] == [2.0, None, "excited", 3, None, []]
    assert "activity.json" in capsys.readouterr().err


def test_numbers_that_json_cannot_hold_do_not_break_the_page(out):
    path = made.result(out / "feature_00001", seed=2 ** 60 + 1)
    path.write_text(path.read_text().replace("2.0", "1e999"))
    assert page(out).rows[0][2:4] == ["1152921504606846977", None]


def test_text_from_prompts_stays_text(out):
    made.result(out / "feature_00001", verdict=SCRIPT)
    made.activity(out / "feature_00001", concept=[SCRIPT, "<img src=x onerror=alert(1)>"])
    found = page(out)
    assert [tag for tag, _ in found.tags if tag in ("script", "img")] == ["script", "script"]
    assert found.rows[0][8] == [SCRIPT, "<img src=x onerror=alert(1)>"]
    assert "alert(1)" not in found.scripts[1]


def test_a_second_run_makes_only_the_thumbnails_that_are_missing_or_old(out):
    first, second = made.result(out / "feature_00001", activation=1.0), made.result(out / "feature_00002")
    atlas.write_atlas(out)
    thumbnails = {name: out / "atlas" / f"feature_0000{name}_t0600_seed_1.jpg" for name in (1, 2)}
    for path in thumbnails.values():
        path.write_bytes(b"as it was")
    os.utime(second.with_suffix(".png"), (2e9, 2e9))            # made again since
    page(out)
    assert thumbnails[1].read_bytes() == b"as it was" and Image.open(thumbnails[2]).size == (32, 32)
    made.result(out / "feature_00001", seed=9, activation=5.0)
    page(out)
    assert sorted(p.name for p in (out / "atlas").iterdir()) == ["feature_00001_t0600_seed_9.jpg",
                                                                 "feature_00002_t0600_seed_1.jpg"]
    assert first.exists() and first.with_suffix(".png").exists()


def test_an_empty_thumbnail_is_made_again(out):
    """A power cut may leave one."""
    made.result(out / "feature_00001")
    atlas.write_atlas(out)
    thumbnail, = (out / "atlas").iterdir()
    thumbnail.write_bytes(b"")
    atlas.write_atlas(out)
    assert Image.open(thumbnail).size == (32, 32)


def test_several_processes_make_the_same_atlas(out, monkeypatch, capsys):
    made.features(out, 40, finished=True)
    (out / "feature_00003/t0600/seed_1.json").write_text("{")
    alone, said = atlas.write_atlas(out).read_bytes(), capsys.readouterr().err
    monkeypatch.setattr(atlas, "MANY", 1)
    assert atlas.write_atlas(out).read_bytes() == alone and capsys.readouterr().err == said != ""


def test_thumbnails_are_small(out):
    made.result(out / "feature_00001", png=made.picture(edge=512))
    atlas.write_atlas(out)
    assert Image.open(out / "atlas" / "feature_00001_t0600_seed_1.jpg").size == (160, 160)


def test_nothing_to_show_ends_in_one_line(out, capsys):
    for prepare in (lambda: None, out.mkdir, (out / "feature_00001").mkdir):
        prepare()
        assert main(["--atlas", str(out)]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert captured.err.startswith("pages: ") and str(out) in captured.err
    assert not (out / "index.html").exists()


def test_a_full_disk_is_no_broken_picture(out, monkeypatch, capsys):
    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    made.result(out / "feature_00001")
    monkeypatch.setattr(Image.Image, "save", full)
    assert main(["--atlas", str(out)]) == 2
    assert "No space left on device" in capsys.readouterr().err and not list((out / "atlas").iterdir())


def test_the_command_names_the_page(out, capsys):
    made.result(out / "feature_00001")
    assert main(["--atlas", str(out)]) == 0
    assert capsys.readouterr().out == f"look at {out / 'index.html'}\n"


# --- the wall ---------------------------------------------------------------------------------------------------------

def test_a_wall_is_drawn_by_lot_finished_beside_as_found(out, tmp_path, capsys, monkeypatch):
    """The lot falls on other features than the first ones, on the same ones each time, and on none without a finish."""
    monkeypatch.setattr(wall, "COUNT", 6)
    made.features(out, 20, finished=True)
    made.result(out / "feature_00099")                          # not finished
    target = tmp_path / "pictures" / "wall.png"
    assert main(["--wall", str(out), "--out", str(target)]) == 0
    assert capsys.readouterr().out == f"look at {target}\n"
    drawn = wall.draw_lot(out)
    numbers = [number for number, *_ in drawn]
    assert numbers == sorted(numbers) and len(set(numbers)) == 6 and numbers != [0, 1, 2, 3, 4, 5] and 99 not in numbers
    picture = Image.open(target)
    left, top, half = wall.GAP, wall.LINE + 3 * wall.GAP, wall.COLUMNS * (wall.EDGE + wall.GAP) + 3 * wall.GAP
    for i, (_, _, r) in enumerate(drawn):
        for k, path in enumerate((r.finished.path, r.path)):
            x = left + k * half + i * (wall.EDGE + wall.GAP)
            shown = picture.crop((x, top, x + wall.EDGE, top + wall.EDGE))
            assert np.array_equal(np.asarray(shown), np.asarray(wall.small(path))), (i, k)
    before = target.read_bytes()
    wall.write_wall(out, target)
    assert target.read_bytes() == before


def test_a_wall_of_fewer_features_says_so_and_of_none_is_an_error(out, capsys):
    made.features(out, 3, finished=True)
    assert main(["--wall", str(out)]) == 0 and Image.open(out / "wall.png").mode == "RGB"
    assert capsys.readouterr().err == "only 3 features have a finished picture; a wall has 48\n"
    with pytest.raises(SystemExit) as stop:
        main([str(out), "--out", "wall.png"])
    assert stop.value.code == 2 and "give --wall FOLDER" in capsys.readouterr().err
    assert main(["--wall", str(out / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"pages: --wall {out / 'nowhere'}: holds no finished picture")


@pytest.mark.usefixtures("one_thread")
def test_live_features_are_those_that_fire_in_the_capture(tmp_path, monkeypatch, capsys):
    weights, out = write_model(tmp_path / "tiny", activity=None), tmp_path / "out"
    call = ["--weights", str(weights), "--out", str(out), "--device", "cpu", "--feature", "live", "--seed", "1",
            "--num-steps", "1",
            "--prior", "noise", "--frames", "0"]
    assert featviz.main(call) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--feature live" in error
    assert f"run python -m activity capture --weights {weights}" in error

    def one_fires(model, folder, attach=times.attach):
        model = attach(model, folder)
        model.activity["max_feature"][:] = 0
        model.activity["max_feature"][3, 41] = model.activity["max_feature"][0, 7] = 0.5
        return model

    write_capture(weights, CONFIGS["sae"]["num_latents"], CONFIGS["sae"]["d_in"])
    monkeypatch.setattr(times, "attach", one_fires)
    capsys.readouterr()
    assert featviz.main([*call, "--timestep", "600"]) == 0
    assert sorted(p.name for p in (out / "tiny").glob("feature_*")) == ["feature_00007", "feature_00041"]
    assert f"python -m pages --atlas {out / 'tiny'}" in capsys.readouterr().err
    assert [row[0] for row in page(out / "tiny").rows] == ["feature_00007", "feature_00041"]
