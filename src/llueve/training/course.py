"""The course of a training: its state, one step at a time, and the way back to an earlier state.

Shapes: B batch, L steps, C variables.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from llueve.config import CheckpointConfig, GuardConfig, TrainConfig
from llueve.errors import RunError
from llueve.forecasting import as_batch, device_of, log_loss, predict_logits
from llueve.model.classifier import TimerXLForClassification
from llueve.panel import FloatArray
from llueve.stability.causes import Conduct
from llueve.stability.guard import Guard, Reading
from llueve.stability.remedies import MOST_READMISSIONS, Ledger
from llueve.stability.step import Batch, loss_and_gradients, random_states, set_random_states, total_norm
from llueve.training.average import Average
from llueve.training.checkpoint import Checkpoint, Checkpoints, Health
from llueve.training.feature_cache import FeatureCache
from llueve.training.interruption import Interruption
from llueve.training.optimiser import Optimiser, build_optimiser
from llueve.training.order import epoch_order
from llueve.training.phases import apply_freeze, is_encoder_frozen, parameter_groups, plan, rate_factor
from llueve.training.precision import choose_precision
from llueve.training.state import Place, Snapshot, capture, restore
from llueve.windows import Part, Windows

logger = logging.getLogger(__name__)

SNAPSHOT_STEPS = 64
"""Applied steps after which a healthy state is remembered."""
CANARIES = 64
"""Validation windows, always the same, whose loss tells whether a state is sound."""


@dataclass(frozen=True)
class Surroundings:
    """What the loop is given besides the data: where its records go, and how a model is made anew."""

    record: Callable[[dict[str, Any]], None]
    """Called with each line of `history.jsonl`."""
    keep: Callable[..., Path | None]
    """Called with each refused step before anything is changed: `keep_incident` without what it knows of the data."""
    fresh: Callable[[], TimerXLForClassification]
    """A model of the same sizes, newly initialised."""
    console: Console
    checkpoints: Checkpoints | None = None
    """Where states are kept; without it nothing is."""
    every: CheckpointConfig = field(default_factory=CheckpointConfig)
    features: Path | None = None
    """Folder for what a frozen encoder gives; without it that is computed at each step."""
    facts: Callable[[], dict[str, Any]] = dict
    """What else a kept state tells of its run, such as how long the history is."""
    interruption: Interruption = field(default_factory=Interruption)


@dataclass(frozen=True)
class Attempt:
    """A step up to its gradients, which are in the parameters; nothing is applied yet."""

    rows: Part
    after: int
    """Position in the epoch's order behind its windows."""
    batch: Batch
    random_state: dict[str, Tensor]
    """Before the forward pass."""
    config: TrainConfig
    norm: Tensor
    """Total norm of the gradients, which are not clipped yet."""
    reading: Reading


