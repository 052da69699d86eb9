"""Scenes: the windows of all sites at one issue time, which a model can see together.

Shapes: S sites, T times, W windows, n sites of one scene.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llueve.panel import UNKNOWN, BoolArray, FloatArray
from llueve.samples.split import Part
from llueve.sphere import unit_vectors


@dataclass(frozen=True)
class Scene:
    """Windows that see each other."""

    rows: NDArray[np.intp]
    """Their positions in a part."""
    answered: BoolArray
    """True for those that are answered in this scene; the others are only seen."""


@dataclass(frozen=True, eq=False)
class Network:
    """The sites that a model sees together."""

    position_S2: FloatArray
    """Latitude and longitude in degrees."""
    vector_S: NDArray[np.int64]
    """Index of the learned vector of each site, from 1; 0 for a site that training did not have."""
    present_ST: BoolArray
    """True for each window that can be seen: it has a row at its issue time, and a whole context."""
    most_sites: int
    """Most sites of one scene."""

    def complete(self, part: Part) -> Part:
        """The windows of all sites at the issue times of a part, in its order; the outcome of added ones is `UNKNOWN`."""
        ends = np.unique(part.end)
        present_SE = self.present_ST[:, ends].copy()
        present_SE[part.site, np.searchsorted(ends, part.end)] = True
        site, column = np.nonzero(present_SE)
        y = np.full(present_SE.shape, UNKNOWN, np.int64)
        y[part.site, np.searchsorted(ends, part.end)] = part.y
        return Part(part.name, site, ends[column], y[site, column])

    def scenes(self, part: Part) -> Iterator[Scene]:
        """The scenes of a part, in the order of time.

        A scene with too many sites becomes several ones: each answers a compact group of sites, and sees the sites nearest to
        the middle of that group.
        """
        order = np.lexsort((part.site, part.end))
        for rows in np.split(order, np.flatnonzero(np.diff(part.end[order])) + 1):
            if len(rows) <= self.most_sites:
                yield Scene(rows, np.ones(len(rows), np.bool_))
                continue
            place_n3 = unit_vectors(*self.position_S2[part.site[rows]].T)
            for group in _groups(np.arange(len(rows)), place_n3, max(1, self.most_sites // 2)):
                near = np.argsort(-place_n3 @ place_n3[group].mean(axis=0), kind="stable")
                others = near[~np.isin(near, group)][: self.most_sites - len(group)]
                seen = np.sort(np.concatenate([group, others]))
                yield Scene(rows[seen], np.isin(seen, group))


def _groups(chosen: NDArray[np.intp], place_n3: NDArray[np.float64], most: int) -> Iterator[NDArray[np.intp]]:
    """Compact groups of at most `most` sites: halves along the longest extent, again and again."""
    if len(chosen) <= most:
        yield chosen
        return
    axis = int(np.ptp(place_n3[chosen], axis=0).argmax())
    ordered = chosen[np.argsort(place_n3[chosen, axis], kind="stable")]
    for half in (ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]):
        yield from _groups(half, place_n3, most)
