"""The bench: both ways compute the same, and the prediction of memory counts what lives."""
import json
import sys

import pytest
import torch

from bench import speed
from config import Job, configure
from weights.load import load

pytestmark = pytest.mark.usefixtures("one_thread")
GIB = 2 ** 30


def test_both_ways_climb_the_same():
    """Equal activations, step by step, of features that are not silent (those stay silent in the original)."""
    model, config = load("weights/toy", "cpu"), configure({}, "sae", prior="noise", num_steps=3)
    jobs = [Job("feature", 4, 600, 1024), Job("feature", 48, 600, 1111)]
    mine = [step.activation for step in speed.WAYS["ascent"](model, jobs, config)]
    theirs = list(speed.WAYS["original"](load("weights/toy", "cpu"), jobs, config))
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-4)


def test_memory_by_hand():
    """Of a chain of three tensors of 1 MiB, of which two live at a time; a weight and a view of it count nothing."""
    weight = torch.nn.Linear(512, 512, bias=False, device="meta")
    with torch.device("meta"), torch.no_grad(), speed.Live([weight]) as live:
        x = torch.zeros(512, 512)
        for _ in range(2):
            x = weight(x)
    assert live.peak == 2 * 2 ** 20 and live.now == 2 ** 20


def test_memory_of_full_size():
    """Weights: 860, 123, 84 and 52 million numbers. A row more takes the same again, half precision half."""
    weights, one = speed.predict(torch.float32, 1)
    assert weights == 4 * (859_520_964 + 123_060_480 + 83_653_863 + 2 * 20480 * 1280 + 20480 + 1280)
    half, two = speed.predict(torch.bfloat16, 2)
    assert half == weights - 2 * (859_520_964 + 123_060_480)
    assert 0.5 * GIB < one["ascent"] < one["finish"] < one["decode"] < GIB and two["decode"] - one["decode"] < 2 ** 17
    assert two["ascent"] == pytest.approx(one["ascent"], rel=0.02)


def test_the_table_of_a_measurement(monkeypatch, capsys):
    """One way in this process; the table from what processes print."""
    took, peak, rate = found = speed.measure("finish", False, torch.float32, 2, torch.device("cpu"))
    assert took > 0 and peak > 0 and rate > 1e8
    command = [sys.executable, "-c", f"print('''{json.dumps(found)}''')"]
    run = speed.subprocess.run
    monkeypatch.setattr(speed.subprocess, "run", lambda given, **how: run(command, **how))
    speed.compare(False, ["float32"], [2], torch.device("cpu"))
    assert "| 2 | original | float32 |" in capsys.readouterr().out
