"""All stages after the UNet, and the evaluation, on a world of three things and untrained networks."""
import json

import pytest

from tests.test_toyworld import art, arguments      # noqa: F401, a fixture
from toyworld import concepts, evaluate, train


@pytest.fixture
def made(art, tmp_path, monkeypatch):               # noqa: F811
    """A weights folder with every part but the capture."""
    monkeypatch.setattr(train, "PROMPTS", 12)
    monkeypatch.setattr(concepts, "NULL", 64)
    args = arguments(art, tmp_path, dictionary=4)
    for stage in ("vae", "text", "unet", "dictionary", "judge", "concepts"):
        train.STAGES[stage](args)
        train.record(args, stage, 1.0)
    return args


def test_every_stage_and_every_measure(made, monkeypatch, capsys):
    stored = json.loads((made.out / "concepts.json").read_text())
    assert stored["channels"] == 128 and stored["features"] == 1024
    assert {"features", "channels", "random"} == set(stored["counts"])
    assert len((made.out / "prompts.txt").read_text().splitlines()) == 4
    (made.out / "featviz.json").write_text(json.dumps({"timestep": 500, "presets": {
        "sae": {"prior": "noise", "num_steps": 2, "finish_steps": 2}}}))
    stored["rows"] = [row | {"meaning": meaning} for row, meaning in zip(
        stored["rows"], (["name", "fox face"], ["house+colour", "Noto, red"], ["background", "blue"]))]
    (made.out / "concepts.json").write_text(json.dumps(stored))
    monkeypatch.setattr(evaluate, "SEEDS", 2)
    evaluate.main(["--art", str(made.art), "--weights", str(made.out), "--samples", "4", "--features", "3"])
    printed, measured = capsys.readouterr().out, json.loads((made.out / "evaluation.json").read_text())
    assert set(measured) == set(evaluate.PARTS)
    assert "| samples | top5 |" in printed and measured["features"]["picked"] <= 3
