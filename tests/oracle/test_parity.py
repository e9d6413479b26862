"""The networks against diffusers and transformers: values and gradients, at toy size and at Stable Diffusion's size.

Both sides get the same seeded weights, every tensor random (tests/seeded.py). The last tests show that the comparison
sees every single tensor.
"""
import random

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from legibility.image_text import CLIPScorer
from legibility.vision import preprocess
from tests import clip_vocab, seeded
from tests.oracle import record
from tests.seeded import HOOK, LEAVES, TOLERANCE, TOY, compare, filled, outputs, randn, relative_error

PARTS = list(TOY)
COUNTS = {"unet": 859_520_964, "vae": 83_653_863, "clip_text": 123_060_480, "clip": 427_616_513}


@pytest.mark.parametrize("part, inputs, leaves, hooks", [
    ("unet", seeded.unet_inputs(1, 64, 768), {HOOK: 0}, {"hooks": ("mid_block.attentions.0", HOOK)}),
    ("vae", seeded.vae_inputs(1, 64, 8), {}, {}),               # 512 px; the toy covers the gradients
    ("clip_text", [seeded.text_inputs(vocab=49408)], {}, {})], ids=["unet", "vae", "text"])
def test_full_size(part, inputs, leaves, hooks):
    """Stable Diffusion's networks on its sizes of latents, images and prompts; the gradient that the ascent uses."""
    tensors = seeded.weights(seeded.shapes(seeded.on_meta(part)))
    ours, theirs = (outputs(side.RUNS[part], net(part, tensors=tensors), inputs, leaves, **hooks)
                    for side, net in ((seeded, filled), (record, record.official)))
    compare(ours, theirs, f"full {part}")


def test_full_clip():
    """Two pictures and three texts, raw, as they come: embeddings, logits, gradients with respect to the pixels."""
    tensors = seeded.weights(seeded.shapes(seeded.on_meta("clip")))
    images, texts = [soft_picture(640, 360), soft_picture(224, 301)], list(seeded.TEXTS[:3])
    inputs = torch.stack([preprocess(image) for image in images]), clip_vocab.tokenizer()(texts)
    ours = outputs(seeded.RUNS["clip"], filled("clip", tensors=tensors), inputs, LEAVES["clip"])
    inputs, net = record.clip_inputs(images, texts), record.official("clip", tensors=tensors)
    compare(ours, outputs(record.clip_run, net, inputs, LEAVES["clip"]), "full clip")


def soft_picture(width, height, mode="RGB"):
    """Noise of a few pixels, enlarged: soft edges, every colour."""
    small = Image.frombytes("RGB", (9, 7), random.Random(width * height).randbytes(9 * 7 * 3))
    return small.resize((width, height), Image.Resampling.BILINEAR).convert(mode)


def noise_picture(width, height):
    return Image.frombytes("RGB", (width, height), random.Random(width + height).randbytes(width * height * 3))


SIZES = ((224, 224), (512, 512), (225, 224), (224, 225), (447, 223), (640, 359), (333, 1001), (64, 64), (31, 20),
         (1, 3))


@pytest.mark.parametrize("width, height", SIZES)
def test_pixels_are_equal_to_the_bit(width, height):
    """Larger and smaller than what the network sees, wide and high, odd margins; soft pictures and noise."""
    for image in (soft_picture(width, height), noise_picture(width, height)):
        assert torch.equal(preprocess(image)[None], record.official_pixels([image]))


@pytest.mark.parametrize("mode", ("L", "1", "P", "CMYK", "YCbCr", "HSV"))
def test_pixels_of_pictures_in_other_modes(mode):
    image = soft_picture(300, 200, mode)
    assert torch.equal(preprocess(image)[None], record.official_pixels([image]))


