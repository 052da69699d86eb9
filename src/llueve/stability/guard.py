"""The guard: what is checked before each optimiser step, and the budget of what may be refused.

A refused step changes nothing: neither weights nor the optimiser's moments nor the schedule see it. Everything that is
checked comes from the device in one read.
"""

import logging
import math
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llueve.errors import GuardStop, listed
from llueve.panel import FloatArray

logger = logging.getLogger(__name__)

MASK_THEM = 'What to do: set windows.missing = "mask", or mend the cells that `llueve audit` names.'

Kind = Literal[
    "processes",
    "learning_rate",
    "weights",
    "moments",
    "average",
    "loss",
    "gradient",
    "gradient_overflow",
    "loss_start",
    "loss_spike",
    "gradient_spike",
]

WATCHED = 256
"""Accepted steps that tell what is usual."""
ENOUGH = 32
"""Fewer accepted steps tell nothing yet."""
SPREADS = 20.0
"""Robust standard deviations of the logarithm beyond which a number is a spike."""
LEAST_RATIO = 1000.0
"""A spike is at least so many times the median."""
SPIKE_LOSS = 10.0
"""A spiking loss is at least so many times that of a forecast without knowledge, ln K."""
START_LOSS = 30.0
"""Before what is usual is known, a loss is absurd from so many times ln K on."""
LARGEST_NORM = 1e18
"""The square of a larger gradient, after clipping, does not fit into the second moment."""
LARGEST_WEIGHT = 1e6
"""No trained weight is beyond it, but one with a flipped bit may be."""
ROUNDING = 1.001
"""By how much a number may be beyond a bound that it keeps but for rounding."""
IDLE_STEPS = 100
"""Accepted steps in a row without any gradient after which training is called dead."""
NO_LOSS = 1e-6
"""Up to so much a gradient of zero is right: there is nothing to learn from samples that are told apart to the last bit."""


@dataclass(frozen=True)
class Reading:
    """What one step shows before it is applied."""

    step: int
    samples: int
    loss: float
    gradient_norm: float
    """Before clipping."""
    moments: tuple[float, float, float, float]
    """Least and largest first moment, least and largest second moment."""
    rates: tuple[float, ...]
    unsound_weights: tuple[str, ...] = ()
    """Names of weights and buffers as `unsound_weights` finds them."""
    average: tuple[float, float] = (0.0, 0.0)
    """Least and largest number of the weights' moving average, if there is one."""
    clip_norm: float = math.inf
    """What the gradient is clipped at before it is applied."""
    unlike: tuple[int, ...] = ()
    """Processes of the training whose state is not that of process 0."""
    highest_rates: tuple[float, ...] = ()
    """Learning rate of each group where the schedule is 1; empty if that is not known."""
    non_finite_inputs: int = 0
    """Samples of the batch that hold a non-finite input; counted only when something is wrong."""


@dataclass
class Usual:
    """Median and spread of the logarithms of a positive number over accepted steps: nothing else ever enters."""

    values: deque[float] = field(default_factory=lambda: deque(maxlen=WATCHED))

    def accept(self, value: float) -> None:
        """Remember a finite, positive number of an accepted step."""
        if value > 0:
            self.values.append(math.log(value))

    @property
    def median(self) -> float | None:
        """What is usual; None while too few steps were accepted to tell."""
        return math.exp(float(np.median(self.values))) if len(self.values) >= ENOUGH else None

    def is_spike(self, value: float) -> bool:
        """Whether a finite number is far above what is usual."""
        if len(self.values) < ENOUGH or value <= 0:
            return False
        if math.log(value) - min(self.values) <= math.log(LEAST_RATIO):
            return False  # not even far above the least: the median need not be taken
        median = float(np.median(self.values))
        spread = 1.4826 * float(np.median(np.abs(np.array(self.values) - median)))
        return math.log(value) - median > max(SPREADS * spread, math.log(LEAST_RATIO))


