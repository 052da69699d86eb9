"""ERA5 and ERA5-Land archives as panels: `read_era5`.

`archive.py` finds the files, `gridded.py` their fields, `regions.py` the cells of each site, `blocks.py` and `merging.py`
reduce the one over the other, `accumulation.py` says what a sum sums. Shapes: T times, R regions.
"""

import difflib
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
from llueve.sources import accumulation, grib
from llueve.sources.archive import Member, opened
from llueve.sources.blocks import Layout, workers
from llueve.sources.gridded import LAND_MASKS, Contents, Field, read_fields, reading
from llueve.sources.merging import Compute, Series, merge
from llueve.sources.regions import Grid, Region, choose_regions, mask_cells
from llueve.sources.timeline import HOUR, MOST_CELLS, Seconds, about_times, moment, panel_axis

TABLES_ONLY = (
    "site", "site_name", "time", "time_format", "time_zone", "missing", "infinite", "duplicates", "wind_directions",
    "categories",
)  # fmt: skip
"""Settings that say how a table is read; an archive says all that itself."""
REANALYSIS = (
    "a reanalysis has seen observations from after its own times, and comes five days late: skill from ERA5 to ERA5 is "
    "optimistic, and a forecast of tomorrow needs other inputs"
)


def read_era5(data: DataConfig, regions: Mapping[str, RegionConfig], target: TargetConfig | None) -> xr.Dataset:
    """Read an archive of ERA5 or ERA5-Land into a panel.

    Each region becomes a site: the mean over its cells, weighted by their area. Sums of precipitation are in millimetres, and
    carry the hours that they cover. Nothing is guessed: what neither the files nor their values tell is refused.

    Args:
        data: where the files are and which variables, cells and times to take.
        regions: the sites; none makes a site of each cell.
        target: names the precipitation that is forecast. None, as when predicting, has none, and names of `data.exclude`
            need not be there then.

    Returns:
        The checked panel, float32, with latitude and longitude on `site`, and `attrs` step_hours, source, findings.

    Raises:
        DataError: the files cannot be read into a correct panel; the message says where and what to do.
    """
    _check_options(data, target)
    late = _hours_late(data)
    with (
        _fields(data, predicting=target is None) as (fields, contents, members, findings),
        workers(data.dask) as compute,
    ):
        fields, grid = _on_one_grid(fields)
        land = _land(data, grid, fields, contents, members)
        chosen, overlaps = choose_regions(grid, regions, land)
        told = {name: np.unique(np.concatenate([field.seconds for field in each])) for name, each in fields.items()}
        axis, step = panel_axis(data, told)
        if len(axis) * len(chosen) > MOST_CELLS:
            raise DataError(
                f"{data.path}: {len(axis):,} times of {len(chosen)} sites are more than {MOST_CELLS:,} cells; limit them with "
                "data.start and data.end"
            )
        findings += overlaps + about_times(told, axis, step) + _about_checksums(fields)
        panel, about, cells = _panel(data, fields, chosen, axis, step, compute)
        identities = {region.name: region.identity(grid) for region in chosen} if regions else {}
    findings += about + _about_cells(chosen, cells, named=bool(regions))
    if not regions:
        panel, sea = _without_sea(panel)
        findings += sea
    if target is not None and target.variable is not None and target.variable not in panel:
        raise DataError(
            f"{data.path}: target.variable {target.variable!r} is not among the variables ({listed(list(panel.data_vars), 40)}); "
            "it must be a sum of precipitation such as tp"
        )
    if target is not None and target.variable is not None and "accumulation_hours" not in panel[target.variable].attrs:
        raise DataError(
            f"{data.path}: target.variable {target.variable!r} is not known to be a sum over time: its file gives no stepType, "
            f"and its names are none of a depth of precipitation; if it is one, set data.accumulation_hours.{target.variable} "
            "to the hours that each value sums"
        )
    if late:
        panel = panel.assign_coords(time=panel["time"].values + np.timedelta64(round(late * HOUR), "s"))
        message = f"values stand at the end of the {late:g} h that they sum; the files stamp the start (data.stamps)"
        findings.append(Finding("moved_stamps", "info", message))
    findings.append(Finding("reanalysis", "info", REANALYSIS))
    panel.attrs = {"step_hours": step / HOUR, "source": data.path, "findings": tuple(findings), "categories": {}}
    # What makes each region's mean: another grid, area or polygon would make other means under the same names.
    panel.attrs["cells"] = {
        region.name: {
            "count": len(region.cells),
            "with_values": int(np.max([by_region[number] for by_region in cells.values()])),
            "sha256": identities[region.name],
        }
        for number, region in enumerate(chosen)
        if identities
    }
    return check_panel(panel)


