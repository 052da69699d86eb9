"""The usual size of a positive number over the accepted steps, and spikes above it."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import numpy as np

WATCHED_STEPS = 256
"""Accepted steps that define the usual size."""
ENOUGH = 32
"""Accepted steps needed before anything counts as usual."""
SPREADS = 20.0
"""A spike is more than this many robust standard deviations of the logarithm above the median."""
LEAST_RATIO = 1000.0
"""A spike is at least this many times the median."""


@dataclass
class Usual:
    """Median and spread of the logarithm of a positive number over accepted steps."""

    values: deque[float] = field(default_factory=lambda: deque(maxlen=WATCHED_STEPS))
    """The logarithms."""

    @classmethod
    def of(cls, logarithms: Iterable[float]) -> Self:
        """Restore recorded logarithms."""
        return cls(deque(logarithms, WATCHED_STEPS))

    def accept(self, value: float) -> None:
        """Add the number of an accepted step; zero is left out."""
        if value > 0:
            self.values.append(math.log(value))

    @property
    def median(self) -> float | None:
        """Median of the number; None before enough steps are accepted."""
        return math.exp(float(np.median(self.values))) if len(self.values) >= ENOUGH else None

    def is_spike(self, value: float) -> bool:
        """True if a finite number is far above its usual size."""
        if len(self.values) < ENOUGH or value <= 0:
            return False
        if math.log(value) - min(self.values) <= math.log(LEAST_RATIO):
            return False  # it is not even far above the smallest one, so the median is not needed
        median = float(np.median(self.values))
        spread = 1.4826 * float(np.median(np.abs(np.array(self.values) - median)))
        return math.log(value) - median > max(SPREADS * spread, math.log(LEAST_RATIO))
