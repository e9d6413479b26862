"""The toy world: drawings are what their labels say, training resumes, the measures of the evaluation are right."""
import json

import numpy as np
import pytest
import torch
from torch import nn

from clip import Tokenizer
from toyworld import drawings
from toyworld.evaluate import find_concepts, right, wilson
from toyworld.fit import fit, learning_rate
from toyworld.judge import load_judge
from toyworld.train import learn_bpe
from weights.load import load


def test_a_drawing_depends_on_its_number_and_its_world_alone():
    assert np.array_equal(drawings.drawing(123), drawings.drawing(123))
    assert not np.array_equal(drawings.drawing(123), drawings.drawing(123, seed=1))
    assert drawings.drawing(0).shape == (64, 64, 3) and drawings.drawing(0).dtype == np.uint8


def test_every_pair_comes_once_in_eighty():
    assert len({drawings.labels(i) for i in range(80)}) == 80
    assert drawings.labels(80) == drawings.labels(0)
    assert drawings.caption("Tree", "Winter") == "A Tree image in Winter style"


def test_the_judge_knows_unseen_drawings():
    """99% is claimed on 1,600; a sample of 160 leaves room for three errors in each."""
    judge = load_judge("weights/toy")
    images = np.stack([drawings.drawing(i, seed=2) for i in range(160)]).transpose(0, 3, 1, 2)
    o, s, *_ = judge.verdict(torch.from_numpy(images).float() / 255)
    truth = torch.tensor([drawings.labels(i) for i in range(160)])
    assert (o != truth[:, 0]).sum() <= 3 and (s != truth[:, 1]).sum() <= 3


def test_the_autoencoder_keeps_what_the_judge_sees():
    model, judge = load("weights/toy"), load_judge("weights/toy")
    images = (
        torch.from_numpy(
            np.stack([drawings.drawing(i, seed=2) for i in range(80)]).transpose(0, 3, 1, 2).copy()
        ).float()
        / 255
    )
    again = model.decode(model.encode(images))
    assert -10 * (again - images).square().mean().log10() > 20
    o, s, *_ = judge.verdict(again)
    truth = torch.tensor([drawings.labels(i) for i in range(80)])
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
