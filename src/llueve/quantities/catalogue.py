"""The closed list of physical quantities: CF standard names, with unit, range of values and meaning.

Names: https://cfconventions.org/Data/cf-standard-names/current/build/cf-standard-name-table.html.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from llueve.quantities.unit_table import Dimension, Unit, scale, unit_of

Statistic = Literal["maximum", "minimum"]
"""Statistic of a variable over its step, as in the CF attribute `cell_methods`."""
Part = Literal["sine", "cosine"]
Origin = Literal["configured", "standard_name", "name", "unit", "values"]
"""Source of a variable's quantity, the most certain one first: `data.quantities` or another key of the configuration, a CF
standard name in the file, the variable's name, its unit, its values."""
ORIGINS: tuple[Origin, ...] = get_args(Origin)
NONE = "none"
"""The word of `data.quantities` for a variable without a quantity."""


@dataclass(frozen=True)
class Quantity:
    """One physical quantity near the ground."""

    name: str
    """CF standard name."""
    units: str
    """Canonical unit, in which `llueve.samples.canonical` gives it."""
    accepted: "Dimensions"
    """Kinds of units that can be converted to the canonical one."""
    least: float
    largest: float
    """Range of all values, in the canonical unit."""
    usual_least: float
    usual_largest: float
    """Range of the median of a record, in the canonical unit."""
    is_sum: bool = False
    """True for an amount over the step, False for a state or a mean."""

    @property
    def unit(self) -> Unit:
        """The canonical unit."""
        unit = unit_of(self.units)
        assert unit is not None, self.units
        return unit

    def conversion(self, units: str | None, hours: float) -> tuple[float, float] | None:
        """Factor and offset from these units to the canonical one; None if the quantity is not measured in them.

        `hours` are those that one value covers: rates become amounts over them, and sums of energy mean powers.
        """
        unit = unit_of(units)
        return None if unit is None or unit.dimension not in self.accepted else scale(unit, self.unit, hours)


Dimensions = tuple[Dimension, ...]
Bounds = tuple[float, float]
_TEMPERATURE: Dimensions = ("temperature",)
_PRESSURE: Dimensions = ("pressure",)
_SPEED: Dimensions = ("speed",)
_ANGLE: Dimensions = ("angle",)
_RATIO: Dimensions = ("ratio",)
_LENGTH: Dimensions = ("length",)
_FLUX: Dimensions = ("flux", "energy")
_WATER: Dimensions = ("length", "water", "water rate", "speed")
_DEPTH: Dimensions = ("length", "water")

