"""From a path to a `Table`: the cells of a CSV or Parquet file, nothing yet interpreted.

CSV cells all stay text, so that no reader guesses what a column means; Parquet columns keep their types.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llueve.config import DataConfig
from llueve.errors import DataError, listed

PARQUET_MAGIC = b"PAR1"
HEADER_WITH_UNIT = re.compile(r"^(?P<name>.*\S)\s*(?:\[(?P<square>[^\[\]]*)\]|\((?P<round>[^()]*)\))$")
PANDAS_INDEX = re.compile(r"^__index_level_\d+__$")


class RawColumn(NamedTuple):
    """One column as the file has it."""

    header: str
    unit: str | None
    """Unit from Parquet's field metadata."""
    cells: Any


@dataclass(frozen=True)
class Table:
    """The columns of one file by their names without units, and where each row lies in it."""

    source: str
    """The path as configured; every error starts with it."""
    frame: pd.DataFrame
    rows: NDArray[np.int64]
    """Row number of each row as its user sees it: in CSV the header is row 1, in Parquet the first row is."""
    units: dict[str, str]

    def at(self, where: NDArray[Any]) -> str:
        """The file's row numbers for a mask or for positions: `rows 2, 3 and 7 more`."""
        numbers = self.rows[where].tolist()
        return f"row {numbers[0]}" if len(numbers) == 1 else f"rows {listed(numbers)}"


def load_table(data: DataConfig) -> Table:
    """Read the file that `data.path` names.

    Raises:
        DataError: no such file or package, not CSV or Parquet, empty, ragged, a header that names a column twice or not
            at all, or a column whose unit is told in two ways.
    """
    with located(data.path) as path:
        found = _sniff(path, data.path)
        kind = found if data.format == "auto" else data.format
        columns, rows = (_read_parquet if kind == "parquet" else _read_csv)(path, data.path)
    headers = [_split_header(column.header) for column in columns]
    names = [name for name, _ in headers]
    _check_headers(names, data.path)
    if len(rows) == 0:
        raise DataError(
            f"{data.path}: holds a header ({listed(names, 10)}) but no rows; expected at least one observation"
        )
    fields = {name: column.unit for name, column in zip(names, columns, strict=True)}
    told: dict[str, Mapping[str, str | None]] = {
        "the header": dict(headers),
        "the Parquet field": fields,
        "data.units": dict(data.units),
    }
    units = {name: unit for name in names if (unit := agreed_unit(name, told, data.path))}
    cells = {name: column.cells for name, column in zip(names, columns, strict=True)}
    return Table(data.path, pd.DataFrame(cells), rows, units)


@contextmanager
def located(path: str) -> Iterator[Path]:
    """The file on disk, unpacked first where an installed package keeps it in an archive."""
    if not path.startswith("package:"):
        yield Path(path)
        return
    package, _, file = path.removeprefix("package:").partition("/")
    if not package or not file:
        raise DataError(f"{path}: expected package:NAME/FILE, such as package:vega_datasets/_data/seattle-weather.csv")
    try:
        entry = resources.files(package).joinpath(file)
    except (ImportError, TypeError, ValueError) as error:
        raise DataError(f"{path}: package {package!r} is not installed; run pip install {package}") from error
    if not entry.is_file():
        raise DataError(
            f"{path}: package {package!r} is installed but carries no file {file!r}; check the name, or get the "
            f"version that has it with pip install --upgrade {package}"
        )
    with resources.as_file(entry) as file_path:
        yield file_path


def _sniff(path: Path, source: str) -> str:
    """`parquet` or `csv` by the first bytes, since an extension is only a claim."""
    if path.is_dir():
        raise DataError(f"{source}: is a directory; expected one CSV or Parquet file")
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except FileNotFoundError as error:
        raise DataError(f"{source}: no such file; set data.path to a CSV or Parquet file") from error
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror}); check its permissions") from error
    if not start:
        raise DataError(f"{source}: is empty; expected a CSV file with a header, or a Parquet file")
    if start.startswith(PARQUET_MAGIC):
        return "parquet"
    if b"\0" in start:
        raise DataError(f"{source}: holds binary data; expected CSV text in UTF-8 with a header, or a Parquet file")
    return "csv"


