"""The ascent on the trained toy: it climbs, rows do not influence one another, only z is optimised.

Each piece alone, on a stand-in whose numbers are known on paper: test_paper.py, test_visualize.py.
"""
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import regularizers as reg
import results
from activity.profile import find_capture
from ascent import adamw, ascend, draw
from config import PRESETS, Config, Job, configure
from sae import SAE
from schedule import Schedule
from tests.linear import change, generator
from tests.record_picture import PICTURE, picture
from tests.seeded import HOOK, TOY, filled, randn, relative_error, shapes, weights
from visualize import run, start, stream
from weights.load import load


@pytest.fixture(scope="module")
def model():
    model = load("weights/toy")
    model.capture = find_capture(model, "none")
    return model


@pytest.fixture(scope="module")
def short(model):
    return configure(model.settings, num_steps=6, prior_steps=5, finish_from=600, finish_steps=3)


@pytest.fixture(scope="module")
def job(model):
    return Job("feature", model.settings["feature"], model.settings["timestep"])


def ascent(model, jobs, config):
    return list(ascend(model, jobs, config, start(model, jobs, config)))


@pytest.mark.parametrize("kind, name", [("feature", "sae"), ("channel", "raw"), ("direction", "raw")])
def test_quick_is_the_usual_preset_of_its_kind_in_fewer_steps(kind, name):
    own = {"presets": {name: {"steer_scale": 7.0}}}
    quick, prior = configure(own, "quick", kind, beta1=0.5), "guided" if kind == "direction" else "steer"
    assert quick == change(PRESETS[name], num_steps=40, learning_rate=0.15, steer_scale=7.0, beta1=0.5, prior=prior)
    usual = change(PRESETS[name], steer_scale=7.0, prior=prior)
    assert configure(own, None, kind) == usual != configure(own, "none", kind)
    with pytest.raises(ValueError, match="strength is no setting"):
        configure(own, strength=3)


def test_presets_are_the_table_of_the_method():
    sae, raw = PRESETS["sae"], PRESETS["raw"]
    assert (sae.total_variation_weight, raw.total_variation_weight) == (0.0, 0.5)
    assert (sae.range_weight, raw.range_weight) == (0.5, 0.5) and sae.range_threshold == 3.0
    assert (sae.moment_weight, raw.moment_weight) == (0.5, 0.0)
    assert (sae.gradient_smoothing_sigma_start, sae.gradient_smoothing_sigma_end) == (0.0, 0.0)
    assert (raw.gradient_smoothing_sigma_start, raw.gradient_smoothing_sigma_end) == (0.5, 0.0)
    for preset in (sae, raw):
        assert (preset.jitter_max, preset.rotate_max, preset.scale_max) == (1, 5.0, 1.1)
    assert sae.spectral_filter and raw.spectral_filter and sae.prior == raw.prior == "steer"
    assert (sae.steer_scale, raw.steer_scale, sae.prior_steps) == (500.0, 50.0, 50)
    assert (sae.num_steps, sae.learning_rate, sae.weight_decay) == (100, 0.05, 0.01)
    assert (sae.beta1, sae.beta2, sae.epsilon) == (0.9, 0.999, 1e-8)
    assert sae.finish and raw.finish and not PRESETS["none"].finish
    assert (sae.finish_from, sae.finish_scale, sae.finish_steps) == (600, 0.5, 30)


def test_activation_is_higher_after_30_steps(model):
    """From noise, which excites the feature little; from a steered sample: slow/test_ascent.py."""
    config = configure(model.settings, num_steps=30, prior="noise", finish=False)
    result, = run(model, [Job("feature", model.settings["feature"], 500)], config)
    assert result.activation > 5 * result.scores["activation_start"]


def test_a_rerun_gives_byte_identical_files(model, short, job, tmp_path):
    short = change(short, num_steps=1, prior_steps=1, finish_steps=1)
    for name in ("a", "b"):
        for result, in stream(model, [job], short, frames=2):
            results.save(tmp_path / name, result, results.recipe(model, job, short, short))
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("seed_*"))
    assert len(files) == 6
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_a_step_stops_at_the_hook_and_only_the_latent_gets_a_gradient(model, short, job):
    ran = []
    handles = [m.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, m in model.unet.named_modules() if n]
    ascent(model, [job], change(short, num_steps=1, prior="noise"))
    for handle in handles:
        handle.remove()
    assert ran[-1] == model.hook_point
    assert not any(n.startswith(("up_blocks.2", "up_blocks.3", "conv_out")) for n in ran)
    for net in (model.unet, model.vae, model.sae, model.text_encoder):
        assert all(not p.requires_grad and p.grad is None for p in net.parameters())


