"""The sites of a training that see each other, as `model.json` holds them, and the network of the sites of any panel.

Shapes: S sites, T times.
"""

import logging
from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field

from llueve.config import ModelConfig, Section
from llueve.errors import DataError, listed
from llueve.panel import site_positions
from llueve.samples.scenes import Network

logger = logging.getLogger(__name__)

FEWEST_SITES = 3
"""Sites from which `model.sites = "auto"` lets them see each other."""


class TrainedSite(Section):
    """A site with a learned vector."""

    name: str
    latitude: float = Field(ge=-90, le=90)
    longitude: float = Field(ge=-180, le=180)


def sites_seen_together(panel: xr.Dataset, model: ModelConfig) -> list[TrainedSite] | None:
    """Return the sites of a panel with their positions if the model sees them together, as `model.sites` asks.

    Returns:
        None if the model sees each site alone.

    Raises:
        DataError: the model needs positions, and the panel has none.
    """
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


def network_of(
    panel: xr.Dataset, sites: Sequence[TrainedSite], present_ST: NDArray[np.bool_], sites_per_scene: int
) -> Network:
    """Return the network of the sites of a panel, for a model that was trained on `sites`.

    Args:
        panel, sites: the panel, and the sites with a learned vector, in the order of their vectors.
        present_ST: true where a site has a whole window.
        sites_per_scene: most sites that a scene holds.

    Raises:
        DataError: a site that training did not have has no position.
    """
    trained = {site.name: number for number, site in enumerate(sites)}
    vector_S = np.array([trained.get(str(site), -1) + 1 for site in panel["site"].values], np.int64)
    position_S2, new_S = site_positions(panel), vector_S == 0
    new = panel["site"].values[new_S].tolist()
    if position_S2 is None:
        if new:
            raise DataError(
                f"{listed(new)}: the model sees the sites of an issue time together and needs the position of each site that "
                "it was not trained on; give data.positions"
            )
        known = np.array([(site.latitude, site.longitude) for site in sites])
        position_S2 = known[vector_S - 1]
    if new:
        logger.warning(
            "%d site(s) were not in the training and are forecast without a vector of their own: %s",
            len(new),
            listed(new),
        )
    return Network(position_S2.astype(np.float32), vector_S, present_ST, sites_per_scene)
