"""Compare variables whose quantities depend on each other: a humidity with temperature and dew point, a direction with the wind.

A variable that contradicts the others has a name that says what it is not, or was computed wrongly.
"""

from collections.abc import Mapping

import numpy as np
import xarray as xr

from llueve.panel import KnownQuantity
from llueve.quantities.catalogue import Meaning
from llueve.quantities.formulas import Doubles, direction_from_components, relative_humidity
from llueve.sources.quantity_values import spread_cells

MOST_HUMIDITY = 10.0
"""Largest median difference of two relative humidities, percent: formulas and means over an hour differ by 3 at most."""
MOST_DEGREES = 45.0
"""Largest median difference of two directions: vector and speed-weighted means differ by less."""
WINDY = 1.0
"""Least speed, m/s, at which a direction is compared."""
MOST_SUPERSATURATED = 0.5
"""Largest median of the dew point above the temperature, K."""
FEWEST = 20
"""Fewest cells in which all three variables are known."""


def disagreements(panel: xr.Dataset, known: Mapping[str, KnownQuantity]) -> dict[str, str]:
    """The variables that contradict others, each with the reason in words. The configuration is never doubted."""
    found: dict[str, str] = {}
    held: dict[Meaning, str] = {}
    for name, each in known.items():
        if each.units is not None:
            held.setdefault(each.meaning, name)
    by_name = {meaning.quantity.name: name for meaning, name in held.items() if not meaning.detail}

    def values(quantity: str) -> Doubles:
        name = by_name[quantity]
        converted = known[name].meaning.quantity.conversion(known[name].units, 1.0)
        assert converted is not None
        return spread_cells(panel.variables[name].values).astype(np.float64) * converted[0] + converted[1]

    def doubt(quantity: str, difference: Doubles, most: float, reason: str) -> None:
        difference = difference[np.isfinite(difference)]
        middle = float(np.median(difference)) if len(difference) >= FEWEST else 0.0
        if middle > most and known[by_name[quantity]].origin != "configured":
            found[by_name[quantity]] = reason.format(middle)

    if {"air_temperature", "dew_point_temperature"} <= by_name.keys():
        warm, dew = by_name["air_temperature"], by_name["dew_point_temperature"]
        above = values("dew_point_temperature") - values("air_temperature")
        doubt("dew_point_temperature", above, MOST_SUPERSATURATED, f"it lies {{:.1f}} K above {warm} in the median")
        if "relative_humidity" in by_name and dew not in found:
            expected = relative_humidity(values("air_temperature"), values("dew_point_temperature"))
            apart = np.abs(values("relative_humidity") - expected)
            reason = f"it differs by {{:.0f}} % in the median from the humidity that follows from {warm} and {dew}"
            doubt("relative_humidity", apart, MOST_HUMIDITY, reason)
    if {"eastward_wind", "northward_wind", "wind_from_direction"} <= by_name.keys():
        u, v = values("eastward_wind"), values("northward_wind")
        turned = np.abs((values("wind_from_direction") - direction_from_components(u, v) + 180) % 360 - 180)
        pair = f"{by_name['eastward_wind']} and {by_name['northward_wind']}"
        reason = f"it differs by {{:.0f}}° in the median from the direction that the wind of {pair} comes from"
        doubt("wind_from_direction", np.where(np.hypot(u, v) >= WINDY, turned, np.nan), MOST_DEGREES, reason)
    return found
