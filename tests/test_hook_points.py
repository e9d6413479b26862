"""A run at every kind of hook point on the tiny model: raw channels, steered priors, captures; features at the SAE."""
import pytest

import featviz
from activity.__main__ import main as activity

pytestmark = pytest.mark.usefixtures("loaded_once")
KINDS = {                   # hook point -> its width on the tiny model
    "conv_in": 16, "down_blocks.1.downsamplers.0.conv": 16, "mid_block.resnets.1": 32, "up_blocks.3.attentions.2": 16}


@pytest.mark.parametrize("hook", KINDS)
def test_the_last_raw_channel_rises(hook, weights):
    """The ascent and its finish; `unet.` in front is the same place; there is no channel more."""
    model, width = featviz.load(weights, "cpu", hook_point=f"unet.{hook}"), KINDS[hook]
    ask = dict(prior="noise", num_steps=3, finish_steps=1, seeds=[5], timesteps=[300])
    (result,) = featviz.visualize(model, channels=[width - 1], **ask)
    assert model.hook_point == hook and result.finished.activation is not None
    assert result.activation > result.scores["activation_start"]
    with pytest.raises(ValueError, match=f"has {width} channels"):
        featviz.visualize(model, channels=[width], **ask)


def test_a_capture_there_steers_priors_there(weights, tmp_path):
    """Of the hook's channels; with strength 0 the prior is another one."""
    hook, prompts = "mid_block.resnets.1", tmp_path / "prompts.txt"
    prompts.write_text("A Tree\n")
    flags = ["capture", "--weights", weights, "--out", tmp_path, "--device", "cpu", "--hook-point", hook, "--prompts",
             prompts, "--images-per-prompt", 1, "--steps", 2, "--guidance", 1.0]
    assert activity([str(a) for a in flags]) == 0
    model = featviz.load(weights, "cpu", hook_point=hook, out=tmp_path)
    starts = {featviz.visualize(model, channels=[3], seeds=[5], timesteps=[300], num_steps=2, prior_steps=2,
                                steer_scale=scale, finish=False)[0].scores["activation_start"] for scale in (0.0, 50.0)}
    assert len(starts) == 2
