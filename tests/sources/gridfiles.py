"""Small files in the layouts that ERA5 comes in, and how the tests read them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from llueve.config import DataConfig, RegionConfig, TargetConfig
from llueve.panel import Finding
from llueve.sources.grids.era5 import read_era5

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
    order = tuple(names) if dims is None else dims
    count = next(iter(variables.values())).shape[order.index(names[0])]
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
            options: dict[str, Any] = {"zlib": zlib} if file_format == "NETCDF4" else {}
            if packed:
                field = file.createVariable(name, "i2", order, fill_value=np.int16(-32767), **options)
                low, high = float(np.nanmin(values)), float(np.nanmax(values))
                scale, offset = (high - low) / 65000 or 1.0, (high + low) / 2
                field.scale_factor, field.add_offset = scale, offset
                field.set_auto_maskandscale(False)
                missing = np.isnan(values)
                packed_values = np.rint((np.where(missing, offset, values).astype(float) - offset) / scale)
                field[:] = np.where(missing, -32767, packed_values).astype("i2")
            else:
                field = file.createVariable(name, "f4", order, fill_value=np.float32(np.nan), **options)
                field[:] = values
            field.setncatts(dict((attrs or {}).get(name, ATTRS.get(name, {"units": "1"}))))
    return path


def read(path: Any, regions: Any = None, target: TargetConfig | None = None, **options: Any) -> xr.Dataset:
    """The panel of an archive; regions as the TOML file would hold them."""
    chosen = {name: RegionConfig(**region) for name, region in (regions or {}).items()}
    return read_era5(DataConfig(path=str(path), **options), chosen, target)


def codes(panel: xr.Dataset) -> list[str]:
    return [finding.code for finding in panel.attrs["findings"]]


def finding(panel: xr.Dataset, code: str, **about: Any) -> Finding:
    """The one finding of that code, and variable or site."""
    (found,) = [
        each
        for each in panel.attrs["findings"]
        if each.code == code and all(getattr(each, key) == value for key, value in about.items())
    ]
    return found


SHAPE = (72, 3, 4)


def rain(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    """Hourly rain in metres: a third of the hours wet, none of them regular."""
    random = np.random.default_rng(seed)
    return np.where(random.random(shape) < 0.35, random.gamma(0.7, 1e-3, shape), 0.0).astype(np.float32)


def warmth(seed: int = 1, shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    return (280 + np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def by_site(values: NDArray[Any]) -> NDArray[Any]:
    """(time, latitude, longitude) as (site, time) of a panel with a site per cell."""
    return values.reshape(len(values), -1).T
