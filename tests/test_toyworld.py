"""The toy world: artwork and its drawings, the training's losses, the meaning of directions, and the judge."""
import json
import math
from collections import Counter

import pytest
import torch
from PIL import Image

from toyworld import concepts, drawings, evaluate, fit, judge, text, train
from unet import UNet
from weights.load import check_config


@pytest.fixture
def art(tmp_path):
    """An artwork folder with three things of the world, one other, and one that a house lacks."""
    entries = [("1F436", "DOG FACE", "animal-mammal"), ("1F98A", "FOX FACE", "animal-mammal"),
               ("1F34E", "RED APPLE", "food-fruit"), ("1F4A1", "ELECTRIC LIGHT BULB", "light & video"),
               ("1F95D", "KIWIFRUIT", "food-fruit"), ("1F1E6-1F1E8", "FLAG", "food-fruit")]
    listed = [{"unified": code, "name": name, "short_name": name.lower(), "subcategory": sub, "category": sub[:4],
               "sort_order": i} for i, (code, name, sub) in enumerate(entries)]
    (tmp_path / drawings.LIST).parent.mkdir(parents=True)
    (tmp_path / drawings.LIST).write_text(json.dumps(listed))
    for i, (code, _, _) in enumerate(entries):
        for j, (house, pattern) in enumerate(drawings.HOUSES.items()):
            if code == "1F95D" and house == "Blob":
                continue
            path = tmp_path / pattern.format(code.lower())
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGBA", (64, 64))
            picture.paste((250 - 60 * i, 20 + 40 * i, 60 * j, 255), (8, 8, 56, 56))
            picture.save(path)
    return tmp_path


# --- artwork ----------------------------------------------------------------------------------------------------------

def test_things_are_those_that_every_house_has_drawn(art):
    world, others = drawings.things(art)
    assert [thing.name for thing in world] == ["dog face", "fox face", "red apple"]
    assert [thing.name for thing in others] == ["electric light bulb"]


def test_missing_artwork_names_the_packages(tmp_path):
    with pytest.raises(SystemExit, match="emoji-datasource-twitter"):
        drawings.things(tmp_path)


def test_a_drawing_is_the_artwork_on_its_background_shifted(art):
    world, _ = drawings.things(art)
    artworks = drawings.read(art, world)
    assert artworks.shape == (12, 4, 60, 60)
    shifts = torch.tensor([0, 4, 8])
    images = drawings.compose(artworks[:3], torch.tensor([0, 1, 2]), shifts)
    for image, background, shift in zip(images, drawings.BACKGROUNDS.values(), shifts.tolist()):
        assert torch.allclose(image[:, 0, 0] * 255, torch.tensor(background).float())
        rows = (image - image[:, :1, :1]).abs().amax(0).gt(0.05).nonzero()
        assert rows.float().mean(0).sub(31.5).round().int().tolist() == list(drawings.SHIFTS[shift])


def test_captions():
    assert drawings.caption("fox face", "Noto") == "A fox face image in Noto style"
    assert drawings.caption("fox face", None) == "A fox face image"
    assert drawings.caption(None, "Noto") == "A image in Noto style"
    assert drawings.caption(None, None) == ""


@pytest.mark.parametrize("rgb, name", [
    ((0.9, 0.1, 0.1), "red"), ((1.0, 0.6, 0.1), "orange"), ((1.0, 0.85, 0.2), "yellow"), ((0.3, 0.7, 0.2), "green"),
    ((0.2, 0.5, 0.9), "blue"), ((0.55, 0.3, 0.8), "purple"), ((1.0, 0.6, 0.7), "pink"), ((0.5, 0.3, 0.15), "brown"),
    ((0.1, 0.1, 0.1), "black"), ((0.5, 0.5, 0.52), "grey"), ((0.97, 0.97, 0.97), "white")])
def test_colours_have_the_names_that_people_give_them(rgb, name):
    assert drawings.colour_name(*rgb) == name


# --- training ---------------------------------------------------------------------------------------------------------

def test_what_is_silent_in_training_is_silent_in_use():
    torch.manual_seed(0)
    trained = train.denoiser()
    plain = UNet(**check_config("unet", train.UNET, "config.json"))
    plain.load_state_dict(trained.state_dict())
    z, t, context = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 77, 64)
    assert torch.allclose(trained(z, t, context), plain(z, t, context), atol=1e-5)


