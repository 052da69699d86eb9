"""Zips, folders, patterns, GRIB, Zarr, clusters; and files that are damaged or hostile."""

import contextlib
import os
import random
import shutil
import signal
import struct
import subprocess
import tempfile
import zipfile
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr
from gridfiles import by_site, codes, finding, rain, read, warmth, write_grid

from llueve.errors import DataError, LlueveError
from llueve.sources.grids import archive, grib
from llueve.sources.grids.archive import is_gridded


@pytest.fixture
def pair(grid_file):
    """The two files of a CDS download."""
    return [grid_file("accum.nc", {"tp": rain()}), grid_file("instant.nc", {"t2m": warmth()})]


def zipped(path: Path, files, **options) -> Path:
    with zipfile.ZipFile(path, "w", **options) as target:
        for file in files:
            target.write(file, Path(file).name)
    return path


@pytest.fixture(autouse=True)
def _nothing_stays(tmp_path, monkeypatch):
    """Whatever happens, no unpacked file is left behind."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    yield
    # A cluster leaves a folder of its own.
    assert [path.name for path in place.iterdir() if path.name != "dask-scratch-space"] == []
    shutil.rmtree(place)


# Zips


@pytest.mark.parametrize("name", ["download.zip", "data.nc", "no_suffix"])
def test_a_zip_is_known_by_its_bytes(pair, tmp_path, name):
    path = zipped(tmp_path / name, pair, compression=zipfile.ZIP_DEFLATED)
    assert is_gridded(str(path))
    panel = read(path)
    np.testing.assert_allclose(panel["tp"], by_site(rain()) * 1000, rtol=1e-6)
    np.testing.assert_array_equal(panel["t2m"], by_site(warmth()))


def test_other_files_in_a_zip_are_named(pair, tmp_path):
    note = tmp_path / "README.txt"
    note.write_text("hello")
    panel = read(zipped(tmp_path / "a.zip", [*pair, note]))
    assert "README.txt" in finding(panel, "skipped_files").message


@pytest.mark.parametrize("name", ["../out.nc", "/etc/out.nc", "a/../../out.nc", "..\\out.nc", "C:/out.nc"])
def test_a_zip_that_names_paths_outside_is_refused(pair, tmp_path, name):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr(name, pair[0].read_bytes())
    with pytest.raises(DataError, match="a path outside of it"):
        read(path)
    assert not (tmp_path.parent / "out.nc").exists() and not (tmp_path / "out.nc").exists()


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("a.nc", b"\0" * 30_000_000)
    with pytest.raises(DataError, match=r"would grow from 29,1.. to 30,000,000 bytes"):
        read(path)


def test_a_bomb_of_files_that_share_their_bytes(tmp_path):
    """One small file, named a hundred times in the directory of the zip."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("a.nc", b"\x89HDF\r\n\x1a\n" + b"\0" * 900_000)
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    entry, end = content[start : content.index(b"PK\x05\x06")], content[content.index(b"PK\x05\x06") :]
    end = end[:8] + struct.pack("<HHI", 100, 100, 100 * len(entry)) + end[16:]
    path.write_bytes(content[:start] + 100 * entry + end)
    with pytest.raises(DataError, match="share bytes"):
        read(path)


