"""The single weights, buffers, moments or averages that are responsible for a refused step."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from llueve.stability.diagnosis.causes import Cause
from llueve.stability.guard import LARGEST_WEIGHT, ROUNDING
from llueve.stability.refused_step import RefusedStep

MOST_NAMED = 100
"""Most numbers that an explanation names."""

Numbers = tuple[tuple[str, tuple[int, ...]], ...]


def numbers_at_fault(cause: Cause, step: RefusedStep, damage: Mapping[str, Tensor]) -> Numbers:
    """Name and index of each stored number that the cause rests on."""
    if cause == Cause.CORRUPT_WEIGHTS:
        return _where(step.model.named_parameters(), lambda each: ~each.isfinite())
    if cause == Cause.CORRUPT_BUFFER:
        return _where(step.model.named_buffers(), lambda each: ~each.isfinite())
    if cause == Cause.DAMAGED_WEIGHTS:
        return first_numbers(damage.items())
    if cause == Cause.POISONED_MOMENTS:
        return first_numbers(_unsound_moments(step.moments, step.config.clip_norm))
    if cause == Cause.POISONED_AVERAGE:
        return _where((step.average or {}).items(), lambda each: ~(each.abs() <= LARGEST_WEIGHT))
    return ()


def are_sound_moments(moments: Mapping[str, Tensor], clip_norm: float) -> bool:
    """True if clipped gradients can have led to these moments."""
    return not any(bool(flag.any()) for _, flag in _unsound_moments(moments, clip_norm))


def _unsound_moments(moments: Mapping[str, Tensor], clip_norm: float) -> Iterable[tuple[str, Tensor]]:
    """Flags of moments that are not finite, negative means of squares, or too large for clipped gradients."""
    for name, moment in moments.items():
        if name.endswith("exp_avg_sq"):
            yield name, ~((moment >= 0) & (moment.double().sqrt() <= clip_norm * ROUNDING) & moment.isfinite())
        else:
            steps = name.endswith(".step")
            yield name, ~(moment.isfinite() & (steps | (moment.abs() <= clip_norm * ROUNDING)))


def _where(tensors: Iterable[tuple[str, Tensor]], wrong: Callable[[Tensor], Tensor]) -> Numbers:
    return first_numbers((name, wrong(each.detach())) for name, each in tensors)


def first_numbers(flags: Iterable[tuple[str, Tensor]]) -> Numbers:
    """Name and index of the first flagged numbers."""
    found: list[tuple[str, tuple[int, ...]]] = []
    for name, flag in flags:
        found += [(name, tuple(index)) for index in flag.nonzero()[: MOST_NAMED - len(found)].tolist()]
    return tuple(found)