def _read_csv(path: Path, source: str) -> tuple[list[RawColumn], NDArray[np.int64]]:
    """Columns of text, and row numbers."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, rows = _scan_csv(file, source)
        frame = pd.read_csv(
            path, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8-sig", index_col=False
        )
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}: is neither Parquet nor text in UTF-8 (byte {error.start}: {error.reason}); give a CSV or "
            "Parquet file"
        ) from error
    except (csv.Error, pd.errors.ParserError) as error:
        raise DataError(
            f"{source}: is not a CSV table ({error}); expected commas between cells and closed quotes"
        ) from error
    if len(frame) != len(rows):
        raise DataError(
            f"{source}: {len(rows)} rows by one count and {len(frame)} by another; check quotes and line ends"
        )
    return [RawColumn(name, None, frame.iloc[:, i]) for i, name in enumerate(header)], rows


def _scan_csv(file: io.TextIOBase, source: str) -> tuple[list[str], NDArray[np.int64]]:
    """The header, and the numbers of the rows that are not blank; every row must be as long as the header.

    pandas pads short rows without a word, which would shift no column but hide a cut file.
    """
    header: list[str] = []
    rows: list[int] = []
    ragged: list[tuple[int, int]] = []
    for number, cells in enumerate(csv.reader(file), start=1):
        if not cells or (len(cells) == 1 and len(header) != 1 and not cells[0].strip()):
            continue
        if not header:
            header = cells
            continue
        rows.append(number)
        if len(cells) != len(header):
            ragged.append((number, len(cells)))
    if not header:
        raise DataError(f"{source}: holds only blank lines; expected a CSV file with a header")
    if ragged:
        found = listed([f"row {number} has {count}" for number, count in ragged])
        raise DataError(
            f"{source}: the header has {len(header)} cells but {found}; mend these rows (quote cells with commas)"
        )
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise DataError(
            f"{source}: the header {header[0]!r} is one cell; expected commas between the cells of a CSV file"
        )
    return header, np.array(rows, dtype=np.int64)


def _read_parquet(path: Path, source: str) -> tuple[list[RawColumn], NDArray[np.int64]]:
    """Columns with the units of their field metadata, and row numbers from 1."""
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{source}: cannot be read as Parquet ({error}); write the file anew or set data.format"
        ) from error
    columns: list[RawColumn] = []
    for i, field in enumerate(table.schema):
        # An index that pandas wrote without a name is the row's number, not a quantity.
        if PANDAS_INDEX.match(field.name):
            continue
        unit = (field.metadata or {}).get(b"units")
        text = unit.decode("utf-8", errors="replace").strip() if unit else ""
        columns.append(RawColumn(field.name, text or None, _to_pandas(table.column(i))))
    return columns, np.arange(1, table.num_rows + 1, dtype=np.int64)


def _to_pandas(column: pa.ChunkedArray) -> "pd.Series[Any]":
    """Numbers as float64 with NaN, text and true/false as text, times as times; anything else as it is."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    series: pd.Series[Any]
    if pa.types.is_boolean(kind):
        # The same text that a CSV file of such a column holds, so that both read alike.
        series = column.to_pandas().map({True: "True", False: "False"}).astype("str")
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        series = column.cast(pa.float64(), safe=False).to_pandas()
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        series = column.to_pandas().astype("str")
    elif pa.types.is_date(kind):
        series = column.cast(pa.timestamp("ms")).to_pandas()
    else:
        series = column.to_pandas()
    return series


def _split_header(header: str) -> tuple[str, str | None]:
    """`rain [mm]` as `rain` and `mm`."""
    match = HEADER_WITH_UNIT.match(header.strip())
    if match is None:
        return header.strip(), None
    unit = match["square"] if match["square"] is not None else match["round"]
    return match["name"].strip(), unit.strip() or None


def _check_headers(names: list[str], source: str) -> None:
    """Every column has one name of its own."""
    unnamed = [i for i, name in enumerate(names, start=1) if not name]
    if unnamed:
        raise DataError(
            f"{source}: column {listed(unnamed)} has no name in the header; name it, or remove it from the file"
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f"{source}: the header names {listed(repeated)} more than once (units aside); rename or remove one"
        )


def agreed_unit(name: str, told: Mapping[str, Mapping[str, str | None]], source: str) -> str | None:
    """The unit of one column, where everyone who tells it tells the same."""
    found = {teller: unit for teller, units in told.items() if (unit := units.get(name))}
    if len(set(found.values())) > 1:
        sayings = " but ".join(f"{teller} says {unit!r}" for teller, unit in found.items())
        raise DataError(f"{source}: column {name!r}: {sayings}; correct the wrong one")
    return next(iter(found.values()), None)
