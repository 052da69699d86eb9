"""Which single numbers of the memory are to blame: weights, buffers, moments, averages."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from llueve.stability.causes.changes import Damage
from llueve.stability.causes.step import Step
from llueve.stability.guard import LARGEST_WEIGHT, ROUNDING

MOST = 100
"""Numbers that are named."""

Numbers = tuple[tuple[str, tuple[int, ...]], ...]


def numbers_to_blame(cause: str, step: Step, damage: Damage | None) -> Numbers:
    """Name and index of each number of the memory that the cause rests on."""
    if cause == "corrupt_weights":
        return _where(step.model.named_parameters(), lambda each: ~each.isfinite())
    if cause == "corrupt_buffer":
        return _where(step.model.named_buffers(), lambda each: ~each.isfinite())
    if cause == "damaged_weights" and damage is not None:
        return _first((name, flag) for name, flag in damage.flags.items())
    if cause == "poisoned_moments":
        return _first(_unsound_moments(step.moments, step.config.clip_norm))
    if cause == "poisoned_average":
        return _where((step.average or {}).items(), lambda each: ~(each.abs() <= LARGEST_WEIGHT))
    return ()


def are_sound_moments(moments: Mapping[str, Tensor], clip_norm: float) -> bool:
    """Whether a training could have led to such moments."""
    return not any(bool(flag.any()) for _, flag in _unsound_moments(moments, clip_norm))


def _unsound_moments(moments: Mapping[str, Tensor], clip_norm: float) -> Iterable[tuple[str, Tensor]]:
    """Where a moment is not finite, a mean of squares negative, or either beyond what clipped gradients give."""
    for name, moment in moments.items():
        if name.endswith("exp_avg_sq"):
            yield name, ~((moment >= 0) & (moment.double().sqrt() <= clip_norm * ROUNDING) & moment.isfinite())
        else:
            steps = name.endswith(".step")
            yield name, ~(moment.isfinite() & (steps | (moment.abs() <= clip_norm * ROUNDING)))


def _where(tensors: Iterable[tuple[str, Tensor]], wrong: Callable[[Tensor], Tensor]) -> Numbers:
    return _first((name, wrong(each.detach())) for name, each in tensors)


def _first(flags: Iterable[tuple[str, Tensor]]) -> Numbers:
    found: list[tuple[str, tuple[int, ...]]] = []
    for name, flag in flags:
        found += [(name, tuple(index)) for index in flag.nonzero()[: MOST - len(found)].tolist()]
    return tuple(found)
