"""The method on a linear stand-in (linear.py): gradients, scores and pulls are known on paper, each piece alone."""
import dataclasses
import math

import pytest
import torch

import ascent
import finish
import regularizers as reg
from activity import profile
from ascent import ascend, check_jobs, draw, filled, judge_result, measure, start, stream, visualize
from config import Config, Job
from schedule import ddim, guided
from steering import directions, sample, steered_prior
from tests.linear import D, EDGE, FEATURES, Linear
from tests.seeded import randn

BARE = Config(num_steps=3, prior="noise", jitter_max=0, rotate_max=0.0, scale_max=1.0, spectral_filter=False,
              total_variation_weight=0.0, range_weight=0.0, moment_weight=0.0, weight_decay=0.0,
              finish=False, finish_from=600)
JOBS = [Job(feature=2, timestep=300, seed=1), Job(feature=5, timestep=800, seed=2)]
N = 4 * EDGE * EDGE                                             # numbers in a latent

close = lambda a, b, atol=1e-5: torch.allclose(a, torch.as_tensor(b, dtype=a.dtype).expand_as(a), rtol=1e-4, atol=atol)


@pytest.fixture
def model():
    return Linear()


@pytest.fixture
def numb(model):
    """The model, all of whose features are always 1: nothing but penalties has a gradient."""
    model.sae.encoder.weight.zero_()
    model.sae.encoder.bias.fill_(1.0)
    return model


def change(config=BARE, **settings):
    return dataclasses.replace(config, **settings)


def begin(jobs, z):
    """What start() gives, with latents of our own."""
    return [torch.Generator().manual_seed(job.seed) for job in jobs], z


def roots(model, t):
    """sqrt(abar_t), sqrt(1 - abar_t)."""
    abar = model.schedule.alphas_cumprod[t]
    return abar.sqrt(), (1 - abar).sqrt()


# --- the ascent's gradient -------------------------------------------------------------------------------------------

def test_the_gradient_of_a_feature(model):
    """-sqrt(abar_t) A^T W_enc[f] / S: each row with its own feature and time step; activation by the definition."""
    step = next(ascend(model, JOBS, BARE))
    for i, job in enumerate(JOBS):
        signal, _ = roots(model, job.timestep)
        assert close(step.gradient[i], -signal * model.slope(job.feature), 1e-7)
        assert close(step.activation[i], model.values(step.noised[i], job.timestep, job.feature).mean())
        assert torch.equal(step.gradient[i], step.filtered[i]) and torch.equal(step.gradient[i], step.smoothed[i])
    assert not step.silent.any() and step.alive.all()


def test_the_gradient_of_a_channel(model):
    """-sqrt(abar_t) A[c] / S, without a relu: also where the channel is negative."""
    jobs = [Job(channel=1, timestep=300)]
    step = next(ascend(model, jobs, BARE, begin(jobs, torch.zeros(1, *model.latent_shape) - model.unet.hook.weight[1]
                                                 .reshape(4, 1, 1))))
    assert step.activation < 0 and not step.silent.any() and close(step.activation, step.hook[:, 1].mean())
    rise = roots(model, 300)[0] * model.unet.hook.weight[1] / EDGE ** 2
    assert close(step.gradient[0], -rise[:, None, None].expand(model.latent_shape), 1e-7)


def test_the_latent_moves_uphill_by_the_learning_rate(model):
    """A gradient that stays the same moves every number by the learning rate at every step; AdamW remembers it."""
    steps = list(ascend(model, JOBS, change(num_steps=4)))
    for step in steps:
        moved = step.after - step.before
        for i, job in enumerate(JOBS):
            assert close(moved[i], 0.05 * model.slope(job.feature).sign())
    assert [step.index for step in steps] == [0, 1, 2, 3]
    assert all(torch.equal(a.after, b.before) for a, b in zip(steps, steps[1:]))


def test_weight_decay_shrinks_the_latent(numb):
    z = randn(2, *numb.latent_shape, seed=9)
    step = next(ascend(numb, JOBS, change(weight_decay=0.2), begin(JOBS, z)))
    assert close(step.after, z * (1 - 0.05 * 0.2))


# --- each penalty alone ----------------------------------------------------------------------------------------------

def alone(model, z, config):
    """The first step from latents z (4, 16, 16), with the usual moves, which penalties must not feel."""
    config = change(config, jitter_max=1, rotate_max=5.0, scale_max=1.1)
    return next(ascend(model, JOBS[:1], config, begin(JOBS[:1], z[None])))


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
    moved = torch.zeros_like(z)
    moved[0, 0, 0], moved[1, 2, 3] = -0.05, 0.05
    assert close((step.after - step.before)[0], moved)
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
    z = begin(JOBS, 3 * randn(2, *model.latent_shape, seed=4))[1]
    gradient = lambda **weights: next(ascend(model, JOBS, change(**weights), begin(JOBS, z))).gradient
    climb, parts = gradient(), [dict(total_variation_weight=0.7), dict(range_weight=0.5), dict(moment_weight=0.3)]
    together = gradient(**{k: v for part in parts for k, v in part.items()})
    assert close(together, climb + sum(gradient(**part) - climb for part in parts), 1e-7)


