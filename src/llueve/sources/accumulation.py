"""What an accumulated value sums: the hour that ends at its time, or everything since 00 UTC.

ERA5 gives the former, ERA5-Land the latter: its value at 00 UTC is the total of the day before. Which of them a file holds
is told by what it says of itself and by how its values rise and fall, never by one alone where they disagree.
Shapes: T times, S sites.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llueve.errors import DataError, listed
from llueve.panel import Finding
from llueve.sources.gridded import Field
from llueve.sources.timeline import Floats, Seconds

Kind = Literal["previous_step", "from_00utc"]

PRECIPITATION = {
    "tp", "cp", "lsp", "sf", "csf", "lsf", "total_precipitation", "convective_precipitation",
    "large_scale_precipitation", "snowfall", "convective_snowfall", "large_scale_snowfall",
}  # fmt: skip
PRECIPITATION_NAMES = re.compile(
    r"((total|convective|large[- ]scale|stratiform|daily|accumulated|total accumulated) )?(precipitation|rainfall|snowfall)"
    r"( amount| sum| accumulation)?|((lwe_)?thickness_of_)?(convective_|large_scale_|stratiform_)?"
    r"(precipitation|rainfall|snowfall)_amount"
)
"""The `long_name` and `standard_name` of depths of precipitation; a rate or flux is none."""
RADIATION = {
    "ssrd", "strd", "tisr", "fdir", "cdir", "ssrdc", "strdc", "uvb", "surface_solar_radiation_downwards",
    "surface_thermal_radiation_downwards", "toa_incident_solar_radiation", "total_sky_direct_solar_radiation_at_surface",
}  # fmt: skip
"""Rises from the morning on and falls at night by itself, so that its course may look like a sum since 00 UTC."""
NEVER_NEGATIVE = PRECIPITATION | RADIATION | {
    "ro", "sro", "ssro", "smlt", "runoff", "surface_runoff", "sub_surface_runoff", "snowmelt",
}  # fmt: skip
ACCUMULATED = NEVER_NEGATIVE | {
    "e", "pev", "es", "ssr", "str", "tsr", "ttr", "ssrc", "strc", "tsrc", "ttrc", "slhf", "sshf", "ewss", "nsss", "lgws",
    "mgws", "gwd", "bld", "lspf", "evabs", "evaow", "evatc", "evavt", "evaporation", "potential_evaporation",
    "surface_latent_heat_flux", "surface_sensible_heat_flux", "surface_net_solar_radiation", "surface_net_thermal_radiation",
}  # fmt: skip
"""ECMWF's short names, and the long ones of analysis-ready stores: for files that do not say `stepType`."""

DEPTHS = {"m": 1000.0, "m of water equivalent": 1000.0, "mm": 1.0, "kg m**-2": 1.0, "kg m-2": 1.0, "cm": 10.0}
"""Millimetres of water in one unit of precipitation."""
NOISE_MM, NOISE_JOULE = 0.01, 360.0
"""How far packing leaves a sum from its true value: 0.01 mm, and a tenth of a watt over an hour."""
LAND_SPACING = 0.1
"""Degrees: the grid of ERA5-Land; ERA5 has 0.25, 0.5 or whole ones."""
LAND_NAME = re.compile(r"era-?5[-_ ]?land|class l5")
ERA5_NAME = re.compile(r"era-?5-single-levels|class ea")
LEAST_RESETS, LEAST_RISES = 2, 6
DAY = 86400


@dataclass(frozen=True)
class Summed:
    """A decision, with what it stands on."""

    kind: Kind
    hours: float
    """Hours of a value that sums the time before it: 1, in the ensemble's mean 3."""
    reasons: str


def is_precipitation(field: Field) -> bool:
    """Whether the values are depths of rain or snow, by any name that the file gives them."""
    names = [field.name.lower()]
    names += [str(field.attrs.get(key, "")).strip().lower() for key in ("long_name", "standard_name")]
    return field.short_name in PRECIPITATION or any(PRECIPITATION_NAMES.fullmatch(name) for name in names)


def is_accumulated(field: Field) -> bool:
    """Whether the values are sums over time: by the file's own word, else by the variable's name."""
    kind = str(field.attrs.get("GRIB_stepType", ""))
    if not kind and "time: sum" in str(field.attrs.get("cell_methods", "")):
        return True
    return kind == "accum" if kind else field.short_name in ACCUMULATED or is_precipitation(field)


