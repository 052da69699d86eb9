"""The training loop: epochs of guarded steps, validation after each, the best weights at the end.

Shapes: B batch, K classes.
"""

import logging
import math
import signal
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from llueve.config import GuardConfig, TrainConfig
from llueve.errors import GuardStop, Interrupted, WorkerLost
from llueve.forecasting import brier_skill, log_loss
from llueve.model.classifier import TimerXLForClassification
from llueve.stability.guard import collapse
from llueve.training.checkpoint import Checkpoint
from llueve.training.course import Course, Surroundings
from llueve.training.keeping import checkpoint, checkpoint_if_due, keep_best, keep_what_is_left
from llueve.training.keeping import resume as go_on_from
from llueve.training.mending import mend, mend_weights, readmit
from llueve.training.progress import TrainingProgress
from llueve.windows import Part, Windows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochRecord:
    """One line of `history.jsonl`."""

    epoch: int
    phase: str
    train_loss: float | None
    """Mean loss over the samples of applied steps; None if none was applied."""
    validation_loss: float | None
    """Mean log-loss on validation; None if it was not finite."""
    validation_skill: float | None
    """Brier skill score on validation against always forecasting the classes' shares in training; None as above."""
    steps: int
    """Batches of the epoch, refused ones too."""
    refused: int
    """Batches that the guard refused."""
    skipped: int
    """Samples that were in no applied step."""
    quarantined: int
    """Samples that are left out for good."""
    collapsed: str | None
    """What is wrong with forecasts of validation that tell nothing apart; None if they do."""
    seconds: float
    learning_rate: float
    """Largest rate of the epoch's last step."""

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True)
class Trained:
    """The best weights and how they came about."""

    best_epoch: int
    best_validation_loss: float
    skipped: int
    quarantined: int
    rollbacks: int

    def as_dict(self) -> dict[str, Any]:
        """The outcome as `model.json` holds it."""
        return asdict(self)


def train_model(
    model: TimerXLForClassification,
    windows: Windows,
    training: Part,
    validation: Part,
    config: TrainConfig,
    guard: GuardConfig,
    surroundings: Surroundings,
    resume: Checkpoint | None = None,
) -> Trained:
    """Train until the validation log-loss stops falling, and leave the best weights in `model`.

    Args:
        resume: go on from this state, bit for bit as if there had been no interruption; process 0 tells it to the others.

    Raises:
        GuardStop: what the guard refused cannot be mended within its budgets, or no epoch had a finite validation loss.
        Interrupted: a signal came; a checkpoint was written. RunError: a checkpoint cannot be written, or read.
        WorkerLost: another process of this training is gone; the state before that step was written, if process 0 lives.
    """
    course = Course(model, windows, training, validation, config, guard, surroundings)
    if course.processes.alone(lambda: resume is not None):
        go_on_from(course, resume)
    try:
        return _run(course, surroundings)
    except GuardStop as stop:
        surroundings.record(
            {
                "event": "stopped",
                # After the last epoch the place is already that of the next one.
                "epoch": course.place.epoch - (course.place.phase == len(course.phases)),
                "steps": course.place.batches,
                "refused": course.place.refused,
                "reason": str(stop),
            }
        )
        raise
    finally:
        course.close()


def _run(course: Course, surroundings: Surroundings) -> Trained:
    """All epochs of all phases."""
    epochs = sum(phase.config.epochs for phase in course.phases)
    with TrainingProgress(surroundings.console, epochs, course.device) as progress:
        while course.place.phase < len(course.phases):
            _epoch(course, progress)
    place = course.place
    if course.best is None:
        raise GuardStop(
            f"stopped by the guard: after {place.epoch - 1} epoch(s) the validation loss was never finite, so there is no "
            "model to keep; see history.jsonl, and look at the validation period with `llueve audit`"
        )
    course.model.load_state_dict(course.best)
    course.model.to("cpu")
    return Trained(place.best_epoch, place.best_loss, place.skipped, len(course.ledger.held()), course.ledger.rollbacks)


