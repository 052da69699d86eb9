"""From a path, folder or pattern to the gridded files of an archive: recognised by their bytes, zips unpacked safely."""

import glob
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Literal

from llueve.config import DataConfig
from llueve.errors import DataError, listed
from llueve.panel import Finding

Kind = Literal["hdf5", "classic", "cdf5", "grib", "zarr"]

MAGIC: dict[bytes, Kind | Literal["zip"]] = {
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"CDF\x01": "classic",
    b"CDF\x02": "classic",
    b"CDF\x05": "cdf5",
    b"GRIB": "grib",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
}
ZARR_MARKS = ("zarr.json", ".zgroup", ".zmetadata", ".zarray")
DATA_SUFFIXES = (".nc", ".nc4", ".cdf", ".netcdf", ".grib", ".grib2", ".grb", ".grb2", ".zip")
"""In a folder, files of other names that hold no grid are passed over; a file with such a name must hold one."""
TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".txt", ".parquet")
"""Behind an address, which has no first bytes to look at; any other address is a Zarr store."""

MOST_MEMBERS = 1000
"""Files in one zip: the CDS packs a handful."""
MOST_BYTES = 100 * 2**30
"""Bytes that one zip may unpack to: several times the largest request of the CDS."""
MOST_RATIO = 100.0
"""NetCDF inside a zip is compressed already, its ratio is near 1; a bomb's is above 100."""
RATIO_FROM = 2**20
"""Smaller files may compress as they like."""
HEADER_BYTES = 30
"""Least bytes before the content of each file in a zip."""
COPY_BYTES = 2**20


@dataclass(frozen=True)
class Member:
    """One gridded file: its name as a person knows it, where it lies now, and what it is."""

    label: str
    path: str
    kind: Kind


def is_gridded(path: str) -> bool:
    """Whether a path means an ERA5 archive rather than a table, by its bytes; a folder or pattern never means a table."""
    if path.startswith("package:"):
        return False
    if "://" in path:
        return not path.lower().split("?")[0].endswith(TABLE_SUFFIXES)
    place = Path(path)
    if place.is_dir() or not place.exists():
        return place.is_dir() or (glob.has_magic(path) and any(True for _ in _matching(path)))
    return sniff(place) is not None


