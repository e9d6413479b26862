"""How an SAE is trained: its start, batch top-k, and the loss with the share of dead features.

Sources
 [1] Gao et al., "Scaling and evaluating sparse autoencoders", arXiv 2406.04093: the auxiliary loss, the start
 [2] Bussmann et al., "BatchTopK Sparse Autoencoders", arXiv 2412.06410: top-k over the batch while training

Axes: n positions of a batch, D hook width, F features, k active features a position.
"""
import torch

from sae import fvu

AUX_K_SHARE = 0.5           # dead features that explain the residual, as a share of D [1]
AUX_WEIGHT = 1 / 32         # [1]


@torch.no_grad()
def init(sae, generator, mean):
    """Set an SAE to its start: b_dec is the mean of the data (D,), W_dec's rows are random directions of norm 1, the
    encoder is their transpose [1]."""
    sae.b_dec.copy_(mean)
    sae.W_dec.copy_(torch.randn(sae.W_dec.shape, generator=generator))
    normalize_decoder(sae)
    sae.encoder.weight.copy_(sae.W_dec)
    sae.encoder.bias.zero_()


@torch.no_grad()
def normalize_decoder(sae):
    """Scale every row of W_dec to norm 1."""
    sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(sae.W_dec.dtype).eps)


def batch_topk(pre, k):
    """Keep the k * n largest pre-activations of n positions together [2]: (n, F) -> (the same, the least kept above 0).
    """
    top = pre.flatten().topk(k * len(pre))
    kept = torch.zeros_like(pre.flatten()).scatter(0, top.indices, top.values).reshape(pre.shape)
    return kept, top.values.masked_fill(top.values <= 0, torch.inf).min()


def training_loss(sae, h, dead):
    """Compute FVU of the batch top-k reconstruction + 1/32 of the share of its residual that dead features leave
    unexplained [1]. Returns (loss, fired (F,) bool, the least activation that was kept, fvu).

    h (n, D); dead (F,) bool: features that have not fired lately. The residual is detached, it is h - h^, and the dead
    features explain it without b_dec: three points at which widely copied code differs.
    """
    pre = sae.pre_acts(h)                                                                       # (n, F)
    acts, least = batch_topk(pre, sae.k)
    h_hat = sae.decode(acts)
    loss = main = fvu(sae.preprocess(h), h_hat)
    k_aux = min(int(dead.sum()), int(AUX_K_SHARE * h.shape[-1]))
    if k_aux:
        residual = (sae.preprocess(h) - h_hat).detach()
        top = pre.masked_fill(~dead, 0.0).topk(k_aux, dim=-1)
        guess = torch.zeros_like(pre).scatter(-1, top.indices, top.values) @ sae.W_dec
        loss = loss + AUX_WEIGHT * fvu(residual, guess)
    return loss, (acts > 0).any(dim=0), least.detach(), main.detach()
