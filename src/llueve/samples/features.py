"""Derived variables: each uses values at or before its own time only, so a forecast made then can use it.

Shapes: S sites, T times. A cell that needs a missing value, or one before the record, is itself missing.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import xarray as xr
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from llueve.config import FeaturesConfig, Statistic
from llueve.errors import ConfigError, DataError, listed
from llueve.panel import check_panel, feature_names, whole_steps
from llueve.quantities.formulas import relative_humidity
from llueve.sphere import distance_km

Doubles = NDArray[np.float64]
Real = TypeVar("Real", np.float32, np.float64)

ZERO_CELSIUS_K = 273.15
ROLLING_BYTES = 8 * 2**20
"""Memory for the windows that are copied at one time."""
CELSIUS = ("degC", "°C", "C", "celsius")


def wind_from(u_ST: Doubles, v_ST: Doubles) -> tuple[Doubles, Doubles]:
    """Sine and cosine of the direction that the wind blows from, clockwise from north: (−u, −v) / speed; both 0 in calm.

    By the meteorological convention, u > 0 blows towards the east, so from 270°.
    """
    speed_ST = np.hypot(u_ST, v_ST)
    divisor_ST = np.where(speed_ST == 0, 1.0, speed_ST)
    return -u_ST / divisor_ST, -v_ST / divisor_ST


def earlier(x_ST: NDArray[Real], steps: int) -> NDArray[Real]:
    """x(t − steps); missing in the first `steps` of each site."""
    moved_ST = np.full_like(x_ST, np.nan)
    moved_ST[:, steps:] = x_ST[:, : max(x_ST.shape[1] - steps, 0)]
    return moved_ST


def tendency(x_ST: Doubles, steps: int) -> Doubles:
    """x(t) − x(t − steps), in the unit of x."""
    return x_ST - earlier(x_ST, steps)


def rolling(x_ST: Doubles, steps: int, statistic: Statistic) -> Doubles:
    """Mean, (population) standard deviation, sum, minimum or maximum of the last `steps` values, that of t included."""
    rolled_ST = np.full_like(x_ST, np.nan)
    if x_ST.shape[1] < steps:
        return rolled_ST
    # Some statistics copy every window. Working by site and by piece bounds the memory.
    piece = max(1, ROLLING_BYTES // (x_ST.itemsize * steps))
    for x_T, rolled_T in zip(x_ST, rolled_ST, strict=True):
        windows, results = sliding_window_view(x_T, steps), rolled_T[steps - 1 :]
        for start in range(0, len(windows), piece):
            # The array's method has the statistic's name.
            results[start : start + piece] = getattr(windows[start : start + piece], statistic)(axis=-1)
    return rolled_ST


def nearest_sites(latitude_S: Doubles, longitude_S: Doubles, count: int) -> NDArray[np.intp]:
    """Indices (S, count) of the nearest other sites, the nearest first, by great-circle distance."""
    apart_SS = distance_km(latitude_S[:, None], longitude_S[:, None], latitude_S, longitude_S)
    np.fill_diagonal(apart_SS, np.inf)
    return np.argsort(apart_SS, axis=1, kind="stable")[:, :count]


def add_features(panel: xr.Dataset, config: FeaturesConfig) -> xr.Dataset:
    """The panel with the configured variables after its own.

    Raises:
        ConfigError: a name is unknown or in use, a length is not a whole number of steps, or the sites are too few.
        DataError: a temperature has no unit, or neighbours are configured and sites have no position.
    """
    if config == FeaturesConfig():
        return panel
    new = _Derived(panel)
    for name, (u, v) in config.wind.items():
        parts = new.values("wind", u), new.values("wind", v)
        new.add(f"{name}_speed", np.hypot(*parts), new.units(u))
        for part, values_ST in zip(("sin", "cos"), wind_from(*parts), strict=True):
            new.add(f"{name}_from_{part}", values_ST, "1")
    for key, humidity, units in (("dewpoint_spread", np.subtract, "K"), ("relative_humidity", relative_humidity, "%")):
        for name, (warm, dew) in getattr(config, key).items():
            new.add(name, humidity(new.celsius(key, warm), new.celsius(key, dew)), units)
    for key, shifted, suffix in (("tendency_hours", tendency, "change"), ("lag_hours", earlier, "lag")):
        for name, lengths in getattr(config, key).items():
            for hours in lengths:
                values_ST = shifted(new.values(key, name), new.steps(key, hours))
                new.add(f"{name}_{suffix}_{hours:g}h", values_ST, new.units(name))
    for each in config.rolling:
        values_ST = rolling(new.values("rolling", each.variable), new.steps("rolling", each.hours), each.statistic)
        new.add(f"{each.variable}_{each.statistic}_{each.hours:g}h", values_ST, new.units(each.variable))
    if config.neighbours:
        _add_neighbours(new, config.neighbours, config.neighbour_variables)
    return check_panel(new.panel)


class _Derived:
    """A panel that grows by derived variables; it refuses unknown names, and new names that are in use."""

    def __init__(self, panel: xr.Dataset) -> None:
        self.source = panel
        self.features = {name: panel.variables[name] for name in feature_names(panel)}
        self.added: dict[str, xr.Variable] = {}

    @property
    def panel(self) -> xr.Dataset:
        """The panel with all variables added so far."""
        return self.source.assign(self.added)

    def values(self, key: str, name: str) -> Doubles:
        if name not in self.features:
            known = listed([*self.features], 40)
            raise ConfigError(f"features.{key} names {name!r}, which the panel lacks; it has {known}")
        return np.asarray(self.features[name].values, dtype=np.float64)

    def units(self, name: str) -> str | None:
        return self.features[name].attrs.get("units")

    def celsius(self, key: str, name: str) -> Doubles:
        values_ST, units = self.values(key, name), self.units(name)
        if units not in ("K", *CELSIUS):
            raise DataError(f"features.{key} needs {name} in K or degC, found unit {units!r}; set data.units.{name}")
        return values_ST - ZERO_CELSIUS_K if units == "K" else values_ST

    def steps(self, key: str, hours: float) -> int:
        step_hours = float(self.source.attrs["step_hours"])
        steps = whole_steps(hours, step_hours)
        if steps is None:
            fault = f"{hours:g} h is not a whole number of the panel's steps of {step_hours:g} h"
            raise ConfigError(f"features.{key}: {fault}; choose a multiple of {step_hours:g}")
        return steps

    def add(self, name: str, values_ST: Doubles, units: str | None) -> None:
        if name in self.features or name in self.source:
            raise ConfigError(f"features would make {name!r}, but the panel has this name already; rename or remove it")
        attrs = {"derived": True} if units is None else {"derived": True, "units": units}
        self.added[name] = self.features[name] = xr.Variable(("site", "time"), values_ST.astype(np.float32), attrs)


def _add_neighbours(new: _Derived, count: int, variables: Sequence[str] | None) -> None:
    """Add the variables of each site's nearest sites at the same time: `rain_near1` is the nearest site's rain."""
    sites = new.source.sizes["site"]
    if count >= sites:
        raise ConfigError(f"features.neighbours = {count}: the panel has {sites} site(s), so at most {sites - 1}")
    if not {"latitude", "longitude"} <= set(new.source.coords):
        needed = "set data.positions to a table with the columns site, latitude, longitude"
        raise DataError(f"features.neighbours needs the position of each site; {needed}")
    latitude_S, longitude_S = (
        np.asarray(new.source.variables[name].values, float) for name in ("latitude", "longitude")
    )
    near_SK = nearest_sites(latitude_S, longitude_S, count)
    for name in variables if variables is not None else [*new.features]:
        values_ST = new.values("neighbour_variables", name)
        for k in range(count):
            new.add(f"{name}_near{k + 1}", values_ST[near_SK[:, k]], new.units(name))
