"""The finish on the trained toy: it redraws while the feature pulls; rows stay apart, also in trouble and silence."""
import dataclasses

import pytest
import torch

import ascent
import finish
from ascent import activation, measure, readout
from config import FINISH_FROM, STRENGTHS, Job, configure
from finish import finish_results, grid, guide, look, noised, redraw, rms
from regularizers import spectral_filter
from schedule import ddim, guided
from tests.seeded import relative_error
from weights.load import load

TOY = "weights/toy"


@pytest.fixture(scope="module")
def model():
    return load(TOY)


@pytest.fixture(scope="module")
def short(model):
    """Few steps, from noise, a fixed pull."""
    return configure(model.settings, num_steps=3, prior="noise", prior_steps=4, finish=True, finish_from=600,
                     finish_scale=0.4, finish_steps=4)


@pytest.fixture(scope="module")
def jobs(model):
    """Of different features and seeds."""
    return [Job(feature=f, timestep=600, seed=s) for f, s in ((24, 2), (13, 1), (4, 3))]


@pytest.fixture
def x(model, jobs):
    """Noisy latents that differ from row to row."""
    drawn = lambda seed: torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(seed))
    return torch.stack([drawn(job.seed) for job in jobs])


def course(model, jobs, x, config):
    return list(redraw(model, jobs, x, grid(config.finish_from, config.finish_steps), config.finish_scale, config))


def test_one_pass_gives_prediction_hook_and_a_graph_up_to_the_hook(model, x, jobs):
    """The same numbers as two runs of the network; nothing beyond the hook keeps a graph; grad mode is as it was."""
    t, context = torch.full((3,), 600), model.embed([""]).expand(3, -1, -1)
    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            e, hook, leaf = look(model, x, t, context)
            assert torch.is_grad_enabled() == mode
    with torch.no_grad():
        assert torch.equal(e, model.unet(x, t, context)) and not e.requires_grad
        assert torch.equal(hook, model.unet(x, t, context, until=model.hook_point))
    assert hook.requires_grad and torch.equal(leaf, x) and not x.requires_grad
    assert not model.unet.get_submodule(model.hook_point)._forward_hooks


def test_every_step_is_handed_out(model, short, jobs, x):
    """Steps chain; each is the formula, worked out here from what the step says it saw."""
    steps = course(model, jobs, x, short)
    assert [s.index for s in steps] == [0, 1, 2, 3] and [s.timestep for s in steps] == [600, 450, 300, 150]
    assert torch.equal(steps[0].before, x)
    for a, b in zip(steps, steps[1:]):
        assert torch.equal(a.after, b.before)
    context, abar = model.embed([""]).expand(3, -1, -1), model.schedule.alphas_cumprod
    for step, t, t_next in zip(steps, (600, 450, 300, 150), (450, 300, 150, 0)):
        e = model.unet(step.before, torch.full((3,), t), context)
        leaf = step.before.clone().requires_grad_(True)
        hook = model.unet(leaf, torch.full((3,), t), context, until=model.hook_point)
        a = activation(readout(model, hook, jobs), "feature")
        gradient, = torch.autograd.grad(a.sum(), leaf)
        g = spectral_filter(gradient)
        size = lambda y: torch.stack([row.square().mean().sqrt() for row in y])[:, None, None, None]
        pulled = e - 0.4 * size(e) / size(g) * g
        x0 = (step.before - (1 - abar[t]).sqrt() * pulled) / abar[t].sqrt()
        after = abar[t_next].sqrt() * x0 + (1 - abar[t_next]).sqrt() * pulled
        for ours, expected in ((step.noise, e), (step.activation, a), (step.gradient, gradient), (step.filtered, g),
                               (step.pulled, pulled), (step.after, after)):
            assert relative_error(ours, expected) < 1e-4
        assert not step.silent.any() and step.alive.all()
        assert torch.allclose(rms(step.pulled - step.noise), 0.4 * rms(step.noise), rtol=1e-4)


