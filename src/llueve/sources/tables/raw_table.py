"""The cells of a CSV or Parquet file as a `RawTable`, before anything is interpreted.

All CSV cells stay text, so that no reader guesses the meaning of a column; Parquet columns keep their types.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llueve.config import DataConfig
from llueve.csv_text import from_cell
from llueve.errors import DataError, listed, shortened
from llueve.panel import Finding
from llueve.sources.names_and_units import agreed_units
from llueve.sources.tables.package_files import package_file

PARQUET_MAGIC = b"PAR1"
HEADER_WITH_UNIT = re.compile(r"^(?P<name>.*\S)\s*(?:\[(?P<square>[^\[\]]*)\]|\((?P<round>[^()]*)\))$")
MOST_NAME = 200
"""Largest number of characters of the name of a column or a site."""
BLOCK_CELLS = 2**20
"""Number of cells of a CSV file that wait as Python texts."""
PANDAS_INDEX = re.compile(r"^__index_level_\d+__$")


RawColumn = tuple[str, str | None, str | None, Any]
"""Header, unit and CF standard name in Parquet's field metadata, and cells of one column."""


@dataclass(frozen=True)
class SiteLocation:
    """Degrees north, degrees east within -180 … 180, and metres above the sea (NaN if unknown)."""

    latitude: float
    longitude: float
    elevation_m: float


@dataclass(frozen=True)
class RawTable:
    """The columns of a table by their names without units, and the number of each row in the file."""

    source: str
    """The configured path; every error starts with it."""
    frame: pd.DataFrame
    rows: NDArray[np.int64]
    """Row numbers for messages: in CSV the header is row 1, in Parquet the first row is row 1."""
    units: dict[str, str]
    findings: tuple[Finding, ...] = ()
    locations: dict[str, SiteLocation] = field(default_factory=dict)
    """By site, if the format has them."""
    standard_names: dict[str, str] = field(default_factory=dict)
    """CF standard name by column, if the file gives it."""
    vocabulary: str | None = None
    """Title of the vocabulary of a format that defines its names."""

    def at(self, where: NDArray[Any]) -> str:
        """The row numbers of a mask or of positions: `rows 2, 3 and 7 more`."""
        numbers = self.rows[where].tolist()
        return f"row {numbers[0]}" if len(numbers) == 1 else f"rows {listed(numbers)}"


def load_table(data: DataConfig) -> RawTable:
    """Read the CSV or Parquet file of `data.path`.

    Raises:
        DataError: no such file; not CSV or Parquet; an empty file; a row longer or shorter than the header;
            a column without a name, or two of one name; or a column with two different units.
    """
    with located(data.path) as path:
        found = _detect_format(path, data.path)
        kind = found if data.format == "auto" else data.format
        columns, rows = (_read_parquet if kind == "parquet" else _read_csv)(path, data.path)
    headers = [_split_header(header) for header, _, _, _ in columns]
    names = [name for name, _ in headers]
    _check_headers(names, data.path)
    if len(rows) == 0:
        raise DataError(f"{data.path}: holds a header ({listed(names, 10)}) but no rows; expected at least one")
    by_field = {name: unit for name, (_, unit, _, _) in zip(names, columns, strict=True)}
    standard = {name: given for name, (_, _, given, _) in zip(names, columns, strict=True) if given}
    given: dict[str, Mapping[str, str | None]]
    given = {"the header": dict(headers), "the Parquet field": by_field, "data.units": data.units}
    cells = {name: cells for name, (_, _, _, cells) in zip(names, columns, strict=True)}
    frame = pd.DataFrame(cells, copy=False)  # a copy of thousands of columns takes as long as reading them
    if kind == "csv" and data.site in cells and frame[data.site].str.startswith("'").any():
        frame[data.site] = frame[data.site].map(from_cell)
    return RawTable(data.path, frame, rows, agreed_units(names, given, data.path), standard_names=standard)


def column_names(source: str) -> list[str]:
    """The names of the columns of a CSV or Parquet file, without their units; its rows are not read.

    Raises:
        DataError: no such file, or it is neither CSV nor Parquet.
    """
    with located(source) as path:
        if _detect_format(path, source) == "parquet":
            try:
                headers = [name for name in pq.read_schema(path).names if not PANDAS_INDEX.match(name)]
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{source}: cannot be read as Parquet ({error}); write it again") from error
        else:
            try:
                with path.open(encoding="utf-8-sig", newline="") as file:
                    headers = next((cells for cells in csv.reader(file) if any(map(str.strip, cells))), [])
            except (UnicodeDecodeError, csv.Error) as error:
                raise DataError(f"{source}: is neither Parquet nor CSV text in UTF-8 ({error}); convert it") from error
    return [_split_header(header)[0] for header in headers]


