"""The seven regularizers on tensors so small that the right answer stands beside the call; rows apart; gradients."""
import math

import pytest
import torch

import regularizers as reg
from config import Job
from tests.seeded import randn

close = lambda a, b, atol=1e-6: torch.allclose(a, torch.as_tensor(b, dtype=a.dtype).expand_as(a), rtol=1e-5, atol=atol)


def moves(*rows):
    """(down, right, degrees, zoom) for each row -> the three arguments of transform."""
    table = torch.tensor(rows, dtype=torch.float32)
    return table[:, :2], table[:, 2], table[:, 3]


def test_total_variation():
    z = torch.tensor([[[[1.0, 2.0, 4.0], [0.0, 3.0, 1.0]]]])
    assert close(reg.total_variation(z), [(1 + 1 + 3) / 3 + (1 + 2 + 3 + 2) / 4])
    assert reg.pitch(torch.zeros(1, 4, 16, 16)) == 0.25 and reg.pitch(torch.zeros(1, 4, 64, 64)) == 1.0


def test_range_penalty():
    z = torch.tensor([-5.0, -3.0, 0.0, 4.0]).reshape(1, 1, 2, 2)
    assert close(reg.range_penalty(z), [(2 ** 2 + 0 + 0 + 1 ** 2) / 4])
    assert close(reg.range_penalty(z, 1.0), [(4 ** 2 + 2 ** 2 + 0 + 3 ** 2) / 4])


def test_moment_penalty_takes_the_unbiased_deviation():
    z = torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2)
    assert close(reg.moment_penalty(z), [2 + (math.sqrt(2) - 1)])
    assert close(reg.moment_penalty(-z / 4), [0.5 + (1 - math.sqrt(2) / 4)])


def test_sigma_runs_from_start_to_end():
    assert [reg.smoothing_sigma(i, 5, 0.5, 0.0) for i in range(5)] == [0.5, 0.375, 0.25, 0.125, 0.0]
    assert reg.smoothing_sigma(0, 1, 0.5, 0.0) == 0.5


