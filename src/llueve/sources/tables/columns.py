"""Convert the cells of a table to numbers: one function per kind of column.

All values stay in the order of the file's rows, so that an error can name the rows.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llueve.config import DataConfig, TargetConfig
from llueve.errors import DataError, listed, shortened
from llueve.panel import Finding
from llueve.sources.findings import finding_at
from llueve.sources.names_and_units import MILLIMETRES_PER_UNIT, PACKING_NOISE_MM
from llueve.sources.tables.raw_table import MOST_NAME, RawTable

COMPASS_POINTS = ("N", "NNE", "NE", "ENE", "E", "ESE", "SE", "SSE", "S", "SSW", "SW", "WSW", "W", "WNW", "NW", "NNW")
COMPASS_DEGREES = {point: 22.5 * i for i, point in enumerate(COMPASS_POINTS)}
CALM = "CALM"
RADIANS = ("rad", "radian", "radians")
MOST_CATEGORIES = 50
PLAIN_INTEGER = re.compile(r"[+-]?[0-9]{1,400}")
PLAIN_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
LIKE_NUMBER = re.compile("[0-9]|inf", re.I)
FLOAT32_MAX = float(np.finfo(np.float32).max)

Floats = NDArray[np.float64]
Times = NDArray[np.datetime64]


@dataclass(frozen=True)
class TextColumn:
    """The distinct texts of a column, and the index of each row's text (-1 if missing)."""

    values: list[str]
    codes: NDArray[np.int64]

    def numbers(self, by_value: Sequence[float] | Floats) -> Floats:
        """One number per row from one number per distinct text, NaN where missing."""
        return np.append(np.asarray(by_value, dtype=np.float64), np.nan)[self.codes]

    def where(self, test: Callable[[str], bool]) -> NDArray[np.bool_]:
        """True for each row whose text passes the test."""
        return np.array([*map(test, self.values), False], dtype=bool)[self.codes]

    def renamed(self, rename: Callable[[str], str]) -> "TextColumn":
        """The same column with new texts; equal new texts become one value."""
        names = [rename(value) for value in self.values]
        values = list(dict.fromkeys(names))
        return TextColumn(values, _positions(names, values)[self.codes])


@dataclass(frozen=True)
class Variable:
    """One variable of the panel, by rows of the file."""

    name: str
    values: Floats
    units: str | None
    averaged: bool
    """True if rows of one (site, time) may be averaged; a variable from text never is."""


def text_column(table: RawTable, name: str, missing: Sequence[str]) -> TextColumn:
    """The stripped texts of a column of text or numbers, without `missing`; a Parquet number becomes its shortest text."""
    column = table.frame[name]
    if pd.api.types.is_float_dtype(column.dtype):
        codes, numbers = pd.factorize(column.to_numpy(dtype=np.float64))
        values = [plain(repr(float(number))) for number in numbers]
    elif isinstance(column.dtype, pd.StringDtype):
        codes, distinct = pd.factorize(column.str.strip())
        values = [str(value) for value in distinct]
    else:
        raise DataError(
            f"{table.source}: column {name!r} holds {column.dtype}, expected numbers or text; convert or exclude it"
        )
    unobserved = {text.strip() for text in missing}
    kept = [value for value in values if value not in unobserved]
    return TextColumn(kept, _positions(values, kept)[codes])


def _positions(texts: list[str], values: list[str]) -> NDArray[np.int64]:
    """The index in `values` of each text, -1 if absent; and a last -1, for the code -1 of missing cells."""
    position = {value: i for i, value in enumerate(values)}
    return np.array([*(position.get(text, -1) for text in texts), -1], dtype=np.int64)


def plain(text: str) -> str:
    """A number in its shortest form, `1` for `1.0` and `01`; any other text unchanged."""
    if PLAIN_INTEGER.fullmatch(text):
        return str(int(text))
    if PLAIN_NUMBER.fullmatch(text) is None or not np.isfinite(number := float(text)):
        return text
    return str(int(number)) if number.is_integer() else repr(number)


def refuse_texts(
    table: RawTable, name: str, column: TextColumn, refused: NDArray[np.bool_], expected: str, advice: str
) -> None:
    """Refuse the rows with a text of `column.values` for which `refused` is True; the message names texts and rows."""
    where = np.flatnonzero(np.append(refused, False)[column.codes])
    if len(where):
        texts = [shortened(column.values[code]) for code in dict.fromkeys(column.codes[where].tolist())]
        found = f"{listed(texts, 3)} in {len(where)} of {len(column.codes)} rows ({table.at(where)})"
        raise DataError(f"{table.source}: column {name!r}: {expected}, found {found}; {advice}")


