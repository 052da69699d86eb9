"""Check each training step before it is applied, and limit how many samples may be skipped.

A refused step changes nothing: not the weights, not the optimiser's moments, not the schedule. All checked numbers come
from the device in one read.
"""

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llueve.errors import GuardStop, listed
from llueve.panel import FloatArray
from llueve.stability.reading import Fault, FaultKind, Reading
from llueve.stability.usual import ENOUGH, Usual

logger = logging.getLogger(__name__)

TEST_MEMORY = "What to do: train again; if it happens again, test the machine's memory"
MASK_THEM = 'What to do: set windows.missing = "mask", or correct the cells that `llueve audit` names.'
EXPLAIN = "What to do: `llueve incident explain RUN` finds the cause of the refused steps by experiment"
ADVICE = {
    FaultKind.WEIGHTS: TEST_MEMORY,
    FaultKind.MOMENTS: TEST_MEMORY,
    FaultKind.MEMORY: TEST_MEMORY,
    FaultKind.AVERAGE: TEST_MEMORY,
    FaultKind.LEARNING_RATE: TEST_MEMORY,
}
SPIKE_LOSS = 10.0
"""A loss spike is at least this many times ln K, the loss of a forecast without knowledge."""
START_LOSS = 30.0
"""In the first steps a loss of this many times ln K or more is a fault."""
LARGEST_NORM = 1e18
"""The square of a larger gradient, after clipping, overflows the second moment."""
LARGEST_WEIGHT = 1e6
"""No trained weight is larger; a weight with a flipped bit may be."""
UNSOUND = f"hold(s) numbers that are not finite or larger than {LARGEST_WEIGHT:g}"
CHANGED = "changed between two steps, although only an applied step changes them"
ROUNDING = 1.001
"""Factor by which rounding may exceed a bound."""
IDLE_STEPS = 100
"""Accepted steps in a row with a zero gradient after which training is dead."""
NO_LOSS = 1e-6
"""Below this loss a zero gradient is expected."""


