"""Dropout: the right share at the right scale, repeatable, and a gradient through exactly what was kept."""

import pytest
import torch

from llueve.model.kernels.dropout import Dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("relu", [False, True])
def test_share_scale_and_mean(rate, relu):
    torch.manual_seed(0)
    x = torch.ones(400_003)  # no multiple of the four elements of a draw
    dropout = Dropout(rate).train()
    out = dropout.relu(x) if relu else dropout(x)
    kept = out != 0
    assert abs(kept.double().mean() - (1 - rate)) < 4 * (rate * (1 - rate) / len(x)) ** 0.5
    torch.testing.assert_close(out[kept].unique(), torch.tensor([1 / (1 - rate)]), rtol=1e-3, atol=0)
    assert abs(out.mean() - 1) < 0.01


def test_neighbours_are_dropped_independently():
    torch.manual_seed(1)
    kept = (Dropout(0.5).train()(torch.ones(200_000)) != 0).double() - 0.5
    for distance in (1, 2, 3, 4, 5, 8):
        assert abs((kept[:-distance] * kept[distance:]).mean() * 4) < 0.012  # 5 standard errors


@pytest.mark.parametrize("relu", [False, True])
def test_the_gradient_passes_where_the_value_did(relu):
    torch.manual_seed(2)
    x = torch.randn(1001, dtype=torch.float64, requires_grad=True)
    dropout = Dropout(0.3).train()
    out = dropout.relu(x) if relu else dropout(x)
    weigh = torch.randn_like(out)
    (grad,) = torch.autograd.grad((out * weigh).sum(), x)
    slope = torch.where(out != 0, out / x, 0).detach()
    torch.testing.assert_close(grad, weigh * slope)


def test_one_seed_one_mask_and_none_outside_training():
    x, dropout = torch.randn(999), Dropout(0.2)
    masks = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        masks.append(dropout.train()(x) == 0)
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert dropout.eval()(x) is x
    assert torch.equal(dropout.relu(x), x.relu())
    assert torch.equal(Dropout(0.0).train()(x), x)


def test_a_rate_so_near_one_that_nothing_is_left_is_finite():
    assert Dropout(1 - 1e-9).train()(torch.ones(100)).isfinite().all()


def test_a_fault_is_not_hidden():
    x = torch.tensor([float("nan")] * 64)
    assert Dropout(0.5).train()(x).isnan().all()
    assert Dropout(0.5).train().relu(x).isnan().all()
