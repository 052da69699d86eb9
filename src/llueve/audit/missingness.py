"""Missing cells that depend on the weather: more of them at wet times than at dry ones. Shapes: S sites, T times, K strata."""

from collections.abc import Iterator

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from llueve.panel import BoolArray, Finding, FloatArray, feature_names, recorded_rows
from llueve.samples.features import earlier

LEAST_MISSING = 30
"""Fewest missing cells, and fewest observed ones, of a variable that is judged."""
LEAST_STRATA = 12
"""Fewest months of a site that hold missing and observed cells and both outcomes."""
LEAST_DIFFERENCE = 0.05
"""Least difference of the shares of missing cells that matters."""
BEYOND_CHANCE = 5.0
"""Least distance of the difference from zero in its standard errors; thousands of variables may be judged."""


def check_missingness(panel: xr.Dataset, event_ST: FloatArray, horizon: int) -> Iterator[Finding]:
    """Variables whose cells are missing more often, or less often, at wet times: the gap itself then tells of rain.

    `event_ST` holds the outcomes of the training period. Both the coming outcome and the newest known one are compared.
    Only months of a site with missing and observed cells count, so neither a sensor that a wet place lacks nor a long
    outage in a wet season is named.
    """
    rows = event_ST.shape[1]
    recorded_ST = recorded_rows(panel)[:, :rows]
    month_T = panel.variables["time"].values[:rows].astype("datetime64[M]").astype(np.int64)
    stratum_ST = np.arange(len(event_ST))[:, None] * (month_T[-1] - month_T[0] + 1) + (month_T - month_T[0])
    outcomes = {"(the coming outcome)": event_ST, "(the newest known outcome)": earlier(event_ST, horizon)}
    known = {when: recorded_ST & ~np.isnan(wet_ST) for when, wet_ST in outcomes.items()}
    for name in feature_names(panel):
        array = panel.variables[name]
        missing_ST = np.isnan(array.values[:, :rows]) & recorded_ST
        if array.attrs.get("derived") or not LEAST_MISSING <= missing_ST.sum() <= recorded_ST.sum() - LEAST_MISSING:
            continue
        for when, wet_ST in outcomes.items():
            shares = _shares(missing_ST[known[when]], wet_ST[known[when]] == 1, stratum_ST[known[when]])
            if shares is not None:
                wet, dry = shares
                message = (
                    f"{name}: the share of missing cells is {wet:.2f} in wet cases and {dry:.2f} in dry ones {when}, in the same "
                    "months, so a gap tells of rain: find out why these cells are missing, or name the column in data.exclude"
                )
                yield Finding("missing_with_rain", "warning", message, name, count=int(missing_ST.sum()))
                break


def _shares(missing: BoolArray, wet: BoolArray, stratum: NDArray[np.int64]) -> tuple[float, float] | None:
    """Shares of missing cells in wet and dry cases of the mixed strata; None if they differ by chance, or by little.

    The difference is that of Mantel and Haenszel, the sum over strata of w (share_wet − share_dry) / Σ w with the weights
    w = wet · dry / (wet + dry). Its standard error is the larger one of two: from the spread of the differences between
    strata, and from that of independent cells.
    """
    _, inverse = np.unique(stratum, return_inverse=True)
    wet_K, gone_K, both_K, all_K = (
        np.bincount(inverse, weights=flag).astype(np.float64)
        for flag in (wet, missing, wet & missing, np.ones(len(wet)))
    )
    dry_K = all_K - wet_K
    mixed = (wet_K > 0) & (dry_K > 0) & (gone_K > 0) & (gone_K < all_K)
    if mixed.sum() < LEAST_STRATA:
        return None
    wet_K, gone_K, both_K, dry_K = (each[mixed] for each in (wet_K, gone_K, both_K, dry_K))
    weight_K = wet_K * dry_K / (wet_K + dry_K)
    term_K = weight_K * (both_K / wet_K - (gone_K - both_K) / dry_K)
    difference = term_K.sum() / weight_K.sum()
    share_K = gone_K / (wet_K + dry_K)
    variance = max(((term_K - weight_K * difference) ** 2).sum(), (weight_K * share_K * (1 - share_K)).sum())
    error = np.sqrt(variance) / weight_K.sum()
    if abs(difference) < LEAST_DIFFERENCE or abs(difference) < BEYOND_CHANCE * error:
        return None
    return float(both_K.sum() / wet_K.sum()), float((gone_K - both_K).sum() / dry_K.sum())