# --- the pixels in place of the latent -------------------------------------------------------------------------------

PIXEL = change(space="pixel")


def on_pixels(slope):
    """A gradient of the latent (4, 16, 16) on p = 2 image - 1, (3, 128, 128), whose block means the encoder takes."""
    return slope[:3].repeat_interleave(8, 1).repeat_interleave(8, 2) / 64 / 2


def test_the_start_is_the_decoded_latent(model):
    """In the encoder's range, from the same noise as the latent's; the generators go on alike."""
    (left, z), (right, p) = start(model, JOBS, BARE), start(model, JOBS, PIXEL)
    assert p.shape == (2, 3, 8 * EDGE, 8 * EDGE) and torch.equal(p, 2 * model.decode(z) - 1)
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(left, right))


def test_the_gradient_of_the_pixels(model):
    """Through the encoder, for each row with its own feature and time step; the UNet sees what the encoder makes."""
    step = next(ascend(model, JOBS, PIXEL))
    for i, job in enumerate(JOBS):
        signal, _ = roots(model, job.timestep)
        assert close(step.gradient[i], on_pixels(-signal * model.slope(job.feature)), 1e-9)
        assert close(step.activation[i], model.values(step.noised[i], job.timestep, job.feature).mean())
    assert close(step.transformed, model.encode(step.before / 2 + 0.5)) and step.alive.all()


@pytest.mark.parametrize("weights", [dict(total_variation_weight=0.5), dict(range_weight=0.5, range_threshold=0.5),
                                     dict(moment_weight=0.5)])
def test_penalties_are_of_the_encoded_pixels(numb, weights):
    """The same as of that latent, and their gradient goes on to the pixels."""
    p = randn(1, 3, 8 * EDGE, 8 * EDGE, seed=3)
    step = next(ascend(numb, JOBS[:1], change(PIXEL, **weights), begin(JOBS[:1], p)))
    of_z = next(ascend(numb, JOBS[:1], change(**weights), begin(JOBS[:1], numb.encode(p / 2 + 0.5))))
    assert all(torch.equal(step.penalties[name], of_z.penalties[name]) for name in step.penalties)
    assert sum(step.penalties.values()) > 0 and close(step.gradient[0], on_pixels(of_z.gradient[0]), 1e-9)


def test_filter_and_blur_act_on_the_gradient_of_the_pixels(numb):
    """The blur is as long on the picture as it was: 8 times as many pixels as latent pixels."""
    config = change(PIXEL, spectral_filter=True, gradient_smoothing_sigma_start=2.0, gradient_smoothing_sigma_end=2.0,
                    gradient_smoothing_kernel_size=25, range_weight=0.5, range_threshold=0.1)
    p = randn(1, 3, 8 * EDGE, 8 * EDGE, seed=3)
    step = next(ascend(numb, JOBS[:1], config, begin(JOBS[:1], p)))
    filtered = reg.spectral_filter(step.gradient)
    assert filtered.abs().max() > 0 and close(step.filtered, filtered, 1e-9)
    assert close(step.smoothed, reg.blur(filtered, 2.0 * 128 / 64, 25), 1e-9)                      # 128 pixels of 64


def test_pixels_decay_to_grey(numb):
    p = randn(2, 3, 8 * EDGE, 8 * EDGE, seed=3).clamp(-1, 1)
    step = next(ascend(numb, JOBS, change(PIXEL, weight_decay=0.2), begin(JOBS, p)))
    assert close(step.after, p * (1 - 0.05 * 0.2))


def test_pixels_stay_a_picture(model):
    p = randn(2, 3, 8 * EDGE, 8 * EDGE, seed=3).clamp(-1, 1)
    *_, last = ascend(model, JOBS, change(PIXEL, num_steps=50), begin(JOBS, p))
    up = torch.stack([on_pixels(model.slope(job.feature)) for job in JOBS]).sign()
    assert torch.equal(last.after, up)                          # black and white after 50 steps of 0.05, never beyond


