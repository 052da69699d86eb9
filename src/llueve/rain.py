"""The target: a label column, or the sum of precipitation over the next hours against a threshold.

Shapes: S sites, T times.
"""

import numpy as np
import xarray as xr
from numpy.lib.stride_tricks import sliding_window_view

from llueve.config import TargetConfig
from llueve.errors import DataError, UsageError
from llueve.panel import FloatArray, label_name, whole_steps

MILLIMETRES_PER_UNIT = {"mm": 1.0, "kg m-2": 1.0, "kg m**-2": 1.0, "cm": 10.0, "m": 1000.0, "in": 25.4, "inch": 25.4}
"""One millimetre of water is one kilogram per square metre; an inch is 25.4 mm by definition."""

LEAST_MM = -0.01
"""Packing leaves rain a little below zero; anything less is a mark or a fault, and would pass for a dry day."""


def horizon_steps(horizon_hours: float, step_hours: float) -> int:
    """Steps that the horizon spans.

    Raises:
        UsageError: the horizon is no whole number of steps, so no sum could cover exactly (t, t + H].
    """
    steps = whole_steps(horizon_hours, step_hours)
    if steps is None:
        raise UsageError(
            f"target.horizon_hours = {horizon_hours:g} is no whole number of the panel's steps of {step_hours:g} h; "
            f"choose a multiple of {step_hours:g}"
        )
    return steps


def next_sum_mm(panel: xr.Dataset, variable: str, horizon_hours: float, allow_sampled: bool = False) -> FloatArray:
    """Precipitation over (t, t + H] in millimetres, (S, T); NaN where any step of it is missing or after the end.

    Raises:
        DataError: the variable is absent, holds negative rain, has no unit or one that is no depth of water, or sums
            over less time than a step, so that a sum of its values would miss most of the rain.
        UsageError: the horizon is no whole number of steps.
    """
    if variable not in panel:
        raise DataError(
            f"target.variable = {variable!r} is not in the panel; it has {', '.join(map(str, panel.data_vars))}"
        )
    step_hours = float(panel.attrs["step_hours"])
    units = panel[variable].attrs.get("units")
    if units is None:
        raise DataError(
            f"{variable}: a sum in millimetres needs its unit; set data.units.{variable}, for example to 'mm'"
        )
    if units not in MILLIMETRES_PER_UNIT:
        raise DataError(
            f"{variable}: unit {units!r} is no depth of water; expected one of {', '.join(MILLIMETRES_PER_UNIT)}"
        )
    covered_hours = float(panel[variable].attrs.get("accumulation_hours", step_hours))
    if covered_hours > step_hours and not np.isclose(covered_hours, step_hours):
        raise DataError(
            f"{variable}: each value sums over {covered_hours:g} h but steps are {step_hours:g} h apart, so sums would count "
            "rain twice; give a table whose accumulation is one step"
        )
    if covered_hours < step_hours and not np.isclose(covered_hours, step_hours) and not allow_sampled:
        raise DataError(
            f"{variable}: each value holds {covered_hours:g} h of rain but steps are {step_hours:g} h apart, so a sum over "
            f"{horizon_hours:g} h sees {covered_hours / step_hours:.1%} of the time; bring every hour, or set "
            "target.allow_sampled = true to accept this"
        )
    steps = horizon_steps(horizon_hours, step_hours)
    millimetres_ST = panel[variable].values * np.float32(MILLIMETRES_PER_UNIT[units])
    if (below := millimetres_ST < LEAST_MM).any():
        site, time = np.argwhere(below)[0]
        raise DataError(
            f"{variable}: {below.sum()} values are below zero, the first {panel[variable].values[site, time]:g} at "
            f"{panel['site'].values[site]}, {np.datetime_as_string(panel['time'].values[time], unit='m')}; rain cannot be: if "
            "they mean missing, name them in data.sentinels"
        )
    total_ST = np.full_like(millimetres_ST, np.nan)
    if millimetres_ST.shape[1] > steps:
        # float64: many small float32 amounts must not lose the last bit that decides "at least".
        following = sliding_window_view(millimetres_ST[:, 1:], steps, axis=1)
        total_ST[:, : following.shape[1]] = following.sum(axis=-1, dtype=np.float64)
    return total_ST


def class_labels(panel: xr.Dataset, target: TargetConfig) -> FloatArray:
    """Class index of every site and issue time, (S, T); NaN where the outcome is unknown.

    Raises:
        DataError: the panel cannot give this target.
    """
    if target.label is not None:
        name = label_name(panel)
        if name is None:
            raise DataError(f"target.label = {target.label!r}: the table has no such column")
        return np.asarray(panel[name].values, dtype=np.float32)
    assert target.variable is not None and target.threshold_mm is not None  # the configuration guarantees it
    total_ST = next_sum_mm(panel, target.variable, target.horizon_hours, target.allow_sampled)
    # A float32 0.1 is not the decimal 0.1: a sum within half a micrometre of the threshold reaches it.
    wet_ST = (total_ST >= target.threshold_mm - 5e-4).astype(np.float32)
    wet_ST[np.isnan(total_ST)] = np.nan
    return wet_ST
