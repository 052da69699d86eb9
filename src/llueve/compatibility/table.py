"""What the mapping has to know of a CSV: its columns, and how long and how fine its record is."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from llueve.errors import DataError, UsageError, listed

TIMES = ("timestamp", "time", "date", "datetime")
SITES = ("region", "site", "station", "location")


@dataclass(frozen=True)
class Table:
    """A CSV, as far as the mapping looks at it."""

    path: Path
    columns: tuple[str, ...]
    time: str
    site: str | None
    steps: int
    """Distinct times."""
    step_hours: float
    classes: tuple[str, ...] = ()
    """Values of the target, if one was asked for."""


def look_at(path: Path, target: str | None = None) -> Table:
    """Read the header, the times, and the values of the target.

    Raises:
        UsageError: there is no such file, or no such column. DataError: the file is no table, or its times none.
    """
    try:
        columns = tuple(str(name) for name in pd.read_csv(path, nrows=0).columns)
        time = _first(columns, TIMES)
        if time is None:
            raise UsageError(f"{path}: has no column of times; expected one of {', '.join(TIMES)}")
        if target is not None and target not in columns:
            raise UsageError(f"--target {target}: {path} has no such column; it has {listed(columns, 40)}")
        wanted = [time] if target is None else [time, target]
        read = pd.read_csv(path, usecols=wanted, dtype=str)
        times = pd.to_datetime(read[time].dropna(), utc=True).dt.tz_localize(None).sort_values().unique()
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be read ({error.strerror or error}); see --root_path and --data_path"
        ) from error
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise DataError(f"{path}: is no table with times ({str(error).splitlines()[0]})") from error
    if len(times) < 2:
        raise DataError(f"{path}: has {len(times)} times; expected a record of several")
    hours = float(np.median(np.diff(times)) / np.timedelta64(1, "h"))
    classes = () if target is None else tuple(sorted(read[target].dropna().unique()))
    return Table(path, columns, time, _first(columns, SITES), len(times), hours, classes)


def _first(columns: tuple[str, ...], candidates: tuple[str, ...]) -> str | None:
    return next((name for name in candidates if name in columns), None)
