"""The period of accumulated values: the hour that ends at their time, or all hours since 00 UTC.

ERA5 has the former, ERA5-Land the latter: its value at 00 UTC is the total of the day before. The decision comes from the
metadata of the files and from the course of the values; if they disagree, the files are refused. Shapes: T times, S sites.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from llueve.errors import DataError, listed
from llueve.sources.grids.fields import Field
from llueve.sources.grids.times import Floats, Seconds, shown

Accumulation = Literal["previous_step", "from_00utc"]

PRECIPITATION = {
    "tp", "cp", "lsp", "sf", "csf", "lsf", "total_precipitation", "convective_precipitation",
    "large_scale_precipitation", "snowfall", "convective_snowfall", "large_scale_snowfall",
}  # fmt: skip
PRECIPITATION_NAMES = re.compile(
    r"((total|convective|large[- ]scale|stratiform|daily|accumulated|total accumulated) )?(precipitation|rainfall|snowfall)"
    r"( amount| sum| accumulation)?|((lwe_)?thickness_of_)?(convective_|large_scale_|stratiform_)?"
    r"(precipitation|rainfall|snowfall)_amount"
)
"""The `long_name` and `standard_name` of depths of precipitation; those of a rate or flux do not match."""
RADIATION = {
    "ssrd", "strd", "tisr", "fdir", "cdir", "ssrdc", "strdc", "uvb", "surface_solar_radiation_downwards",
    "surface_thermal_radiation_downwards", "toa_incident_solar_radiation", "total_sky_direct_solar_radiation_at_surface",
}  # fmt: skip
"""Rises in the morning and falls at night: its course may resemble a sum since 00 UTC."""
NEVER_NEGATIVE = PRECIPITATION | RADIATION | {
    "ro", "sro", "ssro", "smlt", "runoff", "surface_runoff", "sub_surface_runoff", "snowmelt",
}  # fmt: skip
ACCUMULATED = NEVER_NEGATIVE | {
    "e", "pev", "es", "ssr", "str", "tsr", "ttr", "ssrc", "strc", "tsrc", "ttrc", "slhf", "sshf", "ewss", "nsss", "lgws",
    "mgws", "gwd", "bld", "lspf", "evabs", "evaow", "evatc", "evavt", "evaporation", "potential_evaporation",
    "surface_latent_heat_flux", "surface_sensible_heat_flux", "surface_net_solar_radiation", "surface_net_thermal_radiation",
}  # fmt: skip
"""ECMWF's short names, and the long ones of analysis-ready stores: for files without `stepType`."""

DEPTHS = {"m": 1000.0, "m of water equivalent": 1000.0, "mm": 1.0, "kg m**-2": 1.0, "kg m-2": 1.0, "cm": 10.0}
"""Millimetres of water in one unit of precipitation."""
NOISE_MM, NOISE_JOULE = 0.01, 360.0
"""Error of a packed sum: 0.01 mm, and a tenth of a watt over an hour."""
LAND_SPACING = 0.1
"""Spacing of the grid of ERA5-Land in degrees; ERA5 has 0.25, 0.5 or whole degrees."""
LAND_NAME = re.compile(r"era-?5[-_ ]?land|class l5")
ERA5_NAME = re.compile(r"era-?5-single-levels|class ea")
LEAST_RESETS, LEAST_RISES = 2, 6
"""Falls after 00 UTC, and rises inside a day, that show sums since 00 UTC."""
DAY = 86400


@dataclass(frozen=True)
class SumPeriod:
    """The period of the values of one variable."""

    kind: Accumulation
    hours: float
    """Hours of a value of the kind `previous_step`: 1, or 3 in the ensemble's mean."""
    reasons: str
    """The evidence, for messages."""


def is_precipitation(field: Field) -> bool:
    """True if the values are depths of rain or snow, by any name in the file."""
    names = [field.name.lower()]
    names += [str(field.attrs.get(key, "")).strip().lower() for key in ("long_name", "standard_name")]
    return field.short_name in PRECIPITATION or any(PRECIPITATION_NAMES.fullmatch(name) for name in names)


def is_accumulated(field: Field) -> bool:
    """True if the values are sums over time: by the file's `stepType` or `cell_methods`, else by the variable's name."""
    kind = str(field.attrs.get("GRIB_stepType", ""))
    if not kind and "time: sum" in str(field.attrs.get("cell_methods", "")):
        return True
    return kind == "accum" if kind else field.short_name in ACCUMULATED or is_precipitation(field)


