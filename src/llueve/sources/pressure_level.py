"""Tell the pressure at the ground from the pressure at sea level, by the heights of the sites and by the values."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from llueve.quantities.formulas import standard_temperature, station_pressure
from llueve.quantities.unit_table import unit_of
from llueve.quantities.vocabulary import SEA_LEVEL, SURFACE

STANDARD_HPA = 1013.25
LEAST_SEA_LEVEL_HPA = 970.0
"""A median at sea level below this occurs nowhere on Earth."""
LEAST_HEIGHT_M = 200.0
"""Height from which the pressure at the ground differs from that at sea level by more than any climate does."""
FEWEST = 20
"""Fewest values that show the usual pressure of a site."""


def pressure_level(panel: xr.Dataset, name: str, units: str, quantities: Sequence[str]) -> tuple[str | None, str]:
    """The CF name of the pressure that a variable holds, and the reason; None if its values do not tell.

    High sites decide, if their heights are known. A median below 970 hPa is no pressure at sea level. All sites must agree.
    """
    unit = unit_of(units)
    if set(quantities) != {SURFACE, SEA_LEVEL} or unit is None:
        return None, ""
    values_ST = panel.variables[name].values
    known_S = np.isfinite(values_ST).sum(axis=1)
    enough = np.flatnonzero(known_S >= FEWEST)
    median_S = np.array([np.nanmedian(values_ST[site]) for site in enough], dtype=np.float64) * unit.factor
    if len(median_S) and median_S.min() < LEAST_SEA_LEVEL_HPA:
        return SURFACE, f"a median of {median_S.min():.0f} hPa is too low for sea level"
    if "elevation_m" in panel.coords:
        height_S = np.asarray(panel.coords["elevation_m"].values, dtype=np.float64)[enough]
        high = np.isfinite(height_S) & (height_S >= LEAST_HEIGHT_M)
        if high.any():
            expected_S = station_pressure(
                np.full(high.sum(), STANDARD_HPA), standard_temperature(height_S[high]), height_S[high]
            )
            at_ground = np.abs(median_S[high] - expected_S) < np.abs(median_S[high] - STANDARD_HPA)
            if at_ground.all() or not at_ground.any():
                level = SURFACE if at_ground.all() else SEA_LEVEL
                return level, f"sites above {LEAST_HEIGHT_M:.0f} m have a median of {np.median(median_S[high]):.0f} hPa"
    return None, ", and neither its values nor known heights of the sites tell"
