"""Canonical inputs: the quantities that a model knows, in one unit each, from whatever variables a panel holds.

Shapes: S sites, T times. Each value depends on values of the same site and time only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from llueve.errors import UsageError
from llueve.panel import KnownQuantity, known_quantities
from llueve.quantities import formulas
from llueve.quantities.catalogue import ORIGINS, QUANTITIES, Meaning, Part, meaning_of
from llueve.quantities.formulas import Doubles
from llueve.quantities.vocabulary import SEA_LEVEL, SURFACE

T, TD, RH, Q = "air_temperature", "dew_point_temperature", "relative_humidity", "specific_humidity"
U, V, SPEED, DIRECTION = "eastward_wind", "northward_wind", "wind_speed", "wind_from_direction"
AS_IT_IS = (1.0, 0.0)
"""Factor and offset of values that are in the canonical unit already."""
HEIGHT = "elevation"
"""Input of a recipe: the coordinate `elevation_m` of the sites, in metres."""


@dataclass(frozen=True)
class Recipe:
    """One way to derive a quantity from others at the same time."""

    inputs: tuple[str, ...]
    """Quantities, `HEIGHT`, or a direction with `sine` or `cosine`, in the order of the function's arguments."""
    function: Callable[..., Doubles]
    words: str
    """The formula in words, for the attribute `derivation`."""


SINE, COSINE = f"{DIRECTION} sine", f"{DIRECTION} cosine"
RECIPES: dict[str, tuple[Recipe, ...]] = {
    U: (
        Recipe((SPEED, SINE), formulas.wind_component, "minus speed times sine of the direction"),
        Recipe((SPEED, DIRECTION), lambda s, d: formulas.wind_component(s, np.sin(np.radians(d))), "from speed and direction"),
    ),
    V: (
        Recipe((SPEED, COSINE), formulas.wind_component, "minus speed times cosine of the direction"),
        Recipe((SPEED, DIRECTION), lambda s, d: formulas.wind_component(s, np.cos(np.radians(d))), "from speed and direction"),
    ),
    SPEED: (Recipe((U, V), np.hypot, "length of the vector of both components"),),
    DIRECTION: (
        Recipe((SINE, COSINE), formulas.direction_from_parts, "from its sine and cosine"),
        Recipe((U, V), formulas.direction_from_components, "from both components"),
    ),
    RH: (
        Recipe((T, TD), formulas.relative_humidity, "from temperature and dew point (Magnus)"),
        Recipe(
            (T, Q, SURFACE),
            lambda t, q, p: formulas.relative_humidity(t, formulas.dew_point_from_specific(q, p)),
            "from temperature, specific humidity and pressure (Magnus)",
        ),
    ),
    TD: (
        Recipe((T, RH), formulas.dew_point, "from temperature and relative humidity (Magnus)"),
        Recipe((Q, SURFACE), formulas.dew_point_from_specific, "from specific humidity and pressure (Magnus)"),
    ),
    Q: (
        Recipe((TD, SURFACE), formulas.specific_humidity, "from dew point and pressure (Magnus)"),
        Recipe(
            (T, RH, SURFACE),
            lambda t, r, p: formulas.specific_humidity(formulas.dew_point(t, r), p),
            "from temperature, relative humidity and pressure (Magnus)",
        ),
    ),
    "water_vapor_saturation_deficit_in_air": (
        Recipe((T, TD), formulas.saturation_deficit, "from temperature and dew point (Magnus)"),
        Recipe(
            (T, RH),
            lambda t, r: formulas.saturation_deficit(t, formulas.dew_point(t, r)),
            "from temperature and relative humidity (Magnus)",
        ),
    ),
    SEA_LEVEL: (
        Recipe((SURFACE, T, HEIGHT), formulas.sea_level_pressure, "reduced with temperature and height of the site"),
        Recipe(
            (SURFACE, HEIGHT),
            lambda p, z: formulas.sea_level_pressure(p, formulas.standard_temperature(z), z),
            "reduced with the height of the site in the standard atmosphere",
        ),
    ),
    SURFACE: (
        Recipe((SEA_LEVEL, T, HEIGHT), formulas.station_pressure, "from sea level, temperature and height of the site"),
        Recipe(
            (SEA_LEVEL, HEIGHT),
            lambda p, z: formulas.station_pressure(p, formulas.standard_temperature(z), z),
            "from sea level and height of the site in the standard atmosphere",
        ),
    ),
    "precipitation_amount": (
        Recipe(("convective_precipitation_amount", "stratiform_precipitation_amount"), np.add, "convective plus stratiform"),
        Recipe(("rainfall_amount", "snowfall_amount"), np.add, "rain plus snow"),
    ),
}  # fmt: skip
"""Ways to derive each quantity, the best one first. The statistic and the clock hour of all inputs are those wanted."""


@dataclass(frozen=True)
class _Found:
    """Values of one quantity in its canonical unit."""

    values_ST: Doubles
    words: str
    variables: tuple[str, ...]


