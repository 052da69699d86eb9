"""Recover from a refused step: keep it, find its cause, apply the remedy, and record all three."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from llueve.errors import GuardStop, listed
from llueve.model.batch import Batch
from llueve.model.classifier import LARGEST
from llueve.stability.diagnosis import Cause, Evidence, Explanation, Settings, explain
from llueve.stability.diagnosis.memory import cause_of_change, changed_numbers
from llueve.stability.diagnosis.numbers import first_numbers
from llueve.stability.diagnosis.suspects import far
from llueve.stability.guard import CHANGED, unsound_weights
from llueve.stability.incidents import write_explanation
from llueve.stability.language import Words
from llueve.stability.reading import Fault, FaultKind
from llueve.stability.refused_step import RefusedStep
from llueve.stability.remedies import MOST_READMISSIONS, MOST_ROLLBACKS, Action, Quarantined, Remedy, Situation, choose
from llueve.step.gradients import loss_and_gradients, total_norm
from llueve.step.random_state import random_states, set_random_states
from llueve.training.snapshot import MODEL
from llueve.training.stepper import Attempt
from llueve.training.trainer import Trainer

logger = logging.getLogger(__name__)

MOST_EXPLAINED = 20
"""Refused steps of one run whose cause is searched for; each search costs some fifty steps and a rerun."""
UNLIKE_PROCESSES = "unlike_processes"
"""The cause in the history if the processes of a training have different states."""


@dataclass(frozen=True)
class Decision:
    """The cause that process 0 found, and the remedy that it chose."""

    cause: Cause | None
    """None if no cause was searched for."""
    remedy: Remedy
    searched: bool = False
    """True if experiments were run to find the cause."""
    advice: str = ""
    """Meaning of the cause, and what to do about it; empty without a cause."""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The decision of process 0."""
        remedy, cause = content["remedy"], content["cause"]
        typed = {"action": Action(remedy["action"]), **{name: tuple(remedy[name]) for name in ("samples", "layers")}}
        decided = None if cause is None else Cause(cause), Remedy(**{**remedy, **typed})
        return cls(*decided, content["searched"], content["advice"])


def recover(trainer: Trainer, attempt: Attempt, fault: Fault) -> None:
    """Deal with a refused step as `guard.policy` says; nothing of it was applied.

    Raises:
        GuardStop: the policy says so, there is no remedy, or its budget is used up.
    """
    state = trainer.state
    if not state.is_alike():
        _make_alike(trainer, fault.reason if fault.kind == FaultKind.PROCESSES else f"{fault.reason}; {_who(trainer)}")
        return
    if fault.kind == FaultKind.GRADIENT:
        fault = fault._replace(reason=fault.reason + _bad_gradients(trainer))
    decision = trainer.processes.on_first(
        lambda: _decide(trainer, trainer.stepper.refused(attempt, fault)), asdict, Decision.from_json
    )
    if decision.searched:
        state.ledger.count_explained()
    _perform(trainer, attempt, fault, decision)


def readmit(trainer: Trainer) -> None:
    """Readmit quarantined samples that are sound with the present weights; each sample once at most."""
    state = trainer.state
    tried = [each for each in state.ledger.held() if not each.tries][:MOST_READMISSIONS]
    state.model.train()
    sound = trainer.processes.on_first(lambda: _are_sound(trainer, tried))
    back = [each for each, is_sound in zip(tried, sound, strict=True) if is_sound]
    for each in back:
        state.ledger.readmit(each)
    if back:
        sentence = "epoch %d: %d quarantined sample(s) are sound again and were readmitted"
        logger.info(sentence, state.place.epoch, len(back))
        trainer.batches.leave_out(state.ledger.held())


def repair_weights(trainer: Trainer) -> bool:
    """Roll back if weights are wrong at the end of an epoch; returns True if it did.

    Raises:
        GuardStop: they are wrong, or differ between processes, and cannot be rolled back.
    """
    state = trainer.state
    if not state.is_alike():
        state.count_refused()
        _make_alike(trainer, f"end of epoch {state.place.epoch}: {_who(trainer)}")
        return True
    wrong, changed = unsound_weights(state.model), state.names_of(state.changed(everything=True).tolist())
    if not (wrong or changed):
        return False
    if trainer.policy != "repair" or state.ledger.rollbacks >= MOST_ROLLBACKS or not state.healthy.is_sound:
        state.guard.check_weights(state.model, changed)
    state.count_refused()
    remedy = Remedy(Action.ROLL_BACK, "roll back to the last healthy state and continue as before")
    if wrong:
        fault = Fault(FaultKind.WEIGHTS, f"{listed(wrong)} hold(s) numbers that no sound step leads to")
        cause = Cause.CORRUPT_WEIGHTS
    else:
        found = trainer.processes.on_first(lambda: _located(trainer, changed))
        cause = Cause(found["cause"])
        fault = Fault(FaultKind.MEMORY, f"end of epoch {state.place.epoch}: bits of {found['place']} {CHANGED}")
    _record(trainer, fault, cause, remedy, None)
    state.roll_back()
    return True


