"""The curves of a verification as lists of numbers, as `verification.json` holds them. Undefined points are None."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llueve.verification.bootstrap import COVERAGE, Floats
from llueve.verification.curves import COST_LOSS_RATIOS, Reliability, economic_value, operating_points
from llueve.verification.decomposition import recalibration_curve
from llueve.verification.forecasts import Forecasts
from llueve.verification.intervals import Draws

MOST_POINTS = 101
"""Most points of a curve over thresholds in `verification.json`; the functions of `curves` give all of them."""
MOST_ISOTONIC = 41
"""Most points of the isotonic reliability curve there."""
DECIMALS = 6


def curve_tables(
    forecasts: Forecasts, bins: Reliability, isotonic_at: Floats, draws: Draws | None
) -> dict[str, dict[str, Any]]:
    """Operating points, reliability (binned and isotonic) of the model, and economic value of every forecast.

    `low` and `high` are 95 % bands: binned from the bootstrap, isotonic from half samples. They are None without draws.
    """
    return {
        "operating_points": _operating_points(forecasts),
        "reliability": _reliability(bins, None if draws is None else draws.scores.frequency_RQ),
        "isotonic": _isotonic(forecasts, isotonic_at, None if draws is None else draws.calibration.isotonic_RQ),
        "economic_value": _economic_value({"model": forecasts.model_p, **forecasts.reference_p}, forecasts.y_n),
    }


def _operating_points(forecasts: Forecasts) -> dict[str, Any]:
    points = operating_points(forecasts.model_p, forecasts.y_n).thinned(MOST_POINTS)
    names = ("pod", "pofd", "success_ratio", "bias", "csi")
    return {"threshold": _numbers(points.threshold_K)} | {name: _numbers(getattr(points, name)) for name in names}


def _reliability(bins: Reliability, frequency_RQ: Floats | None) -> dict[str, Any]:
    low, high = _band(frequency_RQ, len(bins.rows_Q))
    return {
        "from": _numbers(bins.edges[:-1]),
        "to": _numbers(bins.edges[1:]),
        "rows": bins.rows_Q.tolist(),
        "forecast": _numbers(bins.forecast_Q),
        "frequency": _numbers(bins.frequency_Q),
        "low": low,
        "high": high,
    }


def _isotonic(forecasts: Forecasts, at_Q: Floats, isotonic_RQ: Floats | None) -> dict[str, Any]:
    curve = recalibration_curve(forecasts.model_p, forecasts.y_n)
    low, high = _band(isotonic_RQ, len(at_Q))
    frequency = np.interp(at_Q, curve.probability_G, curve.frequency_G)
    return {"forecast": _numbers(at_Q), "frequency": _numbers(frequency), "low": low, "high": high}


def _economic_value(each: Mapping[str, Floats], y_n: NDArray[np.int64]) -> dict[str, Any]:
    values = {name: economic_value(p_n, y_n) for name, p_n in each.items()}
    return {
        "cost_loss": _numbers(COST_LOSS_RATIOS),
        "value": {name: None if value is None else _numbers(value) for name, value in values.items()},
    }


def _band(resampled_RQ: Floats | None, points: int) -> tuple[list[float | None], list[float | None]]:
    """Both ends of the 95 % band; None at a point that some resample lacks."""
    if resampled_RQ is None:
        return [None] * points, [None] * points
    # A quantile of values with a NaN is NaN.
    low, high = np.quantile(resampled_RQ, COVERAGE, axis=0)
    return _numbers(low), _numbers(high)


def _numbers(values: Floats) -> list[float | None]:
    """Finite numbers with six decimals, None for the others."""
    return [round(value, DECIMALS) if np.isfinite(value) else None for value in np.asarray(values).tolist()]
