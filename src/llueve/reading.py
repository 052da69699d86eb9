"""From the configured table or archive to the panel that a training may see."""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from llueve.config import Config, DataConfig, RegionConfig, TargetConfig
from llueve.errors import DataError
from llueve.features import add_features
from llueve.sources.archive import is_gridded
from llueve.sources.positions import with_positions
from llueve.sources.table import read_table
from llueve.windows import cut_indices

ARCHIVES_ONLY = ("more_paths", "accumulation", "cells", "land_mask", "start", "end", "dask", "stamps")
"""Settings that say how an archive is read."""


def read_panel(config: Config) -> xr.Dataset:
    """The panel of the configured data, with the categories that its training period knows.

    One variable is made per category, so a category that turns up in the test period alone would change what training
    sees. The table is then read again with the training period's own categories; others count as missing.

    Raises:
        DataError: the data cannot be read into a correct panel.
    """
    panel = read_source(config)
    categories: dict[str, list[str]] = panel.attrs["categories"]
    try:
        cut, _, _ = cut_indices(panel["time"].values, config.split)
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

    Args:
        new: where newer data is, to predict from: its label, and what else tells the future, need not be there.
        known_categories: see `read_table`.

    Raises:
        DataError: it cannot be read into a correct panel, or a setting belongs to another kind of data.
        ConfigError: a derived variable cannot be made.
    """
    data, target = config.data, config.target
    if new is not None:
        label = () if target.label is None else (target.label,)
        newer = {"path": new, "exclude": (*data.exclude, *label), "more_paths": (), "start": None, "end": None}
        data = data.model_copy(update=newer)
    panel = _read(data, config.regions, None if new is not None else target, known_categories)
    if data.positions is not None:
        panel = with_positions(panel, data.positions)
    return add_features(panel, config.features)


def _read(
    data: DataConfig,
    regions: Mapping[str, RegionConfig],
    target: TargetConfig | None,
    known_categories: Mapping[str, Sequence[str]] | None,
) -> xr.Dataset:
    """A table or an ERA5 archive; which of them a path means is told by its bytes."""
    if data.format == "era5" or (data.format == "auto" and is_gridded(data.path)):
        from llueve.sources.era5 import read_era5  # its libraries take a second that a table need not wait for

        return read_era5(data, regions, target)
    if "://" in data.path:
        raise DataError(f"{data.path}: is the address of a table; download it and set data.path to the file")
    is_own = data.path.startswith("package:") or glob.has_magic(data.path)
    if not is_own and not Path(data.path).exists():
        raise DataError(f"{data.path}: cannot be read (no such file or folder); check data.path")
    given = [f"data.{name}" for name in ARCHIVES_ONLY if getattr(data, name) != DataConfig.model_fields[name].default]
    if given or regions:
        if glob.has_magic(data.path) and not Path(data.path).exists():
            raise DataError(f"{data.path}: no file of an ERA5 archive matches this pattern; check data.path")
        raise DataError(
            f"{data.path}: is read as a table, for which {(given or ['[regions]'])[0]} has no meaning; take it out, or set "
            'data.format = "era5"'
        )
    return read_table(data, target, require_label=target is not None, known_categories=known_categories)


def _seen(panel: xr.Dataset, name: str, values: list[str], cut: int) -> list[str]:
    """Those of a category's values that occur before the cut; all of them where none does."""
    if len(values) == 2:  # one variable tells both apart
        flags = panel[f"{name}={values[1]}"].values[:, :cut]
        seen = [value for value, flag in zip(values, (0, 1), strict=True) if np.any(flags == flag)]
    else:
        seen = [value for value in values if np.any(panel[f"{name}={value}"].values[:, :cut] == 1)]
    return seen or values
