"""The judge: a small convolutional classifier that names the thing and the house of a picture.

It learns from the artwork alone, never from what the diffusion model or the ascent makes, so its opinion of those is
independent; and from other drawings than the UNet's: scaled, turned, moved, on any background, blurred and noisy.
"""
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from toyworld import drawings

WIDTHS = (24, 48, 96, 128)


class Judge(nn.Module):
    """Images (B, 3, 64, 64) in [0, 1] -> logits of the things (B, T) and of the houses (B, 4)."""

    def __init__(self, things):
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(a, b, 5, stride=2, padding=2) for a, b in zip((3, *WIDTHS), WIDTHS))
        self.norms = nn.ModuleList(nn.GroupNorm(8, b) for b in WIDTHS)
        self.hidden = nn.Linear(16 * WIDTHS[-1], 256)
        self.things, self.houses = nn.Linear(256, things), nn.Linear(256 + 2 * WIDTHS[1], len(drawings.HOUSES))

    def forward(self, images):
        h = 2 * images - 1
        for i, (conv, norm) in enumerate(zip(self.levels, self.norms)):
            h = F.silu(norm(conv(h)))                                               # (B, 24, 32, 32) ... (B, 128, 4, 4)
            if i == 1:                                                              # (B, 48, 16, 16)
                texture = torch.cat([h.mean((2, 3)), h.std((2, 3))], dim=1)         # a house is a way of shading, too
        h = F.silu(self.hidden(h.flatten(1)))                                                   # (B, 256)
        return self.things(h), self.houses(torch.cat([h, texture], dim=1))

    @torch.no_grad()
    def verdict(self, images, top=5):
        """Images -> indices of the `top` likeliest things (B, top), the likeliest house (B,)."""
        things, houses = self(images.clamp(0, 1).float())
        return things.topk(min(top, things.shape[1])).indices, houses.argmax(-1)


def lesson(artworks, rows, generator, unseen=False):
    """Pictures (B, 3, 64, 64) of the artworks `rows` as only the judge sees them.

    Scaled by 0.8 to 1.1, turned by up to 12 degrees, moved by up to 5 pixels, brighter or darker, on a background of
    any light colour; half are blurred, all noisy. `unseen` ones differ by what no lesson had: a background that runs
    from one colour to another, less contrast and a sheer.
    """
    B, device = len(rows), artworks.device
    draw = lambda low, high, *shape: low + (high - low) * torch.rand(B, *shape, generator=generator, device=device)
    angle, scale = draw(-12, 12) * math.pi / 180, draw(0.8, 1.1) * drawings.EDGE / drawings.SIZE
    cos, sin, move = angle.cos() / scale, angle.sin() / scale, draw(-5, 5, 2) / (drawings.SIZE / 2)
    shear = draw(-0.15, 0.15) if unseen else torch.zeros(B, device=device)
    matrix = torch.stack([cos, shear - sin, move[:, 0], sin, cos, move[:, 1]], dim=1).view(B, 2, 3)
    grid = F.affine_grid(matrix, [B, 4, drawings.SIZE, drawings.SIZE], align_corners=False)
    pixels = F.grid_sample(artworks[rows].float() / 255, grid, align_corners=False)             # (B, 4, 64, 64)
    ground = draw(0.7, 1.0, 3, 1, 1).expand(-1, -1, drawings.SIZE, drawings.SIZE)
    if unseen:
        ramp = torch.linspace(0, 1, drawings.SIZE, device=device)
        ground = ground + (draw(0.7, 1.0, 3, 1, 1) - ground) * ramp
    images = ground * (1 - pixels[:, 3:]) + pixels[:, :3] * draw(0.85, 1.15, 3, 1, 1)
    if unseen:
        images = 0.5 + (images - 0.5) * draw(0.7, 0.95, 1, 1, 1)
    fate = draw(0, 1, 1, 1, 1)
    for low, kernel in ((0.5, 3), (0.75, 5)):
        blurred = F.avg_pool2d(F.pad(images, (kernel // 2,) * 4, mode="replicate"), kernel, 1)
        images = torch.where((fate >= low) & (fate < low + 0.25), blurred, images)
    noise = torch.randn(images.shape, generator=generator, device=device)
    return (images + draw(0, 0.08, 1, 1, 1) * noise).clamp(0, 1)


def load_judge(folder, things, device="cpu"):
    """The judge stored in a weights folder, which names `things` things."""
    judge = Judge(things)
    judge.load_state_dict({k: v.float() for k, v in load_file(Path(folder) / "judge/model.safetensors").items()})
    return judge.to(device).requires_grad_(False)
