"""Units as data write them, and conversions between them: one table, one function that normalises the text."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

Dimension = Literal[
    "temperature",
    "pressure",
    "speed",
    "angle",
    "length",
    "water",
    "water rate",
    "flux",
    "energy",
    "time",
    "ratio",
    "mass ratio",
    "specific energy",
]
"""Kinds of units. `water` is mass of water by area, `energy` and `flux` are energy and power by area."""
MOST_TEXT = 60
"""Largest number of characters of a unit; a longer text is none."""


@dataclass(frozen=True)
class Unit:
    """A unit: value · factor + offset is the value in the base unit of its dimension."""

    dimension: Dimension
    factor: float
    offset: float = 0.0


SPELLINGS: dict[Dimension, dict[str, tuple[float, float] | float]] = {
    "temperature": {  # base: degC
        "degC | °C | C | celsius | degrees celsius | degree celsius | deg_C | grados C | graus C": 1.0,
        "K | kelvin | kelvins": (1.0, -273.15),
        "degF | °F | F | fahrenheit | degrees fahrenheit": (5 / 9, -160 / 9),
    },
    "pressure": {  # base: hPa
        "hPa | mbar | mb | mbars | millibar | millibars | hectopascal": 1.0,
        "Pa | pascal | pascals": 0.01,
        "kPa": 10.0,
        "inHg | in Hg | inch Hg": 33.8639,
        "mmHg | mm Hg | torr": 1.33322,
    },
    "speed": {  # base: m s-1
        "m s-1 | ms-1 | mps | meters per second | metres per second": 1.0,
        "km h-1 | km/hr | kmh | kmh-1 | kph | kmph": 1 / 3.6,
        "kt | kts | kn | knot | knots": 1852 / 3600,
        "mph | mi h-1 | mp/h | mi/hr | miles per hour": 0.44704,
        "ft s-1": 0.3048,
    },
    "angle": {  # base: degree
        "degree | degrees | deg | ° | degree true | deg true | degrees true | gr | grados | graus | arc degree": 1.0,
        "rad | radian | radians": 57.29577951308232,
    },
    "length": {  # base: m
        "m | metre | metres | meter | meters | m of water equivalent": 1.0,
        "cm | centimetre | centimeter": 0.01,
        "mm | millimetre | millimetres | millimeter | millimeters | mm of water equivalent": 0.001,
        "in | inch | inches": 0.0254,
        "ft | feet | foot": 0.3048,
        "km | kilometre | kilometer": 1000.0,
        "mi | mile | miles": 1609.344,
    },
    "water": {"kg m-2 | kgm-2 | l m-2": 1.0},  # base: kg m-2, one millimetre
    "water rate": {  # base: kg m-2 h-1, one millimetre an hour
        "kg m-2 s-1 | mm s-1": 3600.0,
        "kg m-2 h-1 | mm h-1 | mm hr-1 | mm hour-1": 1.0,
        "kg m-2 day-1 | mm day-1 | mm d-1": 1 / 24,
        "in h-1 | in hr-1": 25.4,
        "in day-1": 25.4 / 24,
    },
    "flux": {  # base: W m-2
        "W m-2 | wm-2 | watt m-2 | watts m-2": 1.0,
        "kW m-2": 1000.0,
        "MJ m-2 day-1 | MJ m-2 d-1": 1e6 / 86400,
        "kWh m-2 day-1 | kWh m-2 d-1 | kW-hr m-2 day-1": 1000 / 24,
        "kJ m-2 h-1": 1e3 / 3600,
    },
    "energy": {  # base: J m-2
        "J m-2 | jm-2": 1.0,
        "kJ m-2": 1e3,
        "MJ m-2": 1e6,
        "Wh m-2 | W h m-2": 3600.0,
        "kWh m-2 | kW h m-2": 3.6e6,
        "J cm-2": 1e4,
    },
    "time": {  # base: h
        "h | hr | hrs | hour | hours": 1.0,
        "min | minute | minutes | mins": 1 / 60,
        "s | sec | second | seconds": 1 / 3600,
    },
    "ratio": {  # base: %
        "% | percent | pct | per cent": 1.0,
        "1 | fraction | (0 - 1) | 0-1 | 0 - 1 | m3 m-3": 100.0,
        "okta | oktas | octa | octas | eighths": 12.5,
        "tenths | tenth": 10.0,
    },
    "mass ratio": {"g kg-1": 1.0, "kg kg-1": 1000.0},  # base: g kg-1
    "specific energy": {"J kg-1": 1.0, "kJ kg-1": 1000.0, "m2 s-2": 1.0},  # base: J kg-1
}
"""Spellings of each unit, separated by bars, with its factor, or factor and offset, to the base unit of its dimension."""

_TOKEN = re.compile(r"([a-z%]+)\s?(-?\d+)?")
_PER = re.compile(r"/|\bper\b")


def normalised(text: str) -> str:
    """A unit in one spelling: `W/m²`, `W m**-2` and `w m^-2` become `w m-2`."""
    text = unicodedata.normalize("NFKC", text.strip().replace("º", "°").replace("−", "-")).lower()
    text = text.replace("**", "").replace("^", "").replace("°", "deg ").replace("_", " ")
    parts = _PER.split(text)
    if len(parts) == 1 or "" in (part.strip() for part in parts):
        return " ".join(re.sub(r"[·*.]", " ", text).split())
    tokens = [" ".join(re.sub(r"[·*.]", " ", parts[0]).split())]
    for part in parts[1:]:
        tokens += [f"{name}-{power or 1}" for name, power in _TOKEN.findall(part)]
    return " ".join(tokens)


def _units() -> dict[str, Unit]:
    found: dict[str, Unit] = {}
    for dimension, rows in SPELLINGS.items():
        for spellings, number in rows.items():
            factor, offset = number if isinstance(number, tuple) else (number, 0.0)
            for spelling in spellings.split(" | "):
                found[normalised(spelling)] = Unit(dimension, factor, offset)
    return found


_UNITS = _units()


def unit_of(text: str | None) -> Unit | None:
    """The unit that a text names; None for no text, and for a unit outside the table."""
    if text is None or len(text) > MOST_TEXT:
        return None
    return _UNITS.get(normalised(text))


def scale(unit: Unit, to: Unit, hours: float) -> tuple[float, float] | None:
    """Factor and offset from one unit to another; None if they do not fit together.

    Rates become amounts, and energies become mean powers, over `hours`: those that one value covers.
    """
    bridge = 1.0
    if unit.dimension != to.dimension:
        bridges = {
            ("length", "water"): 1000.0,  # one metre of water is 1,000 kg m-2
            ("water", "length"): 0.001,
            ("water rate", "length"): 0.001 * hours,
            ("speed", "length"): 3600.0 * hours,
            ("energy", "flux"): 1 / (3600.0 * hours),
            ("ratio", "mass ratio"): 10.0,  # one percent is 10 g kg-1
        }
        if (pair := (unit.dimension, to.dimension)) not in bridges:
            return None
        bridge = bridges[pair]
    return unit.factor * bridge / to.factor, (unit.offset * bridge - to.offset) / to.factor
