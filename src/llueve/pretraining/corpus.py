"""The corpus of the pre-training: hourly records of many places, in the units of the encoder.

A record is cut where it has a gap that is longer than the context of the encoder, so that a typical year made of months of
different years becomes twelve stretches. Shapes: S stretches, H hours of all stretches one after the other, Q quantities.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llueve.config.model_keys import DAY_HOURS
from llueve.errors import DataError
from llueve.model.weather_xl import DAYS
from llueve.panel import BoolArray, FloatArray
from llueve.quantities import formulas
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES, RAIN
from llueve.samples.encoder_inputs import encoder_values, mean_and_spread

logger = logging.getLogger(__name__)

Halves = NDArray[np.float16]

COLUMNS = {
    "temperature_c": "air_temperature",
    "dewpoint_c": "dew_point_temperature",
    "relative_humidity_pct": "relative_humidity",
    "pressure_surface_hpa": "surface_air_pressure",
    "pressure_sea_hpa": "air_pressure_at_mean_sea_level",
    "wind_speed_ms": "wind_speed",
    "gust_ms": "wind_speed_of_gust",
    "precipitation_mm": RAIN,
    "cloud_pct": "cloud_area_fraction",
    "radiation_wm2": "surface_downwelling_shortwave_flux_in_air",
}
"""Columns of a corpus file by name and unit."""
DIRECTION = "wind_direction_deg"
"""Column of the direction that the wind comes from; with the speed it gives two components."""
NEEDED = ("site", "latitude", "longitude", "time")
"""Columns that every file must have."""
EPOCH = np.datetime64("1950-01-01T00", "h")
"""Hour 0 of the time axis that all sites share."""
MOST_HOURS = 24 * 366 * 150
"""Hours of that axis."""
LONGEST_GAP = DAYS * DAY_HOURS
"""A longer gap, in hours, cuts a record: no window sees both sides of it."""
FEWEST_HOURS = 24 * 30
"""A site with fewer hours is left out."""
SHORTEST_STRETCH = 24 * 3
"""A shorter stretch, in hours, is left out."""
FEWEST_SITES = 3
"""A file with fewer sites has none that is held out."""
LONGEST_HOURS = 24 * 366 * 16
"""Most hours of one site, the newest ones: a long record must not drown the others."""


@dataclass(frozen=True)
class Stretch:
    """Hours of one site that follow one another; a missing value is NaN."""

    name: str
    """Name of the site."""
    group: str
    """Name of its file, without the ending."""
    latitude: float
    longitude: float
    """Degrees; NaN if unknown."""
    first: int
    """Its first hour on the common time axis."""
    held_out: bool
    """True for a site that the pre-training never sees."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """The records of all sites."""

    stretches: list[Stretch]
    """All stretches; those of one site follow one another."""
    start_S: NDArray[np.int64]
    """Position of each stretch's first hour in `values_HQ`; one entry more for the end."""
    values_HQ: Halves
    """Standardised by the record of each site; rain as log(1 + mm)."""
    left_out: dict[str, str]
    """Files that are not used: name → reason."""

    @cached_property
    def hours_S(self) -> NDArray[np.int64]:
        """Number of hours of each stretch."""
        return np.diff(self.start_S)

    @cached_property
    def first_S(self) -> NDArray[np.int64]:
        """First hour of each stretch on the common time axis."""
        return np.array([each.first for each in self.stretches], np.int64)

    @cached_property
    def position_S2(self) -> NDArray[np.float64]:
        """Latitude and longitude of each stretch."""
        return np.array([(each.latitude, each.longitude) for each in self.stretches]).reshape(-1, 2)

    @cached_property
    def site_S(self) -> NDArray[np.int64]:
        """Number of the site of each stretch, counted from 0."""
        keys = [(each.group, each.name) for each in self.stretches]
        return np.cumsum([0, *(one != other for one, other in pairwise(keys))])

    @cached_property
    def observed_H(self) -> NDArray[np.int64]:
        """Number of hours before each one in which any quantity was observed; one entry more for the end."""
        return np.concatenate([[0], np.cumsum((~np.isnan(self.values_HQ)).any(axis=1))])

    @cached_property
    def times(self) -> NDArray[np.datetime64]:
        """All hours of the common time axis, up to the last one of the corpus."""
        return EPOCH + np.arange(int((self.first_S + self.hours_S).max()) + 1)

    def fingerprint(self) -> str:
        """Hash of everything that a training sees of it."""
        digest = hashlib.sha256(repr(self.stretches).encode())
        digest.update(self.start_S.tobytes())
        digest.update(self.values_HQ.view(np.uint8).data)
        return digest.hexdigest()


