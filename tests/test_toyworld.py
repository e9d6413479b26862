"""The toy world: drawings are what their labels say, training resumes, the measures of the evaluation are right."""
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from clip import Tokenizer
from legibility import vocabulary
from schedule import Schedule
from toyworld import denoiser, drawings, evaluate, evaluate_legibility, hook, quick, train
from toyworld.eyes import contrast
from toyworld.evaluate import find_concepts, right, wilson
from toyworld.finishing import insert
from toyworld.fit import fit, learning_rate
from toyworld.judge import load_judge
from toyworld.train import learn_bpe
from unet import UNet
from weights.eyes import load_eyes
from weights.load import load


def test_a_drawing_depends_on_its_number_and_its_world_alone():
    assert np.array_equal(drawings.drawing(123), drawings.drawing(123))
    assert not np.array_equal(drawings.drawing(123), drawings.drawing(123, seed=1))
    assert drawings.drawing(0).shape == (64, 64, 3) and drawings.drawing(0).dtype == np.uint8


def test_every_pair_comes_once_in_eighty():
    assert len({drawings.labels(i) for i in range(80)}) == 80
    assert drawings.labels(80) == drawings.labels(0)
    assert drawings.caption("Tree", "Winter") == "A Tree image in Winter style"
    assert drawings.caption("Tree", None) == "A Tree image" and drawings.caption(None, None) == ""
    assert drawings.caption(None, "Winter") == "A image in Winter style"


@pytest.fixture(scope="module")
def unseen():
    """160 drawings (160, 64, 64, 3) uint8 that nothing was trained on, and their objects and styles (160, 2)."""
    return (np.stack([drawings.drawing(i, seed=2) for i in range(160)]),
            torch.tensor([drawings.labels(i) for i in range(160)]))


def test_the_judge_knows_unseen_drawings(unseen):
    """99% is claimed on 1,600; a sample of 160 leaves room for three errors in each."""
    images, truth = unseen
    o, s, *_ = load_judge("weights/toy").verdict(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    assert (o != truth[:, 0]).sum() <= 3 and (s != truth[:, 1]).sum() <= 3


def test_the_eyes_know_unseen_drawings(unseen):
    """The nearest of the ten objects' words and of the eight styles'; a sample of 80 leaves room for eight errors."""
    eyes, (images, truth) = load_eyes("weights/toy/clip"), unseen
    words = vocabulary("weights/toy/clip/words.txt")
    assert words["Flower"] == "A Flower image" and words["Winter"] == "A image in Winter style" and len(words) == 18
    seen = eyes.images([Image.fromarray(image) for image in images[:80]])                       # (80, E)
    for kind, names in enumerate((drawings.OBJECTS, drawings.STYLES)):
        said = (seen @ eyes.texts([words[name] for name in names]).T).argmax(1)
        assert (said != truth[:80, kind]).sum() <= 8


def test_the_autoencoder_keeps_what_the_judge_sees(unseen):
    model, judge = load("weights/toy"), load_judge("weights/toy")
    images, truth = torch.from_numpy(unseen[0][:80]).permute(0, 3, 1, 2).float() / 255, unseen[1][:80]
    again = model.decode(model.encode(images))
    assert -10 * (again - images).square().mean().log10() > 20
    o, s, *_ = judge.verdict(again)
    assert (o == truth[:, 0]).float().mean() > 0.9 and (s == truth[:, 1]).float().mean() > 0.9


def test_every_caption_word_is_one_token_of_the_toy():
    tokenizer = load("weights/toy").tokenizer
    for o in drawings.OBJECTS:
        for s in drawings.STYLES:
            assert len(tokenizer.ids(drawings.caption(o, s))) == 6
    assert tokenizer.ids("ünknown") and tokenizer.vocab["<|endoftext|>"] not in tokenizer.ids("ünknown 12 !?")


def test_learnt_merges_by_hand():
    """'aab' twice and 'ab' three times: (a, b</w>) is met 5 times and goes first, then (a, ab</w>)."""
    merges = learn_bpe({"aab": 2, "ab": 3})
    assert merges == [("a", "b</w>"), ("a", "ab</w>")]
    assert Tokenizer({}, merges).bpe("aab") == ["aab</w>"]


def quadratic(seed=0):
    torch.manual_seed(seed)
    net = nn.Linear(4, 2)

    def loss(step, generator):
        x = torch.randn(8, 4, generator=generator)
        return (net(x) - x[:, :2]).square().mean(), {}
    return net, loss


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    settings = dict(steps=60, lr=0.01, device="cpu", warmup=5)
    whole, loss = quadratic()
    fit("net", whole, loss, folder=tmp_path / "whole", **settings)
    killed, loss = quadratic()

    def dies(step, generator):
        if step == 37:
            raise KeyboardInterrupt
        return loss(step, generator)
    with pytest.raises(KeyboardInterrupt):
        fit("net", killed, dies, folder=tmp_path / "killed", save_seconds=0, **settings)
    again, loss = quadratic(seed=9)
    fit("net", again, loss, folder=tmp_path / "killed", **settings)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters()))
    assert [json.loads(line)["step"] for line in open(tmp_path / "whole/net.jsonl")] == [50, 60]


