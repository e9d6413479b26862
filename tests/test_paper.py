"""The method on a linear stand-in (linear.py): gradients, draws and pulls are known on paper, each piece alone."""
import math
import weakref

import pytest
import torch

import finish
import regularizers as reg
from ascent import ascend, draw, gradient_of
from config import Config, Job
from steering import directions, sample, steered_prior
from tests.linear import BARE, D, EDGE, JOBS, Linear, begin, change, close, generator, roots
from tests.seeded import randn
from visualize import start

N = 4 * EDGE * EDGE                                             # numbers in a latent


@pytest.fixture
def model():
    return Linear()


@pytest.fixture
def numb(model):
    """The model, all of whose features are always 1: nothing but penalties has a gradient."""
    model.sae.encoder.weight.zero_()
    model.sae.encoder.bias.fill_(1.0)
    return model


def first(model, jobs=JOBS, config=BARE, z=None):
    """The first step of an ascent, from noise or from the latents z."""
    return next(ascend(model, jobs, config, begin(jobs, z)))


# --- the ascent's gradient --------------------------------------------------------------------------------------------

def test_the_gradient_of_a_feature(model):
    """-sqrt(abar_t) A^T W_enc[f] / S: each row with its feature and time step; activation by the definition."""
    step = first(model)
    for i, job in enumerate(JOBS):
        signal, _ = roots(model, job.timestep)
        assert close(step.gradient[i], -signal * model.slope(job.target), 1e-7)
        assert close(step.activation[i], model.values(step.noised[i], job.timestep, job.target).mean())
        assert torch.equal(step.gradient[i], step.filtered[i]) and torch.equal(step.gradient[i], step.smoothed[i])
    assert not step.silent.any() and step.alive.all() and not step.repeats.any()


def test_the_gradient_of_a_channel_and_of_a_direction(model):
    """-sqrt(abar_t) A^T w / S with w a unit vector or the vector itself, without a relu: also where it is negative."""
    model.directions = {"a": torch.tensor([0.5, -2.0, 1.0])}
    for kind, target, w in (("channel", 1, torch.eye(D)[1]), ("direction", "a", model.directions["a"])):
        rise = model.unet.hook.weight.T @ w
        step = first(model, [Job(kind, target, 300)], z=-rise.reshape(1, 4, 1, 1).expand(1, 4, EDGE, EDGE) * 3)
        assert step.activation < 0 and not step.silent.any()
        assert close(step.activation, torch.einsum("d,bdyx->byx", w, step.hook).mean((1, 2)))
        expected = -roots(model, 300)[0] * rise / EDGE ** 2
        assert close(step.gradient[0], expected[:, None, None].expand(model.latent_shape), 1e-7)


def test_the_prompt_is_seen_by_ascent_and_finish(model):
    """The stand-in's text is its length: h is higher by 4 at every pixel."""
    z, config = randn(2, *model.latent_shape, seed=8), change(prompt="four")
    climb, pull = first(model, config=config, z=z), next(finish.redraw(model, JOBS, z, [600], config))
    for i, job in enumerate(JOBS):
        assert close(climb.activation[i], model.values(climb.noised[i], job.timestep, job.target, 4.0).mean(), 1e-4)
        assert close(pull.activation[i], model.values(pull.before[i], 600, job.target, 4.0).mean(), 1e-4)


def test_the_latent_moves_uphill_by_the_learning_rate(model):
    """A gradient that stays the same moves every number by the learning rate at every step; AdamW remembers it."""
    steps = list(ascend(model, JOBS, change(num_steps=4), begin(JOBS)))
    for step in steps:
        moved = step.after - step.before
        for i, job in enumerate(JOBS):
            assert close(moved[i], 0.05 * model.slope(job.target).sign())
    assert all(torch.equal(a.after, b.before) for a, b in zip(steps, steps[1:]))