def test_a_result_of_pixels_is_their_picture_and_what_is_encoded_of_it(model):
    """Nothing of it is decoded once more, and encoded again it is the same; so are the pictures of its course."""
    result, = stream(model, JOBS[:1], PIXEL, 1, frames=2)
    steps = list(ascend(model, JOBS[:1], PIXEL))
    image = steps[-1].after / 2 + 0.5
    assert close(result.image, image[0]) and close(result.latent, model.encode(image)[0])
    assert result.scores["activation_reencoded"] == pytest.approx(result.activation)
    assert close(result.frames[0], steps[0].before[0] / 2 + 0.5) and torch.equal(result.frames[1], result.image)
    first = measure(model, model.encode(steps[0].before / 2 + 0.5), JOBS[:1])[0].item()
    assert result.scores["activation_start"] == pytest.approx(first) != pytest.approx(result.activation)
    finished, = finish.stream(model, JOBS[:1], change(PIXEL, finish=True, finish_scale=0.4, finish_steps=2), 1)
    assert torch.equal(finished.latent, result.latent) and finished.finished.latent.shape == model.latent_shape


# --- a step's random numbers -----------------------------------------------------------------------------------------

def drawn(config, shape=(1, 2, 64), n=3000):
    """n draws of one generator: down, right, angle, zoom (n,) each, noise (n, ...)."""
    generator = torch.Generator().manual_seed(11)
    shift, angle, zoom, noise = (torch.stack(v) for v in zip(*(draw(generator, shape, config) for _ in range(n))))
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
    assert set(drawn(Config(jitter_max=1))[0].tolist()) == {-1.0, 0.0, 1.0}
    assert drawn(Config(scale_max=0.5))[3].min() < 0.51 and drawn(Config(scale_max=0.5))[3].max() <= 1


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
    assert (still[0] == 0).all() and (still[1] == 0).all() and (still[2] == 0).all() and (still[3] == 1).all()


def test_a_roll_is_a_length_on_a_64_wide_latent():
    assert set(drawn(Config(jitter_max=1), (4, EDGE, EDGE), 60)[0].tolist()) == {-0.25, 0.0, 0.25}


def test_every_step_moves_and_noises_anew(model):
    """The job's own generator gives the start, then a draw a step; the moved latent is noised, not the latent."""
    config = change(jitter_max=3, rotate_max=5.0, scale_max=1.1)
    steps, eps = list(ascend(model, JOBS, config)), []
    for i, job in enumerate(JOBS):
        generator = torch.Generator().manual_seed(job.seed)
        assert torch.equal(steps[0].before[i], torch.randn(model.latent_shape, generator=generator))
        for step in steps:
            shift, angle, zoom, noise = draw(generator, model.latent_shape, config)
            moved = reg.transform(step.before[i:i + 1], shift[None], angle[None], zoom[None])[0]
            assert close(step.transformed[i], moved)
            signal, spread = roots(model, job.timestep)
            assert close(step.noised[i], signal * moved + spread * noise)
            eps.append((step.noised[i] - signal * step.transformed[i]) / spread)
    pairs = torch.corrcoef(torch.stack([e.flatten() for e in eps]))
    assert (pairs - torch.eye(len(eps))).abs().max() < 0.2      # 1,024 numbers: a deviation of 0.03


def test_without_noise_the_network_sees_the_moved_latent(model):
    step = next(ascend(model, JOBS, change(noise=False, jitter_max=3)))
    assert torch.equal(step.noised, step.transformed) and not torch.equal(step.transformed, step.before)
    assert close(step.gradient.mean((2, 3))[0], -model.slope(2)[:, 0, 0], 1e-7)                # no sqrt(abar) either


# --- filter, then blur -----------------------------------------------------------------------------------------------

def test_the_gradient_is_filtered_and_then_blurred(model):
    """sigma runs from start to end, a quarter as long on a latent a quarter as wide, with the taps asked for."""
    config = change(spectral_filter=True, gradient_smoothing_sigma_start=6.0, gradient_smoothing_sigma_end=2.0,
                    gradient_smoothing_kernel_size=5, range_weight=0.5)
    z = 3 * randn(2, *model.latent_shape, seed=4)               # so that the gradient differs from pixel to pixel
    steps = list(ascend(model, JOBS, config, begin(JOBS, z)))
    for step, sigma in zip(steps, (1.5, 1.0, 0.5)):
        filtered = reg.spectral_filter(step.gradient)
        assert close(step.filtered, filtered, 1e-7) and close(step.smoothed, reg.blur(filtered, sigma, 5), 1e-7)
        other_way = reg.spectral_filter(reg.blur(step.gradient, sigma, 5))
        for wrong in (other_way, filtered, reg.blur(step.gradient, sigma, 5), step.gradient):
            assert (step.smoothed - wrong).abs().max() > 0.05 * step.smoothed.abs().max()
    g = steps[0].smoothed
    assert close(steps[0].after, z - 0.05 * g / (g.abs() + 1e-8))                               # and this AdamW gets