def _located(trainer: Trainer, changed: Sequence[str]) -> dict[str, str]:
    """Cause and place of damage at the end of an epoch: the steps since the last healthy state are run again."""
    state = trainer.state
    state.model.train()  # as in the steps; validation computes without dropout
    rebuilt = trainer.stepper.rebuild()
    average = {} if state.average is None else state.average.named(state.model)
    found = None if rebuilt is None else changed_numbers(state.model, state.moments(), average, rebuilt)
    if found is None:
        return {"cause": cause_of_change(changed), "place": listed(changed)}
    cause, flags = found
    return {"cause": cause, "place": listed([f"{name}{list(index)}" for name, index in first_numbers(flags.items())])}


def _decide(trainer: Trainer, step: RefusedStep) -> Decision:
    """Keep a refused step, find its cause, choose the remedy, and record them."""
    state, fault = trainer.state, Fault(step.kind, step.reason)
    folder = trainer.environment.keep_incident(step)
    if trainer.policy == "skip":
        remedy = Remedy(Action.SKIP, "its batch is left out")
        _record(trainer, fault, "", remedy, folder)
        return Decision(None, remedy)
    here, gathered = state.here, trainer.batches.gather_again(step.rows)
    found, searched = _known_cause(trainer, step, gathered), False
    if found is None:
        searched = state.ledger.explained < MOST_EXPLAINED
        found = _explain(trainer, step, gathered) if searched else Explanation(Cause.UNKNOWN)
        state.advice[found.cause] = found.advice
    if trainer.policy == "stop":
        remedy = Remedy(Action.STOP, 'guard.policy = "stop"')
    else:
        situation = Situation(
            kind=step.kind,
            repeated=state.repeats[here] > 0,
            steps=state.place.steps,
            samples_left=state.guard.samples_left - state.guard.skipped - len(state.ledger.held()),
            layers=state.model.encoder.depth,
            healthy=state.healthy.is_sound,
        )
        remedy = choose(found, state.ledger, situation)
    if folder is not None and found.cause != Cause.UNKNOWN:
        write_explanation(folder, found)
    _record(trainer, fault, found.cause, remedy, folder)
    return Decision(found.cause, remedy, searched, found.words.en)


def _explain(trainer: Trainer, step: RefusedStep, gathered: Batch) -> Explanation:
    """Find the cause of a refused step by experiment. The state is unchanged afterwards."""
    state, stepper = trainer.state, trainer.stepper
    damaged = bool(unsound_weights(state.model))
    if damaged:  # an average of damaged weights is damaged with them
        kind = FaultKind.WEIGHTS if step.kind == FaultKind.AVERAGE else step.kind
        step = replace(step, kind=kind, average=None)
    guard, healthy = state.guard, state.healthy
    evidence = Evidence(
        new_model=trainer.environment.new_model,
        healthy=healthy.group(MODEL),
        rerun=stepper.run_again,
        rebuild=stepper.rebuild,
        steps_since_healthy=max(1, state.place.steps - healthy.place.steps),
        usual_norm=guard.usual_norm.median,
        usual_loss=guard.usual_loss.median,
        settings=names.settings if (names := trainer.environment.names) else Settings(),
        gathered=gathered,
    )
    with state.experiment():
        return explain(step.without_features(), evidence)


def _known_cause(trainer: Trainer, step: RefusedStep, gathered: Batch) -> Explanation | None:
    """A cause that was shown before for samples like these: it is tried first, and the step is then judged again."""
    if step.kind == FaultKind.WEIGHTS or step.kind.is_outside_the_step:
        return None
    shown = {each.cause for each in trainer.state.ledger.quarantined}
    for causes, suspected_B in (
        ({Cause.MISSING_INPUT, Cause.INFINITE_INPUT}, ~gathered.finite_B),
        ({Cause.SENTINEL_OR_UNIT, Cause.OUTLIER_INPUT}, far(gathered.x_BLC, LARGEST).flatten(1).any(1)),
    ):
        if (known := shown & causes) and bool(suspected_B.any()):
            cause = sorted(known)[0]
            rows = tuple(suspected_B.nonzero().flatten().tolist())
            return Explanation(cause, trainer.state.advice.get(cause, Words("", "")), samples=rows)
    return None


