"""The finish: its grid of time steps, its settings, the halves of its report. Each piece of a step, on numbers known on
paper: test_paper.py; on the trained toy: slow/test_finish.py.
"""
import dataclasses

import pytest

from config import PRESETS, check_config
from finish import grid
from toyworld import finishing


def test_grid():
    assert grid(600, 30) == list(range(600, 0, -20)) and grid(999, 3) == [999, 666, 333] and grid(3, 3) == [3, 2, 1]
    for top in (1, 29, 600, 999):
        for n in {1, top // 3 + 1, top}:
            assert len(set(grid(top, n))) == n and grid(top, n)[0] == top and grid(top, n)[-1] >= 1


@pytest.mark.parametrize("changes, message", {
    ("finish_from", 0): "--finish-from must be between 1 and 999",
    ("finish_from", 1000): "--finish-from must be between 1 and 999",
    ("finish_from", "end"): "--finish-from must be a whole number or auto",
    ("finish_from", 600.0): "--finish-from must be a whole number or auto",
    ("finish_steps", 0): "--finish-steps must be between 1 and --finish-from, 600",
    ("finish_steps", 601): "--finish-steps must be between 1 and --finish-from, 600",
    ("finish_scale", -0.1): "--finish-scale must be at least 0, or auto",
    ("finish_scale", "much"): "--finish-scale must be a number .* or auto",
    ("finish_scale", float("inf")): "--finish-scale must be a number",
    ("finish_scale", True): "--finish-scale must be a number",
}.items())
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_config(dataclasses.replace(PRESETS["sae"], **({"finish_from": 600} | dict([changes]))))


def test_settings():
    for name, preset in PRESETS.items():
        check_config(preset)
        assert preset.finish == (name != "none") and (preset.finish_scale, preset.finish_steps) == ("auto", 30)
    check_config(dataclasses.replace(PRESETS["sae"], finish_scale=1))
    with pytest.raises(ValueError, match="--finish-steps must be between 1 and --finish-from, 600"):
        check_config(dataclasses.replace(PRESETS["sae"], finish_from="auto", finish_steps=601))


def test_halves_and_the_rule_of_the_toys_report():
    """Two halves that share no feature, always the same; of a feature's pictures the one with the largest score."""
    concepts = [{"feature": f} for f in range(31)]
    a, b = finishing.halves(concepts)
    assert (len(a), len(b)) == (15, 16) and sorted(c["feature"] for c in a + b) == list(range(31))
    assert finishing.halves(concepts) == [a, b] and a != concepts[:15]
    mixed = finishing.shuffled(a)
    assert mixed != a and sorted(c["feature"] for c in mixed) == [c["feature"] for c in a]
    made = [{"feature": f, "seed": s, "activation": 9 - s, "activation_reencoded": (f * s) % 5, "kind": "object",
             "right": s == 2} for f in (2, 3) for s in (1, 2, 3)]
    best = finishing.by_rule(made)
    assert [(e["feature"], e["seed"]) for e in best] == [(2, 2), (3, 3)]
    row = finishing.row(best)
    assert row["objects"]["share"] == 0.5 and row["objects"]["n"] == 2 == row["all"]["n"] and row["styles"]["n"] == 0
    assert row["activation"] == 6.5 and row["reencoded"] == 4.0
    assert row["all"]["interval"] == [0.095, 0.905]             # Wilson's
    five = [e | {"right": e["feature"] == 2} for e in made]     # one feature is always right, the other never
    assert finishing.row(five)["all"] == {"share": 0.5, "interval": [0.0, 1.0], "n": 6}