def _check_options(data: DataConfig, target: TargetConfig | None) -> None:
    """Refuse what only a table can do."""
    plain = DataConfig(path=data.path)
    given = [name for name in TABLES_ONLY if getattr(data, name) != getattr(plain, name)]
    if given:
        raise DataError(
            f"{data.path}: is an ERA5 archive, for which data.{given[0]} has no meaning; take out "
            f"{listed([f'data.{name}' for name in given], 20)}"
        )
    if target is not None and target.label is not None:
        raise DataError(
            f"{data.path}: target.label = {target.label!r}: an ERA5 archive has no label column; set target.variable, such as "
            "tp, and target.threshold_mm"
        )


def _hours_late(data: DataConfig) -> float:
    """Hours by which the files stamp their values too early: what a value sums must lie before its time.

    Daily means carry the stamps of the daily sums beside them, so all variables are moved alike.

    Raises:
        DataError: sums made elsewhere without a word on which end their times mark.
    """
    hours = sorted(set(data.accumulation_hours.values()))
    if not hours:
        if data.stamps is not None:
            raise DataError(
                f"{data.path}: data.stamps belongs to data.accumulation_hours, which is not set; take it out"
            )
        return 0.0
    if data.stamps is None:
        raise DataError(
            f"{data.path}: data.accumulation_hours: which end of its {listed([f'{each:g}' for each in hours])} h does a time "
            "mark? Daily sums of pandas, xarray and the CDS mark the start, and would tell the future if read as the end: "
            'set data.stamps to "start" or "end"'
        )
    if data.stamps == "end":
        return 0.0
    if len(hours) > 1:
        raise DataError(
            f'{data.path}: data.accumulation_hours are {listed([f"{each:g}" for each in hours])} h with data.stamps = "start", '
            "so no one time is the end of all; read them apart"
        )
    return hours[0]


def _has_no_sea(field: Field) -> bool:
    """Whether a field is of ERA5-Land: by name, or by its grid together with missing cells.

    Missing cells alone tell nothing: the temperature of the sea is missing on land.
    """
    if accumulation.LAND_NAME.search(field.about):
        return True
    with reading(field.label):
        missing = bool(np.isnan(field.array.isel({field.dims[0]: 0}).values).any())
    return missing and field.spacing == accumulation.LAND_SPACING


@contextmanager
def _fields(
    data: DataConfig, predicting: bool
) -> Iterator[tuple[dict[str, list[Field]], list[Contents], list[Member], list[Finding]]]:
    """The fields by variable, for as long as the files stay open."""
    chosen = None if data.variables is None else set(data.variables)

    def wanted(name: str) -> bool:
        return (chosen is None or name in chosen) and name not in data.exclude

    with (
        opened(data) as (members, findings),
        tempfile.TemporaryDirectory(prefix="llueve-") as folder,
        ExitStack() as files,
    ):
        readable: list[Member] = []
        for number, member in enumerate(members):
            is_grib = member.kind == "grib"
            readable += grib.decoded(member, Path(folder) / f"{number:04}") if is_grib else [member]
        contents = [read_fields(member, wanted, files) for member in readable]
        names = sorted({name for each in contents for name in each.names})
        _check_names(data, names, predicting)
        fields: dict[str, list[Field]] = {}
        for each in contents:
            findings += each.findings
            for field in each.fields:
                fields.setdefault(field.name, []).append(field)
        if taken := sorted({"site", "recorded"} & set(fields)):
            raise DataError(f"{data.path}: a variable named {taken[0]!r} clashes with the panel's own; data.exclude it")
        if not fields:
            found = f"only {listed(names)}, which data.exclude leaves out" if names else "none"
            raise DataError(f"{data.path}: expected variables by time, latitude and longitude, found {found}")
        yield fields, contents, readable, findings


def _check_names(data: DataConfig, names: list[str], predicting: bool) -> None:
    """Every variable that the configuration names is in the files."""
    for key in ("variables", "exclude", "units", "accumulation_hours"):
        for name in getattr(data, key) or ():
            if name not in names and not (key == "exclude" and (predicting or name in LAND_MASKS)):
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise DataError(f"{data.path}: data.{key} names {name!r}; the files hold {listed(names, 40)}{hint}")


