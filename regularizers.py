"""The seven regularizers that keep the ascent's result a picture, as plain functions; every one treats each row alone.

    1  prior initialisation       steering.py: the ascent starts from a steered sample
    2  total variation            total_variation(z)
    3  range                      range_penalty(z)
    4  moment                     moment_penalty(z)
    5  gradient smoothing         blur(g, sigma), smoothing_sigma(step, ...)
    6  transformation robustness  transform(z, shift, angle, zoom)
    7  spectral gradient filter   spectral_filter(g)
   (8  weight decay               the optimiser's, in ascent.py: the original's library default, here a named setting)
    -  likeness(h, jobs)          pushes the seeds of one target apart; off unless asked for, since rows then mix

Source: Szokalski & Modrzejewski, "Deep Dreams Are Made of This", arXiv 2605.08218, and its implementation.
Axes: B jobs, C channels, H W latent height and width. Where a strength is a length (shift, sigma) or a slope (total
variation), `pitch` says how many of our latent pixels make one of SD's, whose latents are 64 wide: W / 64.
"""
import torch
import torch.nn.functional as F

from config import REFERENCE_WIDTH

NORM_EPS = 1e-8             # against division by a gradient of deviation 0


def pitch(z):
    """Latent pixels of z (..., W) in one latent pixel of a 64-wide latent."""
    return z.shape[-1] / REFERENCE_WIDTH


def total_variation(z):
    """mean |z[y+1] - z[y]| + mean |z[x+1] - z[x]|, per row: (B, C, H, W) -> (B,)."""
    return z.diff(dim=-2).abs().mean((1, 2, 3)) + z.diff(dim=-1).abs().mean((1, 2, 3))


def range_penalty(z, limit=3.0):
    """mean relu(|z| - limit)^2, per row: (B, C, H, W) -> (B,)."""
    return (z.abs() - limit).relu().square().mean((1, 2, 3))


def moment_penalty(z):
    """|mean z| + |std z - 1|, per row, the unbiased deviation: (B, C, H, W) -> (B,)."""
    return z.mean((1, 2, 3)).abs() + (z.flatten(1).std(dim=1) - 1).abs()


def likeness(h, jobs):
    """mean of cos(m_i, m_j) over the other rows j of row i's target and time step, m = mean of h over positions; 0
    where there is none: h (B, D, h, w) -> (B,). After the diversity term of Olah et al., "Feature Visualization", 2017.
    No row's loss has a gradient in another row, and one that is not finite leaves the others alone."""
    m = F.normalize(h.mean((2, 3)), dim=1)                                                      # (B, D)
    others = m.detach().nan_to_num(nan=0)
    same = torch.tensor([[a is not b and (a.target, a.timestep) == (b.target, b.timestep) for b in jobs] for a in jobs])
    same = same.to(m)                                                                           # (B, B)
    return (same * (m @ others.T)).sum(dim=1) / same.sum(dim=1).clamp(min=1)


def smoothing_sigma(step, steps, start, end):
    """Linear from `start` at the first step to `end` at the last."""
    return start + (end - start) * step / max(steps - 1, 1)


def blur(g, sigma, size=9):
    """Blur by weights exp(-x^2 / (2 sigma^2)), normalised, borders reflected, like torchvision; not where sigma <= 0.
    (B, C, H, W) -> the same."""
    if sigma <= 0:
        return g
    half = size // 2
    x = torch.arange(-half, half + 1, dtype=g.dtype, device=g.device)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    C = g.shape[1]
    g = F.pad(g, (half, half, half, half), mode="reflect")
    g = F.conv2d(g, kernel.reshape(1, 1, 1, size).expand(C, 1, 1, size), groups=C)              # along x
    return F.conv2d(g, kernel.reshape(1, 1, size, 1).expand(C, 1, size, 1), groups=C)           # along y


def spectral_filter(g):
    """FFT of g times 1 / (r + 1), r = sqrt(fy^2 + fx^2) in cycles a picture, and back; then g's own deviation, that of
    the whole row over C, H and W. (B, C, H, W) -> the same."""
    fy = torch.fft.fftfreq(g.shape[-2], d=1 / g.shape[-2], device=g.device)
    fx = torch.fft.fftfreq(g.shape[-1], d=1 / g.shape[-1], device=g.device)
    r = (fy[:, None] ** 2 + fx[None, :] ** 2).sqrt()                                            # (H, W)
    low = torch.fft.ifft2(torch.fft.fft2(g) / (r + 1)).real
    gain = g.flatten(1).std(dim=1) / (low.flatten(1).std(dim=1) + NORM_EPS)                     # (B,)
    return low * gain[:, None, None, None]


def roll(z, shift):
    """Move each row by its own shift (B, 2) = (down, right) in pixels, wrapping; a fraction mixes the two nearest.
    `shift` stays on the CPU, where it was drawn: reading it from a card would wait for the card once a step."""
    for dim, amount in zip((-2, -1), shift.T):
        whole = amount.floor()                                                                  # (B,)
        share = (amount - whole).to(z)[:, None, None, None]
        moved = lambda by: torch.stack([row.roll(int(n), dim) for row, n in zip(z, by)])
        z = (1 - share) * moved(whole) + share * moved(whole + 1)
    return z


def transform(z, shift, angle, zoom):
    """Roll by `shift` (B, 2) pixels, then turn by `angle` (B,) degrees and magnify by `zoom` (B,) about the centre.
    Positive angles turn clockwise as seen (y points down), like torchvision's affine. Bilinear, zeros outside.
    (B, C, H, W) -> the same, differentiable in z; the numbers are on the CPU."""
    z = roll(z, shift)
    if (angle == 0).all() and (zoom == 1).all():                # exactly, without the resampling's rounding
        return z
    a = torch.deg2rad(angle)
    cos, sin, zero = a.cos() / zoom, a.sin() / zoom, torch.zeros_like(a)
    # rows of the inverse map, output position -> input position, in a square of [-1, 1]
    ratio = z.shape[-2] / z.shape[-1]
    theta = torch.stack([torch.stack([cos, sin * ratio, zero], -1), torch.stack([-sin / ratio, cos, zero], -1)], -2)
    grid = F.affine_grid(theta.to(z), list(z.shape), align_corners=False)
    return F.grid_sample(z, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
