"""Read the configured table or archive into a panel."""

import glob
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import xarray as xr

from llueve.config import Config, DataConfig, RegionConfig, TargetConfig
from llueve.errors import DataError, listed
from llueve.panel import Finding, seen_only
from llueve.paths import path_problem
from llueve.samples.features import add_features
from llueve.samples.split import cut_indices
from llueve.sources.grids.archive import is_gridded
from llueve.sources.identify import with_quantities
from llueve.sources.tables.positions import with_positions
from llueve.sources.tables.table import read_table

ARCHIVES_ONLY = (
    "more_paths", "accumulation", "cells", "land_mask", "surroundings_degrees", "start", "end", "dask", "stamps",
)  # fmt: skip
"""Keys of `[data]` that apply to an ERA5 archive only."""


def read_panel(config: Config) -> xr.Dataset:
    """The panel of the configured data, with the categories of its training period. Raises as `read_source`.

    Each category becomes a variable. A category that occurs in the test period alone would thus change the input of
    training. The table is then read again with the training period's own categories; others count as missing.
    """
    panel = read_source(config)
    categories: dict[str, list[str]] = panel.attrs["categories"]
    try:
        cut, _, _ = cut_indices(panel.variables["time"].values, config.split)
    except DataError:
        return panel  # the audit reports it
    known = {
        name: values if config.data.categories[name] == "static" else _seen(panel, name, values, cut)
        for name, values in categories.items()
    }
    return panel if known == categories else read_source(config, known_categories=known)


def read_source(
    config: Config, *, new: str | None = None, known_categories: Mapping[str, Sequence[str]] | None = None
) -> xr.Dataset:
    """The panel of the configured data, or of newer data of the same kind, with its derived variables.

    `new` is the path of newer data to predict from; they may lack the label and the excluded columns.

    Raises:
        DataError: the data cannot be read into a correct panel, or a key applies to another kind of data.
        ConfigError: a derived variable cannot be made.
    """
    data, target = config.data, config.target
    if new is not None:
        if problem := path_problem(new):
            raise DataError(f"{new[:100]!r}: {problem}")
        label = () if target.label is None else (target.label,)
        newer = {"path": new, "exclude": (*data.exclude, *label), "more_paths": (), "start": None, "end": None}
        data = data.model_copy(update=newer)
    panel = _read(data, config.regions, None if new is not None else target, known_categories)
    if data.positions is not None:
        panel = with_positions(panel, data.positions)
    if data.seen_only:
        panel = _with_seen_only(panel, data, is_new=new is not None)
    panel = with_quantities(panel, data.quantities, data.wind_directions, is_new=new is not None)
    return add_features(panel, config.features)


def _read(
    data: DataConfig,
    regions: Mapping[str, RegionConfig],
    target: TargetConfig | None,
    known_categories: Mapping[str, Sequence[str]] | None,
) -> xr.Dataset:
    """The panel of a table or an ERA5 archive; with `data.format = "auto"` the first bytes decide between them."""
    if data.format == "era5" or (data.format == "auto" and is_gridded(data.path)):
        from llueve.sources.grids.era5 import read_era5

        return read_era5(data, regions, target)
    if "://" in data.path:
        raise DataError(f"{data.path}: is an address, and tables are read from files; download it and change data.path")
    if not (data.path.startswith("package:") or glob.has_magic(data.path) or Path(data.path).exists()):
        raise DataError(f"{data.path}: cannot be read (no such file or folder); check data.path")
    given = [f"data.{name}" for name in ARCHIVES_ONLY if getattr(data, name) != DataConfig.model_fields[name].default]
    if given or regions:
        if glob.has_magic(data.path) and not Path(data.path).exists():
            raise DataError(f"{data.path}: no file of an ERA5 archive matches this pattern; check data.path")
        key = (given or ["[regions]"])[0]
        only = f'{key} applies to an ERA5 archive only; remove it, or set data.format = "era5"'
        raise DataError(f"{data.path}: is read as a table, and {only}")
    return read_table(data, target, require_label=target is not None, known_categories=known_categories)


def _with_seen_only(panel: xr.Dataset, data: DataConfig, is_new: bool) -> xr.Dataset:
    """The panel with the coordinate `seen_only`: True for the sites that `data.seen_only` names, and for those that had it.

    Newer data may lack a site that the configuration names.

    Raises:
        DataError: a pattern names no site, or the patterns name every site.
    """
    sites = [str(site) for site in panel["site"].values]
    named = {each: [site == each or fnmatchcase(site, each) for site in sites] for each in data.seen_only}
    if (unknown := [each for each, chosen in named.items() if not any(chosen)]) and not is_new:
        raise DataError(
            f"{data.path}: data.seen_only names {listed(unknown)}, but the sites are {listed(sites, 20)}; correct the name or "
            "the pattern"
        )
    seen_S = seen_only(panel) | np.any([*named.values()], axis=0)
    if seen_S.all():
        raise DataError(
            f"{data.path}: data.seen_only names every site, so that none is left to forecast; the sites are {listed(sites, 20)}"
        )
    panel = panel.assign_coords(seen_only=("site", seen_S))
    count = int(seen_S.sum())
    message = (
        f"{count} of {len(sites)} sites are seen but not forecast: {listed(panel['site'].values[seen_S].tolist())}"
    )
    findings = (*panel.attrs["findings"], Finding("seen_only", "info", message, count=count))
    return panel.assign_attrs(findings=findings)


def _seen(panel: xr.Dataset, name: str, values: list[str], cut: int) -> list[str]:
    """Values of a category that occur before the cut; all of them if none occurs."""
    if len(values) == 2:  # one 0/1 variable for both
        flags = panel.variables[f"{name}={values[1]}"].values[:, :cut]
        return [value for flag, value in enumerate(values) if np.any(flags == flag)] or values
    return [value for value in values if np.any(panel.variables[f"{name}={value}"].values[:, :cut] == 1)] or values