def _on_one_grid(fields: dict[str, list[Field]]) -> tuple[dict[str, list[Field]], Grid]:
    """The fields in the order of rows and columns that the first has, and their one grid."""
    lead = next(iter(fields.values()))[0]
    first = Grid(lead.label, lead.latitude, lead.longitude)

    def laid(field: Field) -> Field:
        grid = Grid(field.label, field.latitude, field.longitude)
        if grid.same_as(first):
            return field
        if (order := first.order_in(grid)) is not None:
            return field.reordered(*order)
        raise DataError(
            f"{field.label}: {field.name} covers {grid.extent}, but {first.source} {first.extent}; files of one archive have "
            "one grid: read them apart, or fetch them for the same area"
        )

    return {name: [laid(field) for field in each] for name, each in fields.items()}, first


def _land(
    data: DataConfig, grid: Grid, fields: dict[str, list[Field]], contents: list[Contents], members: list[Member]
) -> BoolArray | None:
    """Cells that may be used, or None where all may: sea that the files leave out needs no mask.

    Raises:
        DataError: `data.cells` asks for land and nothing tells where it is.
    """
    if data.cells == "all":
        if data.land_mask is not None:
            raise DataError('data.land_mask does nothing while data.cells is "all"; set data.cells = "land"')
        return None
    if data.land_mask is not None:
        return mask_cells(grid, "data.land_mask", data.land_mask, None)
    for each, member in zip(contents, members, strict=True):
        if each.land and member.kind != "zarr":
            return mask_cells(grid, "data.cells", member.path, None)
    if all(_has_no_sea(field_list[0]) for field_list in fields.values()):
        return None
    raise DataError(
        f'{data.path}: data.cells = "land" needs to know where land is: the files hold no land-sea mask (lsm), and are not '
        "ERA5-Land, which leaves the sea out; fetch lsm for the same area and name its file in data.land_mask"
    )


def _about_checksums(fields: dict[str, list[Field]]) -> list[Finding]:
    """Files in which a damaged value looks like any other."""
    findings = []
    sources = {field.label: field.array.encoding for each in fields.values() for field in each}
    bare = [label for label, told_how in sources.items() if not (told_how.get("zlib") or told_how.get("fletcher32"))]
    if bare:
        message = (
            f"{len(bare)} of {len(sources)} files carry no checksums (not compressed NetCDF-4): a damaged value in them cannot "
            "be told from a true one"
        )
        findings.append(Finding("no_checksums", "info", message, count=len(bare)))
    return findings


def _panel(
    data: DataConfig, fields: dict[str, list[Field]], regions: list[Region], axis: Seconds, step: int, compute: Compute
) -> tuple[xr.Dataset, list[Finding], dict[str, NDArray[np.int64]]]:
    """Every variable reduced and turned into a panel's array; what was met; and by variable, cells with values (R,)."""
    names = [region.name for region in regions]
    first = next(iter(fields.values()))[0]
    layout = Layout.of(regions, (len(first.latitude), len(first.longitude)))
    findings: list[Finding] = []
    arrays: dict[str, Any] = {}
    used: dict[str, NDArray[np.int64]] = {}
    told_T = preliminary_T = np.zeros(len(axis), np.bool_)
    siblings: dict[str, accumulation.Summed] = {}
    # Rain first: what it sums is told by its course, and tells it for fluxes in the same files.
    for name, each in sorted(fields.items(), key=lambda item: not accumulation.judged_first(item[1])):
        units = _units(data, name, each)
        noise = max(accumulation.noise(field, units) for field in each)
        least = -noise if accumulation.is_never_negative(each[0]) else None
        series = merge(each, axis, layout, names, least, compute, data.sentinels)
        arrays[name], about = _array(data, name, each, series, units, axis, step, siblings)
        findings += series.findings + about
        used[name] = series.cells_R
        told_T, preliminary_T = told_T | series.told_T, preliminary_T | series.preliminary_T
    if preliminary_T.any():
        times = np.flatnonzero(preliminary_T)
        message = f"{len(times)} of {len(axis)} times are preliminary (ERA5T), which ECMWF may still change"
        bounds = moment(axis[times[0]]), moment(axis[times[-1]])
        findings.append(Finding("preliminary", "info", message, None, None, *bounds, len(times)))
    coords = {
        "site": np.array(names, dtype=str),
        "time": axis.astype("datetime64[s]").astype("datetime64[ns]"),
        "latitude": ("site", [region.latitude for region in regions], {"units": "degrees_north"}),
        "longitude": ("site", [region.longitude for region in regions], {"units": "degrees_east"}),
        "recorded": (("site", "time"), np.broadcast_to(told_T, (len(names), len(axis))).copy()),
    }
    return xr.Dataset({name: arrays[name] for name in fields}, coords), findings, used


