"""Quick twins of a network's layers, for frozen weights on a CPU; formulas, names and shapes are the plain ones'.

On a CPU torch's float32 matrix product is MKL's, slow on other makers' processors, and a convolution of many channels
over few positions spends three quarters of its time on reordering its weights. Here both are products x W^T by oneDNN,
forward and backward, with the weights as they lie. The results differ from torch's by rounding (docs/measured.md).
"""
import torch
import torch.nn.functional as F
from torch import nn

import unet

FEW, MANY = 512, 2 ** 20    # a 3x3 convolution is a product for at most FEW positions, at least MANY weights [measured]


def quick(x, weight):
    """Tell whether oneDNN's product can stand for torch's: a frozen weight on a CPU, in a precision that both know."""
    if weight.requires_grad or x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return x.dtype == torch.float32 or x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Product(torch.autograd.Function):
    """y = x W^T + b, (..., c_in) -> (..., c_out), with the gradient of x alone: dL/dx = dL/dy W. Keeps W, not x."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx, g):
        weight, = ctx.saved_tensors
        return torch.ops.mkldnn._linear_pointwise(g, weight.t(), None, "none", [], ""), None, None


class Linear(nn.Linear):
    def forward(self, x):
        return Product.apply(x, self.weight, self.bias) if quick(x, self.weight) else super().forward(x)


class Conv2d(nn.Conv2d):
    """Kernel 1, or 3 with padding 1; as a product, each position's k x k neighbourhood is a row: (B, h*w, c_in k k)."""

    def forward(self, x):                                                                       # (B, c_in, h, w)
        B, _, h, w = x.shape
        k, few = self.kernel_size[0], B * h * w <= FEW and self.weight.numel() >= MANY and self.stride == (1, 1)
        if not quick(x, self.weight) or k > 1 and not few:
            return super().forward(x)
        rows = F.unfold(x, k, padding=self.padding) if k > 1 else x.flatten(2)                  # (B, c_in k k, h*w)
        out = Product.apply(rows.transpose(1, 2), self.weight.flatten(1), self.bias)            # (B, h*w, c_out)
        return out.transpose(1, 2).reshape(B, -1, h, w)


class Transformer(unet.Transformer):
    """Skips a transformer whose output projection is all zero, as most of the toy's are."""

    def forward(self, x, context):
        zero = quick(x, self.proj_out.weight) and not self.proj_out.weight.any() and not self.proj_out.bias.any()
        return x if zero else super().forward(x, context)


def quicken(net):
    """Turn every layer that has a quick twin into it, and return the network. Names and tensors stay the same."""
    twins = {nn.Linear: Linear, nn.Conv2d: Conv2d, unet.Transformer: Transformer}
    for layer in net.modules():
        layer.__class__ = twins.get(type(layer), type(layer))
    return net