def test_the_graph_of_a_step_is_gone_before_the_next_one(model):
    """Two of them at once would take twice the memory: in float16 a graph outlives its gradient."""
    alive, outputs = [], []

    def look(module, args, h):
        alive.append([ref() is not None for ref in outputs])
        outputs.append(weakref.ref(h))

    model.unet.hook.register_forward_hook(look)
    list(ascend(model, JOBS, change(diverse=0.1), begin(JOBS)))
    list(finish.redraw(model, JOBS, begin(JOBS)[1], [600, 400, 200], BARE))
    assert [len(seen) for seen in alive] == [0, 1, 2, 3, 4, 5] and not any(map(any, alive))


# --- each penalty alone -----------------------------------------------------------------------------------------------

def alone(model, z, config):
    """The first step from latents z (4, 16, 16), with the usual moves, which penalties must not feel."""
    config = change(config, jitter_max=1, rotate_max=5.0, scale_max=1.1)
    return first(model, JOBS[:1], config, z[None])


@pytest.mark.parametrize("threshold", (3.0, 1.0))
def test_the_range_penalty_alone(numb, threshold):
    """2 w (|z| - threshold) sign(z) / N where |z| is beyond it: what is too high falls, what is too low rises."""
    z = torch.zeros(numb.latent_shape)
    z[0, 0, 0], z[1, 2, 3], z[2, 5, 5] = 5.0, -4.0, 0.9
    step = alone(numb, z, change(range_weight=0.5, range_threshold=threshold))
    expected = torch.zeros_like(z)
    expected[0, 0, 0], expected[1, 2, 3] = (5 - threshold) / N, -(4 - threshold) / N
    assert close(step.gradient[0], expected, 1e-8)
    assert close(step.penalties["range"], 0.5 * ((5 - threshold) ** 2 + (4 - threshold) ** 2) / N, 1e-8)
    assert close((step.after - step.before)[0], -0.05 * expected.sign())
    assert not step.penalties["moment"].any() and not step.penalties["total_variation"].any()


@pytest.mark.parametrize("mean, deviation", [(1.0, 2.0), (-1.0, 2.0), (1.0, 0.5), (-1.0, 0.5)])
def test_the_moment_penalty_alone(numb, mean, deviation):
    """w (sign(m) / N + sign(s - 1) (z - m) / ((N - 1) s)): mean and deviation both go where they should, to 0 and 1."""
    z = randn(*numb.latent_shape, seed=3)
    z = (z - z.mean()) / z.std() * deviation + mean
    step = alone(numb, z, change(moment_weight=0.5))
    expected = math.copysign(1, mean) / N + math.copysign(1, deviation - 1) * (z - mean) / ((N - 1) * deviation)
    assert close(step.gradient[0], 0.5 * expected, 1e-8)
    assert close(step.penalties["moment"], 0.5 * (abs(mean) + abs(deviation - 1)))
    assert not step.penalties["range"].any() and not step.penalties["total_variation"].any()
    *_, last = ascend(numb, JOBS[:1], change(moment_weight=0.5, num_steps=8), begin(JOBS[:1], z[None]))
    assert last.after.mean().abs() < abs(mean) - 0.01 and (last.after.std() - 1).abs() < abs(deviation - 1) - 0.01


def test_total_variation_alone(numb):
    """A wall from 0 to 1 in one channel: w unit / (C H (W - 1)) up on its low side, down on its high side; a latent of
    16 has a unit of a quarter."""
    z = torch.zeros(numb.latent_shape)
    z[0, :, 8:] = 1.0
    share = 0.5 * 0.25 / (4 * EDGE * (EDGE - 1))
    expected = torch.zeros_like(z)
    expected[0, :, 7], expected[0, :, 8] = -share, share
    for wall, slope in ((z, expected), (z.mT, expected.mT)):
        step = alone(numb, wall, change(total_variation_weight=0.5))
        assert close(step.gradient[0], slope, 1e-8)
        assert close(step.penalties["total_variation"], 0.5 * 0.25 / 4 / (EDGE - 1), 1e-8)
        assert (step.after[0, 0] - wall[0]).abs().max() == pytest.approx(0.05, rel=1e-3)
    assert not step.penalties["range"].any() and not step.penalties["moment"].any()


