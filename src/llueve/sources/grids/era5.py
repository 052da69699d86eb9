"""ERA5 and ERA5-Land archives as panels: `read_era5`.

`archive.py` finds the files, `fields.py` their fields, and `regions.py` the cells of each site. `region_means.py` and
`merge.py` reduce the fields to the sites; `accumulation.py` finds the period of each sum. Shapes: T times, R regions.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from llueve.config import DataConfig, RegionConfig, TargetConfig
from llueve.errors import DataError, listed
from llueve.panel import BoolArray, Finding, check_panel
from llueve.sources.findings import finding_at
from llueve.sources.grids import accumulation, grib
from llueve.sources.grids.archive import GridFile, open_archive
from llueve.sources.grids.cf_attributes import cf_attributes
from llueve.sources.grids.era5_settings import check_names, check_settings, check_target, hours_late
from llueve.sources.grids.fields import Field, FileFields, read_fields, reading
from llueve.sources.grids.merge import RegionSeries, merge
from llueve.sources.grids.region_means import CellSelection, Compute, ValidValues, workers
from llueve.sources.grids.regions import CellGrid, Region, choose_regions, mask_cells
from llueve.sources.grids.surroundings import surrounding_boxes
from llueve.sources.grids.times import HOUR, MOST_CELLS, Seconds, regular_axis, time_findings
from llueve.sources.names_and_units import agreed_units

REANALYSIS = (
    "a reanalysis uses observations from after its own times, and is five days late: skill from ERA5 to ERA5 is optimistic, "
    "and a forecast of tomorrow needs other inputs"
)


def read_era5(data: DataConfig, regions: Mapping[str, RegionConfig], target: TargetConfig | None) -> xr.Dataset:
    """Read an archive of ERA5 or ERA5-Land into a panel.

    Each region becomes a site: the mean over its cells, weighted by their area. So does each box of the surroundings, with the
    coordinate `seen_only`. Sums of precipitation are in millimetres, with
    the hours that they cover. Nothing is guessed: if neither the files nor their values show a fact, they are refused.

    Args:
        data: path and settings of the archive.
        regions: the sites; without any, each cell is a site.
        target: the precipitation to forecast; None for a prediction, whose files may lack the names of `data.exclude`.

    Returns:
        The checked panel, float32, with latitude and longitude on `site`, and `attrs` step_hours, source, findings.

    Raises:
        DataError: the files cannot be read into a correct panel; the message says where and what to do.
    """
    check_settings(data, regions, target)
    late_hours = hours_late(data)
    with _open_fields(data, predicting=target is None) as (fields, files, findings), workers(data.dask) as compute:
        fields, grid = _on_one_grid(fields)
        chosen, about_regions = choose_regions(grid, regions, _land(data, grid, fields, files))
        sites, about_boxes = _with_boxes(data, grid, chosen)
        times_of = {name: np.unique(np.concatenate([each.seconds for each in same])) for name, same in fields.items()}
        axis, step = regular_axis(data, times_of)
        if len(axis) * len(sites) > MOST_CELLS:
            raise DataError(
                f"{data.path}: {len(axis):,} times of {len(sites)} sites are more than {MOST_CELLS:,} cells; limit them with "
                "data.start and data.end"
            )
        findings += about_regions + about_boxes + time_findings(times_of, axis, step) + _checksum_findings(fields)
        selection = CellSelection.of(sites, grid.shape)
        evidence = {name: cf_attributes(same[0]) for name, same in fields.items()}
        panel, about_variables, cells_VR = _reduced(data, fields, sites, selection, axis, step, compute)
    findings += about_variables
    findings += _cell_findings(chosen, list(fields), cells_VR[:, : len(chosen)], named=bool(regions))
    if len(sites) > len(chosen):
        panel = panel.assign_coords(seen_only=("site", np.arange(len(sites)) >= len(chosen)))
    if not regions or len(sites) > len(chosen):
        panel, about_sea = _without_sea(panel, "boxes" if regions else "cells")
        findings += about_sea
    check_target(data, target, panel)
    if late_hours:
        panel = panel.assign_coords(time=panel["time"].values + np.timedelta64(round(late_hours * HOUR), "s"))
        message = f"times mark the end of the {late_hours:g} h that values sum; the files mark the start (data.stamps)"
        findings.append(Finding("moved_stamps", "info", message))
    findings.append(Finding("reanalysis", "info", REANALYSIS))
    panel.attrs = {"step_hours": step / HOUR, "source": data.path, "findings": tuple(findings), "categories": {}}
    panel.attrs["evidence"] = evidence
    # Another grid, area or polygon would make other means under the same names.
    panel.attrs["cells"] = {
        region.name: {"count": len(region.cells), "with_values": int(cells_R.max()), "sha256": region.identity(grid)}
        for region, cells_R in zip(sites if regions else [], cells_VR.T, strict=False)
    }
    return check_panel(panel)


@contextmanager
def _open_fields(
    data: DataConfig, predicting: bool
) -> Iterator[tuple[dict[str, list[Field]], list[FileFields], list[Finding]]]:
    """The fields by variable and by file, as long as the files stay open; and findings."""

    def wanted(name: str) -> bool:
        return (data.variables is None or name in data.variables) and name not in data.exclude

    with (
        open_archive(data) as (found, findings),
        tempfile.TemporaryDirectory(prefix="llueve-") as folder,
        ExitStack() as open_files,
    ):
        readable: list[GridFile] = []
        for number, file in enumerate(found):
            readable += grib.decoded(file, Path(folder) / f"{number:04}") if file.kind == "grib" else [file]
        files = [read_fields(file, wanted, open_files) for file in readable]
        names = sorted({name for each in files for name in each.names})
        check_names(data, names, predicting)
        fields: dict[str, list[Field]] = {}
        for each in files:
            findings += each.findings
            for field in each.fields:
                fields.setdefault(field.name, []).append(field)
        if reserved := sorted({"site", "recorded"} & set(fields)):
            raise DataError(
                f"{data.path}: the variable name {reserved[0]!r} is reserved; leave it out with data.exclude"
            )
        if not fields:
            others = f"only {listed(names)}, which data.exclude leaves out" if names else "none"
            raise DataError(f"{data.path}: expected variables by time, latitude and longitude, found {others}")
        yield fields, files, findings


def _on_one_grid(fields: dict[str, list[Field]]) -> tuple[dict[str, list[Field]], CellGrid]:
    """The fields with rows and columns in the order of the first field, and their grid."""
    lead = next(iter(fields.values()))[0]
    first = CellGrid(lead.label, lead.latitude, lead.longitude)

    def in_order(field: Field) -> Field:
        grid = CellGrid(field.label, field.latitude, field.longitude)
        if grid.same_as(first):
            return field
        if grid.shape == first.shape and (positions := first.positions_in(grid)) is not None:
            return field.reordered(*positions)
        raise DataError(
            f"{field.label}: {field.name} covers {grid.extent}, but {first.source} {first.extent}; files of one archive have "
            "one grid: read them separately, or download them for the same area"
        )

    return {name: [in_order(field) for field in each] for name, each in fields.items()}, first


def _land(
    data: DataConfig, grid: CellGrid, fields: dict[str, list[Field]], files: list[FileFields]
) -> BoolArray | None:
    """True for each cell that may be used; None allows all, and suffices if the sea has no values."""
    if data.cells == "all":
        return None
    if data.land_mask is not None:
        return mask_cells(grid, "data.land_mask", data.land_mask, None)
    for each in files:
        if each.has_land_mask and each.file.kind != "zarr":
            return mask_cells(grid, "data.cells", each.file.path, None)
    if all(_has_no_sea(same[0]) for same in fields.values()):
        return None
    raise DataError(
        f'{data.path}: data.cells = "land" needs a land-sea mask: the files hold none (lsm), and are not ERA5-Land, which '
        "leaves the sea out; download lsm for the same area and name its file in data.land_mask"
    )


def _has_no_sea(field: Field) -> bool:
    """True for a field of ERA5-Land: by name, or by its grid and missing cells; the sea's temperature is missing on land."""
    if accumulation.LAND_NAME.search(field.about):
        return True
    with reading(field.label):
        missing = bool(np.isnan(field.array.isel({field.dims[0]: 0}).values).any())
    return missing and field.spacing == accumulation.LAND_SPACING


