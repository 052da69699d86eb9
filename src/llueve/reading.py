"""From the configured table to the panel that a training may see."""

import numpy as np
import xarray as xr

from llueve.config import Config
from llueve.errors import DataError
from llueve.sources.table import read_table
from llueve.windows import cut_indices


def read_panel(config: Config) -> xr.Dataset:
    """The panel of the table, with the categories that its training period knows.

    One variable is made per category, so a category that turns up in the test period alone would change what training
    sees. The table is then read again with the training period's own categories; others count as missing.

    Raises:
        DataError: the table cannot be read into a correct panel.
    """
    panel = read_table(config.data, config.target)
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


def _seen(panel: xr.Dataset, name: str, values: list[str], cut: int) -> list[str]:
    """Those of a category's values that occur before the cut; all of them where none does."""
    if len(values) == 2:  # one variable tells both apart
        flags = panel[f"{name}={values[1]}"].values[:, :cut]
        seen = [value for value, flag in zip(values, (0, 1), strict=True) if np.any(flags == flag)]
    else:
        seen = [value for value in values if np.any(panel[f"{name}={value}"].values[:, :cut] == 1)]
    return seen or values
