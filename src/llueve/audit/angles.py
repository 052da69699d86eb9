"""Checks of angles: coordinates that change at a site, and directions used as plain numbers. Shapes: S sites, T times."""

import math
import re
from collections.abc import Iterator

import numpy as np

from llueve.audit.variable_cells import VariableCells
from llueve.errors import listed
from llueve.panel import Finding

COORDINATE = re.compile(
    r"lat|lon|long|latitude?|longitude?|latitud|longitud|(cell|grid|site|station)_?(lat|lon)\w*", re.I
)
"""Names of coordinates of a site."""
MOVED_DEGREES = 0.01
"""Least change of a coordinate, about 1 km, that is more than rounding."""
DIRECTION = re.compile(
    r"direction|direcc|richtung|drct|bearing|azimut|(^|_|wind|gust)dir(_|\d|$)|(wind|w)_?d(f\w|ir)?\d*m?$|^(dd\d*|awdr|mwd)$",
    re.I,
)
"""Names of directions."""
DEGREES = ("degree", "degrees", "deg", "°", "degree_true", "degrees_true", "degrees true")
RADIANS = ("rad", "radian", "radians")
NORTH = 1 / 8
"""Share of a circle on either side of north in which a variable that goes around it has values."""


def check_angles(cells: VariableCells) -> Iterator[Finding]:
    """A coordinate that changes at a site, or a direction in degrees that the model would read as a plain number."""
    if COORDINATE.fullmatch(cells.name):
        yield from _moving_sites(cells)
    elif _is_direction(cells) and not cells.is_derived:
        advice = f'name it in data.wind_directions = ["{cells.name}"], which makes a sine and a cosine of it'
        if "sites_in_file" not in cells.panel.attrs:  # no table
            advice = "leave it out with data.exclude, and make directions from the wind's components with features.wind"
        elif (cells.units or "").lower() in RADIANS:
            advice = f"convert it to degrees, and {advice}"
        message = f"{cells.name}: a direction as a plain number, whose two ends are neighbours but far apart as numbers; {advice}"
        yield Finding("plain_direction", "warning", message, cells.name)


def _moving_sites(cells: VariableCells) -> Iterator[Finding]:
    """Sites whose coordinate is not the same in all rows."""
    known = cells.known_S > 0
    last_S = np.maximum(cells.known_S - 1, 0)
    least_S, most_S = cells.ordered_ST[:, 0], cells.ordered_ST[np.arange(len(last_S)), last_S]
    moved = np.flatnonzero(known & (most_S - least_S > MOVED_DEGREES))
    if len(moved):
        sites = cells.panel.variables["site"].values
        places = [f"{sites[site]} ({least_S[site]:g} to {most_S[site]:g})" for site in moved]
        message = (
            f"{cells.name}: changes between the rows of {len(moved)} of {len(sites)} sites: {listed(places)}; these rows may "
            "belong to several places: give each place a name of its own in data.site, or correct the coordinates"
        )
        only = str(sites[moved[0]]) if len(moved) == 1 else None
        yield Finding("moving_site", "warning", message, cells.name, only, count=len(moved))


def _is_direction(cells: VariableCells) -> bool:
    """True for angles around a circle, by the name or the unit, and by values on both sides of north."""
    units = (cells.units or "").strip().lower()
    if units not in (*DEGREES, *RADIANS) and (units or not DIRECTION.search(cells.name)):
        return False
    circle = 2 * math.pi if units in RADIANS else 360.0
    low, high = float(cells.ordered[0]) / circle, float(cells.ordered[-1]) / circle
    from_zero = 0 <= low < NORTH and 1 - NORTH < high <= 1.001
    return from_zero or (-0.501 <= low < NORTH - 0.5 and 0.5 - NORTH < high <= 0.501)
