"""Decomposition of the Brier score into miscalibration, discrimination and uncertainty, by isotonic regression.

Isotonic regression replaces each probability by the frequency of events that fits best among all curves that never fall.
It needs no bins, so nobody chooses their number. Shapes: n rows, G distinct probabilities.

Reference: Dimitriadis, Gneiting and Jordan 2021, PNAS 118, doi:10.1073/pnas.2016191118
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from llueve.verification.scores import brier, checked


@dataclass(frozen=True)
class Decomposition:
    """The three parts of a Brier score: BS = MCB - DSC + UNC. All are dimensionless."""

    mcb: float
    """Miscalibration: Brier score minus that of the recalibrated forecast; 0 or more, 0 is best."""
    dsc: float
    """Discrimination: Brier score of a constant at the base rate minus that of the recalibrated forecast; 0 or more."""
    unc: float
    """Uncertainty: Brier score r(1 - r) of a constant at the base rate r. It belongs to the outcomes alone."""


@dataclass(frozen=True, eq=False)
class RecalibrationCurve:
    """The isotonic (CORP) reliability curve: the frequency of the event that belongs to each distinct probability."""

    probability_G: NDArray[np.float64]
    """Distinct probabilities, rising."""
    frequency_G: NDArray[np.float64]
    """Recalibrated probabilities, which never fall."""
    rows_G: NDArray[np.int64]
    group_n: NDArray[np.intp]
    """Index of each row's probability in `probability_G`."""


def recalibration_curve(p: ArrayLike, y: ArrayLike) -> RecalibrationCurve:
    """The isotonic regression of y on p by pooling adjacent violators; `DataError` if they cannot be scored."""
    p, y = checked(p, y)
    probability_G, group_n, rows_G = np.unique(p, return_inverse=True, return_counts=True)
    frequency_G = isotonic_frequencies(np.bincount(group_n, weights=y).astype(np.float64), rows_G.astype(np.float64))
    return RecalibrationCurve(probability_G, frequency_G, rows_G, group_n)


def isotonic_frequencies(events_G: NDArray[np.float64], rows_G: NDArray[np.float64]) -> NDArray[np.float64]:
    """Never falling frequencies (G,) of least squares, for groups in the order of their probability; all have rows."""
    fitted: NDArray[np.float64] = isotonic_regression(events_G / rows_G, weights=rows_G).x
    return np.clip(fitted, 0, 1)


def decompose(p: ArrayLike, y: ArrayLike) -> Decomposition:
    """The decomposition of the Brier score; `DataError` if p and y cannot be scored.

    A constant forecast has DSC = 0. If the event always or never happened, DSC and UNC are 0, and MCB is the Brier score.
    """
    p, y = checked(p, y)
    curve = recalibration_curve(p, y)
    recalibrated = brier(curve.frequency_G[curve.group_n], y)
    unc = float(y.mean() * (1 - y.mean()))
    # Neither is negative in exact arithmetic.
    return Decomposition(mcb=max(0.0, brier(p, y) - recalibrated), dsc=max(0.0, unc - recalibrated), unc=unc)
