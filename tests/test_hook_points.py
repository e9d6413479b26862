"""A run at every kind of hook point on the tiny model: raw channels, steered priors, captures; features at the SAE."""
import json
import shutil

import pytest
import torch

import featviz
from activity.__main__ import main as activity
from tests.tiny import HOOK, write_model

pytestmark = pytest.mark.usefixtures("one_thread", "loaded_once")
KINDS = {                   # hook point -> its width on the tiny model
    "conv_in": 16, "down_blocks.0.resnets.1": 16, "down_blocks.1.downsamplers.0.conv": 16, "mid_block.resnets.1": 32,
    "up_blocks.0.upsamplers.0.conv": 32, "up_blocks.3.attentions.2": 16}


def run(weights, out, *flags):
    short = ["--device", "cpu", "--num-steps", 2, "--seed", 5, "--timestep", 300, "--frames", 0]
    return featviz.main([str(a) for a in ["--weights", weights, "--out", out, *short, *flags]])


@pytest.mark.parametrize("hook", KINDS)
def test_the_last_raw_channel_rises(hook, weights, tmp_path):
    """The ascent and its finish; `unet.` in front is the same place."""
    width = KINDS[hook]
    assert run(weights, tmp_path, "--channel", width - 1, "--hook-point", f"unet.{hook}", "--prior", "noise",
               "--finish-steps", 2, "--finish-scale", 0.5, "--num-steps", 8) == 0
    path = tmp_path / f"tiny/{hook}_channel_{width - 1:04d}"
    (record,) = [json.loads(path.read_text()) for path in path.glob("t0300*/seed_5.json")]
    assert record["recipe"]["hook_point"] == hook and record["finished"]["scores"]["activation"] is not None
    assert record["scores"]["activation"] > record["scores"]["activation_start"]


@pytest.mark.parametrize("hook", KINDS)
def test_one_channel_more_than_there_are_is_refused(hook, weights, tmp_path, capsys):
    assert run(weights, tmp_path, "--channel", KINDS[hook], "--hook-point", hook, "--prior", "noise") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and f"has {KINDS[hook]} channels" in captured.err


def test_a_name_that_is_none_is_refused_in_one_line(weights, tmp_path, capsys):
    assert run(weights, tmp_path, "--channel", 0, "--hook-point", "up_blocks.1.resnet.1") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "nearest: up_blocks.1.resnets.1" in captured.err


def test_features_stay_where_their_sae_is(weights, tmp_path, capsys):
    assert run(weights, tmp_path, "--feature", 1, "--hook-point", "conv_in") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and HOOK in captured.err and "--channel" in captured.err


def test_a_capture_there_steers_priors_there(weights, tmp_path):
    """Of the hook's own channels; with strength 0 the prior is another one."""
    hook, prompts = "mid_block.resnets.1", tmp_path / "prompts.txt"
    prompts.write_text("A Tree\n")
    flags = ["capture", "--weights", weights, "--out", tmp_path, "--device", "cpu", "--hook-point", hook, "--prompts",
             prompts, "--images-per-prompt", 1, "--steps", 2, "--guidance", 1.0]
    assert activity([str(a) for a in flags]) == 0
    made = json.loads((tmp_path / f"tiny/activity_{hook}/capture.json").read_text())
    assert made["recipe"]["hook_point"] == hook
    for scale in (0, 50):
        assert run(weights, tmp_path, "--channel", 3, "--hook-point", hook, "--prior-steps", 3, "--steer-scale", scale,
                   "--no-finish") == 0
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("seed_5.json")]
    assert {r["recipe"]["config"]["prior"] for r in records} == {"steer"}
    plain, steered = (r["scores"]["activation_start"] for r in sorted(
        records, key=lambda r: r["recipe"]["config"]["steer_scale"]))
    assert plain != steered and not torch.tensor([plain, steered]).isnan().any()


def test_of_several_saes_the_hook_point_takes_its_own(tmp_path):
    """The default is up1.1's."""
    folder = write_model(tmp_path / "two", activity=None)
    home, = folder.glob("sae/*")
    shutil.copytree(home, home.with_name("unet.up_blocks.1.attentions.2"))
    call = ["--weights", folder, "--feature", 3, "--prior", "noise", "--timestep", 300, "--seed", 5,
            "--out", tmp_path / "out"]
    for flags in ((), ("--hook-point", "unet.up_blocks.1.attentions.2")):
        assert featviz.main([str(word) for word in (*call, *flags)]) == 0
    records = (tmp_path / "out").rglob("seed_5.json")
    made = sorted(json.loads(path.read_text())["recipe"]["hook_point"] for path in records)
    assert made == ["up_blocks.1.attentions.1", "up_blocks.1.attentions.2"]
