"""Forecast rain without training: a record of the weather of a place goes through the pre-trained weather encoder.

Shapes: S sites, T times, Q quantities of the encoder, L steps of a window, B windows, R amounts of rain.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from rich.console import Console

from llueve.config.model_keys import DAY_HOURS
from llueve.errors import DataError, UsageError
from llueve.model.checkpoints.climate_zone import ClimateZone, zone_of
from llueve.model.checkpoints.locate import EMBEDDED
from llueve.model.checkpoints.pretrained import read_pretrained
from llueve.model.checkpoints.zone_skill import ZoneSkill, read_zones, sigmoid
from llueve.model.classifier import TimerXLForClassification
from llueve.model.heads import DayHead
from llueve.model.patches import PatchEncoder
from llueve.model.weather_xl import DAYS, RAIN_MM
from llueve.panel import FloatArray, minute, site_positions
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES, RAIN
from llueve.samples.encoder_inputs import (
    FEWEST_QUANTITIES,
    SHORT_DAYS,
    encoder_inputs,
    encoder_problem,
    fit_places,
    place_facts,
)

logger = logging.getLogger(__name__)

YEAR_DAYS = 330
"""Days of the year that a record needs so that mean and spread are those of a whole year."""
LEAST_NEWEST_DAY, LEAST_WEEK = 0.5, 0.3
"""Smallest share of the steps of the newest day, and of the week, that have enough quantities."""
SEASON_DAYS = 45
"""Days before and after the date, in each year of the record, that count as the same time of year."""
FEWEST_USUAL_DAYS = 30
"""Days of rain at this time of year from which the usual frequency of an amount is taken."""
AT_A_TIME = 256
MOST_REASONS = 3
"""Largest number of sites whose refusal a message explains."""
NAMES = "name the columns such as temperature [degC], humidity [%], pressure [hPa], wind_speed [m/s], rain [mm]"
TRAIN = "train a model on the record of the place instead: `llueve data openmeteo`, then `llueve train`"
NO_KEYS = ". A forecast without training has no configuration: change the table where a key is named"
NO_ZONE = (
    "the position is unknown, so the probabilities are not recalibrated and their skill is not verified: give the "
    "position of the site"
)
_RAIN = ENCODER_QUANTITIES.index(RAIN)


class UsualFrom(StrEnum):
    """Origin of the usual frequency of an amount of rain."""

    RECORD = "record"
    """The place's own record, at the same time of year."""
    ZONE = "zone"
    """Held-out sites of the climate zone, all year."""


@dataclass(frozen=True)
class AmountForecast:
    """The forecast of one amount of rain: at least `amount_mm` in the 24 hours after the issue time."""

    amount_mm: float
    logit: float
    """The encoder's output before the recalibration."""
    probability: float | None
    """Never larger than that of a smaller amount. None if the forecasts of this amount were not better than climatology at the
    held-out sites of the zone."""
    usual: float | None
    """Share of the days on which the amount is usually reached; None if it is unknown."""
    skill: float | None
    """Brier skill score over climatology at the held-out sites of the zone; None without a zone."""


@dataclass(frozen=True)
class PlaceForecast:
    """The forecast of one site, or the reason why there is none."""

    site: str
    latitude: float | None
    longitude: float | None
    """Degrees north and east; None if unknown."""
    issued: str | None
    """UTC, ISO 8601: the newest time with observations. The forecast is for the 24 hours after it."""
    record_days: float
    """Days of the record with observations."""
    quantities: tuple[str, ...]
    """Quantities in the last week of the record."""
    refused: str | None = None
    """Reason why there is no forecast."""
    zone: ClimateZone | None = None
    verified_places: int = 0
    """Held-out sites of the zone at which the skill was verified."""
    share_positive: float | None = None
    """Share of these sites with a positive skill."""
    uncertain: tuple[str, ...] = ()
    """Reasons why the forecast may be worse than the verified skill."""
    usual_from: UsualFrom | None = None
    amounts: tuple[AmountForecast, ...] = ()
    """One for each amount of `RAIN_MM`; empty if refused."""

    def as_dict(self) -> dict[str, Any]:
        """The forecast for JSON."""
        issued = None if self.issued is None else f"{self.issued}Z"
        return {**vars(self), "issued": issued, "amounts": [vars(each) for each in self.amounts]}