def is_never_negative(field: Field) -> bool:
    """Whether the values are sums of what only ever adds up: rain and radiation, but no flux that may turn its sign."""
    return is_accumulated(field) and (field.short_name in NEVER_NEGATIVE or is_precipitation(field))


def judged_first(fields: list[Field]) -> bool:
    """Whether the course of the values tells what they sum, for others of the same files too."""
    return is_never_negative(fields[0]) and fields[0].short_name not in RADIATION


def noise(field: Field, units: str | None) -> float:
    """How far below zero, or below the value before it, packing may leave a sum, in the file's units."""
    floor = NOISE_MM / DEPTHS[units] if units in DEPTHS else NOISE_JOULE if units and "J" in units else 0.0
    return max(floor, field.packing_step)


def decide(
    setting: str,
    name: str,
    fields: list[Field],
    seconds: Seconds,
    mean_TS: Floats,
    tolerance: float,
    step: int,
    siblings: Mapping[str, Summed],
) -> Summed:
    """Which of the two kinds the fields of one variable are.

    Args:
        setting: `data.accumulation`.
        name: the variable.
        fields: all its fields.
        seconds: the panel's times.
        mean_TS: its values.
        tolerance: how far packing may lower a sum.
        step: seconds between times.
        siblings: what was decided for rain and runoff, by the file that holds them.

    Raises:
        DataError: the files and the values disagree, or neither tells and `data.accumulation` does not either.
    """
    told, hours, reasons = _told(fields)
    seen = _seen(seconds, mean_TS, tolerance, step, judged_first(fields)) if is_never_negative(fields[0]) else None
    kin = next((siblings[field.label] for field in fields if field.label in siblings), None)
    if seen is None and kin is not None:
        seen = kin.kind, "rain or runoff in the same files is summed so"
    if seen:
        reasons.append(seen[1])
    if setting in ("previous_step", "from_00utc"):
        if setting == "from_00utc" and seen and seen[0] == "previous_step":
            raise DataError(f"{name}: data.accumulation is 'from_00utc', but {seen[1]}; take that setting out")
        by_messages = told == "from_00utc" and any("llueve_hours" in field.attrs for field in fields)
        if setting == "previous_step" and (by_messages or (seen and seen[0] == "from_00utc")):
            raise DataError(
                f"{name}: data.accumulation is 'previous_step', but {'; '.join(reasons)}: each day's rain would count many "
                f"times; take that setting out. If each value does sum one step, set data.accumulation_hours.{name} to its hours"
            )
        doubt = f" (against it: {'; '.join(reasons)})" if {told, seen[0] if seen else None} - {setting, None} else ""
        kind: Kind = "previous_step" if setting == "previous_step" else "from_00utc"
        return Summed(kind, hours, f"data.accumulation{doubt}")
    if told and seen and told != seen[0]:
        raise DataError(
            f"{name}: {'; '.join(reasons)}: these disagree on what a value sums; set data.accumulation to 'previous_step' (the "
            "hour before) or 'from_00utc' (all since 00 UTC)"
        )
    decided = told or (seen[0] if seen else None)
    if decided is None:
        raise DataError(
            f"{name}: neither the files nor their values tell whether a value sums one hour (ERA5) or all since 00 UTC "
            "(ERA5-Land); set data.accumulation to 'previous_step' or 'from_00utc'"
        )
    return Summed(decided, hours, "; ".join(reasons))


def _told(fields: list[Field]) -> tuple[Kind | None, float, list[str]]:
    """What the files say: the hours of their messages, else a product's name, else the grid."""
    kinds: dict[Kind, str] = {}
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
                    "00 UTC, as forecasts do; fetch the reanalysis, or convert them to hourly sums"
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
            f"({listed([field.label for field in fields])}); read them apart"
        )
    if len(covered) > 1:
        raise DataError(f"{fields[0].name}: sums over {listed(sorted(covered))} h in different files; read them apart")
    return next(iter(kinds), None), covered.pop(), list(kinds.values())


