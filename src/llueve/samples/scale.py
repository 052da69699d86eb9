"""Scale variables by the mean and standard deviation of the training period. Shapes: S sites, T times, C variables."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from llueve.errors import DataError
from llueve.panel import FloatArray, feature_cube, feature_names

MOST_SPREADS = 1e15
"""Training standard deviations beyond which the square of a value comes near the limit of float32."""


@dataclass(frozen=True)
class Scaler:
    """Mean and standard deviation of each variable, from the cells of the training period alone."""

    mean_C: FloatArray
    std_C: FloatArray

    def scale(self, cube_STC: FloatArray) -> FloatArray:
        """Values in training-set units, ±infinity beyond what float32 holds."""
        scaled_STC = np.empty_like(cube_STC)
        for c, (mean, std) in enumerate(zip(self.mean_C, self.std_C, strict=True)):
            exact_ST = (cube_STC[..., c].astype(np.float64) - mean) / std
            beyond_ST = np.abs(exact_ST) > np.finfo(np.float32).max
            scaled_STC[..., c] = np.where(beyond_ST, np.copysign(np.inf, exact_ST), exact_ST)
        return scaled_STC


def fit_scaler(panel: xr.Dataset, training_rows: int) -> Scaler:
    """Fit on the first `training_rows` times. Raises `DataError` if a variable has no observation there."""
    names = feature_names(panel)
    cube_STC = feature_cube(panel, names)[:, :training_rows].astype(np.float64)
    if empty := [name for index, name in enumerate(names) if np.isnan(cube_STC[..., index]).all()]:
        raise DataError(f"{', '.join(empty)}: no observed value in the training period; name it in data.exclude")
    mean_C, std_C = np.nanmean(cube_STC, axis=(0, 1)), np.nanstd(cube_STC, axis=(0, 1))
    # Packed float32 constants differ from their mean by rounding; this is not a spread.
    constant_C = std_C <= 1e-6 * np.maximum(np.abs(mean_C), 1e-30)
    return Scaler(mean_C.astype(np.float32), np.where(constant_C, 1.0, std_C).astype(np.float32))
