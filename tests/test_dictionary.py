"""Training an SAE: its start, batch top-k and the loss, on examples worked out by hand."""
import pytest
import torch

from dictionary.loss import encode_batch, init, normalize_decoder, training_loss
from sae import SAE, fvu


@pytest.fixture
def axes():
    """Four features that look along x, y, -x and -y; k is 1."""
    sae = SAE(2, 4, k=1).requires_grad_(False)
    for p, value in ((sae.encoder.weight, [[1, 0], [0, 1], [-1, 0], [0, -1]]), (sae.encoder.bias, [0, 0, 0, 0]),
                     (sae.W_dec, [[1, 0], [0, 1], [-1, 0], [0, -1]]), (sae.b_dec, [0, 0])):
        p.copy_(torch.tensor(value))
    return sae


H = torch.tensor([[3.0, 2.5], [1.0, 0.5]])


def test_the_batch_shares_its_k(axes):
    """Twice one feature for two positions: the first takes both; one by one each takes its own."""
    assert encode_batch(axes, H).tolist() == [[3, 2.5, 0, 0], [0, 0, 0, 0]]
    assert axes.encode(H).tolist() == [[3, 0, 0, 0], [1, 0, 0, 0]]


def test_the_loss_of_training(axes):
    """(1, 0.5) is left: 1.25 of 4 about the mean. A 32nd of what the dead leave of that: 1.25, or 9.25, of 0.625."""
    assert fvu(torch.tensor([[0.0, 0], [2, 0]]), torch.tensor([[0.0, 0], [1, 0]])) == 0.5
    for dead, loss in (([], 0.3125), ([2, 3], 0.3125 + 2 / 32), ([0], 0.3125 + 14.8 / 32)):
        mask = torch.tensor([f in dead for f in range(4)])
        ours, fired, main = training_loss(axes, H, mask)
        assert ours.item() == pytest.approx(loss) and main.item() == pytest.approx(0.3125)
        assert fired.tolist() == [True, True, False, False]


def test_training_starts_at_unit_deviations_from_the_mean_and_their_transpose():
    sae, data = SAE(5, 9), torch.arange(5.0) + torch.tensor([[0, 0, 0, 3, 4], [0, 0, 0, -3, -4], [2, 0, 0, 0, 0],
                                                             [-2, 0, 0, 0, 0]])
    init(sae, torch.Generator().manual_seed(0), data)
    assert sae.b_dec.tolist() == [0, 1, 2, 3, 4] and not sae.encoder.bias.any()
    assert {tuple(row) for row in sae.W_dec.mul(5).round().tolist()} <= {
        (0, 0, 0, 3, 4), (0, 0, 0, -3, -4), (5, 0, 0, 0, 0), (-5, 0, 0, 0, 0)}
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(9)) and torch.equal(sae.encoder.weight, sae.W_dec)
    assert len({tuple(row) for row in sae.W_dec.tolist()}) > 1
    sae.W_dec.data *= torch.arange(9.0)[:, None]
    normalize_decoder(sae)
    assert torch.allclose(sae.W_dec[1:].norm(dim=1), torch.ones(8)) and not sae.W_dec[0].any()      # 0 stays 0
