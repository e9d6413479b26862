"""The top-k sparse autoencoder of SAeUron: activations at a hook point <-> features.

Sources
 [1] Cywinski & Deja, "SAeUron: Interpretable Concept Unlearning in Diffusion Models with Sparse Autoencoders",
     arXiv 2501.18052, and its published `cfg.json` + `sae.safetensors` (names, shapes)
 [2] Gao et al., "Scaling and evaluating sparse autoencoders", arXiv 2406.04093: top-k, the auxiliary loss
 [3] Bussmann et al., "BatchTopK Sparse Autoencoders", arXiv 2412.06410: top-k over the batch while training

Axes: any leading ..., D hook width (1280), F features (20480), k active features a position (32).
"""
import torch
from torch import nn

UNIT_NORM_EPS = 1e-5        # [1: preprocess_input]
AUX_K_SHARE = 0.5           # dead features that explain the residual, as a share of D [2]
AUX_WEIGHT = 1 / 32         # [2]


class SAE(nn.Module):
    """pre = relu(W_enc (h - b_dec) + b_enc);  acts = top-k of pre;  h^ = acts W_dec + b_dec.

    `encoder.weight` (F, D) is W_enc, `encoder.bias` (F,) b_enc, `W_dec` (F, D) has rows of unit norm, `b_dec` (D,).
    """

    def __init__(self, d_in, num_latents, k=32, input_unit_norm=False):
        super().__init__()
        self.k, self.input_unit_norm = k, input_unit_norm
        self.encoder = nn.Linear(d_in, num_latents)
        self.W_dec = nn.Parameter(torch.zeros(num_latents, d_in))
        self.b_dec = nn.Parameter(torch.zeros(d_in))

    @property
    def features(self):
        return self.encoder.out_features

    def init(self, generator, h):
        """Training's start: b_dec is the mean of the data h (n, D) [2], W_dec's rows are deviations from it by lot, of
        norm 1, the encoder is their transpose. Rows at random would keep what the data never say (ours).
        """
        with torch.no_grad():
            lot = torch.randint(len(h), (self.features,), generator=generator, device=h.device)
            self.b_dec.copy_(h.mean(0))
            self.W_dec.copy_(h[lot] - self.b_dec)
            self.normalize_decoder()
            self.encoder.weight.copy_(self.W_dec)
            self.encoder.bias.zero_()

    @torch.no_grad()
    def normalize_decoder(self):
        """Scale every row of W_dec to norm 1."""
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(self.W_dec.dtype).eps)

    def preprocess(self, h):
        """h itself, or each position brought to mean 0 and deviation 1 where the config asks
        for it (`input_unit_norm`).
        """
        if not self.input_unit_norm:
            return h
        h = h - h.mean(dim=-1, keepdim=True)
        return h / (h.std(dim=-1, keepdim=True) + UNIT_NORM_EPS)

    def linear(self, h, feature=None):
        """What the relu is applied to: h (..., D) -> (..., F); for features (n,) of a batch's rows, h (n, S, D) -> (n,
        S).

        With `feature` only those rows of W_enc are used: one dot product a position instead of F.
        """
        h = self.preprocess(h) - self.b_dec
        if feature is None:
            return self.encoder(h)
        return (h * self.encoder.weight[feature][:, None]).sum(-1) + self.encoder.bias[feature][:, None]

    def pre_acts(self, h):
        """relu(W_enc (h - b_dec) + b_enc), without top-k: (..., D) -> (..., F). Its mean over
        positions is *the activation*.
        """
        return self.linear(h).relu()

    def encode(self, h):
        """The k largest pre-activations of each position, the others 0: (..., D) -> (..., F)."""
        pre = self.pre_acts(h)
        top = pre.topk(self.k, dim=-1)
        return torch.zeros_like(pre).scatter(-1, top.indices, top.values)

    def decode(self, acts):
        """acts W_dec + b_dec: (..., F) -> (..., D)."""
        return acts @ self.W_dec + self.b_dec

    def encode_batch(self, h):
        """Batch top-k [3]: the k * n largest of n positions together, so that each position takes what it needs."""
        pre = self.pre_acts(h)
        top = pre.flatten().topk(self.k * h[..., 0].numel())
        return torch.zeros_like(pre.flatten()).scatter(0, top.indices, top.values).reshape(pre.shape)


def fvu(h, h_hat):
    """Fraction of variance unexplained: sum (h - h^)^2 / sum (h - mean h)^2, over all of (n, D)."""
    return (h - h_hat).square().sum() / (h - h.mean(dim=0)).square().sum()


def training_loss(sae, h, dead):
    """FVU of the batch top-k reconstruction + 1/32 of the share of its residual that dead features leave unexplained
    [2].

    h (n, D); dead (F,) bool, features that have not fired lately. Returns (loss, fired (F,) bool, fvu).
    """
    acts = sae.encode_batch(h)
    h_hat = sae.decode(acts)
    loss = main = fvu(sae.preprocess(h), h_hat)
    k_aux = min(int(dead.sum()), int(AUX_K_SHARE * h.shape[-1]))
    if k_aux:
        residual = (sae.preprocess(h) - h_hat).detach()
        pre = sae.pre_acts(h).masked_fill(~dead, 0.0)
        top = pre.topk(k_aux, dim=-1)
        guess = torch.zeros_like(pre).scatter(-1, top.indices, top.values) @ sae.W_dec
        loss = loss + AUX_WEIGHT * fvu(residual, guess)
    return loss, (acts > 0).any(dim=0), main.detach()
