"""The sites that a model was trained on, if it sees the sites of an issue time together. Shapes: S sites."""

import logging
from collections.abc import Sequence

import numpy as np
import xarray as xr
from pydantic import Field

from llueve.config import ModelConfig, Section
from llueve.errors import DataError, listed
from llueve.panel import site_positions
from llueve.samples.scenes import Network
from llueve.samples.split import whole_windows

logger = logging.getLogger(__name__)

FEWEST_SITES = 3
"""Sites from which `model.sites = "auto"` lets them see each other."""


class TrainedSite(Section):
    """A site with a learned vector."""

    name: str
    latitude: float = Field(ge=-90, le=90)
    longitude: float = Field(ge=-180, le=180)


def sites_seen_together(panel: xr.Dataset, model: ModelConfig) -> list[TrainedSite] | None:
    """The sites of a panel with their positions if the model sees them together, as `model.sites` asks; otherwise None."""
    position_S2 = site_positions(panel)
    if model.sites == "alone" or model.head != "variables":
        return None
    if model.sites == "auto" and (position_S2 is None or len(position_S2) < FEWEST_SITES):
        return None
    if position_S2 is None:
        raise DataError(
            'model.sites = "together" needs the position of each site: set data.positions to a table with the columns site, '
            'latitude and longitude, or choose "alone"'
        )
    return [
        TrainedSite(name=str(name), latitude=north, longitude=east)
        for name, (north, east) in zip(panel["site"].values, position_S2.tolist(), strict=True)
    ]


def network_of(panel: xr.Dataset, trained: Sequence[TrainedSite], context: int, most_sites: int) -> Network:
    """The sites of a panel as the model sees them; a new one has no vector, which is logged.

    Args:
        trained: the sites of the training; a site of the panel without a position has that of its name.
        context, most_sites: steps of a window, and most sites of a scene.

    Raises:
        DataError: a new site has no position.
    """
    number = {site.name: place for place, site in enumerate(trained, start=1)}
    vector_S = np.array([number.get(str(site), 0) for site in panel["site"].values], np.int64)
    position_S2, new = site_positions(panel), listed(panel["site"].values[vector_S == 0].tolist())
    if position_S2 is None and new:
        raise DataError(
            f"{new}: the model sees the sites of an issue time together and needs the position of each site that it was not "
            "trained on; give data.positions"
        )
    if position_S2 is None:
        position_S2 = np.array([(site.latitude, site.longitude) for site in trained])[vector_S - 1]
    if new:
        logger.warning(
            "%d site(s) were not in the training and are forecast without a vector of their own: %s",
            (vector_S == 0).sum(),
            new,
        )
    return Network(position_S2.astype(np.float32), vector_S, whole_windows(panel, context), most_sites)
