"""The changes that an experiment makes to a step: each returns the changed step, or None where it does not apply.

Shapes: B batch, L steps, C variables, F facts.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llueve.model.classifier import TimerXLForClassification
from llueve.stability.causes.cells import constant_windows, empty_patches, with_ramp
from llueve.stability.causes.step import Step

ABSURD_CHANGE = 30.0
"""A number is absurd that changed by so many times what numbers usually are, or usually changed by."""
FEW = 1e-3
"""Share of a model's numbers that damage in memory may touch."""
FEW_TENSORS = 3
GIVEN = ("x_BLC", "observed_BLC", "facts_BF", "y_B")


def masked(step: Step, flag_BLC: Tensor) -> Step | None:
    """With cells taken as not observed."""
    if not bool(flag_BLC.any()):
        return None
    batch = step.batch
    x_BLC = torch.where(flag_BLC, 0.0, batch.x_BLC)
    return replace(step, batch=replace(batch, x_BLC=x_BLC, observed_BLC=batch.observed_BLC & ~flag_BLC))


def without_facts(step: Step, flag_BF: Tensor) -> Step | None:
    """With facts replaced by zero, which is their mean."""
    if not bool(flag_BF.any()):
        return None
    return replace(step, batch=replace(step.batch, facts_BF=torch.where(flag_BF, 0.0, step.batch.facts_BF)))


def varied(step: Step) -> Step | None:
    """With a tiny ramp in windows that are constant."""
    windows_BC = constant_windows(step.batch)
    if not bool(windows_BC.any()):
        return None
    x_BLC, observed_BLC = with_ramp(step.batch, windows_BC)
    return replace(step, batch=replace(step.batch, x_BLC=x_BLC, observed_BLC=observed_BLC))


def filled_patches(step: Step) -> Step | None:
    """With patches in which nothing was observed taken as observed."""
    empty_BLC = empty_patches(step.batch, step.model.encoder.patch_length)
    if not bool(empty_BLC.any()):
        return None
    return replace(step, batch=replace(step.batch, observed_BLC=step.batch.observed_BLC | empty_BLC))


def doubled(step: Step) -> Step:
    """In float64."""
    batch = replace(step.batch, x_BLC=step.batch.x_BLC.double(), facts_BF=step.batch.facts_BF.double())
    return replace(step, model=_copy(step).double(), batch=batch, precision=torch.float32)


def mended(step: Step, parameters: bool) -> Step | None:
    """With parameters, or buffers, that are not finite replaced by those of a fresh model."""
    named = dict(step.model.named_parameters() if parameters else step.model.named_buffers())
    wrong = [name for name, tensor in named.items() if not bool(tensor.isfinite().all())]
    if not wrong:
        return None
    fresh = step.fresh().state_dict()
    return _with(step, {name: fresh[name] for name in wrong})


def with_fresh_encoder(step: Step) -> Step:
    """With all parameters of the encoder fresh."""
    fresh = dict(step.fresh().named_parameters())
    return _with(step, {name: value for name, value in fresh.items() if name.startswith("encoder.")})


def with_fresh_head(step: Step) -> Step:
    """With all parameters of the head fresh.

    A matrix that starts at zero is given small numbers, as after some steps: else nothing would reach the encoder, and any
    fault there would count as cured.
    """
    fresh = dict(step.fresh().named_parameters())
    values = {name: value.detach().clone() for name, value in fresh.items() if name.startswith("head.")}
    generator = torch.Generator().manual_seed(0)
    for value in values.values():
        if value.ndim > 1 and not bool(value.any()):
            value.copy_(torch.randn(value.shape, generator=generator) * value.shape[-1] ** -0.5)
    return _with(step, values)


def healed(step: Step) -> Step | None:
    """With weights and buffers of the last healthy state."""
    if step.healthy is None or all(torch.equal(now, before) for now, before in _pairs(step).values()):
        return None
    return _with(step, {name: before for name, (_, before) in _pairs(step).items()})


@dataclass(frozen=True)
class Damage:
    """A few numbers that are absurdly unlike those of the last healthy state."""

    flags: dict[str, Tensor]
    """True in each tensor where a number is."""

    @property
    def words(self) -> str:
        """How many, and where."""
        return f"{sum(int(flag.sum()) for flag in self.flags.values())} in {', '.join(self.flags)}"


def find_damage(step: Step) -> Damage | None:
    """A few numbers that changed absurdly since the last healthy state, while all others did not; None if there are none."""
    if step.healthy is None:
        return None
    pairs = {name: pair for name, pair in _pairs(step).items() if pair[0].is_floating_point() and pair[0].numel()}
    changed = {name: (now.double() - before.double()).abs() for name, (now, before) in pairs.items()}
    healthy = torch.cat([before.double().flatten() for _, before in pairs.values()])
    usual = max(
        float(torch.cat([each.flatten() for each in changed.values()]).median()), float(healthy.square().mean().sqrt())
    )
    flags = {name: ~(each <= ABSURD_CHANGE * usual) for name, each in changed.items()}
    flags = {name: flag for name, flag in flags.items() if bool(flag.any())}
    number = sum(int(flag.sum()) for flag in flags.values())
    return Damage(flags) if 0 < number <= max(1.0, FEW * len(healthy)) and len(flags) <= FEW_TENSORS else None


def gathered(step: Step) -> Step | None:
    """With the windows taken from the data once more, if they are then other numbers."""
    fresh = step.gathered
    if fresh is None or all(_same(getattr(fresh, name), getattr(step.batch, name)) for name in GIVEN):
        return None
    return replace(step, batch=fresh)


def undamaged(step: Step, damage: Damage | None) -> Step | None:
    """With only the damaged numbers as in the last healthy state."""
    if damage is None:
        return None
    pairs = _pairs(step)
    return _with(step, {name: torch.where(flag, pairs[name][1], pairs[name][0]) for name, flag in damage.flags.items()})


def with_new_average(step: Step) -> Step | None:
    """With the moving average of the weights begun anew from the weights."""
    return None if step.average is None else replace(step, average=dict(step.model.named_parameters()))


def clipped(step: Step) -> Step:
    """With gradients clipped at 1, or at a tenth of the configured norm if that is less."""
    clip_norm = min(1.0, step.config.clip_norm / 10)
    return replace(step, config=step.config.model_copy(update={"clip_norm": clip_norm}))


def _pairs(step: Step) -> dict[str, tuple[Tensor, Tensor]]:
    """Each tensor of the model now and in the last healthy state."""
    healthy = step.healthy or {}
    state = step.model.state_dict()
    return {name: (now, healthy[name].to(now.device)) for name, now in state.items() if name in healthy}


def _with(step: Step, values: dict[str, Tensor]) -> Step:
    model = _copy(step)
    model.load_state_dict(values, strict=False)
    return replace(step, model=model)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether all numbers are equal, or both NaN."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _copy(step: Step) -> TimerXLForClassification:
    return copy.deepcopy(step.model)
