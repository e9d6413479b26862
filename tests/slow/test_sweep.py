"""Sweeps of settings and levels of --robustness, on the tiny model: what is made, what is drawn, what is refused."""
import json

import numpy as np
import pytest
from PIL import Image

import featviz
from config import ROBUSTNESS, SEEDS, Config
from pages import files, sheet, sweep

pytestmark = pytest.mark.usefixtures("one_thread", "loaded_once")
SHORT = ["--device", "cpu", "--num-steps", 1, "--prior", "noise", "--no-finish", "--frames", 0]
FOLDER = "tiny/feature_00003"


def run(weights, out, *flags):
    """Exit code of `python featviz.py` with one step from noise."""
    try:
        return featviz.main([str(a) for a in ["--weights", weights, "--out", out, *SHORT, *flags]])
    except SystemExit as e:
        return e.code


def results(out):
    """{its recipe's settings as JSON: path} of all results."""
    read = lambda path: json.loads(path.read_text())["recipe"]
    return {json.dumps(read(path)["job"] | read(path)["config"]): path for path in out.rglob("t*/seed_*.json")}


def made(out, *names):
    """The values of these settings or parts of the job in each result, sorted."""
    return sorted(tuple(json.loads(key)[name] for name in names) for key in results(out))


def touched(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("t*/seed_*")}


def written(monkeypatch):
    """What the sweep's sheet is told to draw: the arguments of its headings, tiles and texts."""
    found = {"heading": [], "tile": [], "write": []}
    draw, drawing = featviz.write_sweeps, []

    def noted(name, whole):
        def note(self, *args, **kwargs):
            if drawing:                                         # other sheets are no matter
                found[name].append(args)
            return whole(self, *args, **kwargs)
        return note

    def watched(*args):
        drawing.append(True)
        return draw(*args)

    for name in found:
        monkeypatch.setattr(sheet.Sheet, name, noted(name, getattr(sheet.Sheet, name)))
    monkeypatch.setattr(featviz, "write_sweeps", watched)
    return found


# --- the grid ---------------------------------------------------------------------------------------------------------

def test_swept_is_every_combination_the_last_changing_fastest():
    config = Config(num_steps=7)
    assert sweep.swept(config, []) == [config]
    pairs = [(c.range_weight, c.jitter_max, c.num_steps)
             for c in sweep.swept(config, [("range_weight", [0.0, 1.0]), ("jitter_max", [8, 0])])]
    assert pairs == [(0.0, 8, 7), (0.0, 0, 7), (1.0, 8, 7), (1.0, 0, 7)]


@pytest.mark.parametrize("text, values", (
    ("range_weight=0,0.5,1", [0.0, 0.5, 1.0]), ("--range-weight=1e-2", [0.01]), ("jitter_max=0,8,8", [0, 8]),
    ("noise=on,off", [True, False]), ("prior=noise,steer", ["noise", "steer"]), ("finish_scale=auto,1", ["auto", 1.0])))
def test_values_are_read_as_their_setting_s_kind(text, values):
    name, found = sweep.axis(text)
    assert name in text.replace("-", "_") and found == values and [type(v) for v in found] == [type(v) for v in values]


def test_two_settings_make_a_grid_of_usual_results_and_a_sheet(weights, out, capsys):
    """One time step, the weights' own, and one seed; the pictures stand where the axes say."""
    assert run(weights, out, "--sweep", "range_weight=0,0.5", "jitter_max=0,1,8") == 0
    assert made(out, "range_weight", "jitter_max") == [(r, j) for r in (0.0, 0.5) for j in (0, 1, 8)]
    assert made(out, "timestep", "seed", "feature") == [(300, SEEDS[0], 3)] * 6
    path = out / FOLDER / "sweep_range_weight_jitter_max.png"
    assert capsys.readouterr().out.splitlines()[-1] == f"look at {path}"
    with Image.open(path) as drawn:
        form = sheet.Sheet(sheet.TILE, sweep.LABELS + 3, 2)
        assert drawn.size == form.image.size
        for key, result in results(out).items():
            values = json.loads(key)
            x = form.left(sweep.LABELS + (0, 1, 8).index(values["jitter_max"]))
            y = form.top + (0, 0.5).index(values["range_weight"]) * form.pitch + form.line * 4 // 3
            with Image.open(result.with_suffix(".png")) as picture:
                whole = picture.resize((sheet.TILE, sheet.TILE), Image.Resampling.BICUBIC)
            assert np.array_equal(np.asarray(drawn.crop((x, y, x + sheet.TILE, y + sheet.TILE))), np.asarray(whole))