def test_learning_rate_by_hand():
    assert learning_rate(0, 100, 1.0, 10) == pytest.approx(0.1) and learning_rate(10, 100, 1.0, 10) == 1.0
    assert learning_rate(55, 100, 1.0, 10) == pytest.approx(0.5) and learning_rate(100, 100, 1.0,
                                                                                   10) == pytest.approx(0.0)


def test_concepts_are_found_and_only_those():
    """Feature 0 likes object 3, 1 likes style 2, 2 likes their pair, 3 anything, 4 is silent on most."""
    n = 80 * 60
    objects, styles = torch.tensor([drawings.labels(i) for i in range(n)]).T
    noise = torch.rand(n, 5, generator=torch.Generator().manual_seed(0))
    likes = torch.stack([objects == 3, styles == 2, (objects == 3) & (styles == 2), objects >= 0, torch.arange(n) < 20],
                        dim=1)
    found = {c["feature"]: c for c in find_concepts(noise * likes, objects, styles)}
    assert set(found) == {0, 1, 2}
    assert (found[0]["kind"], found[0]["object"], found[0]["style"]) == ("object", "Fish", None)
    assert (found[1]["kind"], found[1]["object"], found[1]["style"]) == ("style", None, "Pointillism")
    assert (found[2]["kind"], found[2]["object"], found[2]["style"]) == ("pair", "Fish", "Pointillism")


def test_agreement_with_the_judge():
    fish = {"object": "Fish", "style": None}
    neon = {"object": None, "style": "Neon"}
    both = {"object": "Fish", "style": "Neon"}
    assert right([fish, fish, neon, neon, both, both], [3, 4, 0, 0, 3, 3], [0, 4, 4, 3, 4, 3]).tolist() == [True, False,
                                                                                                            True, False,
                                                                                                            True, False]


def test_wilson_interval():
    """50 of 100: 0.404 to 0.596, the textbook value."""
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == pytest.approx(1.0)


def test_the_contrast_of_the_eyes_by_hand():
    """Both captions are true of drawing 0, the second alone of drawing 1; with logits ln of [[1, 3], [1, 1]] the rows'
    shares are 1/4, 3/4 and 1/2, 1/2, the columns' 1/2, 1/2 and 3/4, 1/4."""
    logits, true = torch.tensor([[1.0, 3.0], [1.0, 1.0]]).log(), torch.tensor([[True, True], [False, True]])
    ln = lambda *shares: sum(-np.log(share) for share in shares) / len(shares)
    rows, columns = (ln(1 / 4, 3 / 4) + ln(1 / 2)) / 2, (ln(1 / 2) + ln(3 / 4, 1 / 4)) / 2
    assert contrast(logits, true).item() == pytest.approx((rows + columns) / 2)


def test_how_well_a_measure_predicts():
    """Of the six pairs one is the wrong way round, and one is equal."""
    values, truth = [5, 3, 2, 3, 1], [True, True, True, False, False]
    found = evaluate_legibility.predicts(values, truth)
    assert found["auc"] == 0.75 and (found["right"], found["wrong"]) == (3, 2)
    assert found["interval"][0] < 0.75 < found["interval"][1] == 1.0
    assert evaluate_legibility.predicts(values, [True] * 5)["auc"] is None


def test_a_threshold_is_chosen_on_one_half_and_tried_on_the_other():
    values, truth = [0.1, 0.2, 0.6, 0.7, 0.8], [False, True, False, True, True]
    assert evaluate_legibility.cut(values, truth) == 0.7
    rows = [{"feature": i, "seeds": v, "right": ok} for i, (v, ok) in enumerate(zip(values * 2, truth + [False] * 5))]
    found = evaluate_legibility.threshold(rows, "seeds", half={*range(5)})
    assert found["at"] == 0.7 and found["from it upwards"]["n"] == 2 and found["from it upwards"]["share"] == 0
    assert found["below it"]["n"] == 3 and evaluate_legibility.threshold(rows, "seeds", half={1, 3}) is None