def forecast(
    *, latitude: float | None = None, longitude: float | None = None, table: str | None = None, cache: bool = True
) -> list[PlaceForecast]:
    """Forecast the rain of the next 24 hours, without training.

    Args:
        latitude, longitude: degrees north, −90…90, and east, −180…360. Without a table, the weather of the place is
            downloaded from Open-Meteo; with one, this is the position of its site.
        table: path of a table or of an Open-Meteo answer with at least 60 days of weather.
        cache: keep the downloaded record in the user's cache folder for the rest of the day.

    Returns:
        One forecast for each site; a site without one has the reason in `refused`.

    Raises:
        UsageError: neither a table nor a position is given, or the position is impossible.
        DataError: the data cannot be read or downloaded, or no site can be forecast.
        CheckpointError: the weights of the package or their model card are damaged.
    """
    position = _position(latitude, longitude)
    if table is not None:
        from llueve.sources.tables.plain_table import read_plain_table

        panel = read_plain_table(table)
        if position is not None:
            panel = _placed(panel, position, table)
    elif position is None:
        raise UsageError("give the latitude and the longitude of a place, or a table with --input")
    else:
        from llueve.sources.downloads.recent_weather import cache_folder, recent_panel

        panel = recent_panel(*position, cache_folder() if cache else None, Console(stderr=True, emoji=False))
    for finding in panel.attrs["findings"]:
        if finding.severity == "warning":
            logger.warning("%s%s", finding.message, "" if table is None else NO_KEYS)
    return forecast_panel(panel)


