"""From a gridded file to its fields: one variable each, by (time, latitude, longitude), whatever the file calls these.

Nothing is computed here; the values stay in the file until `era5.py` reduces them block by block.
Shapes: T times, Y latitudes, X longitudes.
"""

import zlib
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import netCDF4
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from llueve.errors import DataError, LlueveError, listed
from llueve.panel import Finding
from llueve.sources.archive import Member
from llueve.sources.timeline import Floats, Seconds, read_seconds, rounds

TIMES = ("valid_time", "time", "date")
LATITUDES = ("latitude", "lat")
LONGITUDES = ("longitude", "lon")
LAND_MASKS = ("lsm", "land_sea_mask")
"""Constant in time: they choose cells, and are never a feature."""
FINAL, PRELIMINARY = 1, 5
"""`expver` of ERA5 and of ERA5T, which is replaced by it after two to three months."""
CACHE_BYTES = 2**18
"""Cache of each open variable; the library keeps 16 MiB or more of each."""
EVEN = 0.01
"""Share of the spacing by which a grid line may be off, for coordinates rounded to two decimals or to float32."""
MONTHLY = ("avgad", "avgua", "avgid", "avgas", "avgia", "avgfc")
"""`stepType` of means over a month."""
DAMAGE = (
    OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError,
    AssertionError, EOFError, zlib.error, Warning,
)  # fmt: skip
"""What the libraries raise on damaged bytes; a warning too, where a caller makes it an error."""


