"""All stages after the UNet, and the evaluation, on a world of three things and untrained networks."""
import json

import pytest
import torch

from tests.test_toyworld import art, arguments      # noqa: F401, a fixture
from toyworld import claims, concepts, denoiser, evaluate, train


@pytest.fixture
def made(art, tmp_path, monkeypatch):               # noqa: F811
    """A weights folder with every part but the capture."""
    monkeypatch.setattr(train, "PROMPTS", 12)
    monkeypatch.setattr(concepts, "NULL", 64)
    args = arguments(art, tmp_path, dictionary=4)
    for stage in ("vae", "text", "unet", "dictionary", "judge", "concepts"):
        train.STAGES[stage](args)
        train.record(args, stage, 1.0)
    return args


def test_every_stage_and_every_measure(made, monkeypatch, capsys):
    stored = json.loads((made.out / "concepts.json").read_text())
    assert stored["channels"] == 128 and stored["features"] == 1024
    assert {"features", "channels", "random"} == set(stored["counts"])
    assert len((made.out / "prompts.txt").read_text().splitlines()) == 4
    (made.out / "featviz.json").write_text(json.dumps({"timestep": 500, "presets": {
        "sae": {"prior": "noise", "num_steps": 2, "finish_steps": 2}}}))
    stored["rows"] = [row | {"meaning": meaning} for row, meaning in zip(
        stored["rows"], (["name", "fox face"], ["house+colour", "Noto, red"], ["background", "blue"]))]
    (made.out / "concepts.json").write_text(json.dumps(stored))
    monkeypatch.setattr(evaluate, "SEEDS", 2)
    evaluate.main(["--art", str(made.art), "--weights", str(made.out), "--samples", "4", "--features", "3"])
    printed, measured = capsys.readouterr().out, json.loads((made.out / "evaluation.json").read_text())
    assert set(measured) == set(evaluate.PARTS)
    assert "| samples | top5 |" in printed and measured["features"]["picked"] <= 3


def test_claims_are_measured_once_and_reported(made, tmp_path, monkeypatch, capsys):
    train.STAGES["capture"](made)
    (made.out / "featviz.json").write_text(json.dumps({"timestep": 500, "presets": {
        kind: {"prior_steps": 2, "num_steps": 2, "finish_steps": 2} for kind in ("sae", "raw")}}))
    monkeypatch.setattr(claims, "FEATURES", 3)
    monkeypatch.setattr(claims, "CHOICE", 2)
    command = ["--art", str(made.art), "--weights", str(made.out), "--runs", str(tmp_path / "claims"),
               "--results", str(tmp_path / "results.json"), "--claims"]
    evaluate.main([*command, "--arm", "default"])
    monkeypatch.setattr(claims, "ARMS", {name: arm for name, arm in claims.ARMS.items() if not arm.choice})
    evaluate.main(command)
    printed, progress = capsys.readouterr()
    results = json.loads((tmp_path / "results.json").read_text())
    assert progress.count("default") == 1 and len(results["claims"]) == len(claims.CLAIMS) + 1
    assert results["arms"]["channels"]["finished"]["legible"]["n"] == 3
    assert all(row["verdict"] in ("holds", "the reverse", "not decided") for row in results["claims"])
    assert "| the finish adds |" in printed


def test_stages_make_a_folder_that_loads(art, tmp_path):                            # noqa: F811
    args = arguments(art, tmp_path)
    for stage in ("vae", "text", "unet", "judge"):
        train.STAGES[stage](args)
        train.record(args, stage, 1.0)
    model = train.load(args.out, "cpu")
    assert model.latent_shape == (4, 16, 16)
    z = torch.randn(2, *model.latent_shape)
    t = torch.tensor([10, 500])
    assert model.unet(z, t, model.embed(["", "A fox face image"]), until=denoiser.HOOK_POINT).shape == (2, 128, 4, 4)
    recorded = json.loads((args.out / "training.json").read_text())
    assert recorded["stages"]["unet"]["step"] == 2 and recorded["things"] == 3


def test_only_the_noise_loss_reaches_the_hook(art, tmp_path, monkeypatch):          # noqa: F811
    """The training loss's gradient at the hook is what flows back from the predicted noise, and nothing else."""
    args = arguments(art, tmp_path)
    for stage in ("vae", "text"):
        train.STAGES[stage](args)
    caught = {}
    monkeypatch.setattr(train, "fit", lambda name, net, loss, **_: caught.update(net=net, loss=loss))
    train.train_unet(args)
    unet, seen = caught["net"], {}

    def keep(name):
        def hook(module, inputs, output):
            output.retain_grad()
            seen[name] = output
        return hook

    unet.get_submodule(denoiser.HOOK_POINT).register_forward_hook(keep("h"))
    unet.register_forward_hook(keep("noise"))
    caught["loss"](0, torch.Generator().manual_seed(0))[0].backward(retain_graph=True)
    total = seen["h"].grad.clone()
    through_noise, = torch.autograd.grad(seen["noise"], seen["h"], seen["noise"].grad)
    assert total.abs().max() > 0
    assert torch.equal(total, through_noise)
