"""Scores of probability forecasts of one event.

Everywhere `p` holds n probabilities of the event in [0, 1], and `y` the n outcomes: 1 if it happened, otherwise 0. Every
function raises `DataError` if p or y is empty, not one-dimensional, not finite or out of range, or if their lengths
differ: a score is about all forecasts. A score that the outcomes leave undefined is None, as each function says.

Yes/no forecasts at a threshold: `contingency`. Decomposition: `decomposition`. Curves: `curves`. Several classes:
`class_scores`.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from llueve.errors import DataError


def brier(p: ArrayLike, y: ArrayLike) -> float:
    """Brier score BS = mean((p - y)²): dimensionless, 0 (perfect) to 1 (certain and wrong every time).

    Reference: Brier 1950, Monthly Weather Review 78, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2
    """
    p, y = checked(p, y)
    return float(brier_score_loss(y, p, labels=[0, 1], pos_label=1))


def brier_skill(p: ArrayLike, y: ArrayLike, reference_p: ArrayLike) -> float | None:
    """Brier skill score BSS = 1 - BS / BS_ref: 1 is perfect, 0 as good as the reference, below 0 worse.

    None if the reference is perfect (BS_ref = 0), which leaves the ratio undefined.

    Reference: Murphy 1973, Journal of Applied Meteorology 12, doi:10.1175/1520-0450(1973)012<0215:HASSFP>2.0.CO;2
    """
    reference, score = brier(reference_p, y), brier(p, y)
    return None if reference == 0 else 1 - score / reference


def log_score(p: ArrayLike, y: ArrayLike) -> float:
    """Logarithmic score -mean(y ln p + (1 - y) ln(1 - p)): nats, 0 (perfect) upwards.

    Probabilities are clipped to [ε, 1 - ε] with ε = 2.2e-16 (float64), as scikit-learn does: a wrong forecast of exactly
    0 or 1 costs 36 nats. For a yes/no forecast such as persistence this shows little more than its share of wrong ones.

    Reference: Good 1952, Journal of the Royal Statistical Society B 14, doi:10.1111/j.2517-6161.1952.tb00104.x
    """
    p, y = checked(p, y)
    return float(log_loss(y, p, labels=[0, 1]))


def log_losses(p: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """The terms (n,) of which `log_score` is the mean, in nats; nothing is checked."""
    smallest = np.finfo(np.float64).eps
    return np.asarray(-np.log(np.clip(np.where(y == 1, p, 1 - p), smallest, 1 - smallest)))


def auc(p: ArrayLike, y: ArrayLike) -> float | None:
    """Area under the ROC curve P(p_event > p_none) + P(p_event = p_none) / 2: 1 is a perfect order, 0.5 is chance.

    None if the event always or never happened: then no pair can be compared.

    Reference: Hanley and McNeil 1982, Radiology 143, doi:10.1148/radiology.143.1.7063747
    """
    p, y = checked(p, y)
    return None if y.min() == y.max() else float(roc_auc_score(y, p))


def average_precision(p: ArrayLike, y: ArrayLike) -> float | None:
    """Area under the precision-recall curve as Σ (Rₖ - Rₖ₋₁) Pₖ over the distinct probabilities from high to low.

    P is the share of right forecasts among the yes forecasts (success ratio), R the share of events that were forecast
    (POD). Range 0 to 1, 1 is best; a forecast without information has the base rate. None if the event never happened.

    Reference: Davis and Goadrich 2006, ICML, doi:10.1145/1143844.1143874
    """
    p, y = checked(p, y)
    return None if y.max() == 0 else float(average_precision_score(y, p))


def sharpness(p: ArrayLike) -> float:
    """Variance mean((p - mean p)²) of the forecasts: 0 for a constant, at most 0.25; outcomes do not matter.

    A sharp forecast is good only if it is calibrated as well.

    Reference: Gneiting, Balabdaoui and Raftery 2007, Journal of the Royal Statistical Society B 69,
    doi:10.1111/j.1467-9868.2007.00587.x
    """
    p, _ = checked(p, np.zeros(np.shape(p)))
    return float(np.var(p))


def checked(p: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Probabilities and outcomes as arrays (n,); `DataError` names the first bad value."""
    p_n, y_n = np.asarray(p, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if p_n.ndim != 1 or p_n.shape != y_n.shape:
        raise DataError(f"expected one probability per outcome, in one dimension; found {p_n.shape} and {y_n.shape}")
    if p_n.size == 0:
        raise DataError("no forecast to score: expected at least one probability and its outcome")
    # NaN compares false, so "not within" catches it together with values out of range.
    for expected, values_n, good_n in (
        ("probabilities in [0, 1]", p_n, (p_n >= 0) & (p_n <= 1)),
        ("outcomes 0 or 1", y_n, (y_n == 0) | (y_n == 1)),
    ):
        if not good_n.all():
            at = int(np.argmin(good_n))
            raise DataError(f"expected {expected}; {(~good_n).sum()} are not, the first {values_n[at]} at index {at}")
    return p_n, y_n.astype(np.int64)