def test_failures_are_the_surest_of_the_wrong_and_the_least_sure_of_the_right():
    rows = [{"feature": i, "concept": "Fish", "judge": "Cat", "name": "Cat", "seeds": i / 10, "right": i % 2 == 0}
            for i in range(12)]
    found = evaluate_legibility.failures(rows + [{"right": True}], "seeds")
    assert [r["feature"] for r in found["high, but wrong"]] == [11, 9, 7, 5, 3]
    assert [r["feature"] for r in found["low, but right"]] == [0, 2, 4, 6, 8]


def test_quick_is_compared_feature_by_feature(tmp_path):
    """Feature 1: right in one of two seeds against both; feature 2 in both against none; a seed without its pair does
    not count. Means of 0.5 - 1 and 1 - 0; activations of 3 and 1 against 2 and 2."""
    entry = lambda feature, seed, right, a: {"finish": "", "feature": feature, "kind": "object", "seed": seed,
                                             "right": right, "activation": a, "activation_reencoded": a}
    for name, entries in ((quick.CHOSEN, [entry(1, 5, True, 4.0), entry(1, 6, False, 2.0), entry(2, 5, True, 1.0),
                                          entry(2, 6, True, 1.0), entry(3, 5, True, 9.0)]),
                          (quick.OWN, [entry(1, 5, True, 2.0), entry(1, 6, True, 2.0), entry(2, 5, False, 2.0),
                                       entry(2, 6, False, 2.0)])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    found = quick.compare(tmp_path)["ascent"]
    assert (found["pictures"], found["features"]) == (4, 2) and found["activation"]["ratio"] == 1.0
    assert found["named_right"] == {"difference": 0.25, "interval": [-0.5, 1.0]}
    assert found["activation"]["interval"] == [0.5, 1.5]
    assert found[quick.CHOSEN]["all"]["share"] == 0.75 and found[quick.OWN]["all"]["n"] == 4


def test_a_table_takes_its_own_place():
    once = insert("before\n", "rows", "| 1 |")
    assert insert(once + "after\n", "rows", "| 2 |") == once.replace("1", "2") + "after\n"


@torch.no_grad()
def test_what_the_text_says_passes_the_hook_point():
    """With the hook's output held, the toy predicts the same whatever the text."""
    model = load("weights/toy", "cpu")
    x, t = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([600])
    texts = [model.embed([text]) for text in ("", "A Tree image in Winter style")]
    held = model.unet(x, t, texts[0], until=model.hook_point)
    with hook.handing_on(model.unet.get_submodule(model.hook_point), lambda h: held):
        without, with_text = (model.unet(x, t, text) for text in texts)
    assert torch.equal(without, with_text)
    assert not torch.equal(model.unet(x, t, texts[1]), with_text)


@torch.no_grad()
def test_the_hook_point_names_what_a_drawing_shows():
    """By the empty prompt, on 160 unseen drawings at t 300: the largest of the ten objects' names, and of the eight
    styles', is the drawing's own. By chance 16 and 20 would be right."""
    images = torch.stack([torch.tensor(drawings.drawing(i, evaluate.UNSEEN)).movedim(-1, 0) for i in range(160)])
    said = evaluate.feature_activations(load("weights/toy", "cpu"), images, None, 300, lambda h: h @ denoiser.names().T)
    objects, styles = evaluate.pairs(160, "cpu")
    assert (said[:, :10].argmax(1) == objects).float().mean() > 0.8
    assert (said[:, 10:].argmax(1) == styles).float().mean() > 0.95


def test_names_are_at_right_angles():
    names = denoiser.names().double()
    torch.testing.assert_close(names @ names.T / denoiser.NAME ** 2, torch.eye(18).double(), rtol=0, atol=1e-5)


def test_a_feature_s_direction_draws_its_concept():
    """Four samples by the empty prompt for the strongest feature of each object, five times its strength added
    everywhere. By chance 4 of the 40 are named right, and 16 once in a million times."""
    model, judge = load("weights/toy"), load_judge("weights/toy")
    concepts = json.loads(Path("weights/toy/concepts.json").read_text())["features"]
    objects = [c for c in evaluate.chosen_by_rule(concepts) if c["kind"] == "object"]
    found = hook.steer(model, judge, objects, scales=(5,), steps=15)["by scale"]["5"]
    assert found["n"] == 40 and found["share"] >= 0.4


def test_the_stage_sight_goes_on_from_the_weights_that_are_there(tmp_path):
    """The toy names what it sees, with noise and most captions withheld, and two steps on 80 drawings do not undo that;
    what has no part in the model stays without."""
    out, runs, file = tmp_path / "toy", tmp_path / "runs", "unet/diffusion_pytorch_model.safetensors"
    shutil.copytree("weights/toy", out)
    runs.mkdir()
    images = np.stack([drawings.drawing(i) for i in range(80)]).transpose(0, 3, 1, 2)
    np.save(runs / f"drawings_0_{train.COUNT}.npy", images)
    train.main(["--stage", "sight", "--sight-steps", "2", "--out", str(out), "--runs", str(runs), "--device", "cpu"])
    line, = map(json.loads, (runs / "sight.jsonl").read_text().splitlines())
    assert line["step"] == 2 and line["unseen"] < 0.25
    before, after = load_file(f"weights/toy/{file}"), load_file(out / file)
    differ = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("down_blocks.0.resnets") for name in differ)
    assert not any("up_blocks.3.attentions" in name for name in differ)


