"""The denoising UNet of Stable Diffusion 1.x, with a way out at every attention, resnet and convolution.

Module names are the checkpoint's own, so `up_blocks.1.attentions.1` is a real submodule and a strict `load_state_dict`
is the whole loader.
Sources
 [1] Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752
 [2] the published SD 1.4 file `unet/config.json` and its 686 tensors (names, shapes, sizes)
 [3] the UNet2DConditionModel of diffusers, against which tests/oracle/ compares values and gradients

Axes: B rows, C channels, H W latent height and width (64), N = h*w positions at a level, L = 77 tokens, Dc wide.
"""
import difflib
import math
import re
from collections import OrderedDict
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-5                  # GroupNorm in resnets and before conv_out, and LayerNorm [2: norm_eps] [3]
TRANSFORMER_EPS = 1e-6      # GroupNorm at the entry of a transformer block [3]
MAX_PERIOD = 10_000         # of the time embedding's sinusoids [3]


def time_embedding(t, width):
    """Time steps (B,) -> (B, width) float32 = [cos(t w_i) | sin(t w_i)] [3], w_i = 10000^(-2i / width)."""
    half = width // 2
    w = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * w                                                             # (B, width/2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def chain(**modules):
    """Make modules that run one after another, under their names in the checkpoint."""
    return nn.Sequential(OrderedDict(modules))


def upsample(c):
    """Make a nearest-neighbour doubling and a convolution: (B, c, h, w) -> (B, c, 2h, 2w)."""
    return chain(up=nn.Upsample(scale_factor=2.0, mode="nearest"), conv=nn.Conv2d(c, c, 3, padding=1))


class Resnet(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1 x)) + time))), a 1x1 shortcut where the width changes; time if `c_time`."""

    def __init__(self, c_in, c_out, groups, c_time=None, eps=EPS):
        super().__init__()
        self.out_channels = c_out
        self.norm1 = nn.GroupNorm(groups, c_in, eps=eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        if c_time:
            self.time_emb_proj = nn.Linear(c_time, c_out)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.conv_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, temb=None):                                        # (B, c_in, h, w), (B, c_time)
        h = self.conv1(F.silu(self.norm1(x)))                                                   # (B, c_out, h, w)
        if temb is not None:
            h = h + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Attention(nn.Module):
    """to_out(softmax(q k^T / sqrt(d)) v) over `heads` heads of width d = c / heads; q, k, v without bias [2]."""

    def __init__(self, c, c_context, heads):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(c, c, bias=False)
        self.to_k = nn.Linear(c_context, c, bias=False)
        self.to_v = nn.Linear(c_context, c, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(c, c)])

    def forward(self, x, context):                                          # (B, N, c), (B, L, c_context)
        split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)                     # (B, heads, N, d)
        y = F.scaled_dot_product_attention(split(self.to_q(x)), split(self.to_k(context)), split(self.to_v(context)))
        return self.to_out[0](y.transpose(1, 2).flatten(2))                                     # (B, N, c)


class GEGLU(nn.Module):
    """value * gelu(gate), both from one projection, value first; the exact gelu [3]."""

    def __init__(self, c, c_inner):
        super().__init__()
        self.proj = nn.Linear(c, 2 * c_inner)

    def forward(self, x):
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class Block(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward, each after a norm and added to its input."""

    def __init__(self, c, c_context, heads):
        super().__init__()
        self.norm1, self.attn1 = nn.LayerNorm(c, eps=EPS), Attention(c, c, heads)
        self.norm2, self.attn2 = nn.LayerNorm(c, eps=EPS), Attention(c, c_context, heads)
        self.norm3 = nn.LayerNorm(c, eps=EPS)
        self.ff = chain(net=nn.Sequential(GEGLU(c, 4 * c), nn.Identity(), nn.Linear(4 * c, c)))    # 1: dropout, p = 0

    def forward(self, x, context):                                                              # (B, N, c)
        n = self.norm1(x)
        x = x + self.attn1(n, n)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer(nn.Module):
    """An "attention" of the checkpoint: x + proj_out(block(proj_in(norm x))); its output includes the residual x."""

    def __init__(self, c, c_context, heads, groups):
        super().__init__()
        self.out_channels = c
        self.norm = nn.GroupNorm(groups, c, eps=TRANSFORMER_EPS)
        self.proj_in = nn.Conv2d(c, c, 1)
        self.transformer_blocks = nn.ModuleList([Block(c, c_context, heads)])
        self.proj_out = nn.Conv2d(c, c, 1)

    def forward(self, x, context):                                                              # (B, c, h, w)
        n = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)                               # (B, N, c)
        n = self.transformer_blocks[0](n, context)
        return x + self.proj_out(n.transpose(1, 2).reshape(x.shape))


class Level(nn.Module):
    """One resolution: a resnet for each width in `c_ins`, each followed by a transformer if `heads`; down or up."""

    def __init__(self, c_ins, c, heads, resample, c_time, c_context, groups):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(c_in, c, groups, c_time) for c_in in c_ins)
        self.attentions = nn.ModuleList(Transformer(c, c_context, heads, groups) for _ in c_ins if heads)
        if resample == "down":
            self.downsamplers = nn.ModuleList([chain(conv=nn.Conv2d(c, c, 3, stride=2, padding=1))])
        if resample == "up":
            self.upsamplers = nn.ModuleList([upsample(c)])


