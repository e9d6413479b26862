"""The sheet and what it reads: every picture in its place, broken files left out, one sheet from two processes."""
import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pages import read, sheet
from pages.__main__ import main
from tests.made import activity, feature, picture

SEEDS, TIMES = (1, 2), (0, 300)


@pytest.fixture
def folder(tmp_path):
    """Two seeds at two time steps, steered priors, and what a dataset says of the peak at t 300."""
    return feature(tmp_path / "toy" / "feature_00012", times=TIMES, seeds=SEEDS, prior="steer")


def tile(drawn, x, y, edge=sheet.TILE):
    return np.asarray(drawn.crop((x, y, x + edge, y + edge)), dtype=float)


def expected(source):
    with Image.open(source) if not isinstance(source, Image.Image) else source as image:
        return np.asarray(image.convert("RGB").resize((sheet.TILE, sheet.TILE), Image.Resampling.BICUBIC), dtype=float)


def test_rows_are_time_steps_and_columns_seeds_the_best_first(folder):
    """Then the dataset examples of that time step, in the last row the starts; the rest is white."""
    with Image.open(sheet.write_sheet(folder)) as drawn:
        form = sheet.Sheet(sheet.TILE, 2 + sheet.EXAMPLES + 0.25, 3)
        assert drawn.size == form.image.size and drawn.mode == "RGB" and drawn.getpixel((1, 1)) == (255, 255, 255)
        top = lambda row: form.top + row * form.pitch + form.line * 4 // 3
        for row, t in enumerate(TIMES):
            for column, seed in enumerate(reversed(SEEDS)):     # seed 2 excites it more, decoded and encoded again
                made = expected(folder / f"t{t:04d}/seed_{seed}.png")
                assert np.array_equal(tile(drawn, form.left(column), top(row)), made), (t, seed)
        for k in range(2):                                      # the peak is at t 300; the third image is not on disk
            example = expected(folder.parent / f"activity/images/{k:05d}.jpg")
            assert np.array_equal(tile(drawn, form.left(2.25 + k), top(1)), example)
        assert (tile(drawn, form.left(2.25), top(0)) == 255).all()
        for column, result in enumerate(read.read_results(folder)[:2]):
            assert np.array_equal(tile(drawn, form.left(column), top(2)), expected(result.frame(0)))


