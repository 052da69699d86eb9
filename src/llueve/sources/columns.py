"""From the cells of a table to numbers: one function per kind of column.

All values stay in the order of the file's rows, so that an error can name them as their user sees them.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llueve.config import DataConfig, TargetConfig
from llueve.errors import DataError, listed
from llueve.panel import Finding
from llueve.sources.files import Table

COMPASS_POINTS = ("N", "NNE", "NE", "ENE", "E", "ESE", "SE", "SSE", "S", "SSW", "SW", "WSW", "W", "WNW", "NW", "NNW")
COMPASS_DEGREES = {point: 22.5 * i for i, point in enumerate(COMPASS_POINTS)}
CALM = "CALM"
RADIANS = ("rad", "radian", "radians")
MOST_CATEGORIES = 50
PLAIN_INTEGER = re.compile(r"[+-]?[0-9]{1,400}")
PLAIN_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
FLOAT32_MAX = float(np.finfo(np.float32).max)

Floats = NDArray[np.float64]
Times = NDArray[np.datetime64]
Severity = Literal["warning", "info"]


@dataclass(frozen=True)
class Cells:
    """A column as its distinct texts, and which of them each row holds (-1 where missing)."""

    values: list[str]
    codes: NDArray[np.int64]

    def take(self, by_value: Sequence[float] | Floats) -> Floats:
        """One number per row from one number per distinct text, NaN where missing."""
        return np.append(np.asarray(by_value, dtype=np.float64), np.nan)[self.codes]

    def holds(self, test: Callable[[str], bool]) -> NDArray[np.bool_]:
        """The rows whose text passes."""
        return np.array([*map(test, self.values), False], dtype=bool)[self.codes]

    def merged(self, rename: Callable[[str], str]) -> "Cells":
        """The same column with each text renamed, equal new texts becoming one."""
        names = [rename(value) for value in self.values]
        values = list(dict.fromkeys(names))
        position = {value: i for i, value in enumerate(values)}
        return Cells(values, np.array([*(position[name] for name in names), -1], dtype=np.int64)[self.codes])


@dataclass(frozen=True)
class Variable:
    """One variable of the panel, by rows of the file."""

    name: str
    values: Floats
    units: str | None
    averaged: bool
    """Whether rows of one (site, time) may be averaged; what came from text never is."""


def text_cells(table: Table, name: str, missing: Sequence[str]) -> Cells:
    """The column's stripped texts; a Parquet number counts as its shortest text, `1` for 1.0."""
    column = table.frame[name]
    if pd.api.types.is_float_dtype(column.dtype):
        codes, numbers = pd.factorize(column.to_numpy(dtype=np.float64))
        values = [plain(repr(float(number))) for number in numbers]
    elif isinstance(column.dtype, pd.StringDtype):
        codes, distinct = pd.factorize(column.str.strip())
        values = [str(value) for value in distinct]
    else:
        raise DataError(
            f"{table.source}: column {name!r} holds {column.dtype}, expected numbers or text; convert it, or leave "
            "it out with data.exclude"
        )
    unobserved = {text.strip() for text in missing}
    kept = [value for value in values if value not in unobserved]
    position = {value: i for i, value in enumerate(kept)}
    return Cells(kept, np.array([*(position.get(value, -1) for value in values), -1], dtype=np.int64)[codes])


def plain(text: str) -> str:
    """A number in its shortest form, `1` for `1.0` and `01`; any other text as it is."""
    if PLAIN_INTEGER.fullmatch(text):
        return str(int(text))
    if PLAIN_NUMBER.fullmatch(text) is None or not np.isfinite(number := float(text)):
        return text
    return str(int(number)) if number.is_integer() else repr(number)