@dataclass
class Guard:
    """Judges each step, counts the samples of refused ones an epoch at a time, and ends the run when they are too many."""

    max_skipped: float
    """Share of an epoch's samples that may be skipped, 0…1."""
    epoch_samples: int
    classes: int = 2
    largest_clip: float = math.inf
    """Largest norm that any gradient of the training is clipped at: no sound moment is beyond it, nor a second moment beyond
    its square."""
    skipped: int = 0
    """Samples skipped in the current epoch."""
    reasons: list[str] = field(default_factory=list)
    usual_loss: Usual = field(default_factory=Usual)
    usual_norm: Usual = field(default_factory=Usual)
    idle: int = 0
    """Accepted steps in a row whose gradient was nil."""
    accepted: int = 0
    """Steps, those with a loss of exactly zero too."""

    @property
    def samples_left(self) -> int:
        """Windows that may be left out for good."""
        return int(self.max_skipped * self.epoch_samples)

    def check_inputs(self, non_finite: int, batch_size: int) -> None:
        """Stop before the first step when the inputs alone already cost more than may be skipped.

        A batch is lost with any bad sample in it, so of windows with a bad share p a share 1 − (1 − p)^batch is lost.

        Args:
            non_finite: training windows that hold a non-finite input.
            batch_size: windows in a batch; 1 where single windows are left out.

        Raises:
            GuardStop: more than `max_skipped` of the samples would be skipped.
        """
        share = non_finite / self.epoch_samples
        lost = 1 - (1 - share) ** batch_size
        if lost > self.max_skipped:
            batches = (
                f" In random batches of {batch_size} that would cost {lost:.1%} of the samples;"
                if batch_size > 1
                else ""
            )
            raise GuardStop(
                f"stopped by the guard before the first step: {non_finite} of {self.epoch_samples} training samples hold a "
                f"non-finite value ({share:.2%}).{batches} guard.max_skipped = {self.max_skipped:.2%}. No model was written. "
                f"{MASK_THEM}"
            )

    def start_epoch(self) -> None:
        """Forget the last epoch's count: the budget is for each epoch."""
        self.skipped = 0
        self.reasons.clear()

    def check_weights(self, model: nn.Module) -> None:
        """Stop when a weight or buffer is not finite, or absurd: nothing that is computed with it may be reported.

        Raises:
            GuardStop: one is; the message names it.
        """
        if wrong := unsound_weights(model):
            raise GuardStop(
                f"stopped by the guard: {listed(wrong)} hold(s) numbers that are not finite, or beyond {LARGEST_WEIGHT:g}, "
                "though every step was sound: damaged memory, or something else than the optimiser wrote there. No model was "
                "written. What to do: train again; if it comes back, look at the machine"
            )

    def as_dict(self) -> dict[str, Any]:
        """What it has seen, as JSON holds it."""
        return {
            "skipped": self.skipped,
            "reasons": list(self.reasons),
            "usual_loss": list(self.usual_loss.values),
            "usual_norm": list(self.usual_norm.values),
            "idle": self.idle,
            "accepted": self.accepted,
        }

    def load(self, seen: Mapping[str, Any]) -> None:
        """See again what `as_dict` told."""
        self.skipped, self.idle, self.reasons = seen["skipped"], seen["idle"], list(seen["reasons"])
        self.accepted = seen["accepted"]
        for usual, values in ((self.usual_loss, seen["usual_loss"]), (self.usual_norm, seen["usual_norm"])):
            usual.values.clear()
            usual.values.extend(values)

    def refuses(self, reading: Reading) -> tuple[Kind, str] | None:
        """Why the step must not be applied, as a code and in words; None if it may be.

        Raises:
            GuardStop: for a hundred accepted steps nothing has moved.
        """
        found = self._fault(reading)
        if found is None:
            self.accepted += 1
            self.usual_loss.accept(reading.loss)
            self.usual_norm.accept(reading.gradient_norm)
            self._watch_life(reading)
            return None
        kind, what = found
        return (
            kind,
            f"step {reading.step}: {what}; {reading.non_finite_inputs} of {reading.samples} samples hold a non-finite input",
        )

    def is_sound(self, reading: Reading) -> bool:
        """Whether nothing is wrong with a step; it is not remembered."""
        return self._fault(reading) is None

    def count(self, reading: Reading, kind: Kind, reason: str, cause: str = "") -> None:
        """Enter a refused step into the budget.

        Args:
            cause: what was found out about it, in a sentence.

        Raises:
            GuardStop: more than `max_skipped` of the epoch's samples have been refused.
        """
        self.skipped += reading.samples
        self.reasons.append(reason)
        logger.warning("%s; the step was not applied", reason)
        if self.skipped > self.samples_left:
            self._stop(kind, reading.non_finite_inputs, cause)

    def _fault(self, reading: Reading) -> tuple[Kind, str] | None:
        """The first thing that is wrong, from the numbers that all others rest on to those that rest on them."""
        if reading.unlike:
            return "processes", f"the state of process {listed(reading.unlike)} is not that of process 0"
        if not all(math.isfinite(rate) and rate >= 0 for rate in reading.rates):
            return "learning_rate", f"learning rate {', '.join(f'{rate:g}' for rate in reading.rates)}"
        if any(rate > most * ROUNDING for rate, most in zip(reading.rates, reading.highest_rates, strict=False)):
            return (
                "learning_rate",
                f"learning rate {', '.join(f'{rate:g}' for rate in reading.rates)}, where the schedule has at most "
                f"{', '.join(f'{rate:g}' for rate in reading.highest_rates)}",
            )
        if reading.unsound_weights:
            return (
                "weights",
                f"{listed(reading.unsound_weights)} hold(s) numbers that are not finite, or beyond {LARGEST_WEIGHT:g}",
            )
        least, largest, least_second, largest_second = reading.moments
        if not all(map(math.isfinite, reading.moments)):
            return (
                "moments",
                f"optimiser moments from {least:g} to {largest:g} and {least_second:g} to {largest_second:g}",
            )
        if least_second < 0:
            return "moments", f"a second moment of {least_second:g}, which is a mean of squares"
        most = max(-least, largest, math.sqrt(largest_second))
        if most > self.largest_clip * ROUNDING:
            return (
                "moments",
                f"optimiser moments of gradients up to {most:g}, which are clipped at {self.largest_clip:g}",
            )
        if not all(map(math.isfinite, reading.average)):
            return "average", "the moving average of the weights holds numbers that are not finite"
        if max(map(abs, reading.average)) > LARGEST_WEIGHT:
            return (
                "average",
                f"the moving average of the weights holds numbers up to {max(map(abs, reading.average)):g}",
            )
        if not math.isfinite(reading.loss):
            return "loss", f"loss {reading.loss:g}"
        if not math.isfinite(reading.gradient_norm):
            return "gradient", f"gradient norm {reading.gradient_norm:g}"
        if min(reading.gradient_norm, reading.clip_norm) > LARGEST_NORM:
            return (
                "gradient_overflow",
                f"gradient norm {reading.gradient_norm:g}, whose square does not fit into float32",
            )
        if self.accepted < ENOUGH and reading.loss > START_LOSS * math.log(self.classes):
            return (
                "loss_start",
                f"loss {reading.loss:g}, where a forecast without knowledge has {math.log(self.classes):.2g}",
            )
        if reading.loss > SPIKE_LOSS * math.log(self.classes) and self.usual_loss.is_spike(reading.loss):
            return "loss_spike", f"loss {reading.loss:g}, far above the usual {self.usual_loss.median:.3g}"
        if self.usual_norm.is_spike(reading.gradient_norm):
            return (
                "gradient_spike",
                f"gradient norm {reading.gradient_norm:g}, far above the usual {self.usual_norm.median:.3g}",
            )
        return None

    def _watch_life(self, reading: Reading) -> None:
        still = reading.gradient_norm == 0 and reading.loss > NO_LOSS
        self.idle = self.idle + 1 if still or max(reading.rates) == 0 else 0
        if self.idle >= IDLE_STEPS:
            why = "every learning rate is 0" if max(reading.rates) == 0 else "the gradient is exactly 0"
            raise GuardStop(
                f"stopped by the guard: {why} for {self.idle} steps in a row, so nothing is learnt. No model was written. "
                "What to do: raise the learning rates, or look for a layer that gives the same for every input"
            )

    def _stop(self, kind: Kind, non_finite_inputs: int, cause: str) -> None:
        mends = {
            "weights": "What to do: train again; if it comes back, look at the checkpoint and at the machine's memory",
            "moments": "What to do: train again; if it comes back, look at the machine's memory",
            "learning_rate": "What to do: correct train.encoder_learning_rate, train.head_learning_rate and the schedule",
        }
        mend = mends.get(
            kind,
            MASK_THEM
            if non_finite_inputs
            else "What to do: inputs are finite, so lower train.encoder_learning_rate and train.head_learning_rate",
        )
        raise GuardStop(
            f"stopped by the guard: {self.skipped} of {self.epoch_samples} samples of this epoch were skipped for what was "
            f"wrong with their steps, more than guard.max_skipped = {self.max_skipped:.2%} allows. "
            f"{'; '.join(self.reasons[-3:])}. No model was written. {cause or mend}"
        )


