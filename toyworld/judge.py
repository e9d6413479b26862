"""The judge: a small convolutional classifier that names the object and the style of a picture.

It learns from the drawings alone, never from what the diffusion model or the ascent makes, so its opinion of those is
independent. Half of its lessons are blurred or noisy, as generated pictures are.
"""
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from toyworld.drawings import OBJECTS, STYLES

WIDTHS = (24, 48, 96, 128)


class Judge(nn.Module):
    """Images (B, 3, 64, 64) in [0, 1] -> logits of the objects (B, 10) and of the styles (B, 8)."""

    def __init__(self):
        super().__init__()
        pairs = zip((3, *WIDTHS), WIDTHS)
        self.levels = nn.ModuleList(nn.Conv2d(a, b, 5, stride=2, padding=2) for a, b in pairs)
        self.norms = nn.ModuleList(nn.GroupNorm(8, b) for b in WIDTHS)
        self.objects = nn.Linear(WIDTHS[-1] * 16, len(OBJECTS))
        self.styles = nn.Linear(2 * WIDTHS[1], len(STYLES))     # from a fine level: a style is a texture, not a place

    def look(self, images):
        """What both verdicts are made of: the last level (B, 128, 4, 4), and mean and deviation of a fine one (B, 96).
        """
        h = 2 * images - 1
        for i, (conv, norm) in enumerate(zip(self.levels, self.norms)):
            h = F.silu(norm(conv(h)))
            if i == 1:                                          # (B, 48, 16, 16)
                texture = torch.cat([h.mean((2, 3)), h.std((2, 3))], dim=1)
        return h, texture

    def forward(self, images):
        h, texture = self.look(images)
        return self.objects(h.flatten(1)), self.styles(texture)

    @torch.no_grad()
    def embed(self, images):
        """Images (B, 3, 64, 64) -> what they look like wherever in the picture it is, (B, 224)."""
        h, texture = self.look(images.clamp(0, 1).float())
        return torch.cat([h.mean((2, 3)), texture], dim=1)

    @torch.no_grad()
    def verdict(self, images):
        """Images -> index of object and of style (B,), (B,) and the probabilities it gives them."""
        objects, styles = (logits.softmax(-1).max(-1) for logits in self(images.clamp(0, 1).float()))
        return objects.indices, styles.indices, objects.values, styles.values


def lesson(images, generator):
    """Half of the images blurred by averaging 2 or 3 pixels, and noise of up to 0.08: (B, 3, 64, 64) in and out."""
    B, device = len(images), images.device
    draw = torch.rand(B, 2, generator=generator, device=device)
    for share, kernel in ((0.25, 2), (0.5, 3)):
        pick = (draw[:, 0] < share) & (draw[:, 0] >= share - 0.25)
        pad = (0, 1, 0, 1) if kernel == 2 else (1, 1, 1, 1)
        images = torch.where(pick[:, None, None, None], F.avg_pool2d(F.pad(images, pad, mode="replicate"), kernel, 1),
                             images)
    noise = torch.randn(images.shape, generator=generator, device=device)
    return (images + 0.08 * draw[:, 1, None, None, None] * noise).clamp(0, 1)


def load_judge(folder, device="cpu"):
    """The judge stored in a weights folder."""
    judge = Judge()
    judge.load_state_dict({k: v.float() for k, v in load_file(Path(folder) / "judge/model.safetensors").items()})
    return judge.to(device).requires_grad_(False)
