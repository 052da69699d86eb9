"""Find the gridded files of a path, folder or pattern by their first bytes, and unpack zips safely."""

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

FileKind = Literal["hdf5", "classic", "cdf5", "grib", "zarr"]

MAGIC: dict[bytes, FileKind | Literal["zip"]] = {
    b"\x89HDF\r\n\x1a\n": "hdf5", b"CDF\x01": "classic", b"CDF\x02": "classic", b"CDF\x05": "cdf5",
    b"GRIB": "grib", b"PK\x03\x04": "zip", b"PK\x05\x06": "zip",
}  # fmt: skip
ZARR_MARKS = ("zarr.json", ".zgroup", ".zmetadata", ".zarray")
DATA_SUFFIXES = (".nc", ".nc4", ".cdf", ".netcdf", ".grib", ".grib2", ".grb", ".grb2", ".zip")
"""A file in a folder with such a name must hold a grid; files with other names may be something else."""
TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".txt", ".parquet")
"""Suffixes of an address that is a table, since its first bytes are not at hand; any other address is a Zarr store."""

MOST_FILES = 1000
"""Most files in one zip; the CDS packs fewer than ten."""
MOST_BYTES = 100 * 2**30
"""Most bytes of one unpacked zip: several times the largest request of the CDS."""
MOST_RATIO = 100.0
"""Largest ratio of unpacked to packed bytes. It is near 1 for NetCDF, which is compressed, and above 100 for a zip bomb."""
RATIO_FROM = 2**20
"""Bytes below which the ratio is not checked."""
HEADER_BYTES = 30
"""Least number of bytes before the content of each file in a zip."""
COPY_BYTES = 2**20


@dataclass(frozen=True)
class GridFile:
    """One gridded file."""

    label: str
    """The name that the user knows, for messages."""
    path: str
    """Its present path, which may be temporary."""
    kind: FileKind


def is_gridded(path: str) -> bool:
    """True if a path is an ERA5 archive and not a table: by its first bytes, or because it is a folder or a pattern."""
    if path.startswith("package:"):
        return False
    if "://" in path:
        return not path.lower().split("?")[0].endswith(TABLE_SUFFIXES)
    place = Path(path)
    if place.is_dir() or not place.exists():
        return place.is_dir() or (glob.has_magic(path) and any(True for _ in _glob(path)))
    return detect_kind(place) is not None


def detect_kind(path: Path) -> FileKind | Literal["zip"] | None:
    """The kind of a file by its first bytes, or `zarr` for a folder that is a Zarr store; None for anything else."""
    try:
        if path.is_dir():
            return "zarr" if any((path / mark).exists() for mark in ZARR_MARKS) else None
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check the permissions") from error
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)


@contextmanager
def open_archive(data: DataConfig) -> Iterator[tuple[list[GridFile], list[Finding]]]:
    """The files of the archive; unpacked files exist as long as the context lasts.

    Raises:
        DataError: no file, a file without a grid, or a damaged or hostile zip.
    """
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory(prefix="llueve-") as folder:
        files: list[GridFile] = []
        for path in dict.fromkeys((data.path, *data.more_paths)):
            for place in _matching_files(path, findings):
                kind = "zarr" if "://" in str(place) else detect_kind(Path(place))
                if kind == "zip":
                    files += _unpacked(Path(place), Path(folder), len(files), findings)
                elif kind is None:
                    raise DataError(f"{place}: {_not_a_grid(Path(place))}")
                else:
                    files.append(GridFile(str(place), str(place), kind))
        yield files, findings


def _matching_files(path: str, findings: list[Finding]) -> list[str]:
    if "://" in path:
        return [path]
    place = Path(path)
    if place.is_file() or (place.is_dir() and detect_kind(place) == "zarr"):
        return [path]
    if place.is_dir():
        return _in_folder(place, findings)
    if glob.has_magic(path):
        found = sorted(_glob(path))
        # A pattern such as ** also meets folders; only a zarr store among them is data.
        chosen = [name for name in found if Path(name).is_file() or detect_kind(Path(name)) == "zarr"]
        if chosen:
            return chosen
        raise DataError(f"{path}: no file matches this pattern; check data.path")
    raise DataError(f"{path}: no such file or folder; check data.path")


def _glob(pattern: str) -> Iterator[str]:
    return glob.iglob(pattern, recursive=True)  # noqa: PTH207 - a pattern may be absolute, which Path.glob refuses


