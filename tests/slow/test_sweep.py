"""--sweep: every combination is a usual result, and one grid picture shows all of a feature's."""
import json

import numpy as np
import pytest
from PIL import Image

import featviz
from pages.sheet import GAP, TILE, scaled

pytestmark = pytest.mark.usefixtures("one_thread", "loaded_once")
SHORT = ["--device", "cpu", "--num-steps", "1", "--prior", "noise", "--frames", "0", "--finish-steps", "1"]


def run(weights, out, *flags):
    """Exit code of `python featviz.py` with one step from noise."""
    try:
        return featviz.main([str(a) for a in ["--weights", weights, "--out", out, *SHORT, *flags]])
    except SystemExit as e:
        return e.code


def made(out, *names):
    """The values of these settings in each result, sorted."""
    recipes = [json.loads(path.read_text())["recipe"] for path in out.rglob("seed_*.json")
               if not path.name.endswith(".curves.json")]
    return sorted(tuple((recipe["config"] | recipe["job"])[name] for name in names) for recipe in recipes)


def test_every_combination_is_a_result_and_a_cell(weights, out):
    flags = ["--feature", 3, "--sweep", "range_weight=0,0.5", "noise=on,off"]
    assert run(weights, out, *flags, "--seed", 1, 2) == 0
    assert made(out, "range_weight", "noise", "seed") == [
        (w, n, s) for w in (0.0, 0.5) for n in (False, True) for s in (1, 2)]
    path = out / "tiny/feature_00003/sweep_range_weight_noise.png"
    grid = np.asarray(Image.open(path))
    height = (grid.shape[0] - GAP) // 4                                         # two weights, two seeds
    cells = [grid[GAP + row * height:][:TILE, GAP + column * (TILE + GAP):][:, :TILE]
             for row in range(4) for column in range(1, 5)]                     # noise on and off, both pictures
    pictures = [np.asarray(scaled(p)) for p in out.rglob("seed_*.png")]
    edge = len(pictures[0])
    assert len(pictures) == 16
    assert all(any(np.array_equal(cell[:edge, :edge], picture) for picture in pictures) for cell in cells)
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("t*/seed_*")}
    assert run(weights, out, *flags, "--seed", 1, 2) == 0                       # all there: nothing is made anew
    assert {p: p.stat().st_mtime_ns for p in out.rglob("t*/seed_*")} == stamps


def test_small_pictures_are_enlarged_by_a_whole_number(tmp_path):
    for edge, expected in ((32, 192), (64, 192), (80, 160), (512, 192)):
        Image.new("RGB", (edge, edge), "red").save(tmp_path / "p.png")
        assert scaled(tmp_path / "p.png").size == (expected, expected)


@pytest.mark.parametrize("sweep, said", [(["range_weihgt=0"], "range_weight"), (["noise=maybe"], "noise"),
                                         (["noise=on", "noise=off"], "twice")])
def test_wrong_sweeps_end_in_one_line(weights, out, capsys, sweep, said):
    assert run(weights, out, "--sweep", *sweep) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and not out.exists()
