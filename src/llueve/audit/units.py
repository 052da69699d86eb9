"""Checks of values against their unit: ranges, mistaken units, one site unlike all others. Shapes: S sites, T times."""

import math
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llueve.panel import FloatArray
from llueve.sources.names_and_units import MILLIMETRES_PER_UNIT, PACKING_NOISE_MM

SPEEDS = ("m s-1", "m/s", "m s**-1")
CELSIUS = ("degC", "°C", "C", "celsius")
FAHRENHEIT = ("degF", "°F", "F", "fahrenheit")
MILES_PER_HOUR = ("mph", "mi/h", "mi h-1")
KNOTS = ("kt", "kts", "kn", "knot", "knots")
INCHES_OF_MERCURY = ("inHg", "in Hg", "inHG")
PLAUSIBLE = {
    "K": (-150.0, 350.0),
    **dict.fromkeys(CELSIUS, (-95.0, 65.0)),
    **dict.fromkeys(FAHRENHEIT, (-140.0, 150.0)),
    "Pa": (-1e6, 1.1e5),
    "hPa": (-1e4, 1100.0),
    "%": (-0.5, 110.0),
    **dict.fromkeys(SPEEDS, (-150.0, 150.0)),
    "km/h": (-500.0, 500.0),
    **dict.fromkeys(MILES_PER_HOUR, (-310.0, 310.0)),
    **dict.fromkeys(KNOTS, (-270.0, 270.0)),
    **dict.fromkeys(INCHES_OF_MERCURY, (-300.0, 32.5)),
    **dict.fromkeys(("ft", "feet"), (-1500.0, 200_000.0)),
    **dict.fromkeys(("mi", "mile", "miles"), (-1000.0, 2000.0)),
    "okta": (0.0, 9.0),
}
"""Least and largest value on Earth's surface by unit, wide enough for differences, tendencies and visibility."""
LEVELS = {
    "K": ((200.0, 330.0), (170.0, 350.0)),
    "Pa": ((4e4, 1.1e5), (3e4, 1.1e5)),
    "hPa": ((400.0, 1100.0), (300.0, 1100.0)),
    **dict.fromkeys(INCHES_OF_MERCURY, ((12.0, 32.5), (9.0, 32.5))),
}
"""Range of the median of a level, which no difference has, and range of all values of such a variable."""
TAKEN_FOR = {
    "Pa": (("hPa", 100.0), ("kPa", 1000.0), ("inHg", 3386.39)),
    "hPa": (("kPa", 10.0), ("inHg", 33.8639)),
}
"""Units that are mistaken for a pressure unit, with their factor; a steady variable that the factor makes a level."""
STEADY = 5
"""Least distance of a pressure level from zero, in quartile ranges; vapour pressures and tendencies are closer."""
DIFFERENCE = re.compile("spread|diff|tend|anom|range|std|delta|chang|depress|deficit|dev|grad|bias|trend|dtr", re.I)
"""Names of variables that hold differences of temperature."""
TEMPERATURE = re.compile("temp|t2m|d2m|dew|skt|sst", re.I)
WINDY = 10.0
"""Median of wind speeds near the ground, m/s, that few places on Earth exceed; gusts may have twice as much."""
PER_METRE_PER_SECOND = dict.fromkeys(SPEEDS, 1.0) | dict.fromkeys(MILES_PER_HOUR, 2.237) | dict.fromkeys(KNOTS, 1.944)
"""Units of speed that faster units are mistaken for, in one metre per second."""
MOST_WATER_MM = 2000.0
"""An amount above the largest daily rain."""
RAIN = re.compile("rain|precip|prcp|lluvia|pluie|regen|ppt|^tp$|^pr$", re.I)
"""Names of amounts of rain."""
STORM_MM, STORM_GROWTH = 75.0, 0.25
"""Rain that a storm may bring in one hour, and the power of the hours with which it grows: 170 mm in a day."""
SITE_CELLS = 100
"""Fewest cells that show the usual values of a site."""
FEW_SITES = 5
"""Fewest sites that show the usual values of all sites."""
FACTORS = (10.0, 100.0, 1000.0, 3.6, 25.4, 0.1, 0.01, 0.001, 1 / 3.6, 1 / 25.4)
"""Ratios of units that are mistaken for one another. Temperatures have offsets instead."""
BEYOND = 2.5
"""Factor beyond the spreads of all other sites from which a spread is unlike theirs. A lighthouse has 2.3 times the wind of
all other stations of a network."""


def bounds(units: str | None, ordered: FloatArray, middle: float) -> tuple[float, float]:
    """Least and largest value that a variable of this unit can have; infinite if the unit sets no limits.

    `ordered` holds all known values in order; `middle` is the median of the sites' medians.
    """
    if units in MILLIMETRES_PER_UNIT:
        scale = MILLIMETRES_PER_UNIT[units]
        # Heights and depths have these units too; precipitation is zero for a large part of the time.
        near_zero = np.searchsorted(ordered, [-PACKING_NOISE_MM / scale, PACKING_NOISE_MM / scale], "left")
        if units == "mm" or near_zero[1] - near_zero[0] >= 0.1 * len(ordered):
            return -PACKING_NOISE_MM / scale, MOST_WATER_MM / scale
    elif units in LEVELS and LEVELS[units][0][0] <= middle <= LEVELS[units][0][1]:
        return LEVELS[units][1]
    return PLAUSIBLE.get(units or "", (-math.inf, math.inf))


