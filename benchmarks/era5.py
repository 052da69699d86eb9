"""Speed and memory of turning an ERA5 archive into region means.

    python benchmarks/era5.py                    # a generated year, and ten: hourly, 0.25°, 73 × 57 cells, 9 variables
    python benchmarks/era5.py --days 30 --years 2

Targets: at most twice the time of only reading the files, and less than 1 GiB of memory for any number of years. The
archive is generated in a temporary folder (about 0.7 GB per year; all years hold the first year's fields) and removed.
"""

import shutil
import tempfile
from pathlib import Path
from statistics import median

import measure
import netCDF4
import numpy as np

VARIABLES = {
    "tp": ("m", "accum", 0.0, 1e-3),
    "t2m": ("K", "instant", 290.0, 5.0),
    "d2m": ("K", "instant", 285.0, 5.0),
    "u10": ("m s**-1", "instant", 0.0, 3.0),
    "v10": ("m s**-1", "instant", 0.0, 3.0),
    "msl": ("Pa", "instant", 101_300.0, 300.0),
    "sp": ("Pa", "instant", 90_000.0, 300.0),
    "tcwv": ("kg m**-2", "instant", 30.0, 8.0),
    "cape": ("J kg**-1", "instant", 500.0, 200.0),
}
REGIONS = {
    "costa_norte": (0, -82, -5, -78),
    "costa_centro": (-5, -82, -10, -76),
    "costa_sur": (-10, -80, -18, -70),
    "sierra_norte": (0, -78, -10, -73),
    "sierra_sur": (-10, -76, -18, -68),
}
ROWS, COLUMNS, CHUNK, BLOCK = 73, 57, 120, 960
"""Cells of a field, times of a chunk, and times that plain reading takes at once."""
START = np.datetime64("2015-01-01T00")


def generate(path: Path, hours: int) -> None:
    """An archive file with noise in steps of 1/4096 of the spread, as GRIB's packing leaves it."""
    random = np.random.default_rng(0)
    chunk = (CHUNK, ROWS, COLUMNS)
    with netCDF4.Dataset(path, "w") as file:
        for name, size in (("valid_time", hours), ("latitude", ROWS), ("longitude", COLUMNS)):
            file.createDimension(name, size)
        file.createVariable("valid_time", "i8", ("valid_time",)).units = "seconds since 1970-01-01"
        file.createVariable("latitude", "f8", ("latitude",))[:] = -np.arange(ROWS) * 0.25
        file.createVariable("longitude", "f8", ("longitude",))[:] = -82 + np.arange(COLUMNS) * 0.25
        for name, (units, kind, middle, width) in VARIABLES.items():
            dimensions = ("valid_time", "latitude", "longitude")
            field = file.createVariable(name, "f4", dimensions, zlib=True, complevel=1, shuffle=True, chunksizes=chunk)
            field.units, field.GRIB_stepType = units, kind
            smooth = random.normal(size=(2 * CHUNK, ROWS, COLUMNS)).cumsum(axis=2) / np.sqrt(COLUMNS)
            noise = np.rint(smooth * 4096) / 4096
            values = np.where(noise > 0.5, width * noise, 0.0) if kind == "accum" else middle + width * noise
            for start in range(0, hours, CHUNK):
                shift = int(random.integers(CHUNK))
                stop = min(start + CHUNK, hours)
                field[start:stop] = values[shift : shift + stop - start]
        set_times(file, START)


def set_times(file: netCDF4.Dataset, start: np.datetime64) -> None:
    """Hourly times from `start`."""
    seconds = start.astype("datetime64[s]").astype(np.int64)
    file["valid_time"][:] = seconds + 3600 * np.arange(file.dimensions["valid_time"].size)


def read_only(folder: Path) -> None:
    """Read every value of every file with NetCDF4 alone."""
    for path in sorted(folder.glob("*.nc")):
        with netCDF4.Dataset(path) as file:
            file.set_auto_maskandscale(False)
            for name in VARIABLES:
                for start in range(0, file[name].shape[0], BLOCK):
                    file[name][start : start + BLOCK]


def region_means(folder: Path) -> None:
    """Compute the panel of the five regions."""
    from llueve.config import DataConfig, RegionConfig
    from llueve.sources.grids.era5 import read_era5

    read_era5(DataConfig(path=str(folder)), {name: RegionConfig(box=box) for name, box in REGIONS.items()}, None)


def child(form: str, folder: str) -> dict[str, float]:
    """Seconds and peak memory of one form in this process, its imports left out of the time."""
    work = {"read": read_only, "means": region_means}[form]
    with tempfile.TemporaryDirectory() as warm_up:
        generate(Path(warm_up) / "a.nc", CHUNK)
        work(Path(warm_up))
    return {"seconds": measure.seconds(lambda: work(Path(folder))), "peak_mib": measure.peak_mib()}


def main() -> None:
    """Generate, measure, remove."""
    given = measure.arguments(
        __doc__,
        3,
        child,
        days={"type": int, "default": 365, "help": "days per file"},
        years={"type": int, "default": 10, "help": "files of the long archive"},
    )
    if given.tiny:
        given.days, given.years = 10, 2
    with tempfile.TemporaryDirectory() as place:
        one, many = Path(place) / "one", Path(place) / "many"
        one.mkdir()
        many.mkdir()
        spent = measure.seconds(lambda: generate(one / "2015.nc", 24 * given.days))
        size = (one / "2015.nc").stat().st_size / 2**20
        print(f"generated {given.days} days, {size:.0f} MiB, in {spent:.0f} s")
        peaks: dict[str, float] = {}

        def clock(form: str) -> float:
            found = measure.in_child(form=form, folder=str(one))
            peaks[form] = max(peaks.get(form, 0.0), found["peak_mib"])
            return float(found["seconds"])

        times = measure.alternate({"read": "read", "means": "means"}, given.rounds, warm_ups=0, clock=clock)
        ratio = measure.Ratio.of(times["means"], times["read"])
        print(
            f"reading {median(times['read']):.2f} s, region means {median(times['means']):.2f} s: {ratio}; "
            f"peak {peaks['means']:.0f} MiB"
        )
        for year in range(given.years):
            path = many / f"{2015 + year}.nc"
            shutil.copy(one / "2015.nc", path)
            with netCDF4.Dataset(path, "a") as file:
                set_times(file, START + np.timedelta64(24 * given.days * year, "h"))
        long = measure.in_child(form="means", folder=str(many))
        print(f"{given.years} files: region means {long['seconds']:.2f} s, peak {long['peak_mib']:.0f} MiB")
        measure.keep(given, seconds=times, ratio=ratio, peaks_mib=peaks, years=given.years, long=long)


if __name__ == "__main__":
    main()