def test_the_hook_output_is_roughened():
    """Of 4,000 rows a quarter keep only their mean over positions; a quarter, drawn again, get noise of 0.32 to 3.2
    times their own size. The rest are what they were."""
    h = torch.randn(4000, 64, 4, 4, generator=torch.Generator().manual_seed(1)) * 5 + 1
    given = denoiser.roughen(h, torch.Generator().manual_seed(2))
    mean = h.mean((2, 3), keepdim=True).expand_as(h)
    same, pooled = (torch.isclose(given, x, atol=1e-5).flatten(1).all(1) for x in (h, mean))
    noisy = ~(same | pooled)
    for found, share in ((same, 9 / 16), (pooled, 3 / 16), (noisy, 1 / 4)):
        assert found.float().mean().item() == pytest.approx(share, abs=0.025)
    off = torch.stack([(given - x)[noisy].square().mean((1, 2, 3)).sqrt() for x in (h, mean)])
    size = torch.stack([x[noisy].square().mean((1, 2, 3)).sqrt() for x in (h, mean)])
    sigma = (off / size)[off.argmin(0), torch.arange(off.shape[1])]
    assert 0.3 < sigma.min() < 0.35 and 2.9 < sigma.max() < 3.4 and sigma.median().item() == pytest.approx(1, abs=0.15)


def test_no_text_behind_the_hook_point_and_no_way_around_it():
    """A fresh network as it is trained: with the hook's output held, the text changes nothing, nor does training's
    passing by of what does nothing change what the plain network of the same weights gives."""
    torch.manual_seed(0)
    net = denoiser.Denoiser(600)
    net.narrow()
    for p in net.unet.parameters():                                 # a trained one has no zeros in what is trained
        if p.requires_grad and not p.any():
            nn.init.normal_(p, std=0.02)
    net.silence()
    x, t = torch.randn(1, 4, 16, 16), torch.tensor([600])
    texts = [torch.randn(1, 77, 64) for _ in range(2)]
    plain = UNet(**denoiser.sizes(denoiser.UNET_CONFIG, "unet"))
    plain.load_state_dict(net.unet.state_dict())
    outs = [net.unet(x, t, text) for text in texts]
    outs[0].square().sum().backward()                               # all that is trained has its part
    assert all(p.grad is not None for p in net.unet.parameters() if p.requires_grad)
    outs = [out.detach() for out in outs]
    assert not torch.allclose(*outs, atol=1e-4)
    assert all(torch.allclose(plain(x, t, text), out, atol=1e-5) for text, out in zip(texts, outs))
    held = plain(x, t, texts[0], until=denoiser.HOOK_POINT)
    plain.get_submodule(denoiser.HOOK_POINT).register_forward_hook(lambda module, inputs, h: held)
    assert torch.equal(plain(x, t, texts[0]), plain(x, t, texts[1]))


class Passing(nn.Module):
    """A network that predicts what its hook point gives, and that is its input."""

    def __init__(self):
        super().__init__()
        self.mid = nn.Identity()

    def forward(self, x, t, context, until=None):
        return self.mid(x)


