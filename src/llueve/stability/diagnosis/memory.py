"""Find the numbers in memory that changed between two steps, by running the steps that led to them again."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from llueve.stability.diagnosis import changes
from llueve.stability.diagnosis.case import Evidence, Stored
from llueve.stability.diagnosis.causes import Cause
from llueve.stability.diagnosis.experiments import Experiments
from llueve.stability.diagnosis.explanation import Change, Explanation
from llueve.stability.diagnosis.numbers import first_numbers
from llueve.stability.refused_step import RefusedStep

BY_GROUP = {
    "moments": Cause.POISONED_MOMENTS,
    "average": Cause.POISONED_AVERAGE,
    "buffers": Cause.CORRUPT_BUFFER,
}
"""Cause by the part of the stored numbers that changed; all others are weights."""


def explain_memory(step: RefusedStep, evidence: Evidence, experiments: Experiments) -> Explanation:
    """Name the numbers that changed between two steps, although the step itself may be sound."""
    experiments.run(Change.NONE, step)
    rebuilt = evidence.rebuild() if evidence.rebuild is not None else None
    found = None if rebuilt is None else changed_numbers(step.model, step.moments, step.average or {}, rebuilt)
    if rebuilt is None or found is None:
        return Explanation(cause_of_change(step.reading.changed), experiments=tuple(experiments.done))
    cause, flags = found
    count = sum(int(flag.sum()) for flag in flags.values())
    experiments.run(Change.REBUILT, changes.rebuilt(step, rebuilt), f"{count}: {', '.join(flags)}")
    return Explanation(cause, experiments=tuple(experiments.done), numbers=first_numbers(flags.items()))


def cause_of_change(changed: Sequence[str]) -> Cause:
    """The cause, if only the changed parts of the stored numbers are known (`Reading.changed`)."""
    return next((BY_GROUP[group] for group in changed if group in BY_GROUP), Cause.DAMAGED_WEIGHTS)


def changed_numbers(
    model: nn.Module, moments: Mapping[str, Tensor], average: Mapping[str, Tensor], rebuilt: Stored
) -> tuple[Cause, dict[str, Tensor]] | None:
    """The cause, and flags of the numbers with other bits than the steps run again lead to; None if no number differs."""
    now = Stored.of(model, moments, average)
    buffers = {name for name, _ in model.named_buffers()}
    stored = _flags(now.model, rebuilt.model)
    found = {
        Cause.DAMAGED_WEIGHTS: {name: flag for name, flag in stored.items() if name not in buffers},
        Cause.CORRUPT_BUFFER: {name: flag for name, flag in stored.items() if name in buffers},
        Cause.POISONED_MOMENTS: _flags(now.moments, rebuilt.moments),
        Cause.POISONED_AVERAGE: _flags(now.average, rebuilt.average),
    }
    return next(((cause, flags) for cause, flags in found.items() if flags), None)


def _flags(now: Mapping[str, Tensor], then: Mapping[str, Tensor]) -> dict[str, Tensor]:
    pairs = {name: (each, then[name]) for name, each in now.items() if name in then and each.dtype == torch.float32}
    flags = {name: one.view(torch.int32) != other.view(torch.int32) for name, (one, other) in pairs.items()}
    return {name: flag for name, flag in flags.items() if bool(flag.any())}
