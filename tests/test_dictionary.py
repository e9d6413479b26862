"""Training an SAE: its start, batch top-k and the loss on examples worked out by hand; planted directions; resume."""
import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from dictionary import __main__ as command
from dictionary.collect import Request, Vectors, collect, observe
from dictionary.loss import batch_topk, init, normalize_decoder, training_loss
from dictionary.train import Recipe, export, found_again, measure, train
from sae import SAE, fvu
from steering import sample
from tests.tiny import write_model
from weights.load import WeightsError, load

pytestmark = pytest.mark.usefixtures("one_thread")
H = torch.tensor([[3.0, 2.5], [1.0, 0.5]])


@pytest.fixture
def axes():
    """Four features that look along x, y, -x and -y; k is 1."""
    sae = SAE(2, 4, k=1).requires_grad_(False)
    for p, value in ((sae.encoder.weight, [[1, 0], [0, 1], [-1, 0], [0, -1]]), (sae.encoder.bias, [0, 0, 0, 0]),
                     (sae.W_dec, [[1, 0], [0, 1], [-1, 0], [0, -1]]), (sae.b_dec, [0, 0])):
        p.copy_(torch.tensor(value))
    return sae


def planted(n, generator, directions):
    """n sums of two of the rows of `directions`, each between 1 and 2 times, about a mean of 3."""
    which = torch.stack([torch.randperm(len(directions), generator=generator)[:2] for _ in range(n)])
    size = 1 + torch.rand(n, 2, generator=generator)
    return (directions[which] * size[..., None]).sum(1) + 3


def test_the_batch_shares_its_k(axes):
    """Twice one feature for two positions: the first takes both, the least is 2.5; one by one each takes its own."""
    kept, least = batch_topk(axes.pre_acts(H), 1)
    assert kept.tolist() == [[3, 2.5, 0, 0], [0, 0, 0, 0]] and least == 2.5
    assert axes.encode(H).tolist() == [[3, 0, 0, 0], [1, 0, 0, 0]]
    assert batch_topk(torch.tensor([[0.0, 0.5], [0.0, 0.0]]), 2)[1] == 0.5                      # a 0 is no activation


def test_the_loss_of_training(axes):
    """(1, 0.5) is left: 1.25 of 4 about the mean. A 32nd of what the dead leave of that: 1.25, or 9.25, of 0.625."""
    assert fvu(torch.tensor([[0.0, 0], [2, 0]]), torch.tensor([[0.0, 0], [1, 0]])) == 0.5
    for dead, loss in (([], 0.3125), ([2, 3], 0.3125 + 2 / 32), ([0], 0.3125 + 14.8 / 32)):
        mask = torch.tensor([f in dead for f in range(4)])
        ours, fired, least, main = training_loss(axes, H, mask)
        assert ours.item() == pytest.approx(loss) and main.item() == pytest.approx(0.3125) and least == 2.5
        assert fired.tolist() == [True, True, False, False]


def test_dead_features_learn_the_residual_without_the_bias_and_move_no_other(axes):
    """The three errors of widely copied code: the sign, the residual not detached, b_dec added twice."""
    axes.b_dec.copy_(torch.tensor([1.0, 0.0]))
    axes.encoder.bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0]))                              # the third is dead and on
    dead = torch.tensor([False, False, True, False])
    h = torch.tensor([[4.0, 2.5], [2.0, 0.5]])                                                  # H + b_dec
    pre = axes.pre_acts(h)
    acts = batch_topk(pre, 1)[0]
    residual = h - (acts @ axes.W_dec + axes.b_dec)
    guess = pre[:, 2:3] * axes.W_dec[2]
    expected = fvu(h, h - residual) + fvu(residual, guess) / 32
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
    sae.W_dec.data *= torch.arange(9.0)[:, None]
    normalize_decoder(sae)
    assert torch.allclose(sae.W_dec[1:].norm(dim=1), torch.ones(8)) and not sae.W_dec[0].any()      # 0 stays 0