def is_never_negative(field: Field) -> bool:
    """True if the values are sums that cannot be negative, such as rain and radiation, but not fluxes of either sign."""
    return is_accumulated(field) and (field.short_name in NEVER_NEGATIVE or is_precipitation(field))


def shows_period(field: Field) -> bool:
    """True if the course of the values shows their period, also for other variables of the same files."""
    return is_never_negative(field) and field.short_name not in RADIATION


def noise(field: Field, units: str | None) -> float:
    """Largest error of a packed sum, in the unit of the file."""
    floor = NOISE_MM / DEPTHS[units] if units in DEPTHS else NOISE_JOULE if units and "J" in units else 0.0
    return max(floor, field.packing_step)


def sum_period(
    setting: str,
    fields: list[Field],
    seconds: Seconds,
    mean_TS: Floats,
    tolerance: float,
    step: int,
    known: Mapping[str, SumPeriod],
) -> SumPeriod:
    """The period of the values of one variable.

    Args:
        setting: `data.accumulation`.
        fields: all fields of the variable.
        seconds, step: times of the panel, and seconds between them.
        mean_TS, tolerance: values of the variable, and the largest error of a packed sum.
        known: periods of rain and runoff, by the label of their file.

    Raises:
        DataError: files and values disagree, or neither shows the period and `data.accumulation` is not set.
    """
    name = fields[0].name
    by_files, hours, reasons = _period_in_files(fields)
    seen, evidence = None, ""
    if is_never_negative(fields[0]):
        seen, evidence = _period_in_values(seconds, mean_TS, tolerance, step, shows_period(fields[0]))
    sibling = next((known[field.label] for field in fields if field.label in known), None)
    if seen is None and sibling is not None:
        seen, evidence = sibling.kind, "rain or runoff in the same files has this period"
    reasons += [evidence] if seen else []
    if setting in ("previous_step", "from_00utc"):
        if setting == "from_00utc" and seen == "previous_step":
            raise DataError(f"{name}: data.accumulation is 'from_00utc', but {evidence}; remove that setting")
        by_messages = by_files == "from_00utc" and any("llueve_hours" in field.attrs for field in fields)
        if setting == "previous_step" and (by_messages or seen == "from_00utc"):
            raise DataError(
                f"{name}: data.accumulation is 'previous_step', but {'; '.join(reasons)}: each day's rain would count many "
                f"times; remove that setting. If each value does sum one step, set data.accumulation_hours.{name} to its hours"
            )
        doubt = f" (against it: {'; '.join(reasons)})" if {by_files, seen} - {setting, None} else ""
        kind: Accumulation = "previous_step" if setting == "previous_step" else "from_00utc"
        return SumPeriod(kind, hours, f"data.accumulation{doubt}")
    if by_files and seen and by_files != seen:
        raise DataError(
            f"{name}: {'; '.join(reasons)}: these disagree on the period of a value; set data.accumulation to 'previous_step' "
            "(the hour before) or 'from_00utc' (all since 00 UTC)"
        )
    decided = by_files or seen
    if decided is None:
        raise DataError(
            f"{name}: neither the files nor their values show whether a value sums one hour (ERA5) or all since 00 UTC "
            "(ERA5-Land); set data.accumulation to 'previous_step' or 'from_00utc'"
        )
    return SumPeriod(decided, hours, "; ".join(reasons))


def _period_in_files(fields: list[Field]) -> tuple[Accumulation | None, float, list[str]]:
    """The kind and the hours by the hours of GRIB messages, else by a product's name, else by the grid; and reasons."""
    kinds: dict[Accumulation, str] = {}
    covered = {3.0 if "stream-enda" in field.about else 1.0 for field in fields}
    for field in fields:
        if "llueve_hours" in field.attrs:
            hours = np.atleast_1d(field.attrs["llueve_hours"])
            if hours.max() > 1 and field.attrs["llueve_since_00utc"]:
                kinds["from_00utc"] = f"its GRIB messages begin at 00 UTC and cover up to {hours.max()} h"
            elif len(hours) == 1 and hours[0] > 0:
                kinds["previous_step"] = f"its GRIB messages cover {hours[0]} h each"
                covered = {float(hours[0])} if len(kinds) == 1 else covered
            else:
                raise DataError(
                    f"{field.label}: {field.name}: its messages cover {hours.min()} to {hours.max()} h since other times than "
                    "00 UTC, as forecasts do; download the reanalysis, or convert them to hourly sums"
                )
        elif LAND_NAME.search(field.about):
            kinds["from_00utc"] = "the files name ERA5-Land"
        elif ERA5_NAME.search(field.about):
            kinds["previous_step"] = "the files name ERA5"
        elif field.spacing == LAND_SPACING:
            kinds["from_00utc"] = "a grid of 0.1° is that of ERA5-Land"
        elif field.spacing is not None and field.spacing % 0.25 == 0:
            kinds["previous_step"] = f"a grid of {field.spacing:g}° is one of ERA5"
    if len(kinds) > 1:
        raise DataError(
            f"{fields[0].name}: {' but '.join(kinds.values())}: ERA5 and ERA5-Land together "
            f"({listed([field.label for field in fields])}); read them separately"
        )
    if len(covered) > 1:
        raise DataError(
            f"{fields[0].name}: sums over {listed(sorted(covered))} h in several files; read each separately"
        )
    return next(iter(kinds), None), covered.pop(), list(kinds.values())


