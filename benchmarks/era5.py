"""How fast, and in how much memory, an ERA5 archive becomes region means.

    python benchmarks/era5.py                    # a generated year, and ten: hourly, 0.25°, 73 × 57 cells, 9 variables
    python benchmarks/era5.py --days 30 --years 2

Targets: at most twice the time of merely reading the files, and less than 1 GiB of memory whatever the number of years. The
archive is generated in a temporary folder (about 0.7 GB per year, one year's fields under ten years' times) and removed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
BLOCK = 960
"""Times that plain reading takes at once."""


def generate(path: Path, hours: int, rows: int = 73, columns: int = 57, chunk: int = 120, seed: int = 0) -> None:
    """An archive file of any size, with noise in steps of 1/4096 of the spread as GRIB's packing leaves it."""
    random = np.random.default_rng(seed)
    with netCDF4.Dataset(path, "w") as file:
        for name, size in (("valid_time", hours), ("latitude", rows), ("longitude", columns)):
            file.createDimension(name, size)
        times = file.createVariable("valid_time", "i8", ("valid_time",))
        times.units = "seconds since 1970-01-01"
        file.createVariable("latitude", "f8", ("latitude",))[:] = -np.arange(rows) * 0.25
        file.createVariable("longitude", "f8", ("longitude",))[:] = -82 + np.arange(columns) * 0.25
        for name, (units, kind, middle, spread) in VARIABLES.items():
            shape = (chunk, rows, columns)
            field = file.createVariable(
                name,
                "f4",
                ("valid_time", "latitude", "longitude"),
                zlib=True,
                complevel=1,
                shuffle=True,
                chunksizes=shape,
            )
            field.units, field.GRIB_stepType = units, kind
            noise = (
                np.rint(random.normal(size=(2 * chunk, rows, columns)).cumsum(axis=2) / np.sqrt(columns) * 4096) / 4096
            )
            values = middle + spread * noise
            if kind == "accum":
                values = np.where(noise > 0.5, spread * noise, 0.0)
            for start in range(0, hours, chunk):
                shift = int(random.integers(chunk))
                stop = min(start + chunk, hours)
                field[start:stop] = values[shift : shift + stop - start]
        set_times(file, np.datetime64("2015-01-01T00"))


def set_times(file: netCDF4.Dataset, start: np.datetime64) -> None:
    """Hourly times from `start`."""
    seconds = start.astype("datetime64[s]").astype(np.int64)
    file["valid_time"][:] = seconds + 3600 * np.arange(file.dimensions["valid_time"].size)


def read_only(folder: Path) -> None:
    """Every value of every file, by NetCDF4 alone."""
    for path in sorted(folder.glob("*.nc")):
        with netCDF4.Dataset(path) as file:
            file.set_auto_maskandscale(False)
            for name in VARIABLES:
                for start in range(0, file[name].shape[0], BLOCK):
                    file[name][start : start + BLOCK]


def reduce(folder: Path) -> None:
    """The panel of the five regions."""
    from llueve.config import DataConfig, RegionConfig
    from llueve.sources.era5 import read_era5

    read_era5(DataConfig(path=str(folder)), {name: RegionConfig(box=box) for name, box in REGIONS.items()}, None)


def child(work: str, folder: Path) -> None:
    """Do one of the two in this process, and print seconds and the most memory it held."""
    with tempfile.TemporaryDirectory() as warm_up:  # importing libraries is not reading
        generate(Path(warm_up) / "a.nc", 120, rows=73, columns=57)
        {"read": read_only, "reduce": reduce}[work](Path(warm_up))
    started = time.perf_counter()
    {"read": read_only, "reduce": reduce}[work](folder)
    seconds = time.perf_counter() - started
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "peak_mib": int(peak.split()[1]) / 1024}))


def measured(work: str, folder: Path) -> dict[str, float]:
    """One of the two in a fresh process."""
    command = [sys.executable, __file__, "--child", work, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Generate, measure, remove."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--days", type=int, default=365, help="days per file")
    parser.add_argument("--years", type=int, default=10, help="files of the long archive")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of reading and reducing of one file")
    parser.add_argument("--child", choices=["read", "reduce"])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder)
        return
    with tempfile.TemporaryDirectory() as place:
        one, many = Path(place) / "one", Path(place) / "many"
        one.mkdir()
        many.mkdir()
        started = time.perf_counter()
        generate(one / "2015.nc", 24 * options.days)
        size = (one / "2015.nc").stat().st_size / 2**20
        print(f"generated {options.days} days, {size:.0f} MiB, in {time.perf_counter() - started:.0f} s")
        pairs = [(measured("read", one), measured("reduce", one)) for _ in range(options.repeats)]
        for read, reduced in pairs:
            ratio = reduced["seconds"] / read["seconds"]
            print(
                f"reading {read['seconds']:.2f} s, region means {reduced['seconds']:.2f} s: {ratio:.2f} times; "
                f"peak {reduced['peak_mib']:.0f} MiB"
            )
        for year in range(options.years):
            path = many / f"{2015 + year}.nc"
            shutil.copy(one / "2015.nc", path)
            with netCDF4.Dataset(path, "a") as file:
                set_times(file, np.datetime64("2015-01-01T00") + np.timedelta64(24 * options.days * year, "h"))
        reduced = measured("reduce", many)
        print(f"{options.years} files: region means {reduced['seconds']:.2f} s, peak {reduced['peak_mib']:.0f} MiB")


if __name__ == "__main__":
    main()