# --- silence ---------------------------------------------------------------------------------------------------------

def test_a_silent_feature_is_woken_by_the_mean(model):
    """Below its relu everywhere: the gradient is that of the mean over all pixels, not of the highest; or 0 without."""
    model.sae.encoder.bias[2] = -100.0
    step = next(ascend(model, JOBS, BARE))
    assert step.silent.tolist() == [True, False] and step.activation[0] == 0 < step.activation[1]
    assert close(step.gradient[0], -roots(model, 300)[0] * model.slope(2), 1e-7)
    off = next(ascend(model, JOBS, change(silent_gradient=False)))
    assert off.silent.tolist() == [True, False] and not off.gradient[0].any()
    assert torch.equal(off.gradient[1], step.gradient[1])


def test_a_feature_that_is_active_at_one_pixel_is_not_silent(model):
    """There alone it has a gradient."""
    z = torch.zeros(1, *model.latent_shape)
    z[0, :, 3, 4] = 100 * model.slope(2)[:, 0, 0] * EDGE ** 2
    model.sae.encoder.bias[2] = -50.0
    step = next(ascend(model, JOBS[:1], BARE, begin(JOBS[:1], z)))
    expected = torch.zeros_like(z)
    expected[0, :, 3, 4] = -roots(model, 300)[0] * model.slope(2)[:, 0, 0]
    assert step.activation > 0 and not step.silent.any() and close(step.gradient, expected, 1e-7)


# --- a row that is not finite ----------------------------------------------------------------------------------------

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
    step = next(ascend(numb, JOBS, change(learning_rate=1e15, weight_decay=1e15), begin(JOBS, z)))
    assert step.gradient.isfinite().all() and not step.alive.any() and torch.equal(step.after, z)


# --- start and batches -----------------------------------------------------------------------------------------------

def test_a_sample_is_made_once_for_a_target_and_seed(model):
    """From the noise of the job's seed; other time steps share it, and targets that are through are forgotten."""
    made, priors = [], {}

    def double(model, jobs, noise, config):
        made.append([job.target for job in jobs])
        return 2 * noise

    config = change(prior="steer")
    for jobs, count, known in ((JOBS, 1, {(2, 1), (5, 2)}),
                               ([dataclasses.replace(job, timestep=5) for job in JOBS], 1, {(2, 1), (5, 2)}),
                               ([Job(feature=5, seed=3)], 2, {(5, 2), (5, 3)}),                # 2 is through
                               (JOBS, 3, {(2, 1), (5, 2), (5, 3)})):
        generators, z = start(model, jobs, config, priors, double)
        assert len(made) == count and priors.keys() == known
        for i, job in enumerate(jobs):
            generator = torch.Generator().manual_seed(job.seed)
            assert torch.equal(z[i], 2 * torch.randn(model.latent_shape, generator=generator))
            assert torch.equal(generators[i].get_state(), generator.get_state())
    plain = start(model, JOBS, BARE, priors, double)[1]
    assert len(made) == 3 and torch.equal(plain[0], torch.randn(model.latent_shape, generator=torch.Generator()
                                                               .manual_seed(1)))


def test_batches_are_filled_up_and_cut_again(model):
    """To 8, 16, 32, ... rows where 8 are usual, never above the largest batch; each job comes back once, in order."""
    assert [filled(n, 100, 8) for n in (1, 8, 9, 16, 17, 33, 65)] == [8, 8, 16, 16, 32, 64, 100]
    assert filled(1, 4, 8) == 4 and filled(3, 32, 1) == 4
    rows = []

    def course(model, jobs, config, *rest):
        rows.append([job.seed for job in jobs])
        return jobs

    jobs = [Job(feature=1, seed=s) for s in range(19)]
    assert list(stream(model, jobs, BARE, course=course)) == jobs
    assert [len(seeds) for seeds in rows] == [8, 8, 8] and rows[2] == [16, 17, 18, 18, 18, 18, 18, 18]
    assert list(stream(model, jobs, BARE, 16, course=course)) == jobs and [len(r) for r in rows[3:]] == [16, 8]


@pytest.mark.parametrize("job, flag", [(Job(feature=FEATURES), "--feature 16"), (Job(feature=-1), "--feature -1"),
                                       (Job(channel=D), "--channel 3"), (Job(feature=0, timestep=1000), "--timestep"),
                                       (Job(feature=0, timestep=-1), "--timestep -1"),
                                       (Job(feature=0, seed=-1), "--seed"), (Job(feature=0, seed=2 ** 62), "--seed")])
