"""The training loop: one screen, watched by the guard.

Shapes: B batch, C variables, L steps, F facts, K classes.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from llueve.config import TrainConfig
from llueve.errors import GuardStop
from llueve.model.classifier import TimerXLForClassification
from llueve.model.products import quick_products
from llueve.panel import FloatArray
from llueve.stability.guard import Guard, Reading, collapse
from llueve.stability.incident import random_states
from llueve.stability.step import Batch, loss_and_gradients
from llueve.training.optimiser import Optimiser, build_optimiser
from llueve.training.precision import choose_precision
from llueve.training.progress import TrainingProgress
from llueve.windows import Part, Windows

logger = logging.getLogger(__name__)

PREDICTION_BATCH = 256


@dataclass(frozen=True)
class EpochRecord:
    """One line of `history.jsonl`."""

    epoch: int
    phase: str
    train_loss: float | None
    """Mean loss over the samples of applied steps; None if none was applied."""
    validation_loss: float | None
    """Mean log-loss on validation; None if it was not finite."""
    skipped: int
    steps: int
    refused: int
    """Steps of the epoch that the guard refused."""
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

    def as_dict(self) -> dict[str, Any]:
        """The outcome as `model.json` holds it."""
        return asdict(self)


def train_model(
    model: TimerXLForClassification,
    windows: Windows,
    training: Part,
    validation: Part,
    config: TrainConfig,
    max_skipped: float,
    record: Callable[[EpochRecord], None],
    keep: Callable[..., object],
    console: Console,
) -> Trained:
    """Train until the validation log-loss stops falling, and leave the best weights in `model`.

    Args:
        max_skipped: share of an epoch's samples that the guard may skip.
        record: called after each epoch.
        keep: called with each refused step before anything is changed: `keep_incident` without what it knows of the data.

    Returns:
        What was reached.

    Raises:
        GuardStop: too many samples hold a non-finite input, or were skipped; or no epoch had a finite validation loss.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    optimiser = build_optimiser(model, config)
    steps = math.ceil(len(training) / config.batch_size)
    precision = _precision(model, windows, training, config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser.adamw, _rate_factor(config, steps))
    guard = Guard(max_skipped, len(training), classes=model.num_classes)
    guard.check_inputs(windows.non_finite(training), config.batch_size)
    order = np.random.default_rng(config.seed)
    best: tuple[float, int, dict[str, Tensor]] | None = None
    skipped = 0
    with TrainingProgress(console, config.epochs, steps) as progress:
        for epoch in range(1, config.epochs + 1):
            started = time.perf_counter()
            guard.start_epoch()
            progress.start_epoch(epoch)
            train_loss, rate = _one_epoch(
                model, windows, training, config, precision, order, optimiser, schedule, guard, keep, epoch, progress
            )
            guard.check_weights(dict(model.state_dict()))
            logits_BK = predict_logits(model, windows, validation)
            validation_loss = log_loss(logits_BK, validation.y)
            if collapsed := collapse(logits_BK.argmax(1), validation.y, logits_BK):
                logger.warning("epoch %d, validation: %s", epoch, collapsed)
            skipped += guard.skipped
            line = EpochRecord(
                epoch=epoch,
                phase="training",
                train_loss=train_loss,
                validation_loss=validation_loss if math.isfinite(validation_loss) else None,
                skipped=guard.skipped,
                steps=steps,
                refused=len(guard.reasons),
                collapsed=collapsed,
                seconds=round(time.perf_counter() - started, 3),
                learning_rate=rate,
            )
            record(line)
            # NaN compares false to everything, so the finite check must come first: a NaN is never the best.
            improved = math.isfinite(validation_loss) and (best is None or validation_loss < best[0])
            if improved:
                best = (validation_loss, epoch, {name: value.clone() for name, value in model.state_dict().items()})
            progress.line(_describe(line, config.epochs, improved))
            if epoch - (best[1] if best else 0) >= config.patience:
                progress.line(f"stopped: no better validation loss for {config.patience} epochs")
                break
    if best is None:
        raise GuardStop(
            f"stopped by the guard: after {epoch} epoch(s) the validation loss was never finite, so there is no model to "
            "keep; see history.jsonl, and look at the validation period with `llueve audit`"
        )
    model.load_state_dict(best[2])
    model.to("cpu")
    return Trained(best_epoch=best[1], best_validation_loss=best[0], skipped=skipped)


def _precision(model: TimerXLForClassification, windows: Windows, training: Part, config: TrainConfig) -> torch.dtype:
    """The precision of the training steps, chosen on the first batch and logged."""
    first = as_batch(windows, training[: config.batch_size], _device(model))
    x_BCL, observed_BCL = first.x_BLC.transpose(1, 2), first.observed_BLC.transpose(1, 2)
    choice = choose_precision(config.precision, model.encoder, x_BCL, observed_BCL)
    logger.info("training steps in %s on %s: %s", choice.name, _device(model).type, choice.reason)
    return choice.dtype


