"""One batch from start to verdict, many batches, the door for notebooks: on the linear stand-in (linear.py)."""
import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

import visualize as course
from ascent import ascend
from config import Job
from finish import FINISH_SEED, grid, noised, redraw
from tests.linear import BARE, D, FEATURES, JOBS, Linear, begin, change, close, generator, roots
from tests.seeded import randn
from visualize import (SCORE_SEED, judge_result, kept_steps, list_checks, list_jobs, measure, run, share_starts,
                       start, stream, visualize)

FINISHED = change(finish=True, finish_steps=3, finish_scale=0.4)


@pytest.fixture
def model():
    return Linear()


def results_of(*given, **more):
    return [result for batch in stream(*given, **more) for result in batch]


def score(model, z, job, noise=True):
    """Score a latent by the definition: of each feature the mean over pixels and four noises."""
    g, (signal, spread) = generator(0x3C91B7E5 ^ job.seed), roots(model, job.timestep)
    seen = [signal * z + spread * torch.randn(z.shape, generator=g) for _ in range(4)] if noise else [z]
    return torch.stack([torch.stack([model.values(x, job.timestep, f).relu() for x in seen]).mean()
                        for f in range(FEATURES)])


def test_scores_are_those_of_the_definition(model):
    """Each differs from the others: the start, the end, without noise, without what a picture cannot hold."""
    model.sae.encoder.bias.copy_(torch.linspace(-1, 1, FEATURES))                               # the relu takes part
    config = change(num_steps=20)
    results, steps = run(model, JOBS, config), list(ascend(model, JOBS, config, begin(JOBS)))
    for i, (job, result) in enumerate(zip(JOBS, results)):
        z, scores = steps[-1].after[i], result.scores
        everything = score(model, z, job)
        by_definition = lambda z, noise=True: pytest.approx(score(model, z, job, noise)[job.target].item(), rel=1e-4)
        assert torch.equal(result.latent, z) and torch.equal(result.image, model.decode(z[None])[0])
        assert result.activation == scores["activation"] == by_definition(z)
        assert scores["activation_start"] == by_definition(steps[0].before[i])
        assert scores["activation_no_noise"] == by_definition(z, False)
        assert scores["activation_reencoded"] == by_definition(torch.cat([z[:3], torch.zeros_like(z[:1])]))
        order = everything.argsort(descending=True).tolist()
        assert scores["rank"] == 1 + order.index(job.target)
        assert [k for k, _ in result.others] == [k for k in order if k != job.target][:10]
        assert dict(result.others) == pytest.approx({k: everything[k].item() for k, _ in result.others}, rel=1e-4)
        assert scores["dataset_largest"] is None
        curves = result.history
        assert curves["activation"] == pytest.approx([s.activation[i].item() for s in steps])
        assert curves["gradient_norm"] == pytest.approx([s.gradient[i].square().sum().sqrt().item() for s in steps])
        assert curves["update_norm"] == pytest.approx([(s.after - s.before)[i].square().sum().sqrt().item()
                                                       for s in steps])
        assert curves["range"] == [0.0] * 20 and not {"alive", "repeats"} & curves.keys()
        assert "repeated_steps" not in scores


def test_repeated_steps_are_counted_in_float16():
    model = Linear(dtype=torch.float16)
    model.sae.encoder.weight[2] *= 2e5
    model.sae.encoder.bias[2] = 1e7
    many, none = run(model, JOBS, BARE)
    assert many.scores["repeated_steps"] > 2 and none.scores["repeated_steps"] == 0