def test_finished_pictures_above_the_ascent_s_and_other_settings_below(tmp_path):
    """The rule orders the first row's seeds, by the finished pictures; those of other settings keep that order."""
    folder = tmp_path / "toy/feature_00012"
    feature(folder, times=(300,), differs={"noise": False})
    feature(folder, times=(300,), finished=2.0)
    for seed, value in ((1, 0.75), (2, 0.5)):
        edit(folder / f"t0300/seed_{seed}.json", value)
    with Image.open(sheet.write_sheet(folder)) as drawn:
        form = sheet.Sheet(sheet.TILE, 2 + sheet.EXAMPLES + 0.25, 3)
        assert drawn.size == form.image.size
        for row, name in enumerate(("t0300/seed_{}.finished.png", "t0300/seed_{}.png", "t0300-1a2b3c4d/seed_{}.png")):
            for column, seed in enumerate((1, 2)):
                there = tile(drawn, form.left(column), form.top + row * form.pitch + form.line * 4 // 3)
                assert np.array_equal(there, expected(folder / name.format(seed))), (row, seed)


def edit(path, reencoded):
    record = json.loads(path.read_text())
    record["finished"]["scores"]["activation_reencoded"] = reencoded
    path.write_text(json.dumps(record))


def test_a_caption_that_is_too_long_is_cut(folder):
    form = sheet.Sheet(sheet.TILE, 2, 1)
    form.write(0, 100, "W" * 500, 150)
    drawn = np.asarray(form.image) < 255
    assert drawn[100:140, :151].any() and not drawn[:, 151:].any()


def test_larger_pictures_make_larger_tiles(tmp_path):
    form = tmp_path / "toy/channel_0003"
    feature(form, times=(5,), seeds=(1,), png=picture(edge=256))
    with Image.open(sheet.write_sheet(form)) as drawn:
        assert drawn.size == sheet.Sheet(256, 2 + sheet.EXAMPLES + 0.25, 1).image.size


BAD = {"not JSON": "{", "not a record": "[]",
       "no scores": '{"recipe": {"job": {"feature": 1, "channel": null, "timestep": 0, "seed": 1}}}',
       "deep": "[" * 100_000}
WRONG_ENTRIES = {"scores": {"activation": "high"}, "stored_steps": list(range(200)), "others": [1], "heat": [["a"]],
                 "history": {"a": 1},
                 "nearest_channel": float("inf"), "verdict": 3, "finished": {"verdict": "raised"}}


@pytest.mark.parametrize("name", [*BAD, *WRONG_ENTRIES])
def test_broken_records_are_left_out(name, folder):
    path = folder / "t0000/seed_1.json"
    record = json.loads(path.read_text())
    path.write_text(BAD[name] if name in BAD else json.dumps(record | {name: WRONG_ENTRIES[name]}))
    assert [(r.t, r.seed) for r in read.read_results(folder)] == [(0, 2), (300, 1), (300, 2)]


@pytest.mark.parametrize("suffix", [".png", ".finished.png", ".steps.jpg"])
def test_a_broken_picture_leaves_its_result_out(suffix, folder):
    feature(folder, times=TIMES, seeds=SEEDS, prior="steer", finished=1.0)
    path = (folder / "t0000/seed_1.json").with_suffix(suffix)
    path.write_bytes(path.read_bytes()[:100])
    assert len(read.read_results(folder)) == 3
    sheet.write_sheet(folder)


WRONG = {"JSON": None, "examples": {"x": 1}, "profile": ["a"], "largest": [], "peaks": [1001], "images": float("inf"),
         "concept": 3}


@pytest.mark.parametrize("name", WRONG)
def test_a_broken_activity_is_as_none(name, folder):
    assert read.read_activity(folder)
    record = json.loads((folder / "activity.json").read_text())
    (folder / "activity.json").write_text("{" if name == "JSON" else json.dumps(record | {name: WRONG[name]}))
    assert read.read_activity(folder) is None
    sheet.write_sheet(folder)


def test_images_are_found_after_all_was_moved(folder, tmp_path):
    (tmp_path / "toy").rename(tmp_path / "moved")
    found = read.read_activity(tmp_path / "moved/feature_00012")["examples"][300]
    assert [e["file"] is not None for e in found] == [True, True, False]


def result(t, again, finished=None, seed=1, **recipe):
    scores = {"activation": 9.0, "activation_reencoded": again}
    found = read.Found(Path(f"t{t:04d}/seed_{seed}.png"), t, seed, {"job": {"feature": 1}} | recipe, "excited", scores,
                       {}, [], [], [], None, None)
    found.finished = finished and result(t, finished, seed=seed)
    return found


def test_the_best_is_through_the_most_noise_then_the_strongest():
    known = {"largest": [1.0] * 500 + [2.0] * 501}
    early, late = result(0, 5.0), result(600, 2.5)
    faint, none, other = result(700, 1.9), result(800, None), result(900, 9.0, differs={"noise": False})
    assert read.best([other, early, late, faint, none], known) is late     # 1.25 times the strongest image; faint: 0.95
    assert read.best([early, faint, none], known) is early
    assert read.best([early, late], None) is early
    assert read.best([none, faint], known) is faint and read.best([none, other], None) is none
    assert read.gain(late, known) == 4.5 and read.gain(late, None) is None


def test_seeds_are_ordered_by_what_the_finished_picture_keeps_when_decoded_and_encoded():
    first, second, third = result(600, 1.0, 3.0, 1), result(600, 9.0, 2.0, 2), result(600, 2.5, None, 3)
    assert read.by_rule([second, third, first]) == [first, third, second]
    assert read.best([second, third, first], None) is first


@pytest.mark.parametrize("value, text", [(None, "-"), (0.0, "0"), (0.04567, "0.0457"), (1.189, "1.19"),
                                         (1234.5, "1234"),
                                         (-0.366, "-0.366")])
def test_numbers_to_read(value, text):
    assert read.short(value) == text


def write_often(folder, start):
    start.wait()
    for _ in range(5):
        sheet.write_sheet(folder)


def test_two_processes_may_write_the_same_sheet_at_once(folder):
    whole = sheet.write_sheet(folder).read_bytes()
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(2)
    both = [fork.Process(target=write_often, args=(folder, start)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert (folder / "sheet.png").read_bytes() == whole and not list(folder.rglob("*.partial"))


def test_without_a_result_there_is_one_line_and_exit_code_2(tmp_path, capsys):
    activity(tmp_path / "toy/feature_00001")
    for folder in (tmp_path, tmp_path / "toy", tmp_path / "toy/feature_00001", tmp_path / "nowhere"):
        assert main([str(folder)]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
        assert captured.err.startswith(f"pages: {folder}: holds no result")
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2 and "give a folder of results" in capsys.readouterr().err


def test_pages_are_made_without_torch_and_help_without_anything():
    """A second that nobody should wait for."""
    for code in ("import sys, pages.again, pages.atlas, pages.feature, pages.files, pages.sheet",
                 "import sys, pages.again, pages.__main__; assert 'PIL' not in sys.modules"):
        subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)


def test_all_folders_of_a_folder(folder, capsys):
    feature(folder.parent / "channel_0003", times=(0,), seeds=(1,))
    assert main([str(folder.parent)]) == 0
    names = ("channel_0003", "feature_00012")
    assert capsys.readouterr().out.splitlines() == [f"look at {folder.parent}/{name}/index.html" for name in names]
    assert all((folder.parent / name / "sheet.png").exists() for name in names)
