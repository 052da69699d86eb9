"""Calibration: a rising map from the logits of a model to probabilities that come true as often as they say.

It is fitted on the validation period. Everything here is deterministic.

Shapes: n windows, K classes, D blocks of dates, M methods.
"""

from collections.abc import Callable
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.isotonic import IsotonicRegression

from llueve.config import CalibrationMethod, Section
from llueve.errors import UsageError

Doubles = NDArray[np.float64]

MOST_STEEP = 20.0
"""Largest factor of the logits, and the inverse of the smallest one."""
FARTHEST_SHIFT = 20.0
"""Largest shift of the log-odds, in either direction."""
FOLDS = 5
"""Parts of the cross-validation; neighbouring blocks of dates belong to different parts."""
FEWEST_BLOCKS = 10
"""Fewest blocks of dates for a choice between methods."""
METHODS: dict[bool, tuple[CalibrationMethod, ...]] = {
    True: ("none", "temperature", "platt", "isotonic"),
    False: ("none", "temperature"),
}
"""The methods for two classes (True) and for more, the simplest first."""


class Calibration(Section):
    """A fitted map from logits to probabilities, as `model.json` holds it."""

    method: CalibrationMethod = "none"
    slope: float = Field(1.0, ge=1 / MOST_STEEP, le=MOST_STEEP)
    """Factor of the logits: the inverse of the temperature."""
    shift: float = Field(0.0, ge=-FARTHEST_SHIFT, le=FARTHEST_SHIFT)
    """Number added to the log-odds of the second class, after the factor (`platt`)."""
    log_odds: tuple[float, ...] = ()
    """Knots of the curve (`isotonic`): log-odds of the second class, rising."""
    curve: tuple[float, ...] = ()
    """Calibrated probability of the second class at each knot; between two knots it is a straight line."""
    log_scores: dict[str, float] = Field(default_factory=dict)
    """Log score of each method in the cross-validation, if `auto` chose."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if len(self.log_odds) != len(self.curve) or bool(self.curve) != (self.method == "isotonic"):
            raise ValueError("the curve needs one probability for each knot, and belongs to isotonic")
        falls = any(np.diff(self.log_odds) <= 0) or any(np.diff(self.curve) < 0)
        if falls or any(not 0 < p < 1 for p in self.curve):
            raise ValueError("the curve must rise, between 0 and 1")
        return self

    @property
    def temperature(self) -> float:
        """Number by which the logits are divided."""
        return 1 / self.slope

    def probabilities(self, logits_nK: NDArray[np.floating]) -> Doubles:
        """Calibrated probabilities (n, K): finite, in [0, 1], and in each class in the order of the model's own.

        Args:
            logits_nK: finite logits; the logarithms of positive probabilities are logits, too.
        """
        logits_nK = np.asarray(logits_nK, np.float64)
        if self.method in ("none", "temperature"):
            return np.asarray(softmax(self.slope * logits_nK, axis=1))
        log_odds_n = logits_nK[:, 1] - logits_nK[:, 0]
        if self.method == "isotonic":
            p_n = np.interp(log_odds_n, self.log_odds, self.curve)
            return np.stack([1 - p_n, p_n], axis=1)
        # Both from the same log-odds: 1 − p would round a small probability of the first class.
        shifted_n = self.slope * log_odds_n + self.shift
        return np.asarray(softmax(np.stack([np.zeros_like(shifted_n), shifted_n], axis=1), axis=1))


def calibrate(
    logits_nK: NDArray[np.floating],
    y_n: NDArray[np.integer],
    method: Literal["auto", CalibrationMethod],
    block_n: NDArray[np.integer],
    all_seasons: bool = True,
) -> Calibration:
    """The calibration of a model, fitted on windows whose outcome is known.

    `temperature` minimises the log score of softmax(logits / T). `platt` minimises it for a · z + b, with the log-odds z
    of the second class. Both learn from outcomes that are not quite 0 and 1 (Platt 1999): the frequency of class k counts
    as (n_k + 1) / (n_k + K), so that perfectly separated classes do not ask for infinite logits. `isotonic` is the rising
    curve of least squares, at least 1 / (n + 2) away from 0 and 1.

    `auto` compares them by 5-fold cross-validation over blocks of dates. It takes the simplest one whose log score is
    within one standard error of the lowest. The error is that of the paired difference over the blocks. With fewer than
    10 blocks, or with one class alone, it is `none`. Without all seasons it tries `none` and `temperature` alone: the events
    of some months are more or less frequent than those of a year, and the other methods would learn that as an error.

    Args:
        logits_nK: finite logits of the model.
        y_n: index of the class that happened.
        method: one of the methods, or `auto`.
        block_n: index of the block of dates of each window, for `auto`.
        all_seasons: True if the windows cover a whole year.

    Raises:
        UsageError: platt or isotonic for more than two classes, or no window.

    Reference: Guo et al. 2017, ICML, arXiv:1706.04599; Platt 1999, Advances in Large Margin Classifiers; Zadrozny and
    Elkan 2002, KDD, doi:10.1145/775047.775151
    """
    doubles_nK, known = logits_nK.astype(np.float64), METHODS[logits_nK.shape[1] == 2]
    if not len(y_n) or method not in ("auto", *known):
        raise UsageError(
            f"{method} calibration of {len(y_n)} windows with {logits_nK.shape[1]} classes: expected at least one window, "
            f"and one of the methods {', '.join(known)}"
        )
    if method != "auto":
        return _FITS[method](doubles_nK, y_n)
    blocks_D, index_n = np.unique(block_n, return_inverse=True)
    if len(blocks_D) < FEWEST_BLOCKS or y_n.min() == y_n.max():
        return Calibration()
    known = known if all_seasons else METHODS[False]
    losses_MD = np.stack([_held_out(_FITS[each], doubles_nK, y_n, index_n) for each in known])
    rows_D = np.bincount(index_n)
    chosen = known[_simplest(losses_MD, rows_D)]
    scores = dict(zip(known, (losses_MD.sum(axis=1) / len(y_n)).tolist(), strict=True))
    return _FITS[chosen](doubles_nK, y_n).model_copy(update={"log_scores": scores})


def _held_out(
    fit: Callable[[Doubles, NDArray[np.integer]], Calibration],
    logits_nK: Doubles,
    y_n: NDArray[np.integer],
    index_n: NDArray[np.integer],
) -> Doubles:
    """Sum of the log scores in each block (D,), by calibrations that were fitted without it."""
    loss_n = np.empty(len(y_n))
    for fold in range(FOLDS):
        out_n = index_n % FOLDS == fold
        p_nK = fit(logits_nK[~out_n], y_n[~out_n]).probabilities(logits_nK[out_n])
        happened_n = p_nK[np.arange(len(p_nK)), y_n[out_n]]
        loss_n[out_n] = -np.log(np.maximum(happened_n, np.finfo(np.float64).tiny))
    return np.asarray(np.bincount(index_n, weights=loss_n), np.float64)


def _simplest(losses_MD: Doubles, rows_D: NDArray[np.integer]) -> int:
    """The first method whose mean loss is within one standard error of the lowest."""
    worse_MD = losses_MD - losses_MD[losses_MD.sum(axis=1).argmin()]
    mean_M = worse_MD.sum(axis=1) / rows_D.sum()
    # Blocks differ in rows, so this is the error of a ratio of sums.
    spread_MD = worse_MD - mean_M[:, None] * rows_D
    blocks = len(rows_D)
    error_M = np.sqrt(blocks / (blocks - 1) * (spread_MD**2).sum(axis=1)) / rows_D.sum()
    return int(np.argmax(mean_M <= error_M))


def _softened(y_n: NDArray[np.integer], classes: int) -> Doubles:
    """Targets (n, K) that are not quite 0 and 1: see `calibrate`."""
    of_class_K = np.bincount(y_n, minlength=classes)
    target_KK = np.repeat(1 / (of_class_K + classes), classes).reshape(classes, classes)
    np.fill_diagonal(target_KK, (of_class_K + 1) / (of_class_K + classes))
    return np.asarray(target_KK[y_n])


def _fit_none(logits_nK: Doubles, y_n: NDArray[np.integer]) -> Calibration:
    return Calibration()


def _fit_temperature(logits_nK: Doubles, y_n: NDArray[np.integer]) -> Calibration:
    target_nK = _softened(y_n, logits_nK.shape[1])

    def loss(log_slope: float) -> float:
        return float(-(target_nK * log_softmax(np.exp(log_slope) * logits_nK, axis=1)).sum(axis=1).mean())

    edge = np.log(MOST_STEEP)
    found = minimize_scalar(loss, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-6})
    return Calibration(method="temperature", slope=float(np.clip(np.exp(found.x), 1 / MOST_STEEP, MOST_STEEP)))


def _fit_platt(logits_nK: Doubles, y_n: NDArray[np.integer]) -> Calibration:
    target_n = _softened(y_n, 2)[:, 1]
    log_odds_n = logits_nK[:, 1] - logits_nK[:, 0]

    def loss(slope_and_shift: Doubles) -> tuple[float, Doubles]:
        z_n = slope_and_shift[0] * log_odds_n + slope_and_shift[1]
        error_n = softmax(np.stack([np.zeros_like(z_n), z_n], axis=1), axis=1)[:, 1] - target_n
        gradient = np.array([(error_n * log_odds_n).mean(), error_n.mean()])
        return float((np.logaddexp(0, z_n) - target_n * z_n).mean()), gradient

    bounds = [(1 / MOST_STEEP, MOST_STEEP), (-FARTHEST_SHIFT, FARTHEST_SHIFT)]
    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds, tol=1e-12)
    slope, shift = (float(np.clip(value, *edges)) for value, edges in zip(found.x, bounds, strict=True))
    return Calibration(method="platt", slope=slope, shift=shift)


def _fit_isotonic(logits_nK: Doubles, y_n: NDArray[np.integer]) -> Calibration:
    least = 1 / (len(y_n) + 2)
    model = IsotonicRegression(y_min=least, y_max=1 - least).fit(logits_nK[:, 1] - logits_nK[:, 0], y_n)
    return Calibration(
        method="isotonic", log_odds=tuple(model.X_thresholds_.tolist()), curve=tuple(model.y_thresholds_.tolist())
    )


_FITS: dict[CalibrationMethod, Callable[[Doubles, NDArray[np.integer]], Calibration]] = {
    "none": _fit_none,
    "temperature": _fit_temperature,
    "platt": _fit_platt,
    "isotonic": _fit_isotonic,
}
