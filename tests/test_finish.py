"""The finish's grid of time steps and its settings. Each piece of a step, on numbers known on paper: test_paper.py."""
import pytest

from config import PRESETS, check_config
from finish import grid
from tests.linear import change


def test_grid():
    assert grid(600, 30) == list(range(600, 0, -20)) and grid(999, 3) == [999, 666, 333] and grid(3, 3) == [3, 2, 1]
    assert grid(999, 2) == [999, 500] and grid(7, 1) == [7]
    for top in (1, 29, 600, 999):
        for n in {1, top // 3 + 1, top}:
            assert len(set(grid(top, n))) == n and grid(top, n)[0] == top and grid(top, n)[-1] >= 1


@pytest.mark.parametrize("changes, message", [
    (dict(finish_from=0), "--finish-from must be at least 1"),
    (dict(finish_from=1000), "--finish-from must be between 1 and 999, or auto"),
    (dict(finish_from="end"), "--finish-from must be a whole number or auto"),
    (dict(finish_from=600.0), "--finish-from must be a whole number or auto"),
    (dict(finish_steps=601), "--finish-steps must be between 1 and --finish-from, 600"),
    (dict(finish_from="auto", finish_steps=601), "--finish-steps must be between 1 and --finish-from, 600"),
    (dict(finish_scale=-0.1), "--finish-scale must be at least 0"),
    (dict(finish_scale=float("inf")), "--finish-scale must be a number"),
    (dict(finish_scale=True), "--finish-scale must be a number")])
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_config(change(PRESETS["sae"], **changes))


def test_settings():
    for name, preset in PRESETS.items():
        check_config(preset)
        assert preset.finish == (name != "none") and preset.finish_times == (600,)
        assert (preset.finish_scale, preset.finish_steps) == (0.5, 30)
    check_config(change(PRESETS["sae"], finish_scale=1))
    assert change(PRESETS["sae"], finish_from="auto").finish_times == (600, 800, 900)
