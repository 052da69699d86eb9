"""The order of the training windows in an epoch.

Each window has a random number, computed from seed, epoch, site and issue time; the windows are sorted by these numbers. The
order needs no state except the epoch and the position in it. Without one window, the order of all others is the same.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llueve.panel import UNKNOWN
from llueve.samples.split import Part

INCREMENT = np.uint64(0x9E3779B97F4A7C15)
MIXERS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


@dataclass(frozen=True)
class EpochOrder:
    """The windows of an epoch in their order, in units that stay together: single windows, or scenes."""

    windows: NDArray[np.int64]
    """Their positions in the part."""
    bounds: NDArray[np.int64]
    """Position in `windows` at which each unit starts, and the end of the last one."""

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.bounds) - 1


def units_of(part: Part, share: float, together: bool) -> int:
    """Return the number of units in an epoch of a share of the part: windows, or issue times if sites are together."""
    return max(1, round(share * (len(np.unique(part.end)) if together else len(part))))


def epoch_order(part: Part, seed: int, epoch: int, most_sites: int | None = None, share: float = 1.0) -> EpochOrder:
    """Return the order of an epoch, counted from 0; `seed` is `train.seed`.

    Args:
        share: share of the units in the epoch, above 0 and at most 1.
        most_sites: None if each window is a unit; otherwise each issue time is one, with at most this number of windows, drawn
            at random. Up to half of them are then drawn from those with an outcome first.
    """
    window_key = _keys(seed, epoch, part.site, part.end)
    units = units_of(part, share, most_sites is not None)
    if most_sites is None:
        return EpochOrder(np.argsort(window_key, kind="stable")[:units], np.arange(units + 1))
    windows = np.lexsort((window_key, part.end, _keys(seed, epoch, part.end)))
    starts = np.flatnonzero(np.diff(part.end[windows], prepend=-1))
    bounds = np.append(starts, len(windows))[: units + 1]
    windows, starts = windows[: bounds[-1]], starts[:units]
    if np.diff(bounds).max(initial=0) > most_sites:
        pieces = [_drawn(scene, part.y, most_sites) for scene in np.split(windows, starts[1:])]
        windows, bounds = np.concatenate(pieces), np.cumsum([0, *map(len, pieces)])
    return EpochOrder(windows, bounds)


def _drawn(scene: NDArray[np.int64], y: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most `most` windows of a scene that is in a random order; some have an outcome if any has."""
    known = scene[y[scene] != UNKNOWN][: max(1, most // 2)]
    return np.concatenate([known, scene[~np.isin(scene, known)]])[:most]


def _keys(seed: int, epoch: int, *identity: NDArray[np.integer[Any]]) -> NDArray[np.uint64]:
    """One random number for each entry of these arrays, the same whenever seed, epoch and entry are."""
    key = _mixed(np.array([seed], np.uint64))
    for numbers in (np.array([epoch]), *identity):
        key = _mixed(key ^ numbers.astype(np.uint64))
    return key


def _mixed(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195): each bit of the result depends on the whole key."""
    key = key + INCREMENT
    for shift, factor in MIXERS:
        key = (key ^ (key >> shift)) * factor
    return key ^ (key >> np.uint64(31))