@pytest.mark.parametrize("positions", (False, True))
def test_a_folder_that_the_library_saved(tmp_path, positions):
    """Config and names are the library's own of today, or hold position_ids as the published file does."""
    theirs = record.official("clip", TOY["clip"])
    theirs.save_pretrained(tmp_path)
    if positions:
        path = tmp_path / "model.safetensors"
        ids = {f"{tower}_model.embeddings.position_ids": torch.arange(n)[None]
               for tower, n in (("text", 77), ("vision", 17))}
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        save_file(tensors | ids, path.with_name("new"))
        path.with_name("new").replace(path)
    images, texts, scorer = seeded.pictures(), list(seeded.TEXTS), CLIPScorer(tmp_path)
    with torch.no_grad():
        out = theirs(**dict(zip(("pixel_values", "input_ids"), record.clip_inputs(images, texts, 32))))
    compare({"image": scorer.images(images), "text": scorer.texts(texts)},
            {"image": out.image_embeds, "text": out.text_embeds}, "clip")


def settings(net):
    """Numbers that no tensor shows: {module: (its kind, what it is set to)} of all norms and convolutions."""
    out = {}
    for name, m in net.named_modules():
        name = name.removeprefix("text_model.")
        if isinstance(m, nn.GroupNorm):
            out[name] = ("GroupNorm", m.num_groups, m.eps)
        elif isinstance(m, nn.LayerNorm):
            out[name] = ("LayerNorm", m.normalized_shape, m.eps)
        elif isinstance(m, nn.Conv2d):
            out[name] = ("Conv2d", m.kernel_size, m.stride, m.padding, m.dilation, m.groups)
    return out


@pytest.mark.parametrize("part", PARTS)
def test_same_tensors_and_settings(part):
    """At SD's size: names and shapes, as many parameters as published, every eps, group count, stride and padding: an
    eps is too small to measure.
    """
    ours, theirs = seeded.on_meta(part), record.on_meta(part, record.SD[part])
    assert seeded.shapes(ours) == record.shapes(theirs) and settings(ours) == settings(theirs)
    assert sum(p.numel() for p in ours.parameters()) == COUNTS[part]


@pytest.mark.parametrize("part", PARTS)
def test_stored_outputs_are_the_official_ones(part):
    """The fixtures of the fast tests are what the libraries give today."""
    tensors, metadata = seeded.stored(part)
    assert metadata["seed"] == str(seeded.SEED)
    assert torch.allclose(tensors.pop("fingerprint"), seeded.fingerprint(part), rtol=1e-6)
    compare(record.toy_outputs(part), tensors, f"stored {part}")


@pytest.mark.parametrize("part", PARTS)
@torch.no_grad()
def test_sensitive_to_every_tensor(part):
    """Set to zero, each alone moves some output by far more than the tolerance. But for the bias of a key: it adds the
    same to all scores of a query, and the softmax takes it out again.
    """
    net, inputs, hooks = filled(part, TOY[part]), [x[:1] for x in seeded.INPUTS[part]()], {}
    if part == "unet":
        hooks = {"hooks": ()}
    before = outputs(seeded.RUNS[part], net, inputs, **hooks)
    for name, p in net.named_parameters():
        kept = p.clone()
        p.zero_()
        after = outputs(seeded.RUNS[part], net, inputs, **hooks)
        p.copy_(kept)
        seen = [not relative_error(after[key], y) < 10 * TOLERANCE for key, y in before.items()]       # NaN, too
        assert any(seen) != name.endswith(("to_k.bias", "k_proj.bias")), name


HOOK_POINTS = filled("unet", TOY["unet"]).hook_points


@pytest.mark.parametrize("hook", HOOK_POINTS)
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
    own = lambda net, *inputs: {"noise": net(*inputs, add={hook: v}), hook: net(*inputs, until=hook)}
    compare(outputs(own, ours, inputs, {hook: 0}), outputs(official, theirs, inputs, {hook: 0}), "toy hook")


def test_rows_are_independent():
    """A row alone gives what it gives beside another: nothing is normalised over the batch."""
    net, inputs = filled("unet", TOY["unet"]), seeded.unet_inputs()
    both, alone = outputs(seeded.unet_run, net, inputs), outputs(seeded.unet_run, net, [x[1:] for x in inputs])
    compare(alone, {key: y[1:] for key, y in both.items()}, "toy row")
