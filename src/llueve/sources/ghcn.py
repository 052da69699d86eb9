"""GHCN-Daily station files (`.dly`) as rows: fixed width, tenths of units, -9999 for missing, flags.

The format: https://www.ncei.noaa.gov/pub/data/ghcn/daily/readme.txt. A line holds one element of one month of one station:
station (columns 1-11), year (12-15), month (16-17), element (18-21), then 31 times a value (5 columns) with its flags of
measurement, quality and source (1 column each). A value that failed a quality check, whichever, is missing here. A day is
the station's own: precipitation covers the 24 hours up to its time of observation.
"""

import glob
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llueve.config import DataConfig
from llueve.errors import DataError, listed
from llueve.panel import Finding
from llueve.sources.columns import Floats, Times
from llueve.sources.files import Table, agreed_unit, located
from llueve.sources.rows import Rows, own_columns, read_bytes

MISSING = -9999
WIDTH = 21 + 31 * 8
VALUES = slice(21, WIDTH)
MOST_BYTES = 2**31
DAY_HOURS = 24.0

TENTHS_MM, TENTHS_C, TENTHS_MS = ("mm", 10.0), ("degC", 10.0), ("m s-1", 10.0)
ELEMENTS: dict[str, tuple[str, float]] = {
    **dict.fromkeys(("PRCP", "EVAP", "WESD", "WESF", "THIC"), TENTHS_MM),
    **dict.fromkeys(("SNOW", "SNWD"), ("mm", 1.0)),
    **dict.fromkeys(("TMAX", "TMIN", "TAVG", "TOBS", "ADPT", "AWBT", "MXPN", "MNPN"), TENTHS_C),
    **dict.fromkeys(("AWND", "WSF1", "WSF2", "WSF5", "WSFG", "WSFI", "WSFM"), TENTHS_MS),
    **dict.fromkeys(("WDF1", "WDF2", "WDF5", "WDFG", "WDFI", "WDFM", "AWDR"), ("degree", 1.0)),
    **dict.fromkeys(("ASLP", "ASTP"), ("hPa", 10.0)),
    **dict.fromkeys(("RHAV", "RHMN", "RHMX", "PSUN", "ACMC", "ACMH", "ACSC", "ACSH"), ("%", 1.0)),
    "TSUN": ("min", 1.0),
    "WDMV": ("km", 1.0),
}
"""Unit, and the number of steps of the file in it. Others are sums over several days, marks or clock times: not read."""
DAILY_SUMS = ("PRCP", "SNOW", "WESF", "EVAP")

HEAD = re.compile(rb"[A-Z]{2}[A-Za-z0-9_-]{9}(?:1[6-9]|2[0-2])[0-9]{2}(?:0[1-9]|1[0-2])[A-Z0-9]{4}")
NUMBER = re.compile(rb" *-?[0-9]+")
FIRST_YEAR, LAST_YEAR = 1678, 2261

Bytes = NDArray[np.bytes_]
Mask = NDArray[np.bool_]


@dataclass
class Tally:
    """What was met, counted by element."""

    days: dict[tuple[str, str], list[Times]] = field(default_factory=dict)
    """By kind and element, the days concerned."""
    letters: dict[str, set[str]] = field(default_factory=dict)
    """Quality flags by element."""
    unread: dict[str, int] = field(default_factory=dict)
    """Lines of elements that are not read."""

    def add(self, kind: str, element: str, days: Times) -> None:
        """Count some days."""
        if len(days):
            self.days.setdefault((kind, element), []).append(days)


def is_ghcn(start: bytes) -> bool:
    """Whether a file that begins so is a `.dly` file."""
    return HEAD.match(start) is not None and NUMBER.fullmatch(start[21:26]) is not None


def load_ghcn(data: DataConfig) -> Rows:
    """Read one file, a folder of `.dly` files, or those of a pattern; each station is a site.

    Raises:
        DataError: a line is not as the format says; the message names file and line.
        ConfigError: `data.site`, `data.time` or the like is set: the format itself has them.
    """
    tally = Tally()
    frames: list[pd.DataFrame] = []
    file_of: dict[str, str] = {}
    left = MOST_BYTES
    for path in _files(data):
        with located(path) as place:
            content = read_bytes(place, path, left)
        left -= len(content)
        for station, frame in _stations(content, path, tally):
            if station in file_of:
                raise DataError(
                    f"{path}: holds station {station}, as {file_of[station]} does; keep one of the two files"
                )
            file_of[station] = path
            frames.append(frame)
    if not frames:
        known = f"{listed(sorted(ELEMENTS), 6)}"
        raise DataError(
            f"{data.path}: holds no observation of an element that is read ({known}); choose other stations"
        )
    frame = pd.concat(frames, ignore_index=True)
    frame["site"] = _named(frame["site"], data)
    elements = [name for name in ELEMENTS if name in frame]
    told = {"the format": {name: ELEMENTS[name][0] for name in elements}, "data.units": data.units}
    units = {name: unit for name in elements if (unit := agreed_unit(name, told, data.path))}
    table = Table(data.path, frame[["site", "time", *elements]], np.arange(1, len(frame) + 1), units)
    settings = own_columns(data, DAY_HOURS, {name: DAY_HOURS for name in DAILY_SUMS if name in frame})
    return Rows(table, settings, tuple(_findings(tally)))


