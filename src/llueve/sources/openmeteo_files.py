"""Writing a download: CSV or Parquet with units, or the answer's own JSON; and a configuration to start from."""

import io
import json
import math
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from llueve.errors import UsageError
from llueve.sources.download import write_whole
from llueve.sources.openmeteo import HOURLY_SUMS, Series
from llueve.sources.openmeteo_archive import Archive, Request

SUFFIXES = (".csv", ".parquet", ".json")
YEARS_FOR_DATES = 4
"""From so many years on, the last one is the test period and the one before it the validation: all seasons in each."""


def check_output(output: Path, overwrite: bool) -> None:
    """Before anything is downloaded: the file can be made.

    Raises:
        UsageError: an unknown ending, no such folder, or a file that is there already.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"--output {output}: expected a name that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )
    if not output.absolute().parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.absolute().parent}; make it first")
    if output.is_dir() or (output.exists() and not overwrite):
        raise UsageError(f"--output {output}: is there already; give another name, or --overwrite to replace it")


def write_archive(archive: Archive, output: Path) -> None:
    """Write the series, by the ending of the name.

    Raises:
        DataError: it cannot be written.
    """
    kind = output.suffix.lower()
    write_whole(output, {".csv": _csv, ".parquet": _parquet, ".json": _json}[kind](archive))


def write_configuration(request: Request, archive: Archive, output: Path) -> tuple[Path | None, bool]:
    """Write a configuration beside the file, unless one is there.

    Returns:
        Its path, None where nothing is to forecast; and whether it was written now.

    Raises:
        DataError: it cannot be written.
    """
    rain = next((name for name in HOURLY_SUMS[:2] if name in request.variables), None)
    if rain is None:
        return None, False
    path = output.with_suffix(".toml")
    fresh = not path.exists()
    if fresh:
        write_whole(path, _configuration(request, archive, output, rain).encode())
    return path, fresh


def _frame(archive: Archive) -> pd.DataFrame:
    """All series below each other: site (where there are several), time, variables."""
    frames = [
        pd.DataFrame({"site": name, "time": one.times, **one.values})
        for name, one in zip(archive.names, archive.series, strict=True)
    ]
    frame = pd.concat(frames, ignore_index=True)
    return frame if len(frames) > 1 else frame.drop(columns="site")


def _csv(archive: Archive) -> bytes:
    units = archive.series[0].units
    frame = _frame(archive).rename(columns={name: f"{name} [{unit}]" for name, unit in units.items()})
    return frame.to_csv(index=False, date_format="%Y-%m-%dT%H:%MZ", lineterminator="\n").encode()


def _parquet(archive: Archive) -> bytes:
    """Units in the metadata of each field, where a reader of llueve finds them."""
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


def _json(archive: Archive) -> bytes:
    """An answer as the API gives it, with the site's name added."""
    points = [_point(name, one) for name, one in zip(archive.names, archive.series, strict=True)]
    return json.dumps(points[0] if len(points) == 1 else points, allow_nan=False, ensure_ascii=False).encode()


def _point(name: str, one: Series) -> dict[str, object]:
    place = one.place
    values = {
        variable: [None if math.isnan(number) else number for number in numbers.tolist()]
        for variable, numbers in one.values.items()
    }
    return {
        "site": name,
        "latitude": place.latitude,
        "longitude": place.longitude,
        "elevation": None if math.isnan(place.elevation_m) else place.elevation_m,
        "utc_offset_seconds": 0,
        "timezone": "GMT",
        "hourly_units": {"time": "iso8601", **one.units},
        "hourly": {"time": np.datetime_as_string(one.times, unit="m").tolist(), **values},
    }


def _configuration(request: Request, archive: Archive, output: Path, rain: str) -> str:
    """TOML with a word on each choice that its reader may want to change."""
    where = "; ".join(
        f"{_comment(name)} at {one.name}" for name, one in list(zip(archive.names, archive.series, strict=True))[:5]
    )
    more = f" and {len(archive.names) - 5} more" if len(archive.names) > 5 else ""
    name = json.dumps(output.name, ensure_ascii=False)
    lines = [
        f"# {where}{more}. Open-Meteo archive ({_comment(request.model)}), CC BY 4.0, https://open-meteo.com",
        "",
        "[data]",
        f"path = {name}",
    ]
    if output.suffix.lower() == ".json":
        lines.append('format = "openmeteo"')
    elif len(archive.names) > 1:
        lines.append('site = "site"')
    else:
        lines.append(f"site_name = {json.dumps(archive.names[0], ensure_ascii=False)}")
    directions = [variable for variable in request.variables if "wind_direction" in variable]
    if directions:
        lines.append(f"wind_directions = {json.dumps(directions)}")
    lines += [
        "",
        "[target]",
        f'variable = "{rain}"',
        "threshold_mm = 1.0      # wet: at least 1 mm",
        "horizon_hours = 24      # over the next 24 hours",
        "",
        "[split]",
        *_split(archive),
        "",
        "[windows]",
        "context = 168           # the past week, hour by hour",
        "stride = 6              # train on every sixth hour; all hours are verified",
        "",
        "[model]",
        "patch_length = 24       # one day in one token",
    ]
    return "\n".join(lines) + "\n"


def _split(archive: Archive) -> list[str]:
    """Whole years for validation and test where there are enough, else shares of the time."""
    first = min(one.times[0] for one in archive.series).astype("datetime64[D]").item()
    last = max(one.times[-1] for one in archive.series).astype("datetime64[D]").item()
    end = date(last.year + 1, 1, 1) if (last.month, last.day) == (12, 31) else date(last.year, last.month, 1)
    if end.year - first.year < YEARS_FOR_DATES:
        return ["validation_fraction = 0.2", "test_fraction = 0.2"]
    return [f"validation_start = {end.replace(year=end.year - 2)}", f"test_start = {end.replace(year=end.year - 1)}"]


def _comment(text: str) -> str:
    """A text that stays within a line of comment."""
    return " ".join(text.split())
