"""One small training as other tools run it: what they share, and the loops that are written by hand around PyTorch.

Model, data, order of the windows, rates and moving average are those of `fault_course.Training`, in one phase. A run looks
enough like llueve's course for the same faults to be planted into it.
"""

import logging
import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from fault_course import Training
from numpy.typing import NDArray
from torch import Tensor

from llueve.forecasting import as_batch, log_loss, predict_logits
from llueve.stability import step as step_module
from llueve.stability.step import Batch
from llueve.training.average import Average
from llueve.training.order import epoch_order
from llueve.training.phases import parameter_groups, plan

EPOCHS = 3
PHASES = [{"name": "all", "epochs": EPOCHS}]
CLIP = 1.0


class Run:
    """A training of another tool, counted step by step.

    Args:
        given: model and data.
        plant: does the damage just before step `at`; None for a clean run.
        watched: numbers of the steps, from 1, around which weights and moments are remembered.
    """

    def __init__(
        self, given: Training, plant: Callable[[Training, "Run"], Any] | None, at: int, watched: set[int]
    ) -> None:
        self.given, self.plant, self.at, self.watched = given, plant, at, watched
        self.model, self.training = given.model, given.training
        self.steps, self.size = given.steps, given.shape.batch_size
        self.precision = getattr(torch, given.precision)
        self.adamw = _adamw(given)
        self.optimiser = SimpleNamespace(adamw=self.adamw)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adamw, lambda step: min(1.0, (step + 1) / 5))
        self.average = Average(self.model, 0.9)
        self.place, self.number = SimpleNamespace(position=0), 0
        self.before: dict[int, dict[str, Tensor]] = {}
        self.after: dict[int, dict[str, Tensor]] = {}
        self.told: list[tuple[int, str]] = []
        """Number of the step and words."""
        self.validation_losses: list[float] = []
        torch.manual_seed(given.seed + 7)

    def begin(self) -> Batch:
        """The batch of the next step, with whatever is planted before it."""
        self.number += 1
        epoch, within = divmod(self.number - 1, self.steps)
        self.order = epoch_order(self.training, self.given.seed, epoch + 1)
        self.place.position = within * self.size
        if self.number == self.at and self.plant is not None:
            self.given.truth = self.plant(self.given, self)
        if self.number in self.watched:
            self.before[self.number] = self.state()
        return as_batch(self.given.windows, self.training[self._draw(self.place.position)[0]], torch.device("cpu"))

    def loss(self, batch: Batch) -> Tensor:
        """Of one batch, in the precision of the training."""
        with self.model.encoder.computing_in(self.precision):
            logits_BK = self.model(batch.x_BLC, batch.observed_BLC, batch.facts_BF)
        return step_module.classification_loss(logits_BK, batch.y_B)

    def end_step(self, applied: bool = True) -> None:
        """After the optimiser, or instead of it."""
        if applied:
            self.average.update()
        if self.number in self.watched:
            self.after[self.number] = self.state()

    def end_epoch(self) -> float:
        """Validation log-loss of the averaged weights."""
        with self.average.in_place():
            logits_BK = predict_logits(self.model, self.given.windows, self.given.split.validation)
        self.model.train()
        self.validation_losses.append(log_loss(logits_BK, self.given.split.validation.y))
        return self.validation_losses[-1]

    def tell(self, words: str) -> None:
        """What a user reads at this step."""
        self.told.append((self.number, words))

    @property
    def is_whole(self) -> bool:
        """Whether all epochs were run."""
        return len(self.validation_losses) == EPOCHS

    @property
    def last_loss(self) -> float:
        """Validation loss at the end; NaN if there is none or a weight is not finite."""
        tensors = [*self.model.state_dict().values(), self.average.block]
        sound = self.is_whole and all(bool(each.isfinite().all()) for each in tensors)
        return self.validation_losses[-1] if sound else math.nan

    def state(self) -> dict[str, Tensor]:
        """Copies of weights, buffers and moments, by name."""
        found = {name: each.detach().clone() for name, each in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for which in ("exp_avg", "exp_avg_sq"):
                found[f"{name}.{which}"] = self.adamw.state[parameter][which].clone()
        return found

    def _draw(self, position: int) -> tuple[NDArray[np.int64], int]:
        return self.order[position : position + self.size], position + self.size


def _adamw(given: Training) -> torch.optim.AdamW:
    """With moments from the beginning, which are zero, so that they too can be damaged before the first step."""
    adamw = torch.optim.AdamW(parameter_groups(given.model, plan(given.config.train)[0]))
    for group in adamw.param_groups:
        for each in group["params"]:
            adamw.state[each] = {
                "step": torch.tensor(0.0),
                "exp_avg": torch.zeros_like(each),
                "exp_avg_sq": torch.zeros_like(each),
            }
    return adamw


Tool = Callable[[Run], None]


def conduct(tool: Tool, run: Run) -> None:
    """Run it to its end, with all that is said on the way."""
    listener = _Listener(run)
    names = ("pytorch_lightning", "lightning.pytorch", "transformers", "accelerate", "torch")
    loggers = [logging.getLogger(name) for name in names]
    usual = [each.handlers for each in loggers]
    for each in loggers:
        each.handlers = [listener]
    with warnings.catch_warnings(), run.given.patches:
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: run.tell(str(message))
        try:
            run.model.train()
            tool(run)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is how the tool tells)
            run.tell(f"{type(error).__name__}: {error}")
        finally:
            for each, handlers in zip(loggers, usual, strict=True):
                each.handlers = handlers
            torch.autograd.set_detect_anomaly(False)
    if run.number in run.watched and run.number not in run.after:
        run.after[run.number] = run.state()


