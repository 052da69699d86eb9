"""How well one threshold on a variable tells the outcome so many steps away, on a sample of the cells.

Shapes: S sites, T times, N sampled cells.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llueve.panel import BoolArray, FloatArray

SAMPLE = 100_000
"""Cells that are enough to know a share by."""
WRONG = 0.01
"""A variable that is wrong in no more of the cases than this holds the outcome nearly."""
WRONG_OF_RARER = 0.05
"""Nor in more than this times the rarer class: that it hardly ever rains is no knowledge."""
BELOW_PERSISTENCE = 0.25
"""Nor in more than this times what the newest known outcome is wrong in, which holds a part of a long outcome, too."""
MISMATCH = 0.03
"""A label that rain tells with no more faults than this was made of it, and the rest is worth a look."""
MISMATCH_OF_RARER = 0.15
"""Nor more than this times the rarer class."""


@dataclass(frozen=True)
class Told:
    """What a variable tells of the outcome at one shift."""

    cases: int
    """Cells where both are known."""
    rarer: int
    """Cases of the rarer class, event or not."""
    wrong: int
    """Cases that the best threshold, or the value as the class itself, is wrong in."""
    auc: float
    """Of ranking events by it, or by its opposite; 0.5 to 1."""

    @property
    def error(self) -> float:
        """Share of wrong cases; 1 where there is none."""
        return self.wrong / self.cases if self.cases else 1.0

    def enough(self, least: int) -> bool:
        """Whether there are so many cases of either class."""
        return self.rarer >= least

    def holds(self, usual: "Told") -> bool:
        """Whether it nearly is the outcome, and much more so than `usual`, which was known by then."""
        least = min(WRONG, BELOW_PERSISTENCE * usual.error)
        return self.error <= least and self.wrong <= WRONG_OF_RARER * self.rarer

    def made_of(self) -> bool:
        """Whether the outcome was evidently made of it."""
        return self.error <= MISMATCH and self.wrong <= MISMATCH_OF_RARER * self.rarer


class Screen:
    """A variable's sampled cells, in order once and held against the outcome at many shifts."""

    def __init__(self, values_ST: FloatArray, labels_ST: FloatArray, event_ST: FloatArray) -> None:
        self.labels_ST, self.event_ST = labels_ST, event_ST
        known = np.flatnonzero(~np.isnan(values_ST))
        self.all_cells = len(known)
        if len(known) > SAMPLE:
            known = np.sort(np.random.default_rng(0).choice(known, SAMPLE, replace=False))
        value = values_ST.reshape(-1)[known]
        order = np.argsort(value, kind="stable")
        self.value_N = value[order]
        self.site_N, self.time_N = np.divmod(known[order], max(1, values_ST.shape[1]))

    def __len__(self) -> int:
        return len(self.value_N)

    def at(self, k: int) -> Told:
        """What value(t) tells of the outcome at t + k."""
        time_N = self.time_N + k
        inside = (time_N >= 0) & (time_N < self.event_ST.shape[1])
        cell = self.site_N[inside], time_N[inside]
        event = self.event_ST[cell]
        known = ~np.isnan(event)
        wet, value = event[known] == 1, self.value_N[inside][known]
        rarer = int(min(wet.sum(), (~wet).sum()))
        if not rarer:
            return Told(len(wet), 0, 0, 0.5)
        end = np.flatnonzero(np.append(value[1:] > value[:-1], True))  # of each run of equal values
        wet_below = np.concatenate([[0], np.cumsum(wet)[end]]).astype(np.float64)
        dry_below = np.concatenate([[0], end + 1]) - wet_below
        ranked = (np.diff(wet_below) * (dry_below[1:] + dry_below[:-1]) / 2).sum() / (wet_below[-1] * dry_below[-1])
        wrong = wet_below + dry_below[-1] - dry_below
        equal = int((value != self.labels_ST[cell][known]).sum())
        fewest = int(min(wrong.min(), (len(wet) - wrong).min(), equal))
        return Told(len(wet), rarer, fewest, max(float(ranked), 1 - float(ranked)))


def best_threshold(value: FloatArray, wet: BoolArray) -> tuple[int, float, bool]:
    """Fewest wrong cases of calling values from a threshold on wet, that threshold, and whether it parts any."""
    order: NDArray[np.intp] = np.argsort(value, kind="stable")
    value, wet = value[order], wet[order]
    # Calling the first n values dry and the rest wet is wrong in the wet ones before, and the dry ones after.
    wrong = np.concatenate([[0], np.cumsum(wet)]) + np.concatenate([np.cumsum(~wet[::-1])[::-1], [0]])
    possible = np.concatenate([[True], value[1:] > value[:-1], [True]])
    best = int(np.argmin(np.where(possible, wrong, len(value) + 1)))
    if best in (0, len(value)):
        return int(wrong[best]), np.nan, False
    return int(wrong[best]), float(value[best]), True