def test_the_gradient_by_finite_differences(model, short, jobs, x):
    """In float64, along random directions, at a noise level in the middle of the way; a raw channel's too."""
    double = load(TOY, dtype=torch.float64)
    double.sae.double()
    x, t, context = x.double(), torch.full((3,), 500), double.embed([""]).expand(3, -1, -1)
    channels = [Job(channel=c, timestep=600) for c in (3, 50, 7)]
    for kind, some in (("feature", jobs), ("channel", channels)):
        def a(at):
            h = double.unet(at, t, context, until=double.hook_point).flatten(2)                 # (B, D, S)
            if kind == "channel":
                return h[range(3), [job.channel for job in some]].mean(1)
            pre = double.sae.linear(h.transpose(1, 2))[range(3), :, [job.feature for job in some]]
            return pre.relu().mean(1)
        step = next(redraw(double, some, x, [500], 0.4, dataclasses.replace(short, spectral_filter=False)))
        for seed in range(3):
            direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            slope = (a(x + 1e-5 * direction) - a(x - 1e-5 * direction)) / 2e-5
            ours = (step.gradient * direction).sum((1, 2, 3))
            assert relative_error(ours, slope) < 1e-3


def test_without_a_pull_it_is_a_plain_ddim_redraw(model, short, jobs, x):
    """s = 0, from t 980 in 49 steps: every time step 20 apart, as a sampler with 50 steps has them."""
    steps = list(redraw(model, jobs, x, grid(980, 49), 0.0, short))
    predict, y = guided(model.unet, model.embed([""])), x
    for step, t in zip(steps, range(980, 0, -20)):
        with torch.no_grad():
            y = model.schedule.step(y, predict(y, t), t, t - 20)
        assert step.timestep == t and torch.equal(step.after, y) and torch.equal(step.pulled, step.noise)


def test_it_pulls(model, jobs, short):
    """A stronger pull ends at a higher activation than a plain redraw, for each feature."""
    config = dataclasses.replace(short, finish_steps=15)
    z = torch.zeros(3, *model.latent_shape)
    left, pulled = (finish.finish(model, jobs, z, dataclasses.replace(config, finish_scale=s))[0] for s in (0.0, 0.4))
    assert (measure(model, pulled, jobs)[0] > 1.5 * measure(model, left, jobs)[0]).all()


def test_the_noise_is_the_finish_own_and_of_the_seed(model, jobs, short):
    """Two time steps of a seed are noised alike, two seeds are not, and the ascent's generator is not used up."""
    z = torch.zeros(3, *model.latent_shape)
    a = noised(model, jobs, z, 600)
    b = noised(model, [dataclasses.replace(job, timestep=5) for job in jobs], z, 600)
    assert torch.equal(a, b) and not torch.equal(a[0], a[1])
    abar = model.schedule.alphas_cumprod[600]
    assert a.std().item() == pytest.approx((1 - abar).sqrt().item(), rel=0.05)
    for taken in (jobs[0].seed, jobs[0].seed ^ ascent.SCORE_SEED):                              # by ascent and scores
        other = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(taken))
        assert torch.corrcoef(torch.stack([a[0].flatten(), other.flatten()]))[0, 1].abs() < 0.2
    moved = noised(model, jobs, z + 1, 600)
    assert torch.allclose(moved - a, abar.sqrt().expand_as(a), atol=1e-6)


@pytest.mark.parametrize("t0, scale", ((600, 0.4), (600, "auto"), ("auto", 0.4)))
def test_a_job_is_the_same_alone_and_among_others(model, short, jobs, t0, scale):
    """To the bit, start and finish; the others have other features, time steps and seeds."""
    config = dataclasses.replace(short, finish_from=t0, finish_scale=scale, prior="guided")
    mine = jobs[1]
    alone, = finish.visualize(model, [mine], config, 4)
    for order in ([mine, *jobs[::2]], [*jobs[::2], mine]):
        among = next(r for r in finish.visualize(model, order, config, 4) if r.job == mine)
        assert torch.equal(alone.latent, among.latent)
        assert torch.equal(alone.finished.latent, among.finished.latent)
        assert alone.finished.scores == among.finished.scores and alone.finished.history == among.finished.history