def canonical(panel: xr.Dataset, wanted: Sequence[str]) -> xr.Dataset:
    """The wanted quantities that a panel holds, or that follow from what it holds, each in its canonical unit.

    A quantity is a text as `meaning_of` reads it, such as `eastward_wind` or `air_temperature maximum`. Amounts are totals
    of the panel's step, and radiation is its mean over the step. Temperatures and humidities are converted by the Magnus
    form of Alduchov and Eskridge (1996), and pressures by the barometric formula, only where the height of the site is known.

    Args:
        panel: a panel whose variables have their quantities, as `llueve.samples.read.read_source` gives it.
        wanted: quantities, in the order of the result.

    Returns:
        A data set with sites and times of the panel. It has one float32 variable by (site, time) per quantity found, NaN
        where unknown. Its attributes are `units`, `derivation` (in words) and `variables` (those that it comes from). The
        attribute `absent` of the data set gives the reason for each quantity that was not found.

    Raises:
        UsageError: a text names no quantity; the message lists near names.
    """
    source = _Panel(panel)
    arrays: dict[str, xr.Variable] = {}
    absent: dict[str, str] = {}
    for text in dict.fromkeys(wanted):
        try:
            meaning = meaning_of(text)
        except ValueError as error:
            raise UsageError(f"wanted quantity: {error}") from error
        if meaning is None:
            raise UsageError(f"wanted quantity: {text!r} is no quantity")
        reasons: list[str] = []
        found = source.held(meaning, reasons) or source.derived(meaning, reasons)
        if found is None:
            absent[text] = "; ".join(dict.fromkeys([f"no variable gives {meaning}", *reasons]))
            continue
        units = "1" if meaning.part else meaning.quantity.units
        attrs = {"units": units, "derivation": found.words, "variables": found.variables}
        arrays[text] = xr.Variable(("site", "time"), found.values_ST.astype(np.float32), attrs)
    coords = {name: panel.coords[name] for name in panel.coords}
    return xr.Dataset(arrays, coords, {"step_hours": panel.attrs["step_hours"], "absent": absent})


class _Panel:
    """A panel as a source of quantities."""

    def __init__(self, panel: xr.Dataset) -> None:
        self.panel = panel
        self.step_hours = float(panel.attrs["step_hours"])
        known = known_quantities(panel)
        # The most certain evidence first; variables of equal evidence stay in the order of the panel.
        self.known = dict(sorted(known.items(), key=lambda item: ORIGINS.index(item[1].origin)))

    def held(self, meaning: Meaning, reasons: list[str]) -> _Found | None:
        """The first variable with this meaning that can be converted; others add the reason."""
        for name, known in self.known.items():
            if known.meaning == meaning:
                values_ST = np.asarray(self.panel.variables[name].values, dtype=np.float64)
                converted = AS_IT_IS if meaning.part is not None else self._conversion(name, known)
                if isinstance(converted, str):
                    reasons.append(converted)
                    continue
                words = f"{name} as it is"
                if converted != AS_IT_IS:
                    values_ST = values_ST * converted[0] + converted[1]
                    words = f"{name}, from {known.units} to {meaning.quantity.units}"
                if meaning.part is None and meaning.quantity.unit.dimension == "angle":
                    values_ST = values_ST % 360
                return _Found(values_ST, words, (name,))
        return None

    def _conversion(self, name: str, known: KnownQuantity) -> tuple[float, float] | str:
        """Factor and offset to the canonical unit; or the reason why there are none."""
        quantity = known.meaning.quantity
        hours = float(self.panel.variables[name].attrs.get("accumulation_hours", self.step_hours))
        if quantity.is_sum and not np.isclose(hours, self.step_hours):
            return f"{name} sums {hours:g} h, but a step has {self.step_hours:g} h"
        if known.units is None:
            return f"the unit of {name} is unknown: set data.units.{name}"
        converted = quantity.conversion(known.units, hours)
        return f"{name} is in {known.units}, which is no unit of {quantity.name}" if converted is None else converted

    def derived(self, meaning: Meaning, reasons: list[str]) -> _Found | None:
        """The quantity by the first recipe whose inputs the panel holds; no extreme follows from other quantities."""
        if meaning.statistic is not None or meaning.part is not None:
            return None
        for recipe in RECIPES.get(meaning.quantity.name, ()):
            inputs = [self._input(text, meaning, reasons) for text in recipe.inputs]
            if all(each is not None for each in inputs):
                given = [each for each in inputs if each is not None]
                values_ST = recipe.function(*(each.values_ST for each in given))
                names = tuple(dict.fromkeys(name for each in given for name in each.variables))
                return _Found(np.where(np.isfinite(values_ST), values_ST, np.nan), recipe.words, names)
        return None

    def _input(self, text: str, wanted: Meaning, reasons: list[str]) -> _Found | None:
        if text == HEIGHT:
            if "elevation_m" not in self.panel.coords or not np.isfinite(self.panel.coords["elevation_m"].values).any():
                reasons.append("the height of the sites is unknown")
                return None
            height_ST = np.asarray(self.panel.coords["elevation_m"].values, dtype=np.float64)[:, None]
            return _Found(height_ST, "height of the site", ())
        name, _, part = text.partition(" ")
        parts: dict[str, Part] = {"sine": "sine", "cosine": "cosine"}
        return self.held(replace(wanted, quantity=QUANTITIES[name], part=parts.get(part)), reasons)
