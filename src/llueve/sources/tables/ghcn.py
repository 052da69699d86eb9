"""GHCN-Daily station files (`.dly`): fixed width, tenths of units, -9999 for missing, flags.

The format: https://www.ncei.noaa.gov/pub/data/ghcn/daily/readme.txt. A line holds one element of one month of one station:
station (columns 1-11), year (12-15), month (16-17), element (18-21), then 31 times a value (5 columns) with its flags of
measurement, quality and source (1 column each). A value that failed any quality check counts as missing. A day is the
station's own: precipitation covers the 24 hours up to its time of observation.
"""

import glob
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llueve.config import DataConfig
from llueve.errors import DataError, listed
from llueve.panel import Finding
from llueve.quantities.vocabulary import GHCN
from llueve.sources.findings import finding_at
from llueve.sources.tables.columns import Floats, Times
from llueve.sources.tables.raw_table import RawTable
from llueve.sources.tables.station_files import given_site_name, read_bytes, station_table

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
"""Unit of each element, and the number in the file that is one unit.

Other elements are sums over several days, marks or clock times: they are not read.
"""
DAILY_SUMS = ("PRCP", "SNOW", "WESF", "EVAP")

HEAD = re.compile(rb"[A-Z]{2}[A-Za-z0-9_-]{9}(?:1[6-9]|2[0-2])[0-9]{2}(?:0[1-9]|1[0-2])[A-Z0-9]{4}")
NUMBER = re.compile(rb" *-?[0-9]+")
FIRST_YEAR, LAST_YEAR = 1678, 2261

Bytes = NDArray[np.bytes_]
Kind = Literal["quality_flag", "trace", "presumed_zero"]
MESSAGES: dict[Kind, str] = {
    "quality_flag": "values failed a quality check of the archive (flags {letters}) and count as missing",
    "trace": "values are traces, too little to measure, and count as 0",
    "presumed_zero": "values were missing and presumed zero by the archive; they count as 0",
}


