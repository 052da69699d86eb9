"""Derived variables: each from values at or before its own time, so that a forecast made then could have it.

Shapes: S sites, T times. A cell that needs a value which is missing, or lies before the record, is missing itself:
nothing is filled, least of all backwards.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from llueve.config import FeaturesConfig, Statistic
from llueve.errors import ConfigError, DataError
from llueve.panel import check_panel, feature_names, whole_steps

Doubles = NDArray[np.float64]

ZERO_CELSIUS_K = 273.15
EARTH_RADIUS_KM = 6371.0
ROLLING_BYTES = 8 * 2**20
"""Of windows that are copied at a time."""
CELSIUS = ("degC", "°C", "C", "celsius")


def wind_speed(u_ST: Doubles, v_ST: Doubles) -> Doubles:
    """√(u² + v²), in the unit of the components."""
    return np.hypot(u_ST, v_ST)


def wind_from(u_ST: Doubles, v_ST: Doubles) -> tuple[Doubles, Doubles]:
    """Sine and cosine of the direction that the wind blows from, clockwise from north: (−u, −v) / speed; both 0 in calm.

    The meteorological convention: u > 0 blows towards the east, so from 270°.
    """
    speed_ST = np.hypot(u_ST, v_ST)
    divisor_ST = np.where(speed_ST == 0, 1.0, speed_ST)
    return -u_ST / divisor_ST, -v_ST / divisor_ST


def dewpoint_spread(temperature_ST: Doubles, dewpoint_ST: Doubles) -> Doubles:
    """T − Td, kelvin: how far the air is from saturation."""
    return temperature_ST - dewpoint_ST


def relative_humidity(temperature_c_ST: Doubles, dewpoint_c_ST: Doubles) -> Doubles:
    """100 · e(Td) / e(T), percent, both in °C, over water.

    e(t) = 6.1094 · exp(17.625 t / (t + 243.04)) hPa: Magnus form of Alduchov and Eskridge, J. Appl. Meteorol. 35 (1996).
    """
    return 100 * np.exp(_magnus(dewpoint_c_ST) - _magnus(temperature_c_ST))


def _magnus(celsius_ST: Doubles) -> Doubles:
    return 17.625 * celsius_ST / (celsius_ST + 243.04)


def earlier(x_ST: Doubles, steps: int) -> Doubles:
    """x(t − steps); missing in the first `steps` of each site."""
    moved_ST = np.full_like(x_ST, np.nan)
    moved_ST[:, steps:] = x_ST[:, : max(x_ST.shape[1] - steps, 0)]
    return moved_ST


def tendency(x_ST: Doubles, steps: int) -> Doubles:
    """x(t) − x(t − steps), in the unit of x."""
    return x_ST - earlier(x_ST, steps)


def rolling(x_ST: Doubles, steps: int, statistic: Statistic) -> Doubles:
    """Mean, (population) standard deviation, sum, least or largest of the last `steps` values, t's own included."""
    rolled_ST = np.full_like(x_ST, np.nan)
    if x_ST.shape[1] < steps:
        return rolled_ST
    # Some statistics copy every window: site by site and piece by piece, so that memory grows with neither.
    piece = max(1, ROLLING_BYTES // (x_ST.itemsize * steps))
    for x_T, rolled_T in zip(x_ST, rolled_ST, strict=True):
        windows, results = sliding_window_view(x_T, steps), rolled_T[steps - 1 :]
        for start in range(0, len(windows), piece):
            # The method of an array has the statistic's own name.
            results[start : start + piece] = getattr(windows[start : start + piece], statistic)(axis=-1)
    return rolled_ST


def nearest_sites(latitude_S: Doubles, longitude_S: Doubles, count: int) -> NDArray[np.intp]:
    """Indices (S, count) of the nearest other sites, the nearest first, by great-circle distance (haversine formula)."""
    phi, lam = np.radians(latitude_S), np.radians(longitude_S)
    half = (
        np.sin((phi[:, None] - phi) / 2) ** 2
        + np.cos(phi)[:, None] * np.cos(phi) * np.sin((lam[:, None] - lam) / 2) ** 2
    )
    distance_km = 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(half, 0, 1)))
    np.fill_diagonal(distance_km, np.inf)
    return np.argsort(distance_km, axis=1, kind="stable")[:, :count]


