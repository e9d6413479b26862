"""The autoencoder of Stable Diffusion 1.x: images <-> latents. Module names are the checkpoint's own.

Sources
 [1] Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752 (the architecture)
 [2] the published SD 1.4 file `vae/config.json` and its 248 tensors (names, shapes, sizes)
 [3] the AutoencoderKL of diffusers, against which tests/oracle/ compares values and gradients

Axes: B images, C channels, H W latent height and width; with n levels the image is 2^(n-1) times larger, 8 for SD.
"""
import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import nn

from unet import Resnet, chain, upsample

EPS = 1e-6                  # of every GroupNorm here [3]; the UNet's are 1e-5


class Attention(nn.Module):
    """Self-attention over positions with one head of the full width: x + out(softmax(q k^T / sqrt(c)) v)."""

    def __init__(self, c, groups):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, c, eps=EPS)
        self.to_q, self.to_k, self.to_v = nn.Linear(c, c), nn.Linear(c, c), nn.Linear(c, c)
        self.to_out = nn.ModuleList([nn.Linear(c, c)])

    def forward(self, x):
        n = self.group_norm(x).flatten(2).transpose(1, 2)                                       # (B, h*w, C)
        a = F.scaled_dot_product_attention(self.to_q(n), self.to_k(n), self.to_v(n))            # (B, h*w, C)
        return x + self.to_out[0](a).transpose(1, 2).reshape(x.shape)


class Mid(nn.Module):
    def __init__(self, c, groups):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(c, c, groups, eps=EPS) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(c, groups)])

    def forward(self, h):
        return self.resnets[1](self.attentions[0](self.resnets[0](h)))


def levels(widths, layers, groups, resample):
    """Make a level for each width: resnets at one resolution, then the change to the next one, "down" or "up"."""
    made = []
    for i, (c_in, c) in enumerate(zip((widths[0], *widths), widths)):
        parts = {"resnets": nn.Sequential(*(Resnet(c if j else c_in, c, groups, eps=EPS) for j in range(layers)))}
        if resample == "down" and i < len(widths) - 1:
            pad = nn.ZeroPad2d((0, 1, 0, 1))                    # on the right and below only [3]
            parts["downsamplers"] = nn.Sequential(chain(pad=pad, conv=nn.Conv2d(c, c, 3, stride=2)))
        if resample == "up" and i < len(widths) - 1:
            parts["upsamplers"] = nn.Sequential(upsample(c))
        made.append(chain(**parts))
    return nn.Sequential(*made)


class VAE(nn.Module):
    """The autoencoder; argument names are those of `vae/config.json`, defaults are SD 1.x [2]. `scaling_factor` brings
    latents to about unit variance; SD's original config files leave it out, 0.18215 is the number of [1]."""

    def __init__(self, block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
                 norm_num_groups=32, scaling_factor=0.18215):
        super().__init__()
        widths, layers, latent, groups = tuple(block_out_channels), layers_per_block, latent_channels, norm_num_groups
        first, last = widths[0], widths[-1]
        self.scaling_factor = scaling_factor
        self.factor = 2 ** (len(widths) - 1)                    # pixels an edge of one latent position
        self.encoder = chain(                                   # -> mean and log variance of the latent, stacked
            conv_in=nn.Conv2d(3, first, 3, padding=1), down_blocks=levels(widths, layers, groups, "down"),
            mid_block=Mid(last, groups), conv_norm_out=nn.GroupNorm(groups, last, eps=EPS), act=nn.SiLU(),
            conv_out=nn.Conv2d(last, 2 * latent, 3, padding=1))
        self.decoder = chain(                                   # one resnet a level more than the encoder
            conv_in=nn.Conv2d(latent, last, 3, padding=1), mid_block=Mid(last, groups),
            up_blocks=levels(widths[::-1], layers + 1, groups, "up"),
            conv_norm_out=nn.GroupNorm(groups, first, eps=EPS), act=nn.SiLU(),
            conv_out=nn.Conv2d(first, 3, 3, padding=1))
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)

    def moments(self, images):
        """Images (B, 3, 8H, 8W) in [0, 1] -> mean and log variance of the unscaled latent, each (B, 4, H, W)."""
        mean, logvar = self.quant_conv(self.encoder(2 * images - 1)).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def encode(self, images):
        """Images (B, 3, 8H, 8W) in [0, 1] -> scaled latents (B, 4, H, W): the mean, without sampling noise."""
        return self.moments(images)[0] * self.scaling_factor

    def decode_raw(self, z):
        """Scaled latents (B, 4, H, W) -> images (B, 3, 8H, 8W) in about [-1, 1], with a gradient everywhere."""
        return self.decoder(self.post_quant_conv(z / self.scaling_factor))

    def decode(self, z):
        """Scaled latents (B, 4, H, W) -> images (B, 3, 8H, 8W) = clamp(decode_raw(z) / 2 + 0.5, 0, 1)."""
        return (self.decode_raw(z) / 2 + 0.5).clamp(0.0, 1.0)


def to_uint8(image):
    """(3, H, W) in [0, 1] -> (H, W, 3) uint8, rounded; NaN, which only a non-finite result has, is black."""
    return (image.permute(1, 2, 0).nan_to_num(0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def to_file(picture, **settings):
    """Encode a PIL picture as the bytes of a file; `settings`: its format and what PIL's `save` takes with it."""
    file = io.BytesIO()
    picture.save(file, **settings)
    return file.getvalue()


def to_png(image, **text):
    """Encode an image, (3, H, W) in [0, 1], as PNG bytes. `text` becomes the file's text chunks."""
    chunks = PngInfo()
    for name, value in text.items():
        chunks.add_text(name, value)
    return to_file(Image.fromarray(to_uint8(image)), format="PNG", pnginfo=chunks)


def read_picture(path):
    """Read a picture upright, as RGB with 8 bits a colour; ValueError, one line, where it cannot be read."""
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):                          # grey with 16 bits, 65535 is white
            image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:       # SyntaxError is Pillow's
        raise ValueError(f"{path}: cannot be read as a picture ({e}); give a PNG or JPEG of ordinary size") from e


def fitted(picture, height, width):
    """Crop a PIL picture about its centre and scale it: (3, height, width) in [0, 1]."""
    picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