def forecast_panel(panel: xr.Dataset, zones: Mapping[ClimateZone, ZoneSkill] | None = None) -> list[PlaceForecast]:
    """Forecast the amounts of rain in the 24 hours after the newest complete week of each site of a panel.

    Args:
        panel: a panel whose variables have their quantities. Mean and spread of each site come from its whole record.
        zones: verified zones; by default those of the model card in the package.

    Raises:
        DataError: the encoder cannot read the panel, or no site can be forecast. CheckpointError: as `forecast`.
    """
    if problem := encoder_problem(panel, NAMES):
        raise DataError(f"{panel.attrs.get('source', 'the data')}: {problem}")
    step = int(panel.attrs["step_hours"])
    inputs_STQ = encoder_inputs(panel, fit_places(panel, panel.sizes["time"]))
    times_T = panel["time"].values
    position_S2 = site_positions(panel)
    if zones is None:
        zones = {} if position_S2 is None else read_zones()
    found = [
        _described(str(name), inputs_TQ, times_T, step, None if position_S2 is None else position_S2[site], zones)
        for site, (name, inputs_TQ) in enumerate(zip(panel["site"].values, inputs_STQ, strict=True))
    ]
    good = [site for site, each in enumerate(found) if each.refused is None]
    if not good:
        reasons = [f"{each.site}: {each.refused}" for each in found[:MOST_REASONS]]
        more = f"; and {len(found) - len(reasons)} more sites" if len(found) > len(reasons) else ""
        raise DataError(f"no forecast: {'; '.join(reasons)}{more}")
    end_B = np.array([np.searchsorted(times_T, np.datetime64(found[site].issued)) for site in good])
    window = np.arange(1 - DAYS * DAY_HOURS // step, 1)
    at_BL = end_B[:, None] + window
    values_BLQ = inputs_STQ[np.array(good)[:, None], at_BL]
    values_BLQ[at_BL < 0] = np.nan  # before the first time; a negative index is one from the end
    unknown_B2 = np.full((len(good), 2), np.nan)
    place_BG = place_facts(times_T[end_B], *(unknown_B2 if position_S2 is None else position_S2[good]).T)
    for site, logits_R in zip(good, _logits(values_BLQ, place_BG, step), strict=True):
        rain_T = np.expm1(inputs_STQ[site, :, _RAIN].astype(np.float64))
        found[site] = _with_amounts(found[site], logits_R.tolist(), zones, rain_T, times_T, step)
    return found


def _position(latitude: float | None, longitude: float | None) -> tuple[float, float] | None:
    """The position with a longitude of −180…180; None if there is none."""
    if latitude is None and longitude is None:
        return None
    if latitude is None or longitude is None:
        raise UsageError("a position is a latitude and a longitude; give the other one, too")
    if not -90 <= latitude <= 90 or not -180 <= longitude <= 360:
        raise UsageError(
            f"position {latitude:g}, {longitude:g}: expected a latitude in −90…90, a longitude in −180…360"
        )
    return latitude, longitude - 360 if longitude > 180 else longitude


def _placed(panel: xr.Dataset, position: tuple[float, float], table: str) -> xr.Dataset:
    """The panel of one site with its position."""
    if (sites := panel.sizes["site"]) > 1:
        raise UsageError(
            f"{table}: has {sites} sites, and a latitude and a longitude are the position of one; give the table the columns "
            "latitude and longitude instead"
        )
    return panel.assign_coords(
        {name: ("site", [at]) for name, at in zip(("latitude", "longitude"), position, strict=True)}
    )


def _described(
    name: str,
    inputs_TQ: FloatArray,
    times_T: NDArray[np.datetime64],
    step: int,
    position_2: NDArray[np.float64] | None,
    zones: Mapping[ClimateZone, ZoneSkill],
) -> PlaceForecast:
    """The forecast of one site without its probabilities, or its refusal."""
    seen_TQ = ~np.isnan(inputs_TQ)
    count_T = seen_TQ.sum(axis=-1)
    observed_T, enough_T = count_T > 0, count_T >= FEWEST_QUANTITIES
    days = float(observed_T.sum() * step / DAY_HOURS)
    latitude, longitude = (None, None) if position_2 is None else position_2.tolist()
    ends = np.flatnonzero(enough_T)
    place = PlaceForecast(name, latitude, longitude, None, days, ())
    if days < SHORT_DAYS:
        return replace(
            place,
            refused=f"the record has {days:.0f} days with observations, and mean and spread of the place need at least "
            f"{SHORT_DAYS}; give a longer record",
        )
    if not len(ends):
        return replace(
            place, refused=f"no time has {FEWEST_QUANTITIES} quantities that the weather encoder knows; {NAMES}"
        )
    end = int(ends[-1])
    day, week = DAY_HOURS // step, DAYS * DAY_HOURS // step
    issued = f"{np.datetime_as_string(times_T[end], unit='s')}"
    quantities = tuple(np.array(ENCODER_QUANTITIES)[seen_TQ[max(0, end + 1 - week) : end + 1].any(axis=0)].tolist())
    place = replace(place, issued=issued, quantities=quantities)
    for steps, least, period in ((day, LEAST_NEWEST_DAY, "day"), (week, LEAST_WEEK, "week")):
        if (share := enough_T[max(0, end + 1 - steps) : end + 1].sum() / steps) < least:
            found = f"the {period} up to {minute(times_T[end])} has {FEWEST_QUANTITIES} quantities at {share:.0%} of its times"
            more = f"expected at least {least:.0%}; give a more complete record of the last {period}"
            return replace(place, refused=f"{found}, {more}")
    uncertain = []
    of_year = len(np.unique(_day_of_year(times_T[observed_T]).astype(int)))
    if of_year < YEAR_DAYS:
        uncertain.append(
            f"the record covers {of_year} days of the year, so the place is compared with a part of its year; a year or "
            "more is better"
        )
    if step > 1:
        uncertain.append(f"the values are {step} h apart, and the skill was verified with hourly ones")
    if RAIN not in quantities:
        never = "the record has none, or its column has no unit, as in rain [mm]"
        uncertain.append("rain is unknown in the last week" if seen_TQ[:, _RAIN].any() else f"rain is unknown: {never}")
    if latitude is None:
        return replace(place, uncertain=(*uncertain, NO_ZONE))
    zone = zone_of(latitude)
    skill = zones.get(zone)
    problem = f"the encoder was not verified at any {zone} site" if skill is None else skill.problem()
    if skill is None or problem is not None:
        return replace(place, zone=zone, refused=f"{problem}; {TRAIN}")
    verified = replace(place, zone=zone, verified_places=skill.places, share_positive=skill.share_positive)
    return replace(verified, uncertain=tuple(uncertain))


def _with_amounts(
    place: PlaceForecast,
    logits_R: Sequence[float],
    zones: Mapping[ClimateZone, ZoneSkill],
    rain_T: NDArray[np.float64],
    times_T: NDArray[np.datetime64],
    step: int,
) -> PlaceForecast:
    """The forecast with recalibrated probabilities, or with those of the encoder if the zone is unknown."""
    usual = _usual(rain_T, times_T, np.datetime64(place.issued), step)
    skill = None if place.zone is None else zones[place.zone]
    origin = UsualFrom.RECORD if usual else None if skill is None else UsualFrom.ZONE
    amounts, largest = [], 1.0
    for number, (amount, logit) in enumerate(zip(RAIN_MM, logits_R, strict=True)):
        probability = None
        if skill is None or skill.is_skilful(number):
            own = sigmoid(logit) if skill is None else skill.probability(number, logit)
            probability = largest = min(own, largest)
        expected = usual[number] if usual else None if skill is None else skill.frequency[number]
        score = None if skill is None else skill.bss_calibrated[number]
        amounts.append(AmountForecast(amount, logit, probability, expected, score))
    return replace(place, usual_from=origin, amounts=tuple(amounts))


def _logits(values_BLQ: FloatArray, place_BG: FloatArray, step: int) -> FloatArray:
    """Logits of each amount of rain in the 24 hours after each window, (B, R)."""
    model = TimerXLForClassification(_encoder(), 2, DayHead(), instance_norm=False, step_hours=step).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(values_BLQ), AT_A_TIME):
            x_BLC = torch.from_numpy(values_BLQ[start : start + AT_A_TIME])
            observed_BLC = ~torch.isnan(x_BLC)
            facts_BG = torch.from_numpy(place_BG[start : start + AT_A_TIME])
            x_BLC = torch.where(observed_BLC, x_BLC, 0.0)
            days = model.answer(model.pool(x_BLC, observed_BLC, facts_BG)).days
            assert days is not None
            parts.append(days.rain_BNR[:, -1].numpy())
    return np.concatenate(parts)


