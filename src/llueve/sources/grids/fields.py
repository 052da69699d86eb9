"""The fields of a gridded file: one variable each, by (time, latitude, longitude), under any usual names of these.

Nothing is computed here: the values stay in the file until `region_means.py` reduces them block by block.
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
from llueve.panel import BoolArray, Finding
from llueve.sources.grids.archive import GridFile
from llueve.sources.grids.times import Floats, Seconds, increasing_parts, read_seconds

TIMES = ("valid_time", "time", "date")
LATITUDES = ("latitude", "lat")
LONGITUDES = ("longitude", "lon")
LAND_MASKS = ("lsm", "land_sea_mask")
"""Constant in time: they choose cells, and are never a feature."""
CACHE_BYTES = 2**18
"""Cache of each open variable; by default the library keeps 16 MiB or more of each."""
EVEN = 0.01
"""Share of the spacing by which a grid line may be off, because coordinates are rounded to two decimals or to float32."""
MONTHLY = ("avgad", "avgua", "avgid", "avgas", "avgia", "avgfc")
"""`stepType` of means over a month."""
FINAL, PRELIMINARY = 1, 5
"""`expver` of ERA5 and of ERA5T; final values replace preliminary ones after two to three months."""
DAMAGE = (
    OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError,
    AssertionError, EOFError, zlib.error, Warning,
)  # fmt: skip
"""Errors of the libraries on damaged bytes; a warning too, if the caller turns it into an error."""


@dataclass(frozen=True)
class Field:
    """One variable of one file."""

    name: str
    label: str
    """The file, for messages."""
    array: xr.DataArray
    """Values by time, latitude, longitude in any order; still in the file."""
    dims: tuple[Hashable, Hashable, Hashable]
    """Its own names of time, latitude and longitude."""
    fallback: xr.DataArray | None
    """Preliminary values, if the file has them beside the final ones."""
    seconds: Seconds
    """Times since 1970, UTC, strictly increasing."""
    preliminary: BoolArray
    """True for each time with preliminary values (ERA5T)."""
    latitude: Floats
    longitude: Floats
    """From -180 to below 180, in the order of the file."""
    about: str
    """Name and attributes of the file, in lower case."""

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
        """Degrees between neighbouring cells; None if unknown."""
        degrees = self.attrs.get("GRIB_iDirectionIncrementInDegrees")
        if len(self.latitude) > 1:
            degrees = abs(self.latitude[1] - self.latitude[0])
        return None if degrees is None else round(float(degrees), 4)

    @property
    def packing_step(self) -> float:
        """Distance between neighbouring values of a packed file; 0 if values are not packed."""
        return abs(float(self.array.encoding.get("scale_factor") or 0.0))

    def reordered(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> "Field":
        """The same field with its rows and columns in that order."""
        order = {self.dims[1]: rows, self.dims[2]: columns}
        fallback = None if self.fallback is None else self.fallback.isel(order)
        latitude, longitude = self.latitude[rows], self.longitude[columns]
        return replace(self, array=self.array.isel(order), fallback=fallback, latitude=latitude, longitude=longitude)


@contextmanager
def reading(label: str, advice: str = "") -> Iterator[None]:
    """Turn a missing package, and every error of a library on damaged bytes, into a DataError that ends in `advice`."""
    try:
        yield
    except LlueveError:
        raise
    except ImportError as error:
        raise DataError(f"{label}: needs a package that is not installed ({error})") from error
    except DAMAGE as error:
        text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise DataError(f"{label}: cannot be read ({text}); it is damaged: download it again{advice}") from error


@dataclass(frozen=True)
class FileFields:
    """The fields of one file."""

    file: GridFile
    fields: list[Field]
    names: list[str]
    """Every variable that could be a field, chosen or not."""
    has_land_mask: bool
    findings: list[Finding]


def read_fields(file: GridFile, wanted: Callable[[str], bool], files: ExitStack) -> FileFields:
    """The fields of one file that are `wanted` by name, on a regular grid; the file stays open as long as `files`."""
    with reading(file.label):
        dataset = files.enter_context(_open(file))
        about = " ".join([Path(file.label).name, *map(str, dataset.attrs.values())]).lower()
        names: list[str] = []
        left_out: list[str] = []
        for name in map(str, dataset.variables):
            array = dataset.variables[name]
            if name in (*TIMES, *LATITUDES, *LONGITUDES, *LAND_MASKS, "expver"):
                continue
            if array.dtype.kind in "fiu" and _time_of(dataset, array) is not None:
                names.append(name)
            elif array.ndim:
                left_out.append(name)
        chosen = [name for name in names if wanted(name)]
        _refuse_monthly(file.label, {name: dataset.variables[name].attrs for name in chosen})
        fields = [field for name in chosen for field in _fields(file.label, dataset, name, about)]
    findings = []
    if left_out:
        message = f"{file.label}: {listed(left_out)} left out: not numbers by time and place"
        findings.append(Finding("left_out", "info", message, count=len(left_out)))
    if file.kind == "zarr" and "://" not in file.path:
        findings += _absent_chunks(file, {field.name for field in fields})
    return FileFields(file, fields, names, any(name in dataset.variables for name in LAND_MASKS), findings)


def _refuse_monthly(label: str, attrs: dict[str, dict[Any, Any]]) -> None:
    kinds = {name: str(each.get("GRIB_stepType", "")) for name, each in attrs.items()}
    monthly = [name for name, kind in kinds.items() if kind in MONTHLY]
    if not monthly:
        return
    every = len(monthly) == len(kinds)
    raise DataError(
        f"{label}: {'every variable' if every else listed(monthly)} is a mean over each month (stepType "
        f"{listed(sorted({kinds[name] for name in monthly}))}), which cannot forecast the next hours; download hourly data, or "
        + ("remove the file from data.path" if every else "leave them out with data.exclude")
    )


def open_netcdf(path: str, kind: str, **options: Any) -> xr.Dataset:
    """Open a NetCDF file, times not decoded; a `classic` one in pure Python, which damaged bytes cannot crash."""
    engine = "scipy" if kind == "classic" else "netcdf4"
    return xr.open_dataset(path, engine=engine, decode_times=False, decode_timedelta=False, **options)


def _open(file: GridFile) -> xr.Dataset:
    """The file with packed numbers decoded and times not; its kind decides which library reads it."""
    plain: dict[str, Any] = {"decode_coords": False, "cache": False}
    if file.kind == "zarr":
        try:
            import zarr  # noqa: F401
        except ImportError as error:
            raise DataError(f"{file.label}: Zarr needs an extra: pip install 'llueve[zarr]'") from error
        plain |= {"decode_times": False, "decode_timedelta": False, "chunks": None}
        consolidated = None if "://" in file.path else _consolidated(Path(file.path))
        return xr.open_dataset(file.path, engine="zarr", consolidated=consolidated, **plain)
    # Blocks are whole multiples of the stored chunks and are read once: a cache would only grow with the files.
    netCDF4.set_chunk_cache(size=CACHE_BYTES)
    return open_netcdf(file.path, file.kind, **plain)


def _consolidated(store: Path) -> bool:
    meta = store / "zarr.json"
    return (store / ".zmetadata").exists() or (meta.exists() and '"consolidated_metadata": {' in meta.read_text())


def _named(dataset: xr.Dataset, names: tuple[str, ...], dims: tuple[Hashable, ...]) -> str | None:
    return next((name for name in names if name in dims and name in dataset.variables), None)


def _time_of(dataset: xr.Dataset, array: xr.DataArray | xr.Variable) -> str | None:
    """The name of a variable's times: a dimension, or a scalar in a file of one time."""
    single = (name for name in TIMES if name in dataset.variables and dataset.variables[name].ndim == 0)
    return _named(dataset, TIMES, array.dims) or (next(single, None) if array.ndim > 1 else None)


