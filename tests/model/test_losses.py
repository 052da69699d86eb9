"""The loss by hand, and finite with its gradient at every edge."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from llueve.step.loss import forecast_losses, sample_losses, weighted_mean


def classification_loss(logits_BK, y_B, weights_K=None, gamma=0.0, smoothing=0.0):
    return weighted_mean(sample_losses(logits_BK, y_B, gamma, smoothing), y_B, weights_K)


EDGES = st.sampled_from([0.0, 1e-30, -1e-30, 1.0, -20.0, 88.0, 104.0, -104.0, 1e4, -1e4, 1e30, -1e30])


def test_by_hand():
    """p of the true class: 3/4 and 1/2."""
    logits, y = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]), torch.tensor([1, 0])
    plain = (-math.log(3 / 4) - math.log(1 / 2)) / 2
    focal = (-((1 / 4) ** 2) * math.log(3 / 4) - (1 / 2) ** 2 * math.log(1 / 2)) / 2
    weighted = (-3 * math.log(3 / 4) - 1 * math.log(1 / 2)) / 4
    assert classification_loss(logits, y).item() == pytest.approx(plain)
    assert classification_loss(logits, y, gamma=2.0).item() == pytest.approx(focal)
    assert classification_loss(logits, y, torch.tensor([1.0, 3.0])).item() == pytest.approx(weighted)


def test_equals_torch_where_torch_has_it():
    torch.manual_seed(0)
    logits, y, weights = torch.randn(20, 4), torch.randint(4, (20,)), torch.rand(4) + 0.1
    torch.testing.assert_close(classification_loss(logits, y, weights), F.cross_entropy(logits, y, weights))
    torch.testing.assert_close(
        classification_loss(logits, y, smoothing=0.1), F.cross_entropy(logits, y, label_smoothing=0.1)
    )


@given(
    logits=st.lists(st.tuples(EDGES, EDGES, EDGES), min_size=1, max_size=4),
    y=st.integers(0, 2),
    gamma=st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, 10.0]),
    smoothing=st.sampled_from([0.0, 0.1]),
    weighted=st.booleans(),
)
def test_value_and_gradient_are_finite_at_every_edge(logits, y, gamma, smoothing, weighted):
    logits_BK = torch.tensor(logits, requires_grad=True)
    weights = torch.tensor([0.2, 1.0, 5.0]) if weighted else None
    loss = classification_loss(logits_BK, torch.full((len(logits),), y), weights, gamma, smoothing)
    loss.backward()
    assert loss.isfinite() and loss >= 0
    assert logits_BK.grad.isfinite().all()


def test_the_forecasting_loss_by_hand():
    """Errors 0.5 and 2 of known variables: (0.5² / 2 + 2 − 0.5) / 2; nothing is known of the second window."""
    forecast = torch.tensor([[0.5, 3.0, 7.0], [1.0, 1.0, 1.0]], requires_grad=True)
    future = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    known = torch.tensor([[True, True, False], [False, False, False]])
    losses = forecast_losses(forecast, future, known)
    assert losses.tolist() == pytest.approx([(0.125 + 1.5) / 2, 0.0])
    losses.sum().backward()
    assert forecast.grad[0, 2] == 0 and not forecast.grad[1].any()
