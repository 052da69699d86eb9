"""The order of the training windows in an epoch.

Each window has a random number, computed from seed, epoch, site and issue time; the windows are sorted by these numbers. The
order needs no state except the epoch and the position in it. Without one window, the order of all others is the same.
"""

import numpy as np
from numpy.typing import NDArray

from llueve.samples.split import Part

INCREMENT = np.uint64(0x9E3779B97F4A7C15)
MIXERS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


def epoch_order(part: Part, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the positions in `part` in the random order of an epoch, counted from 0; `seed` is `train.seed`."""
    key = _mixed(np.array([seed], np.uint64))
    for numbers in (np.array([epoch]), part.site, part.end):
        key = _mixed(key ^ numbers.astype(np.uint64))
    return np.argsort(key, kind="stable")


def _mixed(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195): each bit of the result depends on the whole key."""
    key = key + INCREMENT
    for shift, factor in MIXERS:
        key = (key ^ (key >> shift)) * factor
    return key ^ (key >> np.uint64(31))