def _fields(label: str, dataset: xr.Dataset, name: str, about: str) -> list[Field]:
    """A variable as fields with increasing times: one, or several if the file repeats a time."""
    array = dataset[name]
    where = f"{label}: {name}"
    time = cast("str", _time_of(dataset, array))
    if time not in array.dims:
        array = array.expand_dims(time)
    axes = []
    for names in (LATITUDES, LONGITUDES):
        axis = _named(dataset, names, array.dims) or next((n for n in names if n in dataset.variables), None)
        if axis is None or dataset[axis].ndim > 1:
            shape = ", ".join(f"{dim} ({size})" for dim, size in array.sizes.items())
            raise DataError(f"{where}: expected a regular grid with {' or '.join(names)}, found one by {shape}")
        if axis not in array.dims:
            if dataset[axis].ndim:
                raise DataError(f"{where}: does not depend on its file's {axis}; leave it out with data.exclude")
            array = array.expand_dims(axis)  # in a file of one row or one point it is a scalar
        axes.append(axis)
    dims = (time, axes[0], axes[1])
    array, fallback, preliminary = _split_versions(where, dataset, array, dataset[time].size)
    extra = [dim for dim in array.dims if dim not in dims]
    if long := [dim for dim in extra if array.sizes[dim] > 1]:
        raise DataError(
            f"{where}: has a dimension {long[0]} of {array.sizes[long[0]]} values, expected time, latitude and longitude; "
            "write one of them into its own file, or leave it out with data.exclude"
        )
    array = array.squeeze(extra)
    fallback = None if fallback is None else fallback.squeeze(extra)
    latitude = _axis(where, dataset[axes[0]], 90.0)
    longitude = (_axis(where, dataset[axes[1]], 360.0) + 180.0) % 360.0 - 180.0
    seconds = read_seconds(label, dataset[time])
    fields = []
    for part in increasing_parts(seconds):
        other = None if fallback is None else fallback.isel({time: part})
        values, times, is_preliminary = array.isel({time: part}), seconds[part], preliminary[part]
        fields.append(Field(name, label, values, dims, other, times, is_preliminary, latitude, longitude, about))
    return fields