def _seen(seconds: Seconds, mean_TS: Floats, tolerance: float, step: int, by_rise: bool) -> tuple[Kind, str] | None:
    """What values that are never negative show: sums since 00 UTC never fall inside a day, and fall after 00 UTC.

    Without `by_rise` only falls count, as radiation rises and falls with the sun.
    """
    adjacent = np.diff(seconds) == step
    after_midnight = seconds[:-1] % DAY == 0
    rise_TS = np.diff(mean_TS, axis=0)
    inside = rise_TS[adjacent & ~after_midnight]
    rises, falls = int((inside > tolerance).sum()), int((inside < -tolerance).sum())
    resets = int((rise_TS[adjacent & after_midnight] < -tolerance).sum())
    if step * 4 > DAY:
        return None
    if by_rise and falls == 0 and rises >= LEAST_RISES and resets >= LEAST_RESETS:
        return (
            "from_00utc",
            f"values rise {rises} times and never fall inside a day, and fall {resets} times after 00 UTC",
        )
    if falls >= 3 and falls > rises / 20:
        return "previous_step", f"values fall {falls} times inside a day, which sums since 00 UTC cannot"
    return None


def hours_and_values(
    summed: Summed, name: str, seconds: Seconds, mean_TS: Floats, tolerance: float, step: int, never_negative: bool
) -> tuple[float, Floats, int]:
    """Hours that each value sums, the values as such sums, and how many little falls inside a day were levelled.

    Sums since 00 UTC become differences, with the first one missing where what came before it is unknown.

    Raises:
        DataError: sums since 00 UTC of what is never negative fall inside a day, or are sampled so that no difference is a
            step.
    """
    if summed.kind == "previous_step":
        return summed.hours, mean_TS, 0
    clock = seconds % DAY
    if step % DAY == 0:  # one time of day: its value is the sum since the midnight before
        hours = {int(c) or DAY for c in np.unique(clock).tolist()}
        assert len(hours) == 1  # the step is whole days
        return hours.pop() / 3600, mean_TS, 0
    if DAY % step or (clock % step).any():
        times = listed([f"{c // 3600:02}:{c % 3600 // 60:02}" for c in np.unique(clock).tolist()])
        raise DataError(
            f"{name}: sums since 00 UTC, but the times of day are {times} without 00 UTC, so the rain before midnight is in "
            "no value; fetch 00 UTC too"
        )
    levelled = 0
    if never_negative:
        risen_TS = _highest_of_day(seconds, mean_TS)
        fall_TS = risen_TS - mean_TS
        if (fall_TS > tolerance).any():
            time, site = np.argwhere(fall_TS > tolerance)[0]
            raise DataError(
                f"{name}: sums since 00 UTC cannot fall inside a day, but do {(fall_TS > tolerance).sum()} times, first by "
                f"{fall_TS[time, site]:g} at {np.datetime64(int(seconds[time]), 's')}; fetch that day again, or set "
                "data.accumulation to 'previous_step' if every value sums one hour"
            )
        mean_TS, levelled = risen_TS, int((fall_TS > 0).sum())
    before_TS = np.vstack([np.full((1, mean_TS.shape[1]), np.nan), mean_TS[:-1]])
    before_TS[np.r_[True, np.diff(seconds) != step]] = np.nan
    # The value at 00 UTC belongs to the day before, so the next one starts anew, and needs nothing before it.
    before_TS[clock == step] = 0.0
    return step / 3600, mean_TS - before_TS, levelled


def _highest_of_day(seconds: Seconds, mean_TS: Floats) -> Floats:
    """The largest value of the day so far: with it, differences add up to the day's total in spite of packing noise.

    Setting negative differences to zero would keep every rise of the noise and drop every fall: rain out of nothing.
    """
    risen_TS = np.empty_like(mean_TS)
    starts = np.flatnonzero(np.diff((seconds - 1) // DAY, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(seconds)], strict=True):
        risen_TS[start:end] = np.fmax.accumulate(np.fmax(mean_TS[start:end], 0.0), axis=0)
    return np.where(np.isnan(mean_TS), np.nan, risen_TS)


def kind_finding(name: str, summed: Summed, hours: float) -> Finding:
    """What the audit says of the decision."""
    if summed.kind == "previous_step":
        message = f"{name}: each value sums the {hours:g} h before its time ({summed.reasons})"
    else:
        message = f"{name}: summed since 00 UTC, turned into sums over {hours:g} h ({summed.reasons})"
    return Finding("accumulation", "info", message, variable=name)
