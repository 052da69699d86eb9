"""Checks of the configuration against an ERA5 archive."""

from collections.abc import Mapping

import xarray as xr

from llueve.config import DataConfig, RegionConfig, TargetConfig
from llueve.errors import DataError, listed
from llueve.sources.grids.fields import LAND_MASKS
from llueve.sources.names_and_units import unknown_name

TABLES_ONLY = (
    "site", "site_name", "time", "time_format", "time_zone", "missing", "infinite", "duplicates", "wind_directions",
    "categories", "position_columns",
)  # fmt: skip
"""Keys of `[data]` that apply to a table only."""


def check_settings(data: DataConfig, regions: Mapping[str, RegionConfig], target: TargetConfig | None) -> None:
    """Refuse settings that apply to a table only, or that do nothing."""
    plain = DataConfig(path=data.path)
    given = [f"data.{name}" for name in TABLES_ONLY if getattr(data, name) != getattr(plain, name)]
    if given:
        raise DataError(f"{data.path}: {given[0]} does not apply to an ERA5 archive; remove {listed(given, 20)}")
    if data.surroundings_degrees is not None and not regions:
        raise DataError(
            f"{data.path}: data.surroundings_degrees needs [regions], because without them each cell is a site; name the places "
            "to forecast, such as airport = { point = [latitude, longitude] }"
        )
    if target is not None and target.label is not None:
        raise DataError(
            f"{data.path}: target.label = {target.label!r}: an ERA5 archive has no label column; set target.variable, such as "
            "tp, and target.threshold_mm"
        )
    if data.cells == "all" and data.land_mask is not None:
        raise DataError('data.land_mask does nothing while data.cells is "all"; set data.cells = "land"')


def hours_late(data: DataConfig) -> float:
    """Hours from the time stamps of the files to the end of their sums, which the panel's times must mark.

    All variables move alike, because daily means have the stamps of the daily sums beside them.
    """
    hours = sorted(set(data.accumulation_hours.values()))
    if not hours:
        if data.stamps is not None:
            raise DataError(f"{data.path}: data.stamps needs data.accumulation_hours, which is not set; remove it")
        return 0.0
    shown = listed([f"{each:g}" for each in hours])
    if data.stamps is None:
        raise DataError(
            f"{data.path}: data.accumulation_hours: which end of its {shown} h does a time mark? Daily sums of pandas, xarray "
            'and the CDS mark the start; read as the end, they would hold the future: set data.stamps to "start" or "end"'
        )
    if data.stamps == "end":
        return 0.0
    if len(hours) > 1:
        raise DataError(
            f'{data.path}: data.accumulation_hours are {shown} h with data.stamps = "start", so no single time is the end of '
            "all; read them separately"
        )
    return hours[0]


def check_names(data: DataConfig, names: list[str], predicting: bool) -> None:
    """Refuse a configured name that is not a variable of the files; a prediction may lack those of `data.exclude`."""
    for key in ("variables", "exclude", "units", "accumulation_hours"):
        for name in getattr(data, key) or ():
            if name not in names and not (key == "exclude" and (predicting or name in LAND_MASKS)):
                raise unknown_name(data.path, f"data.{key}", name, "variables", names)


def check_target(data: DataConfig, target: TargetConfig | None, panel: xr.Dataset) -> None:
    """Refuse a target that is not in the panel, or whose hours are unknown there."""
    if target is None or target.variable is None:
        return
    name = target.variable
    if name not in panel:
        raise DataError(
            f"{data.path}: target.variable {name!r} is not among the variables ({listed(list(panel.data_vars), 40)}); it must "
            "be a sum of precipitation such as tp"
        )
    if "accumulation_hours" not in panel[name].attrs:
        raise DataError(
            f"{data.path}: target.variable {name!r} is not known to be a sum over time: its file gives no stepType, and no name "
            f"of a depth of precipitation; if it is one, set data.accumulation_hours.{name} to the hours that each value sums"
        )