def test_the_shift_without_the_hook_by_hand(monkeypatch):
    """z is 0, so x is sqrt(1 - abar) eps; all of it but its mean goes: shift = sqrt((1 - abar) / abar) rms x."""
    monkeypatch.setattr(hook, "make_drawings", lambda *_: torch.zeros(50, 1))
    monkeypatch.setattr(hook, "encode_all", lambda vae, images: torch.zeros(len(images), 4, 16, 16))
    model = SimpleNamespace(unet=Passing(), hook_point="mid", vae=None, device="cpu", schedule=Schedule(),
                            embed=lambda texts: torch.zeros(len(texts), 77, 8))
    found = hook.shift(model, None, n=50, times=(100, 600))
    for t in (100, 600):
        abar = model.schedule.alphas_cumprod[t].item()
        assert found["captions"][str(t)] == pytest.approx((1 - abar) / abar ** 0.5, rel=0.02)
    assert found["captions"] == found["empty prompt"] and not model.unet.mid._forward_hooks


class Told(nn.Module):
    """Predicts what its hook point gives, alike in four channels: what the text says everywhere, and position by
    position."""

    def __init__(self):
        super().__init__()
        self.mid = nn.Identity()

    def forward(self, x, t, context, until=None, add=None):
        h = self.mid(x - x + context[:, :1, :1, None].expand_as(x) + context[:, 1, :4].view(-1, 1, 2, 2))
        return h + add["mid"][:, :, None, None] if add else h


def test_captions_as_pushes_by_hand(monkeypatch):
    """z is 0 and the noise -1, so a prediction of -1 has no error, and 0 one of (1 - abar) / abar. Every object says -1
    everywhere, every style -1, 0, 0, 0: pushed alike that is -1/4."""
    say = {"": torch.zeros(2, 4)}
    say |= {drawings.caption(o, None): torch.tensor([[-1.0, 0, 0, 0], [0, 0, 0, 0]]) for o in drawings.OBJECTS}
    say |= {drawings.caption(None, s): torch.tensor([[0.0, 0, 0, 0], [-1, 0, 0, 0]]) for s in drawings.STYLES}
    monkeypatch.setattr(hook, "make_drawings", lambda *_: torch.zeros(40, 1))
    monkeypatch.setattr(hook, "encode_all", lambda vae, images: torch.zeros(len(images), 4, 2, 2))
    monkeypatch.setattr(torch, "randn", lambda shape, **_: -torch.ones(shape))
    model = SimpleNamespace(unet=Told(), hook_point="mid", vae=None, device="cpu", schedule=Schedule(),
                            embed=lambda texts: torch.stack([say[text] for text in texts]))
    found = hook.pushes(model, None, n=20, times=(600,))
    abar = model.schedule.alphas_cumprod[600].item()
    all_ = (1 - abar) / abar
    for kind, share, caption, alike in (("object", 1, 1, 1), ("style", 0.25, 0.25, 7 / 16)):
        gains = {"caption": caption, "pushed": caption, "alike": alike, "wrong": alike}
        told = {name: gain * all_ for name, gain in gains.items()} | {"share": share}
        assert found[kind]["600"] == pytest.approx(told, abs=2e-4)
    assert not model.unet.mid._forward_hooks


def test_steering_is_chosen_on_every_other_feature_and_told_of_the_rest(monkeypatch):
    """Named right where 10 is added along a feature's own row: the first three at scale 5, the fourth at 10. The first
    and the third choose 5; of the other two one is right."""
    monkeypatch.setattr(hook, "sample", lambda model, noise, text, sampler, steps, add: add(0)["h"])
    model = SimpleNamespace(latent_shape=(4, 2, 2), device="cpu", hook_point="h", embed=len, decode=lambda z: z,
                            sae=SimpleNamespace(W_dec=torch.eye(4)))
    judge = SimpleNamespace(verdict=lambda x: (torch.where(x.amax(1) == 10, x.argmax(1), 9), torch.zeros(len(x)).int()))
    concepts = [{"feature": f, "kind": "object", "object": drawings.OBJECTS[f], "style": None,
                 "activation": (2, 2, 2, 1)[f]} for f in range(4)]
    found = hook.steer(model, judge, concepts, scales=(2, 5, 10), noises=2, batch=3)
    assert [(s["share"], s["n"]) for s in found["by scale"].values()] == [(0, 8), (0.75, 8), (0.25, 8)]
    assert found["best scale"] == 5 and (found["object"]["share"], found["object"]["n"]) == (0.5, 4)
    assert found["object"] == found["all others, at the best"] and found["style"]["n"] == 0