def updates(name):
    """Tell whether a hook point's module adds an update to its input: an attention, whose input `run` yields before."""
    return ".attentions." in name


class UNet(nn.Module):
    """Noise prediction eps(z_t, t, text). Argument names are those of `unet/config.json`, defaults are SD 1.x [2];
    `attention_head_dim` is the *number* of heads, a misnomer of the published config [3]."""

    def __init__(self, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8,
                 norm_num_groups=32, in_channels=4, out_channels=4):
        super().__init__()
        a, b, c, d = block_out_channels
        heads, rest = attention_head_dim, (4 * a, cross_attention_dim, norm_num_groups)
        self.conv_in = nn.Conv2d(in_channels, a, 3, padding=1)
        self.time_embedding = chain(linear_1=nn.Linear(a, 4 * a), act=nn.SiLU(), linear_2=nn.Linear(4 * a, 4 * a))
        self.down_blocks = nn.ModuleList([
            #     width into each resnet        out  heads  then     [2: three CrossAttnDownBlock2D, a DownBlock2D]
            Level((a, a),                       a,   heads, "down", *rest),
            Level((a, b),                       b,   heads, "down", *rest),
            Level((b, c),                       c,   heads, "down", *rest),
            Level((c, d),                       d,   0,     None,   *rest),
        ])
        self.mid_block = nn.ModuleDict({
            "resnets": nn.ModuleList(Resnet(d, d, norm_num_groups, 4 * a) for _ in range(2)),
            "attentions": nn.ModuleList([Transformer(d, cross_attention_dim, heads, norm_num_groups)])})
        self.up_blocks = nn.ModuleList([
            #     from below + skip             out  heads  then     [2: an UpBlock2D, three CrossAttnUpBlock2D]
            Level((d + d, d + d, d + c),        d,   0,     "up",   *rest),
            Level((d + c, c + c, c + b),        c,   heads, "up",   *rest),
            Level((c + b, b + b, b + a),        b,   heads, "up",   *rest),
            Level((b + a, a + a, a + a),        a,   heads, None,   *rest),
        ])
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, a, eps=EPS)
        self.conv_out = nn.Conv2d(a, out_channels, 3, padding=1)

    @cached_property
    def hook_points(self):
        """Names of all attentions, resnets and convolutions between them; but conv_out, the prediction."""
        names = r"conv_in|.*\.(resnets|attentions)\.\d|.*samplers\.0\.conv"
        return [name for name, _ in self.named_modules() if re.fullmatch(names, name)]

    def hook_name(self, name):
        """Return a hook point's name, given with or without `unet.`; ValueError names the nearest."""
        short = name.removeprefix("unet.")
        if short not in self.hook_points:
            near = ", ".join(difflib.get_close_matches(short, self.hook_points, n=3, cutoff=0.0))
            raise ValueError(f"hook point {name!r} is no attention, resnet or convolution of the UNet; nearest: {near}")
        return short

    def width(self, name):
        """D, the number of channels at hook point `name`."""
        return self.get_submodule(self.hook_name(name)).out_channels

    def forward(self, z, t, context, until=None):
        """Predict the noise of latents (B, 4, H, W) at time steps t (B,) int64 with text (B, 77, Dc): (B, 4, H, W), or
        return the output (B, D, h, w) of the hook point `until`, after which nothing is computed."""
        stop = self.hook_name(until) if until else "conv_out"
        passes = self.run(z, t, context)
        name, h = next(passes)
        while name != stop:
            name, h = passes.send(h)
        return h

    def run(self, z, t, context):
        """The network, a hook point at a time: yields (its name, its output) and goes on with what is sent back."""
        h = yield "conv_in", self.conv_in(z)                                                    # (B, a, H, W)
        temb = self.time_embedding(time_embedding(t, self.conv_in.out_channels).to(z.dtype))    # (B, 4a)
        skips = [h]

        for i, level in enumerate(self.down_blocks):
            for j, resnet in enumerate(level.resnets):
                h = yield f"down_blocks.{i}.resnets.{j}", resnet(h, temb)
                if level.attentions:
                    h = yield f"down_blocks.{i}.attentions.{j}", level.attentions[j](h, context)
                skips.append(h)
            if hasattr(level, "downsamplers"):
                h = yield f"down_blocks.{i}.downsamplers.0.conv", level.downsamplers[0](h)
                skips.append(h)

        h = yield "mid_block.resnets.0", self.mid_block.resnets[0](h, temb)                     # (B, d, H/8, W/8)
        h = yield "mid_block.attentions.0", self.mid_block.attentions[0](h, context)
        h = yield "mid_block.resnets.1", self.mid_block.resnets[1](h, temb)

        for i, level in enumerate(self.up_blocks):
            for j, resnet in enumerate(level.resnets):
                h = yield f"up_blocks.{i}.resnets.{j}", resnet(torch.cat([h, skips.pop()], dim=1), temb)
                if level.attentions:
                    h = yield f"up_blocks.{i}.attentions.{j}", level.attentions[j](h, context)
            if hasattr(level, "upsamplers"):
                h = yield f"up_blocks.{i}.upsamplers.0.conv", level.upsamplers[0](h)

        yield "conv_out", self.conv_out(F.silu(self.conv_norm_out(h)))                          # (B, 4, H, W)
