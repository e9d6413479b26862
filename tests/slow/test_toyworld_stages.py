"""From artwork to evaluation on a world of three things, with hardly trained networks; what the UNet's loss reaches."""
import json

import torch

from config import HOOK_POINT
from tests.test_toyworld import art                 # noqa: F401, a fixture
from toyworld import concepts, evaluate, train


def run(art, tmp_path, *stages):                    # noqa: F811
    train.main(["--art", str(art), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "toy"), "--device", "cpu",
                "--fp32", *(f"--{stage}-steps=2" for stage in train.STEPS), "--stage", *stages])


def test_from_artwork_to_evaluation(art, tmp_path, monkeypatch, capsys):            # noqa: F811
    for module, name, value in ((train, "PROMPTS", 12), (concepts, "NULL", 64), (evaluate, "SEEDS", 2),
                                (evaluate, "SAMPLES", 4), (evaluate, "FEATURES", 3)):
        monkeypatch.setattr(module, name, value)
    out = tmp_path / "toy"
    read = lambda name: json.loads((out / name).read_text())
    run(art, tmp_path, *list(train.STAGES)[:-1])
    model, recorded, stored = train.load(out, "cpu"), read("training.json"), read("concepts.json")
    z, t = torch.randn(2, *model.latent_shape), torch.tensor([10, 500])
    assert model.unet(z, t, model.embed(["", "A fox face image"]), until=HOOK_POINT).shape == (2, 128, 4, 4)
    assert recorded["stages"]["unet"]["step"] == 2 and recorded["things"] == 3
    assert stored["channels"] == 128 and stored["features"] == 1024
    assert {"features", "channels", "random"} == set(stored["counts"])
    assert len((out / "prompts.txt").read_text().splitlines()) == 4

    meanings = ["name", "fox face"], ["house+colour", "Noto, red"], ["background", "blue"]
    stored["rows"] = [row | {"meaning": meaning, "surprise": surprise, "strongest": ["fox face, Noto"]}
                      for surprise, (row, meaning) in enumerate(zip(stored["rows"], meanings))]
    (out / "concepts.json").write_text(json.dumps(stored))
    run(art, tmp_path, "settings")
    fox, house, ground = (row["feature"] for row in stored["rows"])
    assert read("featviz.json")["feature"] == ground
    assert [(row["feature"], row["word"]) for row in read("featviz.json")["thesis"]] == [
        (fox, "fox face"), (house, "Noto, red")]
    assert read(f"sae/unet.{HOOK_POINT}/labels.json")[str(fox)] == "fox face"

    (out / "featviz.json").write_text(json.dumps({"timestep": 500, "presets": {
        kind: {"prior_steps": 2, "num_steps": 2, "finish_steps": 2} for kind in ("sae", "raw")}}))
    evaluate.main(["--art", str(art), "--weights", str(out)])
    measured = read("evaluation.json")
    assert "| samples | top5 |" in capsys.readouterr().out
    assert set(measured) == set(evaluate.PARTS) and measured["features"]["picked"] == 3


def test_only_the_noise_loss_reaches_the_hook(art, tmp_path, monkeypatch):          # noqa: F811
    """The training loss's gradient at the hook is what flows back from the predicted noise, and nothing else."""
    run(art, tmp_path, "vae", "text")
    caught = {}
    monkeypatch.setattr(train, "fit", lambda name, net, loss, **_: caught.update(net=net, loss=loss))
    run(art, tmp_path, "unet")
    unet, seen = caught["net"], {}

    def keep(name):
        def hook(module, inputs, output):
            output.retain_grad()
            seen[name] = output
        return hook

    unet.get_submodule(HOOK_POINT).register_forward_hook(keep("h"))
    unet.register_forward_hook(keep("noise"))
    caught["loss"](0, torch.Generator().manual_seed(0))[0].backward(retain_graph=True)
    total = seen["h"].grad.clone()
    through_noise, = torch.autograd.grad(seen["noise"], seen["h"], seen["noise"].grad)
    assert total.abs().max() > 0
    assert torch.equal(total, through_noise)