def _one_epoch(
    model: TimerXLForClassification,
    windows: Windows,
    training: Part,
    config: TrainConfig,
    precision: torch.dtype,
    order: np.random.Generator,
    optimiser: Optimiser,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    guard: Guard,
    keep: Callable[..., object],
    epoch: int,
    progress: TrainingProgress,
) -> tuple[float | None, float]:
    """One pass over the training windows in random order: mean loss of the applied steps, and the last step's rate."""
    model.train()
    device = _device(model)
    weights = [weight for weight in model.parameters() if weight.numel()]
    total, applied, rate = 0.0, 0, 0.0
    for number, batch in enumerate(batches(training, config.batch_size, order.permutation(len(training))), start=1):
        rate = float(max(schedule.get_last_lr()))
        given = as_batch(windows, batch, device)
        random_state = random_states(device)
        loss = loss_and_gradients(model, given, config, precision)
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm, foreach=True)
        reading = _reading(number, given, loss, norm, optimiser, weights[number % len(weights)])
        fault = guard.refuses(reading)
        if fault is None:
            optimiser.adamw.step()
            schedule.step()
            total, applied = total + reading.loss * len(batch), applied + len(batch)
        else:
            kind, reason = fault
            keep(
                kind=kind,
                reason=reason,
                epoch=epoch,
                step=number,
                loss=reading.loss,
                gradient_norm=reading.gradient_norm,
                rates=reading.rates,
                model=model,
                optimiser=optimiser.adamw,
                batch=given,
                part=batch,
                random_state=random_state,
                precision=precision,
                train=config,
            )
            guard.count(reading, kind, reason)
        progress.step(total / applied if applied else math.nan, rate, guard.skipped)
    return total / applied if applied else None, rate


def _reading(number: int, batch: Batch, loss: Tensor, norm: Tensor, optimiser: Optimiser, weight: Tensor) -> Reading:
    """Everything that the guard judges a step by, in one read from the device."""
    seen = torch.cat((torch.stack((loss, norm, *torch.aminmax(weight.detach()))), optimiser.extremes())).tolist()
    reading = Reading(
        step=number,
        samples=len(batch),
        loss=seen[0],
        gradient_norm=seen[1],
        weights=(seen[2], seen[3]),
        moments=(seen[4], seen[5], seen[6], seen[7]),
        rates=tuple(optimiser.rates),
    )
    if all(map(math.isfinite, seen)):
        return reading
    return replace(reading, non_finite_inputs=int((~batch.x_BLC.isfinite().flatten(1).all(1)).sum()))


@quick_products()
def predict_logits(model: TimerXLForClassification, windows: Windows, part: Part) -> FloatArray:
    """Logits (n, K) of every window of `part`, in evaluation mode and float32."""
    model.eval()
    device = _device(model)
    with torch.inference_mode():
        rows = [
            model(each.x_BLC, each.observed_BLC, each.facts_BF).cpu().numpy()
            for each in (as_batch(windows, batch, device) for batch in batches(part, PREDICTION_BATCH))
        ]
    return np.concatenate(rows)


def probabilities(logits_BK: FloatArray) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Softmax of logits in float64, (n, K)."""
    return torch.from_numpy(logits_BK).double().softmax(-1).numpy()


def log_loss(logits_BK: FloatArray, y_B: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """Mean cross-entropy of the classes, in float64; non-finite if any logit is."""
    return float(F.cross_entropy(torch.from_numpy(logits_BK).double(), torch.from_numpy(y_B)))


def batches(part: Part, size: int, order: np.ndarray[Any, np.dtype[np.int64]] | None = None) -> Iterator[Part]:
    """The part in batches, in the given order or its own."""
    for start in range(0, len(part), size):
        yield part[order[start : start + size]] if order is not None else part[start : start + size]


def as_batch(windows: Windows, part: Part, device: torch.device) -> Batch:
    """The windows of `part` as the model takes them."""
    values_BCL, observed_BCL, facts_BF = (torch.from_numpy(np.ascontiguousarray(each)) for each in windows.batch(part))
    y_B = torch.from_numpy(part.y)
    return Batch(values_BCL.transpose(1, 2), observed_BCL.transpose(1, 2), facts_BF, y_B).to(device)


def _device(model: TimerXLForClassification) -> torch.device:
    return model.encoder.forecasting.weight.device


def _rate_factor(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Linear warm-up, then a cosine to zero over the planned epochs, or a constant."""
    total = steps_per_epoch * config.epochs

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        return warm if config.schedule == "constant" else warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))

    return factor


def _describe(line: EpochRecord, epochs: int, improved: bool) -> str:
    """The epoch on one line of 80 characters."""

    def number(value: float | None) -> str:
        return "not finite" if value is None else f"{value:.4f}"

    return (
        f"epoch {line.epoch}/{epochs}: training loss {number(line.train_loss)}, validation {number(line.validation_loss)}, "
        f"skipped {line.skipped}, {line.seconds:.0f} s{', best' if improved else ''}"
    )