def _reduced(
    data: DataConfig,
    fields: dict[str, list[Field]],
    regions: list[Region],
    selection: CellSelection,
    axis: Seconds,
    step: int,
    compute: Compute,
) -> tuple[xr.Dataset, list[Finding], NDArray[np.int64]]:
    """The variables by site and time; findings; and by variable and region, the number of cells with values."""
    names = [region.name for region in regions]
    findings: list[Finding] = []
    arrays: dict[str, Any] = {}
    cells_of: dict[str, NDArray[np.int64]] = {}
    present_T = preliminary_T = np.zeros(len(axis), np.bool_)
    periods: dict[str, accumulation.SumPeriod] = {}
    # Rain first: its course shows the period of its sums, and thus that of fluxes in the same files.
    for name, each in sorted(fields.items(), key=lambda item: not accumulation.shows_period(item[1][0])):
        given = {field.label: {name: str(field.attrs.get("units") or "") or None} for field in each}
        units = agreed_units([name], {**given, "data.units": data.units}, data.path).get(name)
        noise = max(accumulation.noise(field, units) for field in each)
        valid = ValidValues(-noise if accumulation.is_never_negative(each[0]) else None, data.sentinels)
        series = merge(each, axis, selection, names, valid, compute)
        arrays[name], about = _variable(data, each, series, (units, noise), axis, step, periods)
        findings += series.findings + about
        cells_of[name] = series.cells_R
        present_T, preliminary_T = present_T | series.present_T, preliminary_T | series.preliminary_T
    if preliminary_T.any():
        times = axis[preliminary_T]
        message = f"{len(times)} of {len(axis)} times are preliminary (ERA5T), which ECMWF may still change"
        findings.append(finding_at("preliminary", "info", message, times))
    coords = {
        "site": np.array(names, dtype=str),
        "time": axis.astype("datetime64[s]").astype("datetime64[ns]"),
        "latitude": ("site", [region.latitude for region in regions], {"units": "degrees_north"}),
        "longitude": ("site", [region.longitude for region in regions], {"units": "degrees_east"}),
        "recorded": (("site", "time"), np.broadcast_to(present_T, (len(names), len(axis))).copy()),
    }
    panel = xr.Dataset({name: arrays[name] for name in fields}, coords)
    return panel, findings, np.array([cells_of[name] for name in fields])


