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
from tests.seeded import HOOK, TOLERANCE, TOY, TOY_HOOKS, compare, filled, randn, relative_error

PARTS = list(TOY)
COUNTS = {"unet": 859_520_964, "vae": 83_653_863, "clip_text": 123_060_480, "clip": 427_616_513}


@pytest.mark.parametrize("part", PARTS)
def test_toy(part):
    """Two rows: noise, hook outputs on the way down, in the middle and up, decode, encode, text, and gradients of them.
    """
    compare(seeded.toy_outputs(part), record.toy_outputs(part), f"toy {part}")


def test_full_unet():
    """One latent 4x64x64: noise, two hook points, the gradient that the ascent uses."""
    tensors = seeded.weights(seeded.shapes(seeded.on_meta("unet")))
    inputs, hooks = seeded.unet_inputs(1, 64, 768), ("mid_block.attentions.0", HOOK)
    theirs = record.unet_outputs(record.official("unet", tensors=tensors), *inputs, hooks, (HOOK,))
    compare(seeded.unet_outputs(filled("unet", tensors=tensors), *inputs, hooks, (HOOK,)), theirs, "full unet")


def test_full_vae():
    """One latent 4x64x64 and one 512 px image, values; the toy covers the gradients."""
    tensors = seeded.weights(seeded.shapes(seeded.on_meta("vae")))
    inputs = seeded.vae_inputs(1, 64, 8)
    with torch.no_grad():
        theirs = record.vae_outputs(record.official("vae", tensors=tensors), *inputs, gradients=False)
        compare(seeded.vae_outputs(filled("vae", tensors=tensors), *inputs, gradients=False), theirs, "full vae")


def test_full_text():
    """Two prompts of random tokens, all 77 positions."""
    tensors = seeded.weights(seeded.shapes(seeded.on_meta("clip_text")))
    ids = seeded.text_inputs(vocab=49408)
    theirs = record.text_outputs(record.official("clip_text", tensors=tensors), ids)
    compare(seeded.text_outputs(filled("clip_text", tensors=tensors), ids), theirs, "full text")


def test_full_clip():
    """Two pictures and three texts, raw, as they come: embeddings, logits, gradients with respect to the pixels."""
    tensors = seeded.weights(seeded.shapes(seeded.on_meta("clip")))
    images, texts = [soft_picture(640, 360), soft_picture(224, 301)], list(seeded.TEXTS[:3])
    theirs = record.clip_outputs(record.official("clip", tensors=tensors), *record.clip_inputs(images, texts))
    pixels, ids = torch.stack([preprocess(image) for image in images]), clip_vocab.tokenizer()(texts)
    compare(seeded.clip_outputs(filled("clip", tensors=tensors), pixels, ids), theirs, "full clip")


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
    assert image.mode == mode and torch.equal(preprocess(image)[None], record.official_pixels([image]))


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


@pytest.mark.parametrize("part", PARTS)
def test_same_tensors_and_sizes(part):
    """At SD's size: the same names and shapes as the official network, and as many parameters as the published files.
    """
    ours, theirs = seeded.on_meta(part), record.on_meta(part, record.SD[part])
    assert seeded.shapes(ours) == record.shapes(theirs)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == COUNTS[part]


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
def test_same_settings(part):
    """Every eps, group count, stride and padding equals the official module's of the same name: an
    eps is too small to measure.
    """
    assert settings(seeded.on_meta(part)) == settings(record.on_meta(part, record.SD[part]))


@pytest.mark.parametrize("part", PARTS)
def test_stored_outputs_are_the_official_ones(part):
    """The fixtures of the fast tests are what the libraries give today."""
    tensors, metadata = seeded.stored(part)
    assert metadata["seed"] == str(seeded.SEED)
    assert torch.allclose(tensors.pop("fingerprint"), seeded.fingerprint(part), rtol=1e-6)
    compare(record.toy_outputs(part), tensors, f"stored {part}")


def changes(net, run):
    """{tensor: relative change of each output when that tensor alone is set to zero}."""
    with torch.no_grad():
        before, out = run(), {}
        for name, p in net.named_parameters():
            kept = p.clone()
            p.zero_()
            out[name] = {key: relative_error(y, before[key]) for key, y in run().items()}
            p.copy_(kept)
        assert all(torch.equal(y, before[key]) for key, y in run().items())
    return out


