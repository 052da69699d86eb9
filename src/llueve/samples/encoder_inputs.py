"""Inputs of the weather encoder: the quantities that it knows, in units of each place's own climate.

Shapes: S sites, T times, Q quantities of the encoder, G facts of place and time.

A quantity is centred by the mean of its place and divided by the spread there, so that the encoder sees what is unusual at
any place. Rain is log(1 + mm) everywhere. For the sites of a training both numbers come from the training period alone.
"""

import logging
from collections.abc import Sequence
from typing import Annotated, cast

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from llueve.config import Section
from llueve.errors import listed
from llueve.panel import FloatArray, known_quantities
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES, RAIN
from llueve.quantities.vocabulary import SEA_LEVEL, SURFACE
from llueve.samples.canonical import canonical

logger = logging.getLogger(__name__)

LEAST_SPREAD = {
    "air_temperature": 2.0, "dew_point_temperature": 2.0, "relative_humidity": 5.0, "surface_air_pressure": 1.0,
    "air_pressure_at_mean_sea_level": 1.0, "eastward_wind": 0.5, "northward_wind": 0.5, "wind_speed": 0.5,
    "wind_speed_of_gust": 1.0, "cloud_area_fraction": 10.0, "surface_downwelling_shortwave_flux_in_air": 50.0,
}  # fmt: skip
"""Smallest standard deviation by which a quantity is divided, in its unit."""
MOST_SPREADS = 12.0
"""Largest distance from the mean of a place, in its standard deviations; beyond it a value is limited."""
SHORT_DAYS = 60
"""Days of record below which mean and spread of a place are uncertain."""
PRESSURES = (SURFACE, SEA_LEVEL)
HOURS_PER_DEGREE = 24 / 360
FEWEST_QUANTITIES = 3
"""Quantities that the encoder needs at least."""
STEP_HOURS = (1, 2, 3, 4, 6)
"""Steps of data in hours that the encoder can read."""

Number = Annotated[float, Field(ge=-1e9, le=1e9)]


class PlaceScale(Section):
    """Mean and spread of each quantity at one place, in the order of the encoder; None where it was never observed."""

    name: str
    mean: list[Number | None] = Field(min_length=len(ENCODER_QUANTITIES), max_length=len(ENCODER_QUANTITIES))
    spread: list[Annotated[float, Field(ge=1e-3, le=1e9)] | None] = Field(
        min_length=len(ENCODER_QUANTITIES), max_length=len(ENCODER_QUANTITIES)
    )