def number_column(table: RawTable, name: str, data: DataConfig, times: Times) -> tuple[list[Variable], list[Finding]]:
    """The numbers of a column as one variable; text is refused, and infinite numbers unless `data.infinite` allows them."""
    cells = table.frame[name]
    if pd.api.types.is_float_dtype(cells.dtype):
        values: Floats = cells.to_numpy(dtype=np.float64)
    elif (plain_numbers := _plain_numbers(cells, data.missing)) is not None:
        values = plain_numbers
    else:
        column = text_column(table, name, data.missing)
        parsed = _parse(column.values)
        advice = (
            "add marks of missing cells to data.missing, compass points to data.wind_directions, categories to "
            "data.categories, or leave the column out with data.exclude"
        )
        refuse_texts(table, name, column, np.isnan(parsed), "expected numbers", advice)
        values = column.numbers(parsed)
    values, findings = _observed(table, name, values, data, times)
    return [Variable(name, values, table.units.get(name), averaged=True)], findings


def without_noise(variable: Variable, times: Times, is_sum: bool) -> tuple[Variable, list[Finding]]:
    """A depth of water with zero for the noise of packing below zero, at most 0.01 mm; and a finding with the count.

    `is_sum` says that the configuration or the format names it a sum of rain. Another depth with lower values has a sign,
    such as a water level, and stays as it is.
    """
    millimetres = MILLIMETRES_PER_UNIT.get(variable.units or "")
    if millimetres is None:
        return variable, []
    least = -PACKING_NOISE_MM / millimetres * (1 + 1e-6)  # as float32, 0.01 mm may be a little more
    noise = (variable.values < 0) & (variable.values >= least)
    if not noise.any() or not (is_sum or np.nanmin(variable.values) >= least):
        return variable, []
    message = f"{variable.name}: {noise.sum()} values below zero are within the noise of packing (0.01 mm) and became 0"
    finding = finding_at("packing_noise", "info", message, times[noise], variable.name)
    return replace(variable, values=np.where(noise, 0.0, variable.values)), [finding]


def wind_column(table: RawTable, name: str, data: DataConfig, times: Times) -> tuple[list[Variable], list[Finding]]:
    """Sine and cosine of a wind direction, both 0 in calm.

    Raises:
        DataError: the unit is radian, or a cell is neither a compass point, calm, nor degrees within -180 … 360.
    """
    if (table.units.get(name) or "").lower() in RADIANS:
        raise DataError(
            f"{table.source}: column {name!r}: expected compass points or degrees, its unit is {table.units[name]!r}; "
            "convert it to degrees, or remove it from data.wind_directions"
        )
    column = text_column(table, name, data.missing).renamed(str.upper)
    points = COMPASS_DEGREES | {CALM: 0.0}
    known = [points.get(text, number) for text, number in zip(column.values, _parse(column.values), strict=True)]
    degrees, findings = _observed(table, name, column.numbers(known), data, times)
    # A sentinel such as 999 is out of range too, so the range is checked after sentinels are removed.
    out_of_range = np.unique(column.codes[np.isfinite(degrees) & ((degrees < -180) | (degrees > 360))])
    refused = np.isnan(np.array(known))
    refused[out_of_range] = True
    advice = f"the points are {', '.join(COMPASS_POINTS)} and calm; marks of missing cells go into data.missing or data.sentinels"
    refuse_texts(table, name, column, refused, "expected compass points or degrees from -180 to 360", advice)
    speed = np.where(column.where(lambda text: text == CALM), 0.0, 1.0)
    angle = np.deg2rad(degrees)
    pair = (("sin", np.sin(angle)), ("cos", np.cos(angle)))
    return [Variable(f"{name}_{part}", speed * values, "1", averaged=False) for part, values in pair], findings


