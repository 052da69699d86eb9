"""Scale variables by the mean and standard deviation of the training period. Shapes: S sites, T times, C variables.

An intermittent variable, such as rain, is first compressed by a logarithm: otherwise a few large amounts decide its spread.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from llueve.errors import DataError
from llueve.panel import FloatArray, feature_cube, feature_names

MOST_SPREADS = 1e15
"""Training standard deviations beyond which the square of a value comes near the limit of float32."""


DRY = 0.01
"""Share of a variable's mean below which a value counts as zero: packing leaves traces instead of zeros."""
OFTEN_DRY = 0.1
"""Smallest share of zeros of an intermittent variable."""


@dataclass(frozen=True)
class Scaler:
    """Mean and standard deviation of each variable, from the cells of the training period alone."""

    mean_C: FloatArray
    std_C: FloatArray
    amount_C: FloatArray
    """Usual amount of an intermittent variable, in its unit; NaN for the others. Mean and spread are then those of
    log(1 + value / amount)."""

    def scale(self, cube_STC: FloatArray) -> FloatArray:
        """Values in training-set units, ±infinity beyond what float32 holds."""
        scaled_STC = np.empty_like(cube_STC)
        for c, (mean, std, amount) in enumerate(zip(self.mean_C, self.std_C, self.amount_C, strict=True)):
            exact_ST = (_compressed(cube_STC[..., c].astype(np.float64), float(amount)) - mean) / std
            beyond_ST = np.abs(exact_ST) > np.finfo(np.float32).max
            scaled_STC[..., c] = np.where(beyond_ST, np.copysign(np.inf, exact_ST), exact_ST)
        return scaled_STC


def fit_scaler(panel: xr.Dataset, training_rows: int) -> Scaler:
    """Fit on the first `training_rows` times. Raises `DataError` if a variable has no observation there."""
    names = feature_names(panel)
    cube_STC = feature_cube(panel, names)[:, :training_rows].astype(np.float64)
    if empty := [name for index, name in enumerate(names) if np.isnan(cube_STC[..., index]).all()]:
        raise DataError(f"{', '.join(empty)}: no observed value in the training period; name it in data.exclude")
    amount_C = np.array([usual_amount(cube_STC[..., c]) or np.nan for c in range(len(names))])
    for c, amount in enumerate(amount_C):
        cube_STC[..., c] = _compressed(cube_STC[..., c], amount)
    mean_C, std_C = np.nanmean(cube_STC, axis=(0, 1)), np.nanstd(cube_STC, axis=(0, 1))
    # Packed float32 constants differ from their mean by rounding; this is not a spread.
    constant_C = std_C <= 1e-6 * np.maximum(np.abs(mean_C), 1e-30)
    std_C = np.where(constant_C, 1.0, std_C)
    return Scaler(*(each.astype(np.float32) for each in (mean_C, std_C, amount_C)))


def usual_amount(values: NDArray[np.float64]) -> float | None:
    """Median amount of an intermittent variable: never negative, often zero, with more than two values. None for others."""
    known = values[~np.isnan(values)]
    if not len(known) or known.min() < 0:
        return None
    wet = known[known > DRY * known.mean()]
    if len(wet) > (1 - OFTEN_DRY) * len(known) or not len(wet) or wet.min() == wet.max():
        return None
    return float(np.median(wet))


def _compressed(values: NDArray[np.float64], amount: float) -> NDArray[np.float64]:
    """sign(x) · log(1 + |x| / amount): an impossible negative amount stays visible. Unchanged if the amount is NaN."""
    return values if np.isnan(amount) else np.sign(values) * np.log1p(np.abs(values) / amount)
