"""Sites that hold the same series under two names, also where a copy has lost, changed or gained some cells.

Shapes: S sites, T times, B blocks.
"""

from collections import defaultdict

import numpy as np
import xarray as xr

from llueve.panel import Finding, FloatArray, feature_names

TWIN_CELLS = 30
"""Fewer equal cells than this can be chance."""
TWIN_VALUES = 20
"""So can fewer different values."""
UNEQUAL = 0.001
"""Share of the common cells in which a copy may differ; one cell it always may."""
BLOCK = 16
"""Sites without one equal block of this many steps are no copies."""
BLOCK_VALUES = 4
"""Different values that make a block worth comparing: two dry fortnights are no evidence."""


def check_twins(panel: xr.Dataset) -> list[Finding]:
    """One finding for each set of sites that share variables."""
    names = feature_names(panel)
    sites = [str(site) for site in panel["site"].values]
    groups = {name: _groups(panel[name].values) for name in names}
    # A climate index is the same everywhere, and no copy; a table in which most is the same everywhere is one.
    everywhere = [name for name in names if groups[name] == [tuple(range(len(sites)))]]
    if len(sites) > 2 and len(everywhere) <= len(names) / 2:
        groups.update({name: [] for name in everywhere})
    shared: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name in names:
        for twins in groups[name]:
            shared[twins].append(name)
    findings = []
    for twins, same in shared.items():
        told = ", ".join(sites[site] for site in twins)
        known = [name for name in names if not np.isnan(panel[name].values[list(twins)]).all(axis=1).any()]
        if 2 * len(same) >= len(known):
            mend = "keep one of them, or a split by site would leak"
        else:
            which = "this variable" if len(same) == 1 else "these variables"
            mend = (
                f"the other variables differ: drop {which} at {', '.join(sites[site] for site in twins[1:])} if copied"
            )
        message = f"{told}: identical series of {', '.join(same)}; {mend}"
        site = sites[twins[1]]
        findings.append(Finding("twin_sites", "warning", message, variable=same[0], site=site, count=len(twins)))
    return findings


def _groups(values_ST: FloatArray) -> list[tuple[int, ...]]:
    """Sets of sites with the same values of one variable."""
    group = list(range(len(values_ST)))
    for one, other in _candidates(values_ST):
        if group[one] != group[other] and _same(values_ST[one], values_ST[other]):
            kept, gone = sorted((group[one], group[other]))
            group = [kept if each == gone else each for each in group]
    members: dict[int, list[int]] = defaultdict(list)
    for site, first in enumerate(group):
        members[first].append(site)
    return [tuple(each) for each in members.values() if len(each) > 1]


def _candidates(values_ST: FloatArray) -> list[tuple[int, int]]:
    """Pairs of sites that share a block of values, each site with the first that has it."""
    sites, steps = values_ST.shape
    if sites < 2 or steps < BLOCK:
        return []
    blocks_SBL = np.ascontiguousarray(values_ST[:, : steps // BLOCK * BLOCK]).reshape(sites, -1, BLOCK)
    ordered_SBL = np.sort(blocks_SBL, axis=-1)
    telling_SB = (np.diff(ordered_SBL, axis=-1) > 0).sum(axis=-1) >= BLOCK_VALUES - 1
    telling_SB &= ~np.isnan(ordered_SBL[..., -1])
    # Bits as numbers, mixed with odd weights: equal blocks give equal sums, and others hardly ever.
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
    """Whether two series are equal wherever both are known and they are not both at their usual value, as in a drought."""
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