@contextmanager
def located(path: str) -> Iterator[Path]:
    """The file on disk.

    Raises:
        DataError: no such file, or a package that is not read; or the file cannot be read while the context lasts.
    """
    try:
        yield package_file(path) if path.startswith("package:") else Path(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check data.path") from error
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read ({reason}); check data.path and the permissions") from error


def _detect_format(path: Path, source: str) -> str:
    """`parquet` or `csv` by the first bytes, because a suffix proves nothing."""
    if path.is_dir():
        raise DataError(f"{source}: is a directory; expected one CSV or Parquet file")
    with path.open("rb") as file:
        start = file.read(4096)
    if not start:
        raise DataError(f"{source}: is empty; expected a CSV file with a header, or a Parquet file")
    if start.startswith(PARQUET_MAGIC):
        return "parquet"
    if b"\0" in start:
        raise DataError(f"{source}: holds binary data; expected CSV text in UTF-8 with a header, or a Parquet file")
    return "csv"


def _read_csv(path: Path, source: str) -> tuple[list[RawColumn], NDArray[np.int64]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, rows, columns = _scan_csv(file, source)
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: is neither Parquet nor UTF-8 text (byte {error.start}: {error.reason})") from error
    except csv.Error as error:
        raise DataError(f"{source}: is not a CSV table ({error}); expected commas and closed quotes") from error
    return [(name, None, None, pd.array(cells, dtype="str")) for name, cells in zip(header, columns, strict=True)], rows


def _scan_csv(file: io.TextIOBase, source: str) -> tuple[list[str], NDArray[np.int64], list[pa.ChunkedArray]]:
    """The header, the numbers of the rows that are not blank, and the texts of each column.

    Every row must be as long as the header: a short row may be the end of a file that was cut.
    """
    header: list[str] = []
    rows: list[int] = []
    ragged: list[tuple[int, int]] = []
    lines = _Lines(file)
    columns = _TextColumns()
    for number, cells in enumerate(csv.reader(lines), start=1):
        if lines.ended:  # inside a row
            raise csv.Error(f"row {number} ends inside quotes")
        if not cells or (len(cells) == 1 and len(header) != 1 and not cells[0].strip()):
            continue
        if not header:
            header = cells
            continue
        rows.append(number)
        if len(cells) == len(header):
            columns.add(cells)
        else:
            ragged.append((number, len(cells)))
    if not header:
        raise DataError(f"{source}: holds only blank lines; expected a CSV file with a header")
    if ragged:
        found = listed([f"row {number} has {count}" for number, count in ragged])
        raise DataError(f"{source}: the header has {len(header)} cells but {found}; quote cells with commas")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise DataError(f"{source}: the header {shortened(header[0])} is one cell; expected commas between the cells")
    return header, np.array(rows, dtype=np.int64), columns.whole(len(header))


class _Lines:
    """The lines of a file; `ended` is True once one more was asked for than it has."""

    def __init__(self, file: io.TextIOBase) -> None:
        self.file = file
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        yield from self.file
        self.ended = True


class _TextColumns:
    """The texts of a table by column. Rows wait as Python texts only until a block of them is full."""

    def __init__(self) -> None:
        self.rows: list[list[str]] = []
        self.blocks: list[list[pa.Array]] = []

    def add(self, cells: list[str]) -> None:
        """Add a row, as long as all others."""
        self.rows.append(cells)
        if len(self.rows) * len(cells) >= BLOCK_CELLS:
            self._end_block()

    def whole(self, count: int) -> list[pa.ChunkedArray]:
        """The `count` columns from top to bottom."""
        self._end_block()
        texts = pa.large_string()
        return [pa.chunked_array([block[i] for block in self.blocks], texts) for i in range(count)]

    def _end_block(self) -> None:
        if self.rows:
            self.blocks.append([pa.array(cells, pa.large_string()) for cells in zip(*self.rows, strict=True)])
            self.rows = []


def _read_parquet(path: Path, source: str) -> tuple[list[RawColumn], NDArray[np.int64]]:
    """Columns with the units of their field metadata, and row numbers from 1."""
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source}: cannot be read as Parquet ({error}); set data.format") from error
    columns: list[RawColumn] = []
    for i, column in enumerate(table.schema):
        # An index that pandas wrote without a name is the row's number, not a quantity.
        if PANDAS_INDEX.match(column.name):
            continue
        unit, standard_name = (_metadata(column, key) for key in (b"units", b"standard_name"))
        columns.append((column.name, unit, standard_name, _to_pandas(table.column(i))))
    return columns, np.arange(1, table.num_rows + 1, dtype=np.int64)


def _metadata(column: pa.Field, key: bytes) -> str | None:
    return (column.metadata or {}).get(key, b"").decode("utf-8", errors="replace").strip() or None


def _to_pandas(column: pa.ChunkedArray) -> "pd.Series[Any]":
    """Numbers as float64 with NaN, text and true/false as text, times as times, other types unchanged."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind, types = column.type, pa.types
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind):
        column = column.cast(pa.float64(), safe=False)
    elif types.is_date(kind):
        column = column.cast(pa.timestamp("ms"))
    series: pd.Series[Any] = column.to_pandas()
    if types.is_boolean(kind):  # the text of such a column in a CSV file, so that both are read in the same way
        series = series.map({True: "True", False: "False"})
    text = types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind)
    return series.astype("str") if text else series


def _split_header(header: str) -> tuple[str, str | None]:
    """`rain [mm]` as `rain` and `mm`."""
    match = HEADER_WITH_UNIT.match(header.strip())
    if match is None:
        return header.strip(), None
    unit = match["square"] if match["square"] is not None else match["round"]
    return match["name"].strip(), unit.strip() or None


def _check_headers(names: list[str], source: str) -> None:
    unnamed = [i for i, name in enumerate(names, start=1) if not name]
    if unnamed:
        raise DataError(f"{source}: column {listed(unnamed)} has no name in the header; name or remove it")
    if long := [f"column {i}: {shortened(name)}" for i, name in enumerate(names, start=1) if len(name) > MOST_NAME]:
        raise DataError(
            f"{source}: a name in the header has more than {MOST_NAME} characters ({listed(long)}); shorten it"
        )
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise DataError(f"{source}: the header names {listed(repeated)} more than once (units ignored); rename it")