@dataclass
class Guard:
    """Judge each step, count the skipped samples of each epoch, and stop the run if they are too many."""

    max_skipped: float
    """Share of an epoch's samples that may be skipped, 0…1."""
    epoch_samples: int
    classes: int = 2
    largest_clip: float = math.inf
    """Largest clipping norm of the training. No sound first moment exceeds it, no second moment exceeds its square."""
    skipped: int = 0
    """Samples skipped in the current epoch."""
    reasons: list[str] = field(default_factory=list)
    usual_loss: Usual = field(default_factory=Usual)
    usual_norm: Usual = field(default_factory=Usual)
    idle: int = 0
    """Accepted steps in a row with a zero gradient or zero rates."""
    accepted: int = 0
    """Accepted steps of the run."""

    @property
    def samples_left(self) -> int:
        """Samples of one epoch that may be skipped or quarantined in all."""
        return int(self.max_skipped * self.epoch_samples)

    def check_inputs(self, non_finite: int, batch_size: int) -> None:
        """Stop before the first step if the inputs alone would cost too many samples.

        One bad sample costs its whole batch. With a share p of bad windows, a share 1 − (1 − p)^batch_size is lost; the batch
        size is 1 if single windows are quarantined.

        Raises:
            GuardStop: more than `max_skipped` of the samples would be skipped.
        """
        share = non_finite / self.epoch_samples
        lost = 1 - (1 - share) ** batch_size
        if lost > self.max_skipped:
            cost = f" In random batches of {batch_size} that would cost {lost:.1%} of the samples;"
            batches = cost if batch_size > 1 else ""
            raise GuardStop(
                f"stopped by the guard before the first step: {non_finite} of {self.epoch_samples} training samples hold a "
                f"non-finite value ({share:.2%}).{batches} guard.max_skipped = {self.max_skipped:.2%}. No model was written. "
                f"{MASK_THEM}"
            )

    def start_epoch(self) -> None:
        """Reset the count of skipped samples."""
        self.skipped = 0
        self.reasons.clear()

    def check_weights(self, model: nn.Module, changed: Sequence[str] = ()) -> None:
        """Raise a `GuardStop` if weights or buffers are not finite or absurdly large, or if stored numbers have changed.

        Args:
            changed: parts of the stored numbers whose bits changed without a step.
        """
        wrong = unsound_weights(model)
        if wrong or changed:
            found = (
                f"{listed(wrong)} {UNSOUND}, although every step was sound" if wrong else f"{listed(changed)} {CHANGED}"
            )
            raise GuardStop(
                f"stopped by the guard: {found}. The memory is damaged, or something other than the optimiser changed them. "
                f"No model was written. {TEST_MEMORY}"
            )

    def as_dict(self) -> dict[str, Any]:
        """The record of the steps so far, for JSON."""
        usual = {"usual_loss": list(self.usual_loss.values), "usual_norm": list(self.usual_norm.values)}
        skipped = {"skipped": self.skipped, "reasons": list(self.reasons)}
        return {**skipped, **usual, "idle": self.idle, "accepted": self.accepted}

    def load(self, record: Mapping[str, Any]) -> None:
        """Restore the record that `as_dict` returned."""
        self.skipped, self.idle, self.reasons = record["skipped"], record["idle"], list(record["reasons"])
        self.accepted = record["accepted"]
        self.usual_loss, self.usual_norm = Usual.of(record["usual_loss"]), Usual.of(record["usual_norm"])

    def refuses(self, reading: Reading) -> Fault | None:
        """The fault for which the step must not be applied; None if it may be applied.

        Raises:
            GuardStop: a hundred accepted steps in a row changed nothing.
        """
        fault = self._fault(reading)
        if fault is not None:
            inputs = f"{reading.non_finite_inputs} of {reading.samples} samples hold a non-finite input"
            return fault._replace(reason=f"step {reading.step}: {fault.reason}; {inputs}")
        self.accepted += 1
        self.usual_loss.accept(reading.loss)
        self.usual_norm.accept(reading.gradient_norm)
        self._stop_if_dead(reading)
        return None

    def is_sound(self, reading: Reading) -> bool:
        """True if nothing is wrong with a step, which is not recorded."""
        return self._fault(reading) is None

    def count(self, reading: Reading, kind: FaultKind, reason: str, cause: str = "") -> None:
        """Count the samples of a skipped step; `cause` is one sentence about the cause, if it was found.

        Raises:
            GuardStop: more than `max_skipped` of the epoch's samples are skipped.
        """
        self.skipped += reading.samples
        self.reasons.append(reason)
        logger.warning("%s; the step was not applied", reason)
        if self.skipped > self.samples_left:
            advice = ADVICE.get(kind, EXPLAIN)
            raise GuardStop(
                f"stopped by the guard: {self.skipped} of {self.epoch_samples} samples of this epoch were skipped because their "
                f"steps were refused, more than guard.max_skipped = {self.max_skipped:.2%} allows. "
                f"{'; '.join(self.reasons[-3:])}. No model was written. {cause or advice}"
            )

    def _fault(self, reading: Reading) -> Fault | None:
        """The first fault: numbers that others depend on are checked before those others."""
        if reading.unlike:
            return Fault(FaultKind.PROCESSES, f"the state of process {listed(reading.unlike)} is not that of process 0")
        return self._state_fault(reading) or self._step_fault(reading)

    def _state_fault(self, reading: Reading) -> Fault | None:
        """A fault in rates, weights, moments or average, which exist before the step."""
        rates = ", ".join(f"{rate:g}" for rate in reading.rates)
        if not all(math.isfinite(rate) and rate >= 0 for rate in reading.rates):
            return Fault(FaultKind.LEARNING_RATE, f"learning rate {rates}")
        pairs = zip(reading.rates, reading.planned_rates, strict=False)
        if any(not math.isclose(rate, plan, rel_tol=ROUNDING - 1) for rate, plan in pairs):
            planned = ", ".join(f"{rate:g}" for rate in reading.planned_rates)
            return Fault(FaultKind.LEARNING_RATE, f"learning rate {rates}; the plan of this step has {planned}")
        if reading.unsound_weights:
            return Fault(FaultKind.WEIGHTS, f"{listed(reading.unsound_weights)} {UNSOUND}")
        least, largest, least_second, largest_second = reading.moments
        if not all(map(math.isfinite, reading.moments)):
            ranges = f"{least:g} to {largest:g} and {least_second:g} to {largest_second:g}"
            return Fault(FaultKind.MOMENTS, f"optimiser moments from {ranges}")
        if least_second < 0:
            return Fault(FaultKind.MOMENTS, f"a second moment of {least_second:g}; a mean of squares is not negative")
        most = max(-least, largest, math.sqrt(largest_second))
        if most > self.largest_clip * ROUNDING:
            clipped = f"gradients are clipped at {self.largest_clip:g}"
            return Fault(FaultKind.MOMENTS, f"optimiser moments of gradients up to {most:g}; {clipped}")
        if not all(map(math.isfinite, reading.average)):
            return Fault(FaultKind.AVERAGE, "the moving average of the weights holds numbers that are not finite")
        if (most := max(map(abs, reading.average))) > LARGEST_WEIGHT:
            return Fault(FaultKind.AVERAGE, f"the moving average of the weights holds numbers up to {most:g}")
        if reading.changed:
            return Fault(FaultKind.MEMORY, f"bits of {listed(reading.changed)} {CHANGED}")
        return None

    def _step_fault(self, reading: Reading) -> Fault | None:
        """A loss or gradient that is not finite, too large to apply, or far above its usual size."""
        loss, norm = f"loss {reading.loss:g}", f"gradient norm {reading.gradient_norm:g}"
        if not math.isfinite(reading.loss):
            return Fault(FaultKind.LOSS, loss)
        if not math.isfinite(reading.gradient_norm):
            return Fault(FaultKind.GRADIENT, norm)
        if min(reading.gradient_norm, reading.clip_norm) > LARGEST_NORM:
            return Fault(FaultKind.GRADIENT_OVERFLOW, f"{norm}; its square overflows float32")
        no_knowledge = math.log(self.classes)
        if self.accepted < ENOUGH and reading.loss > START_LOSS * no_knowledge:
            return Fault(FaultKind.LOSS_START, f"{loss}; a forecast without knowledge has {no_knowledge:.2g}")
        if reading.loss > SPIKE_LOSS * no_knowledge and self.usual_loss.is_spike(reading.loss):
            return Fault(FaultKind.LOSS_SPIKE, f"{loss}, far above the usual {self.usual_loss.median:.3g}")
        if self.usual_norm.is_spike(reading.gradient_norm):
            return Fault(FaultKind.GRADIENT_SPIKE, f"{norm}, far above the usual {self.usual_norm.median:.3g}")
        return None

    def _stop_if_dead(self, reading: Reading) -> None:
        zero_gradient = reading.gradient_norm == 0 and reading.loss > NO_LOSS
        self.idle = self.idle + 1 if zero_gradient or max(reading.rates) == 0 else 0
        if self.idle >= IDLE_STEPS:
            why, advice = "the gradient is exactly 0", "look for a layer whose output is the same for every input"
            if max(reading.rates) == 0:
                why, advice = "every learning rate is 0", "raise the learning rates"
            raise GuardStop(
                f"stopped by the guard: {why} for {self.idle} steps in a row, so the model learns nothing. No model was "
                f"written. What to do: {advice}"
            )