@pytest.fixture(scope="module")
def taught(tmp_path_factory, one_thread):
    """An SAE that learned 64 directions in 32 channels, the directions, and unseen data."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 32, generator=generator), dim=1)
    recipe = Recipe(expansion=2, k=2, steps=1500, batch=512, rate=3e-3)
    path = tmp_path_factory.mktemp("taught") / "training.safetensors"
    return train(planted(20_000, generator, directions), recipe, path), directions, planted(2000, generator, directions)


def test_planted_directions_are_found_in_fewer_channels(taught):
    sae, directions, _ = taught
    assert (directions @ sae.W_dec.T).amax(dim=1).mean() >= 0.95


def test_the_threshold_at_inference_does_what_batch_topk_did(taught):
    sae, _, unseen = taught
    said = measure(sae, unseen)
    kept = batch_topk(sae.pre_acts(unseen), 2)[0]
    assert said["active"] == pytest.approx(2, abs=0.3)
    assert said["fvu"] == pytest.approx(fvu(unseen, sae.decode(kept)).item(), abs=0.02) and said["fvu"] < 0.1
    assert ((sae.encode(unseen) > 0) == (kept > 0)).float().mean() > 0.99
    assert found_again(sae, sae) == 1 and found_again(sae, SAE(32, 64)) == 0


def test_a_training_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    data, recipe = torch.randn(500, 6, generator=torch.Generator().manual_seed(3)), Recipe(2, 2, 40, 32, 1e-2)

    def stop(step, total, numbers):
        if step == 17:
            raise KeyboardInterrupt

    whole = train(data, recipe, tmp_path / "whole.safetensors")
    path = tmp_path / "stopped.safetensors"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dictionary.train.SAVE_EVERY", 0)
        train(data, recipe, path, on_step=stop)
    assert path.exists()
    again = train(data, recipe, path)
    assert all(torch.equal(p, q) for p, q in zip(whole.state_dict().values(), again.state_dict().values()))
    assert whole.threshold == again.threshold
    other = train(data, dataclasses.replace(recipe, seed=1), path)                  # another recipe begins anew
    assert not torch.equal(other.W_dec, whole.W_dec)


def test_the_files_are_saeurons_and_featviz_takes_them(tmp_path, taught):
    sae = taught[0]
    export(sae, tmp_path, {"reads": "output"})
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert {"d_in": 32, "num_latents": 64, "k": 2, "expansion_factor": 2}.items() <= config.items()
    assert config["gate"] == "threshold" and config["threshold"] == sae.threshold
    assert load_file(tmp_path / "sae.safetensors").keys() == {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}


@pytest.fixture
def model(tmp_path):
    return load(write_model(tmp_path / "tiny"))


def request(model, n=12, **changes):
    prompts = tuple(f"A cat number {i}" for i in range(n))
    return dataclasses.replace(Request(prompts, model.hook_point, 3, "ddim", 2.0, 4), **changes)


def test_the_vectors_are_the_same_whatever_the_batch_and_resume(model, tmp_path, monkeypatch):
    monkeypatch.setattr("dictionary.collect.SHARD", 5)
    one, three = (Vectors(collect(model, request(model), tmp_path / str(b), b), held=False) for b in (1, 3))
    assert len(one) == 11 * 3 * 4 and torch.allclose(one[torch.arange(len(one))].float(),
                                                     three[torch.arange(len(one))].float(), atol=2e-2)
    assert torch.equal(one.images().flatten(0, 2), one[torch.arange(len(one))])
    assert Vectors(collect(model, request(model), tmp_path / "1", 1), held=True).images().shape[:3] == (1, 3, 4)
    (tmp_path / "1/vectors_00001.safetensors").unlink()
    seen = []
    paths = collect(model, request(model), tmp_path / "1", 1, lambda done, total: seen.append(done))
    assert seen == [7, 8, 9, 10, 11, 12]                                            # only what was missing
    assert torch.equal(Vectors(paths, held=False).images(), one.images())
    with pytest.raises(WeightsError, match="another request"):
        collect(model, request(model, steps=2), tmp_path / "1", 1)


def test_positions_are_the_hooks_own(model):
    """All positions of an image, put in order, are the hook's output at that step."""
    maps = {}
    noise = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(2))[None]
    wanted = request(model, guidance=1.0, positions=10_000)
    sample(model, noise, model.embed([wanted.prompts[2]]), "ddim", 3, see=lambda t, h: maps.setdefault(t, h))
    h = observe(model, wanted, [2])[0]                                              # (N, S, D)
    for n, t in enumerate(model.schedule.timesteps(3)):
        rows = maps[t][0].flatten(1).T.half()
        assert torch.equal(h[n].float().sum(0).sort().values, rows.float().sum(0).sort().values) or torch.allclose(
            h[n].float().mean(0), rows.float().mean(0), atol=1e-3)


def test_the_update_is_the_output_minus_the_input(model):
    """All positions, output minus update: the input of the attention, which the resnet before it put out."""
    every = dict(guidance=1.0, positions=10_000)
    output, update = (observe(model, request(model, reads=reads, **every), [2]).float()
                      for reads in ("output", "update"))
    before = model.at("up_blocks.1.resnets.1")
    came = observe(before, request(model, **every), [2]).float()
    assert torch.allclose(output - update, came, atol=2e-2) and (update - output).abs().max() > 0.1


def test_the_command_from_prompts_to_an_sae_that_loads(tmp_path, capsys):
    folder = write_model(tmp_path / "tiny")
    for file in (folder / "sae").glob("*/*"):
        file.unlink()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffA cat\n", encoding="utf-8")
    argv = ["--weights", folder, "--prompts", prompts, "--steps", 2, "--positions", 3, "--train-steps", 3,
            "--vectors-together", 8, "--expansion", 2, "-k", 2, "--work", tmp_path / "work", "--device", "cpu"]
    argv = [str(a) for a in argv]
    assert command.main([*argv, "--check"]) == 0 and not (tmp_path / "work").exists()
    assert command.main(argv) == 0
    said = capsys.readouterr()
    assert "6 vectors of" in said.out and "another seed finds" in said.out and "fewer than 10 prompts" in said.err
    model = load(folder)
    assert model.sae.gate == "threshold" and model.sae.features == 2 * model.unet.width(model.hook_point)
    assert command.main(argv) == 2 and "--again replaces it" in capsys.readouterr().err
