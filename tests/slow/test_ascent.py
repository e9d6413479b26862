"""Ascent and finish on the trained toy, where it takes longer: from a steered start, among others, pulled."""
import numpy as np
import torch

from config import Job, configure
from finish import grid, noised, redraw
from tests.linear import change
from tests.test_ascent import job, model, short  # noqa: F401
from vae import to_uint8
from visualize import measure, run

JOBS = [Job("feature", f, 600, s) for f, s in ((24, 2), (13, 1), (4, 3))]


def test_from_a_steered_sample_activation_is_higher_after_30_steps(model):  # noqa: F811
    """Of the default feature, which its steered sample excites little."""
    config = configure(model.settings, num_steps=30, prior="steer", finish=False)
    result, = run(model, [Job("feature", model.settings["feature"], 500)], config)
    assert result.activation > 5 * result.scores["activation_start"] and result.verdict == "excited"


def test_a_job_is_the_same_alone_and_among_others(model, short, job):  # noqa: F811
    """Latents to 1e-4 and pictures to a grey level, finished ones, too: kernels of another shape round differently."""
    others = [Job("feature", (4 + 7 * i) % model.sae.features, 50 * i, i) for i in range(1, 6)]
    for prior in ("steer", "guided"):
        config = change(short, prior=prior)
        alone, = run(model, [job], config)
        for jobs in ([job, *others], [*others[:2], job]):
            among = next(r for r in run(model, jobs, config) if r.job == job)
            for a, b in ((alone, among), (alone.finished, among.finished)):
                assert (a.latent - b.latent).abs().max() <= 1e-4
                assert np.abs(to_uint8(a.image).astype(int) - to_uint8(b.image)).max() <= 1
                assert abs(a.activation - b.activation) <= 1e-4 * max(1, a.activation)


def test_the_finish_pulls(model, short):  # noqa: F811
    """A stronger pull ends at a higher activation than a plain redraw, for each feature."""
    z, made = torch.zeros(3, *model.latent_shape), []
    for scale in (0.0, 0.4):
        config = change(short, finish_scale=scale)
        *_, last = redraw(model, JOBS, noised(model, JOBS, z, 600), grid(600, 15), config)
        made.append(measure(model, last.after, JOBS, config)[0])
    assert (made[1] > 1.5 * made[0]).all()