def read_corpus(files: Sequence[Path], held_out: float, until: Mapping[str, datetime] | None = None) -> Corpus:
    """Read the hourly files of a corpus: columns site, latitude, longitude, time (UTC) and those of `COLUMNS`.

    A file with another step than an hour is left out, which the log says.

    Args:
        held_out: share of the sites of each file that the pre-training never sees.
        until: time from which the rows of a file are not used, by the name of the file without its ending.

    Raises:
        DataError: `until` names no file; a file is damaged, lacks a column, or holds an impossible time or place; or no site
            has enough hours.
    """
    stretches: list[Stretch] = []
    parts: list[Halves] = []
    left_out: dict[str, str] = {}
    until = until or {}
    if unknown := sorted({*until} - {file.stem for file in files}):
        raise DataError(f"corpus.until names {unknown[0]!r}, but there is no such file; correct the name, or remove it")
    for file in files:
        rows = _Rows.read(file, until.get(file.stem))
        if rows.problem is not None:
            left_out[file.name] = rows.problem
            logger.info("%s: left out: %s", file.name, rows.problem)
            continue
        for stretch, values_HQ in _of_file(file, rows, held_out):
            stretches.append(stretch)
            parts.append(values_HQ)
    if not stretches:
        raise DataError(
            f"the corpus has no site with at least {FEWEST_HOURS} hours in files with hourly rows; set corpus.path or "
            "corpus.files"
        )
    ends = np.cumsum([0, *(len(each) for each in parts)])
    return Corpus(stretches, ends.astype(np.int64), np.concatenate(parts), left_out)


@dataclass(frozen=True, eq=False)
class _Rows:
    """The rows of a file in the order of site and time."""

    names: list[str]
    code: NDArray[np.int64]
    """Site of each row, as index of `names`."""
    hour: NDArray[np.int64]
    order: NDArray[np.intp]
    """Position of each row in the file."""
    problem: str | None
    """Reason why the file is left out."""

    @classmethod
    def read(cls, file: Path, until: datetime | None) -> "_Rows":
        """Read names and times of a file."""
        table = _columns(file, NEEDED)
        for name in ("site", "time"):
            if nulls := table[name].null_count:
                raise DataError(f"{file}: {nulls:,} rows have no {name}; remove them")
        if not len(table):
            none = np.empty(0, np.int64)
            return cls([], none, none, none, "it has no rows")
        if not (pa.types.is_timestamp(kind := table["time"].type) or pa.types.is_date(kind)):
            raise DataError(f"{file}: the column time holds {kind}; expected times in UTC")
        try:
            sites = table["site"].cast(pa.string()).combine_chunks().dictionary_encode()
        except pa.ArrowException as error:
            raise DataError(f"{file}: the column site does not hold names ({error}); correct it") from error
        code = sites.indices.to_numpy().astype(np.int64)
        hour = (table["time"].to_numpy().astype("datetime64[h]") - EPOCH).astype(np.int64)
        if not 0 <= hour.min() <= hour.max() < MOST_HOURS:
            bad = EPOCH + hour[(hour < 0) | (hour >= MOST_HOURS)][0]
            raise DataError(f"{file}: has a row at {bad}; expected times from 1950 to 2099")
        order = np.lexsort((hour, code))
        if until is not None:
            order = order[hour[order] < (np.datetime64(until, "h") - EPOCH).astype(np.int64)]
        code, hour = code[order], hour[order]
        steps = np.diff(hour)[np.diff(code) == 0]
        usual = int(np.bincount(np.minimum(steps, MOST_HOURS)).argmax()) if len(steps) else 0
        words = f"{usual} h" if usual else "not known, or shorter"
        return cls(
            sites.dictionary.to_pylist(),
            code,
            hour,
            order,
            None if usual == 1 else f"its step is {words}, expected 1 h",
        )


def _columns(file: Path, names: Sequence[str]) -> pa.Table:
    """Columns of a Parquet file."""
    try:
        present = pq.read_schema(file).names
        if lacking := sorted({*NEEDED} - {*present}):
            raise DataError(f"{file}: has no column {', '.join(lacking)}; expected site, latitude, longitude and time")
        return pq.read_table(file, columns=[name for name in names if name in present])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: cannot be read as a Parquet file ({error}); restore it, or remove it") from error


