"""Sites with the same series under two names, even if some cells of a copy differ. Shapes: S sites, T times, B blocks."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import xarray as xr

from llueve.errors import listed
from llueve.panel import Finding, FloatArray, feature_names

TWIN_CELLS = 30
"""Fewest equal cells of a copy: fewer can be chance."""
TWIN_VALUES = 20
"""Number of different values that a copy must exceed, for the same reason."""
UNEQUAL = 0.001
"""Largest share of the common cells in which a copy may differ; one cell is always allowed."""
BLOCK = 16
"""Steps of a block; two sites without an equal block are not copies."""
BLOCK_VALUES = 4
"""Fewest different values of a block to compare: two dry fortnights prove nothing."""


def check_twins(panel: xr.Dataset) -> Iterator[Finding]:
    """One finding for each set of sites that share variables."""
    names = feature_names(panel)
    sites = [str(site) for site in panel.variables["site"].values]
    groups = {name: _groups(panel.variables[name].values) for name in names}
    # A climate index is the same everywhere without being a copy, unless most of the table is the same everywhere.
    everywhere = [name for name in names if groups[name] == [tuple(range(len(sites)))]]
    if len(sites) > 2 and len(everywhere) <= len(names) / 2:
        groups.update({name: [] for name in everywhere})
    shared: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in names:
        for twins in groups[name]:
            shared[twins].append(name)
    for twins, same in shared.items():
        known = [name for name in names if not np.isnan(panel.variables[name].values[list(twins)]).all(axis=1).any()]
        if 2 * len(same) >= len(known):
            advice = "keep one of them, or a split by site would leak"
        else:
            copied = "this variable" if len(same) == 1 else "these variables"
            places = listed([sites[site] for site in twins[1:]])
            advice = f"the other variables differ: drop {copied} at {places} if copied"
        message = f"{listed([sites[site] for site in twins])}: identical series of {listed(same)}; {advice}"
        yield Finding("twin_sites", "warning", message, same[0], sites[twins[1]], count=len(twins))


def _groups(values_ST: FloatArray) -> list[tuple[int, ...]]:
    """Sets of sites with the same values of one variable."""
    first = list(range(len(values_ST)))  # of each site: another site of its set, or itself

    def first_of(site: int) -> int:
        while first[site] != site:
            first[site] = first[first[site]]
            site = first[site]
        return site

    for pair in _candidates(values_ST):
        kept, gone = sorted(map(first_of, pair))
        if kept != gone and _same(values_ST[pair[0]], values_ST[pair[1]]):
            first[gone] = kept
    members: dict[int, list[int]] = defaultdict(list)
    for site in range(len(first)):
        members[first_of(site)].append(site)
    return [tuple(each) for each in members.values() if len(each) > 1]


def _candidates(values_ST: FloatArray) -> list[tuple[int, int]]:
    """Pairs of sites that share a block of values: each site with the first site that has the block."""
    sites, steps = values_ST.shape
    if sites < 2 or steps < BLOCK:
        return []
    blocks_SBL = np.ascontiguousarray(values_ST[:, : steps // BLOCK * BLOCK]).reshape(sites, -1, BLOCK)
    ordered_SBL = np.sort(blocks_SBL, axis=-1)
    telling_SB = (np.diff(ordered_SBL, axis=-1) > 0).sum(axis=-1) >= BLOCK_VALUES - 1
    telling_SB &= ~np.isnan(ordered_SBL[..., -1])
    # Bits as numbers, multiplied by odd weights: equal blocks give equal sums, and other blocks almost never do.
    weights = np.random.default_rng(0).integers(1, 2**62, size=BLOCK, dtype=np.uint64) | np.uint64(1)
    key_SB = ((blocks_SBL + np.float32(0)).view(np.uint32) * weights).sum(axis=-1, dtype=np.uint64)
    pairs: set[tuple[int, int]] = set()
    for block in range(key_SB.shape[1]):
        telling = np.flatnonzero(telling_SB[:, block])
        _, first, group = np.unique(key_SB[telling, block], return_index=True, return_inverse=True)
        if len(first) < len(telling):
            source = telling[first[group]]
            pairs.update((int(a), int(b)) for a, b in zip(source, telling, strict=True) if a != b)
    return sorted(pairs)


def _same(one_T: FloatArray, other_T: FloatArray) -> bool:
    """True if two series are equal wherever both are known, apart from times when both have their usual value."""
    common = ~np.isnan(one_T) & ~np.isnan(other_T)
    one, other = one_T[common], other_T[common]
    values, count = np.unique(one, return_counts=True)
    if not len(values):
        return False
    usual = values[np.argmax(count)]
    telling = (one != usual) | (other != usual)
    unequal = int((one != other).sum())
    cells = int(telling.sum())
    return cells >= TWIN_CELLS and len(values) > TWIN_VALUES and unequal <= max(1, UNEQUAL * cells)
