"""What the loop does about a refused step: keep it, find its cause, apply the remedy, and write both down."""

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from llueve.errors import GuardStop, listed
from llueve.forecasting import as_batch
from llueve.model.classifier import LARGEST
from llueve.stability.causes import ADVICE, Conduct, Explanation, Step, explain
from llueve.stability.causes.cells import far
from llueve.stability.guard import Kind, unsound_weights
from llueve.stability.incident import write_explanation
from llueve.stability.remedies import MOST_READMISSIONS, MOST_ROLLBACKS, Quarantined, Remedy, Standing, choose
from llueve.stability.step import loss_and_gradients, random_states, set_random_states, total_norm
from llueve.training.course import Attempt, Course

logger = logging.getLogger(__name__)

MOST_EXPLAINED = 20
"""Refused steps of one run whose cause is looked for; each costs some fifty steps, and the course behind it."""
UNKNOWN = Explanation("unknown", None, (), (), ())


def mend(course: Course, attempt: Attempt, kind: Kind, reason: str) -> None:
    """Deal with a refused step by the policy; nothing of it has been applied.

    Raises:
        GuardStop: the policy says so, or there is no remedy, or no budget left for one.
    """
    if not course.is_alike():
        _make_alike(course, reason if kind == "processes" else f"{reason}; {_who(course)}")
        return
    if kind == "gradient":
        reason += _hit(course)
    decided = Decision.of(course.alone(lambda: _decide(course, course.whole(attempt), kind, reason).as_dict()))
    course.ledger.explained = decided.explained
    if course.policy == "skip":
        _pass_over(course, attempt, kind, reason)
        return
    _perform(course, attempt, kind, reason, decided.cause, decided.remedy)