def _split_versions(
    where: str, dataset: xr.Dataset, array: xr.DataArray, times: int
) -> tuple[xr.DataArray, xr.DataArray | None, BoolArray]:
    """The final values (or the preliminary ones alone), preliminary values beside them, and True for preliminary times."""
    by_version = "expver" in array.dims
    if "expver" not in dataset.variables or ("expver" in dataset.dims and not by_version):
        if by_version:
            raise DataError(f"{where}: has a dimension expver without its values, so the final version is unknown")
        return array, None, np.zeros(times, np.bool_)
    values = np.atleast_1d(dataset["expver"].values).tolist()
    texts = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    try:
        versions = [int(float(text)) for text in texts]
    except ValueError as error:
        raise DataError(f"{where}: expver holds {listed(sorted(set(texts)))}, expected numbers such as 1") from error
    if not by_version:
        return array, None, np.broadcast_to(np.array(versions) == PRELIMINARY, (times,)).copy()
    if unknown := [version for version in versions if version not in (FINAL, PRELIMINARY)]:
        raise DataError(
            f"{where}: expver holds {listed(unknown)}, expected {FINAL} (final) or {PRELIMINARY} (preliminary)"
        )
    if len(set(versions)) != len(versions):
        raise DataError(f"{where}: expver holds {listed(versions)}, expected each version once; the file is damaged")
    parts = {version: array.isel(expver=i) for i, version in enumerate(versions)}
    beside = parts[PRELIMINARY] if len(parts) > 1 else None
    return parts[min(parts)], beside, np.full(times, FINAL not in parts)


def _axis(where: str, axis: xr.DataArray, largest: float) -> Floats:
    values = np.atleast_1d(np.asarray(axis.values, dtype=np.float64))
    if largest == 360.0 and values.size > 1:  # without a jump: 359.5, 359.75, 0 becomes 359.5, 359.75, 360
        values = np.unwrap(values, period=360.0)
        values = values - 360.0 * np.ceil((values.max() - 360.0) / 360.0) if values.max() > 360.0 else values
    steps = np.diff(values)
    even = len(steps) == 0 or np.abs(steps - steps.mean()).max() < EVEN * abs(steps.mean())
    if values.size == 0 or not np.isfinite(values).all() or np.abs(values).max() > largest or not even:
        raise DataError(
            f"{where}: expected evenly spaced {axis.name} within ±{largest:g}, found {listed(values.tolist(), 4)}; the file "
            "is damaged, or not on a regular grid"
        )
    if largest == 360.0 and len(steps) and abs(steps[0]) * len(values) > 360.0 + abs(steps[0]) / 2:
        raise DataError(f"{where}: its longitudes cover more than 360°, so cells would count twice; cut it to 360°")
    return values


def _absent_chunks(file: GridFile, names: set[str]) -> list[Finding]:
    """Findings on absent chunks of a local store; they are read as its fill value, which may not mean missing."""
    import zarr

    findings = []
    with reading(file.label):
        group = zarr.open_group(file.path, mode="r")
        for name in sorted(names):
            stored = group[name]
            assert isinstance(stored, zarr.Array)
            absent = stored.nchunks - stored.nchunks_initialized
            if absent and stored.fill_value is not None and np.isfinite(stored.fill_value):
                message = (
                    f"{file.label}: {name}: {absent} of {stored.nchunks} chunks are not stored and read as "
                    f"{stored.fill_value:g}; if they were lost, these values are wrong"
                )
                findings.append(Finding("absent_chunks", "warning", message, variable=name, count=absent))
    return findings