def _in_folder(folder: Path, findings: list[Finding]) -> list[str]:
    """Gridded files directly in a folder; others are named in a finding."""
    chosen, other, below = list[str](), list[str](), list[str]()
    for place in sorted(folder.iterdir()):
        kind = detect_kind(place) if place.exists() else None  # a broken link does not exist
        if place.is_dir() and kind is None:
            below.append(place.name)
        elif place.suffix.lower() in DATA_SUFFIXES or kind is not None:
            chosen.append(str(place))
        else:
            other.append(place.name)
    if not chosen:
        found = f"only {listed([*other, *below])}" if other or below else "nothing"
        raise DataError(
            f"{folder}: expected NetCDF, GRIB, Zarr or zip files in this folder, found {found}; for files in its subfolders, "
            f"set data.path to a pattern such as {folder}/**/*.nc"
        )
    if below:
        message = f"{folder}: {listed(below)} were not read; to read folders too, set data.path to {folder}/**/*.nc"
        findings.append(Finding("skipped_folders", "warning", message, count=len(below)))
    if other:
        message = f"{folder}: skipped {listed(other)}, which hold no grid"
        findings.append(Finding("skipped_files", "info", message, count=len(other)))
    return chosen


def _not_a_grid(path: Path) -> str:
    start = path.read_bytes()[:256].lstrip() if path.stat().st_size < 2**20 else b""
    if path.stat().st_size == 0:
        found = "is empty: download it again"
    elif start.startswith((b"<", b"{")):
        found = "holds text such as an error page, not data; read it and download the data again"
    else:
        found = "holds other bytes; download it again, or remove it from data.path"
    return f"expected NetCDF, GRIB, Zarr or a zip of them by its first bytes; it {found}"


def _unpacked(path: Path, folder: Path, taken: int, findings: list[Finding]) -> list[GridFile]:
    """The gridded files of a zip, written into `folder` under numbers: a name in the zip never becomes a path."""
    files, other = list[GridFile](), list[str]()
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            _check_entries(entries, path, folder)
            for entry in entries:
                target = folder / f"{taken + len(files):04}"
                _write(archive, entry, target, path)
                kind = detect_kind(target)
                if kind == "zip":
                    raise DataError(f"{path}: {entry.filename!r} is a zip inside the zip; unpack it yourself")
                if kind is None:
                    other.append(entry.filename)
                    target.unlink()
                else:
                    files.append(GridFile(f"{path}: {entry.filename}", str(target), kind))
    except DataError:  # a ValueError too: it says already what is wrong
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        raise DataError(
            f"{path}: a zip that cannot be unpacked ({error or type(error).__name__}); it is cut off, damaged or "
            "encrypted: download it again"
        ) from error
    if other:
        message = f"{path}: skipped {listed(other)} in the zip, which hold no grid"
        findings.append(Finding("skipped_files", "info", message, count=len(other)))
    if not files:
        raise DataError(f"{path}: a zip without NetCDF or GRIB; download the data again")
    return files


def _check_entries(entries: list[zipfile.ZipInfo], path: Path, folder: Path) -> None:
    """Refuse a zip that cannot be a download of weather data, before a byte is unpacked."""
    if len(entries) > MOST_FILES:
        raise DataError(f"{path}: {len(entries):,} files in one zip, expected at most {MOST_FILES}; unpack it yourself")
    for entry in entries:
        place = PurePosixPath(entry.filename.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or (place.parts and ":" in place.parts[0]):
            raise DataError(f"{path}: the zip names {entry.filename!r}, a path outside of it; it is not a CDS download")
        if entry.flag_bits & 1:
            raise DataError(f"{path}: {entry.filename!r} is encrypted; unpack the zip yourself")
    size, stored = sum(entry.file_size for entry in entries), path.stat().st_size
    spans = sorted((entry.header_offset, entry.header_offset + HEADER_BYTES + entry.compress_size) for entry in entries)
    if any(end > start for (_, end), (start, _) in pairwise([*spans, (stored, stored)])):
        raise DataError(f"{path}: files in the zip share bytes: it is forged or damaged; download it again")
    parts = [(f"{entry.filename!r}", entry.compress_size, entry.file_size) for entry in entries]
    for name, packed, unpacked in [*parts, ("the zip", stored, size)]:
        if unpacked > max(RATIO_FROM, MOST_RATIO * packed):
            raise DataError(
                f"{path}: {name} would grow from {packed:,} to {unpacked:,} bytes, more than {MOST_RATIO:g} times, unlike any "
                "download of the CDS; unpack it yourself if you trust it"
            )
    room = shutil.disk_usage(folder).free
    if size > min(MOST_BYTES, 0.9 * room):
        raise DataError(
            f"{path}: unpacks to {size:,} bytes, more than {MOST_BYTES:,} or than the {room:,} free in {folder.parent}; "
            "set TMPDIR to a folder with more room, or unpack it yourself"
        )


def _write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, path: Path) -> None:
    written = 0
    with archive.open(entry) as source, target.open("wb") as file:
        while piece := source.read(COPY_BYTES):
            written += len(piece)
            if written > entry.file_size:
                raise DataError(f"{path}: {entry.filename!r} holds more than its declared {entry.file_size:,} bytes")
            file.write(piece)
    if written != entry.file_size:
        size = f"{written:,} of {entry.file_size:,} bytes"
        raise DataError(f"{path}: {entry.filename!r} ends after {size}; download again")