def test_scores_have_noise_of_their_own(model):
    """The same for two latents of a seed, another for another seed; a channel and a direction have no relu."""
    z = randn(1, *model.latent_shape, seed=6)
    one, again, other = (measure(model, z, [Job("feature", 2, 700, s)], BARE)[0] for s in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    model.directions = {"a": torch.tensor([0.0, 1.0, 0.0])}
    h = model.unet(z, torch.tensor([0]), model.embed(["four"]), until="hook")
    for kind, target in (("channel", 1), ("direction", "a")):
        own, everything = measure(model, z, [Job(kind, target)], change(prompt="four"), noise=False)
        assert close(everything, h.mean((2, 3))) and close(own, h[:, 1].mean((1, 2)))


GOOD = {"activation": 1.0, "activation_start": 0.5, "activation_reencoded": 0.8, "rank": 1, "dataset_largest": None}


@pytest.mark.parametrize("changes, dataset, verdict", [
    ({}, None, "excited"), ({}, 2.0, "excited"), ({}, 2.01, "raised"), ({}, 0.0, "excited"), ({}, -1.0, "excited"),
    ({"rank": 10}, 2.0, "excited"), ({"rank": 11}, 0.1, "raised"), ({"rank": None}, None, "excited"),    # a direction
    ({"activation_reencoded": 0.5}, None, "excited"), ({"activation_reencoded": 0.49}, None, "fragile"),
    ({"activation_reencoded": 0.49, "rank": 11}, 9.0, "fragile"),
    ({"activation": -5.0, "activation_start": -9.0, "activation_reencoded": -5.5}, None, "excited"),
    ({"activation": -5.0, "activation_start": -9.0, "activation_reencoded": -7.6}, None, "fragile"),
    ({"activation": -0.1, "activation_start": -0.5, "activation_reencoded": -0.04}, -1.0, "raised"),     # a raw channel
    ({"activation_start": 1.0}, None, "weak"), ({"activation_start": 0.99}, None, "excited"),
    ({"activation": 0.0, "activation_start": 0.0}, None, "silent"),
    ({"activation": float("nan")}, None, "non-finite at step 3"),
    ({"activation": float("inf")}, 1.0, "non-finite at step 3"),
])
def test_verdicts(changes, dataset, verdict):
    """Also by the rules with their numbers that end a trace: the first that fails."""
    scores = GOOD | {"dataset_largest": dataset} | changes
    assert judge_result(scores, True, 3) == verdict and judge_result(scores, False, 3) == "non-finite at step 3"
    failed = [fails for fails, _, holds in list_checks(scores) if not holds]
    assert [*failed, "excited"][0] == verdict.partition(" ")[0]


def test_a_result_is_judged_by_the_dataset_at_its_time_step(model):
    """The number of the capture is a score; finished results have it, too."""
    asked = []
    jobs = [Job("feature", 2, t, seed=1) for t in (300, 800)]
    model.sae.encoder.bias[2] = 100.0                           # at rank 1
    curve = torch.ones(1001)
    curve[800] = 1e6
    model.capture.largest = lambda kind, target: asked.append((kind, target)) or curve
    near, far = run(model, jobs, FINISHED)
    assert set(asked) == {("feature", 2)} and (near.scores["rank"], far.scores["rank"]) == (1, 1)
    assert (near.verdict, far.verdict, far.finished.scores["dataset_largest"]) == ("excited", "raised", 1e6)
    assert (near.scores["dataset_largest"], far.scores["dataset_largest"]) == (1.0, 1e6)


def test_the_grid_of_a_finish():
    assert grid(600, 30) == list(range(600, 0, -20)) and grid(999, 3) == [999, 666, 333] and grid(3, 3) == [3, 2, 1]
    assert grid(999, 2) == [999, 500] and grid(7, 1) == [7]


def test_a_finished_result(model):
    """It begins where the ascent ended, is scored like it, and keeps the score of its start."""
    results = run(model, JOBS, FINISHED)
    z = torch.stack([r.latent for r in results])
    *_, step = redraw(model, JOBS, noised(model, JOBS, z, 600), grid(600, 3), FINISHED)
    for r, latent in zip(results, step.after):
        last, own = r.finished, score(model, latent, r.job)[r.job.target].item()
        assert torch.equal(last.latent, latent) and torch.equal(last.image, model.decode(latent[None])[0])
        assert last.activation == pytest.approx(own, rel=1e-4)
        assert (last.scores["finish_scale"], last.scores["finish_from"]) == (0.4, 600)
        assert last.scores["activation_start"] == r.scores["activation_start"]
        assert len(last.history["activation"]) == 3 == len(r.history["activation"]) and "range" not in last.history
    plain = run(model, JOBS, change(FINISHED, finish=False))
    assert all(a.finished is None and torch.equal(a.latent, b.latent) for a, b in zip(plain, results))


def test_finish_from_auto_keeps_the_try_with_the_largest_reencoded_activation(model, monkeypatch):
    """Each row its own; what is not finite is never kept."""
    z, real = randn(2, *model.latent_shape, seed=8), course.follow
    for best in ([0, 2], [1, 0], [2, 1]):
        made = []

        def follow(*given):
            """The latents of a try with its row lifted where it is the best, and spoiled in the try after it."""
            x, history = real(*given)
            for row, k in enumerate(best):
                if k == len(made):
                    x[row, :3] += 3000 * model.slope(JOBS[row].target)[:3]
                elif (k + 1) % 3 == len(made):
                    x[row] = float("nan")
            made.append((x, history))
            return x, history

        monkeypatch.setattr(course, "follow", follow)
        config = change(FINISHED, finish_from="auto", finish_steps=2)
        for row, (k, last) in enumerate(zip(best, course.finish(model, JOBS, z, torch.zeros(2), config))):
            assert last.scores["finish_from"] == (600, 800, 900)[k] and torch.equal(last.latent, made[k][0][row])
            assert last.scores["activation_reencoded"] == pytest.approx(
                last.scores[f"reencoded_from_{last.scores['finish_from']}"], rel=1e-4)
            assert last.history["activation"] == made[k][1]["activation"][:, row].tolist()


def test_every_step_of_a_batch_is_reported_by_phase(model):
    seen = []
    config = change(FINISHED, prior="steer", prior_steps=2, prior_sampler="ddim", finish_from="auto", finish_steps=2)
    run(model, JOBS, config, on_step=lambda phase, step: seen.append(phase))
    lengths = course.course_lengths(config)
    assert seen == ["sampling"] * 2 + ["ascent"] * 3 + ["finish"] * 6 and lengths == {p: seen.count(p) for p in lengths}
    assert course.course_lengths(BARE) == {"sampling": 0, "ascent": 3, "finish": 0}


def test_pictures_of_the_course_are_those_of_the_steps(model):
    """Kept evenly from the start to the end; each is its step's latent, decoded; keeping them changes nothing."""
    assert kept_steps(100, 8) == [0, 14, 29, 43, 57, 71, 86, 100]
    assert kept_steps(3, 8) == [0, 1, 2, 3] and kept_steps(5, 0) == [] and kept_steps(5, 2) == [0, 5]
    config = change(num_steps=6)
    result, plain = run(model, JOBS[:1], config, frames=3)[0], run(model, JOBS[:1], config)[0]
    steps = list(ascend(model, JOBS[:1], config, begin(JOBS[:1])))
    assert list(result.frames) == [0, 3, 6] and plain.frames == {}
    for frame, z in zip(result.frames.values(), (steps[0].before, steps[2].after, steps[-1].after), strict=True):
        assert torch.equal(frame, model.decode(z)[0])
    assert torch.equal(result.latent, plain.latent) and result.scores == plain.scores


def test_streams_of_random_numbers_do_not_meet():
    """Ascent, scores and finish draw from three generators of a seed: 1,024 numbers, a deviation of 0.03."""
    draws = [torch.randn(1024, generator=generator(seed ^ 1024)) for seed in (0, SCORE_SEED, FINISH_SEED)]
    assert (torch.corrcoef(torch.stack(draws)) - torch.eye(3)).abs().max() < 0.2


MANY = [Job("feature", f, t, s) for f in (2, 5, 7) for t in (0, 300, 600) for s in (1, 2)]


@pytest.mark.parametrize("prior", ("steer", "guided"))
@pytest.mark.parametrize("left", ([12, 13, 14, 15, 16, 17], [3], [8, 17]))
def test_a_sample_is_made_once_in_groups_that_follow_from_the_list(model, prior, left, monkeypatch):
    """Six samples for 18 jobs, 4 at a time; the same whatever was finished before. Each job's generator stands where
    it stands after its noise."""
    sizes, real = [], course.start
    monkeypatch.setattr(course, "start", lambda model, jobs, config, *rest: sizes.append(
        (config.prior, [(job.target, job.seed) for job in jobs])) or real(model, jobs, config, *rest))
    config = change(prior=prior, prior_steps=2)
    starts, resumed = (share_starts(model, MANY, config) for _ in range(2))
    begun = [starts(MANY[i:i + 4], 4) for i in range(0, 18, 4)]
    assert [keys for used, keys in sizes if used == prior] == [[(2, 1), (2, 2), (5, 1), (5, 2)], [(7, 1), (7, 2)]]
    latents = torch.cat([z for _, z in begun])
    for i in left:
        generators, z = resumed(MANY[i:i + 1], 4)
        same_generator = begun[i // 4][0][i % 4]
        assert torch.equal(z[0], latents[i]) and torch.equal(generators[0].get_state(), same_generator.get_state())
    g = generator(MANY[5].seed)
    torch.randn(model.latent_shape, generator=g)
    assert torch.equal(begun[1][0][1].get_state(), g.get_state())
    assert close(latents[3], real(model, MANY[3:4], config)[1][0], 1e-4)
    assert close(share_starts(model, MANY, BARE)(MANY[:2], 4)[1], begin(MANY[:2])[1])


def test_without_a_capture_a_steered_start_says_what_to_do(model):
    model.capture = None
    with pytest.raises(ValueError, match="--prior noise.*activity capture"):
        start(model, JOBS, change(prior="steer"))


def same(a, b):
    """Whether two lists of results hold the same jobs, latents and scores."""
    return [r.job for r in a] == [r.job for r in b] and all(
        torch.equal(x.latent, y.latent) and x.scores == y.scores for x, y in zip(a, b))


def test_a_stopped_run_gives_the_bytes_of_a_whole_one(model):
    """Only batches with a job that is needed are computed; batches and samples are those of the whole list."""
    config = change(FINISHED, prior="steer", prior_steps=2)
    whole = results_of(model, MANY, config, 4)
    assert [r.job for r in whole] == MANY
    rest = results_of(model, MANY, config, 4, wanted={MANY[9], MANY[16]})
    assert same(rest, whole[8:12] + whole[16:])
    assert results_of(model, MANY, config, 4, wanted=set()) == []


@pytest.mark.parametrize("size, expected", ((None, [8, 8, 2]), (5, [5, 5, 5, 3]), (1, [1] * 18)))
def test_jobs_of_a_batch(model, size, expected):
    """Small latents go by eight where nobody says it; a batch is never filled up."""
    assert [len(batch) for batch in stream(model, MANY, BARE, size)] == expected
    model.latent_shape = (4, 64, 64)
    assert course.batch_rows(model, MANY, BARE) == 1


def test_where_memory_runs_out_the_batch_is_halved_and_begins_again(model, capsys):
    """In the middle of an ascent; what is computed then is what smaller batches give, and one line says so."""
    config, steps = change(FINISHED, prior="steer", prior_steps=2), []
    expected = results_of(model, MANY[:6], config, 2)

    def fill(module, args, h):
        steps.append(h.requires_grad)
        if len(h) > most and sum(steps) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.unet.hook.register_forward_hook(fill)
    most = 2
    assert same(results_of(model, MANY[:6], config, 4), expected)
    assert capsys.readouterr().err == "memory ran out: 2 jobs at a time (--batch-size)\n"
    most = 0
    with pytest.raises(torch.OutOfMemoryError):                 # one job does not fit
        results_of(model, MANY[:6], config, 4)
    assert capsys.readouterr().err.count("\n") == 2             # 4, 2, 1


def test_the_jobs_of_a_list(model):
    """By target, time step and seed, each once; time steps come from the weights' settings, from the capture, or as
    numbers."""
    of = lambda *given: [(j.target, j.timestep, j.seed) for j in list_jobs(model, "feature", [3, 1, 3], (7, 7), *given)]
    assert of() == [(3, 300, 7), (1, 300, 7)] == of([300])
    assert of([500, "active", 0]) == [(3, 500, 7), (3, 0, 7), (3, 9, 7), (1, 500, 7), (1, 0, 7), (1, 9, 7)]
    model.settings = {}
    assert of() == [(3, 0, 7), (3, 40, 7), (1, 0, 7), (1, 40, 7)] == of(["auto"])
    model.capture = None
    with pytest.raises(ValueError, match="--timestep auto: linear has no capture"):
        of()
    model.directions = {"a": torch.ones(D)}
    for kind, target in (("feature", FEATURES - 1), ("channel", D - 1), ("direction", "a")):
        assert list_jobs(model, kind, [target], [2 ** 62 - 1], [999]) == [Job(kind, target, 999, 2 ** 62 - 1)]


SHORT = dict(num_steps=2, prior="noise", finish=False, seeds=[1])


def test_the_door_by_feature_channel_and_direction(model):
    """A preset by kind, settings by name; the same results as of the jobs themselves."""
    given = {"feature": dict(features=[4]), "channel": dict(channels=[1]),
             "direction": dict(directions={"mine": [1.0, 0.0, 2.0]})}
    for (kind, door), target in zip(given.items(), (4, 1, "mine")):
        result, = visualize(model, **door, **SHORT, timesteps=[100], learning_rate=0.1)
        assert result.job == Job(kind, target, 100, 1)
        config = dataclasses.replace(course.configure({}, None, kind), num_steps=2, prior="noise", finish=False,
                                     learning_rate=0.1)
        assert torch.equal(result.latent, run(model, [result.job], config)[0].latent)
        assert (result.scores["rank"] is None) == (kind == "direction")
    assert len(visualize(model, [4, 5], **SHORT | dict(seeds=(1, 2)), timesteps=[0, 9], batch_size=3)) == 8
    # one number for a list, one word for time steps
    assert visualize(model, features=2, timesteps=40, **SHORT | {"seeds": 3})[0].job == Job("feature", 2, 40, 3)
    assert [r.job.timestep for r in visualize(model, features=2, timesteps="auto", **SHORT)] == [0, 40]


@pytest.mark.parametrize("wrong, says", [
    (dict(features=[FEATURES]), "--feature 16 is out of range: linear has 16 features, 0..15"),
    (dict(features=[1], channels=[1]), "one of the three"), ({}, "one of the three"),
    (dict(features=[]), "there is no feature"),
    (dict(features=[1], learning_rate=-1.0), "--learning-rate must be above 0, got -1"),
    (dict(features=[1], num_steps=0), "--num-steps must be at least 1"),
    (dict(features=[1], num_steps=2.5), "--num-steps must be a whole number"),
    (dict(features=[1], finish_from=0), "--finish-from must be at least 1"),
    (dict(features=[1], finish_from=1000), "--finish-from must be at most 999, got 1000"),
    (dict(features=[1], finish_from="end"), "--finish-from must be a whole number or auto"),
    (dict(features=[1], finish_from="auto", finish_steps=601), "between 1 and --finish-from, 600"),
    (dict(features=[1], finish_scale=-0.1), "--finish-scale must be at least 0"),
    (dict(features=[1], finish_scale=float("inf")), "--finish-scale must be a number"),
    (dict(features=[1], prior="nois"), "--prior must be one"), (dict(features=[1], position=3), "--position must be"),
    (dict(features=[1], gradient_smoothing_kernel_size=33), "odd and below 32"),
    (dict(features=[1], preset="fast"), "no preset 'fast'"), (dict(features=[1], frames=51), "frames 0 to 50"),
    (dict(features=[1], learning_rat=0.1), "learning_rat is no setting; nearest: learning_rate"),
    (dict(features=[1], batch_size=0), "batch_size must be at least 1"),
    (dict(directions={"a": [1.0, 2.0]}), "--direction a has shape \\[2\\], expected \\[3\\], the channels of hook"),
    (dict(features=[-1]), "--feature -1"), (dict(features=[True]), "--feature True"), (dict(channels=[D]), "--channel"),
    (dict(features=[1], timesteps=[1000]), "--timestep 1000"), (dict(features=[1], timesteps=[0.5]), "--timestep 0.5"),
    (dict(features=[1], seeds=[-1]), "--seed -1"), (dict(features=[1], seeds=[2 ** 62]), "--seed")])
def test_the_door_refuses_what_flags_refuse(model, wrong, says):
    with pytest.raises(ValueError, match=says):
        visualize(model, **wrong)


def test_a_notebook_shows_the_finished_picture(model):
    finished, = run(model, JOBS[:1], FINISHED)
    plain = dataclasses.replace(finished, finished=None)
    for result, image in ((finished, finished.finished.image), (plain, finished.image)):
        shown = np.asarray(Image.open(io.BytesIO(result._repr_png_()))) / 255
        assert np.abs(shown - image.permute(1, 2, 0).clamp(0, 1).numpy()).max() < 0.003
    assert finished._repr_png_() != plain._repr_png_()
