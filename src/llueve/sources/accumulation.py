"""What an accumulated value sums: the hour that ends at its time, or everything since 00 UTC.

ERA5 gives the former, ERA5-Land the latter: its value at 00 UTC is the total of the day before. Which of them a file holds
is told by what it says of itself and by how its values rise and fall, never by one alone where they disagree.
Shapes: T times, S sites.
"""

import re
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
NEVER_NEGATIVE = PRECIPITATION | {
    "ro", "sro", "ssro", "smlt", "ssrd", "strd", "tisr", "fdir", "cdir", "ssrdc", "strdc", "uvb", "runoff", "surface_runoff",
    "sub_surface_runoff", "snowmelt", "surface_solar_radiation_downwards", "surface_thermal_radiation_downwards",
    "toa_incident_solar_radiation", "total_sky_direct_solar_radiation_at_surface",
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


def is_accumulated(field: Field) -> bool:
    """Whether the values are sums over time: by the file's own word, else by the variable's name."""
    kind = str(field.attrs.get("GRIB_stepType", ""))
    if not kind and "time: sum" in str(field.attrs.get("cell_methods", "")):
        return True
    return kind == "accum" if kind else field.short_name in ACCUMULATED


def noise(field: Field, units: str | None) -> float:
    """How far below zero, or below the value before it, packing may leave a sum, in the file's units."""
    floor = NOISE_MM / DEPTHS[units] if units in DEPTHS else NOISE_JOULE if units and "J" in units else 0.0
    return max(floor, field.packing_step)


def decide(
    setting: str, name: str, fields: list[Field], seconds: Seconds, mean_TS: Floats, tolerance: float, step: int
) -> Summed:
    """Which of the two kinds the fields of one variable are.

    Raises:
        DataError: the files and the values disagree, or neither tells and `data.accumulation` does not either.
    """
    told, hours, reasons = _told(fields)
    seen = _seen(seconds, mean_TS, tolerance, step)
    if seen:
        reasons.append(seen[1])
    if setting in ("previous_step", "from_00utc"):
        if setting == "from_00utc" and seen and seen[0] == "previous_step":
            raise DataError(f"{name}: data.accumulation is 'from_00utc', but {seen[1]}; take that setting out")
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


def _seen(seconds: Seconds, mean_TS: Floats, tolerance: float, step: int) -> tuple[Kind, str] | None:
    """What the values show: sums since 00 UTC never fall inside a day, and fall after 00 UTC."""
    adjacent = np.diff(seconds) == step
    after_midnight = seconds[:-1] % DAY == 0
    rise_TS = np.diff(mean_TS, axis=0)
    inside = rise_TS[adjacent & ~after_midnight]
    rises, falls = int((inside > tolerance).sum()), int((inside < -tolerance).sum())
    resets = int((rise_TS[adjacent & after_midnight] < -tolerance).sum())
    if step * 4 > DAY:
        return None
    if falls == 0 and rises >= LEAST_RISES and resets >= LEAST_RESETS:
        return (
            "from_00utc",
            f"values rise {rises} times and never fall inside a day, and fall {resets} times after 00 UTC",
        )
    if falls >= 3 and falls > rises / 20:
        return "previous_step", f"values fall {falls} times inside a day, which sums since 00 UTC cannot"
    return None


def hours_and_values(
    summed: Summed, name: str, seconds: Seconds, mean_TS: Floats, tolerance: float, step: int
) -> tuple[float, Floats, int]:
    """Hours that each value sums, the values as such sums, and how many tiny negatives became 0.

    Sums since 00 UTC become differences, with the first one missing where what came before it is unknown.

    Raises:
        DataError: sums since 00 UTC fall inside a day, or are sampled so that no difference is a step.
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
    before_TS = np.vstack([np.full((1, mean_TS.shape[1]), np.nan), mean_TS[:-1]])
    before_TS[np.r_[True, np.diff(seconds) != step]] = np.nan
    # The value at 00 UTC belongs to the day before, so the next one starts anew, and needs nothing before it.
    before_TS[clock == step] = 0.0
    value_TS = mean_TS - before_TS
    below_TS = value_TS < 0
    if (value_TS < -tolerance).any():
        time, site = np.argwhere(value_TS < -tolerance)[0]
        raise DataError(
            f"{name}: sums since 00 UTC cannot fall inside a day, but do {(value_TS < -tolerance).sum()} times, first by "
            f"{-value_TS[time, site]:g} at {np.datetime64(int(seconds[time]), 's')}; set data.accumulation to "
            "'previous_step' if each value sums one hour"
        )
    return step / 3600, np.where(below_TS, 0.0, value_TS), int(below_TS.sum())


def kind_finding(name: str, summed: Summed, hours: float) -> Finding:
    """What the audit says of the decision."""
    if summed.kind == "previous_step":
        message = f"{name}: each value sums the {hours:g} h before its time ({summed.reasons})"
    else:
        message = f"{name}: summed since 00 UTC, turned into sums over {hours:g} h ({summed.reasons})"
    return Finding("accumulation", "info", message, variable=name)