def test_a_combination_is_what_its_flags_alone_make(weights, out, tmp_path):
    assert run(weights, out, "--sweep", "range_weight=0,1", "noise=off") == 0
    assert run(weights, tmp_path / "b", "--range-weight", 1, "--no-noise", "--timestep", 300, "--seed", SEEDS[0]) == 0
    (alone,) = (tmp_path / "b").rglob("seed_*.png")
    assert alone.read_bytes() == (out / alone.relative_to(tmp_path / "b")).read_bytes()


def test_captions_are_activation_and_verdict_and_values_stand_on_the_axes(weights, out, monkeypatch):
    found = written(monkeypatch)
    assert run(weights, out, "--sweep", "noise=on,off", "range_weight=0,0.25") == 0
    tiles = {args[:2]: args[3] for args in found["tile"]}
    for key, path in results(out).items():
        values, record = json.loads(key), json.loads(path.read_text())
        place = (not values["noise"], sweep.LABELS + (0.0, 0.25).index(values["range_weight"]))
        assert tiles.pop(place) == f"{sheet.short(record['scores']['activation'])}: {record['verdict']}"
    assert tiles == {}
    texts = [(row, column, text) for row, column, _, text, *_ in found["heading"] if column >= sweep.LABELS]
    assert texts == [(row, sweep.LABELS + k, text) for row in (0, 1) for k, text in enumerate(("0", "0.25"))]
    words = [text for _, _, text, *_ in found["write"]]
    assert words.count("noise:") == 2 and words.count("on") == words.count("off") == 1
    assert words.count("range_weight:") == 2
    assert f"feature 00003 of tiny, time step 300, seed {SEEDS[0]}" in words


def test_one_setting_makes_a_row(weights, out):
    assert run(weights, out, "--sweep", "range_weight=0,0.5,1") == 0
    with Image.open(out / FOLDER / "sweep_range_weight.png") as drawn:
        assert drawn.size == sheet.Sheet(sheet.TILE, sweep.LABELS + 3, 1).image.size


def test_three_settings_two_seeds_and_two_time_steps_make_rows_in_order(weights, out, monkeypatch):
    found = written(monkeypatch)
    assert run(weights, out, "--sweep", "noise=on,off", "range_weight=0,1", "jitter_max=0,1", "--seed", 2, 1,
               "--timestep", 0, 500) == 0
    path = out / FOLDER / "sweep_noise_range_weight_jitter_max.png"
    with Image.open(path) as drawn:
        assert drawn.size == sheet.Sheet(sheet.TILE, sweep.LABELS + 2, 16).image.size
    words = [text for _, _, text, *_ in found["write"]]
    at = words.index("feature 00003 of tiny")                   # several of each: neither in the title
    labels = [text for text in words[at + 1:] if text in ("0", "1", "2", "500", "on", "off")]
    assert labels[:6] == ["0", "2", "on", "0", "0", "1"]        # time step, seed, noise, range_weight; across: 0, 1
    rows = [labels[i:i + 6][:4] for i in range(0, 16 * 6, 6)]
    assert rows == [[t, s, n, r] for t in ("0", "500") for s in ("2", "1") for n in ("on", "off") for r in ("0", "1")]


def test_several_features_have_a_sheet_each(weights, out):
    assert run(weights, out, "--feature", 1, 2, "--sweep", "range_weight=0,1") == 0
    sheets = sorted(path.relative_to(out).as_posix() for path in out.rglob("sweep_*.png"))
    assert sheets == [f"tiny/feature_0000{f}/sweep_range_weight.png" for f in (1, 2)]
    assert made(out, "feature", "range_weight") == [(1, 0.0), (1, 1.0), (2, 0.0), (2, 1.0)]


def test_finished_pictures_stand_beside_those_of_the_ascent(weights, out, monkeypatch):
    found = written(monkeypatch)
    flags = ("--finish", "--finish-steps", 2, "--finish-scale", 0.5)
    assert run(weights, out, *flags, "--sweep", "range_weight=0,1") == 0
    with Image.open(out / FOLDER / "sweep_range_weight.png") as drawn:
        assert drawn.size == sheet.Sheet(sheet.TILE, sweep.LABELS + 4, 1).image.size
    tiles = {args[1]: args[4] for args in found["tile"]}
    assert tiles == {sweep.LABELS + k: ("ascent", "finished")[k % 2] for k in range(4)}


# --- going on ---------------------------------------------------------------------------------------------------------

def test_a_sweep_goes_on_where_it_was_stopped(weights, out, monkeypatch, capsys):
    save = files.save

    def stop(*args):
        if len(list(out.rglob("seed_*.json"))) == 2:
            raise KeyboardInterrupt
        return save(*args)

    with monkeypatch.context() as patch:
        patch.setattr(files, "save", stop)
        assert run(weights, out, "--sweep", "range_weight=0,1", "jitter_max=0,1") == 130
    first = touched(out)
    assert len(results(out)) == 2 and not list(out.rglob("sweep_*"))
    capsys.readouterr()
    assert run(weights, out, "--sweep", "range_weight=0,1", "jitter_max=0,1") == 0
    assert "2 of 4 results are there already" in capsys.readouterr().err
    assert first.items() <= touched(out).items() and len(results(out)) == 4