_ROWS: tuple[tuple[str, str, Dimensions, Bounds, Bounds, bool], ...] = (
    ("air_temperature", "degC", _TEMPERATURE, (-95, 65), (-70, 50), False),
    ("dew_point_temperature", "degC", _TEMPERATURE, (-110, 45), (-80, 35), False),
    ("wet_bulb_temperature", "degC", _TEMPERATURE, (-95, 45), (-70, 35), False),
    ("surface_temperature", "degC", _TEMPERATURE, (-100, 95), (-75, 60), False),
    ("sea_surface_temperature", "degC", _TEMPERATURE, (-5, 45), (-3, 38), False),
    ("soil_temperature", "degC", _TEMPERATURE, (-80, 80), (-50, 55), False),
    ("relative_humidity", "%", _RATIO, (-0.5, 110), (2, 105), False),
    ("specific_humidity", "g kg-1", ("mass ratio", "ratio"), (-0.1, 45), (0.05, 30), False),
    ("water_vapor_saturation_deficit_in_air", "hPa", _PRESSURE, (-1, 200), (0, 100), False),
    ("air_pressure_at_mean_sea_level", "hPa", _PRESSURE, (850, 1100), (960, 1055), False),
    ("surface_air_pressure", "hPa", _PRESSURE, (300, 1100), (400, 1085), False),
    ("eastward_wind", "m s-1", _SPEED, (-120, 120), (-40, 40), False),
    ("northward_wind", "m s-1", _SPEED, (-120, 120), (-40, 40), False),
    ("wind_speed", "m s-1", _SPEED, (-0.01, 120), (0, 30), False),
    ("wind_speed_of_gust", "m s-1", _SPEED, (-0.01, 150), (0, 45), False),
    ("wind_from_direction", "degree", _ANGLE, (-180, 361), (-180, 361), False),
    ("wind_gust_from_direction", "degree", _ANGLE, (-180, 361), (-180, 361), False),
    ("precipitation_amount", "mm", _WATER, (-0.1, 2000), (-0.1, 200), True),
    ("rainfall_amount", "mm", _WATER, (-0.1, 2000), (-0.1, 200), True),
    ("convective_precipitation_amount", "mm", _WATER, (-0.1, 2000), (-0.1, 200), True),
    ("convective_rainfall_amount", "mm", _WATER, (-0.1, 2000), (-0.1, 200), True),
    ("stratiform_precipitation_amount", "mm", _WATER, (-0.1, 2000), (-0.1, 200), True),
    ("snowfall_amount", "mm", _WATER, (-0.1, 500), (-0.1, 100), True),
    ("thickness_of_snowfall_amount", "cm", _LENGTH, (-0.1, 300), (-0.1, 60), True),
    ("surface_snow_thickness", "cm", _LENGTH, (-5, 3000), (-1, 2500), False),
    ("surface_snow_amount", "mm", _DEPTH, (-5, 11000), (-1, 11000), False),
    ("cloud_area_fraction", "%", _RATIO, (-1, 113), (-1, 113), False),
    ("low_type_cloud_area_fraction", "%", _RATIO, (-1, 113), (-1, 113), False),
    ("medium_type_cloud_area_fraction", "%", _RATIO, (-1, 113), (-1, 113), False),
    ("high_type_cloud_area_fraction", "%", _RATIO, (-1, 113), (-1, 113), False),
    ("surface_downwelling_shortwave_flux_in_air", "W m-2", _FLUX, (-30, 1800), (-30, 700), False),
    ("surface_direct_downwelling_shortwave_flux_in_air", "W m-2", _FLUX, (-30, 1500), (-30, 700), False),
    ("surface_diffuse_downwelling_shortwave_flux_in_air", "W m-2", _FLUX, (-30, 1200), (-30, 500), False),
    ("surface_net_downward_shortwave_flux", "W m-2", _FLUX, (-50, 1500), (-50, 700), False),
    ("surface_downwelling_longwave_flux_in_air", "W m-2", _FLUX, (20, 700), (50, 600), False),
    ("surface_net_downward_longwave_flux", "W m-2", _FLUX, (-500, 300), (-300, 150), False),
    ("toa_incoming_shortwave_flux", "W m-2", _FLUX, (-5, 1500), (-5, 900), False),
    ("duration_of_sunshine", "h", ("time",), (-0.01, 24), (-0.01, 24), True),
    ("water_evaporation_amount", "mm", _WATER, (-150, 150), (-50, 50), True),
    ("water_potential_evaporation_amount", "mm", _WATER, (-150, 150), (-50, 50), True),
    ("volume_fraction_of_condensed_water_in_soil", "m3 m-3", _RATIO, (-0.02, 1), (-0.02, 1), False),
    (
        "atmosphere_convective_available_potential_energy",
        "J kg-1",
        ("specific energy",),
        (-10, 12000),
        (-1, 6000),
        False,
    ),
    ("atmosphere_mass_content_of_water_vapor", "kg m-2", _DEPTH, (-0.1, 120), (0.01, 90), False),
    ("atmosphere_boundary_layer_thickness", "m", _LENGTH, (0, 9000), (5, 6000), False),
    ("visibility_in_air", "m", _LENGTH, (-1, 400_000), (-1, 400_000), False),
)
"""Name, canonical unit, accepted kinds of units, range of all values, range of the median, and True for amounts.

Radiation is a mean over the step; precipitation, sunshine and evaporation are totals of the step.
"""
QUANTITIES = {
    name: Quantity(name, units, accepted, *every, *middle, is_sum)
    for name, units, accepted, every, middle, is_sum in _ROWS
}
SAME_AS = {
    "air_pressure_at_sea_level": "air_pressure_at_mean_sea_level",
    "convective_available_potential_energy": "atmosphere_convective_available_potential_energy",
    "convective_precipitation_flux": "convective_precipitation_amount",
    "integral_wrt_time_of_surface_downwelling_shortwave_flux_in_air": "surface_downwelling_shortwave_flux_in_air",
    "integral_of_surface_downwelling_shortwave_flux_in_air_wrt_time": "surface_downwelling_shortwave_flux_in_air",
    "lwe_convective_precipitation_rate": "convective_precipitation_amount",
    "lwe_large_scale_precipitation_rate": "stratiform_precipitation_amount",
    "lwe_precipitation_rate": "precipitation_amount",
    "lwe_snowfall_rate": "snowfall_amount",
    "lwe_thickness_of_convective_precipitation_amount": "convective_precipitation_amount",
    "lwe_thickness_of_precipitation_amount": "precipitation_amount",
    "lwe_thickness_of_snowfall_amount": "snowfall_amount",
    "lwe_thickness_of_stratiform_precipitation_amount": "stratiform_precipitation_amount",
    "lwe_thickness_of_surface_snow_amount": "surface_snow_amount",
    "lwe_thickness_of_water_evaporation_amount": "water_evaporation_amount",
    "atmosphere_water_vapor_content": "atmosphere_mass_content_of_water_vapor",
    "precipitation_flux": "precipitation_amount",
    "rainfall_flux": "rainfall_amount",
    "rainfall_rate": "rainfall_amount",
    "snowfall_flux": "snowfall_amount",
    "stratiform_precipitation_flux": "stratiform_precipitation_amount",
    "surface_downwelling_shortwave_flux": "surface_downwelling_shortwave_flux_in_air",
    "surface_downwelling_longwave_flux": "surface_downwelling_longwave_flux_in_air",
    "thickness_of_rainfall_amount": "rainfall_amount",
    "water_evaporation_flux": "water_evaporation_amount",
    "water_evapotranspiration_flux": "water_evaporation_amount",
    "water_potential_evaporation_flux": "water_potential_evaporation_amount",
}
"""Other CF standard names, older names and rates, and the quantity of the list that they become."""
CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