def test_a_bomb_of_many_small_files(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for number in range(20):
            target.writestr(f"{number}.nc", b"\0" * 1_000_000)
    with pytest.raises(DataError, match=r"would grow from 2.,... to 20,000,000 bytes"):
        read(path)


def test_a_zip_that_lies_about_its_size(pair, tmp_path):
    """The directory says 10 bytes, or an entry says more than it holds: neither is believed."""
    path = zipped(tmp_path / "a.zip", pair[:1], compression=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    size = struct.pack("<I", pair[0].stat().st_size)
    for at in (content.find(size), content.rfind(size)):
        content[at : at + 4] = struct.pack("<I", 10)
    path.write_bytes(content)
    with pytest.raises(DataError, match="a zip that cannot be unpacked"):
        read(path)


def test_other_zips_that_are_refused(pair, tmp_path, monkeypatch):
    inner = zipped(tmp_path / "inner.zip", pair)
    for files, part in (([inner], "a zip inside the zip"), ([], "without NetCDF or GRIB")):
        with pytest.raises(DataError, match=part):
            read(zipped(tmp_path / "a.zip", files))
    monkeypatch.setattr(archive, "MOST_FILES", 1)
    with pytest.raises(DataError, match="2 files in one zip"):
        read(inner)
    monkeypatch.setattr(archive, "MOST_BYTES", 100)
    with pytest.raises(DataError, match=r"unpacks to .* more than 100"):
        read(zipped(tmp_path / "a.zip", pair[:1]))


def test_an_encrypted_zip(pair, tmp_path):
    path = zipped(tmp_path / "a.zip", pair[:1])
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.rfind(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="is encrypted"):
        read(path)


# Folders and patterns


def test_a_folder_passes_over_what_is_no_data_but_not_over_failed_downloads(pair, tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    panel = read(tmp_path)
    assert set(panel.data_vars) == {"tp", "t2m"} and "notes.txt" in finding(panel, "skipped_files").message
    (tmp_path / "failed.nc").write_bytes(b"")
    with pytest.raises(DataError, match=r"failed.nc: expected NetCDF.*is empty: download it again"):
        read(tmp_path)
    (tmp_path / "failed.nc").write_text("<html>502 Bad Gateway</html>")
    with pytest.raises(DataError, match="holds text such as an error page"):
        read(tmp_path)


def test_a_link_to_nothing_is_passed_over_unless_it_should_be_data(pair, tmp_path):
    (tmp_path / "latest").symlink_to(tmp_path / "gone")
    assert "latest" in finding(read(tmp_path), "skipped_files").message
    (tmp_path / "latest.nc").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"latest.nc: cannot be read"):
        read(tmp_path)


def test_an_address_of_a_table_is_no_store():
    assert is_gridded("gs://bucket/era5.zarr") and is_gridded("https://host/store")
    assert not is_gridded("https://host/rain.csv") and not is_gridded("https://host/rain.CSV?key=1")


def test_paths_that_mean_nothing(tmp_path):
    for path, part in (("gone.nc", "no such file"), ("*.nc", "no file matches"), ("empty", "found nothing")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=part):
            read(tmp_path / path)


def test_a_pattern_and_several_paths(pair, tmp_path):
    assert set(read(tmp_path / "*.nc").data_vars) == {"tp", "t2m"}
    assert set(read(pair[0], more_paths=(str(pair[1]), str(pair[0]))).data_vars) == {"tp", "t2m"}
    assert is_gridded(str(tmp_path / "*.nc")) and not is_gridded(str(tmp_path / "*.csv"))


# GRIB


def write_grib(
    path: Path,
    hours: int = 48,
    since_midnight: bool = False,
    kinds=("tp", "2t"),
    expver="0001",
    westward: bool = False,
    west: float = 10.0,
) -> Path:
    """Messages as ECMWF packs them: instants, and sums over one hour or since 00 UTC."""
    eccodes = pytest.importorskip("eccodes")
    start, hour = np.datetime64("2023-01-01T00"), np.timedelta64(1, "h")
    fixed = {
        "Ni": 4, "Nj": 3, "latitudeOfFirstGridPointInDegrees": 1.0, "longitudeOfFirstGridPointInDegrees": west,
        "latitudeOfLastGridPointInDegrees": 0.5, "longitudeOfLastGridPointInDegrees": (west + 0.75) % 360,
        "iDirectionIncrementInDegrees": 0.25, "jDirectionIncrementInDegrees": 0.25, "setLocalDefinition": 1,
        "localDefinitionNumber": 1, "class": "ea", "expver": expver, "bitsPerValue": 24,
    }  # fmt: skip
    values = {"tp": rain()[:hours].astype(float), "2t": warmth()[:hours].astype(float)}
    if westward:
        fixed |= {"longitudeOfFirstGridPointInDegrees": 10.75, "longitudeOfLastGridPointInDegrees": 10.0}
        fixed["iScansNegatively"] = 1
        values = {kind: array[:, :, ::-1] for kind, array in values.items()}
    if since_midnight:
        days = values["tp"].reshape(-1, 24, 3, 4)
        values["tp"] = days.cumsum(axis=1).reshape(-1, 3, 4)
    with path.open("wb") as file:
        for i in range(hours):
            for kind in kinds:
                handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib1")
                eccodes.codes_set(handle, "centre", "ecmf")
                for key, value in fixed.items():
                    eccodes.codes_set(handle, key, value)
                # A sum that begins at 00 UTC is stamped 01 to 24 UTC.
                covered = (i % 24 + 1 if since_midnight else 1) if kind == "tp" else 0
                valid = start + (i + since_midnight) * hour
                base = str(valid - covered * hour)
                eccodes.codes_set(handle, "paramId", 228 if kind == "tp" else 167)
                eccodes.codes_set(handle, "dataDate", int(base[:10].replace("-", "")))
                eccodes.codes_set(handle, "dataTime", int(base[11:13]) * 100)
                if kind == "tp":
                    eccodes.codes_set(handle, "stepType", "accum")
                    eccodes.codes_set(handle, "startStep", 0)
                    eccodes.codes_set(handle, "endStep", covered)
                eccodes.codes_set_values(handle, values[kind][i].ravel())
                eccodes.codes_write(handle, file)
                eccodes.codes_release(handle)
    return path


def test_grib_reads_as_netcdf_does(tmp_path):
    panel = read(write_grib(tmp_path / "a.grib"))
    assert panel.sizes == {"site": 12, "time": 48} and set(panel.data_vars) == {"tp", "t2m"}
    np.testing.assert_allclose(panel["tp"], by_site(rain()[:48]) * 1000, atol=1e-4)
    np.testing.assert_allclose(panel["t2m"], by_site(warmth()[:48]), atol=1e-4)
    assert panel["tp"].attrs == {"units": "mm", "accumulation_hours": 1.0}
    assert "GRIB messages cover 1 h each" in finding(panel, "accumulation").message


def test_grib_says_itself_that_sums_begin_at_midnight(tmp_path):
    panel = read(write_grib(tmp_path / "a.grib", since_midnight=True))
    np.testing.assert_allclose(panel["tp"], by_site(rain()[:48]) * 1000, atol=1e-3)
    assert "begin at 00 UTC" in finding(panel, "accumulation").message


def test_grib_from_east_to_west(tmp_path):
    panel = read(write_grib(tmp_path / "a.grib", westward=True))
    assert panel["longitude"].values[:4].tolist() == [10.75, 10.5, 10.25, 10.0]
    there = by_site(warmth()[:48])
    for column, longitude in enumerate((10.0, 10.25, 10.5, 10.75)):
        np.testing.assert_allclose(panel["t2m"].sel(site=f"1,{longitude:g}"), there[column], atol=1e-4)


def test_grib_over_greenwich(tmp_path):
    panel = read(write_grib(tmp_path / "a.grib", hours=4, west=359.5))
    assert panel["longitude"].values[:4].tolist() == [-0.5, -0.25, 0.0, 0.25]
    np.testing.assert_allclose(panel["t2m"], by_site(warmth()[:4]), atol=1e-4)


def test_grib_takes_no_library_from_the_folder_it_is_called_in(tmp_path, monkeypatch):
    path = write_grib(tmp_path / "a.grib", hours=2)
    (tmp_path / "random.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    assert read(path).sizes["time"] == 2 and not (tmp_path / "ran").exists()


def test_grib_that_the_disk_cannot_hold(tmp_path, monkeypatch):
    path = write_grib(tmp_path / "a.grib", hours=2)
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(grib.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 100))
    with pytest.raises(DataError, match=r"decodes to 192 bytes, but .* has 100 free; set TMPDIR"):
        grib.convert(path, tmp_path / "out")
    monkeypatch.undo()

    def full(*_, **__):
        raise RuntimeError("NetCDF: HDF error")

    monkeypatch.setattr(netCDF4, "Dataset", full)
    with pytest.raises(DataError, match=r"cannot be decoded into .*the disk may be full; set TMPDIR"):
        grib.convert(path, tmp_path / "out")


def test_grib_of_two_versions(tmp_path):
    write_grib(tmp_path / "a.grib", kinds=("2t",))
    write_grib(tmp_path / "b.grib", kinds=("2t",), expver="0005")
    (tmp_path / "c.grib").write_bytes((tmp_path / "b.grib").read_bytes() + (tmp_path / "a.grib").read_bytes())
    assert finding(read(tmp_path / "c.grib"), "final_over_preliminary").count == 48
    assert finding(read(tmp_path / "b.grib"), "preliminary").count == 48


def test_grib_cut_or_with_other_bytes_between(tmp_path):
    path = write_grib(tmp_path / "a.grib", hours=4)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 100)
    assert read(path).sizes["time"] == 4  # padding is no damage
    for damaged in (
        whole[:-20],
        whole[: len(whole) // 2] + b"junk" + whole[len(whole) // 2 :],
        whole.replace(b"GRIB", b"GRIT", 2),
    ):
        path.write_bytes(damaged[: len(damaged)])
        with pytest.raises(DataError, match=r"expected NetCDF|damaged"):
            read(path)


def test_a_decoder_that_dies_or_hangs_does_not_take_us_along(tmp_path, monkeypatch):
    path = write_grib(tmp_path / "a.grib", hours=2)

    def dies(*_, **__):
        return subprocess.CompletedProcess([], -signal.SIGSEGV, "", "")

    def hangs(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    for behaviour, part in ((dies, "its decoder crashed .signal 11"), (hangs, "its decoder hung")):
        monkeypatch.setattr(grib.subprocess, "run", behaviour)
        with pytest.raises(DataError, match=part):
            read(path)


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    path = write_grib(tmp_path / "a.grib", hours=2)
    missing = subprocess.CompletedProcess([], grib.PACKAGES_MISSING, "", "")
    monkeypatch.setattr(grib.subprocess, "run", lambda *_, **__: missing)
    with pytest.raises(DataError, match=r"pip install 'llueve\[grib\]'"):
        read(path)


# Zarr


def write_zarr(path: Path, version: int = 2, hours: int = 72) -> Path:
    pytest.importorskip("zarr")
    dataset = xr.Dataset(
        {
            "total_precipitation": (("time", "latitude", "longitude"), rain()[:hours], {"units": "m"}),
            "2m_temperature": (("time", "latitude", "longitude"), warmth()[:hours], {"units": "K"}),
        },
        coords={
            "time": np.datetime64("2023-01-01", "ns") + np.arange(hours) * np.timedelta64(1, "h"),
            "latitude": [1.0, 0.75, 0.5],
            "longitude": [350.0, 350.25, 350.5, 350.75],
        },
    )
    dataset.to_zarr(
        path, zarr_format=version, consolidated=version == 2, encoding={"total_precipitation": {"chunks": (24, 3, 4)}}
    )
    return path


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_reads_as_netcdf_does(tmp_path, version):
    path = write_zarr(tmp_path / "era5", version)
    panel = read(path)
    np.testing.assert_allclose(panel["total_precipitation"], by_site(rain()) * 1000, rtol=1e-6)
    assert panel["total_precipitation"].attrs == {"units": "mm", "accumulation_hours": 1.0}
    np.testing.assert_array_equal(panel["longitude"].values[:4], [-10.0, -9.75, -9.5, -9.25])
    assert set(read(tmp_path).data_vars) == {"total_precipitation", "2m_temperature"}  # a folder that holds a store
    assert is_gridded(str(path)) and "no_checksums" in codes(panel)


def test_lost_chunks_are_missing_or_announced(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", 2)
    (path / "total_precipitation" / "1.0.0").unlink()
    values = read(path)["total_precipitation"].values
    assert np.isnan(values[:, 24:48]).all() and not np.isnan(values[:, :24]).any()
    zeros = xr.Dataset({"tp": (("time", "latitude", "longitude"), rain(), {"units": "m"})}).assign_coords(
        time=("time", np.arange(72), {"units": "hours since 2023-01-01"}),
        latitude=[1.0, 0.75, 0.5],
        longitude=[0.0, 0.25, 0.5, 0.75],
    )
    store = tmp_path / "b.zarr"
    zeros.to_zarr(
        store,
        zarr_format=3,
        consolidated=False,
        encoding={"tp": {"chunks": (24, 3, 4), "fill_value": 0.0, "_FillValue": None}},
    )
    (store / "tp" / "c" / "1" / "0" / "0").unlink()
    assert finding(read(store), "absent_chunks").count == 1


# Clusters


def test_a_cluster_gives_the_same_panel(grid_file, tmp_path):
    distributed = pytest.importorskip("distributed")
    for i in range(3):
        values = {"tp": rain(i), "t2m": warmth(i)}
        grid_file(f"{i}.nc", values, start=f"2023-01-{1 + 3 * i:02}")
    regions = {"a": {"box": (1, 10, 0.75, 10.75)}, "b": {"point": (0.5, 10.5)}}
    here = read(tmp_path / "*.nc", regions)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        there = read(tmp_path / "*.nc", regions, dask=cluster.scheduler_address)
    for name in ("tp", "t2m"):
        np.testing.assert_array_equal(here[name], there[name])
    assert here.attrs["findings"] == there.attrs["findings"]


def test_a_cluster_that_loses_its_workers(pair, monkeypatch):
    distributed = pytest.importorskip("distributed")
    from distributed.client import FutureCancelledError

    class Client:
        def __init__(self, *_, **__):
            pass

        def compute(self, work):
            return work

        def gather(self, _):
            raise errors.pop()

        def close(self):
            pass

    errors = [distributed.KilledWorker("a", None, 3), FutureCancelledError("a", "lost"), TimeoutError()]
    monkeypatch.setattr(distributed, "Client", Client)
    while errors:
        with pytest.raises(DataError, match=r"data.dask = 'tcp://x:1': the cluster lost the work"):
            read(pair[0], dask="tcp://x:1")


def test_means_do_not_depend_on_how_times_fall_into_blocks(pair, monkeypatch):
    regions = {"a": {"box": (1, 10, 0.5, 10.75)}}
    whole = read(pair[0], regions, more_paths=(str(pair[1]),))
    monkeypatch.setattr("llueve.sources.grids.region_means.BLOCK_BYTES", 500)
    with netCDF4.Dataset(pair[0]) as file:
        assert file["tp"].chunking()[0] <= 72
    small = read(pair[0], regions, more_paths=(str(pair[1]),))
    for name in ("tp", "t2m"):
        np.testing.assert_array_equal(whole[name], small[name])


# Damage: a correct panel or one of our errors, never a traceback, never a wrong number


def damaged(content: bytes, seed: int) -> bytes:
    """Some bits flipped, or the end cut off, or both."""
    chance = random.Random(seed)
    result = bytearray(content)
    for _ in range(chance.choice([0, 1, 1, 1, 3, 20])):
        at = chance.randrange(len(result))
        result[at] ^= 1 << chance.randrange(8) if chance.random() < 0.5 else chance.randrange(1, 256)
    if chance.random() < 0.25:
        del result[chance.randrange(len(result)) :]
    return bytes(result)


def attempt(path: Path, **options) -> xr.Dataset | None:
    """The panel, or None where one of our errors refused it; anything else fails the test."""
    with contextlib.suppress(LlueveError):
        return read(path, **options)
    return None


def equal(left: xr.Dataset, right: xr.Dataset) -> bool:
    return set(left.data_vars) == set(right.data_vars) and all(
        left[name].shape == right[name].shape
        and np.array_equal(left[name], right[name], equal_nan=True)
        and left[name].attrs == right[name].attrs
        for name in left.data_vars
    )


def small(path: Path, **options) -> Path:
    return write_grid(path, {"tp": rain()[:48], "t2m": warmth()[:48]}, **options)


@pytest.mark.parametrize("block", range(4))
def test_damaged_netcdf4(tmp_path, block):
    """Values are compressed, so their checksum tells; headers may change a name, which is then another variable's name."""
    path = small(tmp_path / "a.nc")
    content, whole = path.read_bytes(), read(path)
    read_anyway = 0
    for seed in range(block * 250, (block + 1) * 250):
        path.write_bytes(damaged(content, seed))
        panel = attempt(path)
        if panel is not None:
            read_anyway += 1
            assert np.array_equal(panel["time"], whole["time"]) or {"gaps", "repeated_times"} & set(codes(panel)), seed
            for axis in ("latitude", "longitude"):
                if panel.sizes["site"] == whole.sizes["site"]:
                    assert np.abs(panel[axis] - whole[axis]).max() < 0.005, seed
            for name in set(panel.data_vars) & set(whole.data_vars):
                values = panel[name].values
                if values.shape == whole[name].shape and panel[name].attrs == whole[name].attrs:
                    assert ((values == whole[name].values) | np.isnan(values)).all(), (seed, name)
    assert 0 < read_anyway < 250


def test_damaged_classic_netcdf(tmp_path):
    """Without checksums a changed value is a changed value; every panel says that damage cannot be told there."""
    path = small(tmp_path / "a.nc", file_format="NETCDF3_CLASSIC", packed=True)
    content = path.read_bytes()
    for seed in range(500):
        path.write_bytes(damaged(content, seed))
        panel = attempt(path)
        if panel is not None:
            assert "no_checksums" in codes(panel), seed
            assert all(
                np.isfinite(array.values).any() or np.isnan(array.values).all() for array in panel.data_vars.values()
            )


def test_damaged_zips(tmp_path):
    """Every byte of a member is under its checksum."""
    path = zipped(tmp_path / "a.zip", [small(tmp_path / "a.nc")], compression=zipfile.ZIP_DEFLATED)
    content, whole = path.read_bytes(), read(path)
    for seed in range(500):
        path.write_bytes(damaged(content, seed))
        panel = attempt(path)
        assert panel is None or equal(panel, whole), seed


def test_damaged_zarr(tmp_path):
    path = write_zarr(tmp_path / "a.zarr", hours=24)
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    for seed in range(300):
        file = files[seed % len(files)]
        content = file.read_bytes()
        file.write_bytes(damaged(content, seed))
        panel = attempt(path)
        assert panel is None or "no_checksums" in codes(panel), seed
        file.write_bytes(content)


def test_damaged_grib(tmp_path):
    """Each in a process of its own, since one of some five hundred kills the decoder; so only a few here."""
    path = write_grib(tmp_path / "a.grib", hours=3)
    content = path.read_bytes()
    for seed in range(int(os.environ.get("LLUEVE_GRIB_CASES", "15"))):
        path.write_bytes(damaged(content, seed))
        panel = attempt(path)
        assert panel is None or "no_checksums" in codes(panel), seed