@dataclass
class FlagCounts:
    """Flagged values and unread elements of all files."""

    days: dict[tuple[Kind, str], list[Times]] = field(default_factory=lambda: defaultdict(list))
    """Days by kind of flag and element."""
    letters: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Quality flags by element."""
    unread: Counter[str] = field(default_factory=Counter)
    """Number of lines by element that is not read."""

    def findings(self) -> list[Finding]:
        """One finding per kind and element, and one on all unread elements."""
        findings = []
        for (kind, element), parts in self.days.items():
            days = np.concatenate(parts)
            letters = ", ".join(sorted(self.letters[element]))
            message = f"{element}: {len(days)} {MESSAGES[kind].format(letters=letters)}"
            findings.append(finding_at(kind, "info" if kind == "trace" else "warning", message, days, element))
        if self.unread:
            names = listed([f"{name} ({count} lines)" for name, count in sorted(self.unread.items())], 12)
            message = f"elements without a daily series in a known unit are not read: {names}"
            findings.append(Finding("unread_elements", "info", message, count=sum(self.unread.values())))
        return findings


def is_ghcn(start: bytes) -> bool:
    """True if these first bytes are those of a `.dly` file."""
    return HEAD.match(start) is not None and NUMBER.fullmatch(start[21:26]) is not None


def load_ghcn(data: DataConfig) -> tuple[RawTable, DataConfig]:
    """Read one file, a folder of `.dly` files, or the files of a pattern, each station as a site; and the settings for it.

    Raises:
        DataError: a line does not follow the format; the message names file and line.
        ConfigError: `data.site`, `data.time` or the like is set, although the format has sites and times of its own.
    """
    flags = FlagCounts()
    frames: list[pd.DataFrame] = []
    file_of: dict[str, str] = {}
    left = MOST_BYTES
    for path in _files(data):
        content = read_bytes(path, left)
        left -= len(content)
        for station, frame in _stations(content, path, flags):
            if station in file_of:
                raise DataError(f"{path}: holds station {station} like {file_of[station]}; keep one of the two files")
            file_of[station] = path
            frames.append(frame)
    if not frames:
        known = listed(sorted(ELEMENTS), 6)
        raise DataError(f"{data.path}: holds no value of an element that is read ({known}); choose other stations")
    frame = pd.concat(frames, ignore_index=True)
    frame["site"] = given_site_name(data, frame["site"].nunique(), "stations") or frame["site"]
    units = {name: unit for name, (unit, _) in ELEMENTS.items() if name in frame}
    columns = frame[["site", "time", *units]]
    return station_table(data, columns, ("the format", units), GHCN.title, DAY_HOURS, DAILY_SUMS, flags.findings(), {})


def _files(data: DataConfig) -> list[str]:
    path = Path(data.path)
    if path.is_dir():
        found = sorted(str(file) for file in path.iterdir() if file.suffix.lower() == ".dly")
    elif glob.has_magic(data.path) and not path.is_file() and not data.path.startswith("package:"):
        found = sorted(glob.glob(data.path, recursive=True))  # noqa: PTH207 - Path.glob refuses absolute patterns
    else:
        return [data.path]
    if not found:
        raise DataError(f"{data.path}: no .dly file there; give a file, a folder of .dly files, or a pattern of them")
    return found


def _stations(content: bytes, path: str, flags: FlagCounts) -> list[tuple[str, pd.DataFrame]]:
    """The stations of one file: elements by day, for each day with a measured value."""
    lines, numbers = _lines(content, path)
    characters = lines.view(np.uint8).reshape(-1, WIDTH)
    element_of = _text(characters[:, 17:21])
    month_texts, month_of = np.unique(_text(characters[:, :17]), return_inverse=True)
    station_of_month = np.array([text[:11].decode() for text in month_texts])
    starts = np.array([f"{int(text[11:15]):04d}-{text[15:17].decode()}" for text in month_texts], dtype="datetime64[M]")
    days: Times = starts[:, None].astype("datetime64[D]") + np.arange(31).astype("timedelta64[D]")
    real = days < (starts + 1)[:, None].astype("datetime64[D]")
    columns: dict[str, Floats] = {}
    measured = np.zeros(days.shape, dtype=np.bool_)
    for name in dict.fromkeys(element_of.tolist()):
        element, chosen = name.decode(), np.flatnonzero(element_of == name)
        if element not in ELEMENTS:
            flags.unread[element] += len(chosen)
            continue
        months, line_numbers = month_of[chosen], numbers[chosen]
        found, counts = np.unique(months, return_counts=True)
        if (counts > 1).any():
            month = found[counts > 1][0]
            raise DataError(
                f"{path}: lines {listed(line_numbers[months == month].tolist())} all hold {element} of "
                f"{station_of_month[month]} in {starts[month]}; keep only one of them"
            )
        fields = characters[chosen][:, VALUES].reshape(-1, 31, 8)
        raw = _integers(fields, line_numbers, element, path)
        present = raw != MISSING
        if (unreal := present & ~real[months]).any():
            line, day = np.argwhere(unreal)[0]
            raise DataError(
                f"{path}: line {line_numbers[line]}: {element} has a value on day {day + 1} of {starts[months[line]]}, which "
                "has no such day; expected -9999: the line is damaged, download the file again"
            )
        measured[months] |= present
        values = np.full(days.shape, np.nan)
        values[months] = _accepted(raw, fields, days[months], element, flags)
        columns[element] = values
    frame = pd.DataFrame({name: values[measured] for name, values in columns.items()})
    frame.insert(0, "time", days[measured].astype("datetime64[ns]"))
    frame.insert(0, "site", np.broadcast_to(station_of_month[:, None], days.shape)[measured])
    return [(str(station), part) for station, part in frame.groupby("site", sort=True)]


def _lines(content: bytes, path: str) -> tuple[Bytes, NDArray[np.int64]]:
    """The lines, each of full width, and their numbers in the file; blank lines are skipped."""
    if b"\0" in content:
        raise DataError(f"{path}: holds binary data; expected the text of a GHCN-Daily .dly file")
    kept, numbers = [], []
    for number, line in enumerate(content.replace(b"\r\n", b"\n").split(b"\n"), start=1):
        if not line.strip():
            continue
        if WIDTH - 3 <= len(line) < WIDTH and line[WIDTH - 8 : WIDTH - 3] == b"-9999":
            line = line.ljust(WIDTH)  # an editor removed blanks; a missing value needs no flag
        if len(line) != WIDTH:
            raise DataError(
                f"{path}: line {number} has {len(line)} characters, expected {WIDTH} (a month of GHCN-Daily); it is cut off, or "
                "this is not a .dly file: download it again"
            )
        if HEAD.match(line) is None or not FIRST_YEAR <= int(line[11:15]) <= LAST_YEAR:
            start = line[:21].decode("ascii", errors="replace")
            raise DataError(
                f"{path}: line {number} begins with {start!r}, expected station, year, month and element such as "
                "'USW00024233201201PRCP'; download the file again"
            )
        kept.append(line)
        numbers.append(number)
    if not kept:
        raise DataError(f"{path}: holds only blank lines; download the file again")
    return np.array(kept, dtype=f"S{WIDTH}"), np.array(numbers, dtype=np.int64)


def _text(characters: NDArray[np.uint8]) -> Bytes:
    """The characters of the last axis as one text each, in one dimension."""
    return np.ascontiguousarray(characters).view(f"S{characters.shape[-1]}").ravel()


def _integers(fields: NDArray[np.uint8], numbers: NDArray[np.int64], element: str, path: str) -> NDArray[np.int64]:
    texts, codes = np.unique(_text(fields[:, :, :5]), return_inverse=True)
    bad = np.array([NUMBER.fullmatch(text) is None for text in texts.tolist()])
    if bad.any():
        at = int(np.flatnonzero(bad[codes])[0])
        raise DataError(
            f"{path}: line {numbers[at // 31]}: {element} of day {at % 31 + 1} is {bytes(texts[codes[at]])!r}, "
            "expected a whole number at the right of 5 columns; the line is damaged: download the file again"
        )
    return np.array([int(text) for text in texts.tolist()], dtype=np.int64)[codes].reshape(-1, 31)


def _accepted(
    raw: NDArray[np.int64], fields: NDArray[np.uint8], days: Times, element: str, flags: FlagCounts
) -> Floats:
    """Numbers in the element's unit, NaN if missing or if a quality check failed; flags are counted."""
    present = raw != MISSING
    measurement, quality = fields[:, :, 5], fields[:, :, 6]
    failed = present & (quality != ord(" "))
    accepted = present & ~failed
    flags.letters[element].update(chr(code) for code in np.unique(quality[failed]))
    trace, zero = accepted & (measurement == ord("T")), accepted & (measurement == ord("P"))
    marked: dict[Kind, NDArray[np.bool_]] = {"quality_flag": failed, "trace": trace, "presumed_zero": zero}
    for kind, chosen in marked.items():
        if chosen.any():
            flags.days[kind, element].append(days[chosen])
    return np.where(accepted, raw / ELEMENTS[element][1], np.nan)
