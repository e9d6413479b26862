"""Steered priors on the toy: what is added, and that it reaches the picture.

The sampling with a push worked out by hand: test_paper.py. How strongly and when: test_activity.py.
"""
import pytest
import torch

from config import Job
from steering import directions, sample, steered_prior
from tests.seeded import randn
from tests.test_ascent import model  # noqa: F401


def steered(model, jobs, noise, scale):  # noqa: F811
    """The prior of each job, at `scale` times its feature's largest mean activation."""
    curves = torch.stack([model.capture.strength("feature", job.target) for job in jobs])
    return steered_prior(model, noise, directions(model, jobs), scale * curves, steps=4)


@pytest.fixture(scope="module")
def noise(model):  # noqa: F811
    return randn(2, *model.latent_shape, seed=5)


def test_decoder_rows_are_of_unit_length(model):  # noqa: F811
    assert torch.allclose(model.sae.W_dec.norm(dim=1), torch.ones(model.sae.features), atol=2e-3)   # fp16 files


def test_without_strength_it_is_the_plain_sample(model, noise):  # noqa: F811
    jobs = [Job("feature", 3), Job("feature", 9)]
    plain = sample(model, noise, model.embed([""]), steps=4)
    assert torch.allclose(steered(model, jobs, noise, 0.0), plain, atol=1e-5)
    assert (steered(model, jobs, noise, 30.0) - plain).abs().max() > 0.1


def test_a_row_is_steered_by_its_feature_alone(model, noise):  # noqa: F811
    jobs = [Job("feature", 18), Job("feature", model.settings["feature"])]
    both = steered(model, jobs, noise, 50.0)
    swapped = steered(model, [Job("feature", 543), jobs[1]], noise, 50.0)
    assert torch.equal(both[1], swapped[1]) and not torch.allclose(both[0], swapped[0])