def test_the_loss_is_the_sum_of_its_parts(model):
    z = 3 * randn(2, *model.latent_shape, seed=4)
    gradient = lambda **weights: first(model, config=change(**weights), z=z).gradient
    climb, parts = gradient(), [dict(total_variation_weight=0.7), dict(range_weight=0.5), dict(moment_weight=0.3)]
    together = gradient(**{k: v for part in parts for k, v in part.items()})
    assert close(together, climb + sum(gradient(**part) - climb for part in parts), 1e-7)


# --- a step's random numbers ------------------------------------------------------------------------------------------

def drawn(config, shape=(1, 2, 64), n=3000):
    """n draws of one generator: down, right, angle, zoom (n,) each, noise (n, ...)."""
    g = generator(11)
    shift, angle, zoom, noise = (torch.stack(v) for v in zip(*(draw(g, shape, config) for _ in range(n))))
    return shift[:, 0], shift[:, 1], angle, zoom, noise


def test_the_ranges_of_a_draw():
    """Whole rolls -2..2 with equal shares, turns over all of -5..5, zooms over all of 1..1.1, normal noise."""
    down, right, angle, zoom, noise = drawn(Config(jitter_max=2, rotate_max=5.0, scale_max=1.1))
    for shift in (down, right):
        counts = torch.stack([(shift == k).sum() for k in range(-2, 3)])
        assert counts.sum() == 3000 and (counts - 600).abs().max() < 110                        # five deviations
    for values, low, high in ((angle, -5.0, 5.0), (zoom, 1.0, 1.1)):
        assert low <= values.min() < low + (high - low) / 100 and high - (high - low) / 100 < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=(high - low) / 30)
    assert noise.mean().abs() < 0.01 and noise.std() == pytest.approx(1, abs=0.01)
    assert set(drawn(Config(jitter_max=1), (4, EDGE, EDGE), 60)[0].tolist()) == {-0.25, 0.0, 0.25}    # of 64: a pixel
    reduced = drawn(Config(scale_max=0.5), n=300)[3]
    assert 0.5 <= reduced.min() < 0.51 and reduced.max() <= 1


def test_the_numbers_of_a_draw_have_nothing_to_do_with_one_another():
    """Nor with those of the draw before: correlations of 3,000 draws, whose own deviation is 0.018."""
    down, right, angle, zoom, noise = drawn(Config())
    numbers = torch.stack([down, right, angle, zoom, noise[:, 0, 0, 0], noise[:, 0, 0, 1], noise[:, 0, 1, 63]])
    together = torch.corrcoef(torch.cat([numbers[:, 1:], numbers[:, :-1]]))
    assert (together - torch.eye(len(together))).abs().max() < 0.1


def test_settings_are_compared_at_equal_noise():
    """What a draw is used for does not change what comes after it."""
    still, moving = drawn(BARE, n=5), drawn(Config(jitter_max=3, rotate_max=30.0, scale_max=1.5), n=5)
    assert torch.equal(still[4], moving[4]) and not torch.equal(still[4][0], still[4][1])
    assert not torch.stack(still[:3]).any() and (still[3] == 1).all()


def test_every_step_moves_and_noises_anew(model):
    """The job's generator gives the start, then a draw a step; the moved latent is noised, not the latent."""
    config = change(jitter_max=3, rotate_max=5.0, scale_max=1.1)
    steps, eps = list(ascend(model, JOBS, config, start(model, JOBS, config))), []
    for i, job in enumerate(JOBS):
        g = generator(job.seed)
        assert torch.equal(steps[0].before[i], torch.randn(model.latent_shape, generator=g))
        for step in steps:
            shift, angle, zoom, noise = draw(g, model.latent_shape, config)
            moved = reg.transform(step.before[i:i + 1], shift[None], angle[None], zoom[None])[0]
            assert close(step.transformed[i], moved)
            signal, spread = roots(model, job.timestep)
            assert close(step.noised[i], signal * moved + spread * noise)
            eps.append((step.noised[i] - signal * step.transformed[i]) / spread)
    pairs = torch.corrcoef(torch.stack([e.flatten() for e in eps]))
    assert (pairs - torch.eye(len(eps))).abs().max() < 0.2      # 1,024 numbers: a deviation of 0.03


