"""Steered priors on the toy: what is added, and that it reaches the picture.

The sampling with a push worked out by hand: test_paper.py. How strongly and when: test_activity.py.
"""
import pytest
import torch

from activity.profile import attach
from weights.load import load
from config import Job
from steering import directions, sample, steered_prior


@pytest.fixture(scope="module")
def model():
    model = load("weights/toy")
    return attach(model, model.folder / "activity")


def steered(model, jobs, noise, scale, steps):
    """The prior of each job, at `scale` times its feature's largest mean activation."""
    curves = torch.stack([model.strength("feature", job.feature) for job in jobs])
    return steered_prior(model, noise, directions(model, jobs), scale * curves, steps=steps)


@pytest.fixture(scope="module")
def noise(model):
    return torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(5))


def test_directions_are_decoder_rows_and_unit_vectors(model):
    assert torch.equal(directions(model, [Job(feature=3), Job(feature=9)]), model.sae.W_dec[[3, 9]])
    assert directions(model, [Job(channel=2)])[0].nonzero().tolist() == [[2]]
    assert torch.allclose(model.sae.W_dec.norm(dim=1), torch.ones(model.sae.features), atol=2e-3)   # fp16 files


def test_without_strength_it_is_the_plain_sample(model, noise):
    jobs = [Job(feature=3), Job(feature=9)]
    plain = sample(model, noise, model.embed([""]), steps=4)
    assert torch.allclose(steered(model, jobs, noise, 0.0, 4), plain, atol=1e-5)
    assert (steered(model, jobs, noise, 30.0, 4) - plain).abs().max() > 0.1


def test_a_row_is_steered_by_its_own_feature_alone(model, noise):
    jobs = [Job(feature=3), Job(feature=model.settings["feature"])]
    both = steered(model, jobs, noise, 10.0, 4)
    swapped = steered(model, [Job(feature=8), jobs[1]], noise, 10.0, 4)
    assert torch.equal(both[1], swapped[1]) and not torch.allclose(both[0], swapped[0])


def test_a_capture_knows_the_strongest_dataset_image(model):
    """By which results are judged; without a capture it is not known."""
    times, strongest = model.activity["timesteps"], model.activity["max_feature"]
    for row in (0, len(times) // 2, len(times) - 1):
        assert model.largest("feature", 37, int(times[row])) == pytest.approx(strongest[row, 37].item(), rel=1e-6)
    assert load("weights/toy").largest("feature", 37, 600) is None