def test_jobs_out_of_range_are_refused(model, job, flag):
    check_jobs(model, [Job(feature=FEATURES - 1, timestep=999, seed=2 ** 62 - 1), Job(feature=0, seed=0)])
    check_jobs(model, [Job(channel=D - 1)])
    with pytest.raises(ValueError, match=flag):
        check_jobs(model, [job])
    with pytest.raises(ValueError, match="all features or all channels"):
        check_jobs(model, [Job(feature=0), Job(channel=0)])


# --- scores and verdicts ---------------------------------------------------------------------------------------------

def score(model, z, job, noise=True):
    """By the definition: of every feature, the mean over pixels and four noises of their own generator; where."""
    generator, (signal, spread) = torch.Generator().manual_seed(0x3C91B7E5 ^ job.seed), roots(model, job.timestep)
    seen = [signal * z + spread * torch.randn(z.shape, generator=generator) for _ in range(4)] if noise else [z]
    where = torch.stack([torch.stack([model.values(x, job.timestep, f).relu() for x in seen]).mean(0)
                         for f in range(FEATURES)])             # (F, 16, 16)
    return where.mean((1, 2)), where


def test_scores_are_those_of_the_definition(model):
    """Each on its own side of something: the start, the end, without noise, without what a picture cannot hold."""
    model.sae.encoder.bias.copy_(torch.linspace(-1, 1, FEATURES))                               # the relu takes part
    config = change(num_steps=20)
    results, steps = visualize(model, JOBS, config, 2), list(ascend(model, JOBS, config))
    for i, (job, result) in enumerate(zip(JOBS, results)):
        z, scores = steps[-1].after[i], result.scores
        everything, where = score(model, z, job)
        own = everything[job.feature].item()
        assert torch.equal(result.latent, z) and torch.equal(result.image, model.decode(z[None])[0])
        assert result.activation == scores["activation"] == pytest.approx(own, rel=1e-4)
        assert scores["activation_start"] == pytest.approx(score(model, steps[0].before[i], job)[0][job.feature].item(),
                                                           rel=1e-4)
        assert scores["activation_no_noise"] == pytest.approx(score(model, z, job, False)[0][job.feature].item(),
                                                              rel=1e-4)
        held = torch.cat([z[:3], torch.zeros_like(z[:1])])
        assert scores["activation_reencoded"] == pytest.approx(score(model, held, job)[0][job.feature].item(), rel=1e-4)
        order = everything.argsort(descending=True).tolist()
        assert scores["rank"] == 1 + order.index(job.feature)
        assert [k for k, _ in result.others] == [k for k in order if k != job.feature][:10]
        assert dict(result.others) == pytest.approx({k: everything[k].item() for k, _ in result.others}, rel=1e-4)
        assert close(result.heat, where[job.feature], 1e-4)
        assert scores["latent_mean"] == pytest.approx(z.mean().item()) and "dataset_largest" not in scores
        assert scores["latent_std"] == pytest.approx(z.std().item())
        assert scores["latent_share_beyond_3"] == (z.abs() > 3).float().mean().item()
        assert result.nearest_channel == max(range(D), key=lambda d: model.sae.W_dec[job.feature, d].item())
        curves = result.history
        assert curves["activation"] == pytest.approx([s.activation[i].item() for s in steps])
        assert curves["gradient_norm"] == pytest.approx([s.gradient[i].square().sum().sqrt().item() for s in steps])
        assert curves["update_norm"] == pytest.approx([(s.after - s.before)[i].square().sum().sqrt().item()
                                                       for s in steps])
        assert curves["range"] == [0.0] * 20 and "alive" not in curves


