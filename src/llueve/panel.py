"""The Panel: one regular table of weather, sites by times, that every later step can trust.

A panel is an `xarray.Dataset` with

- dimensions `(site, time)`: `site` holds unique names, `time` is UTC, strictly increasing, with one regular step;
- one float32 variable per quantity, NaN where it was not observed (a gap in time is NaN too);
- `attrs["units"]` on a variable where the source says its unit, and on a precipitation variable
  `attrs["accumulation_hours"]`: the hours, ending at its time, over which a value sums;
- optional static variables with dimension `(site,)` alone;
- at most one variable with `attrs["role"] == "label"`: class index (0, 1 …) or NaN, never a feature;
- a coordinate `recorded` by `(site, time)`: True where the source has a row, be it an empty one;
- optional coordinates `latitude`, `longitude` (degrees, -180 … 180) and `elevation_m` by `site`;
- `attrs["step_hours"]`, and `attrs["findings"]`: what the reader met and changed, as a tuple of `Finding`.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from llueve.errors import DataError

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing about the data, as `audit.json` holds it."""

    code: str
    """Stable name, such as `missing_cells`."""
    severity: Literal["error", "warning", "info"]
    message: str
    """What was found and what to do."""
    variable: str | None = None
    site: str | None = None
    first: str | None = None
    """Time of the first case, ISO 8601."""
    last: str | None = None
    count: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON holds it."""
        return asdict(self)


def whole_steps(hours: float, step_hours: float) -> int | None:
    """How many steps a length of time is; None if that is no whole number of at least one."""
    steps = hours / step_hours
    return round(steps) if abs(steps - round(steps)) <= 1e-6 and round(steps) >= 1 else None


def feature_names(panel: xr.Dataset) -> list[str]:
    """Variables that vary in time and are not the label, in the order of the panel."""
    return [
        str(name)
        for name, array in panel.data_vars.items()
        if array.dims == ("site", "time") and array.attrs.get("role") != "label"
    ]


def static_names(panel: xr.Dataset) -> list[str]:
    """Per-site variables that never change in time."""
    return [str(name) for name, array in panel.data_vars.items() if array.dims == ("site",)]


def label_name(panel: xr.Dataset) -> str | None:
    """The label variable, if the source had a label column."""
    names = [str(name) for name, array in panel.data_vars.items() if array.attrs.get("role") == "label"]
    return names[0] if names else None


def feature_cube(panel: xr.Dataset, names: list[str]) -> FloatArray:
    """The named features as one contiguous array (site, time, variable)."""
    return np.ascontiguousarray(np.stack([panel[name].values for name in names], axis=-1), dtype=np.float32)


def observed_rows(panel: xr.Dataset) -> BoolArray:
    """True (site, time) where at least one feature was observed."""
    known_ST: BoolArray = np.zeros((panel.sizes["site"], panel.sizes["time"]), dtype=np.bool_)
    for name in feature_names(panel):
        known_ST |= ~np.isnan(panel[name].values)
    return known_ST


def recorded_rows(panel: xr.Dataset) -> BoolArray:
    """True (site, time) where the source has a row; a panel that does not say has one where anything was observed."""
    if "recorded" in panel.coords:
        return np.asarray(panel.coords["recorded"].values, dtype=np.bool_)
    label = label_name(panel)
    return observed_rows(panel) | (False if label is None else ~np.isnan(panel[label].values))


def static_table(panel: xr.Dataset) -> FloatArray:
    """The static variables as (site, variable), with no column where there are none."""
    columns = [panel[name].values for name in static_names(panel)]
    return np.stack(columns, axis=-1) if columns else np.zeros((panel.sizes["site"], 0), np.float32)


def check_panel(panel: xr.Dataset) -> xr.Dataset:
    """Return the panel if it keeps the contract of this module.

    Raises:
        DataError: it does not; the message names the variable or the time.
    """
    times = panel["time"].values
    if panel.sizes["time"] == 0 or panel.sizes["site"] == 0:
        raise DataError("the panel is empty: expected at least one site and one time")
    step = np.timedelta64(round(panel.attrs["step_hours"] * 3600), "s")
    steps = np.diff(times)
    if (steps != step).any():
        at = times[int(np.argmax(steps != step))]
        raise DataError(f"the panel's times do not keep one step of {step}: after {at} comes another distance")
    sites = panel["site"].values
    if len(set(sites.tolist())) != len(sites):
        raise DataError("the panel names a site twice")
    if not feature_names(panel):
        raise DataError("the panel has no feature: expected at least one column that is neither excluded nor the label")
    for name, array in panel.data_vars.items():
        if array.dims not in (("site", "time"), ("site",)) or array.dtype != np.float32:
            raise DataError(f"{name}: expected float32 by (site, time) or (site), found {array.dtype} by {array.dims}")
        if np.isinf(array.values).any():
            raise DataError(f"{name}: infinite values; a reader must refuse them or call them missing")
    return panel
