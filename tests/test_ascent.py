"""The ascent on the trained toy: it climbs, rows do not influence one another, only z is optimised.

Each piece alone, on a stand-in whose numbers are known on paper: test_paper.py.
"""
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import regularizers as reg
from pages import files as results
from activity.profile import attach
from vae import to_uint8
from weights.load import load
from config import Config, Job, PRESETS, configure, find_preset
from ascent import activation, adamw, ascend, draw, kept_steps, measure, readout, start, stream, visualize
from sae import SAE
from schedule import Schedule
from tests.seeded import HOOK, TOY as SIZES, filled, randn, relative_error, shapes, weights

TOY = "weights/toy"


@pytest.fixture(scope="module")
def model():
    model = load(TOY)
    return attach(model, model.folder / "activity")


@pytest.fixture(scope="module")
def short(model):
    return configure(model.settings, num_steps=6, prior_steps=5)


@pytest.fixture(scope="module")
def feature(model):
    return model.settings["feature"]


def job(model, feature, **changes):
    return Job(**{"feature": feature, "timestep": model.settings["timestep"], "seed": 1024} | changes)


@pytest.mark.parametrize("channel, kind", [(None, "sae"), ([3], "raw")])
def test_quick_is_the_kinds_own_preset_in_fewer_steps(channel, kind):
    own = {"presets": {kind: {"steer_scale": 7.0}}}
    preset, changes = find_preset("quick", channel)
    quick = configure(own, preset, **changes | {"beta1": 0.5})
    assert quick == dataclasses.replace(PRESETS[kind], num_steps=40, learning_rate=0.15, steer_scale=7.0, beta1=0.5)
    assert find_preset(None, channel) == (kind, {})


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


def test_unknown_setting_is_refused(model):
    with pytest.raises(TypeError, match="strength"):
        configure(model.settings, strength=3)


def test_activation_is_higher_after_30_steps(model):
    """From noise, which excites feature 22 little; from a steered sample: slow/test_ascent.py."""
    config = configure(model.settings, num_steps=30, prior="noise")
    result, = visualize(model, [job(model, 22)], config, batch_size=1)
    assert result.activation > 10 * result.scores["activation_start"] and result.verdict == "excited"


def test_a_rerun_gives_byte_identical_files(model, short, feature, tmp_path):
    jobs = [job(model, feature, seed=s) for s in (1, 2)]
    for run in ("a", "b"):
        for result in stream(model, jobs, short):
            results.save(tmp_path / run, result, results.recipe(model, result.job, short, short))
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("seed_*"))
    assert len(files) == 6
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_only_the_latent_gets_a_gradient(model, short, feature):
    for _ in ascend(model, [job(model, feature)], dataclasses.replace(short, num_steps=1)):
        pass
    for net in (model.unet, model.vae, model.sae, model.text_encoder):
        assert all(not p.requires_grad and p.grad is None for p in net.parameters())


def test_only_the_targets_row_of_the_sae_is_used(model, feature):
    """NaN in every other row of W_enc changes nothing; the readout equals the full encoding's column."""
    h = torch.randn(2, model.sae.b_dec.numel(), 4, 4)
    jobs = [job(model, feature), job(model, feature + 1)]
    full = model.sae.linear(h.flatten(2).transpose(1, 2))
    keep = model.sae.encoder.weight.clone()
    try:
        model.sae.encoder.weight[[i for i in range(len(keep)) if i not in (feature, feature + 1)]] = float("nan")
        values = readout(model, h, jobs)
    finally:
        model.sae.encoder.weight.copy_(keep)
    assert torch.allclose(values, torch.stack([full[0, :, feature], full[1, :, feature + 1]]), atol=1e-5)
    assert torch.allclose(activation(values, "feature"), values.relu().mean(1))


def test_the_unet_stops_at_the_hook(model, short, feature):
    ran = []
    handles = [m.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, m in model.unet.named_modules() if n]
    for _ in ascend(model, [job(model, feature)], dataclasses.replace(short, num_steps=1, prior="noise")):
        pass
    for handle in handles:
        handle.remove()
    assert ran[-1] == model.hook_point
    assert not any(n.startswith(("up_blocks.2", "up_blocks.3", "conv_out")) for n in ran)