def test_the_ascent_is_left_as_it_was(model, short, jobs):
    """Byte for byte the result of ascent.visualize; the finished one has scores of its own, beside the start's."""
    both, plain = finish.visualize(model, jobs, short, 3), ascent.visualize(model, jobs, short, 3)
    images = model.decode(torch.stack([r.finished.latent for r in both]))
    off = finish.visualize(model, jobs, dataclasses.replace(short, finish=False), 3)
    for one, other, without, image in zip(both, plain, off, images):
        assert torch.equal(one.latent, other.latent) and torch.equal(one.image, other.image)
        assert one.scores == other.scores and torch.equal(without.latent, other.latent)
        assert without.finished is None and other.finished is None
        last = one.finished
        assert last.job == one.job and last.scores.keys() == one.scores.keys() | {"finish_from", "finish_scale"}
        assert last.scores["activation_start"] == one.scores["activation_start"]
        assert (last.scores["finish_from"], last.scores["finish_scale"]) == (600, 0.4)
        own, everything, heat = measure(model, last.latent[None], [last.job])
        assert last.activation == last.scores["activation"] == pytest.approx(own.item(), abs=1e-5)
        assert last.scores["rank"] == 1 + int((everything > own).sum())
        assert torch.allclose(last.heat, heat[0], atol=1e-5)
        assert torch.equal(last.image, image)
        assert len(last.history["activation"]) == short.finish_steps
        assert last.verdict in ("excited", "raised", "weak", "fragile")


def test_progress_counts_every_step(model, short, jobs):
    seen = []
    finish.visualize(model, jobs, short, 3, seen.append)
    assert [s.index for s in seen] == [0, 1, 2, 0, 1, 2, 3] and isinstance(seen[-1], finish.Step)


def test_auto_takes_the_smallest_strength_that_is_enough(model, short, jobs):
    """Each row its own: one content with the first, one that needs a later one, one that no strength contents."""
    z, config = torch.zeros(3, *model.latent_shape), dataclasses.replace(short, finish_scale="auto")
    runs = [finish.finish(model, jobs, z, dataclasses.replace(config, finish_scale=s)) for s in STRENGTHS]
    again = torch.stack([measure(model, model.encode(model.decode(latent)), jobs)[0] for latent, *_ in runs])   # (4, B)
    assert again[2, 1] > again[:2, 1].max()                     # else the middle row asks nothing
    enough = torch.stack([again[0, 0] - 1e-4, (again[2, 1] + again[:2, 1].max()) / 2, again[:, 2].max() + 1])
    latent, t0, scale, history = finish.finish(model, jobs, z, config, enough)
    pick = [0, 2, int(again[:, 2].argmax())]
    assert scale.tolist() == pytest.approx([STRENGTHS[n] for n in pick]) and t0.tolist() == [600] * 3
    for row, n in enumerate(pick):
        assert torch.equal(latent[row], runs[n][0][row])
        assert [s["activation"][row] for s in history] == [s["activation"][row] for s in runs[n][3]]


def test_auto_takes_the_time_step_with_the_largest_activation(model, short, jobs):
    """After decoding and encoding; each row its own; with both auto, of all time steps and strengths."""
    z = torch.zeros(3, *model.latent_shape)
    for scale in (0.4, "auto"):
        draw = lambda t0, s: finish.finish(model, jobs, z, dataclasses.replace(
            short, finish_from=t0, finish_scale=s, finish_steps=2), enough=torch.zeros(3))
        tried = [(t0, s) for t0 in FINISH_FROM for s in (STRENGTHS if scale == "auto" else [scale])]
        runs = [draw(t0, s) for t0, s in tried]
        again = torch.stack([measure(model, model.encode(model.decode(run[0])), jobs)[0] for run in runs])
        pick = again.argmax(dim=0).tolist()
        latent, t0, scales, history = draw("auto", scale)
        assert t0.tolist() == [tried[n][0] for n in pick]
        assert scales.tolist() == pytest.approx([tried[n][1] for n in pick])
        for i, n in enumerate(pick):
            assert torch.equal(latent[i], runs[n][0][i])
            assert [s["activation"][i] for s in history] == [s["activation"][i] for s in runs[n][3]]
    assert len(set(pick)) > 1                                   # else all rows might have taken one another's


