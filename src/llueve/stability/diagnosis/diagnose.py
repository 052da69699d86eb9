"""Find the cause of a refused step: run every experiment, and take the cause that the smallest cure supports.

Shapes: B batch, L steps, C variables, F facts.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from llueve.model.classifier import LARGEST
from llueve.stability.diagnosis import changes
from llueve.stability.diagnosis.advice import advise
from llueve.stability.diagnosis.case import Evidence, Rerun
from llueve.stability.diagnosis.causes import INPUT_CAUSES, Cause
from llueve.stability.diagnosis.experiments import Experiments, are_rates
from llueve.stability.diagnosis.explanation import RERUNS, UNUSUAL, Change, Explanation
from llueve.stability.diagnosis.memory import explain_memory
from llueve.stability.diagnosis.numbers import numbers_at_fault
from llueve.stability.diagnosis.suspects import constant_windows, empty_patches, far, is_mark_or_unit, rows_of
from llueve.stability.diagnosis.trace import trace_step
from llueve.stability.reading import FaultKind
from llueve.stability.refused_step import RefusedStep
from llueve.step.random_state import set_random_states

WARMUP_STEPS = 50
"""Steps of a warm-up that is tried, and of the rise of the rates after a roll-back."""
FURTHER_STEPS = 20
"""Steps after the refused one that must be sound too when rates are changed."""
DIVISORS = (10, 100, 1000, 10_000)
"""Divisors of the rates that are tried for the steps since the last healthy state."""
WARM_LOSS, SLOW_LOSS = 5.0, 3.0
"""Largest loss under a warm-up or lower rates, in usual losses. Full rates are rough at first, so a warm-up may have more."""

BY_CURE: tuple[tuple[Change, Cause], ...] = (
    (Change.CONSTANT_WINDOWS, Cause.CONSTANT_WINDOW),
    (Change.EMPTY_PATCHES, Cause.EMPTY_ATTENTION_ROW),
    (Change.PLAIN_LOSS, Cause.LOSS_EDGE),
    (Change.UNDAMAGED_WEIGHTS, Cause.DAMAGED_WEIGHTS),
    (Change.FLOAT32, Cause.HALF_PRECISION),
    (Change.CLIPPED_RERUN, Cause.EXPLODING_GRADIENT),
    (Change.WARMED_RERUN, Cause.MISSING_WARMUP),
    (Change.SLOWED_RERUN, Cause.LEARNING_RATE),
    (Change.CLIPPED, Cause.EXPLODING_GRADIENT),
    (Change.HEALTHY_WEIGHTS, Cause.LEARNING_RATE),
    (Change.NEW_HEAD, Cause.HEAD_INITIALISATION),
    (Change.NEW_ENCODER, Cause.ENCODER_WEIGHTS),
    (Change.WITHOUT_SAMPLES, Cause.FEW_SAMPLES),
    (Change.FLOAT64, Cause.OVERFLOW),
)
"""Cause by the change that cures, from small changes to large ones. Changes of single numbers come before these."""


Suspects = dict[Change, Tensor]
"""Flags of the parts of a batch that look wrong, by the change that removes them, from small changes to large ones."""


def _suspects(step: RefusedStep) -> Suspects:
    batch = step.batch
    return {
        Change.CELLS: ~batch.x_BLC.isfinite(),
        Change.FACTS: ~batch.facts_BF.isfinite(),
        Change.FAR_CELLS: far(batch.x_BLC, LARGEST),
        Change.UNUSUAL_CELLS: far(batch.x_BLC, UNUSUAL),
        Change.FAR_FACTS: far(batch.facts_BF, LARGEST),
        Change.CONSTANT_WINDOWS: constant_windows(batch),
        Change.EMPTY_PATCHES: empty_patches(batch, step.model.encoder.patch_length),
    }


def explain(step: RefusedStep, evidence: Evidence) -> Explanation:
    """Compute a refused step under every change, and name the cause that the smallest cure supports.

    Model, batch and random generators are unchanged afterwards.
    """
    with torch.random.fork_rng(devices=[step.device] if step.device.type == "cuda" else []):
        experiments = Experiments(step, evidence)
        if step.kind == FaultKind.MEMORY:
            return _advised(explain_memory(step, evidence, experiments), step, evidence)
        experiments.run(Change.NONE, step)
        set_random_states(step.random_state, step.device)
        trace = trace_step(step.model, step.batch, step.config, step.precision)
        suspects = _suspects(step)
        damage = changes.find_damage(step, evidence)
        _change_input(experiments, suspects)
        _change_computation(experiments)
        _change_state(experiments, damage)
        rate_factor = _change_steps_before(experiments)
        confirmed = _confirmed(experiments, suspects)
        samples: tuple[int, ...] = ()
        if not experiments.cured_by(Change.NONE, Change.GATHERED_AGAIN) and not step.kind.is_outside_the_step:
            samples = experiments.leave_out(sorted({row for flag in confirmed for row in rows_of(flag)}))
        cause = _cause(experiments, suspects)
        inputs = [index for flag in confirmed for index in flag.nonzero().tolist()] if cause in INPUT_CAUSES else []
        cells = tuple((each[0], each[1], each[2]) for each in inputs if len(each) == 3)
        facts = tuple((each[0], each[1]) for each in inputs if len(each) == 2)
        numbers = numbers_at_fault(cause, step, damage)
        found = Explanation(
            cause,
            trace=trace,
            experiments=tuple(experiments.done),
            samples=samples,
            cells=cells,
            facts=facts,
            rate_factor=rate_factor,
            numbers=numbers,
        )
        return _advised(found, step, evidence)


def _advised(found: Explanation, step: RefusedStep, evidence: Evidence) -> Explanation:
    return replace(found, advice=advise(found.cause, step, found.experiments, evidence.settings))


def _confirmed(experiments: Experiments, suspects: Suspects) -> tuple[Tensor, ...]:
    """The flags of the smallest change that cured the step."""
    if experiments.cured_by(Change.CELLS_AND_FACTS):
        return suspects[Change.CELLS], suspects[Change.FACTS]
    return tuple([flag for change, flag in suspects.items() if experiments.cured_by(change)][:1])


def _change_input(experiments: Experiments, suspects: Suspects) -> None:
    step, run = experiments.step, experiments.run
    run(Change.GATHERED_AGAIN, changes.gathered_again(step, experiments.evidence))

    def remove(change: Change, removal: Callable[[RefusedStep, Tensor], RefusedStep]) -> None:
        if bool(suspects[change].any()):
            run(change, removal(step, suspects[change]))

    remove(Change.CELLS, changes.masked)
    remove(Change.FACTS, changes.without_facts)
    if bool(suspects[Change.CELLS].any()) and bool(suspects[Change.FACTS].any()):
        without_cells = changes.masked(step, suspects[Change.CELLS])
        run(Change.CELLS_AND_FACTS, changes.without_facts(without_cells, suspects[Change.FACTS]))
    remove(Change.FAR_CELLS, changes.masked)
    if bool((suspects[Change.UNUSUAL_CELLS] & ~suspects[Change.FAR_CELLS]).any()):
        remove(Change.UNUSUAL_CELLS, changes.masked)
    remove(Change.FAR_FACTS, changes.without_facts)
    remove(Change.CONSTANT_WINDOWS, changes.varied)
    remove(Change.EMPTY_PATCHES, changes.observed)


def _change_computation(experiments: Experiments) -> None:
    step, run = experiments.step, experiments.run
    run(Change.PLAIN_LOSS, step, other_loss=F.cross_entropy)
    if experiments.cured_by(Change.PLAIN_LOSS):
        _change_loss(experiments)
    if step.precision != torch.float32:
        run(Change.FLOAT32, replace(step, precision=torch.float32))
    run(Change.FLOAT64, changes.in_float64(step))
    for divisor in (10, 100):
        reading = replace(step.reading, rates=tuple(rate / divisor for rate in step.reading.rates))
        run(Change.LOWER_RATES, replace(step, reading=reading), str(divisor))
    clipped = changes.clipped(step)
    run(Change.CLIPPED, clipped, f"{clipped.config.clip_norm:g}")


def _change_loss(experiments: Experiments) -> None:
    """Switch off each setting of the loss that is in use, then all of them."""
    step, config = experiments.step, experiments.step.config
    ones = (1.0,) * step.model.num_classes
    zero = (("forecast_weight", 0, 0), ("focal_gamma", 0, 0), ("label_smoothing", 0, 0))
    in_use = {
        f"train.{key} = {text}": {key: plain}
        for key, plain, text in (*zero, ("class_weights", ones, [*ones]))
        if getattr(config, key) not in (plain, None)
    }
    for words, setting in in_use.items():
        experiments.run(Change.LOSS_SETTING, changes.with_setting(step, setting), words)
    if len(in_use) > 1:
        together = {key: plain for setting in in_use.values() for key, plain in setting.items()}
        experiments.run(Change.LOSS_SETTING, changes.with_setting(step, together), ", ".join(in_use))


def _change_state(experiments: Experiments, damage: dict[str, Tensor]) -> None:
    step, evidence, run = experiments.step, experiments.evidence, experiments.run
    run(Change.NEW_WEIGHTS, changes.with_new(step, evidence, step.model.named_parameters()))
    run(Change.NEW_BUFFERS, changes.with_new(step, evidence, step.model.named_buffers()))
    run(Change.HEALTHY_WEIGHTS, changes.with_healthy_weights(step, evidence))
    if damage:
        count = sum(int(flag.sum()) for flag in damage.values())
        run(Change.UNDAMAGED_WEIGHTS, changes.undamaged(step, evidence, damage), f"{count}: {', '.join(damage)}")
    run(Change.NEW_HEAD, changes.with_new_head(step, evidence))
    run(Change.NEW_ENCODER, changes.with_new_encoder(step, evidence))
    run(Change.NEW_MOMENTS, replace(step, moments={}))
    if step.average is not None:
        run(Change.NEW_AVERAGE, replace(step, average=dict(step.model.named_parameters())))


def _change_steps_before(experiments: Experiments) -> float | None:
    """Run the steps since the last healthy state again; the factor of the rates under which they are sound, or None."""
    evidence = experiments.evidence
    from_data = (Change.NONE, Change.GATHERED_AGAIN, Change.CELLS, Change.FACTS, Change.CELLS_AND_FACTS)
    if evidence.rerun is None or experiments.step.kind.is_outside_the_step or experiments.cured_by(*from_data):
        return None
    if experiments.run_again(Change.SAME_RERUN, Rerun()):
        return None
    clip_norm = evidence.usual_norm or 1.0
    experiments.run_again(Change.CLIPPED_RERUN, Rerun(clip_norm=clip_norm), f"{clip_norm:g}")
    # As many steps as the remedy takes, and further ones at full rates: otherwise any warm-up would seem to cure.
    rise = max(evidence.steps_since_healthy, WARMUP_STEPS)
    further = rise - evidence.steps_since_healthy + FURTHER_STEPS
    warmed = Rerun(warmup_steps=rise, further_steps=further)
    experiments.run_again(Change.WARMED_RERUN, warmed, str(rise), WARM_LOSS)
    for divisor in DIVISORS:
        slower = Rerun(rate_factor=1 / divisor, further_steps=FURTHER_STEPS)
        if experiments.run_again(Change.SLOWED_RERUN, slower, str(divisor), SLOW_LOSS):
            return slower.rate_factor
    return None


def _cause(experiments: Experiments, suspects: Suspects) -> Cause:
    """The cause that the smallest cure supports, from small changes to large ones."""
    step, cured = experiments.step, experiments.cured_by
    if step.kind == FaultKind.LEARNING_RATE or not are_rates(step.reading.rates):
        return Cause.LEARNING_RATE
    if cured(Change.NONE, Change.GATHERED_AGAIN):
        return Cause.TRANSIENT
    if cured(Change.NEW_MOMENTS):
        return Cause.POISONED_MOMENTS
    if cured(Change.NEW_AVERAGE):
        return Cause.POISONED_AVERAGE
    if cured(Change.NEW_WEIGHTS) and not cured(*RERUNS):
        return Cause.CORRUPT_WEIGHTS
    if cured(Change.NEW_BUFFERS):
        return Cause.CORRUPT_BUFFER
    if cured(Change.SAME_RERUN):  # neither the data nor the steps lead to the fault, so memory was damaged
        damaged = cured(Change.HEALTHY_WEIGHTS, Change.UNDAMAGED_WEIGHTS)
        return Cause.DAMAGED_WEIGHTS if damaged else Cause.TRANSIENT
    if cured(Change.CELLS, Change.FACTS, Change.CELLS_AND_FACTS):
        inputs = torch.cat((step.batch.x_BLC[suspects[Change.CELLS]], step.batch.facts_BF[suspects[Change.FACTS]]))
        return Cause.INFINITE_INPUT if bool(inputs.isinf().all()) else Cause.MISSING_INPUT
    if cured(Change.FAR_CELLS, Change.UNUSUAL_CELLS):
        far_BLC = suspects[Change.FAR_CELLS if cured(Change.FAR_CELLS) else Change.UNUSUAL_CELLS]
        return Cause.SENTINEL_OR_UNIT if is_mark_or_unit(step.batch, far_BLC) else Cause.OUTLIER_INPUT
    if cured(Change.FAR_FACTS):
        return Cause.OUTLIER_INPUT
    return next((cause for change, cause in BY_CURE if cured(change)), Cause.UNKNOWN)
