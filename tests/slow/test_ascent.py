"""The ascent on the trained toy, where it takes longer: from a steered start, among many others, at several time steps.
"""
import dataclasses

import numpy as np
import pytest
import torch

import ascent
from ascent import start, stream, visualize
from config import Job, configure
from tests.test_ascent import feature, job, model, short  # noqa: F401
from vae import to_uint8


def test_from_a_steered_sample_activation_is_higher_after_30_steps(model):  # noqa: F811
    """Of feature 22, which its own steered sample excites little."""
    config = configure(model.settings, num_steps=30, prior="steer")
    result, = visualize(model, [job(model, 22)], config, batch_size=1)
    assert result.activation > 10 * result.scores["activation_start"] and result.verdict == "excited"


def test_a_job_is_the_same_alone_and_among_others(model, short, feature):  # noqa: F811
    """Values to 1e-5 and the PNG's bytes; the others have other features, time steps and seeds."""
    others = [job(model, (feature + 7 * i) % model.sae.features, timestep=50 * i, seed=i) for i in range(1, 11)]
    mine = job(model, feature)
    alone, = visualize(model, [mine], short)
    for jobs in ([mine, *others], [*others, mine], [*others[:3], mine]):
        among = next(r for r in visualize(model, jobs, short) if r.job == mine)
        assert (alone.latent - among.latent).abs().max() <= 1e-5
        assert np.array_equal(to_uint8(alone.image), to_uint8(among.image))
        assert alone.scores == pytest.approx(among.scores, abs=1e-5)


def test_a_prior_is_sampled_once_for_a_target_and_seed(model, short, feature, monkeypatch):  # noqa: F811
    """Time steps share it, to the bit of one that is sampled for each; another target's are given up."""
    made, sampled = [], ascent.steered_prior
    spy = lambda model, noise, d, *rest: made.append(d) or sampled(model, noise, d, *rest)
    monkeypatch.setattr(ascent, "steered_prior", spy)
    settings = dataclasses.replace(short, prior="steer", num_steps=1)
    jobs = [Job(feature=f, timestep=t, seed=s) for f in (feature, 37) for t in (300, 600, 900) for s in (1, 2)]
    together = list(stream(model, jobs, settings, batch_size=2))
    assert [d.tolist() for d in made] == [ascent.directions(model, pair).tolist() for pair in (jobs[:2], jobs[6:8])]
    for one, result in list(zip(jobs, together))[4::5]:
        alone, = stream(model, [one], settings, batch_size=2)
        assert torch.equal(alone.latent, result.latent)
    priors = {}
    for batch in (jobs[:2], jobs[6:8]):
        start(model, batch, settings, priors)
        assert priors.keys() == {(one.target, one.seed) for one in batch}