def test_every_step_is_handed_out_before_and_after(model, short, feature):
    """Steps chain, and one step's update is AdamW's on the filtered gradient, worked out here."""
    steps = list(ascend(model, [job(model, feature)], short))
    assert len(steps) == short.num_steps and [s.index for s in steps] == list(range(short.num_steps))
    for a, b in zip(steps, steps[1:]):
        assert torch.equal(a.after, b.before)
    first, g = steps[0], steps[0].smoothed
    decayed = first.before * (1 - short.learning_rate * short.weight_decay)
    assert torch.allclose(first.after, decayed - short.learning_rate * g / (g.abs() + short.epsilon), atol=1e-5)


@pytest.mark.parametrize("kind", ("feature", "channel"))
def test_the_gradient_of_the_pixels_by_finite_differences(kind):
    """In float64, through encoder, moves, noise, UNet, objective and penalties of small random networks."""
    sae = SAE(SIZES["unet"]["block_out_channels"][2], 128).requires_grad_(False).double()
    sae.load_state_dict(weights(shapes(sae)))
    unet, vae = filled("unet", SIZES["unet"]).double(), filled("vae", SIZES["vae"]).double()
    text = randn(1, 77, SIZES["unet"]["cross_attention_dim"], seed=2).double()
    model = SimpleNamespace(unet=unet, sae=sae, hook_point=HOOK, schedule=Schedule(), embed=lambda prompts: text,
                            device=torch.device("cpu"), dtype=torch.float64, encode=vae.encode)
    jobs = [Job(**{"feature": None, kind: 5 + i}, timestep=300 + i, seed=i) for i in range(2)]
    config = Config(space="pixel", total_variation_weight=0.5, range_threshold=0.1)
    p = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)).double() * 2 - 1
    generators = [torch.Generator().manual_seed(job.seed) for job in jobs]
    drawn = [draw(torch.Generator().manual_seed(job.seed), (4, 16, 16), config) for job in jobs]
    shift, angle, zoom, eps = (torch.stack(numbers).double() for numbers in zip(*drawn))

    def loss(p):
        z = vae.encode((p + 1) / 2)
        x = model.schedule.add_noise(reg.transform(z, shift, angle, zoom), eps, torch.tensor([300, 301]))
        h = unet(x, torch.tensor([300, 301]), text.expand(2, -1, -1), until=HOOK).flatten(2)    # (B, D, S)
        pre = torch.stack([h[i, job.channel] if kind == "channel" else sae.linear(h[i].T[None], [job.feature])[0]
                           for i, job in enumerate(jobs)])
        a = (pre if kind == "channel" else pre.relu()).mean(1)
        return (0.5 * 16 / 64 * reg.total_variation(z) + 0.5 * reg.range_penalty(z, 0.1)
                + 0.5 * reg.moment_penalty(z) - a)

    step = next(ascend(model, jobs, config, (generators, p)))
    assert not step.silent.any()
    for seed in range(3):
        direction = randn(*p.shape, seed=seed).double()
        slope = (loss(p + 1e-5 * direction) - loss(p - 1e-5 * direction)) / 2e-5
        assert relative_error((step.gradient * direction).sum((1, 2, 3)), slope) < 1e-5


def test_adamw_is_torchs_to_the_bit():
    z, config = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), Config(weight_decay=0.1)
    theirs, mean, square = z.clone().requires_grad_(True), torch.zeros_like(z), torch.zeros_like(z)
    optimizer = torch.optim.AdamW([theirs], config.learning_rate, (config.beta1, config.beta2), config.epsilon,
                                  config.weight_decay)
    for n in range(1, 31):
        theirs.grad = g = torch.randn(z.shape, generator=torch.Generator().manual_seed(n)) * 10.0 ** (n % 5 - 3)
        z, mean, square = adamw(z, g, mean, square, n, config)
        optimizer.step()
        assert torch.equal(z, theirs.detach()), n


def test_a_non_finite_row_stops_and_the_others_go_on(model, short, feature):
    jobs = [job(model, feature, seed=s) for s in (1, 2)]
    settings = dataclasses.replace(short, prior="noise")
    generators, z = start(model, jobs, settings)
    healthy = list(ascend(model, jobs, settings, ([torch.Generator().manual_seed(i) for i in (1, 2)], z)))
    broken = z.clone()
    broken[0, 0, 0, 0] = float("inf")
    steps = list(ascend(model, jobs, settings, ([torch.Generator().manual_seed(i) for i in (1, 2)], broken)))
    assert not steps[0].alive[0] and steps[-1].alive[1]
    assert torch.equal(steps[-1].after[0], broken[0])
    assert torch.equal(steps[-1].after[1], healthy[-1].after[1])