class _Listener(logging.Handler):
    """Warnings that are logged, and that a metric is not finite."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        if record.levelno >= logging.WARNING or "not finite" in record.getMessage():
            self.run.tell(record.getMessage())


# The loops


def plain(run: Run) -> None:
    """AdamW and clipping."""
    _loop(run)


def anomaly(run: Run) -> None:
    """The same under anomaly detection."""
    torch.autograd.set_detect_anomaly(True)
    _loop(run)


def strict_clipping(run: Run) -> None:
    """Clipping that raises if the norm is not finite."""
    _loop(run, strict=True)


def skipping(run: Run) -> None:
    """Without the batches whose loss is not finite, as troubleshooting notes advise."""
    _loop(run, skip=True)


def zeroing(run: Run) -> None:
    """A loss that is not finite is made zero."""
    _loop(run, change=lambda loss: torch.nan_to_num(loss, 0.0, 0.0, 0.0))


def scaler(run: Run) -> None:
    """With the gradient scaler of mixed precision, which leaves out steps whose gradients are not finite."""
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


def _loop(
    run: Run, strict: bool = False, skip: bool = False, change: Callable[[Tensor], Tensor] = lambda loss: loss
) -> None:
    for _ in range(EPOCHS):
        for step in range(run.steps):
            batch = run.begin()
            run.adamw.zero_grad(set_to_none=True)
            loss = change(run.loss(batch))
            if skip and not bool(torch.isfinite(loss)):
                run.tell(f"skipping batch {step} due to NaN/Inf loss")
                run.end_step(applied=False)
                continue
            loss.backward()
            torch.nn.utils.clip_grad_norm_(run.model.parameters(), CLIP, error_if_nonfinite=strict)
            run.adamw.step()
            run.schedule.step()
            run.end_step()
        run.end_epoch()


LOOPS: dict[str, Tool] = {
    "PyTorch": plain,
    "anomaly detection": anomaly,
    "error_if_nonfinite": strict_clipping,
    "skip": skipping,
    "nan_to_num": zeroing,
    "GradScaler": scaler,
}
