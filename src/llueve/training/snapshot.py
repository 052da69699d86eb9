"""A copy of everything that decides the next training step, in memory.

It has tensors (weights, buffers, moments, average, random states) and facts (the place, the record of the guard).
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llueve.stability.guard import LARGEST_WEIGHT, beyond

MODEL, OPTIMISER, RANDOM, AVERAGE = "model.", "optimiser.", "random.", "average"
"""Prefixes of the tensors' names; the average is one tensor."""


@dataclass
class Place:
    """The place of a training between two steps."""

    phase: int = 0
    """Index of the phase in the recipe."""
    epoch: int = 1
    """Number of the epoch, counted through all phases."""
    first_epoch: int = 1
    """First epoch of this phase."""
    position: int = 0
    """Windows of the epoch's order that are done."""
    steps: int = 0
    """Steps applied in this phase."""
    batches: int = 0
    """Batches of this epoch, refused ones included."""
    refused: int = 0
    """Refused steps of this epoch."""
    applied: int = 0
    """Samples with an outcome in the applied steps of this epoch."""
    loss_sum: float = 0.0
    """Sum of the loss over these samples."""
    skipped: int = 0
    """Samples skipped in all epochs before this one."""
    best_epoch: int = 0
    """Epoch of the best validation loss; 0 before there is one."""
    best_loss: float = 0.0
    best_train_loss: float | None = None
    """Mean training loss of the best epoch; None if no step of it was applied."""

    @property
    def mean_loss(self) -> float | None:
        """Mean loss of this epoch's applied steps; None if there are none."""
        return self.loss_sum / self.applied if self.applied else None


@dataclass(frozen=True)
class Snapshot:
    """One state of a training, independent of it."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    """Facts that JSON can hold."""

    @property
    def place(self) -> Place:
        """The place of the training."""
        return Place(**self.facts["place"])

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names have a prefix, by the rest of their names."""
        return {name.removeprefix(prefix): each for name, each in self.tensors.items() if name.startswith(prefix)}

    @property
    def is_sound(self) -> bool:
        """True if every number is finite, and no weight or average is absurd."""
        return self.first_fault() is None

    def first_fault(self) -> str | None:
        """The first number that no sound training leads to, in words; None if there is none."""
        buffers = {f"{MODEL}{name}" for name in self.facts.get("buffers", ())}
        bounded = {}
        for name, each in self.tensors.items():
            is_weight = name == AVERAGE or (name.startswith(MODEL) and name not in buffers)
            bounded[name] = (each, LARGEST_WEIGHT if is_weight else sys.float_info.max)
        if not (wrong := beyond(bounded)):
            return None
        tensor, most = bounded[wrong[0]]
        index = (~tensor.isfinite() | (tensor.abs() > most)).nonzero()[0].tolist()
        return f"{wrong[0]}{index} is {float(tensor[tuple(index)]):g}"