def _variable(
    data: DataConfig,
    fields: list[Field],
    series: RegionSeries,
    units_and_noise: tuple[str | None, float],
    axis: Seconds,
    step: int,
    periods: dict[str, accumulation.SumPeriod],
) -> tuple[Any, list[Finding]]:
    """A variable by (site, time) with its unit and the hours of sums; and findings. The period of rain enters `periods`."""
    name, (units, noise) = fields[0].name, units_and_noise
    values_TR, attrs, findings = series.mean_TR, dict[str, Any](), []
    kinds = {accumulation.is_accumulated(field) for field in fields}
    if len(kinds) > 1:
        raise DataError(f"{name}: a sum over time in some files and an instant in others; read them separately")
    if name in data.accumulation_hours:
        attrs["accumulation_hours"] = data.accumulation_hours[name]
    elif kinds == {True}:
        period = accumulation.sum_period(data.accumulation, fields, axis, values_TR, noise, step, periods)
        if accumulation.shows_period(fields[0]):
            periods.update({field.label: period for field in fields})
        hours, values_TR, levelled = accumulation.sums_over_steps(period, fields[0], axis, values_TR, noise, step)
        attrs["accumulation_hours"] = hours
        sums = f"each value sums the {hours:g} h before its time"
        if period.kind == "from_00utc":
            sums = f"summed since 00 UTC, converted to sums over {hours:g} h"
        findings.append(Finding("accumulation", "info", f"{name}: {sums} ({period.reasons})", variable=name))
        if levelled:
            message = f"{name}: {levelled:,} falls inside a day, within the noise of packing, were levelled"
            findings.append(Finding("packing_noise", "info", message, variable=name, count=levelled))
    if accumulation.is_precipitation(fields[0]) and units in accumulation.DEPTHS:
        values_TR, units = values_TR * accumulation.DEPTHS[units], "mm"
    if units is not None:
        attrs["units"] = units
    return (("site", "time"), np.ascontiguousarray(values_TR.T, dtype=np.float32), attrs), findings


def _checksum_findings(fields: dict[str, list[Field]]) -> list[Finding]:
    encodings = {field.label: field.array.encoding for each in fields.values() for field in each}
    bare = [label for label, encoding in encodings.items() if not (encoding.get("zlib") or encoding.get("fletcher32"))]
    if not bare:
        return []
    message = f"{len(bare)} of {len(encodings)} files have no checksums: damaged values in them cannot be detected"
    return [Finding("no_checksums", "info", message, count=len(bare))]


def _cell_findings(regions: list[Region], names: list[str], cells_VR: NDArray[np.int64], named: bool) -> list[Finding]:
    """Findings on the number of cells in each region's means; only a site of one cell may be in the sea and have none."""
    single = all(len(region.cells) == 1 for region in regions) and len(regions) > 1
    message = f"{len(regions)} sites of one cell each"
    findings = [Finding("region_cells", "info", message, count=len(regions))] if single else []
    for region, cells_V in zip(regions, cells_VR.T, strict=True):
        most = int(cells_V.max())
        if most == 0 and (named or not single):
            raise DataError(
                f"regions.{region.name}: its {len(region.cells)} cells are missing at all times in all variables; they are in "
                "the sea, or the files are empty there"
            )
        if single:
            continue
        fewer = [f"{name} {count}" for name, count in zip(names, cells_V, strict=True) if count != most]
        message = f"{region.name}: means over {most} of its {len(region.cells)} cells"
        message += f" ({listed(fewer)})" if fewer else ""
        findings.append(Finding("region_cells", "info", message, site=region.name, count=most))
    return findings


def _with_boxes(data: DataConfig, grid: CellGrid, regions: list[Region]) -> tuple[list[Region], list[Finding]]:
    """The regions and, if they are configured, the boxes of their surroundings; and findings on these."""
    if data.surroundings_degrees is None:
        return regions, []
    boxes, findings = surrounding_boxes(grid, data.surroundings_degrees)
    if taken := sorted({box.name for box in boxes} & {region.name for region in regions}):
        raise DataError(f"regions.{taken[0]}: is the name of a box of data.surroundings_degrees; rename the region")
    return [*regions, *boxes], findings


def _without_sea(panel: xr.Dataset, kind: str) -> tuple[xr.Dataset, list[Finding]]:
    known = np.any([~np.isnan(array.values).all(axis=1) for array in panel.data_vars.values()], axis=0)
    if known.all() or not known.any():
        return panel, []
    count = int((~known).sum())
    message = f"{count} {kind} are missing at all times in all variables (sea) and are left out"
    return panel.isel(site=np.flatnonzero(known)), [Finding("sea_cells", "info", message, count=count)]
