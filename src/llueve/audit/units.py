"""Whether values can be what their unit says: ranges by unit, units taken for another, one site unlike all others.

Shapes: S sites, T times.
"""

import re

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from llueve.panel import FloatArray
from llueve.rain import LEAST_MM, MILLIMETRES_PER_UNIT

SPEEDS = ("m s-1", "m/s", "m s**-1")
CELSIUS = ("degC", "°C")
PLAUSIBLE = {
    "K": (-150.0, 350.0),
    "degC": (-95.0, 65.0),
    "°C": (-95.0, 65.0),
    "Pa": (-1e6, 1.1e5),
    "hPa": (-1e4, 1100.0),
    "%": (-0.5, 110.0),
    **dict.fromkeys(SPEEDS, (-150.0, 150.0)),
    "km/h": (-500.0, 500.0),
    "okta": (0.0, 9.0),
}
"""Least and largest value on Earth's surface by unit, so wide that a difference or a tendency passes."""
LEVELS = {
    "K": ((200.0, 330.0), (170.0, 350.0)),
    "Pa": ((4e4, 1.1e5), (3e4, 1.1e5)),
    "hPa": ((400.0, 1100.0), (300.0, 1100.0)),
}
"""Where the median of a level lies, and if it does, where each of its values must; no difference has such a median."""
TAKEN_FOR = {"Pa": (("hPa", 100.0), ("kPa", 1000.0)), "hPa": (("kPa", 10.0),)}
"""Pressures that are as steady as a level and are one after this factor have another unit."""
STEADY = 5
"""Quartile ranges that a level of pressure keeps from zero; vapour pressures and tendencies do not."""
DIFFERENCE = re.compile(
    r"spread|diff|tend|anom|range|std|delta|chang|depress|deficit|dev|grad|bias|trend|dtr", re.IGNORECASE
)
"""Names of variables whose kelvins are differences."""
TEMPERATURE = re.compile(r"temp|t2m|d2m|dew|skt|sst", re.IGNORECASE)
WINDY = 10.0
"""A median of wind speeds near the ground, m/s, that few places on Earth have; gusts are given twice as much."""
MOST_WATER_MM = 2000.0
"""More than any day's rain."""
SITE_CELLS = 100
"""Fewer cells do not show what a site is like."""
FEW_SITES = 5
"""Fewer sites do not show what is usual."""
FACTORS = (10.0, 100.0, 1000.0, 3.6, 25.4, 0.1, 0.01, 0.001, 1 / 3.6, 1 / 25.4)
"""Ratios of units that are mistaken for one another; for temperatures there are offsets."""
BEYOND = 2.0
"""A spread this many times beyond all other sites' is none of theirs."""


def bounds(units: str | None, ordered: FloatArray, middle: float) -> tuple[float, float] | None:
    """Least and largest value that a variable of this unit can have; None if the unit tells nothing.

    Args:
        ordered: all known values in order.
        middle: the median of the sites' medians.
    """
    if units in MILLIMETRES_PER_UNIT:
        scale = MILLIMETRES_PER_UNIT[units]
        # Heights and depths have these units, too; falling water is absent for a good part of the time.
        near_zero = np.searchsorted(ordered, [LEAST_MM / scale, -LEAST_MM / scale], "left")
        if units != "mm" and near_zero[1] - near_zero[0] < 0.1 * len(ordered):
            return None
        return LEAST_MM / scale, MOST_WATER_MM / scale
    if units not in PLAUSIBLE:
        return None
    if units in LEVELS:
        (least, largest), inside = LEVELS[units]
        if least <= middle <= largest:
            return inside
    return PLAUSIBLE[units]


