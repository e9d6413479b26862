"""Training an SAE: its start, batch top-k and the loss on examples worked out by hand; planted directions; resume."""
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from activity.capture import Settings
from dictionary import __main__ as command
from dictionary.train import (
    Recipe, batch_topk, collect, export, found_again, init, measure, observe, train, training_loss)
from sae import SAE, fvu
from steering import sample
from tests.tiny import write_model
from weights.load import WeightsError, load

H = torch.tensor([[3.0, 2.5], [1.0, 0.5]])


@pytest.fixture
def axes():
    """Four features that look along x, y, -x and -y; k is 1."""
    sae, rows = SAE(2, 4, k=1).requires_grad_(False), torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    for p, value in ((sae.encoder.weight, rows), (sae.W_dec, rows), (sae.encoder.bias, torch.zeros(4))):
        p.copy_(value)
    return sae


def test_the_batch_shares_its_k(axes):
    """Twice one feature for two positions: the first takes both, the least is 2.5; one by one each takes its own."""
    kept, least = batch_topk(axes.pre_acts(H), 1)
    assert kept.tolist() == [[3, 2.5, 0, 0], [0, 0, 0, 0]] and least == 2.5
    assert axes.encode(H).tolist() == [[3, 0, 0, 0], [1, 0, 0, 0]]
    assert batch_topk(torch.tensor([[0.0, 0.5], [0.0, 0.0]]), 2)[1] == 0.5                      # a 0 is no activation


def test_the_loss_of_training(axes):
    """(1, 0.5) is left: 1.25 of 4 about the mean. A 32nd of what the dead leave of that: 1.25, or 9.25, of 0.625."""
    for dead, loss in (([], 0.3125), ([2, 3], 0.3125 + 2 / 32), ([0], 0.3125 + 14.8 / 32)):
        mask = torch.tensor([f in dead for f in range(4)])
        ours, fired, least = training_loss(axes, H, mask)
        assert ours.item() == pytest.approx(loss) and least == 2.5
        assert fired.tolist() == [True, True, False, False]


def test_dead_features_learn_the_residual_without_the_bias_and_move_no_other(axes):
    """The three errors of widely copied code: the sign, the residual not detached, b_dec added twice."""
    axes.b_dec.copy_(torch.tensor([1.0, 0.0]))
    axes.encoder.bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0]))                              # the third is dead and on
    dead = torch.tensor([False, False, True, False])
    h = H + axes.b_dec
    pre = axes.pre_acts(h)
    residual = h - (batch_topk(pre, 1)[0] @ axes.W_dec + axes.b_dec)
    expected = fvu(h, h - residual) + fvu(residual, pre[:, 2:3] * axes.W_dec[2]) / 32
    assert training_loss(axes, h, dead)[0].item() == pytest.approx(expected.item())
    axes.requires_grad_(True)
    whole, alone = (torch.autograd.grad(training_loss(axes, h, mask)[0], axes.W_dec)[0]
                    for mask in (dead, dead & False))
    assert torch.allclose(whole[:2], alone[:2]) and not torch.allclose(whole[2], alone[2])


def test_training_starts_at_random_directions_from_the_mean():
    sae = SAE(5, 9)
    init(sae, torch.Generator().manual_seed(0), torch.arange(5.0))
    assert sae.b_dec.tolist() == [0, 1, 2, 3, 4] and not sae.encoder.bias.any()
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(9)) and torch.equal(sae.encoder.weight, sae.W_dec)


def planted(n, generator, directions):
    """n sums of two of the rows of `directions`, each between 1 and 2 times, about a mean of 3."""
    which = torch.rand(n, len(directions), generator=generator).topk(2).indices
    size = 1 + torch.rand(n, 2, generator=generator)
    return (directions[which] * size[..., None]).sum(1) + 3


