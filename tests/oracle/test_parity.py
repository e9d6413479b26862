"""Networks, samplers and token ids against diffusers and transformers: values and gradients, at toy size and at Stable
Diffusion's size. Both sides get the same seeded weights, every tensor random (tests/seeded.py).
"""
import random
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from activity.capture import GRIDS
from legibility.vision import CLIPScorer, preprocess
from schedule import SAMPLERS, Schedule
from steering import predict, read_hook
from tests import clip_vocab, seeded
from tests.oracle import record
from tests.seeded import HOOK, LEAVES, TOY, TOY_HOOKS, compare, filled, gradient, outputs, randn, relative_error
from tests.tiny import edit_tensors


def noise(width, height):
    return Image.frombytes("RGB", (width, height), random.Random(width + height).randbytes(width * height * 3))


def soft(width, height):
    """Noise of a few pixels, enlarged: soft edges, every colour."""
    return noise(9, 7).resize((width, height), Image.Resampling.BILINEAR)


def clip_inputs():
    pictures = soft(640, 360), soft(224, 301)
    return torch.stack([preprocess(picture) for picture in pictures]), clip_vocab.tokenizer()(list(seeded.TEXTS[:3]))


@pytest.mark.parametrize("part, inputs, leaves, hooks", [
    ("unet", seeded.unet_inputs(1, 64, 768), {HOOK: 0}, {"hooks": ("mid_block.attentions.0", HOOK)}),
    ("vae", seeded.vae_inputs(1, 64, 8), {}, {}),               # 512 px; the toy covers the gradients
    ("clip_text", [seeded.text_inputs(vocab=49408)], {}, {}),
    ("clip", clip_inputs(), LEAVES["clip"], {})], ids=["unet", "vae", "text", "clip"])
def test_full_size(part, inputs, leaves, hooks):
    """The published networks on their sizes of latents, images and prompts; the gradient that the ascent uses."""
    tensors = seeded.weights(seeded.shapes(seeded.on_meta(part)))
    ours, theirs = (outputs(side.RUNS[part], net(part, tensors=tensors), inputs, leaves, **hooks)
                    for side, net in ((seeded, filled), (record, record.official)))
    compare(ours, theirs, f"full {part}")


SIZES = ((224, 224), (512, 512), (225, 224), (224, 225), (447, 223), (640, 359), (333, 1001), (64, 64), (31, 20),
         (1, 3))


def test_pixels_are_equal_to_the_bit():
    """Larger and smaller than what the network sees, wide and high, odd margins; soft pictures and noise; other modes.
    """
    pictures = [make(*size) for make in (soft, noise) for size in SIZES]
    for picture in pictures + [soft(300, 200).convert(mode) for mode in ("L", "1", "P", "CMYK", "YCbCr", "HSV")]:
        assert torch.equal(preprocess(picture)[None], record.official_pixels([picture])), picture


@pytest.mark.parametrize("positions", (False, True))
def test_a_folder_that_the_library_saved(tmp_path, positions):
    """Config and names are the library's own of today, or hold position_ids as the published file does."""
    theirs = record.official("clip", TOY["clip"])
    theirs.save_pretrained(tmp_path)
    if positions:
        ids = {f"{tower}_model.embeddings.position_ids": torch.arange(n)[None]
               for tower, n in (("text", 77), ("vision", 17))}
        edit_tensors(tmp_path / "model.safetensors", lambda tensors: tensors | ids)
    images, texts, scorer = seeded.pictures(), list(seeded.TEXTS), CLIPScorer(tmp_path)
    with torch.no_grad():
        out = theirs(**dict(zip(("pixel_values", "input_ids"), record.clip_inputs(images, texts, 32))))
    compare({"image": scorer.images(images), "text": scorer.texts(texts)},
            {"image": out.image_embeds, "text": out.text_embeds}, "clip")


def settings(net):
    """Numbers that no tensor shows: {module: (its kind, what it is set to)} of all norms and convolutions."""
    out = {}
    for name, m in net.named_modules():
        if isinstance(m, nn.GroupNorm):
            out[name] = ("GroupNorm", m.num_groups, m.eps)
        elif isinstance(m, nn.LayerNorm):
            out[name] = ("LayerNorm", m.normalized_shape, m.eps)
        elif isinstance(m, nn.Conv2d):
            out[name] = ("Conv2d", m.kernel_size, m.stride, m.padding, m.dilation, m.groups)
    return out


@pytest.mark.parametrize("part", TOY)
def test_same_tensors_and_settings(part):
    """At SD's size: names and shapes, every eps, group count, stride and padding: an eps is too small to measure."""
    ours, theirs = seeded.on_meta(part), record.on_meta(part, record.SD[part])
    assert seeded.shapes(ours) == seeded.shapes(theirs) and settings(ours) == settings(theirs)