def test_without_noise_the_network_sees_the_moved_latent(model):
    step = first(model, config=change(noise=False, jitter_max=3))
    assert torch.equal(step.noised, step.transformed) and not torch.equal(step.transformed, step.before)
    assert close(step.gradient.mean((2, 3))[0], -model.slope(2)[:, 0, 0], 1e-7)                # no sqrt(abar) either


# --- filter, then blur ------------------------------------------------------------------------------------------------

def test_the_gradient_is_filtered_and_then_blurred(model):
    """sigma runs from start to end, a quarter as long on a latent a quarter as wide, with the taps asked for."""
    config = change(spectral_filter=True, gradient_smoothing_sigma_start=6.0, gradient_smoothing_sigma_end=2.0,
                    gradient_smoothing_kernel_size=5, range_weight=0.5)
    z = 3 * randn(2, *model.latent_shape, seed=4)               # so that the gradient differs from pixel to pixel
    steps = list(ascend(model, JOBS, config, begin(JOBS, z)))
    for step, sigma in zip(steps, (1.5, 1.0, 0.5)):
        filtered = reg.spectral_filter(step.gradient)
        assert close(step.filtered, filtered, 1e-7) and close(step.smoothed, reg.blur(filtered, sigma, 5), 1e-7)
        blurred = reg.blur(step.gradient, sigma, 5)
        for wrong in (reg.spectral_filter(blurred), filtered, blurred, step.gradient):
            assert (step.smoothed - wrong).abs().max() > 0.05 * step.smoothed.abs().max()
    g = steps[0].smoothed
    assert close(steps[0].after, z - 0.05 * g / (g.abs() + 1e-8))                               # and this AdamW gets


# --- silence ----------------------------------------------------------------------------------------------------------

def test_a_silent_feature_is_climbed_by_its_mean(model):
    """Below its relu everywhere: the gradient is that of the mean over all pixels, not of the highest; or 0 without."""
    model.sae.encoder.bias[2] = -100.0
    step = first(model)
    assert step.silent.tolist() == [True, False] and step.activation[0] == 0 < step.activation[1]
    assert close(step.gradient[0], -roots(model, 300)[0] * model.slope(2), 1e-7)
    off = first(model, config=change(silent_gradient=False))
    assert off.silent.tolist() == [True, False] and not off.gradient[0].any()
    assert torch.equal(off.gradient[1], step.gradient[1])


def test_a_feature_that_is_active_at_one_pixel_is_not_silent(model):
    """There alone it has a gradient."""
    z = torch.zeros(1, *model.latent_shape)
    z[0, :, 3, 4] = 100 * model.slope(2)[:, 0, 0] * EDGE ** 2
    model.sae.encoder.bias[2] = -50.0
    step = first(model, JOBS[:1], z=z)
    expected = torch.zeros_like(z)
    expected[0, :, 3, 4] = -roots(model, 300)[0] * model.slope(2)[:, 0, 0]
    assert step.activation > 0 and not step.silent.any() and close(step.gradient, expected, 1e-7)


# --- a row that is not finite -----------------------------------------------------------------------------------------

def test_a_row_that_is_not_finite_stays_and_the_others_go_on(model):
    z = randn(2, *model.latent_shape, seed=9)
    healthy = list(ascend(model, JOBS, BARE, begin(JOBS, z)))
    broken = z.clone()
    broken[0, 0, 0, 0] = float("inf")
    steps = list(ascend(model, JOBS, BARE, begin(JOBS, broken)))
    assert all(step.alive.tolist() == [False, True] for step in steps)
    assert torch.equal(steps[-1].after[0], broken[0]) and torch.equal(steps[-1].after[1], healthy[-1].after[1])