def _epoch(course: Course, progress: TrainingProgress) -> None:
    """One pass over the training windows in random order, and the look at validation after it."""
    started = time.perf_counter()
    if course.place.position == 0:
        course.guard.start_epoch()
        readmit(course)
        course.healthy = course.capture()
    progress.start_epoch(
        course.phase.name, course.place.epoch, course.epoch_steps, course.place.batches, course.batch_size
    )
    course.model.train()
    while course.place.position < len(course.order):
        _step(course)
        place = course.place
        mean = place.loss_sum / place.applied if place.applied else math.nan
        progress.step(place.batches, mean, max(course.optimiser.rates), course.guard.skipped)
        if course.place.position < len(course.order):
            _between_steps(course)
    if mend_weights(course):
        return  # back in the middle of this epoch
    line, improved = _look(course, round(time.perf_counter() - started, 3))
    course.surroundings.record(line.as_dict())
    progress.line(_describe(line, improved))
    progress.validated(line.validation_skill)
    _go_on(course, progress)
    checkpoint(course)
    _between_steps(course)


def _between_steps(course: Course) -> None:
    """Write a checkpoint if it is time; end if a signal came."""
    number = course.signal
    if not number:
        checkpoint_if_due(course)
        return
    checkpoint(course)
    kept = "" if course.surroundings.checkpoints is None else "; the state was written: go on with --resume"
    raise Interrupted(
        f"ended by {signal.Signals(number).name} in epoch {course.place.epoch}, after {course.place.batches} steps of it{kept}",
        number,
    )


def _step(course: Course) -> None:
    """One step, applied if the guard finds nothing wrong with it."""
    try:
        attempt = course.attempt()
    except WorkerLost:
        keep_what_is_left(course)
        raise
    if attempt is None:
        return
    fault = course.guard.refuses(attempt.reading)
    if fault is None:
        course.apply(attempt)
        course.place.count(len(attempt.rows), attempt.reading.loss)
        course.remember()
    else:
        course.place.refused += 1
        mend(course, attempt, *fault)


def _look(course: Course, seconds: float) -> tuple[EpochRecord, bool]:
    """Judge the epoch on validation: its record, and whether it is the best so far."""
    place, validation = course.place, course.validation
    with course.average.in_place() if course.average else nullcontext():
        logits_BK = course.validation_logits()
        validation_loss = log_loss(logits_BK, validation.y)
        skill = brier_skill(logits_BK, validation.y, course.class_share)
        # NaN compares false to everything, so the finite check must come first: a NaN is never the best.
        improved = math.isfinite(validation_loss) and (course.best is None or validation_loss < place.best_loss)
        if improved:
            place.best_epoch, place.best_loss = place.epoch, validation_loss
            keep_best(course)
    if collapsed := collapse(logits_BK.argmax(1), validation.y, logits_BK):
        logger.warning("epoch %d, validation: %s", place.epoch, collapsed)
    line = EpochRecord(
        epoch=place.epoch,
        phase=course.phase.name,
        train_loss=place.loss_sum / place.applied if place.applied else None,
        validation_loss=validation_loss if math.isfinite(validation_loss) else None,
        validation_skill=skill if math.isfinite(skill) else None,
        steps=place.batches,
        refused=place.refused,
        skipped=course.guard.skipped,
        quarantined=len(course.ledger.held()),
        collapsed=collapsed,
        seconds=seconds,
        learning_rate=max(course.optimiser.rates),
    )
    return line, improved


def _go_on(course: Course, progress: TrainingProgress) -> None:
    """To the next epoch, of the next phase if this one is over; that starts from the best weights so far."""
    place, config = course.place, course.phase.config
    place.skipped += course.guard.skipped
    waited = place.epoch - max(place.best_epoch, place.first_epoch - 1)
    over = place.epoch - place.first_epoch + 1 == config.epochs
    if waited >= config.patience and not over:
        over = True
        progress.line(f"{course.phase.name} ends: no better validation loss for {config.patience} epochs")
    place.next_epoch()
    if over:
        place.next_phase()
        course.ledger.next_phase()
        if place.phase == len(course.phases):
            return
        if course.best is not None:
            course.model.load_state_dict(course.best)
        course.enter_phase()
    course.order_epoch()


def _describe(line: EpochRecord, improved: bool) -> str:
    """The epoch on one line of 80 characters."""

    def number(value: float | None, digits: int = 4) -> str:
        return "not finite" if value is None else f"{value:.{digits}f}"

    return (
        f"epoch {line.epoch}: loss {number(line.train_loss)}, validation {number(line.validation_loss)}, "
        f"skill {number(line.validation_skill, 3)}, skipped {line.skipped}, {line.seconds:.0f} s{', best' if improved else ''}"
    )