def number_column(table: Table, name: str, data: DataConfig, times: Times) -> tuple[list[Variable], list[Finding]]:
    """The column's numbers.

    Raises:
        DataError: a cell holds text, or an infinite number that `data.infinite` does not allow.
    """
    if pd.api.types.is_float_dtype(table.frame[name].dtype):
        values: Floats = table.frame[name].to_numpy(dtype=np.float64)
    else:
        cells = text_cells(table, name, data.missing)
        parsed = _parse(cells.values)
        _refuse(
            table,
            name,
            cells,
            np.isnan(parsed),
            "expected numbers",
            "name marks of missing cells in data.missing, compass points in data.wind_directions, categories in "
            "data.categories, or leave the column out with data.exclude",
        )
        values = cells.take(parsed)
    values, findings = _observed(table, name, values, data, times)
    return [Variable(name, values, table.units.get(name), averaged=True)], findings


def wind_column(table: Table, name: str, data: DataConfig, times: Times) -> tuple[list[Variable], list[Finding]]:
    """Sine and cosine of the direction, both 0 in calm.

    Raises:
        DataError: the unit is radian, or a cell is neither a compass point, calm, nor degrees within -180 … 360.
    """
    if (table.units.get(name) or "").lower() in RADIANS:
        raise DataError(
            f"{table.source}: column {name!r}: expected compass points or degrees, its unit is {table.units[name]!r}; "
            "convert it to degrees, or take it out of data.wind_directions"
        )
    cells = text_cells(table, name, data.missing).merged(str.upper)
    numbers = _parse(cells.values)
    points = COMPASS_DEGREES | {CALM: 0.0}
    known = [points.get(text, number) for text, number in zip(cells.values, numbers, strict=True)]
    degrees, findings = _observed(table, name, cells.take(known), data, times)
    # A sentinel such as 999 is out of range too, so only what is left after removing them is judged.
    left = np.unique(cells.codes[np.isfinite(degrees) & ((degrees < -180) | (degrees > 360))])
    refused = np.isnan(np.array(known))
    refused[left] = True
    advice = (
        f"the points are {', '.join(COMPASS_POINTS)} and calm; a mark of a missing cell belongs in data.missing or "
        "data.sentinels"
    )
    _refuse(table, name, cells, refused, "expected compass points or degrees from -180 to 360", advice)
    speed = np.where(cells.holds(lambda text: text == CALM), 0.0, 1.0)
    angle = np.deg2rad(degrees)
    pair = (("sin", np.sin(angle)), ("cos", np.cos(angle)))
    return [Variable(f"{name}_{part}", speed * values, "1", averaged=False) for part, values in pair], findings


def category_column(
    table: Table, name: str, data: DataConfig, times: Times, known: Mapping[str, Sequence[str]] | None
) -> tuple[list[Variable], list[str], list[Finding]]:
    """One 0/1 variable per value (one alone, for the second value, where there are two), and the values used.

    A value that is not in `known` tells a model nothing that it learnt: it counts as missing, and is reported.

    Raises:
        DataError: more than 50 values, or none.
    """
    cells = text_cells(table, name, data.missing).merged(plain)
    values = _category_values(table, name, cells, known)
    numbers = {value: float(i) for i, value in enumerate(values)}
    index = cells.take([numbers.get(value, np.nan) for value in cells.values])
    unknown = cells.holds(lambda value: value not in numbers)
    findings = []
    if unknown.any():
        new = listed([value for value in cells.values if value not in numbers])
        message = f"{name}: the categories {new} were not in the training data; {unknown.sum()} cells count as missing"
        findings.append(_finding("unknown_category", "warning", message, name, times[unknown]))
    shown = values[1:] if len(values) == 2 else values
    return (
        [
            Variable(
                f"{name}={value}", np.where(np.isnan(index), np.nan, index == numbers[value]), None, averaged=False
            )
            for value in shown
        ],
        values,
        findings,
    )


