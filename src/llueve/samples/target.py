"""The target: a label column, or precipitation over the next hours against a threshold. Shapes: S sites, T times."""

import numpy as np
import xarray as xr
from numpy.lib.stride_tricks import sliding_window_view

from llueve.config import TargetConfig
from llueve.errors import DataError, UsageError, listed
from llueve.panel import FloatArray, label_name, minute, seen_only, whole_steps
from llueve.sources.names_and_units import MILLIMETRES_PER_UNIT, PACKING_NOISE_MM


def horizon_steps(horizon_hours: float, step_hours: float) -> int:
    """Number of steps in the horizon. Raises `UsageError` unless it is whole: no sum covers exactly (t, t + H] then."""
    steps = whole_steps(horizon_hours, step_hours)
    if steps is None:
        fault = f"is not a whole number of the panel's steps of {step_hours:g} h; choose a multiple of {step_hours:g}"
        raise UsageError(f"target.horizon_hours = {horizon_hours:g} {fault}")
    return steps


def sampled_share(panel: xr.Dataset, variable: str, horizon_hours: float) -> str | None:
    """The fault of a precipitation variable whose values cover only a part of each step, in words; None without it."""
    step_hours = float(panel.attrs["step_hours"])
    covered_hours = float(panel.variables[variable].attrs.get("accumulation_hours", step_hours))
    if covered_hours >= step_hours or np.isclose(covered_hours, step_hours):
        return None
    return (
        f"{variable}: each value holds {covered_hours:g} h of rain but steps are {step_hours:g} h apart, so a sum over "
        f"{horizon_hours:g} h covers {covered_hours / step_hours:.1%} of the time"
    )


def next_sum_mm(panel: xr.Dataset, variable: str, horizon_hours: float, allow_sampled: bool = False) -> FloatArray:
    """Precipitation over (t, t + H] in millimetres, (S, T); NaN if any of its steps is missing or after the end.

    `allow_sampled` accepts values that sum over less time than a step; their sum misses the rest of the rain.

    Raises:
        DataError: the variable is absent, holds negative rain, or has no unit or a unit that is not a depth of water;
            or its values sum over more than a step, or over less and `allow_sampled` is false.
        UsageError: the horizon is not a whole number of steps.
    """
    if variable not in panel:
        names = listed([*panel.data_vars], 40)
        raise DataError(f"target.variable = {variable!r} is not in the panel; it has {names}")
    step_hours = float(panel.attrs["step_hours"])
    units = panel.variables[variable].attrs.get("units")
    if units is None:
        raise DataError(f"{variable}: a sum in millimetres needs its unit; set data.units.{variable}, such as 'mm'")
    if units not in MILLIMETRES_PER_UNIT:
        depths = ", ".join(MILLIMETRES_PER_UNIT)
        raise DataError(f"{variable}: unit {units!r} is not a depth of water; expected one of {depths}")
    covered_hours = float(panel.variables[variable].attrs.get("accumulation_hours", step_hours))
    if covered_hours > step_hours and not np.isclose(covered_hours, step_hours):
        raise DataError(
            f"{variable}: each value sums over {covered_hours:g} h but steps are {step_hours:g} h apart, so sums would count "
            "rain twice; bring a table whose accumulation is one step"
        )
    if not allow_sampled and (fault := sampled_share(panel, variable, horizon_hours)) is not None:
        raise DataError(f"{fault}; bring every hour, or set target.allow_sampled = true to accept this")
    steps = horizon_steps(horizon_hours, step_hours)
    millimetres_ST = panel.variables[variable].values * np.float32(MILLIMETRES_PER_UNIT[units])
    if (below := millimetres_ST < -PACKING_NOISE_MM).any():
        site, time = np.argwhere(below)[0]
        raise DataError(
            f"{variable}: {below.sum()} values are below zero, the first {panel[variable].values[site, time]:g} at "
            f"{panel['site'].values[site]}, {minute(panel['time'].values[time])}; rain cannot be negative: if they mean "
            "missing, name them in data.sentinels"
        )
    millimetres_ST = np.maximum(millimetres_ST, 0)  # noise below zero would take rain from the sum
    total_ST = np.full_like(millimetres_ST, np.nan)
    if millimetres_ST.shape[1] > steps:
        # In float64, because rounding in a float32 sum of many small amounts can change the comparison "at least".
        following = sliding_window_view(millimetres_ST[:, 1:], steps, axis=1)
        total_ST[:, : following.shape[1]] = following.sum(axis=-1, dtype=np.float64)
    return total_ST


def class_labels(panel: xr.Dataset, target: TargetConfig) -> FloatArray:
    """Class index of every site and issue time, (S, T); NaN if the outcome is unknown, or the site is only seen.

    Raises as `next_sum_mm`.
    """
    seen_S = seen_only(panel)
    if not seen_S.any():
        return _outcomes(panel, target)
    labels_ST = np.full((panel.sizes["site"], panel.sizes["time"]), np.nan, np.float32)
    needed = [name for name in (label_name(panel), target.variable) if name in panel]  # the others would be copied
    labels_ST[~seen_S] = _outcomes((panel[needed] if needed else panel).isel(site=~seen_S), target)
    return labels_ST


def _outcomes(panel: xr.Dataset, target: TargetConfig) -> FloatArray:
    """Class index of every site and issue time, (S, T); NaN if the outcome is unknown."""
    if target.label is not None:
        if (name := label_name(panel)) is None:
            raise DataError(f"target.label = {target.label!r}: the table has no such column")
        return np.asarray(panel.variables[name].values, dtype=np.float32)
    assert target.variable is not None and target.threshold_mm is not None  # the configuration guarantees it
    total_ST = next_sum_mm(panel, target.variable, target.horizon_hours, target.allow_sampled)
    # A float32 0.1 is not the decimal 0.1: a sum within half a micrometre of the threshold reaches it.
    wet_ST = (total_ST >= target.threshold_mm - 5e-4).astype(np.float32)
    wet_ST[np.isnan(total_ST)] = np.nan
    return wet_ST


def event_outcomes(labels_ST: FloatArray, event_index: int) -> FloatArray:
    """Outcomes of the event, (S, T): 1 for its class, 0 for the others, NaN if unknown."""
    return np.where(np.isnan(labels_ST), np.nan, labels_ST == event_index).astype(np.float32)