def test_auto_stops_as_soon_as_all_have_enough(model, short, jobs):
    seen, config = [], dataclasses.replace(short, finish_scale="auto")
    finish.finish(model, jobs, torch.zeros(3, *model.latent_shape), config, torch.zeros(3), seen.append)
    assert len(seen) == short.finish_steps


def test_auto_asks_for_a_share_of_the_ascents_own_activation(model, short, jobs, monkeypatch):
    results, asked = ascent.visualize(model, jobs, short, 3), []
    real = finish.finish
    monkeypatch.setattr(finish, "finish", lambda *given: asked.append(given[4]) or real(*given))
    finish_results(model, results, short)
    assert asked[0].tolist() == pytest.approx([0.75 * r.scores["activation_reencoded"] for r in results])


def silent(model, feature):
    """The model with a feature that is 0 at every position: its bias is far below."""
    keep = model.sae.encoder.bias[feature].item()
    model.sae.encoder.bias[feature] = -100.0
    return keep


@pytest.mark.parametrize("rule", (True, False))
def test_a_silent_feature_is_pulled_by_what_stands_before_its_relu(model, short, jobs, x, rule):
    """Or, with the rule off, not at all: no division by a gradient of 0; the other rows do not notice."""
    plain = next(redraw(model, jobs, x, [600], 0.4, short))
    keep = silent(model, jobs[1].feature)
    try:
        step = next(redraw(model, jobs, x, [600], 0.4, dataclasses.replace(short, silent_gradient=rule)))
        leaf = x.clone().requires_grad_(True)
        hook = model.unet(leaf, torch.full((3,), 600), model.embed([""]).expand(3, -1, -1), until=model.hook_point)
        before_relu, = torch.autograd.grad(readout(model, hook, jobs)[1].mean(), leaf)
    finally:
        model.sae.encoder.bias[jobs[1].feature] = keep
    assert step.silent.tolist() == [False, True, False] and step.activation[1] == 0 and step.alive.all()
    if rule:
        assert relative_error(step.gradient[1], before_relu[1]) < 1e-4
        assert not torch.equal(step.pulled[1], step.noise[1])
    else:
        assert (step.gradient[1] == 0).all() and torch.equal(step.pulled[1], step.noise[1])
    assert torch.equal(step.after[::2], plain.after[::2])


def test_a_row_that_is_not_finite_stays_where_it_was(model, short, jobs, x):
    x[1, 0, 0, 0] = float("nan")
    steps = course(model, jobs, x, short)
    assert steps[-1].alive.tolist() == [True, False, True]
    assert torch.equal(steps[-1].after[1].nan_to_num(7.0), x[1].nan_to_num(7.0))
    assert steps[-1].after[::2].isfinite().all()


def test_guided_sampling_is_the_same_from_the_top(model, short, jobs, x):
    """From pure noise at t 999. It depends on target and seed alone, so that time steps share it."""
    config = dataclasses.replace(short, prior="guided")
    _, z = finish.start(model, jobs, config)
    last = list(redraw(model, jobs, x, [999, 749, 500, 250], 0.4, config))[-1]                  # x: as start() draws it
    assert torch.equal(z, last.after) and torch.equal(z, guide(model, jobs, x, config))
    with torch.no_grad():
        by_itself = list(ddim(model.schedule, guided(model.unet, model.embed([""])), x, 4))[-1][1]
    assert (z - by_itself).abs().max() > 0.1
    priors = {}
    finish.start(model, jobs, config, priors)
    assert priors.keys() == {(job.target, job.seed) for job in jobs}
    auto = guide(model, jobs, x, dataclasses.replace(config, finish_scale="auto"))
    assert torch.equal(auto, guide(model, jobs, x, dataclasses.replace(config, finish_scale=finish.GUIDED_SCALE)))
    with pytest.raises(ValueError, match="finish.start"):
        ascent.start(model, jobs, config)


def test_only_the_latent_gets_a_gradient(model, short, jobs, x):
    course(model, jobs, x, short)
    for net in (model.unet, model.sae):
        assert all(not p.requires_grad and p.grad is None for p in net.parameters())