def storm(name: str, units: str | None, hours: float) -> float:
    """Amount of rain, in the unit of the variable, that a storm may bring in these hours; 0 for anything but rain.

    Without a unit a name such as `rain` means millimetres.
    """
    millimetres = MILLIMETRES_PER_UNIT.get(units or "", 1.0 if units is None and RAIN.search(name) else 0.0)
    return STORM_MM * hours**STORM_GROWTH / millimetres if millimetres else 0.0


def mistaken(name: str, units: str | None, ordered: FloatArray, middle: float, spread: float) -> str | None:
    """Reason why the values as a whole cannot have this unit, in words; None if they can.

    `ordered` and `middle` are as in `bounds`; `spread` is the median of the sites' quartile ranges.
    """
    low, high = (float(ordered[round(share * (len(ordered) - 1))]) for share in (0.01, 0.99))
    if units == "K" and -90 <= middle <= 60 and low > -100 and not DIFFERENCE.search(name):
        centred = abs(middle) <= 0.1 * spread
        one_sided = (ordered[0] >= 0 and low <= middle / 3) or (ordered[-1] <= 0 and high >= middle / 3)
        small = high < 5 or abs(middle) <= spread or one_sided
        if not centred and (TEMPERATURE.search(name) or not small):
            return f"a median of {middle:g} K is too low for a temperature and too high for a difference; it fits degC"
    for other, factor in TAKEN_FOR.get(units or "", ()):
        least, largest = LEVELS[units or ""][0]
        if least <= factor * middle <= largest and middle >= STEADY * spread:
            return f"a nearly constant median of {middle:g} {units} is not an air pressure; it fits {other}"
    if units == "%" and ordered[0] >= 0 and ordered[-1] <= 1.1 and middle >= 0.05:
        return f"all values are at most {ordered[-1]:g} %: they seem to be fractions"
    if units in PER_METRE_PER_SECOND and ordered[0] >= 0 and not re.search(r"\d{3}", name):
        most = WINDY * PER_METRE_PER_SECOND[units] * (2 if re.search("gust|max", name, re.I) else 1)
        if middle > most:
            faster = "km/h or knots" if units in SPEEDS else "km/h"
            return f"a median wind of {middle:g} {units} is too high near the ground: {faster}?"
    return None


@dataclass(frozen=True)
class _OtherSites:
    """Lowest and highest median, smallest and largest spread of all sites but one."""

    low: float
    high: float
    narrow: float
    wide: float

    def include(self, middle: float, spread: float) -> bool:
        """True if a site with this median and spread is like them."""
        margin = 0.2 * (self.high - self.low) + 0.5 * self.wide
        is_among = self.low - margin <= middle <= self.high + margin
        return is_among and self.narrow / 1.5 <= spread <= 1.5 * self.wide


def odd_sites(units: str | None, ordered_ST: FloatArray, known_S: NDArray[np.int64]) -> list[tuple[int, str]]:
    """Sites whose values are like the others' only after a change of unit, with that change in words.

    A site may well be colder, higher or windier than all others. It is named only if it is far from all of them as it is,
    and among them once converted. Arguments: see `VariableCells`.
    """
    enough = np.flatnonzero(known_S >= SITE_CELLS)
    if len(enough) < FEW_SITES:
        return []
    tenth, quarter, middle, three_quarters, top = _levels(ordered_ST, known_S, enough, (0.1, 0.25, 0.5, 0.75, 0.95))
    spread = three_quarters - quarter
    is_rain = bool(np.median(spread) == 0 or np.mean(tenth == middle) > 0.5)
    if is_rain:  # nearly all of it lies above the third quartile
        spread = top - tenth
    found = []
    for row, site in enumerate(enough):
        rest = np.arange(len(enough)) != row
        if spread[row] > 0 and (spread[rest] > 0).all():
            others = _OtherSites(middle[rest].min(), middle[rest].max(), spread[rest].min(), spread[rest].max())
            if (conversion := _conversion(units, float(middle[row]), float(spread[row]), others, is_rain)) is not None:
                found.append((int(site), conversion))
    return found


def _conversion(units: str | None, middle: float, spread: float, others: _OtherSites, is_rain: bool) -> str | None:
    """The change of unit that makes a site like the others, in words; None if it is like them, or nothing does."""
    if units in (*CELSIUS, "K") and not others.low - others.wide <= middle <= others.high + others.wide:
        kelvin = 273.15 if units == "K" else 0.0
        other_scale = ("degC", 1.0, -273.15) if kelvin else ("K", 1.0, 273.15)
        for other, factor, offset in (other_scale, ("degF", 1.8, 32 / 1.8 - kelvin)):
            if others.include(middle / factor - offset, spread / factor):
                return f"as {other}"
    elif spread > 6 * others.wide if is_rain else not others.narrow / BEYOND <= spread <= BEYOND * others.wide:
        for factor in FACTORS:
            if others.include(middle / factor, spread / factor):
                return f"divided by {factor:g}"
    return None


def site_middles(ordered_ST: FloatArray, known_S: NDArray[np.int64]) -> tuple[float, float]:
    """Median of the sites' medians, and median of their quartile ranges."""
    quarter, middle, three_quarters = _levels(ordered_ST, known_S, np.flatnonzero(known_S), (0.25, 0.5, 0.75))
    return float(np.median(middle)), float(np.median(three_quarters - quarter))


def _levels(
    ordered_ST: FloatArray, known_S: NDArray[np.int64], sites: NDArray[np.intp], shares: tuple[float, ...]
) -> NDArray[np.float64]:
    """Quantiles of the known values of these sites: a row per share."""
    index = np.round(np.array(shares) * (known_S[sites, None] - 1)).astype(np.intp)
    return np.take_along_axis(ordered_ST[sites].astype(np.float64), index, axis=1).T