class Course:
    """The course of a training: everything that decides its next step, and the step itself."""

    def __init__(
        self,
        model: TimerXLForClassification,
        windows: Windows,
        training: Part,
        validation: Part,
        config: TrainConfig,
        guard: GuardConfig,
        surroundings: Surroundings,
    ) -> None:
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.windows, self.training, self.validation = windows, training, validation
        self.seed, self.policy = config.seed, guard.policy
        self.surroundings = surroundings
        self.phases = plan(config)
        self.place, self.ledger = Place(), Ledger()
        clips = [phase.config.clip_norm for phase in self.phases]
        self.guard = Guard(guard.max_skipped, len(training), model.num_classes, max(clips))
        single = guard.policy == "repair"  # which leaves out single windows, not their batches
        self.guard.check_inputs(windows.non_finite(training), 1 if single else self.phases[0].config.batch_size)
        self.average = Average(self.model, config.average_decay) if config.average_decay else None
        self.best: dict[str, Tensor] | None = None
        self.troubled: Counter[tuple[int, int]] = Counter()
        """Places at which a step was run again or rolled back, and how often."""
        self.passed_over: set[tuple[int, int]] = set()
        """Places whose batches were not applied."""
        self.enter_phase()
        self.order_epoch()
        self.healthy = self.capture()
        self.kept_at = time.monotonic()

    def enter_phase(self) -> None:
        """Make ready what differs from phase to phase."""
        self.phase = self.phases[min(self.place.phase, len(self.phases) - 1)]  # the last one also when all are over
        apply_freeze(self.model, self.phase)
        self.optimiser: Optimiser = build_optimiser(parameter_groups(self.model, self.phase))
        config = self.phase.config
        self.epoch_steps = math.ceil(len(self.training) / self.batch_size)
        self.factor = rate_factor(config, self.epoch_steps)
        first = as_batch(self.windows, self.training[: config.batch_size], self.device)
        x_BCL, observed_BCL = first.x_BLC.transpose(1, 2), first.observed_BLC.transpose(1, 2)
        choice = choose_precision(config.precision, self.model.encoder, x_BCL, observed_BCL)
        logger.info("training steps in %s on %s: %s", choice.name, self.device.type, choice.reason)
        self.precision = choice.dtype
        self.watched = [each for each in self.model.parameters() if each.numel()]
        self.features = {part.name: self._open_features(part) for part in (self.training, self.validation)}

    def _open_features(self, part: Part) -> FeatureCache | None:
        """What the encoder gives for the windows of a part, if it is frozen in this phase and there is room."""
        directory, room = self.surroundings.features, int(self.phase.config.feature_cache_gb * 1e9)
        if directory is None or not room or not is_encoder_frozen(self.phase):
            return None
        with self.surroundings.console.status(f"computing the features of {len(part)} {part.name} windows"):
            return FeatureCache.open(directory, self.model, self.windows, part, limit_bytes=room)

    def batch(self, chosen: NDArray[np.int64]) -> Batch:
        """Training windows as the model takes them, with what a frozen encoder gives for them if that is known."""
        batch, cache = as_batch(self.windows, self.training[chosen], self.device), self.features[self.training.name]
        return batch if cache is None else replace(batch, features=cache.batch(chosen).to(self.device))

    def validation_logits(self) -> FloatArray:
        """Logits of every validation window, in evaluation mode and float32."""
        return predict_logits(self.model, self.windows, self.validation, self.features[self.validation.name])

    def order_epoch(self) -> None:
        """The order of this epoch's windows, without those that are left out."""
        self.order = epoch_order(self.training, self.seed, self.place.epoch)
        self.allow()
        self.random_state = random_states(self.device)

    def allow(self) -> None:
        """Leave out what is quarantined, and nothing else."""
        self.allowed = np.ones(len(self.training), bool)
        for each in self.ledger.held():
            self.allowed &= (self.training.site != each.site) | (self.training.end != each.end)

    # One step

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return device_of(self.model)

    @property
    def batch_size(self) -> int:
        """Windows of one optimiser step."""
        return self.phase.config.batch_size * self.phase.config.accumulate

    def attempt(self, conduct: Conduct | None = None, course_step: int = 0) -> Attempt | None:
        """The next step up to its gradients; None if the epoch has no window left.

        Args:
            conduct: what is done differently; None for nothing.
            course_step: steps since the conduct began.
        """
        chosen, after = self._draw()
        if not len(chosen):
            self.place.position = after
            return None
        config = self.effective_config
        factor = self.factor(self.place.steps) * self.ledger.rate_factor(self.place.steps)
        if conduct is not None:
            factor *= conduct.rate_factor
            factor *= min(1.0, (course_step + 1) / conduct.warmup_steps) if conduct.warmup_steps else 1.0
            config = _clipped(config, conduct.clip_norm)
        self.optimiser.set_rates(factor)
        batch = self.batch(chosen)
        random_state = self._guarded_random_state()
        loss = loss_and_gradients(self.model, batch, config, self.precision)
        norm = total_norm(self.model)
        self.random_state = random_states(self.device)
        reading = self.read(batch, loss, norm, config)
        if not math.isfinite(reading.gradient_norm):  # or only its square, which float32 does not hold
            norm = total_norm(self.model, exact=True)
            reading = replace(reading, gradient_norm=float(norm))
        return Attempt(self.training[chosen], after, batch, random_state, config, norm, reading)

    @property
    def effective_config(self) -> TrainConfig:
        """Of this phase, with what the ledger has changed."""
        return _clipped(self.phase.config, self.ledger.clip_norm)

    def apply(self, attempt: Attempt) -> None:
        """Change the weights."""
        # Only now: a gradient that is not finite would spread over all others as they are clipped.
        nn.utils.clip_grads_with_norm_(self.model.parameters(), attempt.config.clip_norm, attempt.norm, foreach=True)
        self.optimiser.adamw.step()
        if self.average is not None:
            self.average.update()
        self.place.steps += 1
        self.place.position = attempt.after

    def pass_over(self, attempt: Attempt) -> None:
        """Go on without this batch."""
        self.passed_over.add((self.place.epoch, self.place.position))
        self.place.position = attempt.after
        self.place.batches += 1

    def read(self, batch: Batch, loss: Tensor, norm: Tensor, config: TrainConfig) -> Reading:
        """Everything that the guard judges a step by, in one read from the device."""
        weight = self.watched[(self.place.batches + 1) % len(self.watched)]
        average = [] if self.average is None else [self.average.extremes()]
        own = torch.stack((loss, norm, *torch.aminmax(weight.detach())))
        seen = torch.cat((own, self.optimiser.extremes(), *average)).tolist()
        reading = Reading(
            step=self.place.batches + 1,
            samples=len(batch),
            loss=seen[0],
            gradient_norm=seen[1],
            weights=(seen[2], seen[3]),
            moments=(seen[4], seen[5], seen[6], seen[7]),
            average=(seen[8], seen[9]) if average else (0.0, 0.0),
            rates=tuple(self.optimiser.rates),
            clip_norm=config.clip_norm,
            highest_rates=self.optimiser.base_rates,
        )
        if all(map(math.isfinite, seen)):
            return reading
        return replace(reading, non_finite_inputs=int((~batch.finite_B).sum()))

    def _draw(self) -> tuple[NDArray[np.int64], int]:
        """The next windows that are not left out, as many as a batch has, and the position in the order behind them."""
        chosen, after = [np.empty(0, np.int64)], self.place.position
        missing = self.batch_size
        while missing and after < len(self.order):
            piece = self.order[after : after + missing]
            after += len(piece)
            chosen.append(piece[self.allowed[piece]])
            missing -= len(chosen[-1])
        return np.concatenate(chosen), after

    def _guarded_random_state(self) -> dict[str, Tensor]:
        """The generators before a forward pass; if anything but a step has touched them, they are put back."""
        found = random_states(self.device)
        if all(torch.equal(found[name], state) for name, state in self.random_state.items()):
            return found
        set_random_states(self.random_state, self.device)
        reason = f"step {self.place.batches + 1}: the random generator is not where the step before it left it"
        logger.warning("%s; it was put back", reason)
        self.surroundings.record(
            {
                "event": "repaired",
                "epoch": self.place.epoch,
                "kind": "random_state",
                "reason": reason,
                "action": "rerun",
            }
        )
        return self.random_state

    # States to come back to

    def capture(self) -> Snapshot:
        """A copy of the present state."""
        return capture(self.model, self.optimiser, self.average, self.guard, self.place)

    def restore(self, snapshot: Snapshot) -> None:
        """Back to a state of this phase and epoch."""
        self.place = restore(snapshot, self.model, self.optimiser, self.average, self.guard)
        self.random_state = random_states(self.device)

    def remember(self) -> None:
        """Take a copy of the state now and then, if it is sound."""
        if self.place.steps % SNAPSHOT_STEPS == 0:
            snapshot = self.capture()
            if snapshot.is_sound:
                self.healthy = snapshot
                self.passed_over.clear()

    def checkpoint(self) -> None:
        """Write the present state to the disk; it is then also the one to come back to.

        Raises:
            RunError: it cannot be written.
        """
        checkpoints = self.surroundings.checkpoints
        if checkpoints is None:
            return
        snapshot = self.capture()
        canaries = self.validation[epoch_order(self.validation, 0, 0)[:CANARIES]]
        canary_loss = log_loss(predict_logits(self.model, self.windows, canaries), canaries.y)
        self.model.train()
        health = Health.of(snapshot, canary_loss)
        facts = {
            **snapshot.facts,
            "ledger": self.ledger.as_dict(),
            "troubled": [[*place, count] for place, count in sorted(self.troubled.items())],
            "threads": torch.get_num_threads(),
            **self.surroundings.facts(),
        }
        checkpoints.write(Snapshot(snapshot.tensors, facts), health)
        self.kept_at = time.monotonic()
        if health.sound:
            self.healthy = snapshot
            self.passed_over.clear()

    def checkpoint_if_due(self) -> None:
        """Write the present state now and then."""
        every = self.surroundings.every
        by_steps = every.steps is not None and self.place.steps % every.steps == 0
        if by_steps or time.monotonic() - self.kept_at >= every.minutes * 60:
            self.checkpoint()

    def keep_best(self) -> None:
        """The present weights are the best so far."""
        self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        if self.surroundings.checkpoints is not None:
            self.surroundings.checkpoints.write_best(self.place.epoch, self.best)

    def resume(self, found: Checkpoint) -> None:
        """Go on from a state on the disk.

        Raises:
            RunError: it belongs to another training.
        """
        facts, checkpoints = found.snapshot.facts, self.surroundings.checkpoints
        threads = torch.get_num_threads()
        if facts["threads"] != threads:
            logger.warning(
                "the run was begun with %d thread(s) and goes on with %d: its last bits may differ from an uninterrupted run's",
                facts["threads"],
                threads,
            )
        self.place = found.snapshot.place
        self.ledger = Ledger.of(facts["ledger"])
        self.troubled = Counter({(epoch, position): count for epoch, position, count in facts["troubled"]})
        self.model.encoder.exact_layers = frozenset(self.ledger.exact_layers)
        self.enter_phase()
        self.order_epoch()
        try:
            self.restore(found.snapshot)
        except (RuntimeError, KeyError, TypeError) as error:
            raise RunError(
                f"{found.path}: belongs to another training ({error}); train again with --overwrite"
            ) from error
        if self.place.best_epoch and checkpoints is not None:
            self.best = {
                name: each.to(self.device) for name, each in checkpoints.read_best(self.place.best_epoch).items()
            }
        self.healthy = self.capture()

    def readmit(self) -> None:
        """Let quarantined samples back that are sound on their own with the present weights; each may be let back once."""
        tried = [each for each in self.ledger.held() if not each.tries][:MOST_READMISSIONS]
        before = random_states(self.device)
        self.model.train()
        for each in tried:
            rows = np.flatnonzero((self.training.site == each.site) & (self.training.end == each.end))
            batch = self.batch(rows)
            loss = loss_and_gradients(self.model, batch, self.effective_config, self.precision)
            alone = self.read(batch, loss, total_norm(self.model), self.effective_config)
            if self.guard.is_sound(alone):
                each.inside, each.tries = False, each.tries + 1
        set_random_states(before, self.device)
        if back := [each for each in tried if not each.inside]:
            logger.info("epoch %d: %d quarantined sample(s) are sound again and back", self.place.epoch, len(back))
            self.allow()


def _clipped(config: TrainConfig, clip_norm: float | None) -> TrainConfig:
    if clip_norm is None or clip_norm >= config.clip_norm:
        return config
    return config.model_copy(update={"clip_norm": clip_norm})
