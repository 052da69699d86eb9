"""Scores of forecasts of one of K classes, for targets with several classes.

Everywhere `p` (n, K) holds a probability for each class, rows sum to 1, and `y` (n,) the index of the class that
happened. Every function raises `DataError` if they are empty, not finite, out of range or do not fit each other.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llueve.errors import DataError

SUM_ERROR = 1e-4
"""Largest distance of the sum of a row's probabilities from 1: probabilities may be rounded."""


def ranked_probability_score(p: ArrayLike, y: ArrayLike) -> float:
    """Ranked probability score for ordered classes: RPS = mean Σₖ (Pₖ - Oₖ)² / (K - 1), dimensionless, 0 (best) to 1.

    Pₖ is the probability of class k or a lower one, and Oₖ is 1 if class k or a lower one happened. A forecast that is
    off by one class costs less than one that is off by two. With two classes it is the Brier score.

    Reference: Epstein 1969, Journal of Applied Meteorology 8, doi:10.1175/1520-0450(1969)008<0985:ASSFPF>2.0.CO;2;
    divided by K - 1 as in Murphy 1971, Journal of Applied Meteorology 10, doi:10.1175/1520-0450(1971)010<0155:ANOTRP>2.0.CO;2
    """
    p, happened = _checked_classes(p, y)
    distance = np.cumsum(p, axis=1)[:, :-1] - np.cumsum(happened, axis=1)[:, :-1]
    return float((distance**2).sum(axis=1).mean() / (p.shape[1] - 1))


def class_brier(p: ArrayLike, y: ArrayLike) -> float:
    """Brier's own score for several classes, mean Σₖ (pₖ - oₖ)²: 0 (best) to 2; with two classes twice the Brier score.

    Reference: Brier 1950, Monthly Weather Review 78, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2
    """
    p, happened = _checked_classes(p, y)
    return float(((p - happened) ** 2).sum(axis=1).mean())


def class_log_score(p: ArrayLike, y: ArrayLike) -> float:
    """Logarithmic score -mean(ln p of the class that happened): nats, 0 (best) upwards; clipped as `scores.log_score`.

    Reference: Good 1952, Journal of the Royal Statistical Society B 14, doi:10.1111/j.2517-6161.1952.tb00104.x
    """
    p, happened = _checked_classes(p, y)
    return float(-np.log(np.clip((p * happened).sum(axis=1), np.finfo(np.float64).eps, 1)).mean())


def class_summary(p: ArrayLike, y: ArrayLike, frequency_K: ArrayLike) -> dict[str, float | None]:
    """All scores of this module as JSON holds them; `rpss` is the skill of RPS over the constant `frequency_K`.

    None for `rpss` if that constant is perfect.
    """
    rps = ranked_probability_score(p, y)
    constant = ranked_probability_score(np.broadcast_to(np.asarray(frequency_K, np.float64), np.shape(p)), y)
    skill = None if constant == 0 else 1 - rps / constant
    return {"rps": rps, "rpss": skill, "class_brier": class_brier(p, y), "class_log_score": class_log_score(p, y)}


def _checked_classes(p: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The probabilities, and 1 where a class happened, both (n, K); `DataError` names the first bad row."""
    p_nK, y_n = np.asarray(p, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if p_nK.ndim != 2 or y_n.shape != p_nK.shape[:1] or p_nK.shape[1] < 2:
        raise DataError(
            f"expected probabilities (n, K) of K ≥ 2 classes and n outcomes; found {p_nK.shape}, {y_n.shape}"
        )
    if len(p_nK) == 0:
        raise DataError("no forecast to score: expected at least one row and its class")
    in_range = ((p_nK >= 0) & (p_nK <= 1)).all(axis=1)
    classes = p_nK.shape[1]
    for expected, good_n in (
        ("probabilities in [0, 1]", in_range),
        ("probabilities that sum to 1", np.abs(p_nK.sum(axis=1) - 1) <= SUM_ERROR),
        (f"classes 0 to {classes - 1}", np.isin(y_n, np.arange(classes))),
    ):
        if not good_n.all():
            at = int(np.argmin(good_n))
            raise DataError(
                f"expected {expected}; {(~good_n).sum()} rows have others, the first at index {at}: {p_nK[at]}, class {y_n[at]}"
            )
    return p_nK, np.eye(classes)[y_n.astype(np.intp)]