def beyond(bounded: Mapping[str, tuple[Tensor, float]]) -> list[str]:
    """Names of the tensors that hold a number which is not finite, or larger than its bound; one read from the device."""
    floating = {name: each for name, each in bounded.items() if each[0].is_floating_point() and each[0].numel()}
    if not floating:
        return []
    extremes = [torch.stack(torch.aminmax(tensor.detach())).abs().max().double() for tensor, _ in floating.values()]
    largest = torch.stack(extremes).tolist()
    # A NaN is not at most anything.
    return [name for (name, (_, bound)), most in zip(floating.items(), largest, strict=True) if not most <= bound]


def unsound_weights(model: nn.Module) -> list[str]:
    """Names of the weights and buffers that are not finite, or no weights that a training could have led to."""
    weights = {name: (each, LARGEST_WEIGHT) for name, each in model.named_parameters()}
    return beyond({**weights, **{name: (each, sys.float_info.max) for name, each in model.named_buffers()}})


def collapse(predicted_B: NDArray[np.int64], observed_B: NDArray[np.int64], logits_BK: FloatArray) -> str | None:
    """What is wrong with forecasts that no longer tell anything apart, in words; None if they do.

    Args:
        predicted_B, observed_B: class indices.
        logits_BK: what the classes were chosen by.
    """
    if len(np.unique(observed_B)) < 2 or len(observed_B) < ENOUGH:
        return None
    if np.ptp(logits_BK, axis=0).max() <= 1e-6 * max(1.0, float(np.abs(logits_BK).max())):
        return "the logits are the same for every window"
    if len(np.unique(predicted_B)) == 1:
        share = float((observed_B == predicted_B[0]).mean())
        return f"every window is called class {int(predicted_B[0])}, so the accuracy is just its share, {share:.2%}"
    return None
