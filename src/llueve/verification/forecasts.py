"""Forecasts of one period by a model and by its references, for the same rows. Shapes: n rows, K classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llueve.samples.periods import few_events

CLIMATOLOGY = "climatology"
"""Name of the reference of the Brier skill score."""


@dataclass(frozen=True, eq=False)
class Forecasts:
    """Everything that scores are computed from; all arrays have n rows, all probabilities are in [0, 1]."""

    name: str
    """The period, such as `test`, or the file."""
    sites: Sequence[str]
    site_n: NDArray[np.intp]
    """Index in `sites`."""
    issued_n: NDArray[np.datetime64]
    """Issue times, UTC."""
    y_n: NDArray[np.int64]
    """1 if the event happened, otherwise 0."""
    model_p: NDArray[np.float64]
    reference_p: Mapping[str, NDArray[np.float64]]
    """By name; `climatology` is the reference of skill, and may be absent."""
    horizon_hours: float | None = None
    """Hours that the outcome covers; None if unknown."""

    def __len__(self) -> int:
        return len(self.y_n)

    @cached_property
    def too_few(self) -> str | None:
        """The reason why no skill is given, if events or non-events are too few; otherwise None."""
        return few_events(self.y_n, self.issued_n)

    @property
    def base_rate(self) -> float:
        """Share of events."""
        return float(self.y_n.mean())

    @property
    def skill_reference(self) -> NDArray[np.float64] | None:
        """Climatology, if there is one and enough events: skill is a ratio that a handful of events decide by chance."""
        return None if self.too_few is not None else self.reference_p.get(CLIMATOLOGY)