def mean_and_spread(quantity: str, known: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation of the known values of a quantity at one place, the latter at least `LEAST_SPREAD`."""
    if quantity == RAIN:
        return 0.0, 1.0
    return float(known.mean()), max(float(known.std()), LEAST_SPREAD[quantity])


def encoder_values(quantity: str, values: NDArray[np.float64], mean: float, spread: float) -> NDArray[np.float64]:
    """A quantity in the units of the encoder: less the mean of its place, over its spread; rain as log(1 + mm)."""
    if quantity == RAIN:
        return np.log1p(np.maximum(values, 0.0))
    return np.clip((values - mean) / spread, -MOST_SPREADS, MOST_SPREADS)


def fit_places(panel: xr.Dataset, training_rows: int) -> list[PlaceScale]:
    """Mean and spread of each quantity at each site of a panel, from its first `training_rows` times."""
    cube_STQ = _quantities(panel)[:, :training_rows]
    return [_place(str(name), values_TQ) for name, values_TQ in zip(panel["site"].values, cube_STQ, strict=True)]


def encoder_inputs(panel: xr.Dataset, trained: Sequence[PlaceScale]) -> FloatArray:
    """The quantities of a panel in the units of the encoder, (S, T, Q); NaN where unknown.

    A site that is not among `trained` is scaled by its own record, which is logged.
    """
    cube_STQ, known = _quantities(panel), {place.name: place for place in trained}
    scaled_STQ = np.full(cube_STQ.shape, np.nan, np.float32)
    new = [str(name) for name in panel["site"].values if str(name) not in known]
    if new:
        days = cube_STQ.shape[1] * float(panel.attrs["step_hours"]) / 24
        short = f", which is short: {days:.0f} days" if days < SHORT_DAYS else ""
        logger.warning(
            "%d site(s) were not in the training; their values are compared with their own record%s: %s",
            len(new),
            short,
            listed(new),
        )
    for site, name in enumerate(panel["site"].values):
        place = known.get(str(name)) or _place(str(name), cube_STQ[site])
        for at, quantity in enumerate(ENCODER_QUANTITIES):
            mean, spread = place.mean[at], place.spread[at]
            if mean is not None and spread is not None:
                scaled_STQ[site, :, at] = encoder_values(quantity, cube_STQ[site, :, at], mean, spread)
    return scaled_STQ


def require_day_steps(step_hours: float) -> None:
    """Raise ValueError unless the encoder can read data with such steps."""
    if step_hours not in STEP_HOURS:
        steps = ", ".join(map(str, STEP_HOURS))
        raise ValueError(f"the weather encoder reads steps of {steps} hours, and a step has {step_hours:g} h")


def encoder_problem(panel: xr.Dataset, advice: str = "name the others in data.quantities") -> str | None:
    """Reason why the weather encoder cannot read a panel, and advice on missing quantities; None if it can."""
    try:
        require_day_steps(float(panel.attrs["step_hours"]))
    except ValueError as error:
        return str(error)
    found = list(_known(panel))
    if len(found) < FEWEST_QUANTITIES:
        names = listed(found, len(ENCODER_QUANTITIES)) or "none"
        return (
            f"the weather encoder needs at least {FEWEST_QUANTITIES} of {listed(ENCODER_QUANTITIES, 12)}; found {names}: "
            f"{advice}"
        )
    return None


def place_facts(
    times_T: NDArray[np.datetime64], latitude_T: NDArray[np.float64], longitude_T: NDArray[np.float64]
) -> FloatArray:
    """Facts of place and time, (T, G): sine and cosine of the day of the year, of the solar hour, and of the latitude.

    Both are zero for an unknown coordinate, NaN. The solar hour is UTC plus 24 hours for each 360° of longitude.
    """
    day_T = (times_T - times_T.astype("datetime64[Y]")) / np.timedelta64(1, "D")
    hour_T = (times_T - times_T.astype("datetime64[D]")) / np.timedelta64(1, "h") + longitude_T * HOURS_PER_DEGREE
    angles = (2 * np.pi * day_T / 365.2425, 2 * np.pi * hour_T / 24, np.deg2rad(latitude_T))
    facts_TG = np.stack([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=-1)
    return cast(FloatArray, np.where(np.isnan(facts_TG), 0.0, facts_TG).astype(np.float32))


def _quantities(panel: xr.Dataset) -> NDArray[np.float64]:
    """The quantities of a panel in their units, (S, T, Q); NaN where unknown."""
    found = _known(panel)
    missing_ST = np.full((panel.sizes["site"], panel.sizes["time"]), np.nan)
    return np.stack(
        [found[name].values.astype(np.float64) if name in found else missing_ST for name in ENCODER_QUANTITIES],
        axis=-1,
    )


def _known(panel: xr.Dataset) -> dict[str, xr.DataArray]:
    """The quantities of a panel that the encoder reads, in their units.

    They are derived as in its corpus. A pressure is not derived from the other one: the encoder would take two versions of one
    measurement for two.
    """
    measured = {known.meaning.quantity.name for known in known_quantities(panel).values()}
    found = canonical(panel, ENCODER_QUANTITIES)
    return {
        name: found[name]
        for name in ENCODER_QUANTITIES
        if name in found and (name not in PRESSURES or name in measured)
    }


def _place(name: str, values_TQ: NDArray[np.float64]) -> PlaceScale:
    pairs: list[tuple[float | None, float | None]] = []
    for quantity, values_T in zip(ENCODER_QUANTITIES, values_TQ.T, strict=True):
        known = values_T[np.isfinite(values_T)]
        pairs.append(mean_and_spread(quantity, known) if len(known) else (None, None))
    return PlaceScale(name=name, mean=[mean for mean, _ in pairs], spread=[spread for _, spread in pairs])
