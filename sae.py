"""A sparse autoencoder (SAE): activations at a hook point <-> features.

Sources
 [1] Cywinski & Deja, "SAeUron: Interpretable Concept Unlearning in Diffusion Models with Sparse Autoencoders",
     arXiv 2501.18052, and its published `cfg.json` + `sae.safetensors` (names, shapes, defaults)
 [2] Gao et al., "Scaling and evaluating sparse autoencoders", arXiv 2406.04093: top-k
 [3] Rajamanoharan et al., "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders",
     arXiv 2407.14435: a threshold for each feature

Axes: any leading ..., D hook width (1280), F features (20480), k active features a position (32).
"""
import torch
from torch import nn

UNIT_NORM_EPS = 1e-5        # [1: preprocess_input]
GATES = ("topk", "signed topk", "relu", "threshold")
NORMS = ("none", "unit", "length")
READS = ("output", "update")


class SAE(nn.Module):
    """pre = relu(W_enc (n(h) - b_dec) + b_enc);  acts = gate(pre);  h^ = acts W_dec + b_dec.

    `encoder.weight` (F, D) is W_enc, `encoder.bias` (F,) b_enc, `W_dec` (F, D) has rows of unit norm, `b_dec` (D,).

    n       "none": h itself;  "unit": (h - mean) / (std + 1e-5) of each position;  "length": h sqrt(D) / |h|
    centre  False: b_dec is not subtracted before W_enc
    gate    "topk": the k largest of a position;  "relu": all above 0;  "threshold": those above `threshold`, one number
            or (F,) [3];  "signed topk": the k largest before the relu, negative ones included
    reads   "output": h is the output of the hook point's module;  "update": its output minus its input
    timesteps   those it was trained on; () is all
    """

    def __init__(self, d_in, num_latents, k=32, norm="none", centre=True, gate="topk", reads="output", timesteps=(),
                 threshold=None):
        super().__init__()
        self.k, self.norm, self.centre, self.gate, self.reads, self.timesteps = k, norm, centre, gate, reads, timesteps
        self.features = num_latents
        self.encoder = nn.Linear(d_in, num_latents)
        self.W_dec = nn.Parameter(torch.zeros(num_latents, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        if gate == "threshold":
            self.threshold = nn.Parameter(torch.zeros(num_latents)) if threshold is None else threshold

    def preprocess(self, h):
        """Normalise each position as the SAE was trained: n(h), of h's shape."""
        if self.norm == "length":
            return h * (h.shape[-1] ** 0.5 / h.norm(dim=-1, keepdim=True))
        if self.norm == "unit":
            h = h - h.mean(dim=-1, keepdim=True)
            h = h / (h.std(dim=-1, keepdim=True) + UNIT_NORM_EPS)
        return h

    def linear(self, h, feature=None):
        """Compute the pre-activation before the relu: h (..., D) -> (..., F). With `feature` (n,), one for each row of
        h (n, S, D), only those rows of W_enc are used: (n, S)."""
        h = self.preprocess(h)
        h = h - self.b_dec if self.centre else h
        if feature is None:
            return self.encoder(h)
        return (h * self.encoder.weight[feature][:, None]).sum(-1) + self.encoder.bias[feature][:, None]

    def pre_acts(self, h):
        """relu of `linear`, without the gate: (..., D) -> (..., F). Its mean over positions is *the activation*."""
        return self.linear(h).relu()

    def encode(self, h):
        """Features after the gate: (..., D) -> (..., F)."""
        pre = self.linear(h)
        if self.gate != "signed topk":
            pre = pre.relu()
        if self.gate == "threshold":
            return pre * (pre > self.threshold)
        if self.gate == "relu":
            return pre
        top = pre.topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, top.indices, top.values)

    def decode(self, acts):
        """acts W_dec + b_dec: (..., F) -> (..., D), what `preprocess` would give."""
        return acts @ self.W_dec + self.b_dec

    def reconstruct(self, h):
        """Describe h by its features, with its own mean and scale again: (..., D) -> (..., D)."""
        h_hat = self.decode(self.encode(h))
        if self.norm == "length":
            return h_hat * (h.norm(dim=-1, keepdim=True) / h.shape[-1] ** 0.5)
        if self.norm == "unit":
            return h_hat * h.std(dim=-1, keepdim=True) + h.mean(dim=-1, keepdim=True)
        return h_hat


def fvu(h, h_hat):
    """Fraction of variance unexplained: sum (h - h^)^2 / sum (h - mean h)^2, over all of (n, D)."""
    return (h - h_hat).square().sum() / (h - h.mean(dim=0)).square().sum()