def _units(data: DataConfig, name: str, fields: list[Field]) -> str | None:
    """The unit of a variable, as all files and the configuration tell it; never guessed."""
    told = {str(unit): field.label for field in fields if (unit := field.attrs.get("units"))}
    if name in data.units:
        told.setdefault(data.units[name], "data.units")
    if len(told) > 1:
        sayings = " but ".join(f"{who} says {unit!r}" for unit, who in told.items())
        raise DataError(f"{name}: {sayings}; correct the wrong one")
    return next(iter(told), None)


def _array(
    data: DataConfig,
    name: str,
    fields: list[Field],
    series: Series,
    units: str | None,
    axis: Seconds,
    step: int,
    siblings: dict[str, accumulation.Summed],
) -> tuple[Any, list[Finding]]:
    """A variable by (site, time) with its unit and, for sums, the hours that they cover; and what was decided.

    What rain sums is added to `siblings`, by file.
    """
    values_TR, attrs, findings = series.mean_TR, dict[str, Any](), []
    kinds = {accumulation.is_accumulated(field) for field in fields}
    if len(kinds) > 1:
        raise DataError(f"{name}: a sum over time in some files and an instant in others; read them apart")
    if name in data.accumulation_hours:
        attrs["accumulation_hours"] = data.accumulation_hours[name]
    elif kinds == {True}:
        tolerance = max(accumulation.noise(field, units) for field in fields)
        summed = accumulation.decide(data.accumulation, name, fields, axis, values_TR, tolerance, step, siblings)
        if accumulation.judged_first(fields):
            siblings.update({field.label: summed for field in fields})
        only_adds = accumulation.is_never_negative(fields[0])
        hours, values_TR, tiny = accumulation.hours_and_values(
            summed, name, axis, values_TR, tolerance, step, only_adds
        )
        attrs["accumulation_hours"] = hours
        findings.append(accumulation.kind_finding(name, summed, hours))
        if tiny:
            message = f"{name}: {tiny:,} little falls inside a day, as packing leaves them, were levelled"
            findings.append(Finding("packing_noise", "info", message, variable=name, count=tiny))
    if accumulation.is_precipitation(fields[0]) and units in accumulation.DEPTHS:
        values_TR, units = values_TR * accumulation.DEPTHS[units], "mm"
    if units is not None:
        attrs["units"] = units
    return (("site", "time"), np.ascontiguousarray(values_TR.T, dtype=np.float32), attrs), findings


def _about_cells(regions: list[Region], used: dict[str, NDArray[np.int64]], named: bool) -> list[Finding]:
    """How many cells made each region's means; where each cell is a site, one in the sea may have none.

    Raises:
        DataError: none of a region's cells ever has a value.
    """
    cells_VR = np.array(list(used.values()))
    alone = all(len(region.cells) == 1 for region in regions) and len(regions) > 1
    message = f"{len(regions)} sites of one cell each"
    findings = [Finding("region_cells", "info", message, count=len(regions))] if alone else []
    for region, by_variable in zip(regions, cells_VR.T, strict=True):
        if by_variable.max() == 0 and (named or not alone):
            raise DataError(
                f"regions.{region.name}: its {len(region.cells)} cells are missing at all times in all variables; they lie in "
                "the sea, or the files are empty there"
            )
        if alone:
            continue
        fewer = [f"{name} {count}" for name, count in zip(used, by_variable, strict=True) if count != by_variable.max()]
        message = f"{region.name}: means over {by_variable.max()} of its {len(region.cells)} cells"
        message += f" ({listed(fewer)})" if fewer else ""
        findings.append(Finding("region_cells", "info", message, site=region.name, count=int(by_variable.max())))
    return findings


def _without_sea(panel: xr.Dataset) -> tuple[xr.Dataset, list[Finding]]:
    """The panel without sites that never have a value, where each cell is a site."""
    known = np.any([~np.isnan(array.values).all(axis=1) for array in panel.data_vars.values()], axis=0)
    if known.all() or not known.any():
        return panel, []
    message = f"{int((~known).sum())} cells are missing at all times in all variables (sea), and are no sites"
    return panel.isel(site=np.flatnonzero(known)), [Finding("sea_cells", "info", message, count=int((~known).sum()))]
