"""From the configured table or archive to the panel that a training may see."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from llueve.config import Config, DataConfig, RegionConfig, TargetConfig
from llueve.errors import DataError
from llueve.sources.archive import is_gridded
from llueve.sources.table import read_table
from llueve.windows import cut_indices


def read_panel(config: Config) -> xr.Dataset:
    """The panel of the table, with the categories that its training period knows.

    One variable is made per category, so a category that turns up in the test period alone would change what training
    sees. The table is then read again with the training period's own categories; others count as missing.

    Raises:
        DataError: the table cannot be read into a correct panel.
    """
    panel = read_source(config.data, config.regions, config.target)
    categories: dict[str, list[str]] = panel.attrs["categories"]
    try:
        cut, _, _ = cut_indices(panel["time"].values, config.split)
    except DataError:
        return panel  # the audit reports it
    known = {
        name: values if config.data.categories[name] == "static" else _seen(panel, name, values, cut)
        for name, values in categories.items()
    }
    return panel if known == categories else read_table(config.data, config.target, known_categories=known)


ARCHIVES_ONLY = ("more_paths", "accumulation", "cells", "land_mask", "start", "end", "dask")
"""Settings that say how an archive is read."""


def read_source(
    data: DataConfig,
    regions: Mapping[str, RegionConfig],
    target: TargetConfig | None,
    *,
    require_label: bool = True,
    known_categories: Mapping[str, Sequence[str]] | None = None,
) -> xr.Dataset:
    """The panel of a table or of an ERA5 archive; which of them a path means is told by its bytes.

    Raises:
        DataError: it cannot be read into a correct panel, or a setting belongs to the other kind.
    """
    if data.format == "era5" or (data.format == "auto" and is_gridded(data.path)):
        from llueve.sources.era5 import read_era5  # its libraries take a second that a table need not wait for

        return read_era5(data, regions, target)
    given = [f"data.{name}" for name in ARCHIVES_ONLY if getattr(data, name) != DataConfig.model_fields[name].default]
    if given or regions:
        raise DataError(
            f"{data.path}: is read as a table, for which {(given or ['[regions]'])[0]} has no meaning; take it out, or set "
            'data.format = "era5"'
        )
    return read_table(data, target, require_label=require_label, known_categories=known_categories)


def _seen(panel: xr.Dataset, name: str, values: list[str], cut: int) -> list[str]:
    """Those of a category's values that occur before the cut; all of them where none does."""
    if len(values) == 2:  # one variable tells both apart
        flags = panel[f"{name}={values[1]}"].values[:, :cut]
        seen = [value for value, flag in zip(values, (0, 1), strict=True) if np.any(flags == flag)]
    else:
        seen = [value for value in values if np.any(panel[f"{name}={value}"].values[:, :cut] == 1)]
    return seen or values
