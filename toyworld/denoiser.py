"""The toy's text encoder and UNet, trained together, with no way around the hook point for what needs the text."""
import torch
from torch import nn

from clip import TextEncoder
from toyworld import drawings
from unet import Transformer, UNet
from weights.load import SIZES

HOOK_POINT = "up_blocks.1.attentions.1"
THROUGH = "down_blocks.2.", "mid_block.", "up_blocks.1.", "up_blocks.2."    # the only transformers at work
BEHIND = "up_blocks.1.attentions.2", "up_blocks.2."                 # of these without the text
LEVEL = "up_blocks.1.resnets.2"                                     # what follows the hook point at its own level
NAME = 100.0                # length of a name; after stage "unet" a place's output was 80 (t 900) to 146 (t 100) long
POOLED, NOISY = 0.25, 0.25  # shares of the training rows that `roughen` changes
UNET_CONFIG = dict(block_out_channels=[16, 24, 128, 128], layers_per_block=2, cross_attention_dim=64,
                   attention_head_dim=4, norm_num_groups=8, in_channels=4, out_channels=4,
                   sample_size=drawings.SIZE // 4)
TEXT_CONFIG = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
                   hidden_act="quick_gelu",
                   max_position_embeddings=77)


def sizes(config, part):
    """The entries of a config that its network takes."""
    return {key: config[key] for key in SIZES[part] if key in config}


class Denoiser(nn.Module):
    """Text encoder and UNet, trained together."""

    def __init__(self, vocab_size):
        super().__init__()
        self.text_encoder = TextEncoder(**sizes(TEXT_CONFIG, "text_encoder") | {"vocab_size": vocab_size})
        self.unet = UNet(**sizes(UNET_CONFIG, "unet"))

    def forward(self, x, t, ids):
        return self.unet(x, t, self.text_encoder(ids))

    def narrow(self):
        """Leave no way around the hook point for what needs the text, so that it matters as it does in Stable
        Diffusion: transformers of the uppermost levels add nothing, for good, those behind the hook point do not see
        the text (training passes by what does nothing), and the skip connection that arrives behind it at its own level
        has no weight.
        """
        for name, module in self.unet.named_modules():
            if isinstance(module, Transformer) and not name.startswith(THROUGH):
                silenced(module, module.proj_out)
                module.forward = lambda x, context: x
            elif isinstance(module, Transformer) and name.startswith(BEHIND):
                block = module.transformer_blocks[0]
                block.norm2.requires_grad_(False)
                silenced(block.attn2, block.attn2.to_out[0])
                block.attn2.forward = lambda *_: 0
        self.silence()

    @torch.no_grad()
    def silence(self):
        """The skip connection's channels are the last ones that LEVEL reads: weight 0, again after every update."""
        resnet = self.unet.get_submodule(LEVEL)
        skip = UNET_CONFIG["block_out_channels"][1]
        resnet.norm1.weight[-skip:] = resnet.norm1.bias[-skip:] = 0
        resnet.conv_shortcut.weight[:, -skip:] = 0


def silenced(module, last):
    """Let nothing of a module through, for good: its last layer is 0, and none of it is trained."""
    module.requires_grad_(False)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


def names():
    """What the hook's output shall say of a picture (train.py, stage "sight"): for each object and then each style a
    direction of its own of length NAME, by lot and at right angles to all others: (18, D).
    """
    D = UNET_CONFIG["block_out_channels"][2]
    lot = torch.randn(D, D, generator=torch.Generator().manual_seed(4))
    return NAME * torch.linalg.qr(lot)[0][:len(drawings.OBJECTS) + len(drawings.STYLES)]


def roughen(h, generator):
    """The hook's output as training hands it on, h (B, D, S, S): POOLED of the rows keep but their mean over positions;
    NOISY of the rows, drawn again, get noise of N(0, sigma^2) times their root mean square at every position, sigma
    from 0.32 to 3.2 and uniform in its logarithm.

    So the layers behind learn to draw from what is the same at all positions, as what steering adds is, and the hook's
    output to say there what a picture shows.
    """
    draw = lambda of, *shape: of(len(h), *shape, generator=generator, device=h.device)
    h = torch.where(draw(torch.rand, 1, 1, 1) < POOLED, h.mean((2, 3), keepdim=True), h)
    sigma = 10 ** (draw(torch.rand, 1, 1, 1) - 0.5) * (draw(torch.rand, 1, 1, 1) < NOISY)
    return h + sigma * h.detach().square().mean((1, 2, 3), keepdim=True).sqrt() * draw(torch.randn, *h.shape[1:])