def beyond(bounded: Mapping[str, tuple[Tensor, float]]) -> list[str]:
    """Names of the tensors that hold a number which is not finite or larger than its bound, with one read from the device.

    Tensors of integers are left out.
    """
    floating = {name: each for name, each in bounded.items() if each[0].is_floating_point() and each[0].numel()}
    if not floating:
        return []
    extremes = [torch.stack(torch.aminmax(tensor.detach())).abs().max().double() for tensor, _ in floating.values()]
    largest = torch.stack(extremes).tolist()
    # `not <=` also catches NaN.
    return [name for (name, (_, bound)), most in zip(floating.items(), largest, strict=True) if not most <= bound]


def unsound_weights(model: nn.Module) -> list[str]:
    """Names of weights that are not finite or above `LARGEST_WEIGHT`, and of buffers that are not finite."""
    weights = {name: (each, LARGEST_WEIGHT) for name, each in model.named_parameters()}
    return beyond({**weights, **{name: (each, sys.float_info.max) for name, each in model.named_buffers()}})


def collapse(predicted_B: NDArray[np.int64], observed_B: NDArray[np.int64], logits_BK: FloatArray) -> str | None:
    """One sentence about forecasts (class indices and logits) that no longer distinguish anything; None if they do."""
    if len(np.unique(observed_B)) < 2 or len(observed_B) < ENOUGH:
        return None
    if np.ptp(logits_BK, axis=0).max() <= 1e-6 * max(1.0, float(np.abs(logits_BK).max())):
        return "the logits are the same for every window"
    if len(np.unique(predicted_B)) == 1:
        share = float((observed_B == predicted_B[0]).mean())
        return f"every window is called class {int(predicted_B[0])}, so the accuracy is just its share, {share:.2%}"
    return None