def taps(sigma, size=9):
    """The kernel's right half, from the definition, in Python's floats."""
    weights = [math.exp(-x * x / (2 * sigma * sigma)) for x in range(-(size // 2), size // 2 + 1)]
    return [w / sum(weights) for w in weights[size // 2:]]


def test_blur_of_an_impulse_is_the_kernel():
    g = torch.zeros(1, 1, 11, 13)
    g[0, 0, 5, 6] = 1.0
    half = taps(1.5)
    expected = torch.tensor([[half[abs(y - 5)] * half[abs(x - 6)] if abs(y - 5) < 5 and abs(x - 6) < 5 else 0.0
                              for x in range(13)] for y in range(11)])
    assert close(reg.blur(g, 1.5)[0, 0], expected) and close(reg.blur(g, 1.5).sum(), 1.0)
    assert (reg.blur(g, 1.5, size=3)[0, 0, :4] == 0).all()      # a shorter kernel reaches less far
    assert torch.equal(reg.blur(g, 0.0), g)


def test_blur_reflects_at_the_border_without_repeating_the_edge():
    """Beyond column 0 lies column 1 again: an impulse in column 1 counts twice in column 0, one in column 0 once."""
    half = taps(1.0)
    columns = torch.eye(9).reshape(9, 1, 1, 9).expand(9, 1, 9, 9)                               # only x matters
    first, second = reg.blur(columns[:2], 1.0)[:, 0, 4]
    assert close(first[:3], half[:3]) and close(second[:3], [2 * half[1], half[0] + half[2], half[1] + half[3]])


def wave(fy, fx, H=12, W=16):
    """cos of fy, fx whole cycles a picture: (H, W)."""
    y, x = torch.arange(H)[:, None] / H, torch.arange(W)[None] / W
    return torch.cos(2 * math.pi * (fy * y + fx * x))


def test_spectral_filter_divides_by_frequency_plus_one_and_restores_the_deviation():
    """5 + cos of frequency 3 becomes 5 + cos / 4, and is then scaled by 4; a single wave alone comes back as it was."""
    out = reg.spectral_filter((5 + wave(0, 3))[None, None])
    assert close(out[0, 0], 20 + wave(0, 3), atol=1e-4)
    assert close(reg.spectral_filter(wave(2, 5)[None, None])[0, 0], wave(2, 5), atol=1e-5)


def test_spectral_filter_measures_frequency_in_cycles_of_each_side():
    """Of two equal waves with radii 1 and 5 = |(3, 4)|, the first ends (5 + 1) / (1 + 1) = 3 times as strong."""
    low, high = wave(0, 1), wave(3, 4)
    out = reg.spectral_filter((low + high)[None, None])[0, 0]
    strength = lambda w: (out * w).sum() / (w * w).sum()
    assert close(strength(low) / strength(high), 3.0, atol=1e-4)
    assert close(out.std(), (low + high).std(), atol=1e-5)


def test_spectral_filter_restores_each_row_s_own_deviation():
    """A deviation of 0, too: nothing is left of a constant, and nothing is divided by 0."""
    g = randn(3, 4, 8, 8, seed=2) * torch.tensor([1e-4, 1.0, 50.0]).reshape(3, 1, 1, 1)
    assert torch.allclose(reg.spectral_filter(g).flatten(1).std(dim=1), g.flatten(1).std(dim=1), rtol=1e-3)
    assert reg.spectral_filter(torch.full((1, 4, 8, 8), 7.0)).abs().max() < 1e-3


@pytest.mark.parametrize("shift", [(0, 0), (1, 0), (0, 1), (-2, 3), (5, -7)])
def test_whole_rolls_are_exactly_torch_roll(shift):
    z = randn(2, 3, 4, 6, seed=3)
    other = torch.tensor([[1.0, -1.0]])
    out = reg.roll(z, torch.cat([torch.tensor([shift], dtype=torch.float32), other]))
    assert torch.equal(out[0], z[0].roll(shift, (1, 2))) and torch.equal(out[1], z[1].roll((1, -1), (1, 2)))


def test_fractional_rolls_mix_the_two_nearest():
    z = torch.tensor([1.0, 2.0, 3.0, 4.0])
    right, down = z.reshape(1, 1, 1, 4), z.reshape(1, 1, 4, 1)
    assert close(reg.roll(right, torch.tensor([[0.0, 0.25]])).flatten(), [1.75, 1.25 + 0.5, 2.75, 3.75])
    assert close(reg.roll(right, torch.tensor([[0.0, -0.25]])).flatten(), [1.25, 2.25, 3.25, 3.25])
    assert close(reg.roll(down, torch.tensor([[1.5, 0.0]])).flatten(), [3.5, 2.5, 1.5, 2.5])


def test_positive_angles_turn_clockwise_as_seen_after_the_roll():
    z = randn(1, 4, 8, 8, seed=5)
    assert torch.equal(reg.transform(z, *moves((0, 0, 0, 1))), z)                               # to the bit
    for angle, quarters in ((90, -1), (-90, 1), (180, 2)):      # torch.rot90 counts counter-clockwise
        turned = z.roll((2, 1), (2, 3)).rot90(quarters, (2, 3))
        assert close(reg.transform(z, *moves((2, 1, angle, 1))), turned, atol=1e-5)


def test_zoom_magnifies_about_the_centre():
    """Output pixel i of 4 reads at (i - 1.5) / zoom + 1.5, where pixel centres are whole numbers."""
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert close(reg.transform(ramp, *moves((0, 0, 0, 2)))[0, 0], [0.75, 1.25, 1.75, 2.25], atol=1e-5)


def test_outside_is_zero():
    """Reduced to half, a picture of ones is a 2 x 2 square among zeros."""
    square = torch.zeros(4, 4)
    square[1:3, 1:3] = 1.0
    assert close(reg.transform(torch.ones(1, 1, 4, 4), *moves((0, 0, 0, 0.5)))[0, 0], square, atol=1e-5)


def test_pixels_stay_square_in_a_picture_that_is_not():
    """4 x 6, centre (1.5, 2.5): a quarter turn takes (1, 4) = centre + (-0.5, 1.5) to centre + (1.5, 0.5) = (3, 3)."""
    z = torch.zeros(1, 1, 4, 6)
    z[0, 0, 1, 4] = 1.0
    expected = torch.zeros(4, 6)
    expected[3, 3] = 1.0
    assert close(reg.transform(z, *moves((0, 0, 90, 1)))[0, 0], expected, atol=1e-5)


MOVES = moves((0.25, -1, 5, 1.1), (-0.5, 0.75, -17, 1.4), (3, 0, 40, 0.9))
EACH_ROW = {
    "total_variation": reg.total_variation, "range": reg.range_penalty, "moment": reg.moment_penalty,
    "blur": lambda z: reg.blur(z, 0.7), "spectral_filter": reg.spectral_filter,
    "roll": lambda z, rows=slice(None): reg.roll(z, MOVES[0][rows]),
    "transform": lambda z, rows=slice(None): reg.transform(z, *(m[rows] for m in MOVES)),
}


@pytest.mark.parametrize("name", EACH_ROW)
def test_rows_are_independent_and_inputs_are_left_alone(name):
    function, z = EACH_ROW[name], 2 * randn(3, 4, 8, 10, seed=6)
    before, together = z.clone(), function(z)
    assert torch.equal(z, before)
    for i in range(3):
        row = slice(i, i + 1)
        alone = function(z[row], row) if name in ("roll", "transform") else function(z[row])
        assert torch.allclose(together[row], alone, rtol=1e-5, atol=1e-6)


def test_likeness_couples_no_losses():
    """Of three rows with one target: a row's loss has no gradient in another row, and one that is NaN spoils none."""
    h, jobs = randn(3, 5, 2, 2, seed=8).requires_grad_(True), [Job("feature", 1, seed=s) for s in range(3)]
    (g,) = torch.autograd.grad(reg.likeness(h, jobs)[0], h)
    assert g[0].any() and not g[1:].any()
    broken = h.detach().clone()
    broken[2] = float("nan")
    for some in (jobs, [*jobs[:2], Job("feature", 9)]):
        leaf = broken.clone().requires_grad_(True)
        losses = reg.likeness(leaf, some)
        assert losses.isnan().tolist() == [False, False, True]
        assert torch.autograd.grad(losses.sum(), leaf)[0][:2].isfinite().all()


@pytest.mark.parametrize("name", ["total_variation", "range", "moment", "transform", "blur"])
def test_gradients_are_those_of_finite_differences(name):
    z = (2 * randn(3, 2, 5, 6, seed=7)).double().requires_grad_(True)
    wide = tuple(m.double() for m in MOVES)
    function = (lambda x: reg.transform(x, *wide)) if name == "transform" else EACH_ROW[name]
    assert torch.autograd.gradcheck(function, (z,))
