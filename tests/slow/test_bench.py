"""The bench: all ways compute the same, and its table."""
from importlib.util import find_spec

import torch

from bench import speed
from config import Job, configure
from visualize import start

CPU = torch.device("cpu")


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


def test_the_table_of_a_measurement(capsys):
    """Seconds in turns, and the peak of a process for each way."""
    speed.compare(False, [torch.float32], [2], CPU)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[4:-2]]
    assert [row[:3] for row in rows if row[1] != "official"] == [
        ["2", way, "float32"] for way in ("original", "ascent", "finish")]
    assert rows[0][4] == "1.00" and all(float(row[3]) > 0 and 0.1 < float(row[5]) < 1 for row in rows)