def _period_in_values(
    seconds: Seconds, mean_TS: Floats, tolerance: float, step: int, by_rise: bool
) -> tuple[Accumulation | None, str]:
    """The kind that values without negative sums show, if any, and the reason.

    Sums since 00 UTC never fall inside a day, and fall after 00 UTC. Without `by_rise` only falls count, because radiation
    rises and falls with the sun.
    """
    if step * 4 > DAY:
        return None, ""
    adjacent = np.diff(seconds) == step
    after_midnight = seconds[:-1] % DAY == 0
    rise_TS = np.diff(mean_TS, axis=0)
    inside = rise_TS[adjacent & ~after_midnight]
    rises, falls = int((inside > tolerance).sum()), int((inside < -tolerance).sum())
    resets = int((rise_TS[adjacent & after_midnight] < -tolerance).sum())
    if by_rise and falls == 0 and rises >= LEAST_RISES and resets >= LEAST_RESETS:
        return "from_00utc", f"values rise {rises} times inside a day, never fall, and fall {resets} times after 00 UTC"
    if falls >= 3 and falls > rises / 20:
        return "previous_step", f"values fall {falls} times inside a day, which sums since 00 UTC cannot"
    return None, ""


def sums_over_steps(
    period: SumPeriod, field: Field, seconds: Seconds, mean_TS: Floats, tolerance: float, step: int
) -> tuple[float, Floats, int]:
    """The hours of each value, the values as sums over these hours, and the number of levelled falls inside a day.

    Sums since 00 UTC become differences; a difference is missing if the value before it is unknown.

    Raises:
        DataError: sums since 00 UTC fall inside a day, or their times of day allow no difference over one step.
    """
    if period.kind == "previous_step":
        return period.hours, mean_TS, 0
    clock = seconds % DAY
    if step % DAY == 0:  # one time of day: its value is the sum since the midnight before
        return (int(clock[0]) or DAY) / 3600, mean_TS, 0
    if DAY % step or (clock % step).any():
        times = listed([f"{c // 3600:02}:{c % 3600 // 60:02}" for c in np.unique(clock).tolist()])
        raise DataError(
            f"{field.name}: sums since 00 UTC, but the times of day are {times} without 00 UTC, so no value holds the rain "
            "before midnight; download 00 UTC too"
        )
    levelled = 0
    if is_never_negative(field):
        # The largest value of the day so far: its differences add up to the day's total despite packing noise. Negative
        # differences set to zero would keep every rise of the noise and drop every fall, which adds rain.
        risen_TS = pd.DataFrame(mean_TS).clip(lower=0.0).groupby((seconds - 1) // DAY).cummax().to_numpy()
        fall_TS = risen_TS - mean_TS
        if (fall_TS > tolerance).any():
            time, site = np.argwhere(fall_TS > tolerance)[0]
            raise DataError(
                f"{field.name}: sums since 00 UTC cannot fall inside a day, but do {(fall_TS > tolerance).sum()} times, first "
                f"by {fall_TS[time, site]:g} at {shown(seconds[time])}; download that day again, or set data.accumulation to "
                "'previous_step' if every value sums one hour"
            )
        mean_TS, levelled = risen_TS, int((fall_TS > 0).sum())
    before_TS = np.vstack([np.full((1, mean_TS.shape[1]), np.nan), mean_TS[:-1]])
    before_TS[np.r_[True, np.diff(seconds) != step]] = np.nan
    # The value at 00 UTC belongs to the day before: the next value starts a new sum.
    before_TS[clock == step] = 0.0
    return step / 3600, mean_TS - before_TS, levelled