@dataclass(frozen=True)
class Field:
    """One variable of one file."""

    name: str
    label: str
    """The file as a person knows it."""
    array: xr.DataArray
    """Values by time, latitude, longitude in any order; still in the file."""
    dims: tuple[Hashable, Hashable, Hashable]
    """Its own names of time, latitude and longitude."""
    fallback: xr.DataArray | None
    """Preliminary values, where the file has them beside the final ones."""
    seconds: Seconds
    """Times since 1970, UTC, strictly increasing."""
    preliminary: NDArray[np.bool_]
    """By time: whether the values are preliminary (ERA5T)."""
    latitude: Floats
    longitude: Floats
    """From -180 to below 180, in the order of the file."""
    about: str
    """All that the file says of itself, in lower case."""

    @property
    def attrs(self) -> dict[Any, Any]:
        """Attributes of the variable."""
        return self.array.attrs

    @property
    def short_name(self) -> str:
        """ECMWF's short name, or the variable's own name."""
        return str(self.attrs.get("GRIB_shortName") or self.attrs.get("short_name") or self.name).lower()

    @property
    def spacing(self) -> float | None:
        """Degrees between neighbouring cells."""
        told = self.attrs.get("GRIB_iDirectionIncrementInDegrees")
        if len(self.latitude) > 1:
            told = abs(self.latitude[1] - self.latitude[0])
        return None if told is None else round(float(told), 4)

    def reordered(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> "Field":
        """The same field with its rows and columns in that order."""
        order = {self.dims[1]: rows, self.dims[2]: columns}
        fallback = None if self.fallback is None else self.fallback.isel(order)
        latitude, longitude = self.latitude[rows], self.longitude[columns]
        return replace(self, array=self.array.isel(order), fallback=fallback, latitude=latitude, longitude=longitude)

    @property
    def packing_step(self) -> float:
        """Distance between neighbouring values of a packed file, 0 where values are stored as they are."""
        return abs(float(self.array.encoding.get("scale_factor") or 0.0))


@contextmanager
def reading(label: str) -> Iterator[None]:
    """Turn whatever a library raises on damaged bytes into one of our errors."""
    try:
        yield
    except LlueveError:
        raise
    except ImportError as error:
        raise DataError(f"{label}: needs a package that is not installed ({error})") from error
    except DAMAGE as error:
        text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise DataError(f"{label}: cannot be read ({text}); it is cut off or damaged: fetch it again") from error


@dataclass(frozen=True)
class Contents:
    """What one file holds."""

    fields: list[Field]
    names: list[str]
    """Every variable that could be a field, wanted or not."""
    land: bool
    """Whether it has a land-sea mask."""
    findings: list[Finding]


def read_fields(member: Member, wanted: Callable[[str], bool], files: ExitStack) -> Contents:
    """The fields of one file, which stays open as long as `files`.

    Args:
        member: the file.
        wanted: whether to take a variable of that name.
        files: closes the file.

    Raises:
        DataError: it cannot be read, or holds what is no regular grid of instants or accumulations.
    """
    with reading(member.label):
        dataset = files.enter_context(_open(member))
        about = " ".join([Path(member.label).name, *map(str, dataset.attrs.values())]).lower()
        fields: list[Field] = []
        names: list[str] = []
        left_out: list[str] = []
        for name in map(str, dataset.variables):
            array = dataset.variables[name]
            if name in (*TIMES, *LATITUDES, *LONGITUDES, *LAND_MASKS, "expver"):
                continue
            if array.dtype.kind not in "fiu" or _time_of(dataset, array) is None:
                if array.ndim:
                    left_out.append(name)
                continue
            names.append(name)
        _refuse_monthly(member.label, {name: dataset.variables[name].attrs for name in names if wanted(name)})
        for name in names:
            if wanted(name):
                fields += _fields(member.label, dataset, name, about)
    findings = []
    if left_out:
        message = f"{member.label}: {listed(left_out)} left out: not numbers by time and place"
        findings.append(Finding("left_out", "info", message, count=len(left_out)))
    if member.kind == "zarr":
        findings += _absent_chunks(member, {field.name for field in fields})
    land = any(name in dataset.variables for name in LAND_MASKS)
    return Contents(fields, names, land, findings)


def _refuse_monthly(label: str, attrs: dict[str, dict[Any, Any]]) -> None:
    """Raise for means over a month, in one sentence where all of a file are."""
    kinds = {name: str(each.get("GRIB_stepType", "")) for name, each in attrs.items()}
    monthly = [name for name, kind in kinds.items() if kind in MONTHLY]
    if not monthly:
        return
    every = len(monthly) == len(kinds)
    raise DataError(
        f"{label}: {'every variable' if every else listed(monthly)} is a mean over each month (stepType "
        f"{listed(sorted({kinds[name] for name in monthly}))}), which tells nothing of the next hours; fetch hourly data, or "
        + ("leave the file out of data.path" if every else "leave them out with data.exclude")
    )


def _open(member: Member) -> xr.Dataset:
    """The file with packed numbers decoded and times not; which library reads it follows from its bytes."""
    plain: dict[str, Any] = {"decode_times": False, "decode_timedelta": False, "decode_coords": False, "cache": False}
    if member.kind == "zarr":
        try:
            import zarr  # noqa: F401
        except ImportError as error:
            raise DataError(f"{member.label}: Zarr needs an extra: pip install 'llueve[zarr]'") from error
        consolidated = None if "://" in member.path else _consolidated(Path(member.path))
        return xr.open_dataset(member.path, engine="zarr", consolidated=consolidated, chunks=None, **plain)
    # Classic files go through a reader in Python, which damaged bytes cannot crash.
    engine = "scipy" if member.kind == "classic" else "netcdf4"
    # Blocks are whole multiples of what a file stores together and are read once: a cache would only grow with the files.
    netCDF4.set_chunk_cache(size=CACHE_BYTES)
    return xr.open_dataset(member.path, engine=engine, **plain)


def _consolidated(store: Path) -> bool:
    meta = store / "zarr.json"
    return (store / ".zmetadata").exists() or (meta.exists() and '"consolidated_metadata": {' in meta.read_text())


def _named(dataset: xr.Dataset, names: tuple[str, ...], dims: tuple[Hashable, ...]) -> str | None:
    """The one of the names that is a dimension of a variable."""
    return next((name for name in names if name in dims and name in dataset.variables), None)


def _time_of(dataset: xr.Dataset, array: xr.DataArray | xr.Variable) -> str | None:
    """The name of a variable's times: a dimension, or the one time of a file that keeps it as a scalar."""
    single = (name for name in TIMES if name in dataset.variables and dataset.variables[name].ndim == 0)
    return _named(dataset, TIMES, array.dims) or (next(single, None) if array.ndim > 1 else None)


def _fields(label: str, dataset: xr.Dataset, name: str, about: str) -> list[Field]:
    """A variable as fields with increasing times: one, or more where the file has a time twice."""
    array = dataset[name]
    where = f"{label}: {name}"
    time = cast("str", _time_of(dataset, array))
    if time not in array.dims:
        array = array.expand_dims(time)
    axes = {}
    for key, names in (("latitude", LATITUDES), ("longitude", LONGITUDES)):
        axis = _named(dataset, names, array.dims) or next((n for n in names if n in dataset.variables), None)
        if axis is None or dataset[axis].ndim > 1 or not {axis, *names}.intersection(dataset.variables):
            raise DataError(f"{where}: expected a regular grid with {' or '.join(names)}, found {_shape(array)}")
        if axis not in array.dims:
            if dataset[axis].ndim:
                raise DataError(f"{where}: does not depend on its file's {axis}; leave it out with data.exclude")
            array = array.expand_dims(axis)  # a file of one row, or one point, keeps it as a scalar
        axes[key] = axis
    fallback, steps_preliminary = None, _preliminary(label, dataset, time)
    if "expver" in array.dims:
        array, fallback, steps_preliminary = _versions(where, dataset, array, time)
    extra = [dim for dim in array.dims if dim not in (time, *axes.values()) and array.sizes[dim] > 1]
    if extra:
        raise DataError(
            f"{where}: has a dimension {extra[0]} of {array.sizes[extra[0]]} values, expected time, latitude and longitude; "
            f"write one of them into its own file, or leave it out with data.exclude"
        )
    array = array.squeeze([dim for dim in array.dims if dim not in (time, *axes.values())])
    if fallback is not None:
        fallback = fallback.squeeze([dim for dim in fallback.dims if dim not in (time, *axes.values())])
    latitude = _axis(where, dataset[axes["latitude"]], 90.0)
    longitude = _axis(where, dataset[axes["longitude"]], 360.0)
    seconds = read_seconds(label, dataset[time])
    fields = []
    for chosen in rounds(seconds):
        if chosen is None:
            part, other = array, fallback
        else:
            part, other = array.isel({time: chosen}), None if fallback is None else fallback.isel({time: chosen})
        at = slice(None) if chosen is None else chosen
        fields.append(
            Field(
                name,
                label,
                part,
                (time, axes["latitude"], axes["longitude"]),
                other,
                seconds[at],
                steps_preliminary[at],
                latitude,
                (longitude + 180.0) % 360.0 - 180.0,
                about,
            )
        )
    return fields


def _shape(array: xr.DataArray) -> str:
    return "by " + ", ".join(f"{dim} ({size})" for dim, size in array.sizes.items())


def _axis(where: str, axis: xr.DataArray, largest: float) -> Floats:
    """Latitudes or longitudes, evenly spaced and in range."""
    values = np.atleast_1d(np.asarray(axis.values, dtype=np.float64))
    if largest == 360.0 and values.size > 1:
        values = _unwrapped(values)
    steps = np.diff(values)
    even = len(steps) == 0 or np.abs(steps - steps.mean()).max() < EVEN * abs(steps.mean())
    if values.size == 0 or not np.isfinite(values).all() or np.abs(values).max() > largest or not even:
        raise DataError(
            f"{where}: expected evenly spaced {axis.name} within ±{largest:g}, found {listed(values.tolist(), 4)}; the file "
            "is damaged, or not on a regular grid"
        )
    if largest == 360.0 and len(steps) and abs(steps[0]) * len(values) > 360.0 + abs(steps[0]) / 2:
        raise DataError(f"{where}: its longitudes go round more than once, so cells would count twice; cut it to 360°")
    return values


def _unwrapped(longitude: Floats) -> Floats:
    """Longitudes without the jump that they make at 0 or 180: 359.5, 359.75, 0 becomes 359.5, 359.75, 360."""
    unwrapped = np.unwrap(longitude, period=360.0)
    return unwrapped - 360.0 * np.ceil((unwrapped.max() - 360.0) / 360.0) if unwrapped.max() > 360.0 else unwrapped


def _expver(label: str, values: NDArray[Any]) -> NDArray[np.int64]:
    texts = [value.decode() if isinstance(value, bytes) else str(value) for value in np.atleast_1d(values).tolist()]
    try:
        return np.array([int(float(text)) for text in texts], dtype=np.int64)
    except ValueError as error:
        raise DataError(
            f"{label}: expver holds {listed(sorted(set(texts)))}, expected versions such as 0001"
        ) from error


def _preliminary(label: str, dataset: xr.Dataset, time: str) -> NDArray[np.bool_]:
    """By time, whether the file's `expver` says preliminary; final where it says nothing."""
    count = dataset[time].size
    if "expver" not in dataset.variables or "expver" in dataset.dims:
        return np.zeros(count, dtype=np.bool_)
    versions = _expver(label, dataset["expver"].values)
    return np.broadcast_to(versions == PRELIMINARY, (count,)).copy()


def _versions(
    where: str, dataset: xr.Dataset, array: xr.DataArray, time: str
) -> tuple[xr.DataArray, xr.DataArray | None, NDArray[np.bool_]]:
    """Final and preliminary values of a file that keeps them along a dimension; they are never added up."""
    if "expver" not in dataset.variables:
        raise DataError(f"{where}: has a dimension expver without its values; which of them is final is not told")
    versions = _expver(where, dataset["expver"].values).tolist()
    if unknown := [version for version in versions if version not in (FINAL, PRELIMINARY)]:
        raise DataError(
            f"{where}: expver holds {listed(unknown)}, expected {FINAL} (final) and {PRELIMINARY} (preliminary)"
        )
    if len(set(versions)) != len(versions):
        raise DataError(f"{where}: expver holds {listed(versions)}, expected each version once; the file is damaged")
    parts = {version: array.isel(expver=i) for i, version in enumerate(versions)}
    first = parts.get(FINAL, parts.get(PRELIMINARY))
    assert first is not None  # versions hold one of the two
    only_preliminary = np.full(dataset[time].size, FINAL not in parts)
    return first, parts.get(PRELIMINARY) if len(parts) > 1 else None, only_preliminary


def _absent_chunks(member: Member, names: set[str]) -> list[Finding]:
    """Chunks that a local store does not hold read as its fill value: harmless if that means missing, else announced."""
    if "://" in member.path:
        return []
    import zarr

    findings = []
    with reading(member.label):
        group = zarr.open_group(member.path, mode="r")
        for name in sorted(names):
            stored = group[name]
            assert isinstance(stored, zarr.Array)
            absent = stored.nchunks - stored.nchunks_initialized
            if absent and stored.fill_value is not None and np.isfinite(stored.fill_value):
                message = (
                    f"{member.label}: {name}: {absent} of {stored.nchunks} chunks are not stored and read as "
                    f"{stored.fill_value:g}; if they were lost, these values are wrong"
                )
                findings.append(Finding("absent_chunks", "warning", message, variable=name, count=absent))
    return findings