def _perform(trainer: Trainer, attempt: Attempt, fault: Fault, decision: Decision) -> None:
    """Apply a remedy, in all processes alike."""
    state, remedy, cause = trainer.state, decision.remedy, decision.cause
    if remedy.action == Action.SKIP:
        found = "" if cause in (None, Cause.UNKNOWN) else f"Cause: {cause}: {decision.advice}"
        state.guard.count(attempt.reading, fault.kind, fault.reason, found)
        state.skip_batch(attempt.drawn.after, attempt.random_state)
        return
    assert cause is not None  # only the policy `skip` searches for none
    logger.warning("%s; %s (%s)", fault.reason, remedy.why, cause)
    if remedy.action == Action.STOP:
        raise GuardStop(
            f"stopped by the guard: {fault.reason}. Cause: {cause}: {decision.advice}. It stops because: {remedy.why}. No model "
            "was written"
        )
    if remedy.action == Action.ROLL_BACK:
        state.count_repeat()
        state.roll_back(remedy.rate_factor, remedy.ramp)
        return
    # All others run the same step again, from the same random state.
    state.rewind_random_state(attempt.random_state)
    if remedy.action == Action.RERUN:
        features = attempt.batch.features
        bad = features is not None and not bool(features.isfinite().all())
        if trainer.processes.gather([float(bad)]).any():
            logger.warning("cached features hold numbers that are not finite; each later step computes them again")
            trainer.drop_features()
        trainer.stepper.plan_rates()
        state.count_repeat()
    elif remedy.action == Action.QUARANTINE:
        for row in remedy.samples:
            site, end = int(attempt.rows.site[row]), int(attempt.rows.end[row])
            state.ledger.quarantine(site, end, state.place.epoch, cause)
        trainer.batches.leave_out(state.ledger.held())
    elif remedy.action == Action.CLIP:
        state.clip_at_usual_norm()
    elif remedy.action == Action.RAISE_PRECISION:
        state.compute_exactly(remedy.layers)
    elif remedy.action == Action.FRESH_HEAD:
        state.replace_head(trainer.environment.new_model())


def _make_alike(trainer: Trainer, reason: str) -> None:
    """Roll all processes back to the last healthy state of process 0.

    Raises:
        GuardStop: the policy forbids it, or it was done too often.
    """
    if trainer.policy != "repair" or trainer.state.ledger.rollbacks >= MOST_ROLLBACKS:
        raise GuardStop(
            f"stopped by the guard: {reason}. It is not repaired, because guard.policy = {trainer.policy!r} or "
            f"{MOST_ROLLBACKS} roll-backs were made already. No model was written. What to do: train again; if it happens "
            "again, test the memory of that machine, and check that all machines are of one kind"
        )
    logger.warning("%s; rolling back to the last healthy state of process 0", reason)
    remedy = Remedy(Action.ROLL_BACK, "all processes roll back to the last healthy state of process 0 and continue")
    _record(trainer, Fault(FaultKind.PROCESSES, reason), UNLIKE_PROCESSES, remedy, None)
    trainer.state.roll_back()


def _who(trainer: Trainer) -> str:
    return f"the state of process {listed(trainer.state.unlike)} is not that of process 0"


def _are_sound(trainer: Trainer, tried: list[Quarantined]) -> list[bool]:
    """Test quarantined samples one by one with the present weights."""
    state, batches, stepper = trainer.state, trainer.batches, trainer.stepper
    found, before = [], random_states(state.device)
    for each in tried:
        batch = batches.gather(batches.training.find(each.site, each.end))
        loss = loss_and_gradients(state.model, batch, state.config, stepper.precision)
        found.append(state.guard.is_sound(stepper.read(batch, loss, total_norm(state.model), state.config)))
    set_random_states(before, state.device)
    return found


def _record(trainer: Trainer, fault: Fault, cause: Cause | str, remedy: Remedy, folder: Path | None) -> None:
    """Write one line of the history."""
    place = trainer.state.place
    trainer.environment.record(
        {
            "event": "refused",
            "epoch": place.epoch,
            "batch": place.batches + 1,
            "kind": fault.kind,
            "reason": fault.reason,
            "cause": cause,
            "action": remedy.action,
            "why": remedy.why,
            "incident": None if folder is None else int(folder.name),
        }
    )


def _bad_gradients(trainer: Trainer) -> str:
    """The parameters whose gradients are not finite, in words; the gradients are as the backward pass left them."""
    named = trainer.state.model.named_parameters()
    bad = {name: ~each.grad.isfinite() for name, each in named if each.grad is not None}
    bad = {name: flag for name, flag in bad.items() if bool(flag.any())}
    count = sum(int(flag.sum()) for flag in bad.values())
    return f"; {count} number(s) of the gradients of {listed(list(bad))}" if bad else ""