def _files(data: DataConfig) -> list[str]:
    """The files that `data.path` means, in the order of their names."""
    path = Path(data.path)
    if data.path.startswith("package:") or path.is_file():
        return [data.path]
    if path.is_dir():
        found = sorted(str(file) for file in path.iterdir() if file.suffix.lower() == ".dly")
    elif glob.has_magic(data.path):
        found = sorted(glob.glob(data.path, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
    else:
        found = [data.path]  # which reading then refuses
    if not found:
        raise DataError(f"{data.path}: no .dly file there; give a file, a folder of .dly files, or a pattern of them")
    return found


def _stations(content: bytes, path: str, tally: Tally) -> list[tuple[str, pd.DataFrame]]:
    """The stations of one file: their days by elements, every day on which something was measured."""
    lines, numbers = _lines(content, path)
    heads = lines.view(np.uint8).reshape(-1, WIDTH)
    element_of = _field(heads, 17, 21)
    month_texts, month_of = np.unique(_field(heads, 0, 17), return_inverse=True)
    station_of_month = np.array([text[:11].decode() for text in month_texts])
    starts = np.array([f"{int(text[11:15]):04d}-{text[15:17].decode()}" for text in month_texts], dtype="datetime64[M]")
    days: Times = starts[:, None].astype("datetime64[D]") + np.arange(31).astype("timedelta64[D]")
    real = days < (starts + 1)[:, None].astype("datetime64[D]")
    columns: dict[str, Floats] = {}
    measured = np.zeros(days.shape, dtype=np.bool_)
    for name in dict.fromkeys(element_of.tolist()):
        element, chosen = name.decode(), np.flatnonzero(element_of == name)
        if element not in ELEMENTS:
            tally.unread[element] = tally.unread.get(element, 0) + len(chosen)
            continue
        months = month_of[chosen]
        _refuse_repeated(months, numbers[chosen], element, station_of_month, starts, path)
        fields = heads[chosen][:, VALUES].reshape(-1, 31, 8)
        raw = _integers(fields, numbers[chosen], element, path)
        absent = raw == MISSING
        _refuse_unreal(~absent & ~real[months], numbers[chosen], element, starts[months], path)
        measured[months] |= ~absent
        values = np.full(days.shape, np.nan)
        values[months] = _judged(raw, fields, days[months], element, tally)
        columns[element] = values
    frame = pd.DataFrame({name: values[measured] for name, values in columns.items()})
    frame.insert(0, "time", days[measured].astype("datetime64[ns]"))
    frame.insert(0, "site", np.broadcast_to(station_of_month[:, None], days.shape)[measured])
    return [(str(station), part) for station, part in frame.groupby("site", sort=True)]


def _lines(content: bytes, path: str) -> tuple[Bytes, NDArray[np.int64]]:
    """The lines, each of full width, and their numbers in the file; blank ones are passed over."""
    if b"\0" in content:
        raise DataError(f"{path}: holds binary data; expected the text of a GHCN-Daily .dly file")
    kept, numbers = [], []
    for number, line in enumerate(content.replace(b"\r\n", b"\n").split(b"\n"), start=1):
        if not line.strip():
            continue
        if WIDTH - 3 <= len(line) < WIDTH and line[WIDTH - 8 : WIDTH - 3] == b"-9999":
            line = line.ljust(WIDTH)  # blanks that an editor removed; a missing value needs no flag
        if len(line) != WIDTH:
            raise DataError(
                f"{path}: line {number} has {len(line)} characters, expected {WIDTH} (a month of GHCN-Daily); it is cut off, or "
                "this is no .dly file: get it again"
            )
        if HEAD.match(line) is None or not FIRST_YEAR <= int(line[11:15]) <= LAST_YEAR:
            start = line[:21].decode("ascii", errors="replace")
            raise DataError(
                f"{path}: line {number} begins with {start!r}, expected station, year, month and element such as "
                "'USW00024233201201PRCP'; get the file again"
            )
        kept.append(line)
        numbers.append(number)
    if not kept:
        raise DataError(f"{path}: holds only blank lines; get the file again")
    return np.array(kept, dtype=f"S{WIDTH}"), np.array(numbers, dtype=np.int64)


def _field(heads: NDArray[np.uint8], start: int, end: int) -> Bytes:
    """Some columns of all lines as text."""
    return np.ascontiguousarray(heads[:, start:end]).view(f"S{end - start}").ravel()


def _integers(fields: NDArray[np.uint8], numbers: NDArray[np.int64], element: str, path: str) -> NDArray[np.int64]:
    """The 31 values of each line."""
    texts, codes = np.unique(np.ascontiguousarray(fields[:, :, :5]).view("S5").ravel(), return_inverse=True)
    bad = np.array([NUMBER.fullmatch(text) is None for text in texts.tolist()])
    if bad.any():
        at = int(np.flatnonzero(bad[codes])[0])
        raise DataError(
            f"{path}: line {numbers[at // 31]}: {element} of day {at % 31 + 1} is {bytes(texts[codes[at]])!r}, "
            "expected a whole number at the right of 5 columns; the line is damaged: get the file again"
        )
    values: NDArray[np.int64] = np.array([int(text) for text in texts.tolist()], dtype=np.int64)[codes].reshape(-1, 31)
    return values


def _judged(raw: NDArray[np.int64], fields: NDArray[np.uint8], days: Times, element: str, tally: Tally) -> Floats:
    """Numbers in the element's unit, NaN where missing or where a quality check failed; what was met is counted."""
    present = raw != MISSING
    measurement, quality = fields[:, :, 5], fields[:, :, 6]
    failed = present & (quality != ord(" "))
    tally.add("quality_flag", element, days[failed])
    tally.letters.setdefault(element, set()).update(chr(code) for code in np.unique(quality[failed]))
    tally.add("trace", element, days[present & ~failed & (measurement == ord("T"))])
    tally.add("presumed_zero", element, days[present & ~failed & (measurement == ord("P"))])
    return np.where(present & ~failed, raw / ELEMENTS[element][1], np.nan)


def _refuse_repeated(
    months: NDArray[np.int64],
    numbers: NDArray[np.int64],
    element: str,
    stations: NDArray[np.str_],
    starts: Times,
    path: str,
) -> None:
    """One line per station, month and element."""
    found, counts = np.unique(months, return_counts=True)
    if (counts > 1).any():
        month = found[counts > 1][0]
        lines = numbers[months == month].tolist()
        raise DataError(
            f"{path}: lines {listed(lines)} all hold {element} of {stations[month]} in {starts[month]}; remove all but one"
        )


def _refuse_unreal(there: Mask, numbers: NDArray[np.int64], element: str, starts: Times, path: str) -> None:
    """A month has no value after its last day."""
    if there.any():
        line, day = np.argwhere(there)[0]
        raise DataError(
            f"{path}: line {numbers[line]}: {element} has a value on day {day + 1} of {starts[line]}, which has no such day; "
            "expected -9999: the line is damaged, get the file again"
        )


def _named(sites: "pd.Series[str]", data: DataConfig) -> "pd.Series[str]":
    """The stations' identifiers, or `data.site_name` for a single one."""
    given = data.site_name
    if given == DataConfig.model_fields["site_name"].default:
        return sites.astype("str")
    if sites.nunique() > 1:
        raise DataError(
            f"{data.path}: holds {sites.nunique()} stations, which data.site_name = {given!r} cannot name; take it out"
        )
    return pd.Series(given, index=sites.index, dtype="str")


def _findings(tally: Tally) -> list[Finding]:
    """The tally as findings, one per kind and element."""
    texts = {
        "quality_flag": "values failed a quality check of the archive (flags {letters}) and count as missing",
        "trace": "values are traces, too little to measure, and count as 0",
        "presumed_zero": "values were missing and presumed zero by the archive; they count as 0",
    }
    findings = []
    for (kind, element), parts in tally.days.items():
        days = np.concatenate(parts)
        letters = ", ".join(sorted(tally.letters[element]))
        message = f"{element}: {len(days)} {texts[kind].format(letters=letters)}"
        first, last = (f"{day}T00:00:00" for day in (days.min(), days.max()))
        severity = "info" if kind == "trace" else "warning"
        findings.append(Finding(kind, severity, message, element, None, first, last, len(days)))  # type: ignore[arg-type]
    if tally.unread:
        names = listed([f"{name} ({count} lines)" for name, count in sorted(tally.unread.items())], 12)
        message = f"elements that are no daily series of a known unit are not read: {names}"
        findings.append(Finding("unread_elements", "info", message, count=sum(tally.unread.values())))
    return findings
