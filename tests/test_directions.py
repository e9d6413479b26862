"""Richer questions on the linear stand-in: a text, a place, a picture of one's own, seeds pushed apart, own vectors."""
import numpy as np
import pytest
import torch
from PIL import Image

import regularizers as reg
from ascent import ascend
from config import Job, check_config, configure
from tests.linear import BARE, D, JOBS, Linear, begin, change, close, roots
from tests.seeded import randn
from vae import fitted, read_picture
from visualize import measure, start, stream, visualize
from weights.load import load


@pytest.fixture
def model():
    return Linear()


def test_a_position_is_read_alone(model):
    """The activation is the value there, its gradient -sqrt(abar_t) A^T W_enc[f] there and 0 elsewhere."""
    step = next(ascend(model, JOBS, change(position=(3, 5)), begin(JOBS)))
    for i, job in enumerate(JOBS):
        values = model.values(step.noised[i], job.timestep, job.target)
        assert close(step.activation[i], values[3, 5])
        rise = -roots(model, job.timestep)[0] * model.unet.hook.weight.T @ model.sae.encoder.weight[job.target]
        assert close(step.gradient[i, :, 3, 5], rise, 1e-6)
        assert step.gradient[i].abs().sum().item() == pytest.approx(rise.abs().sum().item(), rel=1e-4)
    z = begin(JOBS)[1]
    at, _ = measure(model, z, JOBS, change(position=(3, 5)), noise=False)
    for i, job in enumerate(JOBS):
        assert close(at[i], model.values(z[i], job.timestep, job.target)[3, 5], 1e-4)
    for position in ((16, 0), (0, 16)):
        with pytest.raises(ValueError, match="hook has 16 rows and 16 columns"):
            next(stream(model, JOBS, change(position=position), 2))
    for bad in ((1,), (-1, 0), (0.5, 1)):
        with pytest.raises(ValueError, match="--position must be a row and a column"):
            check_config(change(position=bad))


def test_likeness_is_the_mean_cosine_with_the_others_of_a_target(model):
    """By hand: means (3, 4, 0), (4, 3, 0) and (0, 0, 1); the first two share target and time step: cos 24 / 25."""
    h = torch.tensor([[3.0, 4, 0], [4, 3, 0], [0, 0, 1]])[:, :, None, None] + torch.tensor([[-1.0, 1.0]])
    jobs = [Job("feature", 2, 300, 1), Job("feature", 2, 300, 2), Job("feature", 2, 400, 1)]
    assert close(reg.likeness(h, jobs), [0.96, 0.96, 0.0])
    step = next(ascend(model, jobs, change(diverse=2.0), begin(jobs)))
    assert close(step.penalties["likeness"], 2 * reg.likeness(step.hook, jobs))
    alone = next(ascend(model, jobs, BARE, begin(jobs)))
    hook = step.hook.clone().requires_grad_(True)
    (g,) = torch.autograd.grad(2 * reg.likeness(hook, jobs).sum(), hook)
    for i in range(3):
        pull = roots(model, jobs[i].timestep)[0] * torch.einsum("dc,dyx->cyx", model.unet.hook.weight, g[i])
        assert close(step.gradient[i] - alone.gradient[i], pull, 1e-6)
    assert step.gradient[0].ne(alone.gradient[0]).any() and close(step.gradient[2], alone.gradient[2])


def test_the_start_is_a_picture_of_ones_own(model, tmp_path):
    picture = Image.fromarray((randn(3, 128, 200, seed=1).sigmoid() * 255).byte().permute(1, 2, 0).numpy())
    picture.save(tmp_path / "mine.png")
    config = change(prior=str(tmp_path / "mine.png"))
    _, z = start(model, JOBS, config)
    square = fitted(read_picture(tmp_path / "mine.png"), 128, 128)
    assert close(z, model.encode(square[None])) and square.shape == (3, 128, 128)
    middle = np.asarray(picture.crop((36, 0, 164, 128)))
    assert np.array_equal((square * 255).round().byte().permute(1, 2, 0).numpy(), middle)
    with pytest.raises(ValueError, match="nowhere.png: cannot be read as a picture"):
        start(model, JOBS, change(prior=str(tmp_path / "nowhere.png")))


def test_a_direction_starts_from_what_it_guides(model):
    assert configure({}, None, "direction").prior == "guided"
    found = visualize(model, directions={"probe": torch.tensor([1.0, 0, -1])}, seeds=[1], num_steps=2, prior_steps=2,
                      finish_steps=2, timesteps=[300])
    assert found[0].job == Job("direction", "probe", 300, 1) and found[0].scores["rank"] is None
    with pytest.raises(ValueError, match="--prior steer: no capture says how strong"):
        visualize(model, directions={"probe": torch.ones(D)}, seeds=[1], timesteps=[300], prior="steer")


def test_sums_and_differences_of_features_are_directions(weights):
    model = load(weights, "cpu")
    assert torch.equal(model.feature(1) - model.feature(2), model.sae.encoder.weight[1] - model.sae.encoder.weight[2])
