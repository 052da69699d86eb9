"""One training step at a time: its gradients, the numbers that the guard reads, and its application.

Shapes: B batch.
"""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llueve.config import TrainConfig
from llueve.model.batch import Batch
from llueve.panel import UNKNOWN
from llueve.samples.split import Part
from llueve.stability.diagnosis import Rerun, Stored
from llueve.stability.guard import LARGEST_WEIGHT, unsound_weights
from llueve.stability.reading import Fault, Reading
from llueve.stability.refused_step import RefusedStep
from llueve.step.gradients import loss_and_gradients, total_norm
from llueve.step.random_state import random_states
from llueve.training.batches.epoch import Drawn, EpochBatches
from llueve.training.environment import Environment
from llueve.training.phases import parameter_groups, rate_factor
from llueve.training.precision import choose_precision
from llueve.training.snapshot import MODEL
from llueve.training.training_state import TrainingState, clipped_at

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """A step up to its gradients, which are in the parameters; nothing is clipped or applied yet."""

    drawn: Drawn
    rows: Part
    """Its windows, in all processes together."""
    batch: Batch
    """This process's share of them."""
    random_state: dict[str, Tensor]
    """The random generators before the forward pass."""
    config: TrainConfig
    reading: Reading


class Stepper:
    """Computes the steps of a training, and applies them to its state."""

    def __init__(self, state: TrainingState, batches: EpochBatches, environment: Environment) -> None:
        self.state, self.batches = state, batches
        self._environment, self._processes = environment, environment.processes
        self._requests = 0, False
        """Number of a signal, and True if it is time to save, as all processes know since the last step."""
        self._saved_at = time.monotonic()

    def start_phase(self) -> None:
        """Choose the precision and the schedule of the present phase."""
        state, config = self.state, self.state.phase.config
        self._rate_factor = rate_factor(config, self.batches.steps)
        self.plan_rates()
        first = self.batches.gather_again(self.batches.training[: config.batch_size])
        choice = choose_precision(config.precision, state.model.encoder, first.x_BLC.mT, first.observed_BLC.mT)
        logger.info("training steps in %s on %s: %s", choice.name, state.device.type, choice.reason)
        self.precision: torch.dtype = getattr(torch, self._processes.on_first(lambda: choice.name))

    def plan_rates(self) -> None:
        """Take the highest rate of each group from the configuration: to set them, and again to compare with what was set."""
        state = self.state
        self._highest_rates, again = (
            tuple(float(group["lr"]) for group in parameter_groups(state.model, state.phase)) for _ in range(2)
        )
        state.optimiser = replace(state.optimiser, base_rates=again)
        self.set_rates(1.0)

    def set_rates(self, factor: float) -> None:
        """Set the rates of the next step: the highest ones times a factor."""
        self.state.optimiser.set_rates(factor)
        self._planned_rates = tuple(rate * factor for rate in self._highest_rates)

    # Requests from outside

    @property
    def signal(self) -> int:
        """Number of the signal that asks for the end, the same in all processes; 0 without one."""
        return self._requests[0] if self._processes.count > 1 else self._environment.interruption.number or 0

    @property
    def is_save_due(self) -> bool:
        """True if the last saved state is older than `checkpoints.minutes`, the same in all processes."""
        return self._requests[1] if self._processes.count > 1 else self._is_late()

    def mark_saved(self) -> None:
        """Start to wait for the next time of saving."""
        self._saved_at = time.monotonic()

    def _is_late(self) -> bool:
        return time.monotonic() - self._saved_at >= self._environment.save_every.minutes * 60

    # One step

    def attempt(self, rerun: Rerun | None = None, rerun_step: int = 0) -> Attempt | None:
        """Compute the next step up to its gradients; None if the epoch has no window left.

        Args:
            rerun, rerun_step: changes under which steps run again, and steps since they began; None in training.
        """
        state, processes = self.state, self._processes
        drawn = self.batches.draw_unused(state.place.position)
        if not len(drawn.chosen):
            state.move_to(drawn.after)
            return None
        config = state.config
        factor = self._rate_factor(state.place.steps) * state.ledger.rate_factor(state.place.steps)
        if rerun is not None:
            factor *= rerun.rate_factor
            factor *= min(1.0, (rerun_step + 1) / rerun.warmup_steps) if rerun.warmup_steps else 1.0
            config = clipped_at(config, rerun.clip_norm)
        self.set_rates(factor)
        batch = self.batches.checked(self.batches.load(drawn), drawn)
        random_state = self._checked_random_state()
        with processes.own_random():
            loss = loss_and_gradients(state.model, batch, config, self.precision)
        share = self._weight(self.batches.own(drawn), config) / self._weight(drawn.chosen, config)
        loss = processes.reduce(state.model, loss, share)
        norm = total_norm(state.model)
        state.mark_random_state()
        reading = replace(self.read(batch, loss, norm, config), samples=len(drawn.chosen))
        if not math.isfinite(reading.gradient_norm):  # perhaps only its square overflows float32
            reading = replace(reading, gradient_norm=float(total_norm(state.model, exact=True)))
        return Attempt(drawn, self.batches.training[drawn.chosen], batch, random_state, config, reading)

    def apply(self, attempt: Attempt) -> None:
        """Change the weights by the gradients of an attempt."""
        state = self.state
        norm, largest = attempt.reading.gradient_norm, attempt.config.clip_norm
        # Clipping that changes nothing would still read all gradients; torch clips a millionth below the norm.
        if norm > 0.999 * largest:
            total = torch.tensor(norm, device=state.device)
            nn.utils.clip_grads_with_norm_(state.model.parameters(), largest, total, foreach=True)
        state.optimiser.adamw.step()
        if state.average is not None:
            state.average.update(state.place.steps)
        state.count_step(attempt.drawn.after)

    def refused(self, attempt: Attempt, fault: Fault) -> RefusedStep:
        """An attempt that must not be applied, with everything that it was computed from."""
        state = self.state
        whole = len(attempt.batch) == len(attempt.rows)
        return RefusedStep(
            kind=fault.kind,
            reason=fault.reason,
            epoch=state.place.epoch,
            reading=attempt.reading,
            rows=attempt.rows,
            batch=attempt.batch if whole else self.batches.gather(attempt.drawn.chosen),
            model=state.model,
            moments=state.moments(),
            random_state=attempt.random_state,
            config=attempt.config,
            precision=self.precision,
            average=None if state.average is None else state.average.named(state.model),
        )

    def run_again(self, rerun: Rerun) -> tuple[float, float]:
        """Run the steps since the last healthy state again under changes, up to the present one.

        Returns:
            Loss and gradient norm of the present step; with further steps the largest of all. The state is unchanged.
        """
        state, end, steps = self.state, self.state.place.position, 0
        found: list[tuple[float, float]] = []
        with state.experiment():
            state.restore(state.healthy)
            while (again := self.attempt(rerun, steps)) is not None:
                if state.place.position >= end:
                    found.append((again.reading.loss, again.reading.gradient_norm))
                    if len(found) > rerun.further_steps or not all(map(math.isfinite, found[-1])):
                        break
                elif state.here in state.left_out:
                    state.move_to(again.drawn.after)
                    state.rewind_random_state(again.random_state)
                    continue
                self.apply(again)
                steps += 1
        loss, norm = np.max(found, axis=0).tolist() if found else (math.nan, math.nan)  # NaN is the largest
        return loss, norm

    def rebuild(self) -> Stored | None:
        """Stored numbers to which the steps since the last healthy state lead; None if they do not have the expected bits.

        Damaged frozen weights are not found by steps, which were computed with them: they come from the healthy state. The
        state is unchanged afterwards.
        """
        state, end = self.state, self.state.place.position
        if bool(state.frozen.changed().any()):
            return self._stored({name: each for name, each in state.healthy.group(MODEL).items() if name in state.kept})
        expected, frozen = state.changing.expected, state.frozen.expected
        with state.experiment():
            state.restore(state.healthy)
            while state.place.position < end and (again := self.attempt(Rerun())) is not None:
                if state.here in state.left_out:
                    state.move_to(again.drawn.after)
                    state.rewind_random_state(again.random_state)
                else:
                    self.apply(again)
            if not (state.changing.fits(expected) and state.frozen.fits(frozen)):
                return None
            return self._stored()

    def _stored(self, instead: Mapping[str, Tensor] | None = None) -> Stored:
        """The present numbers, some of the model's exchanged."""
        state = self.state
        average = {} if state.average is None else state.average.named(state.model)
        now = Stored.of(state.model, state.moments(), average)
        return replace(now, model={**now.model, **(instead or {})})

    # The numbers of a step

    def read(self, batch: Batch, loss: Tensor, norm: Tensor, config: TrainConfig) -> Reading:
        """All numbers that the guard judges, in one read from the device."""
        state = self.state
        average = [] if state.average is None else [state.average.extremes()]
        # No weight exceeds the norm of all weights: one number clears them all. If it does not, they are looked at.
        weights = nn.utils.get_total_norm(state.watched, foreach=True)
        own = torch.stack((loss, norm, weights))
        changed = state.changed()
        seen = self._compared(torch.cat((own, state.optimiser.extremes(), *average, changed)).tolist())
        unsound = () if seen[2] <= LARGEST_WEIGHT else self._processes.on_first(lambda: unsound_weights(state.model))
        reading = Reading(
            step=state.place.batches + 1,
            samples=len(batch),
            loss=seen[0],
            gradient_norm=seen[1],
            moments=(seen[3], seen[4], seen[5], seen[6]),
            unsound_weights=tuple(unsound),
            average=(seen[7], seen[8]) if average else (0.0, 0.0),
            changed=state.names_of(seen[len(seen) - len(changed) :]),
            rates=tuple(state.optimiser.rates),
            clip_norm=config.clip_norm,
            unlike=state.unlike,
            planned_rates=self._planned_rates,
        )
        if all(map(math.isfinite, seen)):
            return reading
        bad = float((~batch.finite_B).sum())
        return replace(reading, non_finite_inputs=int(self._processes.gather([bad]).sum()))

    def _compared(self, seen: list[float]) -> list[float]:
        """The numbers of process 0. Processes with other numbers are recorded, and requests from outside exchanged."""
        if self._processes.count == 1:
            return seen
        requests = (float(self._environment.interruption.number or 0), float(self._is_late()))
        rows = self._processes.gather([*requests, *seen, *self.state.optimiser.rates])
        self._requests = int(rows[:, 0].max()), bool(rows[0, 1])
        # Loss and gradient norm are equal by construction, so the numbers after them show a state that differs.
        self.state.compare(rows[:, 4:])
        return rows[0, 2 : 2 + len(seen)].tolist()  # type: ignore[no-any-return]

    def _weight(self, chosen: NDArray[np.int64], config: TrainConfig) -> float:
        """Weight of these windows in the loss."""
        y = self.batches.training.y[chosen]
        known_y = y[y != UNKNOWN]
        if config.class_weights is None:
            return float(len(known_y))
        return float(np.asarray(config.class_weights)[known_y].sum())

    def _checked_random_state(self) -> dict[str, Tensor]:
        """The generators before a forward pass; if anything but a step changed them, they are set back."""
        state = self.state
        found = random_states(state.device)
        if all(torch.equal(found[name], expected) for name, expected in state.random_state.items()):
            return found
        state.rewind_random_state(state.random_state)
        step, epoch = state.place.batches + 1, state.place.epoch
        reason = f"step {step}: something other than a training step used the random generator; it was set back"
        self._environment.record_repair(epoch, "random_state", reason)
        return state.random_state