@dataclass(frozen=True)
class Meaning:
    """A quantity, with the statistic or the clock hour that a variable holds of it."""

    quantity: Quantity
    statistic: Statistic | None = None
    """Extreme within the step, such as the daily maximum; None for a value, a mean or an amount."""
    clock: str | None = None
    """Local time of day of a daily value, such as `09:00`; None if a value belongs to its own time."""
    part: Part | None = None
    """Sine or cosine of a direction; None for the quantity itself."""

    @property
    def detail(self) -> str:
        """All but the name of the quantity, such as `maximum` or `09:00 sine`; empty without any."""
        return " ".join(filter(None, (self.statistic, self.clock, self.part)))

    def __str__(self) -> str:
        return f"{self.quantity.name} {self.detail}".strip()


def meaning_of(text: str) -> Meaning | None:
    """The meaning that a text names; None for `none`.

    The text is a CF standard name of the list, then optionally `maximum` or `minimum`, a clock time such as `09:00`, and
    `sine` or `cosine`: `air_temperature maximum`, `wind_from_direction 09:00`.

    Raises:
        ValueError: the text names no quantity of the list; the message holds the nearest names.
    """
    if text == NONE:
        return None
    name, *details = text.split()[:5] or [""]
    if (known := SAME_AS.get(name, name)) not in QUANTITIES:
        raise ValueError(f"{name[:100]!r} is not a quantity that llueve knows; {_nearest(name)}")
    found: dict[str, str] = {}
    for detail in details:
        kind = next((kind for kind, fits in _DETAILS.items() if fits(detail)), None)
        if kind is None or kind in found:
            raise ValueError(
                f"{detail[:40]!r} after {name}: expected maximum, minimum, a time such as 09:00, sine or cosine, each once"
            )
        found[kind] = detail
    if "part" in found and QUANTITIES[known].accepted != _ANGLE:
        raise ValueError(f"{found['part']!r} after {name}: only a direction has a sine and a cosine")
    return Meaning(QUANTITIES[known], **found)  # type: ignore[arg-type]


_DETAILS: dict[str, Callable[[str], bool]] = {
    "statistic": lambda text: text in get_args(Statistic),
    "clock": lambda text: CLOCK.fullmatch(text) is not None,
    "part": lambda text: text in get_args(Part),
}


def _nearest(name: str) -> str:
    """Names near to a wrong one, as words of a message."""
    known = [*QUANTITIES, *SAME_AS, NONE]
    words = {word for each in QUANTITIES for word in each.split("_") if len(word) > 3}
    given = [word for word in re.split(r"[^a-z]+", name.lower()[:100]) if len(word) > 3]
    meant = {near for word in given for near in difflib.get_close_matches(word, words, n=1, cutoff=0.75)}
    close = difflib.get_close_matches(name[:100], known, n=3, cutoff=0.7)
    close += sorted(QUANTITIES, key=lambda each: -len(meant & set(each.split("_")))) if meant else []
    close = [each for each in close if each in SAME_AS or each == NONE or not meant or meant & set(each.split("_"))]
    near = list(dict.fromkeys(close))[:5]
    return f"near names: {', '.join(near)}" if near else f"some of them: {', '.join([*QUANTITIES][:5])}, or {NONE}"
