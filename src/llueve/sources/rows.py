"""What a format that says its own sites and times hands on: a `Table`, and what goes with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llueve.config import DataConfig
from llueve.errors import ConfigError, DataError
from llueve.panel import Finding
from llueve.sources.files import Table


@dataclass(frozen=True)
class Place:
    """Where a site lies: degrees north, degrees east within -180 … 180, metres above the sea (NaN where not told)."""

    latitude: float
    longitude: float
    elevation_m: float


@dataclass(frozen=True)
class Rows:
    """A table, with what its format says of itself."""

    table: Table
    data: DataConfig
    """The settings with what the format decides: its columns of site and time, its step, what its rain sums over."""
    findings: tuple[Finding, ...] = ()
    places: dict[str, Place] = field(default_factory=dict)
    """By site, where the format tells them."""


def read_bytes(path: Path, source: str, most_bytes: int) -> bytes:
    """The whole file.

    Raises:
        DataError: there is no such file, it cannot be read, it is empty, or it is larger than `most_bytes`.
    """
    try:
        size = path.stat().st_size
        if size > most_bytes:
            raise DataError(
                f"{source}: has {size:,} bytes, expected at most {most_bytes:,}; split it into smaller files"
            )
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{source}: no such file; mend data.path") from error
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror or error}); check data.path") from error
    if not content:
        raise DataError(f"{source}: is empty; get it again")
    return content


def own_columns(data: DataConfig, step_hours: float, accumulation_hours: Mapping[str, float]) -> DataConfig:
    """The settings of a format that has sites and times of its own.

    Raises:
        ConfigError: a setting says where a table has them.
    """
    own: dict[str, object] = {"site": "site", "time": "time"}
    for name in ("site", "time", "time_format", "time_zone", "missing"):
        value = getattr(data, name)
        if value not in (DataConfig.model_fields[name].default, own.get(name)):
            raise ConfigError(
                f"data.{name} = {value!r}: has no meaning for {data.path}, whose format says sites, times and missing "
                "cells by itself; take the setting out"
            )
    hours = {**accumulation_hours, **data.accumulation_hours}
    update = {**own, "step_hours": data.step_hours or step_hours, "accumulation_hours": hours}
    return data.model_copy(update=update)
