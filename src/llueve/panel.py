"""The panel: one regular table of weather, sites by times, with a contract that every later step relies on.

A panel is an `xarray.Dataset` with

- dimensions `(site, time)`: `site` holds unique names, `time` is UTC, strictly increasing, with one regular step;
- one float32 variable per quantity, NaN where it was not observed (a gap in time is NaN too);
- `attrs["units"]` on a variable if the source gives its unit, and on a precipitation variable
  `attrs["accumulation_hours"]`: the hours, ending at its time, over which a value sums;
- `attrs["quantity"]` on a variable whose physical quantity is known: a CF standard name of `llueve.quantities.catalogue`;
  with `attrs["quantity_from"]` (the evidence), `attrs["quantity_detail"]` if it is a `maximum`, a value at `09:00` or a
  `sine`, and `attrs["quantity_units"]` if the unit of the values is known, even where `attrs["units"]` is absent;
- `attrs["derived"]`: True on a variable that was computed from another one of the panel;
- optional static variables with dimension `(site,)` alone;
- at most one variable with `attrs["role"] == "label"`: class index (0, 1 …) or NaN, never a feature;
- a coordinate `recorded` by `(site, time)`: True if the source has a row, even an empty one;
- optional coordinates `latitude`, `longitude` (degrees, -180 … 180) and `elevation_m` by `site`;
- an optional coordinate `seen_only` by `site`: True for surroundings, which the model sees but never forecasts;
- optional `attrs["evidence"]`: facts of the reader on what each variable is, until `sources/identify.py` has used them;
- `attrs["step_hours"]`, and `attrs["findings"]`: the reader's findings and changes, as a tuple of `Finding`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from llueve.errors import DataError
from llueve.quantities.catalogue import NONE, Meaning, Origin, meaning_of

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
Severity = Literal["error", "warning", "info"]
UNKNOWN = -1
"""Class index of a window that is seen by others and has no outcome of its own."""


@dataclass(frozen=True)
class Finding:
    """One observation about the data, as `audit.json` holds it."""

    code: str
    """Stable name, such as `missing_cells`."""
    severity: Severity
    message: str
    """The facts and the advice, for people."""
    variable: str | None = None
    site: str | None = None
    first: str | None = None
    """Time of the first case, ISO 8601."""
    last: str | None = None
    count: int | None = None


@dataclass(frozen=True)
class KnownQuantity:
    """The physical quantity of one variable."""

    meaning: Meaning
    origin: Origin
    """The evidence that it rests on."""
    units: str | None
    """Unit of the values; None if it is unknown, or for the sine or cosine of a direction."""
    reason: str = ""
    """The values that decided, in words; empty for other evidence."""

    def as_attributes(self) -> dict[str, str]:
        """The attributes of a variable of a panel."""
        return {
            "quantity": self.meaning.quantity.name,
            **({"quantity_detail": self.meaning.detail} if self.meaning.detail else {}),
            "quantity_from": self.origin,
            **({} if self.units is None else {"quantity_units": self.units}),
            **({"quantity_reason": self.reason} if self.reason else {}),
        }


def known_quantities(panel: xr.Dataset) -> dict[str, KnownQuantity]:
    """The quantity of each variable that has one, by name, in the order of the panel."""
    found = {}
    for name, array in _data_variables(panel):
        attrs = array.attrs
        text = f"{attrs.get('quantity', NONE)} {attrs.get('quantity_detail', '')}".strip()
        if (meaning := meaning_of(text)) is not None:
            reason = attrs.get("quantity_reason", "")
            found[name] = KnownQuantity(meaning, attrs["quantity_from"], attrs.get("quantity_units"), reason)
    return found


def minute(time: np.datetime64) -> str:
    """A time as messages show it: `2022-01-02 07:00`."""
    return str(np.datetime_as_string(time, unit="m")).replace("T", " ")


def whole_steps(hours: float, step_hours: float) -> int | None:
    """Number of steps in a length of time; None unless it is a whole number of at least one."""
    steps = hours / step_hours
    return round(steps) if abs(steps - round(steps)) <= 1e-6 and round(steps) >= 1 else None


def _data_variables(panel: xr.Dataset) -> Iterator[tuple[str, xr.Variable]]:
    """The variables that are not coordinates. `panel.data_vars.items()` takes a time that grows with their square."""
    return ((str(name), panel.variables[name]) for name in panel.data_vars)


def feature_names(panel: xr.Dataset) -> list[str]:
    """Variables that vary in time and are not the label, in the order of the panel."""
    return [
        name
        for name, array in _data_variables(panel)
        if array.dims == ("site", "time") and array.attrs.get("role") != "label"
    ]


def static_names(panel: xr.Dataset) -> list[str]:
    """Variables with one value per site."""
    return [name for name, array in _data_variables(panel) if array.dims == ("site",)]


def label_name(panel: xr.Dataset) -> str | None:
    """The label variable, if the source had a label column."""
    return next((name for name, array in _data_variables(panel) if array.attrs.get("role") == "label"), None)


def feature_cube(panel: xr.Dataset, names: list[str]) -> FloatArray:
    """The named features as one contiguous array (site, time, variable)."""
    return np.ascontiguousarray(np.stack([panel.variables[name].values for name in names], axis=-1), dtype=np.float32)


def observed_rows(panel: xr.Dataset) -> BoolArray:
    """True (site, time) where at least one feature was observed."""
    known_ST: BoolArray = np.zeros((panel.sizes["site"], panel.sizes["time"]), dtype=np.bool_)
    for name in feature_names(panel):
        known_ST |= ~np.isnan(panel.variables[name].values)
    return known_ST


def recorded_rows(panel: xr.Dataset) -> BoolArray:
    """True (site, time) where the source has a row; without that record, where any variable was observed."""
    if "recorded" in panel.coords:
        return np.asarray(panel.coords["recorded"].values, dtype=np.bool_)
    label = label_name(panel)
    return observed_rows(panel) | (False if label is None else ~np.isnan(panel.variables[label].values))


def static_table(panel: xr.Dataset) -> FloatArray:
    """The static variables as (site, variable); without any, an array of zero columns."""
    columns = [panel.variables[name].values for name in static_names(panel)]
    return np.stack(columns, axis=-1) if columns else np.zeros((panel.sizes["site"], 0), np.float32)


def site_positions(panel: xr.Dataset) -> NDArray[np.float64] | None:
    """Latitude and longitude of every site in degrees, (S, 2); None unless each site has both."""
    if not {"latitude", "longitude"} <= set(panel.coords):
        return None
    position_S2 = np.stack([np.asarray(panel[name].values, np.float64) for name in ("latitude", "longitude")], axis=-1)
    return position_S2 if np.isfinite(position_S2).all() else None


def seen_only(panel: xr.Dataset) -> BoolArray:
    """True (S,) for each site that the model sees but never forecasts."""
    if "seen_only" in panel.coords:
        return np.asarray(panel["seen_only"].values, np.bool_)
    return np.zeros(panel.sizes["site"], np.bool_)


def check_panel(panel: xr.Dataset) -> xr.Dataset:
    """The panel if it meets the contract of this module. Raises `DataError` with the variable or the time otherwise."""
    times = panel.variables["time"].values
    if panel.sizes["time"] == 0 or panel.sizes["site"] == 0:
        raise DataError("the panel is empty: expected at least one site and one time")
    step = np.timedelta64(round(panel.attrs["step_hours"] * 3600), "s")
    steps = np.diff(times)
    if (steps != step).any():
        at = minute(times[int(np.argmax(steps != step))])
        raise DataError(f"the panel's times are not {panel.attrs['step_hours']:g} h apart: the step after {at} differs")
    sites = panel.variables["site"].values
    if len(set(sites.tolist())) != len(sites):
        raise DataError("the panel names a site twice")
    if not feature_names(panel):
        raise DataError("the panel has no feature: expected at least one column that is neither excluded nor the label")
    for name, array in _data_variables(panel):
        if array.dims not in (("site", "time"), ("site",)) or array.dtype != np.float32:
            raise DataError(f"{name}: expected float32 by (site, time) or (site), found {array.dtype} by {array.dims}")
        if np.isinf(array.values).any():
            raise DataError(f"{name}: infinite values; a reader must refuse them or mark them as missing")
    return panel


def fingerprint(panel: xr.Dataset) -> str:
    """SHA-256 of sites, their positions, times and every cell of a panel; the order of its variables does not matter."""
    digest = hashlib.sha256()
    digest.update("\n".join(panel.variables["site"].values.tolist()).encode())
    digest.update(panel.variables["time"].values.astype("datetime64[ns]").astype(np.int64).tobytes())
    if (position_S2 := site_positions(panel)) is not None:
        digest.update(position_S2.tobytes())
    for name in sorted(map(str, panel.data_vars)):
        digest.update(name.encode())
        digest.update(panel.variables[name].values.tobytes())
    return digest.hexdigest()
