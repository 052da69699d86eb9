"""Columns, times and classes of a CSV, as far as the mapping of flags needs them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from llueve.errors import DataError, UsageError, listed

TIME_COLUMNS = ("timestamp", "time", "date", "datetime")
SITE_COLUMNS = ("region", "site", "station", "location")


class CsvSummary(NamedTuple):
    """Summary of a CSV of weather: its columns, and which of them holds times and sites."""

    path: Path
    columns: tuple[str, ...]
    time: str
    site: str | None
    steps: int
    """Number of different times."""
    step_hours: float
    classes: tuple[str, ...] = ()
    """Values of the target, if there is one."""


def summarise_csv(path: Path, target: str | None = None) -> CsvSummary:
    """Read the header, the times, and the values of the target.

    Raises:
        UsageError: the file or a column does not exist.
        DataError: the file is not a table, or its times cannot be read.
    """
    try:
        columns = tuple(map(str, pd.read_csv(path, nrows=0).columns))
        time, site = (next(filter(columns.__contains__, names), None) for names in (TIME_COLUMNS, SITE_COLUMNS))
        if time is None:
            raise UsageError(f"{path}: has no column of times; expected one of {', '.join(TIME_COLUMNS)}")
        if target not in (None, *columns):
            raise UsageError(f"--target {target}: {path} has no such column; it has {listed(columns, 40)}")
        cells = pd.read_csv(path, usecols=[time, target or time], dtype=str)
        times = pd.to_datetime(cells[time].dropna(), utc=True).dt.tz_localize(None).sort_values().unique()
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{path}: cannot be read ({reason}); check --root_path and --data_path") from error
    except UsageError:
        raise
    except ValueError as error:
        raise DataError(f"{path}: is not a table with times ({str(error).splitlines()[0]})") from error
    if len(times) < 2:
        raise DataError(f"{path}: has {len(times)} different times; expected at least 2")
    hours = float(np.median(np.diff(times)) / np.timedelta64(1, "h"))
    classes = () if target is None else tuple(sorted(cells[target].dropna().unique()))
    return CsvSummary(path, columns, time, site, len(times), hours, classes)
