"""The changes that experiments make to a refused step: each function returns the changed step, or None if it does not apply.

Shapes: B batch, L steps, C variables, F facts.
"""

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llueve.model.batch import Batch
from llueve.stability.diagnosis.case import Evidence, Stored
from llueve.stability.refused_step import RefusedStep

ABSURD_CHANGE = 30.0
"""A number is damaged if it changed by this many times the usual size or the usual change of numbers."""
FEW = 1e-3
"""Largest share of a model's numbers that damaged memory changes."""
FEW_TENSORS = 3
"""Most tensors that damaged memory changes."""
TINY_SPREAD = 1e-3
"""Height of the ramp that is added to a constant window, relative to its level."""


def gathered_again(step: RefusedStep, evidence: Evidence) -> RefusedStep | None:
    """Use the windows as gathered from the data again, if they differ."""
    again = evidence.gathered
    given = step.batch.without_features().tensors()
    if again is None or all(_same(tensor, given[name]) for name, tensor in again.without_features().tensors().items()):
        return None
    return replace(step, batch=again)


def masked(step: RefusedStep, flag_BLC: Tensor) -> RefusedStep:
    """Take the flagged cells as not observed."""
    batch = step.batch
    x_BLC = torch.where(flag_BLC, 0.0, batch.x_BLC)
    return replace(step, batch=replace(batch, x_BLC=x_BLC, observed_BLC=batch.observed_BLC & ~flag_BLC))


def without_facts(step: RefusedStep, flag_BF: Tensor) -> RefusedStep:
    """Replace the flagged facts by zero, which is their mean."""
    return replace(step, batch=replace(step.batch, facts_BF=torch.where(flag_BF, 0.0, step.batch.facts_BF)))


def varied(step: RefusedStep, windows_BC: Tensor) -> RefusedStep:
    """Add a tiny ramp to the flagged windows. A window with fewer than two cells is filled first."""
    batch, chosen_B1C = step.batch, windows_BC[:, None]
    scarce_B1C = batch.observed_BLC.sum(1, keepdim=True) < 2
    level_B1C = (batch.x_BLC * batch.observed_BLC).sum(1, keepdim=True)
    x_BLC = torch.where(scarce_B1C, level_B1C, batch.x_BLC)
    seen_BLC = batch.observed_BLC | scarce_B1C
    ramp_L = torch.linspace(-0.5, 0.5, x_BLC.shape[1], dtype=x_BLC.dtype, device=x_BLC.device)
    lifted_BLC = x_BLC + TINY_SPREAD * x_BLC.abs().clamp(min=1) * ramp_L[:, None]
    x_BLC = torch.where(chosen_B1C & seen_BLC, lifted_BLC, batch.x_BLC)
    observed_BLC = torch.where(chosen_B1C, seen_BLC, batch.observed_BLC)
    return replace(step, batch=replace(batch, x_BLC=x_BLC, observed_BLC=observed_BLC))


def observed(step: RefusedStep, flag_BLC: Tensor) -> RefusedStep:
    """Take the flagged cells as observed."""
    return replace(step, batch=replace(step.batch, observed_BLC=step.batch.observed_BLC | flag_BLC))


def in_float64(step: RefusedStep) -> RefusedStep:
    """Compute in float64."""
    kept = step.batch.tensors()
    batch = Batch.of({name: each.double() if each.is_floating_point() else each for name, each in kept.items()})
    return replace(step, model=copy.deepcopy(step.model).double(), batch=batch, precision=torch.float32)


def with_setting(step: RefusedStep, settings: dict[str, Any]) -> RefusedStep:
    """Use other keys of `[train]`."""
    return replace(step, config=step.config.model_copy(update=settings))


def clipped(step: RefusedStep) -> RefusedStep:
    """Clip gradients at 1, or at a tenth of the configured norm if that is smaller."""
    clip_norm = min(1.0, step.config.clip_norm / 10)
    return with_setting(step, {"clip_norm": clip_norm})