@dataclass(frozen=True)
class Decision:
    """What process 0 found out about a refused step, as it tells it to the others."""

    cause: str
    remedy: Remedy
    explained: int
    """Refused steps of the run whose cause was looked for."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self:
        """What `as_dict` told."""
        remedy = content["remedy"]
        rows, layers = (tuple(remedy[name]) for name in ("samples", "layers"))
        return cls(content["cause"], Remedy(**{**remedy, "samples": rows, "layers": layers}), content["explained"])


def _decide(course: Course, attempt: Attempt, kind: Kind, reason: str) -> Decision:
    """Keep a refused step, find its cause, choose the remedy, and write them down."""
    folder = _keep(course, attempt, kind, reason)
    if course.policy == "skip":
        remedy = Remedy("skip", "its batch is left out")
        _record(course, kind, reason, "", remedy, folder)
        return Decision("", remedy, course.ledger.explained)
    place = (course.place.epoch, course.place.position)
    found = _explain(course, attempt, kind)
    if course.policy == "stop":
        remedy = Remedy("stop", 'guard.policy = "stop"')
    else:
        remedy = choose(
            found,
            course.ledger,
            Standing(
                kind=kind,
                repeated=course.troubled[place] > 0,
                steps=course.place.steps,
                samples_left=course.guard.samples_left - course.guard.skipped - len(course.ledger.held()),
                layers=course.model.encoder.depth,
                healthy=course.healthy.is_sound,
            ),
        )
    if folder is not None and found.cause != UNKNOWN.cause:
        write_explanation(folder, found)
    _record(course, kind, reason, found.cause, remedy, folder)
    return Decision(found.cause, remedy, course.ledger.explained)


def _make_alike(course: Course, reason: str) -> None:
    """Bring all processes back to the last healthy state of process 0.

    Raises:
        GuardStop: the policy forbids it, or it was done too often.
    """
    if course.policy != "repair" or course.ledger.rollbacks >= MOST_ROLLBACKS:
        raise GuardStop(
            f"stopped by the guard: {reason}. It is not mended because guard.policy = {course.policy!r}, or because "
            f"{MOST_ROLLBACKS} roll-backs were made already. No model was written. What to do: train again; if it comes "
            "back, look at the memory of the machine of that process, and whether all machines are of one kind"
        )
    logger.warning("%s; back to the last healthy state of process 0", reason)
    remedy = Remedy("roll_back", "all processes go back to the last healthy state of process 0, and on from there")
    _record(course, "processes", reason, "unlike_processes", remedy, None)
    _roll_back(course, remedy)


def _who(course: Course) -> str:
    return f"the state of process {listed(course.unlike)} is not that of process 0"


def readmit(course: Course) -> None:
    """Let quarantined samples back that are sound on their own with the present weights; each may be let back once."""
    tried = [each for each in course.ledger.held() if not each.tries][:MOST_READMISSIONS]
    course.model.train()
    for each, sound in zip(tried, course.alone(lambda: _sound(course, tried)), strict=True):
        if sound:
            each.inside, each.tries = False, each.tries + 1
    if back := [each for each in tried if not each.inside]:
        logger.info("epoch %d: %d quarantined sample(s) are sound again and back", course.place.epoch, len(back))
        course.allow()


def _sound(course: Course, tried: list[Quarantined]) -> list[bool]:
    """Which samples are, each on its own."""
    found, before = [], random_states(course.device)
    for each in tried:
        batch, config = course.batch(course.training.find(each.site, each.end)), course.effective_config
        loss = loss_and_gradients(course.model, batch, config, course.precision)
        found.append(course.guard.is_sound(course.read(batch, loss, total_norm(course.model), config)))
    set_random_states(before, course.device)
    return found


def mend_weights(course: Course) -> bool:
    """Whether weights that are wrong at the end of an epoch were brought back to a healthy state.

    Raises:
        GuardStop: they are not finite, or not the same in all processes, and cannot be brought back.
    """
    if not course.is_alike():
        course.place.refused += 1
        _make_alike(course, f"end of epoch {course.place.epoch}: {_who(course)}")
        return True
    wrong = unsound_weights(course.model)
    if not wrong:
        return False
    if course.policy != "repair" or course.ledger.rollbacks >= MOST_ROLLBACKS or not course.healthy.is_sound:
        course.guard.check_weights(course.model)
    reason = f"{listed(wrong)} hold(s) numbers that no sound step has led to"
    remedy = Remedy("roll_back", "back to the last healthy state, and on from there as before")
    course.place.refused += 1
    _record(course, "weights", reason, "corrupt_weights", remedy, None)
    _roll_back(course, remedy)
    return True


def _record(course: Course, kind: Kind, reason: str, cause: str, remedy: Remedy, folder: Path | None) -> None:
    """One line of the history."""
    course.surroundings.record(
        {
            "event": "refused",
            "epoch": course.place.epoch,
            "batch": course.place.batches + 1,
            "kind": kind,
            "reason": reason,
            "cause": cause,
            "action": remedy.action,
            "why": remedy.why,
            "incident": None if folder is None else int(folder.name),
        }
    )


def _keep(course: Course, attempt: Attempt, kind: Kind, reason: str) -> Path | None:
    reading = attempt.reading
    return course.surroundings.keep(
        kind=kind,
        reason=reason,
        epoch=course.place.epoch,
        step=reading.step,
        loss=reading.loss,
        gradient_norm=reading.gradient_norm,
        rates=reading.rates,
        model=course.model,
        optimiser=course.optimiser.adamw,
        batch=attempt.batch,
        part=attempt.rows,
        random_state=attempt.random_state,
        precision=course.precision,
        train=attempt.config,
    )


def _explain(course: Course, attempt: Attempt, kind: Kind) -> Explanation:
    """The cause of a refused step; the state is afterwards as it was before."""
    gathered = as_batch(course.windows, attempt.rows, course.device)
    shown = {each.cause for each in course.ledger.quarantined}
    for causes, suspected_B in (
        ({"missing_input", "infinite_input"}, ~gathered.finite_B),
        ({"sentinel_or_unit", "outlier_input"}, far(gathered.x_BLC, LARGEST).flatten(1).any(1)),
    ):
        if (known := shown & causes) and bool(suspected_B.any()):
            # Shown once, the same cause is tried first: without these samples the step is run again and judged anew.
            return Explanation(sorted(known)[0], None, (), tuple(suspected_B.nonzero().flatten().tolist()), ())
    if course.ledger.explained >= MOST_EXPLAINED:
        return UNKNOWN
    course.ledger.explained += 1
    guard, healthy = course.guard, course.healthy
    damaged = unsound_weights(course.model)
    now = course.capture()
    try:
        return explain(
            Step(
                model=course.model,
                batch=attempt.batch.without_features(),
                config=attempt.config,
                precision=course.precision,
                random_state=attempt.random_state,
                kind="weights" if damaged and kind == "average" else kind,
                moments=_by_parameter(course),
                rates=attempt.reading.rates,
                fresh=course.surroundings.fresh,
                healthy=healthy.weights,
                healthy_moments=None,
                # An average of damaged weights is damaged with them.
                average=None if course.average is None or damaged else course.average.named(course.model),
                course=lambda conduct: _course(course, conduct),
                course_steps=max(1, course.place.steps - healthy.place.steps),
                usual_norm=guard.usual_norm.median,
                usual_loss=guard.usual_loss.median,
                recorded_norm=attempt.reading.gradient_norm,
                gathered=gathered,
            )
        )
    finally:
        course.restore(now)


def _course(course: Course, conduct: Conduct) -> tuple[float, float]:
    """Loss and gradient norm of the refused step when all since the last healthy state was done in another way."""
    now = course.capture()
    course.restore(course.healthy)
    step = 0
    try:
        while course.place.position < now.place.position:
            place = (course.place.epoch, course.place.position)
            again = course.attempt(conduct, step)
            if again is None:
                break
            if place in course.passed_over:
                course.place.position = again.after
                course.rewind(again)
            else:
                course.apply(again)
                step += 1
        last = course.attempt(conduct, step)
        if last is None:
            return math.nan, math.nan
        worst = last.reading.loss, last.reading.gradient_norm
        for _ in range(conduct.further_steps):
            if not all(map(math.isfinite, worst)):
                break
            course.apply(last)
            step += 1
            last = course.attempt(conduct, step)
            if last is None:
                break
            worst = _larger(worst[0], last.reading.loss), _larger(worst[1], last.reading.gradient_norm)
        return worst
    finally:
        course.restore(now)


def _larger(old: float, new: float) -> float:
    """The larger number; what is not finite is taken, since a comparison with NaN is false."""
    return old if new <= old else new


def _perform(course: Course, attempt: Attempt, kind: Kind, reason: str, cause: str, remedy: Remedy) -> None:
    ledger, place = course.ledger, course.place
    if remedy.action != "skip":
        logger.warning("%s; %s (%s)", reason, remedy.why, cause)
    if remedy.action == "stop":
        raise GuardStop(
            f"stopped by the guard: {reason}. {_in_words(cause)}. It ends here because: "
            f"{remedy.why}. No model was written"
        )
    if remedy.action == "skip":
        _pass_over(course, attempt, kind, reason, "" if cause == UNKNOWN.cause else _in_words(cause))
        return
    if remedy.action == "roll_back":
        course.troubled[place.epoch, place.position] += 1
        _roll_back(course, remedy)
        return
    # All others run the same step again, from the same random state.
    course.rewind(attempt)
    if remedy.action == "rerun":
        if _has_bad_features(course, attempt):
            logger.warning(
                "the kept features hold numbers that are not finite; they are computed in each step from now on"
            )
            course.drop_features()
        course.troubled[place.epoch, place.position] += 1
    elif remedy.action == "quarantine":
        for row in remedy.samples:
            ledger.quarantine(int(attempt.rows.site[row]), int(attempt.rows.end[row]), place.epoch, cause)
        course.allow()
    elif remedy.action == "clip":
        ledger.clip_norm = course.guard.usual_norm.median or 1.0
    elif remedy.action == "raise_precision":
        ledger.exact_layers = sorted({*ledger.exact_layers, *remedy.layers})
        course.model.encoder.exact_layers = frozenset(ledger.exact_layers)
    elif remedy.action == "fresh_head":
        _fresh_head(course)


def _roll_back(course: Course, remedy: Remedy) -> None:
    ledger = course.ledger
    ledger.rollbacks += 1
    refused = course.place.refused
    course.restore(course.healthy)
    course.agree()
    course.place.refused = refused
    ledger.rate *= remedy.rate_factor
    if remedy.ramp:
        ledger.ramp_from = course.place.steps


def _has_bad_features(course: Course, attempt: Attempt) -> bool:
    """Whether the kept features of the batch hold numbers that are not finite, in any process."""
    features = attempt.batch.features
    bad = features is not None and not bool(features.isfinite().all())
    return bool(course.processes.gather([float(bad)]).any())


def _fresh_head(course: Course) -> None:
    fresh = dict(course.surroundings.fresh().head.named_parameters())
    own = dict(course.model.head.named_parameters())
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(fresh[name])
    course.optimiser.forget(own.values())
    if course.average is not None:
        course.average.begin(own.values())
    course.agree()
    course.ledger.fresh_heads += 1
    course.healthy = course.capture()


def _in_words(cause: str) -> str:
    return f"Cause: {cause}: {ADVICE[cause][0]}"


def _pass_over(course: Course, attempt: Attempt, kind: Kind, reason: str, cause: str = "") -> None:
    course.guard.count(attempt.reading, kind, reason, cause)
    course.pass_over(attempt)


def _hit(course: Course) -> str:
    """Which gradients are not finite, in words; they are still as the backward pass left them."""
    gradients = {name: each.grad for name, each in course.model.named_parameters() if each.grad is not None}
    hit = {name: ~each.isfinite() for name, each in gradients.items() if not bool(each.isfinite().all())}
    numbers = sum(int(flag.sum()) for flag in hit.values())
    return f"; {numbers} number(s) of the gradients of {listed(list(hit))}" if hit else ""


def _by_parameter(course: Course) -> dict[str, torch.Tensor]:
    """The optimiser's memory by the names of the parameters, as an incident keeps it."""
    state = course.optimiser.adamw.state
    return {
        f"{name}.{key}": torch.as_tensor(value)
        for name, parameter in course.model.named_parameters()
        for key, value in state.get(parameter, {}).items()
    }
