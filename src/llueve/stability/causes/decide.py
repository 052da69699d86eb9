"""Every experiment of the list, and the cause that the smallest cure speaks for.

Shapes: B batch, L steps, C variables, F facts.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from llueve.model.classifier import LARGEST
from llueve.stability.causes.cells import bad, constant_windows, empty_patches, far, is_mark_or_unit, rows_of
from llueve.stability.causes.changes import (
    Damage,
    clipped,
    doubled,
    filled_patches,
    find_damage,
    gathered,
    healed,
    masked,
    mended,
    undamaged,
    varied,
    with_fresh_encoder,
    with_fresh_head,
    with_new_average,
    without_facts,
)
from llueve.stability.causes.laboratory import Laboratory, are_rates
from llueve.stability.causes.numbers import numbers_to_blame
from llueve.stability.causes.step import Conduct, Explanation, Step
from llueve.stability.step import random_states, set_random_states
from llueve.stability.trace import trace_step

UNUSUAL = 30.0
"""Training spreads beyond which cells are tried after those that are certainly far."""
UNCHANGED = "none: the same step again"
GATHERED = "the windows taken from the data once more"
CELLS = "missing and infinite cells masked"
FACTS = "facts that are not finite replaced by zero"
BOTH = "cells and facts that are not finite taken away"
FAR_CELLS = f"cells beyond {LARGEST:g} training spreads masked"
UNUSUAL_CELLS = f"cells beyond {UNUSUAL:g} training spreads masked"
FAR_FACTS = f"facts beyond {LARGEST:g} replaced by zero"
VARIED = "a tiny ramp in windows that are constant"
FILLED = "patches with nothing observed taken as observed"
PLAIN_LOSS = "plain cross-entropy as the loss"
PARAMETERS = "weights that are not finite replaced by fresh ones"
BUFFERS = "stored tables that are not finite replaced by fresh ones"
HEALTHY = "weights of the last healthy state"
UNDAMAGED = "only the absurd weights as in the last healthy state"
MOMENTS = "fresh optimiser moments"
HEALTHY_MOMENTS = "optimiser moments of the last healthy state"
AVERAGE = "average begun anew from the weights"
CLIPPED = "gradients clipped"
HEAD = "fresh head"
ENCODER = "fresh encoder, no pre-trained weights"
SAME_COURSE = "course since the last healthy state, unchanged"
CLIPPED_COURSE = "course with gradients clipped"
WARM_COURSE = "course with warm-up"
SLOW_COURSE = "course with rates divided by"
WARMUP_STEPS = 50
FURTHER_STEPS = 20
DIVISORS = (10, 100, 1000, 10_000)
WARM_LOSS, SLOW_LOSS = 5.0, 3.0
"""Times the usual loss that a course may reach which a warm-up, or lower rates, are to cure: whole rates are rough at first."""
COURSES = (CLIPPED_COURSE, WARM_COURSE, SLOW_COURSE)
"""What is tried where the unchanged course leads to the fault again: the weights became what they are on the way."""

BY_CURE: tuple[tuple[str, str], ...] = (
    (VARIED, "constant_window"),
    (FILLED, "empty_attention_row"),
    (PLAIN_LOSS, "loss_edge"),
    (UNDAMAGED, "damaged_weights"),
    ("float32", "half_precision"),
    (CLIPPED_COURSE, "exploding_gradient"),
    (WARM_COURSE, "missing_warmup"),
    (SLOW_COURSE, "learning_rate"),
    (CLIPPED, "exploding_gradient"),
    (HEALTHY, "learning_rate"),
    (HEAD, "head_initialisation"),
    (ENCODER, "encoder_weights"),
    ("without samples", "few_samples"),
    ("float64", "overflow"),
)
"""Cause by the change that cured, from the smallest change to the largest, after those that concern single numbers."""


@dataclass(frozen=True)
class _Flags:
    """What of a batch is suspected."""

    bad_BLC: Tensor
    far_BLC: Tensor
    unusual_BLC: Tensor
    bad_BF: Tensor
    far_BF: Tensor
    constant_BC: Tensor
    empty_BLC: Tensor

    def cured(self, lab: Laboratory) -> tuple[Tensor, ...]:
        """Those of the smallest change that cured."""
        named = {
            CELLS: self.bad_BLC,
            FACTS: self.bad_BF,
            FAR_CELLS: self.far_BLC,
            UNUSUAL_CELLS: self.unusual_BLC,
            FAR_FACTS: self.far_BF,
            VARIED: self.constant_BC,
            FILLED: self.empty_BLC,
        }
        if lab.cured_by(BOTH):
            return self.bad_BLC, self.bad_BF
        return tuple([flag for change, flag in named.items() if lab.cured_by(change)][:1])


def explain(step: Step) -> Explanation:
    """Replay a step under every change of the list, and name the cause that the smallest cure speaks for.

    Model, batch, and torch's generators are left as they were.
    """
    device = step.batch.y_B.device
    before = random_states(device)
    try:
        return _explain(step)
    finally:
        set_random_states(before, device)


def _explain(step: Step) -> Explanation:
    lab = Laboratory(step)
    lab.run(UNCHANGED, step)
    set_random_states(step.random_state, step.batch.y_B.device)
    trace = trace_step(step.model, step.batch, step.config, step.precision)
    flags = _flags(step)
    lab.run(GATHERED, gathered(step))
    _change_input(lab, step, flags)
    _change_computation(lab, step)
    damage = find_damage(step)
    _change_weights(lab, step, damage)
    rate_factor = _change_course(lab, step)
    cured = flags.cured(lab)
    suspected = sorted({row for flag in cured for row in rows_of(flag)})
    samples = () if lab.cured_by(UNCHANGED, GATHERED) or step.kind in _STATES else lab.leave_out(suspected)
    cause = _decide(lab, step, flags)
    cells, facts = _blame(cause, cured)
    numbers = numbers_to_blame(cause, step, damage)
    return Explanation(cause, trace, tuple(lab.experiments), samples, cells, facts, rate_factor, numbers)


_STATES = ("learning_rate", "moments", "average")
"""Kinds of faults that lie in no step but in what surrounds it."""


def _flags(step: Step) -> _Flags:
    batch = step.batch
    return _Flags(
        bad_BLC=bad(batch.x_BLC),
        far_BLC=far(batch.x_BLC, LARGEST),
        unusual_BLC=far(batch.x_BLC, UNUSUAL),
        bad_BF=bad(batch.facts_BF),
        far_BF=far(batch.facts_BF, LARGEST),
        constant_BC=constant_windows(batch),
        empty_BLC=empty_patches(batch, step.model.encoder.patch_length),
    )


def _change_input(lab: Laboratory, step: Step, flags: _Flags) -> None:
    whole = masked(step, flags.bad_BLC)
    lab.run(CELLS, whole)
    lab.run(FACTS, without_facts(step, flags.bad_BF))
    if whole is not None:
        lab.run(BOTH, without_facts(whole, flags.bad_BF))
    lab.run(FAR_CELLS, masked(step, flags.far_BLC))
    if bool((flags.unusual_BLC & ~flags.far_BLC).any()):
        lab.run(UNUSUAL_CELLS, masked(step, flags.unusual_BLC))
    lab.run(FAR_FACTS, without_facts(step, flags.far_BF))
    lab.run(VARIED, varied(step))
    lab.run(FILLED, filled_patches(step))


def _change_computation(lab: Laboratory, step: Step) -> None:
    lab.run(PLAIN_LOSS, step, F.cross_entropy)
    lab.run("float32", replace(step, precision=torch.float32) if step.precision != torch.float32 else None)
    lab.run("float64", doubled(step))
    for divisor in (10, 100):
        slower = tuple(rate / divisor for rate in step.rates)
        lab.run(f"learning rates divided by {divisor}", replace(step, rates=slower))
    smaller = clipped(step)
    lab.run(f"{CLIPPED} at {smaller.config.clip_norm:g}", smaller)


def _change_weights(lab: Laboratory, step: Step, damage: Damage | None) -> None:
    lab.run(PARAMETERS, mended(step, parameters=True))
    lab.run(BUFFERS, mended(step, parameters=False))
    lab.run(HEALTHY, healed(step))
    lab.run(f"{UNDAMAGED}: {damage.words if damage else ''}", undamaged(step, damage))
    lab.run(HEAD, with_fresh_head(step))
    lab.run(ENCODER, with_fresh_encoder(step))
    lab.run(MOMENTS, replace(step, moments={}))
    lab.run(HEALTHY_MOMENTS, None if step.healthy_moments is None else replace(step, moments=step.healthy_moments))
    lab.run(AVERAGE, with_new_average(step))


def _change_course(lab: Laboratory, step: Step) -> float | None:
    """Only a fault that the unchanged course makes again can be cured by another conduct; one of the data needs none.

    Returns:
        What the rates must be multiplied by for the course to be as usual; None if that was not found out.
    """
    if step.course is None or step.kind in _STATES or lab.cured_by(UNCHANGED, GATHERED, CELLS, FACTS, BOTH):
        return None
    lab.run_course(SAME_COURSE, Conduct())
    if lab.cured_by(SAME_COURSE):
        return None
    clip_norm = step.usual_norm or 1.0
    lab.run_course(f"{CLIPPED_COURSE} at {clip_norm:g}", Conduct(clip_norm=clip_norm))
    # Over as many steps as the remedy would take, and on until the rates are whole: else any warm-up would seem to cure.
    rise = max(step.course_steps, WARMUP_STEPS)
    further = rise - step.course_steps + FURTHER_STEPS
    lab.run_course(f"{WARM_COURSE} over {rise} steps", Conduct(warmup_steps=rise, further_steps=further), WARM_LOSS)
    for divisor in DIVISORS:
        slower = Conduct(rate_factor=1 / divisor, further_steps=FURTHER_STEPS)
        lab.run_course(f"{SLOW_COURSE} {divisor}", slower, SLOW_LOSS)
        if lab.experiments[-1].cures:
            return slower.rate_factor
    return None


def _decide(lab: Laboratory, step: Step, flags: _Flags) -> str:
    """The cause that the smallest cure speaks for; the order is from the least change to the largest."""
    cured = lab.cured_by
    if step.kind == "learning_rate" or not are_rates(step.rates):
        return "learning_rate"
    if cured(UNCHANGED, GATHERED):
        return "transient"
    if cured(MOMENTS, HEALTHY_MOMENTS):
        return "poisoned_moments"
    if cured(AVERAGE):
        return "poisoned_average"
    if cured(PARAMETERS) and not cured(*COURSES):
        return "corrupt_weights"
    if cured(BUFFERS):
        return "corrupt_buffer"
    if cured(SAME_COURSE):  # neither the data nor any step made it, so memory did
        return "damaged_weights" if cured(HEALTHY, UNDAMAGED) else "transient"
    if cured(CELLS, FACTS, BOTH):
        given = torch.cat((step.batch.x_BLC[flags.bad_BLC], step.batch.facts_BF[flags.bad_BF]))
        return "infinite_input" if bool(given.isinf().all()) else "missing_input"
    if cured(FAR_CELLS, UNUSUAL_CELLS):
        blamed = flags.far_BLC if cured(FAR_CELLS) else flags.unusual_BLC
        return "sentinel_or_unit" if is_mark_or_unit(step.batch, blamed) else "outlier_input"
    if cured(FAR_FACTS):
        return "outlier_input"
    return next((cause for change, cause in BY_CURE if cured(change)), "unknown")


def _blame(
    cause: str, cured: tuple[Tensor, ...]
) -> tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, int], ...]]:
    """Cells and facts that the cause rests on."""
    if cause not in ("missing_input", "infinite_input", "sentinel_or_unit", "outlier_input"):
        return (), ()
    found = [tuple(index) for flag in cured for index in flag.nonzero().tolist()]
    cells = tuple((each[0], each[1], each[2]) for each in found if len(each) == 3)
    return cells, tuple((each[0], each[1]) for each in found if len(each) == 2)
