"""Convert GRIB to NetCDF in a separate process: damaged GRIB can crash the decoder, which must not crash its caller.

Run as `python -m llueve.sources.grids.grib FILE.grib OUT_FOLDER`. It writes one NetCDF file per version and kind of step, and
one line of JSON to standard output. Accumulations have an attribute with the hours that their messages cover.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llueve.errors import DataError
from llueve.sources.grids.archive import GridFile
from llueve.sources.grids.times import shown

LEAST_SECONDS, BYTES_PER_SECOND = 60, 2**20
"""Time limit of the decoder: ten times its usual time, so that only a hang reaches it."""
PACKAGES_MISSING = 3
FILL = np.float32(np.nan)
KEYS = ("cfVarName", "shortName", "units", "name", "stepType", "gridType", "expver", "class", "typeOfLevel", "stream")


def decoded(file: GridFile, folder: Path) -> list[GridFile]:
    """Convert a GRIB file to NetCDF files in a new folder; a damaged file, another grid, or a missing extra is refused."""
    folder.mkdir()
    # -P: a file in the user's current folder must not be imported as a library.
    command = [sys.executable, "-P", "-m", "llueve.sources.grids.grib", file.path, str(folder)]
    limit = LEAST_SECONDS + Path(file.path).stat().st_size / BYTES_PER_SECOND
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{file.label}: its decoder hung for {limit:.0f} s; download it again") from error
    if done.returncode == PACKAGES_MISSING:
        raise DataError(f"{file.label}: GRIB needs an extra: pip install 'llueve[grib]'")
    if done.returncode < 0:
        raise DataError(f"{file.label}: its decoder crashed (signal {-done.returncode}); download it again")
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise DataError(f"{file.label}: cannot be read as GRIB; it is damaged: download it again") from error
    if "error" in answer:
        raise DataError(f"{file.label}: {answer['error']}")
    return [GridFile(file.label, str(folder / name), "hdf5") for name in answer["files"]]


def _messages(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    import eccodes

    end = 0
    with path.open("rb") as file, path.open("rb") as raw:
        while (handle := eccodes.codes_grib_new_from_file(file)) is not None:
            try:
                start = int(eccodes.codes_get_message_offset(handle))
                _only_padding(raw, end, start)
                end = start + int(eccodes.codes_get_message_size(handle))
                head = {key: eccodes.codes_get(handle, key) for key in keys}
                date, clock = eccodes.codes_get(handle, "validityDate"), eccodes.codes_get(handle, "validityTime")
                moment = f"{date // 10000:04}-{date // 100 % 100:02}-{date % 100:02}T{clock // 100:02}:{clock % 100:02}"
                head["seconds"] = int(np.datetime64(moment, "s").astype(np.int64))
                eccodes.codes_set(handle, "stepUnits", 1)
                head["hours"] = eccodes.codes_get(handle, "endStep") - eccodes.codes_get(handle, "startStep")
                yield handle, head
            finally:
                eccodes.codes_release(handle)
        _only_padding(raw, end, path.stat().st_size)


def _only_padding(raw: BinaryIO, start: int, end: int) -> None:
    """Refuse other bytes than zeros between messages: the decoder would skip them, for example a message that is cut off."""
    raw.seek(start)
    if raw.read(end - start).strip(b"\0"):
        raise DataError(f"bytes {start} to {end} are not part of a message; the file is damaged: download it again")


def _grid(handle: int) -> tuple[list[float], list[float]]:
    """Latitudes and longitudes of a message, in the order of its values."""
    import eccodes

    rows, columns = eccodes.codes_get(handle, "Nj"), eccodes.codes_get(handle, "Ni")
    first = [eccodes.codes_get(handle, f"{axis}OfFirstGridPointInDegrees") for axis in ("latitude", "longitude")]
    last = [eccodes.codes_get(handle, f"{axis}OfLastGridPointInDegrees") for axis in ("latitude", "longitude")]
    end = last[1]
    if eccodes.codes_get(handle, "iScansNegatively"):
        end -= 360.0 if end > first[1] else 0.0
    else:
        end += 360.0 if end < first[1] else 0.0
    turn = 360.0 if end > 360.0 else 0.0  # across Greenwich: from -0.5 to 0.25 and not from 359.5 to 360.25
    longitude = np.linspace(first[1] - turn, end - turn, columns)
    return np.linspace(first[0], last[0], rows).tolist(), longitude.tolist()


def convert(path: Path, folder: Path) -> list[str]:
    """Write the regular fields of a GRIB file as NetCDF files; returns their names. Damaged bytes raise errors of eccodes."""
    import eccodes

    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, (handle, head) in enumerate(_messages(path, KEYS)):
        if head["gridType"] != "regular_ll":
            raise DataError(f"expected a regular grid of latitudes and longitudes, found {head['gridType']}")
        if eccodes.codes_get(handle, "jPointsAreConsecutive") or eccodes.codes_get(handle, "alternativeRowScanning"):
            raise DataError("expected rows of one latitude, each in the same direction; convert the file to NetCDF")
        key = (head["cfVarName"], head["expver"], head["stepType"], head["typeOfLevel"])
        group = groups.setdefault(key, {"head": head, "grid": _grid(handle), "messages": {}})
        if _grid(handle) != group["grid"]:
            raise DataError(f"message {number + 1}: {head['cfVarName']} changes its grid")
        if head["seconds"] in group["messages"]:
            twice = f"{head['cfVarName']} holds {shown(head['seconds'])} twice (levels or ensemble members)"
            raise DataError(f"{twice}; write one of them into its own file")
        group["messages"][head["seconds"]] = (number, head["seconds"], head["hours"])
    if not groups:
        raise DataError("holds no GRIB message; download it again")
    sizes = [len(each["messages"]) * len(each["grid"][0]) * len(each["grid"][1]) for each in groups.values()]
    size, room = sum(sizes) * FILL.itemsize, shutil.disk_usage(folder).free
    if size > room:
        raise DataError(f"decodes to {size:,} bytes, but {folder.parent} has {room:,} free; set TMPDIR")
    try:
        return _write(path, folder, groups)
    except (OSError, RuntimeError) as error:  # errors of the NetCDF library, not of the decoder
        raise DataError(
            f"cannot be decoded into {folder.parent} ({error}): the disk may be full; set TMPDIR"
        ) from error


def _write(path: Path, folder: Path, groups: dict[tuple[Any, ...], dict[str, Any]]) -> list[str]:
    """Write one NetCDF file per group; each message is decoded once and written at its time."""
    import eccodes
    from netCDF4 import Dataset

    places: dict[int, tuple[Any, int]] = {}
    files = {}
    for index, ((name, version, kind, _), group) in enumerate(groups.items()):
        head, (latitude, longitude) = group["head"], group["grid"]
        messages = sorted(group["messages"].values(), key=lambda message: message[1])
        file = files[f"{index:03}.nc"] = Dataset(folder / f"{index:03}.nc", "w")
        axes = {"valid_time": [seconds for _, seconds, _ in messages], "latitude": latitude, "longitude": longitude}
        for axis, values in axes.items():
            file.createDimension(axis, len(values))
            file.createVariable(axis, "i8" if axis == "valid_time" else "f8", (axis,))[:] = values
        file["valid_time"].units = "seconds since 1970-01-01"
        file.createVariable("expver", "i4", ())[...] = int(version) if str(version).isdigit() else 1
        field = file.createVariable(name, "f4", tuple(axes), fill_value=FILL, chunksizes=None)
        field.units, field.GRIB_stepType, field.GRIB_shortName = head["units"], kind, head["shortName"]
        field.GRIB_typeOfLevel = head["typeOfLevel"]
        hours = sorted({hours for _, _, hours in messages})
        if kind == "accum":
            field.llueve_hours = np.array(hours, dtype=np.int32)
            # A sum since 00 UTC covers the hours of its time of day; the sum at 00 UTC covers the day before.
            field.llueve_since_00utc = int(all((at // 3600 % 24 or 24) == covered for _, at, covered in messages))
        file.llueve_class = f"grib class {head['class']} stream {head['stream']}"
        places.update({number: (field, i) for i, (number, _, _) in enumerate(messages)})
    for number, (handle, _) in enumerate(_messages(path, ())):
        field, i = places[number]
        eccodes.codes_set(handle, "missingValue", 1e30)
        values = eccodes.codes_get_values(handle)
        field[i] = np.where(values == 1e30, np.nan, values).astype(np.float32).reshape(field.shape[1:])
    for file in files.values():
        file.close()
    return list(files)


def main() -> int:
    """Convert the file of the command line; the answer is one line of JSON."""
    try:
        import eccodes
    except (ImportError, RuntimeError):
        return PACKAGES_MISSING
    try:
        answer: dict[str, Any] = {"files": convert(Path(sys.argv[1]), Path(sys.argv[2]))}
    except DataError as error:
        answer = {"error": str(error)}
    except (eccodes.CodesInternalError, OSError, ValueError, RuntimeError, LookupError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        answer = {"error": f"cannot be read as GRIB ({reason}); it is damaged: download it again"}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