def sniff(path: Path) -> Kind | Literal["zip"] | None:
    """What a file is by its first bytes, or a folder by what lies in it; None for anything else.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if path.is_dir():
            return "zarr" if any((path / mark).exists() for mark in ZARR_MARKS) else None
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the path and its rights") from error
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)


@contextmanager
def opened(data: DataConfig) -> Iterator[tuple[list[Member], list[Finding]]]:
    """The files of the archive, for as long as the context lasts; what zips held is removed after it.

    Raises:
        DataError: nothing there, a file that is no grid, or a zip that is damaged or hostile.
    """
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="llueve-") as folder:
        members: list[Member] = []
        for path in dict.fromkeys((data.path, *data.more_paths)):
            for place in _places(path, findings):
                kind = "zarr" if "://" in str(place) else sniff(Path(place))
                if kind == "zip":
                    members += _unpacked(Path(place), Path(folder), len(members), findings)
                elif kind is None:
                    raise DataError(f"{place}: {_not_a_grid(Path(place))}")
                else:
                    members.append(Member(str(place), str(place), kind))
        yield members, findings


def _places(path: str, findings: list[Finding]) -> list[str]:
    """The files that a path, a folder or a pattern means, sorted."""
    if "://" in path:
        return [path]
    place = Path(path)
    if place.is_file() or (place.is_dir() and sniff(place) == "zarr"):
        return [path]
    if place.is_dir():
        return _in_folder(place, findings)
    if glob.has_magic(path):
        found = sorted(_matching(path))
        # A pattern such as ** also meets folders; only a zarr store among them is data.
        chosen = [name for name in found if Path(name).is_file() or sniff(Path(name)) == "zarr"]
        if chosen:
            return chosen
        raise DataError(f"{path}: no file matches this pattern; check data.path")
    raise DataError(f"{path}: no such file or folder; check data.path")


def _matching(pattern: str) -> Iterator[str]:
    return glob.iglob(pattern, recursive=True)  # noqa: PTH207 - a pattern may be absolute, which Path.glob refuses


def _in_folder(folder: Path, findings: list[Finding]) -> list[str]:
    """Gridded files directly in a folder; others are named in a finding."""
    chosen: list[str] = []
    passed: list[str] = []
    below: list[str] = []
    for place in sorted(folder.iterdir()):
        if place.is_dir() and sniff(place) is None:
            below.append(place.name)
        elif not place.exists() and place.suffix.lower() not in DATA_SUFFIXES:
            passed.append(place.name)  # a link to nothing
        elif sniff(place) is not None or place.suffix.lower() in DATA_SUFFIXES:
            chosen.append(str(place))
        else:
            passed.append(place.name)
    if not chosen:
        found = f"only {listed([*passed, *below])}" if passed or below else "nothing"
        raise DataError(
            f"{folder}: expected NetCDF, GRIB, Zarr or zip files in this folder, found {found}; for files in folders "
            f"below it, set data.path to a pattern such as {folder}/**/*.nc"
        )
    if below:
        message = f"{folder}: did not look into {listed(below)}; to read folders too, set data.path to {folder}/**/*.nc"
        findings.append(Finding("skipped_folders", "warning", message, count=len(below)))
    if passed:
        message = f"{folder}: passed over {listed(passed)}, which hold no grid"
        findings.append(Finding("skipped_files", "info", message, count=len(passed)))
    return chosen


def _not_a_grid(path: Path) -> str:
    """What a file is instead, and what to do."""
    start = path.read_bytes()[:256].lstrip() if path.stat().st_size < 2**20 else b""
    if path.stat().st_size == 0:
        found = "is empty: the download did not happen; fetch it again"
    elif start.startswith((b"<", b"{")):
        found = "holds text such as an error page, not data; look into it and fetch the data again"
    else:
        found = "holds other bytes; fetch it again, or leave it out of data.path"
    return f"expected NetCDF, GRIB, Zarr or a zip of them by its first bytes; it {found}"


def _unpacked(path: Path, folder: Path, taken: int, findings: list[Finding]) -> list[Member]:
    """The gridded files of a zip, written into `folder` under numbers, so that no name in the zip decides a path."""
    members: list[Member] = []
    passed: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _check_entries(entries, path, folder)
            for entry in entries:
                target = folder / f"{taken + len(members):04}"
                _write(archive, entry, target, path)
                kind = sniff(target)
                if kind == "zip":
                    raise DataError(f"{path}: {entry.filename!r} is a zip inside the zip; unpack it yourself")
                if kind is None:
                    passed.append(entry.filename)
                    target.unlink()
                else:
                    members.append(Member(f"{path}: {entry.filename}", str(target), kind))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: a zip that cannot be unpacked ({error or type(error).__name__}); it is cut off, damaged or "
            "encrypted: fetch it again"
        ) from error
    if passed:
        message = f"{path}: passed over {listed(passed)} in it, which hold no grid"
        findings.append(Finding("skipped_files", "info", message, count=len(passed)))
    if not members:
        raise DataError(f"{path}: a zip without NetCDF or GRIB in it; fetch the data again")
    return members


def _check_entries(entries: list[zipfile.ZipInfo], path: Path, folder: Path) -> None:
    """Refuse what no download of weather data looks like, before a byte is unpacked."""
    if len(entries) > MOST_MEMBERS:
        raise DataError(
            f"{path}: {len(entries):,} files in one zip, expected at most {MOST_MEMBERS}; unpack it yourself"
        )
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or (name.parts and ":" in name.parts[0]):
            raise DataError(f"{path}: the zip names {entry.filename!r}, a path outside of it; it is not a CDS download")
        if entry.flag_bits & 1:
            raise DataError(f"{path}: {entry.filename!r} is encrypted; unpack the zip yourself")
        if entry.file_size > max(RATIO_FROM, MOST_RATIO * entry.compress_size):
            raise DataError(
                f"{path}: {entry.filename!r} would grow from {entry.compress_size:,} to {entry.file_size:,} bytes, more than "
                f"{MOST_RATIO:g} times, as no download of the CDS does; unpack it yourself if you trust it"
            )
    size, stored = sum(entry.file_size for entry in entries), path.stat().st_size
    spans = sorted((entry.header_offset, entry.header_offset + HEADER_BYTES + entry.compress_size) for entry in entries)
    if any(end > start for (_, end), (start, _) in pairwise([*spans, (stored, stored)])):
        raise DataError(
            f"{path}: files in the zip share its bytes, as only a forged or damaged one does; fetch it again"
        )
    if size > max(RATIO_FROM, MOST_RATIO * stored):
        raise DataError(
            f"{path}: would grow from {stored:,} to {size:,} bytes, more than {MOST_RATIO:g} times, as no download of the CDS "
            "does; unpack it yourself if you trust it"
        )
    room = shutil.disk_usage(folder).free
    if size > min(MOST_BYTES, 0.9 * room):
        raise DataError(
            f"{path}: unpacks to {size:,} bytes, more than {MOST_BYTES:,} or than the {room:,} free in {folder.parent}; "
            "unpack it where there is room, or set TMPDIR to such a place"
        )


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, path: Path) -> None:
    """Unpack one entry, and never more bytes than it declares."""
    written = 0
    with archive.open(entry) as source, target.open("wb") as file:
        while piece := source.read(COPY_BYTES):
            written += len(piece)
            if written > entry.file_size:
                raise DataError(f"{path}: {entry.filename!r} holds more than the {entry.file_size:,} bytes it declares")
            file.write(piece)
    if written != entry.file_size:
        raise DataError(
            f"{path}: {entry.filename!r} ends after {written:,} of {entry.file_size:,} bytes; fetch it again"
        )