def test_a_row_whose_update_is_not_finite_stays(numb):
    """Loss and gradient are sound, the step is not: numbers of 1e17 are to be shrunk by a factor of -1e30."""
    z = 1e17 * randn(2, *numb.latent_shape, seed=9)
    step = first(numb, config=change(learning_rate=1e15, weight_decay=1e15), z=z)
    assert step.gradient.isfinite().all() and not step.alive.any() and torch.equal(step.after, z)


# --- float16 ----------------------------------------------------------------------------------------------------------

def test_float16_gives_the_gradients_of_float32(model):
    """Of a feature so weak that its gradient of 4e-7 would lose its digits there: the loss scale keeps them."""
    half, x = Linear(dtype=torch.float16), randn(2, *model.latent_shape, seed=8)
    for one in (model, half):
        one.sae.encoder.weight.mul_(1e-4)
        one.sae.encoder.bias.fill_(1.0)
    for step, same in ((first(half, z=x), first(model, z=x)),
                       (next(finish.redraw(half, JOBS, x, [600], BARE)),
                        next(finish.redraw(model, JOBS, x, [600], BARE)))):
        assert step.hook.dtype == torch.float16 and step.gradient.dtype == torch.float32
        assert torch.allclose(step.gradient, same.gradient, rtol=2e-3) and not step.repeats.any()
        assert torch.allclose(step.activation, same.activation, rtol=2e-3) and step.alive.all()


def test_a_gradient_too_large_for_float16_is_taken_again_with_half_the_scale():
    """2^12 |A^T W_enc[f] / S| and what flows before it must stay below 65,520. The network runs once a step; the row
    beside it repeats nothing and is the same as alone; the scale that was found is kept."""
    half, runs = Linear(dtype=torch.float16), []
    half.unet.hook.register_forward_hook(lambda *_: runs.append(1))
    half.sae.encoder.weight[2] *= 2e5
    half.sae.encoder.bias[2] = 1e7                              # active at every pixel
    w = half.sae.encoder.weight[2]
    largest = max(w.abs().max(), (half.unet.hook.weight.float().T @ w).abs().max()).item() / EDGE ** 2
    halvings = math.ceil(math.log2(2 ** 12 * largest / 65520))
    steps = list(ascend(half, JOBS, change(num_steps=2), begin(JOBS)))
    assert halvings > 2 and [s.repeats.tolist() for s in steps] == [[halvings, 0], [0, 0]] and len(runs) == 2
    signal = roots(half, 300)[0]
    assert torch.allclose(steps[0].gradient[0], -signal * half.slope(2), rtol=5e-3) and steps[1].alive.all()
    alone = next(ascend(half, JOBS[1:], BARE, begin(JOBS[1:])))
    assert torch.equal(alone.gradient[0], steps[0].gradient[1])
    x = begin(JOBS)[1]
    assert [s.repeats.tolist() for s in finish.redraw(half, JOBS, x, [600, 300], BARE)] == [[halvings, 0], [0, 0]]


def test_a_row_whose_gradient_never_becomes_finite_is_left_at_scale_1():
    leaf = torch.ones(2, 4, 2, 2, requires_grad=True)
    loss = (leaf * torch.tensor([torch.inf, 1.0])[:, None, None, None]).sum((1, 2, 3))
    g, scale, repeats = gradient_of(loss, leaf, torch.tensor([8.0, 8.0]))
    assert (scale.tolist(), repeats.tolist()) == ([1.0, 8.0], [3.0, 0.0]) and g[0].isinf().all() and (g[1] == 1).all()
    assert gradient_of(leaf.sum((1, 2, 3)), leaf)[1] is None    # other precisions need no scale


# --- a card -----------------------------------------------------------------------------------------------------------

def test_no_step_waits_for_the_device():
    """A meta tensor is a card without numbers: to read one, by item(), tolist(), bool() or a copy, raises an error."""
    model = Linear("meta")
    config = Config(num_steps=2, gradient_smoothing_sigma_start=2.0)
    x = torch.empty(2, *model.latent_shape, device="meta")
    with pytest.raises(RuntimeError):
        x.isfinite().all().item()
    assert len(list(ascend(model, JOBS, config, (begin(JOBS)[0], x)))) == 2
    assert len(list(finish.redraw(model, JOBS, finish.noised(model, JOBS, x, 600), [600, 300], config))) == 2
    model.capture.strength = lambda kind, target, when: torch.empty(1001, device="meta")
    assert steered_prior(model, JOBS, x, Config(prior_steps=3)).is_meta


