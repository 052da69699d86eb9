"""The training loop: epochs of guarded steps, validation after each, the best weights at the end.

Shapes: B batch, K classes.
"""

import logging
import math
import signal
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass

from llueve.config import GuardConfig, TrainConfig
from llueve.errors import GuardStop, Interrupted, WorkerLost
from llueve.model.classifier import TimerXLForClassification
from llueve.panel import UNKNOWN
from llueve.samples.split import Part
from llueve.samples.windows import WindowSource
from llueve.stability.guard import collapse
from llueve.training.autosave import resume_from, save_after_loss_of_a_process, save_best, save_state, save_state_if_due
from llueve.training.environment import Environment
from llueve.training.epoch_progress import TrainingProgress
from llueve.training.recovery import readmit, recover, repair_weights
from llueve.training.remarks import limited, overfit
from llueve.training.saved_states import SavedState
from llueve.training.trainer import Trainer
from llueve.training.validation import brier_skill, calibrated_loss, log_loss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochRecord:
    """One line of `history.jsonl`."""

    epoch: int
    phase: str
    train_loss: float | None
    """Mean loss over the samples of applied steps that have an outcome; None if no step was applied."""
    validation_loss: float | None
    """Mean log-loss on validation; None if it is not finite."""
    calibrated_loss: float | None
    """The same at the temperature that suits the epoch best: the best epoch has the lowest one. None if it is not finite."""
    validation_skill: float | None
    """Brier skill score on validation against the class shares of training; None if it is not finite."""
    steps: int
    """Batches of the epoch, refused ones included."""
    refused: int
    """Batches that the guard refused."""
    skipped: int
    """Samples in no applied step."""
    quarantined: int
    """Samples that are left out for now."""
    collapsed: str | None
    """One sentence if the validation forecasts no longer distinguish anything; None if they do."""
    overfit: str | None
    """One sentence if the training loss is far below the validation loss; None if it is not."""
    limited: int
    """Cells of the epoch's windows, each once, that are beyond 1,000 training spreads; the model limits them to that."""
    seconds: float
    learning_rate: float
    """Largest rate of the epoch's last step."""


@dataclass(frozen=True)
class Trained:
    """The outcome of a training, as `model.json` holds it."""

    best_epoch: int
    best_validation_loss: float
    best_training_loss: float | None
    """Mean loss over the training steps of the best epoch."""
    overfit: str | None
    """One sentence if that is far below the validation loss; None if it is not."""
    skipped: int
    quarantined: int
    rollbacks: int


def train_model(
    model: TimerXLForClassification,
    windows: WindowSource,
    training: Part,
    validation: Part,
    config: TrainConfig,
    guard: GuardConfig,
    environment: Environment,
    resume: SavedState | None = None,
) -> Trained:
    """Train until the calibrated validation log-loss stops falling, and leave the best weights in the model.

    Args:
        model, windows, training, validation, config, guard, environment: see `Trainer`.
        resume: a saved state to resume from, bit-for-bit identical to an uninterrupted run; process 0 sends it to the others.

    Raises:
        GuardStop: the budgets for refused steps are used up, or no epoch had a finite validation loss.
        Interrupted: a signal came; the state was saved. RunError: a state cannot be written or read.
        WorkerLost: another process is gone; process 0 has saved the state before that step.
    """
    trainer = Trainer(model, windows, training, validation, config, guard, environment)
    state = trainer.state
    is_resumed = trainer.processes.on_first(lambda: resume is not None)
    if environment.forecasts_at_start:
        _validate_start(trainer, not is_resumed)
    if is_resumed:
        resume_from(trainer, resume)
    epochs = sum(phase.config.epochs for phase in state.phases)
    try:
        with TrainingProgress(environment.console, epochs, state.device) as progress:
            while not state.is_over:
                _run_epoch(trainer, progress)
        if state.best is None:
            raise GuardStop(
                f"stopped by the guard: after {state.place.epoch - 1} epoch(s) the validation loss was never finite, so there "
                "is no model to keep; see history.jsonl, and check the validation period with `llueve audit`"
            )
    except GuardStop as stop:
        place, epoch = state.place, state.place.epoch - state.is_over  # after the last epoch it is the next one's place
        record = {"epoch": epoch, "steps": place.batches, "refused": place.refused, "reason": str(stop)}
        environment.record({"event": "stopped", **record})
        raise
    finally:
        trainer.close()
    state.model.load_state_dict(state.best)
    state.model.to("cpu")
    place, ledger = state.place, state.ledger
    trained = place.best_train_loss
    gap = overfit(trained, place.best_loss, config)
    return Trained(place.best_epoch, place.best_loss, trained, gap, place.skipped, len(ledger.held()), ledger.rollbacks)


def _validate_start(trainer: Trainer, record: bool) -> None:
    """Keep the weights at the start as the best so far. A training that resumes starts from the same."""
    logits_BK, y_B = trainer.validation.logits(trainer.state.model), trainer.validation.y
    loss, skill = calibrated_loss(logits_BK, y_B), brier_skill(logits_BK, y_B, trainer.class_share_K)
    if math.isfinite(loss):
        trainer.state.keep_best(loss, 0)
        if record:
            trainer.environment.record(
                {"event": "start", "epoch": 0, "calibrated_loss": loss, "validation_skill": skill}
            )
            logger.info("start: validation %.4f, skill %.3f, from a regression", loss, skill)


