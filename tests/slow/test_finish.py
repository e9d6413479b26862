"""The finish on the trained toy: it redraws while the feature pulls; rows stay apart, and nothing else is changed."""
import pytest
import torch

import finish
from ascent import activation, readout
from config import Job, configure
from finish import grid, guide, look, noised, redraw, rms
from regularizers import spectral_filter
from schedule import ddim, guided
from tests.linear import change
from tests.seeded import randn, relative_error
from visualize import SCORE_SEED, measure, run, start
from weights.load import load


@pytest.fixture(scope="module")
def model():
    return load("weights/toy")


@pytest.fixture(scope="module")
def short(model):
    """Few steps, from noise, a fixed pull."""
    return configure(model.settings, num_steps=3, prior="noise", prior_steps=4, finish_from=600, finish_scale=0.4,
                     finish_steps=4)


@pytest.fixture(scope="module")
def jobs():
    """Of different features and seeds."""
    return [Job("feature", f, 600, s) for f, s in ((24, 2), (13, 1), (4, 3))]


@pytest.fixture
def x(model, jobs):
    """Noisy latents that differ from row to row."""
    return torch.stack([randn(*model.latent_shape, seed=job.seed) for job in jobs])


def course(model, jobs, x, config):
    return list(redraw(model, jobs, x, grid(config.finish_from, config.finish_steps), config))


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
    double = load("weights/toy", dtype=torch.float64)
    double.sae.double()
    x, t, context = x.double(), torch.full((3,), 500), double.embed([""]).expand(3, -1, -1)
    channels = [Job("channel", c, 600) for c in (3, 50, 7)]
    for kind, some in (("feature", jobs), ("channel", channels)):
        def a(at):
            h = double.unet(at, t, context, until=double.hook_point).flatten(2)                 # (B, D, S)
            if kind == "channel":
                return h[range(3), [job.target for job in some]].mean(1)
            pre = double.sae.linear(h.transpose(1, 2))[range(3), :, [job.target for job in some]]
            return pre.relu().mean(1)
        step = next(redraw(double, some, x, [500], change(short, spectral_filter=False)))
        for seed in range(3):
            direction = randn(*x.shape, seed=seed).double()
            slope = (a(x + 1e-5 * direction) - a(x - 1e-5 * direction)) / 2e-5
            ours = (step.gradient * direction).sum((1, 2, 3))
            assert relative_error(ours, slope) < 1e-3


def test_without_a_pull_it_is_a_plain_ddim_redraw(model, short, jobs, x):
    """s = 0, from t 980 in 49 steps: every time step 20 apart, as a sampler with 50 steps has them."""
    steps = list(redraw(model, jobs, x, grid(980, 49), change(short, finish_scale=0.0)))
    predict, y = guided(model.unet, model.embed([""])), x
    for step, t in zip(steps, range(980, 0, -20)):
        with torch.no_grad():
            y = model.schedule.step(y, predict(y, t), t, t - 20)
        assert step.timestep == t and torch.equal(step.after, y) and torch.equal(step.pulled, step.noise)


def test_it_pulls(model, jobs, short):
    """A stronger pull ends at a higher activation than a plain redraw, for each feature."""
    z, made = torch.zeros(3, *model.latent_shape), []
    for scale in (0.0, 0.4):
        config = change(short, finish_steps=15, finish_scale=scale)
        (_, last, _), = finish.finish(model, jobs, z, config, lambda step: None)
        made.append(measure(model, last, jobs, config)[0])
    assert (made[1] > 1.5 * made[0]).all()


def test_the_noise_is_of_the_finish_and_of_the_seed(model, jobs, short):
    """Two time steps of a seed are noised alike, two seeds are not, and the ascent's generator is not used up."""
    z = torch.zeros(3, *model.latent_shape)
    a = noised(model, jobs, z, 600)
    b = noised(model, [change(job, timestep=5) for job in jobs], z, 600)
    assert torch.equal(a, b) and not torch.equal(a[0], a[1])
    abar = model.schedule.alphas_cumprod[600]
    assert a.std().item() == pytest.approx((1 - abar).sqrt().item(), rel=0.05)
    for taken in (jobs[0].seed, jobs[0].seed ^ SCORE_SEED):                              # by ascent and scores
        other = randn(*model.latent_shape, seed=taken)
        assert torch.corrcoef(torch.stack([a[0].flatten(), other.flatten()]))[0, 1].abs() < 0.2
    moved = noised(model, jobs, z + 1, 600)
    assert torch.allclose(moved - a, abar.sqrt().expand_as(a), atol=1e-6)


def test_the_ascent_is_left_as_it_was(model, short, jobs):
    """Byte for byte the result without a finish."""
    with_it, without = run(model, jobs, short), run(model, jobs, change(short, finish=False))
    for one, plain in zip(with_it, without):
        assert torch.equal(one.latent, plain.latent) and torch.equal(one.image, plain.image)
        assert one.scores == plain.scores and plain.finished is None
        assert one.finished.scores.keys() - one.scores.keys() == {"finish_from", "finish_scale", "reencoded_from_600"}
        assert one.finished.verdict in ("excited", "raised", "weak", "fragile")


def test_auto_takes_the_time_step_with_the_largest_activation(model, short, jobs):
    """After decoding and encoding; each row its own."""
    config = change(short, finish_from="auto", finish_steps=2)
    results = run(model, jobs, config)
    z = torch.stack([r.latent for r in results])
    made = finish.finish(model, jobs, z, config, lambda step: step.activation)
    again = torch.stack([measure(model, model.encode(model.decode(x)), jobs, config)[0] for _, x, _ in made])
    for i, (r, k) in enumerate(zip(results, again.argmax(dim=0).tolist())):
        last = r.finished
        assert last.scores["finish_from"] == (600, 800, 900)[k] and torch.equal(last.latent, made[k][1][i])
        assert last.history["activation"] == [a[i].item() for a in made[k][2]]
        assert [last.scores[f"reencoded_from_{t0}"] for t0 in (600, 800, 900)] == pytest.approx(again[:, i].tolist())


def test_guided_sampling_is_the_same_from_the_top(model, short, jobs, x):
    """From pure noise at t 999. It depends on target and seed alone, so that time steps share it."""
    config = change(short, prior="guided")
    _, z = start(model, [change(job, timestep=5) for job in jobs], config)
    last = list(redraw(model, jobs, x, [999, 749, 500, 250], config))[-1]                       # x: as start() draws it
    assert torch.equal(z, last.after) and torch.equal(z, guide(model, jobs, x, config))
    with torch.no_grad():
        by_itself = list(ddim(model.schedule, guided(model.unet, model.embed([""])), x, 4))[-1][1]
    assert (z - by_itself).abs().max() > 0.1


def test_only_the_latent_gets_a_gradient(model, short, jobs, x):
    course(model, jobs, x, short)
    for net in (model.unet, model.sae):
        assert all(not p.requires_grad and p.grad is None for p in net.parameters())
