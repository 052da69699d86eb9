"""Names and units of variables: in the configuration and in the files."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from llueve.errors import DataError, listed, shortened

MILLIMETRES_PER_UNIT = {"mm": 1.0, "kg m-2": 1.0, "kg m**-2": 1.0, "cm": 10.0, "m": 1000.0, "in": 25.4, "inch": 25.4}
"""Units of a depth of water. One millimetre is one kilogram per square metre; an inch is 25.4 mm by definition."""
PACKING_NOISE_MM = 0.01
"""Largest error of a packed amount of rain. A value farther below zero is a mark for missing or a fault."""
MOST_COMPARED = 5_000
"""Largest number of names among which the nearest one is searched, which takes a millisecond for every ten."""


def unknown_name(source: str, key: str, name: str, kind: str, known: Sequence[str]) -> DataError:
    """The error for a name that a configuration key gives and the source lacks; `kind` is the plural noun of names."""
    close = difflib.get_close_matches(name, known[:MOST_COMPARED], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return DataError(f"{source}: {key} names {shortened(name)}, but the {kind} are {listed(known, 40)}{hint}")


def agreed_units(names: Iterable[str], given: Mapping[str, Mapping[str, str | None]], source: str) -> dict[str, str]:
    """The unit of each variable that has one, from units by variable, by the place that gives them; they must agree."""
    agreed = {}
    for name in names:
        place_of: dict[str, str] = {}
        for place, units in given.items():
            if unit := units.get(name):
                place_of.setdefault(unit, place)
        if len(place_of) > 1:
            conflict = " but ".join(f"{place} says {shortened(unit)}" for unit, place in place_of.items())
            raise DataError(f"{source}: unit of {name!r}: {conflict}; correct the wrong one")
        if place_of:
            agreed[name] = next(iter(place_of))
    return agreed
