"""Judge a picture: a small convolutional classifier names its thing and its house, and from that what it shows.

It learns from artwork alone, never from what the diffusion model or the ascent makes, and from other drawings than the
UNet's (`lesson`), so its opinion is independent.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from toyworld import drawings

WIDTHS = (24, 48, 96, 128)
NEEDED = {"name": 1, "subgroup": 3, "group": 4}             # of the judge's five likeliest things


class Judge(nn.Module):
    """Classify images (B, 3, 64, 64) in [0, 1]: logits of the things (B, T) and of the houses (B, 4)."""

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
    def verdict(self, images):
        """Name of images the five likeliest things (B, 5) and the likeliest house (B,), as indices."""
        things, houses = self(images.clamp(0, 1).float())
        return things.topk(min(5, things.shape[1])).indices, houses.argmax(-1)


def lesson(artworks, rows, generator, unseen=False):
    """Draw the artworks `rows` (B,) as only the judge sees them, (B, 3, 64, 64): scaled, turned, moved, recoloured,
    noisy, half of them blurred. `unseen` is what no lesson had: a ground of two colours, less contrast, a shear."""
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


def see(world, images):
    """List what each of the pictures (N, 3, 64, 64) in [0, 1] shows, see `contents`."""
    things, houses = world.judge.verdict(images.to(world.model.device))
    return [contents([world.chosen[i] for i in five], list(drawings.HOUSES)[house], image)
            for five, house, image in zip(things.tolist(), houses.tolist(), images.cpu())]


def contents(things, house, image):
    """Say what a picture shows, {kind: set of values}, of the kinds of toyworld/concepts.py.

    things  the judge's five likeliest, of which NEEDED share a value
    image   (3, 64, 64): its background is the median of its edge, its colours are those of what differs from that
    """
    edge = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1).median(1).values
    apart = (image - edge[:, None, None]).abs().amax(0, keepdim=True) > 0.12
    colours = drawings.colours((torch.cat([image, apart.float()]) * 255).round().to(torch.uint8))
    distance = {name: (edge - torch.tensor(rgb) / 255).norm() for name, rgb in drawings.BACKGROUNDS.items()}
    shown = {"house": {house}, "colour": colours, "background": {min(distance, key=distance.get)}}
    for kind, needed in NEEDED.items():
        values = [getattr(thing, kind) for thing in things]
        shown[kind] = {value for value in values if values.count(value) >= needed}
    return shown


def shows(shown, meaning):
    """Check that `contents` of a picture hold a meaning [kind, value], of a pair of kinds both."""
    kind, value = meaning
    return all(v in shown[k] for k, v in zip(kind.split("+"), value.split(", ", kind.count("+"))))