def add_features(panel: xr.Dataset, config: FeaturesConfig) -> xr.Dataset:
    """The panel with the configured variables after its own.

    Raises:
        ConfigError: a name is unknown or taken, a length is no whole number of steps, or there are too few neighbours.
        DataError: a temperature has no unit, or neighbours are asked for and sites have no position.
    """
    if config == FeaturesConfig():
        return panel
    new = _Derived(panel)
    for name, (u, v) in config.wind.items():
        parts = new.values("wind", u), new.values("wind", v)
        new.add(f"{name}_speed", wind_speed(*parts), panel[u].attrs.get("units"))
        for part, values_ST in zip(("sin", "cos"), wind_from(*parts), strict=True):
            new.add(f"{name}_from_{part}", values_ST, "1")
    for name, (warm, dew) in config.dewpoint_spread.items():
        new.add(name, dewpoint_spread(new.celsius("dewpoint_spread", warm), new.celsius("dewpoint_spread", dew)), "K")
    for name, (warm, dew) in config.relative_humidity.items():
        pair = new.celsius("relative_humidity", warm), new.celsius("relative_humidity", dew)
        new.add(name, relative_humidity(*pair), "%")
    for name, lengths in config.tendency_hours.items():
        for hours in lengths:
            values_ST = tendency(new.values("tendency_hours", name), new.steps("tendency_hours", hours))
            new.add(f"{name}_change_{hours:g}h", values_ST, new.panel[name].attrs.get("units"))
    for name, lengths in config.lag_hours.items():
        for hours in lengths:
            values_ST = earlier(new.values("lag_hours", name), new.steps("lag_hours", hours))
            new.add(f"{name}_lag_{hours:g}h", values_ST, new.panel[name].attrs.get("units"))
    for each in config.rolling:
        values_ST = rolling(new.values("rolling", each.variable), new.steps("rolling", each.hours), each.statistic)
        units = new.panel[each.variable].attrs.get("units")
        new.add(f"{each.variable}_{each.statistic}_{each.hours:g}h", values_ST, units)
    if config.neighbours:
        _add_neighbours(new, config.neighbours, config.neighbour_variables)
    return check_panel(new.panel)


class _Derived:
    """A panel that grows by derived variables; it refuses names that are not there, or there already."""

    def __init__(self, panel: xr.Dataset) -> None:
        self.panel = panel.copy()
        self.panel.attrs = dict(panel.attrs)

    def values(self, key: str, name: str) -> Doubles:
        known = feature_names(self.panel)
        if name not in known:
            raise ConfigError(f"features.{key} names {name!r}, which is no variable; the panel has {', '.join(known)}")
        return np.asarray(self.panel[name].values, dtype=np.float64)

    def celsius(self, key: str, name: str) -> Doubles:
        values_ST, units = self.values(key, name), self.panel[name].attrs.get("units")
        if units == "K":
            return values_ST - ZERO_CELSIUS_K
        if units in CELSIUS:
            return values_ST
        raise DataError(f"features.{key} needs {name} in K or degC, found unit {units!r}; set data.units.{name}")

    def steps(self, key: str, hours: float) -> int:
        step_hours = float(self.panel.attrs["step_hours"])
        steps = whole_steps(hours, step_hours)
        if steps is None:
            raise ConfigError(
                f"features.{key}: {hours:g} h is no whole number of the panel's steps of {step_hours:g} h; choose a "
                f"multiple of {step_hours:g}"
            )
        return steps

    def add(self, name: str, values_ST: Doubles, units: str | None) -> None:
        if name in self.panel:
            raise ConfigError(f"features would make {name!r}, which is there already; rename it, or leave it out")
        attrs = {} if units is None else {"units": units}
        self.panel[name] = (("site", "time"), values_ST.astype(np.float32), attrs)


def _add_neighbours(new: _Derived, count: int, variables: Sequence[str] | None) -> None:
    """The variables of each site's nearest others, at the same time: `rain_near1` is the nearest site's rain."""
    sites = new.panel.sizes["site"]
    if count >= sites:
        raise ConfigError(f"features.neighbours = {count}: the panel has {sites} site(s), so at most {sites - 1}")
    coords: Mapping[str, xr.DataArray] = new.panel.coords  # type: ignore[assignment]
    if "latitude" not in coords or "longitude" not in coords:
        raise DataError(
            "features.neighbours needs the position of each site; bring a table with the columns site, latitude, longitude "
            "as data.positions"
        )
    latitude_S, longitude_S = (np.asarray(coords[name].values, float) for name in ("latitude", "longitude"))
    near_SK = nearest_sites(latitude_S, longitude_S, count)
    for name in variables if variables is not None else feature_names(new.panel):
        values_ST = new.values("neighbour_variables", name)
        for k in range(count):
            new.add(f"{name}_near{k + 1}", values_ST[near_SK[:, k]], new.panel[name].attrs.get("units"))
