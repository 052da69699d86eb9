"""What a step is computed from, and what is found out about it.

Shapes: B batch, L steps, C variables, F facts.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llueve.config import TrainConfig
from llueve.model.classifier import TimerXLForClassification
from llueve.stability.causes.advice import ADVICE
from llueve.stability.step import Batch
from llueve.stability.trace import Trace


@dataclass(frozen=True)
class Conduct:
    """How the course of steps that led to a step is run again."""

    rate_factor: float = 1.0
    """What all rates are multiplied by."""
    warmup_steps: int = 0
    """Steps of the course over which the rates rise linearly to what they were."""
    clip_norm: float | None = None
    """Largest gradient norm; None for the configured one."""
    further_steps: int = 0
    """Steps of the epoch behind the one in question that are gone on with, as far as there are so many."""


@dataclass(frozen=True)
class Step:
    """Everything that a step is computed from, as an incident holds it."""

    model: TimerXLForClassification
    batch: Batch
    config: TrainConfig
    precision: torch.dtype
    random_state: Mapping[str, Tensor]
    """`llueve.stability.step.random_states` from before the forward pass."""
    kind: str
    """What the guard called it."""
    moments: Mapping[str, Tensor]
    """Of the optimiser, by parameter."""
    rates: tuple[float, ...]
    fresh: Callable[[], TimerXLForClassification]
    """A model of the same sizes, newly initialised."""
    healthy: Mapping[str, Tensor] | None = None
    """Weights and buffers of the last healthy state."""
    healthy_moments: Mapping[str, Tensor] | None = None
    average: Mapping[str, Tensor] | None = None
    """A moving average of the weights."""
    course: Callable[[Conduct], tuple[float, float]] | None = None
    """Loss and gradient norm (before clipping) of this step, when all steps since the last healthy state were run again in
    that way; of further steps the largest. It leaves everything as it was."""
    course_steps: int = 50
    """Steps of the course, over which a warm-up is tried."""
    usual_norm: float | None = None
    """Median gradient norm of accepted steps."""
    usual_loss: float | None = None
    recorded_norm: float | None = None
    """Gradient norm for which the guard refused the step."""
    gathered: Batch | None = None
    """The same windows taken from the data once more."""


@dataclass(frozen=True)
class Experiment:
    """The step under one change."""

    change: str
    loss: float
    gradient_norm: float
    cures: bool

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        loss, norm = (each if math.isfinite(each) else str(each) for each in (self.loss, self.gradient_norm))
        return {"change": self.change, "loss": loss, "gradient_norm": norm, "cures": self.cures}


@dataclass(frozen=True)
class Explanation:
    """The cause of an incident, with its evidence."""

    cause: str
    """A key of `ADVICE`."""
    trace: Trace | None
    """Where the first non-finite number was born; None if the step repeats without one."""
    experiments: tuple[Experiment, ...]
    samples: tuple[int, ...]
    """Rows of the batch that are to blame, where single ones are."""
    cells: tuple[tuple[int, int, int], ...]
    """Sample, step and variable of each cell to blame."""
    facts: tuple[tuple[int, int], ...] = ()
    """Sample and fact of each fact to blame."""
    rate_factor: float | None = None
    """What the rates must be multiplied by for the course to be as usual; None if that was not found out."""
    numbers: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Name and index of each weight, moment or other number of the memory to blame, the first hundred."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "cause": self.cause,
            "advice": {"en": ADVICE[self.cause][0], "es": ADVICE[self.cause][1]},
            "trace": None if self.trace is None else self.trace.as_dict(),
            "experiments": [each.as_dict() for each in self.experiments],
            "samples": list(self.samples),
            "cells": [list(cell) for cell in self.cells],
            "facts": [list(fact) for fact in self.facts],
            "numbers": [[name, list(index)] for name, index in self.numbers],
        }