@functools.cache
def _encoder() -> PatchEncoder:
    """The weather encoder of the package."""
    return read_pretrained(EMBEDDED).build(dropout=0.0, positions="time")


def _usual(
    rain_T: NDArray[np.float64], times_T: NDArray[np.datetime64], issued: np.datetime64, step: int
) -> list[float] | None:
    """Share of the record's 24-hour sums at this time of year that reach each amount; None with too few sums."""
    steps = DAY_HOURS // step
    if len(rain_T) <= steps:
        return None
    following = sliding_window_view(rain_T[1:], steps).sum(axis=-1)
    apart = _day_of_year(times_T[: len(following)]) - _day_of_year(np.array([issued]))
    in_season = np.abs((apart + 182.62) % 365.2425 - 182.62) <= SEASON_DAYS
    sums = following[in_season & np.isfinite(following)]
    if len(sums) < FEWEST_USUAL_DAYS * steps:
        return None
    # A float32 amount is not exactly the decimal: a sum within a thousandth of a millimetre reaches it.
    return [float((sums >= amount - 1e-3).mean()) for amount in RAIN_MM]


def _day_of_year(times_X: NDArray[np.datetime64]) -> NDArray[np.float64]:
    """Days since the beginning of the year, 0…366."""
    return np.asarray((times_X - times_X.astype("datetime64[Y]")) / np.timedelta64(1, "D"), np.float64)
