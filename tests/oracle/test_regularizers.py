"""Blur, turn, zoom, roll and spectral filter against scipy and numpy in float64."""
import numpy as np
import pytest
import torch
from scipy import ndimage

import regularizers as reg
from tests.seeded import randn

SHAPES = ((8, 8), (16, 16), (9, 14))


def double(*shape, seed=1):
    return randn(*shape, seed=seed).double()


def near(ours, theirs, atol=1e-10):
    assert ours.shape == theirs.shape and np.abs(theirs).max() > 1e-2, "nothing to compare"
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("sigma, size", [(0.125, 9), (0.5, 9), (2.0, 9), (1.0, 3)])
@pytest.mark.parametrize("shape", SHAPES)
def test_blur(shape, sigma, size):
    g = double(2, 4, *shape)
    expected = ndimage.gaussian_filter(g.numpy(), sigma, mode="mirror", radius=size // 2, axes=(-2, -1))
    near(reg.blur(g, sigma, size), expected)                    # "mirror" does not repeat the edge


def affine(z, angle, zoom):
    """Turn clockwise by `angle`, then zoom, about the centre (size - 1) / 2: with y down, (dy, dx) goes to
    (dy cos + dx sin, dx cos - dy sin). scipy asks for the way back, from output to input pixels.
    """
    a, centre = np.deg2rad(angle), (np.array(z.shape) - 1) / 2
    back = np.linalg.inv(zoom * np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]))
    return ndimage.affine_transform(z, back, centre - back @ centre, order=1, mode="grid-constant", cval=0.0)


@pytest.mark.parametrize("shape", SHAPES)
def test_turn_and_zoom(shape):
    """Random angles and zooms, wider than any level of the method, different in each row."""
    rng = np.random.default_rng(0)
    angle, zoom = rng.uniform(-180, 180, 12), rng.uniform(0.5, 2.0, 12)
    z = double(12, 2, *shape)
    ours = reg.transform(z, torch.zeros(12, 2), torch.from_numpy(angle), torch.from_numpy(zoom))
    near(ours, np.stack([[affine(c, a, s) for c in row] for row, a, s in zip(z.numpy(), angle, zoom)]))


@pytest.mark.parametrize("shift", [0.25, -0.75, 2.5])
def test_roll(shift):
    """A wrapping shift with linear interpolation."""
    z = double(1, 3, 8, 10)
    amount = torch.tensor([[shift, -shift]]).double()
    near(reg.roll(z, amount)[0], ndimage.shift(z[0].numpy(), (0, shift, -shift), order=1, mode="grid-wrap"))


def filtered(g):
    """1 / (r + 1) on numpy's spectrum, the deviation restored up to the filter's 1e-8: one row, (..., H, W)."""
    fy, fx = (np.fft.fftfreq(n, 1 / n) for n in g.shape[-2:])
    low = np.fft.ifft2(np.fft.fft2(g) / (np.hypot(fy[:, None], fx) + 1)).real
    return low * g.std(ddof=1) / (low.std(ddof=1) + 1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_spectral_filter(shape):
    g = double(3, 4, *shape)
    g[1] += 3.0
    near(reg.spectral_filter(g), np.stack([filtered(row) for row in g.numpy()]), atol=1e-5)     # its r are float32