def _of_file(file: Path, rows: _Rows, held_out: float) -> Iterator[tuple[Stretch, Halves]]:
    """The stretches of all sites of a file with their values."""
    table = _columns(file, ("latitude", "longitude", DIRECTION, *COLUMNS))
    try:
        columns = {
            name: table[name].cast(pa.float64() if name in NEEDED else pa.float32()).to_numpy()
            for name in table.column_names
        }
    except pa.ArrowException as error:
        raise DataError(f"{file}: a column of values does not hold numbers ({error}); correct it") from error
    hidden = _held_out(rows.names, held_out)
    bounds = np.searchsorted(rows.code, np.arange(len(rows.names) + 1))
    for place, name in enumerate(rows.names):
        inside = slice(bounds[place], bounds[place + 1])
        order, hour = rows.order[inside], rows.hour[inside]
        if not len(hour):
            continue
        spans = _spans(hour)
        if sum(last - first + 1 for first, last in spans) < FEWEST_HOURS:
            continue
        latitude, longitude = (float(columns[each][order[0]]) for each in ("latitude", "longitude"))
        if abs(latitude) > 90 or abs(longitude) > 360:
            raise DataError(
                f"{file}: {name} is at {latitude:g}, {longitude:g}; expected latitude and longitude in degrees"
            )
        values = []
        for first, last in spans:
            used = (hour >= first) & (hour <= last)
            values.append(_filled(columns, order[used], hour[used] - first, last - first + 1))
        scaled_HQ = _standardised(np.concatenate(values))
        ends = np.cumsum([len(each) for each in values])
        for (first, _), part_HQ in zip(spans, np.split(scaled_HQ, ends[:-1]), strict=True):
            yield Stretch(name, file.stem, latitude, longitude, first, name in hidden), part_HQ


def _spans(hour: NDArray[np.int64]) -> list[tuple[int, int]]:
    """First and last hour of each stretch of a site that is used, from its hours in order."""
    cuts = np.flatnonzero(np.diff(hour) > LONGEST_GAP) + 1
    found: list[tuple[int, int]] = []
    room = LONGEST_HOURS
    for piece in reversed(np.split(hour, cuts)):
        first, last = max(int(piece[0]), int(piece[-1]) - room + 1), int(piece[-1])
        if last - first + 1 >= SHORTEST_STRETCH:
            found.append((first, last))
            room -= last - first + 1
        if room < SHORTEST_STRETCH:
            break
    return found[::-1]


def _held_out(names: Sequence[str], share: float) -> set[str]:
    """The sites of a file that the pre-training never sees: those with the smallest hashes.

    It is at least one site, so that each file is scored, but none of a file with fewer than `FEWEST_SITES`.
    """
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    least = 1 if len(order) >= FEWEST_SITES else 0
    return set(order[: max(least, round(share * len(order)))])


def _filled(columns: dict[str, NDArray[Any]], rows: NDArray[np.intp], at: NDArray[np.int64], hours: int) -> FloatArray:
    """The quantities of one stretch, (H, Q), in their units; NaN where missing."""
    values_HQ = np.full((hours, len(ENCODER_QUANTITIES)), np.nan, np.float32)
    index = {name: place for place, name in enumerate(ENCODER_QUANTITIES)}
    for name, quantity in COLUMNS.items():
        if name in columns:
            values_HQ[at, index[quantity]] = columns[name][rows]
    if DIRECTION in columns and "wind_speed_ms" in columns:
        speed, direction = (columns[name][rows].astype(np.float64) for name in ("wind_speed_ms", DIRECTION))
        angle = np.deg2rad(np.where(speed == 0, 0.0, direction))  # calm air has no direction
        values_HQ[at, index["eastward_wind"]] = formulas.wind_component(speed, np.sin(angle))
        values_HQ[at, index["northward_wind"]] = formulas.wind_component(speed, np.cos(angle))
    warm, dew, humid = (
        values_HQ[:, index[name]].astype(np.float64)
        for name in ("air_temperature", "dew_point_temperature", "relative_humidity")
    )
    values_HQ[:, index["dew_point_temperature"]] = np.where(np.isnan(dew), formulas.dew_point(warm, humid), dew)
    values_HQ[:, index["relative_humidity"]] = np.where(np.isnan(humid), formulas.relative_humidity(warm, dew), humid)
    return values_HQ


def _standardised(values_HQ: FloatArray) -> Halves:
    """Each quantity less its mean, over its standard deviation; rain as log(1 + mm)."""
    scaled_HQ = np.full(values_HQ.shape, np.nan, np.float16)
    for place, name in enumerate(ENCODER_QUANTITIES):
        values_H = values_HQ[:, place].astype(np.float64)
        known_H: BoolArray = np.isfinite(values_H)
        if not known_H.any():
            continue
        scaled_H = encoder_values(name, values_H, *mean_and_spread(name, values_H[known_H]))
        scaled_HQ[:, place] = np.where(known_H, scaled_H, np.nan).astype(np.float16)
    return scaled_HQ