@pytest.mark.parametrize("kind", ("feature", "channel", "direction"))
def test_the_gradient_by_finite_differences(kind):
    """In float64, through moves, noise, UNet, objective and penalties of small random networks."""
    width, t = TOY["unet"]["block_out_channels"][2], torch.tensor([300, 301])
    sae = SAE(width, 128).requires_grad_(False).double()
    sae.load_state_dict(weights(shapes(sae)))
    text = randn(1, 77, TOY["unet"]["cross_attention_dim"], seed=2).double()
    model = SimpleNamespace(unet=filled("unet", TOY["unet"]).double(), sae=sae, hook_point=HOOK, schedule=Schedule(),
                            embed=lambda prompts: text, device=torch.device("cpu"), dtype=torch.float64,
                            directions={5: randn(width, seed=7), 6: randn(width, seed=8)})
    jobs = [Job(kind, 5 + i, timestep=300 + i, seed=i) for i in range(2)]
    config = Config(total_variation_weight=0.5, range_threshold=0.1)
    z = randn(2, 4, 8, 8, seed=3).double()
    drawn = [draw(generator(job.seed), (4, 8, 8), config) for job in jobs]
    shift, angle, zoom, eps = (torch.stack(numbers).double() for numbers in zip(*drawn))

    def loss(z):
        x = model.schedule.add_noise(reg.transform(z, shift, angle, zoom), eps, t)
        h = model.unet(x, t, text.expand(2, -1, -1), until=HOOK).flatten(2)                     # (B, D, S)
        a = []
        for row, job in zip(h, jobs):
            w = {"feature": sae.encoder.weight, "channel": torch.eye(width), "direction": model.directions}[kind]
            pre = w[job.target].double() @ (row - sae.b_dec[:, None] * (kind == "feature"))
            a.append((pre + sae.encoder.bias[job.target]).relu().mean() if kind == "feature" else pre.mean())
        return (0.5 * 8 / 64 * reg.total_variation(z) + 0.5 * reg.range_penalty(z, 0.1)
                + 0.5 * reg.moment_penalty(z) - torch.stack(a))

    step = next(ascend(model, jobs, config, ([generator(job.seed) for job in jobs], z)))
    assert not step.silent.any()
    for seed in range(3):
        direction = randn(*z.shape, seed=seed).double()
        slope = (loss(z + 1e-5 * direction) - loss(z - 1e-5 * direction)) / 2e-5
        assert relative_error((step.gradient * direction).sum((1, 2, 3)), slope) < 1e-5


def test_adamw_is_torchs_to_the_bit():
    z, config = randn(3, 4, 8, 8, seed=0), Config(weight_decay=0.1)
    theirs, mean, square = z.clone().requires_grad_(True), torch.zeros_like(z), torch.zeros_like(z)
    optimizer = torch.optim.AdamW([theirs], config.learning_rate, (config.beta1, config.beta2), config.epsilon,
                                  config.weight_decay)
    for n in range(1, 11):
        theirs.grad = g = randn(*z.shape, seed=n) * 10.0 ** (n % 5 - 3)
        z, mean, square = adamw(z, g, mean, square, n, config)
        optimizer.step()
        assert torch.equal(z, theirs.detach()), n


def test_the_raw_channel_needs_no_sae(model):
    blind, jobs = dataclasses.replace(model, sae=None), [Job("channel", 5, 300)]
    config = configure(model.settings, "raw", num_steps=1, prior="noise", finish_from=600, finish_steps=1)
    result, = run(blind, jobs, config)
    step = ascent(blind, jobs, config)[0]
    assert torch.allclose(step.activation, step.hook[:, 5].mean((1, 2)))
    assert 1 <= result.scores["rank"] <= model.unet.width(model.hook_point)


def test_a_seeded_picture_equals_the_stored_one(model):
    """Recorded by `python -m tests.record_picture`. Kernels of other machines round differently: a mean of 2 in 255."""
    assert np.abs(picture(model) - np.asarray(Image.open(PICTURE), dtype=np.float32)).mean() < 2