@pytest.mark.parametrize("part", record.PARTS)
def test_stored_outputs_are_the_official_ones(part):
    """The fixtures of the fast tests are what the libraries give today. Of token ids a difference of 1 is too much."""
    tensors, metadata = seeded.stored(part)
    assert metadata["seed"] == str(seeded.SEED)
    compare(record.recorded(part), tensors, f"stored {part}")


@pytest.mark.parametrize("hook", seeded.on_meta("unet").hook_points)
def test_every_hook_point(hook):
    """Its output, the output's gradient, the noise after an addition there: as forward hooks on diffusers see them."""
    inputs, ours, theirs = seeded.unet_inputs(), filled("unet", TOY["unet"]), record.official("unet", TOY["unet"])
    v, caught = randn(2, ours.width(hook), seed=8), []

    def push(module, args, output):
        """A transformer's output is a tuple, all others are tensors."""
        y = output[0] if isinstance(output, tuple) else output
        caught.append(y)
        pushed = y + v[:, :, None, None]
        return (pushed,) if isinstance(output, tuple) else pushed

    theirs.get_submodule(hook).register_forward_hook(push)
    official = lambda net, *inputs: {"noise": net(*inputs[:2], encoder_hidden_states=inputs[2]).sample, hook: caught[0]}
    model = SimpleNamespace(unet=ours, hook_point=hook, dtype=torch.float32, sae=None)
    own = lambda net, *inputs: {"noise": predict(model, *inputs, v)[0], hook: net(*inputs, until=hook)}
    compare(outputs(own, ours, inputs, {hook: 0}), outputs(official, theirs, inputs, {hook: 0}), "toy hook")


@pytest.mark.parametrize("hook", TOY_HOOKS)
def test_the_update_of_an_attention_and_its_gradient(hook):
    """Its output minus its input, where an SAE reads that."""
    (z, t, context), caught, found = seeded.unet_inputs(), [], []
    model = SimpleNamespace(unet=filled("unet", TOY["unet"]), hook_point=hook, dtype=torch.float32,
                            sae=SimpleNamespace(reads="update"))
    theirs = record.official("unet", TOY["unet"])
    theirs.get_submodule(hook).register_forward_hook(lambda _, args, out: caught.append(out[0] - args[0]))
    for run in (lambda leaf: read_hook(model, leaf, t, context),
                lambda leaf: theirs(leaf, t, encoder_hidden_states=context) and caught[0]):
        leaf = z.clone().requires_grad_(True)
        h = run(leaf)
        found.append({"update": h.detach(), "gradient": gradient(h, leaf)})
    assert not torch.allclose(found[0]["update"], model.unet(z, t, context, until=hook), atol=1e-2)
    compare(*found, hook)


def test_betas_of_other_ranges_bit_for_bit():
    """Ours keeps only abar, the product. The usual range is among the stored outputs."""
    other = record.DDIMScheduler(**{**record.SCHEDULE, "beta_start": 0.001, "beta_end": 0.02})
    assert torch.equal(Schedule(beta_start=0.001, beta_end=0.02).alphas_cumprod, other.alphas_cumprod)


@pytest.mark.parametrize("steps", (3, 20, 50))
@pytest.mark.parametrize("kind", SAMPLERS)
def test_sampler_with_the_toy_unet(kind, steps):
    """Guided, up to 50 steps. In float64: a random network at guidance 7.5 amplifies float32's rounding past 1e-6."""
    z, _, contexts = seeded.unet_inputs()
    x, text, null = z[:1].double(), contexts[:1].double(), contexts[1:].double()
    predict = record.guided_eps(record.official("unet", TOY["unet"]).double(), text, null, 7.5)
    times, expected = record.trajectory(kind, predict, x, steps)
    ours = list(SAMPLERS[kind](Schedule(), predict, x, steps))
    error = relative_error(torch.stack([y for _, y in ours]), expected)
    print(f"{kind} {steps} steps, toy unet, float64: {error:.1e}")
    assert [t for t, _ in ours] == times and error < 1e-6


@pytest.mark.parametrize("dtype, tolerance", ((torch.float32, 1e-7), (torch.float16, 1e-3)))
@pytest.mark.parametrize("kind", SAMPLERS)
def test_add_noise(kind, dtype, tolerance):
    """A time step for each row, over all 1,000."""
    t = torch.arange(1000)
    z, eps = (randn(1000, 4, 2, 2, seed=s).to(dtype) for s in (9, 10))
    ours, expected = Schedule().add_noise(z, eps, t), record.scheduler(kind).add_noise(z, eps, t)
    assert ours.dtype == dtype and relative_error(ours, expected) <= tolerance


@pytest.mark.parametrize("name", GRIDS)
def test_token_ids_of_captures(name):
    """All objects in all styles, as the published data sets word them, with underscores and without."""
    prompts = [*GRIDS[name], *(prompt.replace(" ", "_") for prompt in GRIDS[name])]
    assert torch.equal(clip_vocab.tokenizer()(prompts), record.official_ids(prompts))
