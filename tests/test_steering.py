"""Steered priors on the toy: what is added, and that it reaches the picture. How strongly and when: test_activity.py."""
import pytest
import torch

from weights.load import load
from config import Job
from ascent import measure
from steering import directions, sample, steered_prior


@pytest.fixture(scope="module")
def model():
    return load("weights/toy")


@pytest.fixture(scope="module")
def noise(model):
    return torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(5))


def test_directions_are_decoder_rows_and_unit_vectors(model):
    assert torch.equal(directions(model, [Job(feature=3), Job(feature=9)], "feature"), model.sae.W_dec[[3, 9]])
    assert directions(model, [Job(channel=2)], "channel")[0].nonzero().tolist() == [[2]]
    assert torch.allclose(model.sae.W_dec.norm(dim=1), torch.ones(model.sae.features), atol=2e-3)   # fp16 files


def test_without_strength_it_is_the_plain_sample(model, noise):
    jobs = [Job(feature=3), Job(feature=9)]
    plain = sample(model, noise, model.embed([""]), steps=4)
    assert torch.allclose(steered_prior(model, jobs, "feature", noise, 0.0, steps=4), plain, atol=1e-5)
    assert (steered_prior(model, jobs, "feature", noise, 30.0, steps=4) - plain).abs().max() > 0.1


def test_a_row_is_steered_by_its_own_feature_alone(model, noise):
    jobs = [Job(feature=3), Job(feature=model.settings["feature"])]
    both = steered_prior(model, jobs, "feature", noise, 10.0, steps=4)
    swapped = steered_prior(model, [Job(feature=8), jobs[1]], "feature", noise, 10.0, steps=4)
    assert torch.equal(both[1], swapped[1]) and not torch.allclose(both[0], swapped[0])


def test_steering_excites_the_feature(model, noise):
    """Mean over two seeds, at the toy's own strength: the steered picture excites the feature more than the plain one."""
    jobs = [Job(feature=model.settings["feature"], timestep=model.settings["timestep"], seed=s) for s in (1, 2)]
    scale = model.settings["presets"]["sae"]["steer_scale"]
    steered = measure(model, steered_prior(model, jobs, "feature", noise, scale, steps=20), jobs)[0]
    plain = measure(model, sample(model, noise, model.embed([""]), steps=20), jobs)[0]
    assert steered.mean() > plain.mean()