def test_a_silent_feature_is_climbed_or_left_alone(model, short):
    """Below the relu everywhere the original's gradient is 0; ours climbs the pre-activation, unless told not to."""
    settings = dataclasses.replace(short, num_steps=1, prior="noise", moment_weight=0.0, range_weight=0.0)
    z = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(1))
    own, everything, _ = measure(model, z, [Job(feature=0, timestep=300, seed=1)])
    silent = int(everything[0].argmin())
    assert everything[0, silent] == 0
    mine = [Job(feature=silent, timestep=300, seed=1)]
    ours, = ascend(model, mine, settings)
    theirs, = ascend(model, mine, dataclasses.replace(settings, silent_gradient=False))
    assert ours.silent.all() and ours.activation == 0 == theirs.activation
    assert ours.gradient.abs().max() > 0 == theirs.gradient.abs().max()


def test_the_raw_channel_needs_no_sae(model, short):
    raw = configure(model.settings, "raw", num_steps=3, prior="noise")
    result, = visualize(model, [Job(channel=5, timestep=300)], raw, batch_size=1)
    step = next(ascend(model, [Job(channel=5, timestep=300)], raw))
    assert torch.allclose(step.activation, step.hook[:, 5].mean((1, 2)))
    assert 1 <= result.scores["rank"] <= model.unet.width(model.hook_point)


def test_scores_are_what_they_say(model, short, feature):
    result, = visualize(model, [job(model, feature)], short, batch_size=1)
    own, everything, heat = measure(model, result.latent[None], [result.job])
    assert result.activation == pytest.approx(own.item(), abs=1e-5)
    assert result.scores["rank"] == 1 + int((everything > own).sum())
    assert result.scores["latent_std"] == pytest.approx(result.latent.std().item())
    assert result.scores["latent_share_beyond_3"] == (result.latent.abs() > 3).float().mean().item()
    again = measure(model, model.encode(result.image[None]), [result.job])[0]
    assert result.scores["activation_reencoded"] == pytest.approx(again.item(), abs=1e-4)
    assert len(result.history["activation"]) == short.num_steps
    assert torch.allclose(result.heat, heat[0], atol=1e-5)
    assert result.heat.mean().item() == pytest.approx(own.item(), abs=1e-5)
    ranked = everything[0].argsort(descending=True).tolist()
    assert [i for i, _ in result.others] == [i for i in ranked if i != feature][:10]
    assert dict(result.others) == pytest.approx({i: everything[0, i].item() for i, _ in result.others}, abs=1e-5)
    assert result.nearest_channel == int(model.sae.W_dec[feature].argmax())
    assert result.stored_steps == [] == result.frames


def test_pictures_of_the_course_are_those_of_the_steps(model, short, feature):
    """Kept evenly from the start to the end; each is its step's latent, decoded; keeping them changes nothing."""
    assert kept_steps(100, 8) == [0, 14, 29, 43, 57, 71, 86, 100]
    assert kept_steps(3, 8) == [0, 1, 2, 3] and kept_steps(5, 0) == [] and kept_steps(5, 2) == [0, 5]
    mine = job(model, feature)
    result, = stream(model, [mine], short, 1, frames=3)
    plain, = stream(model, [mine], short, 1)
    steps = list(ascend(model, [mine], short))
    latents = [steps[0].before, steps[2].after, steps[-1].after]
    assert result.stored_steps == [0, 3, 6] and len(result.frames) == 3
    for frame, z in zip(result.frames, latents):
        assert torch.allclose(frame, model.decode(z)[0], atol=1e-5)
    assert torch.equal(result.frames[-1], result.image)
    assert torch.equal(result.latent, plain.latent) and result.scores == plain.scores


def test_a_seeded_picture_equals_the_stored_one(model, short, feature):
    """Recorded by `python -m tests.record_picture`. Kernels of other machines round differently: a mean of 2 in 255."""
    record = json.loads(Path("tests/fixtures/picture.json").read_text())
    result, = visualize(model, [Job(**record["job"])], Config(**record["config"]), batch_size=1)
    stored = torch.from_numpy(np.asarray(Image.open("tests/fixtures/picture.png"), dtype=np.float32))
    assert (torch.from_numpy(to_uint8(result.image)).float() - stored).abs().mean() < 2
