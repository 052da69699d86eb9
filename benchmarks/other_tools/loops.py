"""A small training of the fault bench as other tools run it: the parts that all share, and loops written around PyTorch.

Model, data, order of the windows, rates and moving average are those of `faults.trial.Trial`, in one phase.
"""

import logging
import math
import warnings
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.faults.scene import Scene
from benchmarks.faults.trial import Trial
from llueve.model.batch import Batch
from llueve.samples.split import Part
from llueve.step import gradients as step_module
from llueve.step.predict import as_batch, predict_logits
from llueve.training.average import Average
from llueve.training.batches.order import epoch_order
from llueve.training.phases import parameter_groups, plan
from llueve.training.validation import log_loss

EPOCHS = 3
PHASES = [{"name": "all", "epochs": EPOCHS}]
CLIP = 1.0


class ToolRun:
    """A training of another tool, step by step.

    Args:
        trial: model and data.
        plant: does the damage just before step `at`; None for a clean run.
        watched: numbers of the steps, from 1, around which weights and moments are kept.
    """

    def __init__(self, trial: Trial, plant: Callable[["ToolRun"], Any] | None, at: int, watched: set[int]) -> None:
        self.trial, self.plant, self.at, self.watched = trial, plant, at, watched
        self.model, self.steps = trial.model, trial.steps
        self.precision = getattr(torch, trial.precision)
        self.adamw = _adamw(trial)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adamw, lambda step: min(1.0, (step + 1) / 5))
        self.average = Average(self.model, 0.9)
        optimiser = SimpleNamespace(adamw=self.adamw)
        self.state = SimpleNamespace(model=self.model, optimiser=optimiser, average=self.average)
        """The parts that a scene looks for in a training."""
        self.number, self.rows = 0, trial.training[:0]
        self.before: dict[int, dict[str, Tensor]] = {}
        self.after: dict[int, dict[str, Tensor]] = {}
        self.messages: list[tuple[int, str]] = []
        """Number of the step, and the words that a user reads at it."""
        self.validation_losses: list[float] = []
        torch.manual_seed(trial.seed + 7)

    def begin(self) -> Batch:
        """Plant the fault if it is due, and return the batch of the next step."""
        self.number += 1
        epoch, within = divmod(self.number - 1, self.steps)
        order = epoch_order(self.trial.training, self.trial.seed, epoch + 1).windows
        size = self.trial.shape.batch_size
        self.rows = self.trial.training[order[within * size : (within + 1) * size]]
        if self.number == self.at and self.plant is not None:
            self.trial.truth = self.plant(self)
        if self.number in self.watched:
            self.before[self.number] = self.tensors()
        return as_batch(self.trial.windows, self.rows, torch.device("cpu"))

    def loss(self, batch: Batch) -> Tensor:
        """Loss of one batch, in the precision of the training."""
        with self.model.encoder.computing_in(self.precision):
            logits_BK = self.model(batch.x_BLC, batch.observed_BLC, batch.facts_BF)
        return step_module.weighted_mean(step_module.sample_losses(logits_BK, batch.y_B), batch.y_B)

    def end_step(self, applied: bool = True) -> None:
        """End a step after the optimiser, or without it."""
        if applied:
            self.average.update(self.number - 1)
        if self.number in self.watched:
            self.after[self.number] = self.tensors()

    def end_epoch(self) -> float:
        """Validation log-loss of the averaged weights."""
        validation = self.trial.split.validation
        with self.average.in_place():
            logits_BK = predict_logits(self.model, self.trial.windows, validation)
        self.model.train()
        self.validation_losses.append(log_loss(logits_BK, validation.y))
        return self.validation_losses[-1]

    def say(self, words: str) -> None:
        """Note the words that a user reads at this step."""
        self.messages.append((self.number, words))

    @property
    def last_loss(self) -> float:
        """Validation loss after the last epoch; NaN without one, or if a weight is not finite."""
        tensors = [*self.model.state_dict().values(), self.average.block]
        sound = len(self.validation_losses) == EPOCHS and all(bool(each.isfinite().all()) for each in tensors)
        return self.validation_losses[-1] if sound else math.nan

    def tensors(self) -> dict[str, Tensor]:
        """Copies of weights, buffers and moments, by name."""
        found = {name: each.detach().clone() for name, each in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for which in ("exp_avg", "exp_avg_sq"):
                found[f"{name}.{which}"] = self.adamw.state[parameter][which].clone()
        return found


def _adamw(trial: Trial) -> torch.optim.AdamW:
    """AdamW whose moments exist from the beginning, so they can be damaged before the first step."""
    adamw = torch.optim.AdamW(parameter_groups(trial.model, plan(trial.config.train)[0]))
    for group in adamw.param_groups:
        for each in group["params"]:
            zero = {which: torch.zeros_like(each) for which in ("exp_avg", "exp_avg_sq")}
            adamw.state[each] = {"step": torch.tensor(0.0), **zero}
    return adamw


class ToolScene(Scene):
    """The moment before a step of another tool's training; damage to gradients and rates takes other ways here."""

    trainer: ToolRun

    @property
    def rows(self) -> Part:  # type: ignore[override]
        """The windows of the next step."""
        return self.trainer.rows

    def next_gradients(self, change: Callable[[Tensor], object]) -> None:
        """Change the next step's gradients, parameter by parameter, as the backward pass computes them."""
        for each in self.model.parameters():
            handles: list[Any] = []

            def spoil(parameter: Tensor, handles: list[Any] = handles) -> None:
                handles.pop().remove()
                change(parameter)

            handles.append(each.register_post_accumulate_grad_hook(spoil))

    def next_loss(self, value: float) -> None:
        """Multiply the next step's loss by a value, which reaches the backward pass."""
        self.change_next(step_module, "weighted_mean", lambda loss: loss * value)

    def next_rate(self, factor: float) -> None:
        """Multiply the learning rate of one group for the next step."""
        self.group()["lr"] *= factor

    def scale_rates(self, factor: float) -> None:
        """Multiply the learning rates of all later steps."""
        self.trainer.schedule.base_lrs = [each * factor for each in self.trainer.schedule.base_lrs]
        for group in self.adamw.param_groups:
            group["lr"] *= factor


Tool = Callable[[ToolRun], None]


def conduct(tool: Tool, run: ToolRun) -> None:
    """Run a training to its end, and note all messages on the way."""

    def listen(record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or "not finite" in record.getMessage():
            run.say(record.getMessage())

    listener = logging.Handler()
    listener.emit = listen  # type: ignore[method-assign]
    names = ("pytorch_lightning", "lightning.pytorch", "transformers", "accelerate", "torch")
    loggers = [logging.getLogger(name) for name in names]
    usual = [each.handlers for each in loggers]
    for each in loggers:
        each.handlers = [listener]
    with warnings.catch_warnings(), run.trial.patches:
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: run.say(str(message))
        try:
            run.model.train()
            tool(run)
        except Exception as error:  # noqa: BLE001 (an exception is a tool's way to report a fault)
            run.say(f"{type(error).__name__}: {error}")
        finally:
            for each, handlers in zip(loggers, usual, strict=True):
                each.handlers = handlers
            torch.autograd.set_detect_anomaly(False)
    if run.number in run.watched and run.number not in run.after:
        run.after[run.number] = run.tensors()


# The loops


def plain(
    run: ToolRun,
    strict: bool = False,
    skip: bool = False,
    anomaly: bool = False,
    change: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> None:
    """AdamW and clipping.

    Args:
        strict: clipping raises if the norm is not finite.
        skip: leave out batches whose loss is not finite, as troubleshooting notes advise.
        anomaly: run under anomaly detection.
        change: applied to the loss.
    """
    torch.autograd.set_detect_anomaly(anomaly)
    for _ in range(EPOCHS):
        for step in range(run.steps):
            batch = run.begin()
            run.adamw.zero_grad(set_to_none=True)
            loss = change(run.loss(batch))
            if skip and not bool(torch.isfinite(loss)):
                run.say(f"skipping batch {step} due to NaN/Inf loss")
                run.end_step(applied=False)
                continue
            loss.backward()
            torch.nn.utils.clip_grad_norm_(run.model.parameters(), CLIP, error_if_nonfinite=strict)
            run.adamw.step()
            run.schedule.step()
            run.end_step()
        run.end_epoch()


def scaler(run: ToolRun) -> None:
    """The gradient scaler of mixed precision, which leaves out steps whose gradients are not finite."""
    scaling = torch.amp.GradScaler("cpu")
    for _ in range(EPOCHS):
        for _ in range(run.steps):
            batch = run.begin()
            run.adamw.zero_grad(set_to_none=True)
            scaling.scale(run.loss(batch)).backward()
            scaling.unscale_(run.adamw)
            torch.nn.utils.clip_grad_norm_(run.model.parameters(), CLIP)
            scaling.step(run.adamw)
            scaling.update()
            run.schedule.step()
            run.end_step()
        run.end_epoch()


LOOPS: dict[str, Tool] = {
    "PyTorch": plain,
    "anomaly detection": partial(plain, anomaly=True),
    "error_if_nonfinite": partial(plain, strict=True),
    "skip": partial(plain, skip=True),
    "nan_to_num": partial(plain, change=lambda loss: torch.nan_to_num(loss, 0.0, 0.0, 0.0)),
    "GradScaler": scaler,
}