def with_new(step: RefusedStep, evidence: Evidence, named: Iterable[tuple[str, Tensor]]) -> RefusedStep | None:
    """Replace those of these parameters or buffers that are not finite by those of a new model."""
    wrong = [name for name, tensor in named if not bool(tensor.isfinite().all())]
    if not wrong:
        return None
    new = evidence.new_model().state_dict()
    return _with(step, {name: new[name] for name in wrong})


def with_new_encoder(step: RefusedStep, evidence: Evidence) -> RefusedStep:
    """Replace all parameters of the encoder by new ones."""
    new = dict(evidence.new_model().named_parameters())
    return _with(step, {name: value for name, value in new.items() if name.startswith("encoder.")})


def with_new_head(step: RefusedStep, evidence: Evidence) -> RefusedStep:
    """Replace all parameters of the head by new ones.

    A matrix that starts at zero gets small random numbers, as after some steps. Otherwise no gradient would reach the
    encoder, and any fault there would count as cured.
    """
    new = dict(evidence.new_model().named_parameters())
    values = {name: value.detach().clone() for name, value in new.items() if name.startswith("head.")}
    generator = torch.Generator().manual_seed(0)
    for value in values.values():
        if value.ndim > 1 and not bool(value.any()):
            value.copy_(torch.randn(value.shape, generator=generator) * value.shape[-1] ** -0.5)
    return _with(step, values)


def with_healthy_weights(step: RefusedStep, evidence: Evidence) -> RefusedStep | None:
    """Use weights and buffers of the last healthy state, if they differ."""
    pairs = _now_and_healthy(step, evidence)
    if all(torch.equal(now, before) for now, before in pairs.values()):
        return None
    return _with(step, {name: before for name, (_, before) in pairs.items()})


def rebuilt(step: RefusedStep, stored: Stored) -> RefusedStep:
    """Use the stored numbers to which the steps since the last healthy state lead; the step then has no fault in memory."""
    reading = replace(step.reading, changed=())
    return replace(_with(step, dict(stored.model)), moments=stored.moments, average=stored.average, reading=reading)


def find_damage(step: RefusedStep, evidence: Evidence) -> dict[str, Tensor]:
    """Flags, by tensor, of a few numbers that changed absurdly since the last healthy state while all others did not."""
    pairs = {name: each for name, each in _now_and_healthy(step, evidence).items() if each[0].is_floating_point()}
    if not pairs:
        return {}
    changed = {name: (now.double() - then.double()).abs() for name, (now, then) in pairs.items()}
    healthy = torch.cat([then.double().flatten() for _, then in pairs.values()])
    usual_change = float(torch.cat([each.flatten() for each in changed.values()]).median())
    usual = max(usual_change, float(healthy.square().mean().sqrt()))
    flags = {name: ~(each <= ABSURD_CHANGE * usual) for name, each in changed.items()}
    flags = {name: flag for name, flag in flags.items() if bool(flag.any())}
    count = sum(int(flag.sum()) for flag in flags.values())
    return flags if count <= max(1.0, FEW * len(healthy)) and len(flags) <= FEW_TENSORS else {}


def undamaged(step: RefusedStep, evidence: Evidence, damage: dict[str, Tensor]) -> RefusedStep:
    """Take only the damaged numbers from the last healthy state."""
    pairs = _now_and_healthy(step, evidence)
    return _with(step, {name: torch.where(flag, pairs[name][1], pairs[name][0]) for name, flag in damage.items()})


def _now_and_healthy(step: RefusedStep, evidence: Evidence) -> dict[str, tuple[Tensor, Tensor]]:
    """Each tensor of the model now and in the last healthy state; empty without such a state."""
    healthy = evidence.healthy or {}
    state = step.model.state_dict()
    return {name: (now, healthy[name].to(now.device)) for name, now in state.items() if name in healthy}


def _with(step: RefusedStep, values: dict[str, Tensor]) -> RefusedStep:
    model = copy.deepcopy(step.model)
    model.load_state_dict(values, strict=False)
    return replace(step, model=model)


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