def mistaken(name: str, units: str | None, ordered: FloatArray, middle: float, spread: float) -> str | None:
    """Why the values as a whole cannot have this unit, in words; None if they can.

    Args:
        ordered: all known values in order.
        middle: the median of the sites' medians.
        spread: the median of the sites' quartile ranges.
    """
    low, high = (float(ordered[round(share * (len(ordered) - 1))]) for share in (0.01, 0.99))
    if units == "K" and -90 <= middle <= 60 and low > -100 and not DIFFERENCE.search(name):
        centred = abs(middle) <= 0.1 * spread
        one_sided = (ordered[0] >= 0 and low <= middle / 3) or (ordered[-1] <= 0 and high >= middle / 3)
        small = high < 5 or abs(middle) <= spread or one_sided
        if not centred and (TEMPERATURE.search(name) or not small):
            return f"a median of {middle:g} K is no temperature but in degC, and no difference has it"
    for other, factor in TAKEN_FOR.get(units or "", ()):
        least, largest = LEVELS[units or ""][0]
        if least <= factor * middle <= largest and middle >= STEADY * spread:
            return f"a median of {middle:g} {units}, hardly varying, is no pressure of air but in {other}"
    if units == "%" and ordered[0] >= 0 and ordered[-1] <= 1.1 and middle >= 0.05:
        return f"no value is above {ordered[-1]:g} %: they seem to be fractions"
    if units in SPEEDS and ordered[0] >= 0 and not re.search(r"\d{3}", name):
        most = WINDY * (2 if re.search("gust|max", name, re.IGNORECASE) else 1)
        if middle > most:
            return f"a median of {middle:g} {units} is a wind that no such place near the ground has: km/h or knots?"
    return None


def odd_sites(units: str | None, ordered_ST: FloatArray, known_S: NDArray[np.int64]) -> list[tuple[int, str]]:
    """Sites whose values are like the others' only after a change of unit, with that change in words.

    A site may well be colder, higher or windier than all others: it is named only if it is far beyond all of them as it
    is, and among them once converted.

    Args:
        ordered_ST: each site's values in order, those missing last.
        known_S: how many each has.
    """
    enough = np.flatnonzero(known_S >= SITE_CELLS)
    if len(enough) < FEW_SITES:
        return []
    share = np.array([0.1, 0.25, 0.5, 0.75, 0.95])
    index = np.round(share * (known_S[enough, None] - 1)).astype(np.intp)
    level = np.take_along_axis(ordered_ST[enough].astype(np.float64), index, axis=1)
    middle, spread = level[:, 2], level[:, 3] - level[:, 1]
    dry = np.median(spread) == 0 or np.mean(level[:, 0] == level[:, 2]) > 0.5  # rain: nearly all of it lies above 0.75
    if dry:
        spread = level[:, 4] - level[:, 0]
    found = []
    for row, site in enumerate(enough):
        others = np.arange(len(enough)) != row
        if not (spread[row] > 0 and (spread[others] > 0).all()):
            continue
        least, largest = spread[others].min(), spread[others].max()
        lowest, highest = middle[others].min(), middle[others].max()

        def fits(
            factor: float, offset: float, row: int = row, ends: tuple[float, ...] = (least, largest, lowest, highest)
        ) -> bool:
            wide = 0.2 * (ends[3] - ends[2]) + 0.5 * ends[1]
            among = ends[2] - wide <= middle[row] / factor - offset <= ends[3] + wide
            return bool(among and ends[0] / 1.5 <= spread[row] / factor <= 1.5 * ends[1])

        if units in (*CELSIUS, "K") and not lowest - largest <= middle[row] <= highest + largest:
            kelvin = 273.15 if units == "K" else 0.0
            for other, factor, offset in (
                ("degC" if kelvin else "K", 1.0, -273.15 if kelvin else 273.15),
                ("degF", 1.8, 32 / 1.8 - kelvin),
            ):
                if fits(factor, offset):
                    found.append((int(site), f"as {other} it would be among them"))
                    break
        elif spread[row] > 6 * largest if dry else not least / BEYOND <= spread[row] <= BEYOND * largest:
            ratio = next((factor for factor in FACTORS if fits(factor, 0.0)), None)
            if ratio is not None:
                found.append((int(site), f"divided by {ratio:g} it would be among them"))
    return found


def site_middles(ordered_ST: FloatArray, known_S: NDArray[np.int64]) -> tuple[float, float]:
    """The median of the sites' medians, and of their quartile ranges."""
    sites = np.flatnonzero(known_S)
    index = np.round(np.array([0.25, 0.5, 0.75]) * (known_S[sites, None] - 1)).astype(np.intp)
    level = np.take_along_axis(ordered_ST[sites].astype(np.float64), index, axis=1)
    return float(np.median(level[:, 1])), float(np.median(level[:, 2] - level[:, 0]))


def unit_of(panel: xr.Dataset, name: str) -> str | None:
    """The variable's unit, if it has one."""
    units = panel[name].attrs.get("units")
    return None if units is None else str(units)