def test_sensitive_to_every_unet_tensor():
    """Each of 686 tensors moves the noise by more than the tolerance, and the hook's output if
    and only if it comes before.
    """
    net, (z, t, context) = filled("unet", TOY["unet"]), seeded.unet_inputs(batch=1)
    visited, captured = [], {}
    handles = [m.register_forward_hook(lambda *_, name=name: visited.append(name)) for name, m in net.named_modules()
               if next(m.parameters(recurse=False), None) is not None]
    net(z, t, context, until=HOOK)
    for handle in handles:
        handle.remove()
    net.get_submodule(HOOK).register_forward_hook(lambda module, args, y: captured.__setitem__("hook", y))

    seen = changes(net, lambda: {"noise": net(z, t, context), "hook": captured["hook"]})
    assert len(seen) == 686
    assert [name for name, change in seen.items() if change["noise"] < 10 * TOLERANCE] == []
    before = {name for name in seen if name.rpartition(".")[0] in visited}
    assert {name for name, change in seen.items() if change["hook"] > 10 * TOLERANCE} == before
    assert {name for name, change in seen.items() if change["hook"] == 0} == seen.keys() - before


def no_effect(name):
    """A key's bias adds the same to all scores of a query, and the softmax takes it out again: no output can show it.
    """
    return name.endswith(("to_k.bias", "k_proj.bias"))


def test_sensitive_to_every_vae_tensor():
    """Each tensor moves the decoded image or the encoder's moments by more than the tolerance."""
    net, (z, images) = filled("vae", TOY["vae"]), seeded.vae_inputs(batch=1)
    seen = changes(net, lambda: seeded.vae_outputs(net, z, images, gradients=False))
    missed = [name for name, change in seen.items() if max(change.values()) < 10 * TOLERANCE]
    assert missed == [name for name in seen if no_effect(name)] and len(missed) == 2
    crossed = [name for name, c in seen.items() if (c["decode"] > 0) == (c["mean"] > 0) and not no_effect(name)]
    assert crossed == []                                        # no tensor serves both directions


def test_sensitive_to_every_text_tensor():
    net, ids = filled("clip_text", TOY["clip_text"]), seeded.text_inputs()
    seen = changes(net, lambda: seeded.text_outputs(net, ids))
    missed = [name for name, change in seen.items() if change["embedding"] < 10 * TOLERANCE]
    assert missed == [name for name in seen if no_effect(name)] and len(missed) == 2


def test_sensitive_to_every_clip_tensor():
    """Each tensor moves its own side's embedding or, the scale, the logits. Without a projection these are NaN."""
    net, texts = filled("clip", TOY["clip"]), list(seeded.TEXTS)
    pixels, ids = torch.stack([preprocess(image, 32) for image in seeded.pictures()]), clip_vocab.tokenizer()(texts)
    run = lambda: {"image": net.embed_images(pixels), "text": net.embed_texts(ids), "logits": net(pixels, ids)}
    seen = changes(net, run)
    missed = [name for name, change in seen.items() if all(error < 10 * TOLERANCE for error in change.values())]
    assert missed == [name for name in seen if no_effect(name)] and len(missed) == 4
    sides = {name: {side for side in ("image", "text") if change[side] != 0} for name, change in seen.items()}
    assert all(side <= {"text" if name.startswith("text") else "image"} for name, side in sides.items())
    assert sides["logit_scale"] == set() and seen["logit_scale"]["logits"] > 10 * TOLERANCE


HOOK_POINTS = filled("unet", TOY["unet"]).hook_points


@pytest.mark.parametrize("hook", HOOK_POINTS)
def test_every_hook_point(hook):
    """Its output, the output's gradient, the noise after an addition there: as forward hooks on diffusers see them."""
    (z, t, context), ours = seeded.unet_inputs(), filled("unet", TOY["unet"])
    theirs = record.official("unet", TOY["unet"])
    v, caught = randn(2, ours.width(hook), seed=8), []

    def push(module, args, output):
        """A transformer's output is a tuple, all others are tensors."""
        y = output[0] if isinstance(output, tuple) else output
        caught.append(y)
        pushed = y + v[:, :, None, None]
        return (pushed,) if isinstance(output, tuple) else pushed

    leaf = z.clone().requires_grad_()
    theirs.get_submodule(hook).register_forward_hook(push)
    expected = {"noise": theirs(leaf, t, encoder_hidden_states=context).sample.detach(), hook: caught[0].detach(),
                f"gradient {hook}": seeded.gradient(caught[0], leaf)}
    found = seeded.unet_outputs(ours, z, t, context, (hook,), (hook,)) | {"noise": ours(z, t, context, add={hook: v})}
    compare(found, expected, "toy hook")


def test_rows_are_independent():
    """A row alone gives what it gives beside another: nothing is normalised over the batch."""
    net, (z, t, context) = filled("unet", TOY["unet"]), seeded.unet_inputs()
    both = seeded.unet_outputs(net, z, t, context, TOY_HOOKS, ())
    alone = seeded.unet_outputs(net, z[1:], t[1:], context[1:], TOY_HOOKS, ())
    compare(alone, {key: y[1:] for key, y in both.items()}, "toy row")
