"""Formats that name sites, times and missing cells themselves: the steps that all of them share."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from llueve.config import DataConfig
from llueve.errors import ConfigError, DataError
from llueve.panel import Finding
from llueve.sources.names_and_units import agreed_units
from llueve.sources.tables.raw_table import RawTable, SiteLocation, located


def read_bytes(source: str, most_bytes: int) -> bytes:
    """Read a whole file by its configured path; an empty one, or one larger than `most_bytes`, is refused."""
    with located(source) as path:
        if (size := path.stat().st_size) > most_bytes:
            raise DataError(
                f"{source}: has {size:,} bytes, expected at most {most_bytes:,}; split it into smaller files"
            )
        if not (content := path.read_bytes()):
            raise DataError(f"{source}: is empty; download it again")
        return content


def given_site_name(data: DataConfig, count: int, kind: str) -> str | None:
    """`data.site_name`, or None if it is not set; refused if the source has several sites (`kind` is their plural noun)."""
    name = data.site_name
    if name == DataConfig.model_fields["site_name"].default:
        return None
    if count > 1:
        raise DataError(f"{data.path}: holds {count} {kind}, but data.site_name = {name!r} names only one; remove it")
    return name


def station_table(
    data: DataConfig,
    frame: pd.DataFrame,
    units: tuple[str, dict[str, str]],
    vocabulary: str,
    step_hours: float,
    sums: Sequence[str],
    findings: Sequence[Finding],
    locations: dict[str, SiteLocation],
) -> tuple[RawTable, DataConfig]:
    """A table with the columns site and time, and the settings with which it is read.

    Args:
        data, findings, locations: the configured settings; findings and locations of the table.
        frame: site, time, and one column per variable.
        units: the place in the format that gives units, and the unit by variable.
        vocabulary: title of the vocabulary that defines the names of the variables.
        step_hours, sums: step of the format, and the variables that are sums over one step.

    Raises:
        ConfigError: a setting names columns, times or missing cells, which the format names itself.
        DataError: `data.units` contradicts the format.
    """
    frame = frame.assign(site=frame["site"].astype("str"))
    place, given = units
    variables = [name for name in frame.columns if name not in ("site", "time")]
    agreed = agreed_units(variables, {place: given, "data.units": data.units}, data.path)
    rows = np.arange(1, len(frame) + 1)
    table = RawTable(data.path, frame, rows, agreed, tuple(findings), locations, vocabulary=vocabulary)
    columns: dict[str, object] = {"site": "site", "time": "time"}
    for name in ("site", "time", "time_format", "time_zone", "missing"):
        value = getattr(data, name)
        if value not in (DataConfig.model_fields[name].default, columns.get(name)):
            raise ConfigError(
                f"data.{name} = {value!r}: does not apply to {data.path}, because its format names sites, times and missing "
                "cells itself; remove the setting"
            )
    hours = {name: step_hours for name in sums if name in frame} | data.accumulation_hours
    update = {**columns, "step_hours": data.step_hours or step_hours, "accumulation_hours": hours}
    return table, data.model_copy(update=update)
