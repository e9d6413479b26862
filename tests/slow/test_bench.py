"""The bench: all ways compute the same, and the prediction of memory counts what lives."""
from importlib.util import find_spec

import pytest
import torch

from bench import speed
from config import Job, configure
from visualize import start

pytestmark = pytest.mark.usefixtures("one_thread")
CPU, GIB = torch.device("cpu"), 2 ** 30


def test_all_ways_climb_the_same_in_turns():
    """Equal activations, step by step, of features that are not silent (those stay silent in the original).

    They share numbers, of which the original's alone collect gradients.
    """
    ours, theirs = (speed.model_of(False, torch.float32, CPU, collects) for collects in (False, True))
    config, ways = configure({}, "sae", prior="noise", num_steps=3), {"ascent": ours, "original": theirs}
    if find_spec("diffusers"):
        ways["official"] = theirs
    jobs = [Job("feature", 4, 600, 1024), Job("feature", 48, 600, 1111)]
    runs = [speed.WAYS[way](model, jobs, config, start(model, jobs, config)) for way, model in ways.items()]
    for step, *others in zip(*runs, strict=True):
        assert all(torch.allclose(step.activation, a, rtol=1e-4) for a in others)
    for frozen, collecting in zip(ours.unet.parameters(), theirs.unet.parameters(), strict=True):
        assert frozen.data_ptr() == collecting.data_ptr() and collecting.requires_grad
        assert not frozen.requires_grad and frozen.grad is None
    assert theirs.unet.conv_in.weight.grad.any() and theirs.sae.encoder.weight.grad.any()


def test_memory_by_hand():
    """Of a chain of three tensors of 1 MiB, of which two live at a time; a weight and a view of it count nothing."""
    weight = torch.nn.Linear(512, 512, bias=False, device="meta")
    with torch.device("meta"), torch.no_grad(), speed.Live([weight]) as live:
        x = torch.zeros(512, 512)
        for _ in range(2):
            x = weight(x)
    assert live.peak == 2 * 2 ** 20 and sum(s.nbytes() for s in live.storages) == 2 ** 20


def test_memory_of_full_size():
    """Weights: 860, 123, 84 and 52 million numbers. A row more takes the same again, half precision half."""
    weights, one = speed.predict(torch.float32, 1)
    assert weights == 4 * (859_520_964 + 123_060_480 + 83_653_863 + 2 * 20480 * 1280 + 20480 + 1280)
    half, two = speed.predict(torch.bfloat16, 2)
    assert half == weights - 2 * (859_520_964 + 123_060_480)
    assert 0.5 * GIB < one["ascent"] < one["finish"] < one["decode"] < GIB and two["decode"] - one["decode"] < 2 ** 17
    assert two["ascent"] == pytest.approx(one["ascent"], rel=0.02)


def test_the_table_of_a_measurement(capsys):
    """Seconds in turns, and the peak of a process for each way."""
    speed.compare(False, [torch.float32], [2], CPU)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[4:-2]]
    assert [row[:3] for row in rows if row[1] != "official"] == [
        ["2", way, "float32"] for way in ("original", "ascent", "finish")]
    assert rows[0][4] == "1.00" and all(float(row[3]) > 0 and 0.1 < float(row[5]) < 1 for row in rows)
