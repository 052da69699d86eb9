"""A writer of small files in the layouts that ERA5 comes in."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from numpy.typing import NDArray

ATTRS = {
    "tp": {"units": "m", "GRIB_stepType": "accum", "GRIB_shortName": "tp"},
    "ssrd": {"units": "J m**-2", "GRIB_stepType": "accum", "GRIB_shortName": "ssrd"},
    "t2m": {"units": "K", "GRIB_stepType": "instant", "GRIB_shortName": "2t"},
    "sp": {"units": "Pa", "GRIB_stepType": "instant", "GRIB_shortName": "sp"},
    "lsm": {"units": "(0 - 1)", "GRIB_stepType": "instant", "GRIB_shortName": "lsm"},
}


def write_grid(
    path: Path,
    variables: Mapping[str, NDArray[Any]],
    *,
    start: str = "2023-01-01",
    step_hours: float = 1.0,
    seconds: NDArray[Any] | None = None,
    latitude: Any = (1.0, 0.75, 0.5),
    longitude: Any = (10.0, 10.25, 10.5, 10.75),
    names: tuple[str, str, str] = ("valid_time", "latitude", "longitude"),
    dims: tuple[str, ...] | None = None,
    expver: Any = None,
    attrs: Mapping[str, Mapping[str, Any]] | None = None,
    about: Mapping[str, str] | None = None,
    packed: bool = False,
    file_format: str = "NETCDF4",
    zlib: bool = True,
) -> Path:
    """Write variables by (time, latitude, longitude) as a NetCDF file; `dims` orders, and may add `expver`."""
    count = next(iter(variables.values())).shape[0]
    if seconds is None:
        origin = np.datetime64(start, "s").astype(np.int64)
        seconds = (origin + np.arange(count) * step_hours * 3600).astype(np.int64)
    with netCDF4.Dataset(path, "w", format=file_format) as file:
        file.setncatts(dict(about or {}))
        axes = dict(zip(names, (seconds, latitude, longitude), strict=True))
        for name, values in axes.items():
            file.createDimension(name, len(values))
            kind = "f8" if name != names[0] or file_format != "NETCDF4" else "i8"
            file.createVariable(name, kind, (name,))[:] = values
        file[names[0]].units = "seconds since 1970-01-01"
        if dims is not None and "expver" in dims:
            file.createDimension("expver", len(expver))
            file.createVariable("expver", "i4", ("expver",))[:] = expver
        elif expver is not None:
            by_time = file.createVariable("expver", str, (names[0],) if np.ndim(expver) else ())
            by_time[...] = np.array(expver, dtype=object)
        for name, values in variables.items():
            order = tuple(names) if dims is None else dims
            options: dict[str, Any] = {"zlib": zlib} if file_format == "NETCDF4" else {}
            if packed:
                field = file.createVariable(name, "i2", order, fill_value=np.int16(-32767), **options)
                low, high = float(np.nanmin(values)), float(np.nanmax(values))
                field.scale_factor, field.add_offset = (high - low) / 65000 or 1.0, (high + low) / 2
            else:
                field = file.createVariable(name, "f4", order, fill_value=np.float32(np.nan), **options)
            field.setncatts(dict((attrs or {}).get(name, ATTRS.get(name, {"units": "1"}))))
            field[:] = np.ma.masked_invalid(values)
    return path


@pytest.fixture
def grid_file(tmp_path: Path) -> Callable[..., Path]:
    """`write_grid` into the test's folder, by name."""

    def write(name: str, variables: Mapping[str, NDArray[Any]], **options: Any) -> Path:
        return write_grid(tmp_path / name, variables, **options)

    return write