# --- the finish -------------------------------------------------------------------------------------------------------

def test_the_finish_follows_its_formula(model):
    """e' = e - s (rms e / rms g) g, g = A^T W_enc[f] / S; then DDIM's step. Noised to t0 by a generator of its own."""
    z = randn(2, *model.latent_shape, seed=8)
    x = finish.noised(model, JOBS, z, 600)
    seen = list(finish.redraw(model, JOBS, x, finish.grid(600, 3), change(finish_scale=0.8)))
    assert [step.timestep for step in seen] == [600, 400, 200]
    abar = model.schedule.alphas_cumprod
    for i, job in enumerate(JOBS):
        signal, spread = roots(model, 600)
        eps = torch.randn(z[i].shape, generator=generator(0x6F3D91A5 ^ job.seed))
        x, g = signal * z[i] + spread * eps, model.slope(job.target)
        for step, t, t_next in zip(seen, (600, 400, 200), (400, 200, 0)):
            assert close(step.before[i], x, 1e-4) and close(step.gradient[i], g, 1e-7)
            h = torch.einsum("dc,cyx->dyx", model.unet.hook.weight, x) + t / 1000
            e = torch.einsum("cd,dyx->cyx", model.unet.weight, h)
            assert close(step.noise[i], e, 1e-4)
            assert close(step.activation[i], model.values(x, t, job.target).mean(), 1e-4)
            pulled = e - 0.8 * (e.square().mean() / g.square().mean()).sqrt() * g
            assert close(step.pulled[i], pulled, 1e-4)
            x0 = (x - (1 - abar[t]).sqrt() * pulled) / abar[t].sqrt()
            x = abar[t_next].sqrt() * x0 + (1 - abar[t_next]).sqrt() * pulled
            assert close(step.after[i], x, 1e-3)


def test_the_finish_filters_its_pull(model):
    """Of a feature that is active at some pixels; without the setting the gradient itself pulls."""
    model.sae.encoder.bias.zero_()
    x = randn(2, *model.latent_shape, seed=8)
    on, off = (next(finish.redraw(model, JOBS, x, [600], change(finish_scale=0.4, spectral_filter=f)))
               for f in (True, False))
    assert close(on.filtered, reg.spectral_filter(on.gradient), 1e-7) and torch.equal(off.filtered, off.gradient)
    assert (on.filtered - on.gradient).abs().max() > 0.1 * on.gradient.abs().max()
    assert torch.allclose(finish.rms(on.pulled - on.noise), 0.4 * finish.rms(on.noise), rtol=1e-4)


def test_silence_and_trouble_in_the_finish(model):
    """A silent row is pulled by the mean before its relu, or not at all; one that is not finite stays."""
    model.sae.encoder.bias[2] = -100.0
    x = randn(2, *model.latent_shape, seed=8)
    on, off = (next(finish.redraw(model, JOBS, x, [600], change(silent_gradient=s))) for s in (True, False))
    assert on.silent.tolist() == [True, False] and on.activation[0] == 0 and close(on.gradient[0], model.slope(2), 1e-7)
    assert not off.gradient[0].any() and torch.equal(off.pulled[0], off.noise[0]) and off.alive.all()
    x[0, 0, 0, 0] = float("inf")
    *_, last = finish.redraw(model, JOBS, x, [600, 300], BARE)
    assert last.alive.tolist() == [False, True] and last.after[1].isfinite().all() and torch.equal(last.after[0], x[0])


def test_a_guided_start_is_a_finish_from_the_top(model):
    """From noise at t 999 in --prior-steps steps, as hard as --finish-scale says."""
    x, phases = begin(JOBS)[1], []
    config = change(prior="guided", prior_steps=3, finish_scale=0.3)
    *_, last = finish.redraw(model, JOBS, x, [999, 666, 333], config)
    z = start(model, JOBS, config, lambda phase, step: phases.append(phase))[1]
    assert torch.equal(z, last.after) and not torch.equal(z, x) and phases == ["sampling"] * 3


