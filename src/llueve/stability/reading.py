"""The numbers of one training step that the guard judges, and the faults that it can find in them."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class FaultKind(StrEnum):
    """The part of a step that is wrong."""

    PROCESSES = "processes"
    LEARNING_RATE = "learning_rate"
    WEIGHTS = "weights"
    MOMENTS = "moments"
    AVERAGE = "average"
    MEMORY = "memory"
    LOSS = "loss"
    GRADIENT = "gradient"
    GRADIENT_OVERFLOW = "gradient_overflow"
    LOSS_START = "loss_start"
    LOSS_SPIKE = "loss_spike"
    GRADIENT_SPIKE = "gradient_spike"

    @property
    def is_spike(self) -> bool:
        """True if a finite number is far above its usual size."""
        return self in (FaultKind.LOSS_SPIKE, FaultKind.GRADIENT_SPIKE)

    @property
    def is_outside_the_step(self) -> bool:
        """True if loss and gradients may be sound: the fault lies in rates, or in stored numbers."""
        return self in (FaultKind.LEARNING_RATE, FaultKind.MOMENTS, FaultKind.AVERAGE, FaultKind.MEMORY)


class Fault(NamedTuple):
    """The first thing that is wrong with a step."""

    kind: FaultKind
    reason: str
    """One sentence for people."""


@dataclass(frozen=True)
class Reading:
    """The numbers of one step before it is applied."""

    step: int
    """Number of the batch in its epoch, from 1."""
    samples: int
    loss: float
    gradient_norm: float
    """Before clipping."""
    rates: tuple[float, ...]
    """Learning rate of each parameter group, encoder first."""
    moments: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Smallest and largest first moment, smallest and largest second moment."""
    unsound_weights: tuple[str, ...] = ()
    """Names of weights and buffers that `unsound_weights` finds."""
    average: tuple[float, float] = (0.0, 0.0)
    """Smallest and largest number of the moving average of the weights, if there is one."""
    changed: tuple[str, ...] = ()
    """Parts of the stored numbers whose bits changed since the last applied step, as `TrainingState.names_of` gives them."""
    clip_norm: float = math.inf
    """Largest norm of the gradient that is applied."""
    unlike: tuple[int, ...] = ()
    """Ranks of the processes whose state differs from that of process 0."""
    planned_rates: tuple[float, ...] = ()
    """Learning rate of each group in this step, by configuration and schedule; empty if it is unknown."""
    non_finite_inputs: int = 0
    """Samples of the batch with a non-finite input; counted only if another number is not finite."""


def as_word(number: float) -> float | str:
    """The number for JSON: NaN and infinities become words."""
    return number if math.isfinite(number) else str(float(number))