def test_scores_have_noise_of_their_own(model):
    """The same for two latents of a seed, another for another seed; and a channel is scored without a relu."""
    z = randn(1, *model.latent_shape, seed=6)
    one, again, other = (measure(model, z, [Job(feature=2, timestep=700, seed=s)])[0] for s in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    own, everything, heat = measure(model, z, [Job(channel=1, timestep=0)], noise=False)
    h = model.unet(z, torch.tensor([0]), model.embed([""]), until="hook")
    assert close(everything, h.mean((2, 3))) and close(own, h[:, 1].mean((1, 2))) and close(heat, h[:, 1])


GOOD = {"activation": 1.0, "activation_start": 0.5, "activation_reencoded": 0.8, "rank": 1}


@pytest.mark.parametrize("changes, dataset, verdict", [
    ({}, None, "excited"), ({}, 2.0, "excited"), ({}, 2.01, "raised"), ({}, 0.0, "excited"), ({}, -1.0, "excited"),
    ({"rank": 10}, 2.0, "excited"), ({"rank": 11}, None, "raised"), ({"rank": 11}, 0.1, "raised"),
    ({"activation_reencoded": 0.5}, None, "excited"), ({"activation_reencoded": 0.49}, None, "fragile"),
    ({"activation_reencoded": 0.49, "rank": 11}, 9.0, "fragile"),
    ({"activation": -0.1, "activation_start": -0.5, "activation_reencoded": -0.04}, -1.0, "raised"),     # a raw channel
    ({"activation_start": 1.0}, None, "weak"), ({"activation_start": 0.99}, None, "excited"),
    ({"activation_start": 2.0, "activation_reencoded": 0.1}, None, "weak"),
    ({"activation": 0.0, "activation_start": 0.0}, None, "silent"),
    ({"activation": float("nan")}, None, "non-finite at step 3"),
    ({"activation": float("inf")}, 1.0, "non-finite at step 3"),
])
def test_verdicts(changes, dataset, verdict):
    assert judge_result(GOOD | changes, True, 3, dataset) == verdict


def test_a_course_that_broke_off_is_said_to_be():
    assert judge_result({}, False, 3) == "non-finite at step 3"


def test_a_result_is_judged_by_the_dataset_at_its_own_time_step(model):
    """The number of the capture is a score; finished results have it, too."""
    asked = []
    jobs = [Job(feature=f, timestep=t, seed=1) for f, t in ((2, 300), (2, 800))]
    model.sae.encoder.bias[2] = 100.0                           # at rank 1
    config = change(finish=True, finish_scale=0.4, finish_steps=2)
    known = {300: 1.0, 800: 1e6}
    model.largest = lambda kind, target, t: asked.append((kind, target, t)) or known[t]
    near, far = finish.visualize(model, jobs, config, 2)
    assert set(asked) == {("feature", 2, 300), ("feature", 2, 800)}
    assert (near.scores["rank"], far.scores["rank"]) == (1, 1)
    assert (near.verdict, far.verdict, far.finished.scores["dataset_largest"]) == ("excited", "raised", 1e6)
    assert (near.scores["dataset_largest"], far.scores["dataset_largest"]) == (1.0, 1e6)


# --- the finish ------------------------------------------------------------------------------------------------------

def test_the_finish_follows_its_formula(model):
    """e' = e - s (rms e / rms g) g, g = A^T W_enc[f] / S; then DDIM's step. Noised to t0 by a generator of its own."""
    config = change(finish_steps=3, finish_scale=0.8)
    z, seen = randn(2, *model.latent_shape, seed=8), []
    latents, *_, scale, history = finish.finish(model, JOBS, z, config, None, seen.append)
    assert [step.timestep for step in seen] == [600, 400, 200] and scale.tolist() == pytest.approx([0.8, 0.8])
    abar = model.schedule.alphas_cumprod
    for i, job in enumerate(JOBS):
        generator, (signal, spread) = torch.Generator().manual_seed(0x6F3D91A5 ^ job.seed), roots(model, 600)
        x, g = signal * z[i] + spread * torch.randn(z[i].shape, generator=generator), model.slope(job.feature)
        for step, t, t_next in zip(seen, (600, 400, 200), (400, 200, 0)):
            assert close(step.before[i], x, 1e-4) and close(step.gradient[i], g, 1e-7)
            h = torch.einsum("dc,cyx->dyx", model.unet.hook.weight, x) + t / 1000
            e = torch.einsum("cd,dyx->cyx", model.unet.weight, h)
            assert close(step.noise[i], e, 1e-4)
            assert close(step.activation[i], model.values(x, t, job.feature).mean(), 1e-4)
            pulled = e - 0.8 * (e.square().mean() / g.square().mean()).sqrt() * g
            assert close(step.pulled[i], pulled, 1e-4)
            x0 = (x - (1 - abar[t]).sqrt() * pulled) / abar[t].sqrt()
            x = abar[t_next].sqrt() * x0 + (1 - abar[t_next]).sqrt() * pulled
            assert close(step.after[i], x, 1e-3)
        assert torch.equal(latents[i], seen[-1].after[i])
        assert [s["activation"][i] for s in history] == [s.activation[i] for s in seen]


def test_the_finish_filters_its_pull(model):
    """Of a feature that is active at some pixels; without the setting the gradient itself pulls."""
    model.sae.encoder.bias.zero_()
    x = randn(2, *model.latent_shape, seed=8)
    on, off = (next(finish.redraw(model, JOBS, x, [600], 0.4, change(spectral_filter=f))) for f in (True, False))
    assert close(on.filtered, reg.spectral_filter(on.gradient), 1e-7) and torch.equal(off.filtered, off.gradient)
    assert (on.filtered - on.gradient).abs().max() > 0.1 * on.gradient.abs().max()
    assert torch.allclose(finish.rms(on.pulled - on.noise), 0.4 * finish.rms(on.noise), rtol=1e-4)


def test_silence_and_trouble_in_the_finish(model):
    """A silent row is pulled by the mean before its relu, or not at all; one that is not finite stays."""
    model.sae.encoder.bias[2] = -100.0
    x = randn(2, *model.latent_shape, seed=8)
    on, off = (next(finish.redraw(model, JOBS, x, [600], 0.4, change(silent_gradient=s))) for s in (True, False))
    assert on.silent.tolist() == [True, False] and on.activation[0] == 0 and close(on.gradient[0], model.slope(2), 1e-7)
    assert not off.gradient[0].any() and torch.equal(off.pulled[0], off.noise[0]) and off.alive.all()
    x[0, 0, 0, 0] = float("nan")
    steps = list(finish.redraw(model, JOBS, x, [600, 300], 0.4, BARE))
    assert steps[-1].alive.tolist() == [False, True] and steps[-1].after[1].isfinite().all()
    assert torch.equal(steps[-1].after[0].nan_to_num(7.0), x[0].nan_to_num(7.0))


def test_auto_takes_the_smallest_strength_that_is_enough(model):
    """A row that the first contents, one that the third does, one that none does: it gets the one that does most."""
    jobs = [*JOBS, Job(feature=7, timestep=300, seed=3)]
    z, config = randn(3, *model.latent_shape, seed=8), change(finish_steps=3, finish_scale="auto")
    runs = [finish.finish(model, jobs, z, change(config, finish_scale=s))[0] for s in (0.2, 0.4, 0.8, 1.6)]
    again = torch.stack([measure(model, model.encode(model.decode(x)), jobs)[0] for x in runs])             # (4, 3)
    assert (again[1:] > again[:-1]).all()                       # else the rows ask nothing
    enough = torch.stack([again[0, 0], (again[1, 1] + again[2, 1]) / 2, again[3, 2] + 1])
    latents, *_, scale, _ = finish.finish(model, jobs, z, config, enough)
    assert scale.tolist() == pytest.approx([0.2, 0.8, 1.6])
    assert torch.equal(latents, torch.stack([runs[0][0], runs[2][1], runs[3][2]]))
    seen = []
    finish.finish(model, jobs, z, config, again[1], seen.append)
    assert len(seen) == 2 * 3                                   # the second contents all


def test_a_finished_result(model, monkeypatch):
    """Asks for three quarters of the re-encoded activation, starts where the ascent ended, keeps its start's score."""
    asked, real = [], finish.finish
    monkeypatch.setattr(finish, "finish", lambda *given: asked.append(given) or real(*given))
    config = change(finish=True, finish_steps=3, finish_scale=0.4)
    results = finish.visualize(model, JOBS, config, 2)
    (_, jobs, z, _, enough, _), = asked
    assert torch.equal(z, torch.stack([r.latent for r in results])) and jobs == JOBS
    assert enough.tolist() == pytest.approx([0.75 * r.scores["activation_reencoded"] for r in results])
    for r in results:
        own = score(model, r.finished.latent, r.job)[0][r.job.feature].item()
        assert r.finished.activation == pytest.approx(own, rel=1e-4) and r.finished.scores["finish_scale"] == 0.4
        assert r.finished.scores["activation_start"] == r.scores["activation_start"]
        assert len(r.finished.history["activation"]) == 3 and len(r.history["activation"]) == 3
    assert all(r.finished is None for r in finish.visualize(model, JOBS, change(config, finish=False), 2))


def test_a_guided_start_is_a_finish_from_the_top(model):
    """From t 999 in --prior-steps steps, at 0.5 where the scale is auto."""
    x = torch.stack([torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(s)) for s in (1, 2)])
    config = change(prior="guided", prior_steps=3)
    for asked, scale in (("auto", 0.5), (0.3, 0.3)):
        *_, last = finish.redraw(model, JOBS, x, [999, 666, 333], scale, config)
        z = finish.start(model, JOBS, change(config, finish_scale=asked))[1]
        assert torch.equal(z, last.after) and not torch.equal(z, x)
    with pytest.raises(ValueError, match="finish.start"):
        ascent.start(model, JOBS, config)


