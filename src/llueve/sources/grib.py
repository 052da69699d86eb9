"""GRIB into NetCDF in a process of its own: damaged GRIB can kill its decoder, and must not kill its caller.

Run as `python -m llueve.sources.grib FILE.grib OUT_FOLDER`; it writes one NetCDF file per version and kind of step, and one
line of JSON to standard output. Accumulations carry the hours that each value covers, as their messages tell.
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
from llueve.sources.archive import Member

LEAST_SECONDS, BYTES_PER_SECOND = 60, 2**20
"""Time that the decoder gets: ten times what it needs, so that only a hang meets it."""
PACKAGES_MISSING = 3
FILL = np.float32(np.nan)
KEYS = ("cfVarName", "shortName", "units", "name", "stepType", "gridType", "expver", "class", "typeOfLevel", "stream")


def decoded(member: Member, folder: Path) -> list[Member]:
    """The NetCDF files that hold what a GRIB file holds, written into `folder`.

    Raises:
        DataError: the extra `grib` is not installed, or the file is damaged or on no regular grid.
    """
    folder.mkdir()
    # -P: nothing in the folder that the user happens to be in may pass for a library.
    command = [sys.executable, "-P", "-m", "llueve.sources.grib", member.path, str(folder)]
    limit = LEAST_SECONDS + Path(member.path).stat().st_size / BYTES_PER_SECOND
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{member.label}: its decoder hung for {limit:.0f} s; it is damaged: fetch it again") from error
    if done.returncode == PACKAGES_MISSING:
        raise DataError(f"{member.label}: GRIB needs an extra: pip install 'llueve[grib]'")
    if done.returncode < 0:
        raise DataError(f"{member.label}: its decoder died (signal {-done.returncode}); it is damaged: fetch it again")
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise DataError(f"{member.label}: cannot be read as GRIB; it is damaged: fetch it again") from error
    if "error" in answer:
        raise DataError(f"{member.label}: {answer['error']}")
    return [Member(member.label, str(folder / name), "hdf5") for name in answer["files"]]


def _messages(path: Path, keys: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Handle and headers of each message."""
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
    """Between messages only zeros may lie: the decoder passes over anything else, such as a message cut off."""
    raw.seek(start)
    if raw.read(end - start).strip(b"\0"):
        raise DataError(f"bytes {start} to {end} belong to no message; the file is damaged: fetch it again")


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
    turn = 360.0 if end > 360.0 else 0.0  # over Greenwich: from -0.5 to 0.25 rather than from 359.5 to 360.25
    longitude = np.linspace(first[1] - turn, end - turn, columns)
    return np.linspace(first[0], last[0], rows).tolist(), longitude.tolist()


def convert(path: Path, folder: Path) -> list[str]:
    """Write the messages of a GRIB file as NetCDF files and return their names.

    Raises:
        DataError: messages that do not make regular fields. Whatever eccodes raises on damage.
    """
    import eccodes

    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, (handle, head) in enumerate(_messages(path, KEYS)):
        if head["gridType"] != "regular_ll":
            raise DataError(f"expected a regular grid of latitudes and longitudes, found {head['gridType']}")
        if eccodes.codes_get(handle, "jPointsAreConsecutive") or eccodes.codes_get(handle, "alternativeRowScanning"):
            raise DataError(
                "expected rows of constant latitude, each in the same direction; convert the file to NetCDF"
            )
        rank = f"{head['seconds']}"
        group = groups.setdefault(
            (head["cfVarName"], head["expver"], head["stepType"], head["typeOfLevel"]),
            {"head": head, "grid": _grid(handle), "messages": {}},
        )
        if _grid(handle) != group["grid"]:
            raise DataError(f"message {number + 1}: {head['cfVarName']} changes its grid")
        if rank in group["messages"]:
            raise DataError(
                f"{head['cfVarName']} holds {np.datetime64(head['seconds'], 's')} twice (levels or ensemble members); write "
                "one of them into its own file"
            )
        group["messages"][rank] = (number, head["seconds"], head["hours"])
    if not groups:
        raise DataError("holds no GRIB message; fetch it again")
    sizes = [len(each["messages"]) * len(each["grid"][0]) * len(each["grid"][1]) for each in groups.values()]
    size, room = sum(sizes) * FILL.itemsize, shutil.disk_usage(folder).free
    if size > room:
        raise DataError(
            f"decodes to {size:,} bytes, more than the {room:,} free in {folder.parent}; set TMPDIR to a place with room"
        )
    try:
        return _write(path, folder, groups)
    except (OSError, RuntimeError) as error:  # of the NetCDF library; the decoder's own errors are neither
        raise DataError(
            f"cannot be decoded into {folder.parent} ({error}): the disk may be full; set TMPDIR to a place with room"
        ) from error


def _write(path: Path, folder: Path, groups: dict[tuple[Any, ...], dict[str, Any]]) -> list[str]:
    """One NetCDF file per group; each message is decoded once and written at its place in time."""
    import eccodes
    from netCDF4 import Dataset

    places: dict[int, tuple[Any, int]] = {}
    names = []
    files = []
    for index, ((name, version, kind, _), group) in enumerate(groups.items()):
        head, (latitude, longitude) = group["head"], group["grid"]
        messages = sorted(group["messages"].values(), key=lambda message: message[1])
        file = Dataset(folder / f"{index:03}.nc", "w")
        axes = {"valid_time": [seconds for _, seconds, _ in messages], "latitude": latitude, "longitude": longitude}
        for axis, values in axes.items():
            file.createDimension(axis, len(values))
            file.createVariable(axis, "i8" if axis == "valid_time" else "f8", (axis,))[:] = values
        file["valid_time"].units = "seconds since 1970-01-01"
        file.createVariable("expver", "i4", ())[...] = int(version) if str(version).isdigit() else 1
        field = file.createVariable(name, "f4", tuple(axes), fill_value=FILL, chunksizes=None)
        field.units, field.GRIB_stepType, field.GRIB_shortName = head["units"], kind, head["shortName"]
        hours = sorted({hours for _, _, hours in messages})
        if kind == "accum":
            field.llueve_hours = np.array(hours, dtype=np.int32)
            # Sums since 00 UTC cover as many hours as their time of day says; the one at 00 UTC, the day before.
            field.llueve_since_00utc = int(all((at // 3600 % 24 or 24) == covered for _, at, covered in messages))
        file.llueve_class = f"grib class {head['class']} stream {head['stream']}"
        places.update({number: (field, i) for i, (number, _, _) in enumerate(messages)})
        files.append(file)
        names.append(f"{index:03}.nc")
    for number, (handle, _) in enumerate(_messages(path, ())):
        field, i = places[number]
        eccodes.codes_set(handle, "missingValue", 1e30)
        values = eccodes.codes_get_values(handle)
        field[i] = np.where(values == 1e30, np.nan, values).astype(np.float32).reshape(field.shape[1:])
    for file in files:
        file.close()
    return names


def main() -> int:
    """Convert the file named on the command line; the answer is one line of JSON."""
    try:
        import eccodes
    except (ImportError, RuntimeError):
        return PACKAGES_MISSING
    try:
        answer: dict[str, Any] = {"files": convert(Path(sys.argv[1]), Path(sys.argv[2]))}
    except DataError as error:
        answer = {"error": str(error)}
    except (eccodes.CodesInternalError, OSError, ValueError, RuntimeError, LookupError, MemoryError) as error:
        answer = {"error": f"cannot be read as GRIB ({error or type(error).__name__}); it is damaged: fetch it again"}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
