"""The guard: finite checks before each optimiser step, with a budget of what may be skipped.

A refused step changes nothing: neither weights nor the optimiser's moments nor the schedule see it.
"""

import logging
import math
from dataclasses import dataclass, field

from llueve.errors import GuardStop

logger = logging.getLogger(__name__)

MASK_THEM = 'What to do: set windows.missing = "mask", or mend the cells that `llueve audit` names.'


@dataclass
class Guard:
    """Counts the samples of refused steps, one epoch at a time, and ends the run when they are too many."""

    max_skipped: float
    """Share of an epoch's samples that may be skipped, 0…1."""
    epoch_samples: int
    skipped: int = 0
    """Samples skipped in the current epoch."""
    reasons: list[str] = field(default_factory=list)

    def check_inputs(self, non_finite: int, batch_size: int) -> None:
        """Stop before the first step when the inputs alone already cost more than may be skipped.

        A batch is lost with any bad sample in it, so of windows with a bad share p a share 1 − (1 − p)^batch is lost.

        Args:
            non_finite: training windows that hold a non-finite input.
            batch_size: windows in a batch.

        Raises:
            GuardStop: more than `max_skipped` of the samples would be skipped.
        """
        share = non_finite / self.epoch_samples
        lost = 1 - (1 - share) ** batch_size
        if lost > self.max_skipped:
            raise GuardStop(
                f"stopped by the guard before the first step: {non_finite} of {self.epoch_samples} training samples hold a "
                f"non-finite value ({share:.2%}). In random batches of {batch_size} that would cost {lost:.1%} of the samples; "
                f"guard.max_skipped = {self.max_skipped:.2%}. No model was written. {MASK_THEM}"
            )

    def start_epoch(self) -> None:
        """Forget the last epoch's count: the budget is for each epoch."""
        self.skipped = 0
        self.reasons.clear()

    def accepts(self, step: int, samples: int, loss: float, gradient_norm: float, non_finite_inputs: int) -> bool:
        """Whether the step may be applied.

        Args:
            step: number of the step, for the message.
            samples: samples in its batch.
            loss, gradient_norm: of the step; either may be non-finite.
            non_finite_inputs: samples of the batch that hold a non-finite input.

        Raises:
            GuardStop: more than `max_skipped` of the epoch's samples have been refused.
        """
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            return True
        self.skipped += samples
        what = f"loss {loss:g}" if not math.isfinite(loss) else f"gradient norm {gradient_norm:g}"
        reason = f"step {step}: {what}; {non_finite_inputs} of {samples} samples hold a non-finite input"
        self.reasons.append(reason)
        logger.warning("%s; the step was not applied", reason)
        if self.skipped > self.max_skipped * self.epoch_samples:
            self._stop(non_finite_inputs)
        return False

    def _stop(self, non_finite_inputs: int) -> None:
        mend = (
            MASK_THEM
            if non_finite_inputs
            else "What to do: inputs are finite, so lower train.encoder_learning_rate and train.head_learning_rate"
        )
        raise GuardStop(
            f"stopped by the guard: {self.skipped} of {self.epoch_samples} samples of this epoch were skipped for a "
            f"non-finite loss or gradient, more than guard.max_skipped = {self.max_skipped:.2%} allows. "
            f"{'; '.join(self.reasons[-3:])}. No model was written. {mend}"
        )