def label_column(table: Table, data: DataConfig, target: TargetConfig, name: str) -> Variable:
    """Index of the label's class, NaN where unknown.

    Raises:
        DataError: a value that is neither a class nor a mark of a missing cell.
    """
    unknown = {plain(text.strip()) for text in target.missing}
    cells = text_cells(table, name, data.missing).merged(plain)
    index = {plain(text.strip()): float(i) for i, text in enumerate(target.classes)}
    refused = np.array([value not in index and value not in unknown for value in cells.values], dtype=bool)
    advice = (
        "set target.classes to the values of this column in their order, or target.missing to those that mean unknown"
    )
    _refuse(table, name, cells, refused, f"the label's classes are {list(target.classes)}", advice)
    return Variable(name, cells.take([index.get(value, np.nan) for value in cells.values]), None, averaged=False)


def _category_values(table: Table, name: str, cells: Cells, known: Mapping[str, Sequence[str]] | None) -> list[str]:
    """The values that make variables: those of the file, or exactly those that a model was trained with."""
    found = sorted(cells.values)
    if known is not None:
        if name not in known:
            raise DataError(f"{table.source}: column {name!r} is a category that the model was not trained with")
        return [str(value) for value in known[name]]
    if not found:
        raise DataError(
            f"{table.source}: column {name!r} is all missing, so it has no categories; leave it out with data.exclude"
        )
    if len(found) > MOST_CATEGORIES:
        raise DataError(
            f"{table.source}: column {name!r} has {len(found)} different values ({listed(found, 3)}), expected at most "
            f"{MOST_CATEGORIES} categories; it is probably not a category: take it out of data.categories, or "
            "data.exclude it"
        )
    return found


def _parse(texts: list[str]) -> Floats:
    """Numbers of distinct texts, NaN where a text is none (`nan` too: only `data.missing` says what is missing)."""
    return pd.to_numeric(pd.Series(texts, dtype=str), errors="coerce").to_numpy(dtype=np.float64)


def _refuse(table: Table, name: str, cells: Cells, refused: NDArray[np.bool_], expected: str, advice: str) -> None:
    """Raise if any row holds a refused text."""
    where = np.flatnonzero(np.append(refused, False)[cells.codes])
    if len(where) == 0:
        return
    texts = [repr(cells.values[code]) for code in dict.fromkeys(cells.codes[where].tolist())]
    count = f"{len(where)} cell{'s' if len(where) > 1 else ''}"
    raise DataError(
        f"{table.source}: column {name!r}: {expected}, found {listed(texts, 3)} in {count} ({table.at(where)}); "
        f"{advice}"
    )


def _observed(table: Table, name: str, values: Floats, data: DataConfig, times: Times) -> tuple[Floats, list[Finding]]:
    """The numbers with NaN for sentinels and, where allowed, for what float32 cannot hold; and what was so replaced."""
    findings: list[Finding] = []
    # A Parquet float32 column holds a sentinel like -99.9 rounded to float32.
    marks = [*data.sentinels, *(float(np.float32(mark)) for mark in data.sentinels if abs(mark) <= FLOAT32_MAX)]
    sentinel = np.isin(values, marks)
    if sentinel.any():
        message = f"{name}: {sentinel.sum()} cells hold a number of data.sentinels and count as missing"
        findings.append(_finding("sentinel", "info", message, name, times[sentinel]))
    infinite = (np.abs(values) > FLOAT32_MAX) & ~sentinel
    if infinite.any():
        found = f"{infinite.sum()} cells are infinite or beyond float32 (±3.4e38)"
        if data.infinite == "error":
            raise DataError(
                f"{table.source}: column {name!r}: {found} ({table.at(infinite)}); mend them, name a mark of missing "
                'cells in data.sentinels, or set data.infinite = "missing"'
            )
        findings.append(_finding("infinite", "warning", f"{name}: {found} and count as missing", name, times[infinite]))
    return np.where(sentinel | infinite, np.nan, values), findings


def _finding(code: str, severity: Severity, message: str, name: str, times: Times) -> Finding:
    """A finding about some cells of one variable."""
    first, last = np.datetime_as_string(np.array([times.min(), times.max()]), unit="s").tolist()
    return Finding(code, severity, message, variable=name, first=first, last=last, count=len(times))