def test_captions_are_cut_as_often_as_said():
    generator = torch.Generator().manual_seed(0)
    n = 20_000
    thing, house = train.cut(torch.zeros(n).long(), 7, generator)
    none = (thing == 7) & (house == 4)
    assert none.float().mean() == pytest.approx(train.EMPTY, abs=0.02)
    assert ((thing == 7) & ~none).float().mean() == pytest.approx(train.HOUSE_ONLY, abs=0.01)
    assert ((house == 4) & ~none).float().mean() == pytest.approx(train.NAME_ONLY, abs=0.01)


def test_weight_of_the_noise_loss():
    abar = torch.tensor([0.9, 0.5, 0.01])                   # SNR 9, 1, 1/99
    assert train.weigh(torch.ones(3), abar).tolist() == pytest.approx([5 / 27, 2 / 3, 10.0])


def test_a_killed_training_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "SAVE_EVERY", 0)

    def run(folder, killed_at=None):
        torch.manual_seed(0)
        net = torch.nn.Linear(64, 64)

        def loss(step, generator):
            if step == killed_at:
                raise KeyboardInterrupt
            return net(torch.randn(8, 64, generator=generator)).square().mean(), {}

        fit.fit("net", net, loss, steps=10, lr=0.1, folder=folder, device="cpu", muon=True, warmup=2)
        return net.weight.detach()

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", killed_at=4)
    assert torch.equal(run(tmp_path / "a"), run(tmp_path / "b"))


def test_learning_rate():
    rates = [fit.learning_rate(step, 100, 2.0, 10) for step in (0, 9, 50, 80, 99)]
    assert rates == pytest.approx([0.2, 2.0, 2.0, 1.0, 0.05])


def turned(X):
    """X with its singular values near 1: four of Newton and Schulz's steps, in float32."""
    X = X / X.norm()
    for _ in range(4):
        A = X @ X.mT
        X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
    return X


