"""The corpus of the pre-training: hourly records of many places, in the units of the encoder.

Shapes: S sites, H hours of all sites one after the other, Q quantities.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llueve.errors import DataError
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
EPOCH = np.datetime64("1950-01-01T00", "h")
"""Hour 0 of the time axis that all sites share."""
HELD_OUT = 0.05
"""Share of the sites of each group that the pre-training never sees."""
FEWEST_HOURS = 24 * 30
"""A site with fewer hours is left out."""
LONGEST_HOURS = 24 * 366 * 4
"""Most hours of one site, the newest ones: a long record must not drown the others."""


@dataclass(frozen=True)
class Place:
    """One site of the corpus."""

    name: str
    group: str
    """Name of its file, without the ending."""
    latitude: float
    longitude: float
    """Degrees; NaN if unknown."""
    first: int
    """Its first hour on the common time axis."""
    held_out: bool


@dataclass(frozen=True, eq=False)
class Corpus:
    """The records of all places. A place's hours follow one another without a gap; missing values are NaN."""

    places: list[Place]
    start_S: NDArray[np.int64]
    """Position of each place's first hour in `values_HQ`; one entry more for the end."""
    values_HQ: Halves
    """Standardised by the record of each place; rain as log(1 + mm)."""

    @property
    def hours_S(self) -> NDArray[np.int64]:
        """Number of hours of each place."""
        return np.diff(self.start_S)

    def fingerprint(self) -> str:
        """Hash of names, hours and values."""
        digest = hashlib.sha256(repr([(each.name, each.first, each.held_out) for each in self.places]).encode())
        digest.update(self.values_HQ.tobytes())
        return digest.hexdigest()


def read_corpus(files: Sequence[Path]) -> Corpus:
    """Read the hourly files of a corpus: columns site, latitude, longitude, time (UTC) and those of `COLUMNS`.

    Raises:
        DataError: a file is missing, or lacks a column.
    """
    places, parts = [], []
    for file in files:
        for place, values in _of_file(file):
            places.append(place)
            parts.append(values)
        logger.info("%s: read", file.name)
    if not places:
        raise DataError("the corpus has no site with enough hours: expected files with hourly rows")
    ends = np.cumsum([0, *(len(each) for each in parts)])
    return Corpus(places, ends.astype(np.int64), np.concatenate(parts))


def _of_file(file: Path) -> Iterator[tuple[Place, Halves]]:
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file}: cannot be read as a Parquet file ({error}); restore it") from error
    if lacking := {"site", "latitude", "longitude", "time"} - set(table.column_names):
        raise DataError(f"{file}: has no column {sorted(lacking)}; expected site, latitude, longitude and time")
    sites = table["site"].cast(pa.string()).combine_chunks().dictionary_encode()
    code = sites.indices.to_numpy()
    order = np.argsort(code, kind="stable")
    bounds = np.searchsorted(code[order], np.arange(len(sites.dictionary) + 1))
    hour = (table["time"].to_numpy().astype("datetime64[h]") - EPOCH).astype(np.int64)
    columns = {name: table[name].to_numpy() for name in table.column_names if name in COLUMNS}
    if "wind_direction_deg" in table.column_names:
        columns["wind_direction_deg"] = table["wind_direction_deg"].to_numpy()
    position = {name: table[name].to_numpy() for name in ("latitude", "longitude")}
    names = sites.dictionary.to_pylist()
    hidden = _held_out(names)
    for place, name in enumerate(names):
        rows = order[bounds[place] : bounds[place + 1]]
        if len(rows) < FEWEST_HOURS:
            continue
        first, last = int(hour[rows].min()), int(hour[rows].max())
        first = max(first, last - LONGEST_HOURS + 1)
        rows = rows[hour[rows] >= first]
        values_HQ = _standardised(_filled(columns, rows, hour[rows] - first, last - first + 1))
        latitude, longitude = (float(position[each][rows[0]]) for each in ("latitude", "longitude"))
        yield Place(name, file.stem, latitude, longitude, first, name in hidden), values_HQ


def _held_out(names: Sequence[str]) -> set[str]:
    """The sites of a group that the pre-training never sees: those with the smallest hashes, none of a very small group."""
    order = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return set(order[: round(HELD_OUT * len(order))])


def _filled(
    columns: dict[str, NDArray[np.float32]], rows: NDArray[np.intp], at: NDArray[np.int64], hours: int
) -> FloatArray:
    """The quantities of one place, (H, Q), in their units; NaN where missing."""
    values_HQ = np.full((hours, len(ENCODER_QUANTITIES)), np.nan, np.float32)
    index = {name: place for place, name in enumerate(ENCODER_QUANTITIES)}
    for name, quantity in COLUMNS.items():
        if name in columns:
            values_HQ[at, index[quantity]] = columns[name][rows]
    if "wind_direction_deg" in columns and "wind_speed_ms" in columns:
        speed, direction = (columns[name][rows].astype(np.float64) for name in ("wind_speed_ms", "wind_direction_deg"))
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