# --- steering ---------------------------------------------------------------------------------------------------------

def by_hand(model, x, push, steps=4):
    """DDIM with h + push(t) at every pixel, worked out here: x (B, 4, 16, 16), push(t) (B, 3) -> the same."""
    for t in model.schedule.timesteps(steps):
        h = torch.einsum("dc,bcyx->bdyx", model.unet.hook.weight, x) + t / 1000 + push(t)[:, :, None, None]
        x = model.schedule.step(x, torch.einsum("cd,bdyx->bcyx", model.unet.weight, h), t, t - 1000 // steps)
    return x


def test_a_direction_is_added_as_strongly_as_the_curve_says(model):
    """h + s_t d, each row with its own curve and direction."""
    noise, s = randn(2, *model.latent_shape, seed=1), randn(2, 1001, seed=2)
    model.capture.strength = lambda kind, target, when: s[[2, 5].index(target)]
    d = directions(model, JOBS)
    assert torch.equal(d, model.sae.W_dec[[2, 5]])
    assert directions(model, [Job("channel", 2), Job("channel", 0)]).tolist() == [[0, 0, 1], [1, 0, 0]]
    model.directions = {"a": torch.ones(D), "b": torch.arange(3.0)}
    assert directions(model, [Job("direction", "b"), Job("direction", "a")]).tolist() == [[0, 1, 2], [1, 1, 1]]
    ours, pndm = (steered_prior(model, JOBS, noise, change(steer_scale=1.0, prior_steps=4, prior_sampler=sampler))
                  for sampler in ("ddim", "pndm"))
    assert close(ours, by_hand(model, noise, lambda t: s[:, t, None] * d), 1e-4)
    assert (ours - by_hand(model, noise, lambda t: 0 * d)).abs().max() > 0.1 and not torch.equal(ours, pndm)


def test_a_steered_start_takes_scale_curve_sampler_and_steps_from_the_settings(model):
    """steer_scale times the strength that steer_steps names, from the noise of the seed; the prompt stays empty."""
    noise, phases = begin(JOBS)[1], []
    rise = torch.tensor([3.0, 6.0])[:, None]                    # target + 1: see linear.py
    for when, times in (("active", 1), ("all", 100)):
        config = change(prior="steer", steer_scale=0.3, steer_steps=when, prior_sampler="ddim", prior_steps=4,
                        prompt="four")
        expected = by_hand(model, noise, lambda t, n=times: 0.3 * n * t / 1000 * rise * model.sae.W_dec[[2, 5]])
        assert close(start(model, JOBS, config, lambda phase, step: phases.append(phase))[1], expected, 1e-4)
    assert phases == ["sampling"] * 8


def test_what_is_seen_while_sampling(model):
    """The hook's output before anything is added; with guidance first that of the empty prompt, from which it leads
    away: e_null + 3 (e_text - e_null), here 3 times the text's 4 at every pixel."""
    noise, seen, push = randn(2, *model.latent_shape, seed=1), {}, torch.ones(1, D)
    context = model.embed(["four"])
    out = sample(model, noise, context, "ddim", 4, 3.0, lambda t: push,
                 lambda _, step: seen.setdefault(step.timestep, step.hook))
    assert list(seen) == [751, 501, 251, 1] and seen[751].shape == (4, D, EDGE, EDGE)
    plain = torch.einsum("dc,bcyx->bdyx", model.unet.hook.weight, noise) + 0.751
    assert close(seen[751], torch.cat([plain, plain + 4]), 1e-4)
    assert close(out, by_hand(model, noise, lambda t: push + 12), 1e-4)
    plain = sample(model, noise, context, "ddim", 4, on_step=lambda _, step: seen.update({step.timestep: step.hook}))
    assert len(seen[1]) == 2 and close(plain, by_hand(model, noise, lambda t: 4 * push), 1e-4)
