"""The ascent on the trained toy, where it takes longer: from a steered start, among many others, resumed."""
import numpy as np
import torch

from config import Job, configure
from tests.linear import change
from tests.test_ascent import job, model, short  # noqa: F401
from vae import to_uint8
from visualize import run, stream


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


def test_a_stopped_run_gives_the_bytes_of_a_whole_one(model, short):  # noqa: F811
    """Whatever was finished before: batches and steered samples follow from the list alone."""
    config = change(short, num_steps=1, prior_steps=3, finish=False)
    jobs = [Job("feature", f, t, s) for f in (4, 37) for t in (300, 600, 900) for s in (1, 2)]
    whole = [result for batch in stream(model, jobs, config, 5) for result in batch]
    assert [r.job for r in whole] == jobs
    for left in ({jobs[11]}, {jobs[4], jobs[6]}):
        for batch in stream(model, jobs, config, 5, wanted=left):
            for result in batch:
                assert torch.equal(result.latent, whole[jobs.index(result.job)].latent)
