"""Everything that decides the next training step, so that it can be kept and come back bit for bit.

A `Snapshot` is copied tensors (weights, buffers, moments, average, random states) and plain facts (where training stands, what
the guard has seen, what was repaired).
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from llueve.model.classifier import TimerXLForClassification
from llueve.stability.guard import LARGEST_WEIGHT, Guard, beyond
from llueve.stability.step import random_states, set_random_states
from llueve.training.average import Average
from llueve.training.optimiser import Optimiser

MODEL, OPTIMISER, RANDOM, AVERAGE = "model.", "optimiser.", "random.", "average"


@dataclass
class Place:
    """Where training stands, between two steps."""

    phase: int = 0
    """Index in the plan."""
    epoch: int = 1
    """Counted through all phases."""
    first_epoch: int = 1
    """Of this phase."""
    position: int = 0
    """Windows of the epoch's order that are done with."""
    steps: int = 0
    """Applied in this phase."""
    batches: int = 0
    """Of this epoch, refused ones too."""
    refused: int = 0
    """Of this epoch."""
    applied: int = 0
    """Samples of this epoch's applied steps."""
    loss_sum: float = 0.0
    """Over those samples."""
    skipped: int = 0
    """Samples, in all epochs before this one."""
    best_epoch: int = 0
    """0 while there is none."""
    best_loss: float = 0.0

    def count(self, samples: int, loss: float) -> None:
        """An applied step has been done."""
        self.batches += 1
        self.applied += samples
        self.loss_sum += loss * samples

    def next_epoch(self) -> None:
        """Begin the next epoch of this phase."""
        self.epoch += 1
        self.position = self.batches = self.refused = self.applied = 0
        self.loss_sum = 0.0

    def next_phase(self) -> None:
        """Begin the next phase with this epoch."""
        self.phase += 1
        self.first_epoch = self.epoch
        self.steps = 0


@dataclass(frozen=True)
class Snapshot:
    """One state of a training, apart from it."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    """As JSON can hold them."""

    @property
    def place(self) -> Place:
        """Where training stood."""
        return Place(**self.facts["place"])

    @property
    def weights(self) -> dict[str, Tensor]:
        """Of the model, with its buffers."""
        return _starting(self.tensors, MODEL)

    @property
    def moments(self) -> dict[str, Tensor]:
        """Of the optimiser."""
        return _starting(self.tensors, OPTIMISER)

    @property
    def is_sound(self) -> bool:
        """Whether every number in it is finite, and no weight or average of weights absurd."""
        return self.first_fault() is None

    def first_fault(self) -> str | None:
        """The first number that no sound training leads to, in words; None if there is none."""
        apart = {f"{MODEL}{name}" for name in self.facts.get("buffers", ())}
        bounded = {}
        for name, each in self.tensors.items():
            is_weight = name == AVERAGE or (name.startswith(MODEL) and name not in apart)
            bounded[name] = (each, LARGEST_WEIGHT if is_weight else sys.float_info.max)
        if not (wrong := beyond(bounded)):
            return None
        tensor, most = bounded[wrong[0]]
        index = (~tensor.isfinite() | (tensor.abs() > most)).nonzero()[0].tolist()
        return f"{wrong[0]}{index} is {float(tensor[tuple(index)]):g}"


def capture(
    model: TimerXLForClassification, optimiser: Optimiser, average: Average | None, guard: Guard, place: Place
) -> Snapshot:
    """A copy of the present state."""
    tensors = {f"{MODEL}{name}": each for name, each in model.state_dict().items()}
    tensors |= {f"{OPTIMISER}{name}": each for name, each in optimiser.tensors().items()}
    tensors |= {f"{RANDOM}{name}": each for name, each in random_states(optimiser.first_moment.device).items()}
    if average is not None:
        tensors[AVERAGE] = average.block
    copies = {name: each.detach().clone() for name, each in tensors.items()}
    buffers = [name for name, _ in model.named_buffers()]
    return Snapshot(copies, {"place": asdict(place), "guard": guard.as_dict(), "buffers": buffers})


def restore(
    snapshot: Snapshot, model: TimerXLForClassification, optimiser: Optimiser, average: Average | None, guard: Guard
) -> Place:
    """Make the present state that of the snapshot, and tell where it stands."""
    model.load_state_dict(snapshot.weights)
    optimiser.load(snapshot.moments)
    if average is not None:
        average.block.copy_(snapshot.tensors[AVERAGE])
    guard.load(snapshot.facts["guard"])
    set_random_states(_starting(snapshot.tensors, RANDOM), optimiser.first_moment.device)
    return snapshot.place


def checksums(model: TimerXLForClassification, optimiser: Optimiser, average: Average | None) -> list[float]:
    """Numbers that change with any single bit of weights and buffers, of the optimiser's memory, and of the average."""
    groups = (model.state_dict().values(), optimiser.tensors().values(), [] if average is None else [average.block])
    return [float(sum(map(_checksum, group)) % 2**52) for group in groups]


def _checksum(tensor: Tensor) -> int:
    """The sum of a tensor's bits, taken as integers."""
    flat = tensor.detach().contiguous().reshape(-1)
    return int(flat.view(torch.int32 if flat.element_size() % 4 == 0 else torch.uint8).sum(dtype=torch.int64))


def _starting(tensors: Mapping[str, Tensor], beginning: str) -> dict[str, Tensor]:
    return {name.removeprefix(beginning): each for name, each in tensors.items() if name.startswith(beginning)}