def category_column(
    table: RawTable, name: str, data: DataConfig, times: Times, known: Mapping[str, Sequence[str]] | None
) -> tuple[list[Variable], list[str], list[Finding]]:
    """One 0/1 variable per value of a category (only one, for the second value, if there are two), and the values.

    A value that is not in `known` was unknown to the trained model: it counts as missing, and a finding reports it.

    Raises:
        DataError: more than 50 values, or none; or a category that the model was not trained with.
    """
    column = text_column(table, name, data.missing).renamed(plain)
    values = sorted(column.values)
    where = f"{table.source}: column {name!r}"
    if known is not None:
        if name not in known:
            raise DataError(f"{where} is a category that the model was not trained with")
        values = [str(value) for value in known[name]]
    elif not values:
        raise DataError(f"{where} is all missing; leave it out with data.exclude")
    elif len(values) > MOST_CATEGORIES:
        raise DataError(
            f"{where} has {len(values)} different values ({listed([shortened(each) for each in values], 3)}), expected at most "
            f"{MOST_CATEGORIES} categories; it is probably not a category: remove it from data.categories, or data.exclude it"
        )
    elif long := [shortened(value) for value in values if len(value) > MOST_NAME]:
        raise DataError(
            f"{where}: expected categories of at most {MOST_NAME} characters, found {listed(long, 3)}; shorten them, or leave "
            "the column out with data.exclude"
        )
    numbers = {value: float(i) for i, value in enumerate(values)}
    index = column.numbers([numbers.get(value, np.nan) for value in column.values])
    unknown = column.where(lambda value: value not in numbers)
    findings = []
    if unknown.any():
        new = listed([shortened(value) for value in column.values if value not in numbers])
        message = f"{name}: the categories {new} were not in the training data; {unknown.sum()} cells count as missing"
        findings.append(finding_at("unknown_category", "warning", message, times[unknown], name))
    variables = [
        Variable(f"{name}={value}", np.where(np.isnan(index), np.nan, index == numbers[value]), None, averaged=False)
        for value in (values[1:] if len(values) == 2 else values)
    ]
    return variables, values, findings


def label_column(table: RawTable, data: DataConfig, target: TargetConfig, name: str) -> Variable:
    """Index of the label's class by row, NaN where unknown; other values are refused."""
    unknown = {plain(text.strip()) for text in target.missing}
    column = text_column(table, name, data.missing).renamed(plain)
    index = {plain(text.strip()): float(i) for i, text in enumerate(target.classes)}
    refused = np.array([value not in index and value not in unknown for value in column.values], dtype=bool)
    advice = "set target.classes to this column's values in their order, or target.missing to those that mean unknown"
    refuse_texts(table, name, column, refused, f"the label's classes are {list(target.classes)}", advice)
    return Variable(name, column.numbers([index.get(value, np.nan) for value in column.values]), None, averaged=False)


def _plain_numbers(column: "pd.Series[Any]", missing: Sequence[str]) -> Floats | None:
    """The numbers of a column in which every text is a number or missing, NaN where missing; None for any other column.

    It needs a tenth of the time that `text_column` needs.
    """
    if not isinstance(column.dtype, pd.StringDtype):
        return None
    texts = pa.array(column)
    marks = [text.strip() for text in missing]
    values = None
    if not any(LIKE_NUMBER.search(mark) for mark in marks):  # else some numbers mean missing
        values = _cast(texts)
    if values is None:
        stripped = pc.utf8_trim_whitespace(texts)
        values = _cast(pc.if_else(pc.is_in(stripped, pa.array(marks, texts.type)), None, stripped))
    return values


def _cast(texts: "pa.Array[Any]") -> Floats | None:
    """The number of each text, NaN for a null; None if a text is not a number."""
    try:
        numbers = texts.cast(pa.float64())
    except pa.ArrowInvalid:
        return None
    values: Floats = numbers.to_numpy(zero_copy_only=False)
    return values if np.isnan(values).sum() == numbers.null_count else None


def _parse(texts: list[str]) -> Floats:
    """The number of each text, NaN for a text that is not a number; `nan` too, unless it is in `data.missing`."""
    return pd.to_numeric(pd.Series(texts, dtype=str), errors="coerce").to_numpy(dtype=np.float64)


def _observed(
    table: RawTable, name: str, values: Floats, data: DataConfig, times: Times
) -> tuple[Floats, list[Finding]]:
    """The numbers with NaN for sentinels and, if allowed, for numbers beyond float32; and findings on both."""
    findings: list[Finding] = []
    if not data.sentinels and not (np.abs(values) > FLOAT32_MAX).any():
        return values, findings
    # A Parquet float32 column holds a sentinel like -99.9 rounded to float32.
    marks = [*data.sentinels, *(float(np.float32(mark)) for mark in data.sentinels if abs(mark) <= FLOAT32_MAX)]
    sentinel = np.isin(values, marks)
    if sentinel.any():
        message = f"{name}: {sentinel.sum()} cells hold a number of data.sentinels and count as missing"
        findings.append(finding_at("sentinel", "info", message, times[sentinel], name))
    infinite = (np.abs(values) > FLOAT32_MAX) & ~sentinel
    if infinite.any():
        found = f"{infinite.sum()} cells are infinite or beyond float32 (±3.4e38)"
        if data.infinite == "error":
            raise DataError(
                f"{table.source}: column {name!r}: {found} ({table.at(infinite)}); correct them, add a mark of missing "
                'cells to data.sentinels, or set data.infinite = "missing"'
            )
        message = f"{name}: {found} and count as missing"
        findings.append(finding_at("infinite", "warning", message, times[infinite], name))
    return np.where(sentinel | infinite, np.nan, values), findings