def test_grid_and_length():
    assert finish.grid(600, 3) == [600, 400, 200] and finish.grid(999, 2) == [999, 500] and finish.grid(7, 1) == [7]
    assert finish.course_length(change(finish=False, finish_steps=30)) == 3
    assert finish.course_length(change(finish=True, finish_steps=30, finish_scale="auto")) == 3 + 4 * 30
    assert finish.course_length(change(finish=True, finish_steps=30, finish_scale=0.4)) == 3 + 30


# --- steering --------------------------------------------------------------------------------------------------------

def by_hand(model, x, push, steps=4):
    """DDIM with h + push(t) at every pixel, worked out here: x (B, 4, 16, 16), push(t) (B, 3) -> the same."""
    for t in model.schedule.timesteps(steps):
        h = torch.einsum("dc,bcyx->bdyx", model.unet.hook.weight, x) + t / 1000 + push(t)[:, :, None, None]
        x = model.schedule.step(x, torch.einsum("cd,bdyx->bcyx", model.unet.weight, h), t, t - 1000 // steps)
    return x


def test_a_direction_is_added_as_strongly_as_the_curve_says(model):
    """h + s_t d, each row with its own curve and direction."""
    noise, s = randn(2, *model.latent_shape, seed=1), randn(2, 1001, seed=2)
    d = directions(model, JOBS)
    assert torch.equal(d, model.sae.W_dec[[2, 5]])
    assert directions(model, [Job(channel=2), Job(channel=0)]).tolist() == [[0, 0, 1], [1, 0, 0]]
    ours = steered_prior(model, noise, d, s, "ddim", 4)
    assert close(ours, by_hand(model, noise, lambda t: s[:, t, None] * d), 1e-4)
    assert (ours - by_hand(model, noise, lambda t: 0 * d)).abs().max() > 0.1
    assert not torch.equal(ours, steered_prior(model, noise, d, s, "pndm", 4))


def test_a_steered_start_takes_scale_curve_sampler_and_steps_from_the_settings(model):
    """steer_scale times the strength that steer_steps names, from the noise of the seed."""
    noise = start(model, JOBS, BARE)[1]
    rise = torch.tensor([3.0, 6.0])[:, None]                    # target + 1: see linear.py
    for when, times in (("active", 1), ("constant", 100)):
        config = change(prior="steer", steer_scale=0.3, steer_steps=when, prior_sampler="ddim", prior_steps=4)
        expected = by_hand(model, noise, lambda t, n=times: 0.3 * n * t / 1000 * rise * model.sae.W_dec[[2, 5]])
        assert close(start(model, JOBS, config)[1], expected, 1e-3)


def test_what_is_seen_while_sampling(model):
    """The hook's output before anything is added; with guidance first that of the empty prompt."""
    noise, seen, push = randn(2, *model.latent_shape, seed=1), {}, torch.ones(1, D)
    context, add = model.embed(["four"]), lambda t: {"hook": push}
    out = sample(model, noise, context, "ddim", 4, 3.0, add, lambda t, h: seen.setdefault(t, h))
    assert list(seen) == [751, 501, 251, 1] and seen[751].shape == (4, D, EDGE, EDGE)
    plain = torch.einsum("dc,bcyx->bdyx", model.unet.hook.weight, noise) + 0.751
    assert close(seen[751], torch.cat([plain, plain + 4]), 1e-4)
    net = lambda x, t, c: model.unet(x, t, c, add={"hook": push})
    *_, (_, expected) = ddim(model.schedule, guided(net, context, model.embed([""]), 3.0), noise, 4)
    assert close(out, expected, 1e-4)
    alone = {}
    sample(model, noise, context, "ddim", 4, see=lambda t, h: alone.setdefault(t, h))
    assert close(alone[751], plain + 4, 1e-4) and not model.unet.hook._forward_hooks


# --- the dataset's measure -------------------------------------------------------------------------------------------

def test_the_strongest_dataset_image_at_a_time_step():
    """Linear between sampling steps; before and after them what it is at the nearest, so that t = 0 has a measure."""
    tables = {"timesteps": torch.tensor([801.0, 401, 1]), "max_feature": torch.tensor([[1.0], [3], [2]]),
              "max_channel": torch.tensor([[-1.0], [-3], [-2]])}
    ours = profile.largest(tables, "feature", 0)
    assert ours[[0, 1, 201, 401, 601, 801, 1000]].tolist() == [2, 2, 2.5, 3, 2, 1, 1] and ours.shape == (1001,)
    assert (profile.largest(tables, "channel", 0) == -ours).all()


def test_a_word_of_half_of_all_prompts_names_no_concept():
    everything = ["A red Tree", "A red Cat", "A blue Dog", "A blue Sea"]
    assert profile.shared_words(everything[:1], everything) == ["Tree"]                         # red: half, A: all
    assert profile.shared_words(everything[:1], [*everything, "A blue Sky"]) == ["red", "Tree"]


@pytest.mark.parametrize("kind, gradient, expected", [
    ("feature", True, (0.0, True, -1.5)), ("feature", False, (0.0, True, 0.0)), ("channel", True, (-1.5, False, -1.5))])
def test_a_feature_is_silent_where_a_channel_is_only_low(kind, gradient, expected):
    """Values below 0 at every position: a channel's are its activation, a feature climbs what its relu hides."""
    a, silent, climb = ascent.objective(torch.tensor([[-1.0, -2.0]]), kind, gradient)
    assert (a.item(), silent.item(), climb.item()) == expected