def test_a_wider_sweep_makes_what_is_new_and_the_same_one_nothing(weights, out):
    assert run(weights, out, "--sweep", "range_weight=0,1") == 0
    first, drawn = touched(out), (out / FOLDER / "sweep_range_weight.png").read_bytes()
    assert run(weights, out, "--sweep", "range_weight=0,1") == 0
    assert touched(out) == first and (out / FOLDER / "sweep_range_weight.png").read_bytes() == drawn
    assert run(weights, out, "--sweep", "range_weight=0,1,2") == 0
    assert first.items() <= touched(out).items() and made(out, "range_weight") == [(0.0,), (1.0,), (2.0,)]


def test_check_counts_every_combination_and_makes_none(weights, out, capsys):
    assert run(weights, out, "--check", "--sweep", "range_weight=0,1,2", "jitter_max=0,1") == 0
    assert "\n6 results at " in capsys.readouterr().out and not out.exists()


# --- refused ----------------------------------------------------------------------------------------------------------

BAD = {
    ("--sweep", "range_wieght=0,1"): "'range_wieght' is no setting; expected NAME=VALUE,VALUE, nearest: range_weight",
    ("--sweep", "seed=1,2"): "'seed' is no setting",
    ("--sweep", "range_weight"): "range_weight takes numbers, separated by commas, got ''",
    ("--sweep", "range_weight=0,x"): "range_weight takes numbers, separated by commas, got 'x'",
    ("--sweep", "jitter_max=0.5"): "jitter_max takes whole numbers, separated by commas, got '0.5'",
    ("--sweep", "noise=yes"): "noise takes on, off, separated by commas, got 'yes'",
    ("--sweep", "prior=dream"): "prior takes steer, noise, guided, separated by commas, got 'dream'",
    ("--sweep", "finish_scale=much"): "finish_scale takes numbers or auto, separated by commas, got 'much'",
    ("--sweep", "jitter_max=0,-1"): "--jitter-max must be between 0 and 64",
    ("--sweep", "range_weight=nan"): "--range-weight must be a number of size",
    ("--sweep", "jitter_max=0", "jitter_max=1"): "--sweep jitter_max: this setting is given twice",
    ("--sweep", "jitter_max=0", "--jitter-max", "1"): "--sweep jitter_max: this setting is given twice",
    ("--sweep", "jitter_max=0,1", "--trace", "0"): "not allowed with argument",
    ("--robustness", "4"): "argument --robustness: invalid choice: 4",
}


@pytest.mark.parametrize("flags", BAD)
def test_one_line_for_what_cannot_be(flags, weights, out, capsys):
    assert run(weights, out, *flags) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("featviz: ") and captured.err.count("\n") == 1
    assert BAD[flags] in captured.err and not out.exists()


# --- levels of robustness ---------------------------------------------------------------------------------------------

def test_the_levels_are_the_method_s():
    levels = [(level["jitter_max"], level["rotate_max"], level["scale_max"]) for level in ROBUSTNESS]
    assert levels == [(0, 0, 1.0), (1, 5, 1.1), (8, 15, 1.2), (16, 45, 1.8)]
    assert Config(**ROBUSTNESS[1]) == Config()


@pytest.mark.parametrize("level", range(4))
def test_a_level_is_recorded_as_its_three_settings(level, weights, out):
    assert run(weights, out, "--seed", 1, "--timestep", 0, "--robustness", level) == 0
    assert made(out, *ROBUSTNESS[level]) == [tuple(ROBUSTNESS[level].values())]
    (recipe,) = [json.loads(path.read_text())["recipe"] for path in out.rglob("seed_*.json")]
    assert "robustness" not in json.dumps(recipe)


def test_single_flags_and_sweeps_win_over_the_level(weights, out):
    flags = ("--robustness", 3, "--rotate-max", 2, "--sweep", "jitter_max=0,4")
    assert run(weights, out, *flags) == 0
    assert made(out, "jitter_max", "rotate_max", "scale_max") == [(0, 2.0, 1.8), (4, 2.0, 1.8)]


def test_a_level_wins_over_the_preset(weights, out):
    assert run(weights, out, "--seed", 1, "--timestep", 0, "--preset", "none", "--robustness", 2) == 0
    assert made(out, "jitter_max", "rotate_max", "scale_max", "range_weight") == [(8, 15.0, 1.2, 0.0)]


def test_help_says_both(capsys):
    with pytest.raises(SystemExit):
        featviz.main(["--help"])
    said = capsys.readouterr().out
    assert "--sweep NAME=V,V" in said and "--robustness {0,1,2,3}" in said
