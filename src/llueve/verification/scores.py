"""Scores of probability forecasts of one event.

Everywhere `p` holds n probabilities of the event in [0, 1], and `y` the n outcomes: 1 if it happened, otherwise 0. Every
function raises `DataError` if p or y is empty, not one-dimensional, not finite or out of range, or if their lengths
differ: a score is about all forecasts.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import accuracy_score, brier_score_loss, confusion_matrix, f1_score, log_loss, roc_auc_score

from llueve.errors import DataError

THRESHOLD = 0.5
"""Probability from which a forecast counts as "yes", itself included (accuracy, F1, confusion)."""


def brier(p: ArrayLike, y: ArrayLike) -> float:
    """Brier score BS = mean((p - y)²): dimensionless, 0 (perfect) to 1 (certain and wrong every time).

    Reference: Brier 1950, Monthly Weather Review 78, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2
    """
    p, y = _checked(p, y)
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
    p, y = _checked(p, y)
    return float(log_loss(y, p, labels=[0, 1]))


def auc(p: ArrayLike, y: ArrayLike) -> float | None:
    """Area under the ROC curve P(p_event > p_none) + P(p_event = p_none) / 2: 1 is a perfect order, 0.5 is chance.

    None if the event always or never happened: then no pair can be compared.

    Reference: Hanley and McNeil 1982, Radiology 143, doi:10.1148/radiology.143.1.7063747
    """
    p, y = _checked(p, y)
    return None if y.min() == y.max() else float(roc_auc_score(y, p))


def accuracy(p: ArrayLike, y: ArrayLike, threshold: float = THRESHOLD) -> float:
    """Share of right yes/no forecasts, (hits + correct rejections) / n, with p ≥ threshold as yes: 0 to 1.

    It is high for a constant "no" to a rare event: read it beside the base rate.

    Reference: Finley 1884 and its critics, in Murphy 1996, Weather and Forecasting 11,
    doi:10.1175/1520-0434(1996)011<0003:TFAASE>2.0.CO;2
    """
    p, y = _checked(p, y)
    return float(accuracy_score(y, p >= threshold))


def f1(p: ArrayLike, y: ArrayLike, threshold: float = THRESHOLD) -> float:
    """F1 = 2 hits / (2 hits + misses + false alarms), with p ≥ threshold as yes: 0 to 1, and 0 if all three counts are 0.

    Reference: Dice 1945, Ecology 26, doi:10.2307/1932409
    """
    p, y = _checked(p, y)
    return float(f1_score(y, p >= threshold, zero_division=0))


def confusion(p: ArrayLike, y: ArrayLike, threshold: float = THRESHOLD) -> dict[str, int]:
    """The four counts of the contingency table, with p ≥ threshold as yes; they add up to n.

    These are hits (yes, happened), misses (no, happened), false_alarms (yes, did not), correct_rejections (no, did not).

    Reference: Murphy 1996, Weather and Forecasting 11, doi:10.1175/1520-0434(1996)011<0003:TFAASE>2.0.CO;2
    """
    p, y = _checked(p, y)
    (rejections, alarms), (misses, hits) = confusion_matrix(y, p >= threshold, labels=[0, 1])
    counts = {"hits": hits, "misses": misses, "false_alarms": alarms, "correct_rejections": rejections}
    return {name: int(count) for name, count in counts.items()}


def summary(
    p: ArrayLike, y: ArrayLike, climatology_p: ArrayLike | None, threshold: float = THRESHOLD
) -> dict[str, Any]:
    """All scores of this module as JSON holds them; `bss` is the skill over `climatology_p`, None without it."""
    return {
        "brier": brier(p, y),
        "bss": None if climatology_p is None else brier_skill(p, y, climatology_p),
        "log_score": log_score(p, y),
        "auc": auc(p, y),
        "accuracy": accuracy(p, y, threshold),
        "f1": f1(p, y, threshold),
        "confusion": confusion(p, y, threshold),
    }


def _checked(p: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Both arrays in the types for scikit-learn, or a `DataError` that names the first bad value."""
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
