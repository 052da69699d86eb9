"""Write a download from Open-Meteo: CSV or Parquet with units, or JSON; and a configuration for a first training."""

import io
import json
import math
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from llueve.csv_text import with_safe_sites
from llueve.errors import UsageError
from llueve.sources.downloads.http import write_output
from llueve.sources.downloads.openmeteo_archive import OpenMeteoDownload, OpenMeteoRequest
from llueve.sources.downloads.openmeteo_surroundings import PREFIX
from llueve.sources.tables.openmeteo import HOURLY_SUMS, PointSeries, series_frame

POSITION = ("latitude", "longitude")
"""Columns with the position of a site, in a file of several."""
YEARS_FOR_DATES = 4
"""With this many years, validation and test get a whole year each, so that both hold all seasons."""


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse an unknown suffix, a missing folder, or a file that exists, before the download, with a UsageError."""
    if output.suffix.lower() not in WRITERS:
        raise UsageError(f"--output {output}: expected a name that ends in .csv, .parquet or .json")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"--output {output}: the folder {output.absolute().parent} does not exist; make it first")
    if output.is_dir() or (output.exists() and not overwrite):
        raise UsageError(f"--output {output}: exists already; give another name, or --overwrite to replace it")


def write_series(archive: OpenMeteoDownload, output: Path) -> None:
    """Write the series in the format of the suffix; a DataError reports a file that cannot be written."""
    write_output(output, WRITERS[output.suffix.lower()](archive))


def write_configuration(
    request: OpenMeteoRequest, archive: OpenMeteoDownload, output: Path
) -> tuple[Path | None, bool]:
    """Write a configuration beside the file, unless one exists; its path (None without rain to forecast), and True if new."""
    rain = next((name for name in HOURLY_SUMS[:2] if name in request.variables), None)
    if rain is None:
        return None, False
    path = output.with_suffix(".toml")
    if fresh := not path.exists():
        write_output(path, _configuration(request, archive, output, rain).encode())
    return path, fresh


def _frame(archive: OpenMeteoDownload) -> pd.DataFrame:
    """All series as rows: site and its position (if there are several), time, variables."""
    frame = series_frame(archive.names, archive.series)
    if len(archive.names) == 1:
        return frame.drop(columns="site")
    place = {name: point.location for name, point in zip(archive.names, archive.series, strict=True)}
    for number, key in enumerate(POSITION, start=1):
        frame.insert(number, key, frame["site"].map({name: getattr(each, key) for name, each in place.items()}))
    return frame


def _csv(archive: OpenMeteoDownload) -> bytes:
    units = archive.series[0].units
    frame = _frame(archive).rename(columns={name: f"{name} [{unit}]" for name, unit in units.items()})
    return with_safe_sites(frame).to_csv(index=False, date_format="%Y-%m-%dT%H:%MZ", lineterminator="\n").encode()


def _parquet(archive: OpenMeteoDownload) -> bytes:
    """Parquet with the unit of each field in its metadata, where llueve reads it."""
    frame = _frame(archive)
    frame["time"] = frame["time"].dt.tz_localize("UTC")
    table = pa.Table.from_pandas(frame, preserve_index=False)
    units = archive.series[0].units
    fields = [
        field.with_metadata({"units": units[field.name]}) if field.name in units else field for field in table.schema
    ]
    target = io.BytesIO()
    pq.write_table(table.cast(pa.schema(fields)), target)
    return target.getvalue()


def _json(archive: OpenMeteoDownload) -> bytes:
    """An answer in the form of the API, with the name of each site."""
    points = [_point(name, point) for name, point in zip(archive.names, archive.series, strict=True)]
    return json.dumps(points[0] if len(points) == 1 else points, allow_nan=False, ensure_ascii=False).encode()


WRITERS = {".csv": _csv, ".parquet": _parquet, ".json": _json}
"""Content of the file, by suffix."""


def _point(name: str, point: PointSeries) -> dict[str, object]:
    values = {
        variable: [None if math.isnan(number) else number for number in numbers.tolist()]
        for variable, numbers in point.values.items()
    }
    elevation_m = point.location.elevation_m
    return {
        "site": name,
        "latitude": point.location.latitude,
        "longitude": point.location.longitude,
        "elevation": None if math.isnan(elevation_m) else elevation_m,
        "utc_offset_seconds": 0,
        "timezone": "GMT",
        "hourly_units": {"time": "iso8601", **point.units},
        "hourly": {"time": np.datetime_as_string(point.times, unit="m").tolist(), **values},
    }


def _configuration(request: OpenMeteoRequest, archive: OpenMeteoDownload, output: Path, rain: str) -> str:
    """TOML with a comment on each choice that its reader may want to change."""
    sites = list(zip(archive.names, archive.series, strict=True))[: len(archive.names) - archive.around]
    shown = "; ".join(f"{_one_line(name)} at {point.name}" for name, point in sites[:5])
    more = f" and {len(sites) - 5} more" if len(sites) > 5 else ""
    more += f", and {archive.around} points around" if archive.around else ""
    data = [f"path = {json.dumps(output.name, ensure_ascii=False)}"]
    if output.suffix.lower() == ".json":
        data.append('format = "openmeteo"')
    elif len(archive.names) > 1:
        data += ['site = "site"', f"position_columns = {json.dumps(POSITION)}"]
    else:
        data.append(f"site_name = {json.dumps(archive.names[0], ensure_ascii=False)}")
    if archive.around:
        data.append(f'seen_only = ["{PREFIX}*"] # the model sees these points, and does not forecast them')
    if directions := [variable for variable in request.variables if "wind_direction" in variable]:
        data.append(f"wind_directions = {json.dumps(directions)}")
    settings = "\n".join(data)
    together = "batch_size = 16         # issue times: the places see each other\n" if len(archive.names) > 2 else ""
    return f"""\
# {shown}{more}. Open-Meteo archive ({_one_line(request.model)}), CC BY 4.0, https://open-meteo.com

[data]
{settings}

[target]
variable = "{rain}"
threshold_mm = 1.0      # wet: at least 1 mm
horizon_hours = 24      # over the next 24 hours

[split]
{_split(archive)}

[windows]
context = 168           # the past week, hour by hour
stride = 6              # train on every sixth hour; all hours are verified

[model]
pretrained = "auto"     # hourly weather starts from the weather encoder of the package

[train]
{together}recipe = "auto"         # a regression on its output, the head, then everything: the best on validation stays
"""


def _split(archive: OpenMeteoDownload) -> str:
    """Whole years for validation and test if there are enough, else shares of the time."""
    first = min(point.times[0] for point in archive.series).astype("datetime64[D]").item()
    last = max(point.times[-1] for point in archive.series).astype("datetime64[D]").item()
    end = date(last.year + 1, 1, 1) if (last.month, last.day) == (12, 31) else date(last.year, last.month, 1)
    if end.year - first.year < YEARS_FOR_DATES:
        return "validation_fraction = 0.2\ntest_fraction = 0.2"
    return f"validation_start = {end.replace(year=end.year - 2)}\ntest_start = {end.replace(year=end.year - 1)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
