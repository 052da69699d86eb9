"""The order of the training windows in an epoch.

Each window has a number of its own, drawn from seed, epoch, site and issue time; the order is that of these numbers. So it
needs no state but the epoch and how far it has come, and leaving a window out leaves the order of all others as it was.
"""

import numpy as np
from numpy.typing import NDArray

from llueve.windows import Part

INCREMENT = np.uint64(0x9E3779B97F4A7C15)
MIXERS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


def epoch_order(part: Part, seed: int, epoch: int) -> NDArray[np.int64]:
    """Positions in `part` in the random order of one epoch."""
    key = _mixed(np.array([seed], np.uint64))
    for numbers in (np.array([epoch]), part.site, part.end):
        key = _mixed(key ^ numbers.astype(np.uint64))
    return np.argsort(key, kind="stable")


def _mixed(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195): every bit of the result depends on all of the key."""
    key = key + INCREMENT
    for shift, factor in MIXERS:
        key = (key ^ (key >> shift)) * factor
    return key ^ (key >> np.uint64(31))