def test_muon_turns_matrices_and_convolutions_by_its_formula():
    """m <- 0.95 m + g,  W <- W - lr 0.2 sqrt(max(rows, columns)) turned(g + 0.95 m); torch does it in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((64, 200), (64, 16, 3, 3)):
        layer, bias = (torch.nn.Parameter(torch.zeros(size)) for size in (shape, 64))
        (_, muon), matrices = fit.make_optimizers([layer, bias], 0.1, 0.99, muon=True)
        m = expected = 0
        for _ in range(3):
            g = torch.randn(shape, generator=generator)
            matrices[layer].grad = g.flatten(1)
            muon.step()
            m = 0.95 * m + g.flatten(1)
            expected = expected - 0.1 * 0.2 * max(g.flatten(1).shape) ** 0.5 * turned(g.flatten(1) + 0.95 * m)
        assert (layer.flatten(1) - expected).norm() < 0.01 * expected.norm()
        values = torch.linalg.svdvals(turned(g.flatten(1)))
        assert values.min() > 0.4 and values.max() < 1.4


# --- text -------------------------------------------------------------------------------------------------------------

def test_every_word_of_a_caption_is_one_token(art):
    world, _ = drawings.things(art)
    tokenizer = text.make_tokenizer(world)
    assert sorted(tokenizer.vocab.values()) == list(range(len(tokenizer.vocab)))
    assert len(tokenizer.ids("A fox face image in Twemoji style")) == 7
    assert text.caption_table(tokenizer, world).shape == (4, 5, 77)


def test_contrast_is_least_where_pairs_find_each_other():
    assert text.contrast(20 * torch.eye(4)) < 1e-3 < text.contrast(torch.zeros(4, 4)) == pytest.approx(math.log(4))


# --- meaning ----------------------------------------------------------------------------------------------------------

KNOWN = [{("name", f"thing {a // 4}"), ("subgroup", f"sub {a // 40}"), ("house", "ABCD"[a % 4]),
          ("colour", ["red", "blue"][a % 3 == 0])} for a in range(400)]
NAMED = [40, 41, 42, 43, 100, 205, 306, 12, 133, 178, 223, 268, 313, 358, 51, 96]


def test_meaning_is_what_the_strongest_artworks_share():
    meanings, none = concepts.Meanings(KNOWN), Counter()
    p, (content, surprise) = 4 / 400, meanings.best(NAMED, none)
    tail = sum(math.comb(16, i) * p ** i * (1 - p) ** (16 - i) for i in range(4, 17))
    assert content == ("name", "thing 10") and surprise == pytest.approx(-math.log10(100 * tail))
    assert meanings.best([40 + 5 * i for i in range(14)] + [301, 11], none)[0] == ("subgroup", "sub 1")
    assert meanings.best([12 * i for i in range(16)], none)[0] == ("house+colour", "A, blue")
    assert meanings.best([1 + 25 * i for i in range(16)], none)[1] < 1.0


def test_a_content_needs_more_artworks_than_any_random_direction_has():
    meanings = concepts.Meanings(KNOWN)
    most, _ = concepts.bounds([{"strongest": NAMED[1:], "background": ("blue", 0.1)}], meanings)
    assert most["name", "thing 10"] == 3
    assert meanings.best(NAMED, most)[0] == ("name", "thing 10")
    assert meanings.best(NAMED[1:], most)[0] is None


def test_at_most_two_percent_of_random_directions_have_a_meaning():
    scores = torch.randn(2, 400, 3, 3_000, generator=torch.Generator().manual_seed(0)) + 10
    meanings, rows = concepts.Meanings(KNOWN), concepts.read_off(scores)
    concepts.explain(rows[2_000:], meanings, *concepts.bounds(rows[:2_000], meanings))
    assert concepts.summary(rows[2_000:])["with_meaning"] < 0.03 * 1_000


def test_peak_and_background():
    scores = torch.rand(len(concepts.TIMES), 400, 3, 2)
    scores[3] += 1
    scores[3, :, 1, 0] += 5
    rows = concepts.read_off(scores)
    assert [row["t"] for row in rows] == [700, 700]
    assert rows[0]["background"] == ("blue", pytest.approx(1.0, abs=0.05))
    concepts.explain(rows, concepts.Meanings(KNOWN), Counter({content: 16 for a in KNOWN for content in a}), 0.5)
    assert rows[0]["meaning"] == ["background", "blue"]


def test_artworks_on_which_a_feature_is_silent_are_not_among_its_strongest():
    scores = torch.zeros(5, 400, 3, 2)
    scores[:, [7, 9], :, 1] = 1.0
    silent, rare = concepts.read_off(scores)
    assert silent["strongest"] == [] and sorted(rare["strongest"]) == [7, 9]


# --- judge and evaluation ---------------------------------------------------------------------------------------------

def test_judge_and_its_lessons(art):
    world, _ = drawings.things(art)
    artworks, generator = drawings.read(art, world), torch.Generator().manual_seed(0)
    for unseen in (False, True):
        images = judge.lesson(artworks, torch.tensor([0, 5, 11]), generator, unseen)
        assert images.shape == (3, 3, 64, 64) and images.min() >= 0 and images.max() <= 1
    things, house = judge.Judge(6).verdict(images)
    assert things.shape == (3, 5) and house.shape == (3,)


def test_interval_of_a_share():
    assert evaluate.share([True, False] * 50) == {"share": 0.5, "low": 0.404, "high": 0.596, "n": 100}
    assert evaluate.share([True] * 10)["high"] == 1.0


def test_what_a_picture_shows(art):
    dog, fox, apple = drawings.things(art)[0]
    image = torch.tensor(drawings.BACKGROUNDS["blue"])[:, None, None].expand(3, 64, 64) / 255
    image[:, 10:50, 10:50] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    shown = judge.contents([fox, apple, dog, apple, dog], "Noto", image)
    assert shown == {"name": {"dog face", "fox face", "red apple"}, "subgroup": {"animal-mammal"}, "group": set(),
                     "house": {"Noto"}, "colour": {"red"}, "background": {"blue"}}
    assert judge.shows(shown, ["name", "dog face"]) and not judge.shows(shown, ["name", "kiwifruit"])
    assert judge.shows(shown, ["house+colour", "Noto, red"]) and not judge.shows(shown, ["house+colour", "Blob, red"])
