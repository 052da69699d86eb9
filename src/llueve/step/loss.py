"""The training loss: cross-entropy with class weights, focal factor and label smoothing, and the forecasting loss beside it.

Loss and gradient are finite. Shapes: B batch, K classes, C variables.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from llueve.model.batch import NextDays
from llueve.model.heads import DayForecasts


def sample_losses(logits_BK: Tensor, y_B: Tensor, gamma: float = 0.0, smoothing: float = 0.0) -> Tensor:
    """Return (1 − p_y)^γ · CE of each window, (B,), where p_y is the probability of the true class.

    With γ = 0 it is cross-entropy. With γ > 0 it is the focal loss of Lin et al., arXiv:1708.02002, with one weight per class.
    log(1 − p_y) is computed from the logits of the other classes, so neither p → 1 nor p → 0 leads to log 0 or 0^(γ−1).

    Args:
        gamma: γ ≥ 0.
        smoothing: share of the target that is spread over all classes, 0…1.
    """
    loss_B = F.cross_entropy(logits_BK, y_B, reduction="none", label_smoothing=smoothing)
    if gamma > 0:
        true_BK = F.one_hot(y_B, logits_BK.shape[1]).bool()
        others_B = logits_BK.masked_fill(true_BK, -torch.inf).logsumexp(-1)
        loss_B = loss_B * (gamma * (others_B - logits_BK.logsumexp(-1))).exp()
    return loss_B


def forecast_losses(forecast_BC: Tensor, future_BC: Tensor, known_BC: Tensor) -> Tensor:
    """Return the smooth L1 loss of each window, (B,), as the mean over its known variables; zero if none is known."""
    loss_BC = F.smooth_l1_loss(forecast_BC, future_BC, reduction="none")
    known = known_BC.to(loss_BC.dtype)
    return (loss_BC * known).sum(-1) / known.sum(-1).clamp(min=1)


def day_losses(found: DayForecasts, days: NextDays, forecast_weight: float) -> Tensor:
    """Return the pre-training loss of each window, (B,): of the amounts of rain, and of the next values by their weight.

    The first is the mean binary cross-entropy over the known amounts after all patches, the second the mean smooth L1 loss
    over the known values of all variables. Each is zero if nothing is known.
    """
    rain_BNR = F.binary_cross_entropy_with_logits(found.rain_BNR, days.rain_BNR, reduction="none")
    next_BCNP = F.smooth_l1_loss(found.next_BCNP, days.next_BCNP, reduction="none")
    loss_B = _known_mean(rain_BNR, days.rain_known_BNR)
    return loss_B + forecast_weight * _known_mean(next_BCNP, days.next_known_BCNP)


def _known_mean(loss: Tensor, known: Tensor) -> Tensor:
    """Mean of each window over what is known."""
    known_BX = known.flatten(1).to(loss.dtype)
    return (loss.flatten(1) * known_BX).sum(-1) / known_BX.sum(-1).clamp(min=1)


def weighted_mean(loss_B: Tensor, y_B: Tensor, weights_K: Tensor | None = None) -> Tensor:
    """Return Σ w_y · loss / Σ w_y; w is a positive weight of each class, None for equal weights."""
    if weights_K is None:
        return loss_B.mean()
    weight_B = weights_K[y_B]
    return (loss_B * weight_B).sum() / weight_B.sum()