def test_planted_directions_are_found_in_fewer_channels(tmp_path):
    """64 directions in 32 channels; then, at inference, the threshold does on unseen data what batch top-k did."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 32, generator=generator), dim=1)
    recipe = Recipe(expansion=2, k=2, train_steps=700, batch=256, rate=4e-3)
    sae = train(planted(20_000, generator, directions), recipe, tmp_path / "training.safetensors")
    assert (directions @ sae.W_dec.T).amax(dim=1).mean() >= 0.95
    unseen = planted(2000, generator, directions)
    kept, measured = batch_topk(sae.pre_acts(unseen), 2)[0], measure(sae, unseen)
    assert measured["active"] == pytest.approx(2, abs=0.3) and measured["dead"] < 0.1
    assert measured["fvu"] == pytest.approx(fvu(unseen, sae.reconstruct(unseen)).item(), rel=1e-3)
    assert measured["fvu"] == pytest.approx(fvu(unseen, sae.decode(kept)).item(), abs=0.02) and measured["fvu"] < 0.1
    assert ((sae.encode(unseen) > 0) == (kept > 0)).float().mean() > 0.99
    assert found_again(sae, sae) == 1 and found_again(sae, SAE(32, 64)) == 0
    export(sae, tmp_path, {"reads": "output"})                  # SAeUron's names
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert {"d_in": 32, "num_latents": 64, "k": 2, "expansion_factor": 2}.items() <= config.items()
    assert config["gate"] == "threshold" and config["threshold"] == sae.threshold
    assert load_file(tmp_path / "sae.safetensors").keys() == {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path, monkeypatch):
    data, recipe = torch.randn(500, 6, generator=torch.Generator().manual_seed(3)), Recipe(2, 2, 40, 32, 1e-2)
    whole, path, steps = train(data, recipe, tmp_path / "whole.safetensors"), tmp_path / "stopped.safetensors", []

    def count(step, total):
        steps.append(step)
        if steps[0] == 0 and step == 17:
            raise KeyboardInterrupt

    monkeypatch.setattr("dictionary.train.SAVE_EVERY", 0)
    monkeypatch.setattr("dictionary.train.Count", lambda unit: count)
    with pytest.raises(KeyboardInterrupt):
        train(data, recipe, path)
    steps.clear()
    again = train(data, recipe, path)
    assert steps == [*range(16, 41)]
    assert all(torch.equal(p, q) for p, q in zip(whole.state_dict().values(), again.state_dict().values()))
    assert whole.threshold == again.threshold
    other = train(data, dataclasses.replace(recipe, seed=1), path)                  # another recipe begins anew
    assert not torch.equal(other.W_dec, whole.W_dec)


def test_features_that_stayed_silent_lately_count_as_dead(tmp_path, monkeypatch):
    seen, silent = [], torch.zeros(24, dtype=torch.int64)

    def watched(sae, h, dead):
        loss, fired, least = training_loss(sae, h, dead)
        seen.append((dead, fired))
        return loss, fired, least

    monkeypatch.setattr("dictionary.train.training_loss", watched)
    monkeypatch.setattr("dictionary.train.DEAD_AFTER", 2)
    data = torch.randn(500, 6, generator=torch.Generator().manual_seed(3))
    train(data, Recipe(4, 1, 12, 8), tmp_path / "state.safetensors")
    for dead, fired in seen:
        assert torch.equal(dead, silent >= 2)
        silent = torch.where(fired, 0, silent + 1)
    assert len(seen) == 12 and any(dead.any() and (dead & fired).any() for dead, fired in seen)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(write_model(tmp_path_factory.mktemp("weights") / "tiny"))


RECIPE = Recipe(positions=4)


def settings(n=11, batch_size=1, **changes):
    prompts = tuple(f"A cat number {i}" for i in range(n))
    return dataclasses.replace(Settings(prompts, 1, 2, "ddim", 2.0, batch_size), **changes)


def test_the_vectors_are_the_same_whatever_the_batch_and_resume(model, tmp_path, monkeypatch):
    one, three = (torch.cat(collect(model, settings(batch_size=b), RECIPE, tmp_path / str(b))) for b in (1, 3))
    assert one.shape == (11, 2, 4, 32) and torch.allclose(one.float(), three.float(), atol=2e-2)
    seen = []
    with open(tmp_path / "1/vectors.float16", "ab") as file:    # a kill in the seventh image
        file.truncate(one[:7].nbytes - 1)
    monkeypatch.setattr("dictionary.train.Count", lambda unit: lambda done, total: seen.append(done))
    data, held = collect(model, settings(), RECIPE, tmp_path / "1")
    assert seen == [6, 7, 8, 9, 10, 11] and torch.equal(torch.cat([data, held]), one)
    assert len(held) == 1 and torch.equal(held, observe(model, settings(), RECIPE, [9]))        # the tenth
    with pytest.raises(WeightsError, match="other prompts, settings or weights"):
        collect(model, settings(steps=3), RECIPE, tmp_path / "1")


def test_positions_are_the_hooks_and_the_update_is_output_minus_input(model):
    """All positions of an image, in some order, are the hook's output at that step; output minus update is what the
    resnet before the attention put out."""
    maps, every = {}, settings(guidance=1.0)
    noise = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(2))[None]
    sample(model, noise, model.embed([every.prompts[2]]), "ddim", 2,
           on_step=lambda _, step: maps.setdefault(step.timestep, step.hook))
    output, update = (observe(model, every, Recipe(positions=4, reads=reads), [2])[0] for reads in ("output", "update"))
    for rows, t in zip(output, model.schedule.timesteps(2)):                        # (S, D)
        expected = maps[t][0].flatten(1).T.half()
        assert torch.equal(rows[rows[:, 0].argsort()], expected[expected[:, 0].argsort()])
    resnet = dataclasses.replace(model, hook_point="up_blocks.1.resnets.1", sae=None)
    before = observe(resnet, every, RECIPE, [2])[0]
    assert torch.allclose(output.float() - update.float(), before.float(), atol=2e-2) and update.abs().max() > 0.1
    with pytest.raises(ValueError, match=f"--positions 5: {model.hook_point} has 4"):
        observe(model, settings(), Recipe(positions=5), [2])


def test_the_command_from_one_prompt_to_an_sae_that_loads(tmp_path, capsys):
    folder, prompts = write_model(tmp_path / "tiny", sae=None), tmp_path / "prompts.txt"
    prompts.write_text("\ufeffA cat\n", encoding="utf-8")
    argv = ["--weights", folder, "--prompts", prompts, "--steps", 2, "--positions", 3, "--train-steps", 3,
            "--expansion", 2, "-k", 2, "--work", tmp_path / "work", "--device", "cpu"]
    argv = list(map(str, argv))
    assert command.main([*argv, "--check"]) == 0 and not (tmp_path / "work").exists()
    assert command.main(argv) == 0
    assert "fewer than 10 prompts" in capsys.readouterr().err
    sae = load(folder).sae
    assert sae.gate == "threshold" and sae.features == 2 * sae.W_dec.shape[1]
    assert command.main(argv) == 2 and "--again replaces it" in capsys.readouterr().err
