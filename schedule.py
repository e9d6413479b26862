"""Noise schedule and samplers of Stable Diffusion 1.x.

Sources
 [1] Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239: abar, add_noise
 [2] Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502: the DDIM step, eta = 0
 [3] Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", arXiv 2202.09778: PLMS
 [4] the published SD 1.4 file `scheduler/scheduler_config.json`
 [5] DDIMScheduler and PNDMScheduler of diffusers, against which tests/oracle/ compares trajectories

Axes: B rows, 4 x H x W latents. Time steps are integers 0..T-1, T = 1000; N is the number of sampling steps.
"""
import torch

from config import T

STEPS_OFFSET = 1            # [4]; time steps are i * (T // N) + 1, "leading" spacing
PLMS = ((1,), (3, -1), (23, -16, 5), (55, -59, 37, -9))     # weights of the last predictions, over their sum [3]


class Schedule:
    """abar_t = cumprod(1 - beta_t), beta = linspace(sqrt(beta_start), sqrt(beta_end), T)^2, "scaled linear" [4].
    Sampling ends at abar_0, or, with set_alpha_to_one, at abar = 1 [5]."""

    def __init__(self, beta_start=0.00085, beta_end=0.012, set_alpha_to_one=False, device="cpu"):
        betas = torch.linspace(beta_start ** 0.5, beta_end ** 0.5, T, dtype=torch.float32) ** 2
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0).to(device)                        # (T,)
        self.last = torch.ones_like(self.alphas_cumprod[0]) if set_alpha_to_one else self.alphas_cumprod[0]

    def abar(self, t):
        """abar at time steps t (B,) as (B, 1, 1, 1)."""
        return self.alphas_cumprod[t].reshape(-1, 1, 1, 1)

    def add_noise(self, z, eps, t):
        """x_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps [1], a time step for each row: (B, 4, H, W), the same, (B,)."""
        abar = self.abar(t).to(z.dtype)
        return abar.sqrt() * z + (1 - abar).sqrt() * eps

    def timesteps(self, steps):
        """The N < T sampling time steps, descending: 981, 961, ..., 21, 1 for N = 50 [5]."""
        return [i * (T // steps) + STEPS_OFFSET for i in reversed(range(steps))]

    def step(self, x, eps, t, t_next):
        """One DDIM step without noise (eta 0) [2], from t to t_next; below 0 it ends at `last` [4: set_alpha_to_one].

        x' = sqrt(abar') x0 + sqrt(1 - abar') eps   with   x0 = (x - sqrt(1 - abar) eps) / sqrt(abar)
        """
        now, after = self.alphas_cumprod[t], self.alphas_cumprod[t_next] if t_next >= 0 else self.last
        x0 = (x - (1 - now).sqrt() * eps) / now.sqrt()
        return after.sqrt() * x0 + (1 - after).sqrt() * eps


def ddim(schedule, predict, x, steps=50):
    """Sample by DDIM [2] from x (B, 4, H, W) ~ N(0, I): yields (t, x after it), N times; predict(x, t) -> noise."""
    for t in schedule.timesteps(steps):
        x = schedule.step(x, predict(x, t), t, t - T // steps)
        yield t, x


def pndm(schedule, predict, x, steps=50):
    """Sample by PLMS [3], SD 1.x's own: yields (t, x after the step), N + 1 times; the second t comes twice.
    The rule extrapolates the noise from the last four predictions; the step is DDIM's, to which [3]'s transfer function
    is algebraically equal. The first step is done again with the mean of both its ends, for lack of a history."""
    stride, times = T // steps, schedule.timesteps(steps)
    past, start = [], x                                         # predictions of the last steps, newest first
    for i, t in enumerate(times[:2] + times[1:]):
        e = predict(x, t)
        if i == 1:
            t_from, x, e = times[0], start, (e + past[0]) / 2
        else:
            t_from, past = t, [e, *past[:3]]
            weights = PLMS[len(past) - 1]
            e = sum(weight * earlier for weight, earlier in zip(weights, past)) / sum(weights)
        x = schedule.step(x, e, t_from, t_from - stride)
        yield t, x


SAMPLERS = {"ddim": ddim, "pndm": pndm}