def _run_epoch(trainer: Trainer, progress: TrainingProgress) -> None:
    """Pass once over the training windows in random order, then validate."""
    state, batches, started = trainer.state, trainer.batches, time.perf_counter()
    if state.place.position == 0:
        state.guard.start_epoch()
        readmit(trainer)
        state.mark_healthy()
    progress.start_epoch(state.phase.name, state.place.epoch, batches.steps, state.place.batches, batches.batch_size)
    state.model.train()
    while not batches.is_over(state.place.position):
        _run_step(trainer)
        mean = math.nan if state.place.mean_loss is None else state.place.mean_loss
        progress.step(state.place.batches, mean, max(state.optimiser.rates), state.guard.skipped)
        if not batches.is_over(state.place.position):
            _between_steps(trainer)
    if repair_weights(trainer):
        return  # the training is back in the middle of this epoch
    line, improved = _validate(trainer, round(time.perf_counter() - started, 3))
    if repair_weights(trainer):
        return  # damaged while the epoch was validated, so its forecasts may be wrong
    trainer.environment.record(asdict(line))
    progress.line(_describe(line, improved))
    progress.validated(line.validation_skill)
    trainer.next_epoch(_is_phase_over(trainer, progress))
    save_state(trainer)
    _between_steps(trainer)


def _run_step(trainer: Trainer) -> None:
    """Compute one step, and apply it if the guard finds no fault."""
    state, stepper = trainer.state, trainer.stepper
    try:
        attempt = stepper.attempt()
    except WorkerLost:
        save_after_loss_of_a_process(trainer)
        raise
    if attempt is None:
        return
    fault = state.guard.refuses(attempt.reading)
    if fault is None:
        stepper.apply(attempt)
        state.count_loss(int((attempt.rows.y != UNKNOWN).sum()), attempt.reading.loss)
        state.mark_healthy_if_due()
    else:
        state.count_refused()
        recover(trainer, attempt, fault)


def _between_steps(trainer: Trainer) -> None:
    """Save the state if it is time; end if a signal came."""
    number, place = trainer.stepper.signal, trainer.state.place
    if not number:
        save_state_if_due(trainer)
        return
    save_state(trainer)
    saved = "" if trainer.environment.saved_states is None else "; the state was saved: continue with --resume"
    raise Interrupted(
        f"ended by {signal.Signals(number).name} in epoch {place.epoch}, after {place.batches} of its steps{saved}",
        number,
    )


def _validate(trainer: Trainer, seconds: float) -> tuple[EpochRecord, bool]:
    """Validate the epoch; returns its record, and True if it is the best so far."""
    state, validation = trainer.state, trainer.validation
    place, y_B = state.place, validation.y
    with state.average.in_place() if state.average else nullcontext():
        logits_BK = validation.logits(state.model)
        loss = log_loss(logits_BK, y_B)
        skill = brier_skill(logits_BK, y_B, trainer.class_share_K)
        calibrated = calibrated_loss(logits_BK, y_B)
        # NaN compares false to everything, so the finite check must come first: a NaN is never the best.
        improved = math.isfinite(calibrated) and (state.best is None or calibrated < place.best_loss)
        if improved:
            save_best(trainer, calibrated)
    if collapsed := collapse(logits_BK.argmax(1), y_B, logits_BK):
        logger.warning("epoch %d, validation: %s", place.epoch, collapsed)
    gap, far_cells = overfit(place.mean_loss, loss, state.config), trainer.batches.far_cells
    count = int(trainer.processes.gather([float(len(far_cells))]).sum())
    for sentence in (gap, limited(far_cells, count, trainer.environment.names)):
        if sentence:
            logger.warning("epoch %d: %s", place.epoch, sentence)
    return EpochRecord(
        epoch=place.epoch,
        phase=state.phase.name,
        train_loss=place.mean_loss,
        validation_loss=loss if math.isfinite(loss) else None,
        calibrated_loss=calibrated if math.isfinite(calibrated) else None,
        validation_skill=skill if math.isfinite(skill) else None,
        steps=place.batches,
        refused=place.refused,
        skipped=state.guard.skipped,
        quarantined=len(state.ledger.held()),
        collapsed=collapsed,
        overfit=gap,
        limited=count,
        seconds=seconds,
        learning_rate=max(state.optimiser.rates),
    ), improved


def _is_phase_over(trainer: Trainer, progress: TrainingProgress) -> bool:
    """True after the last epoch of a phase, or if its validation loss stopped falling."""
    place, phase = trainer.state.place, trainer.state.phase
    if place.epoch - place.first_epoch + 1 == phase.config.epochs:
        return True
    waited = place.epoch - max(place.best_epoch, place.first_epoch - 1)
    if waited < phase.config.patience:
        return False
    progress.line(f"{phase.name} ends: no better validation loss for {phase.config.patience} epochs")
    return True


def _describe(line: EpochRecord, improved: bool) -> str:
    """The epoch in one line of 80 characters."""

    def number(value: float | None, digits: int = 4) -> str:
        return "not finite" if value is None else f"{value:.{digits}f}"

    return (
        f"epoch {line.epoch}: loss {number(line.train_loss)}, validation {number(line.validation_loss)}, "
        f"skill {number(line.validation_skill, 3)}, skipped {line.skipped}, {line.seconds:.0f} s{', best' if improved else ''}"
    )
