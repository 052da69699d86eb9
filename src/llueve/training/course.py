"""The course of a training: its state, one step at a time, and the way back to an earlier state.

Shapes: B batch, L steps, C variables.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from llueve.config import CheckpointConfig, GuardConfig, TrainConfig
from llueve.forecasting import as_batch, device_of, predict_logits
from llueve.model.classifier import TimerXLForClassification
from llueve.panel import FloatArray
from llueve.stability.causes import Conduct
from llueve.stability.guard import LARGEST_WEIGHT, Guard, Reading, unsound_weights
from llueve.stability.remedies import Ledger
from llueve.stability.step import Batch, loss_and_gradients, random_states, set_random_states, total_norm
from llueve.training.average import Average
from llueve.training.checkpoint import Checkpoints
from llueve.training.feature_cache import FeatureCache
from llueve.training.interruption import Interruption
from llueve.training.loading import Loader, pinned
from llueve.training.optimiser import Optimiser, build_optimiser
from llueve.training.order import epoch_order
from llueve.training.phases import apply_freeze, is_encoder_frozen, parameter_groups, plan, rate_factor
from llueve.training.precision import choose_precision
from llueve.training.processes import Processes, Result
from llueve.training.state import Place, Snapshot, capture, checksums, restore
from llueve.windows import Part, Windows

logger = logging.getLogger(__name__)

CANARIES = 64
"""Validation windows, always the same, whose loss tells whether a state is sound."""
SNAPSHOT_STEPS = 64
"""Applied steps after which a healthy state is remembered."""


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
    processes: Processes = field(default_factory=Processes)
    """Those that train this model together."""


@dataclass(frozen=True)
class Attempt:
    """A step up to its gradients, which are in the parameters as they came; nothing is clipped or applied yet."""

    rows: Part
    chosen: NDArray[np.int64]
    """Their positions among the training windows."""
    after: int
    """Position in the epoch's order behind its windows."""
    batch: Batch
    """What this process has computed of it: its share."""
    random_state: dict[str, Tensor]
    """Before the forward pass."""
    config: TrainConfig
    reading: Reading


@dataclass(frozen=True)
class Calls:
    """What came from outside by the last step, as all processes know it."""

    signal: int = 0
    """Number of the signal that asked for the end; 0 without one."""
    checkpoint: bool = False
    """Whether process 0 has not written a checkpoint for long."""


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
        self.processes = surroundings.processes
        self.model = model.to(self.processes.device)
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
        self.loader = Loader(self._gather)
        self.class_share = np.bincount(training.y, minlength=model.num_classes) / len(training)
        self.canaries = validation[epoch_order(validation, 0, 0)[:CANARIES]]
        self.kept_at = time.monotonic()
        self.calls = Calls()
        self.unlike: tuple[int, ...] = ()
        """Processes whose state was found to be another than that of process 0."""
        self.enter_phase()
        self.order_epoch()
        self.agree()
        self.healthy = self.capture()

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
        self.precision = getattr(torch, self.processes.alone(lambda: choice.name))
        both = (*self.model.parameters(), *self.model.buffers())
        self.watched = [each for each in both if each.is_floating_point() and each.numel()]
        self.features = {part.name: self._open_features(part) for part in (self.training, self.validation)}
        self.loader.forget()

    def _open_features(self, part: Part) -> FeatureCache | None:
        """What the encoder gives for the windows of a part, if it is frozen in this phase and there is room."""
        directory, room = self.surroundings.features, int(self.phase.config.feature_cache_gb * 1e9)
        if directory is None or not room or not is_encoder_frozen(self.phase):
            return None

        def opened(write: bool = True) -> FeatureCache | None:
            return FeatureCache.open(directory, self.model, self.windows, part, limit_bytes=room, write=write)

        with self.surroundings.console.status(f"computing the features of {len(part)} {part.name} windows"):
            first = opened() if self.processes.is_first else None
            if not self.processes.alone(lambda: first is not None):
                return None
            return first if self.processes.is_first else opened(write=False)

    def batch(self, chosen: NDArray[np.int64]) -> Batch:
        """Training windows as the model takes them, with what a frozen encoder gives for them if that is known."""
        return self._gather(chosen).to(self.device)

    def _gather(self, chosen: NDArray[np.int64]) -> Batch:
        """The same in the memory of this machine."""
        batch = as_batch(self.windows, self.training[chosen], torch.device("cpu"))
        cache = self.features[self.training.name]
        return pinned(batch if cache is None else replace(batch, features=cache.batch(chosen)), self.device)

    def drop_features(self) -> None:
        """Compute what the encoder gives in each step from now on."""
        self.features = dict.fromkeys(self.features)
        self.loader.forget()

    def close(self) -> None:
        """End what runs beside the steps."""
        self.loader.close()

    def validation_logits(self) -> FloatArray:
        """Logits of every validation window, in evaluation mode and float32."""
        here, cache = self.processes.share(len(self.validation)), self.features[self.validation.name]
        own = self.validation[here]
        logits_BK = torch.zeros(len(self.validation), self.model.num_classes)
        if len(own):
            pooled = None if cache is None else cache.share(here)
            logits_BK[here] = torch.from_numpy(predict_logits(self.model, self.windows, own, pooled))
        return self.processes.total(logits_BK).numpy()

    def order_epoch(self) -> None:
        """The order of this epoch's windows, without those that are left out."""
        self.order = epoch_order(self.training, self.seed, self.place.epoch)
        self.allow()
        self.random_state = random_states(self.device)

    def allow(self) -> None:
        """Leave out what is quarantined, and nothing else."""
        self.allowed = np.ones(len(self.training), bool)
        self.allowed[[at for each in self.ledger.held() for at in self.training.find(each.site, each.end)]] = False

    # One step

    @property
    def signal(self) -> int:
        """Number of the signal that asks for the end, the same in all processes; 0 without one."""
        return self.calls.signal if self.processes.count > 1 else self.surroundings.interruption.number or 0

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
        chosen, after = self._draw(self.place.position)
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
        own = chosen[self.processes.share(len(chosen))]
        batch = self.loader.take(own, self._following(after)).to(self.device)
        random_state = self._guarded_random_state()
        with self.processes.own_random():
            loss = loss_and_gradients(self.model, batch, config, self.precision)
        loss = self.processes.reduce(self.model, loss, self._weight(own, config) / self._weight(chosen, config))
        norm = total_norm(self.model)
        self.random_state = random_states(self.device)
        reading = replace(self.read(batch, loss, norm, config), samples=len(chosen))
        if not math.isfinite(reading.gradient_norm):  # or only its square, which float32 does not hold
            reading = replace(reading, gradient_norm=float(total_norm(self.model, exact=True)))
        return Attempt(self.training[chosen], chosen, after, batch, random_state, config, reading)

    def whole(self, attempt: Attempt) -> Attempt:
        """The step with the batch of all processes."""
        if len(attempt.batch) == len(attempt.chosen):
            return attempt
        return replace(attempt, batch=self.batch(attempt.chosen))

    def _weight(self, chosen: NDArray[np.int64], config: TrainConfig) -> float:
        """How much these windows count in the loss."""
        if config.class_weights is None:
            return float(len(chosen))
        return float(np.asarray(config.class_weights)[self.training.y[chosen]].sum())

    @property
    def effective_config(self) -> TrainConfig:
        """Of this phase, with what the ledger has changed."""
        return _clipped(self.phase.config, self.ledger.clip_norm)

    def apply(self, attempt: Attempt) -> None:
        """Change the weights."""
        norm, largest = attempt.reading.gradient_norm, attempt.config.clip_norm
        # A clipping that changes nothing is a pass over all gradients; torch clips at a millionth below the norm.
        if norm > 0.999 * largest:
            total = torch.tensor(norm, device=self.device)
            nn.utils.clip_grads_with_norm_(self.model.parameters(), largest, total, foreach=True)
        self.optimiser.adamw.step()
        if self.average is not None:
            self.average.update()
        self.place.steps += 1
        self.place.position = attempt.after

    def pass_over(self, attempt: Attempt) -> None:
        """Go on without this batch, as if it had never been there."""
        self.passed_over.add((self.place.epoch, self.place.position))
        self.place.position = attempt.after
        self.place.batches += 1
        self.rewind(attempt)

    def rewind(self, attempt: Attempt) -> None:
        """The generators as they were before an attempt."""
        set_random_states(attempt.random_state, self.device)
        self.random_state = attempt.random_state

    def read(self, batch: Batch, loss: Tensor, norm: Tensor, config: TrainConfig) -> Reading:
        """Everything that the guard judges a step by, in one read from the device."""
        average = [] if self.average is None else [self.average.extremes()]
        # No number is beyond the norm of all, so that one number clears every weight; what it does not clear is looked at.
        weights = nn.utils.get_total_norm(self.watched, foreach=True)
        own = torch.stack((loss, norm, weights))
        seen = self._compared(torch.cat((own, self.optimiser.extremes(), *average)).tolist())
        reading = Reading(
            step=self.place.batches + 1,
            samples=len(batch),
            loss=seen[0],
            gradient_norm=seen[1],
            moments=(seen[3], seen[4], seen[5], seen[6]),
            unsound_weights=() if seen[2] <= LARGEST_WEIGHT else self._unsound_weights(),
            average=(seen[7], seen[8]) if average else (0.0, 0.0),
            rates=tuple(self.optimiser.rates),
            clip_norm=config.clip_norm,
            unlike=self.unlike,
            highest_rates=self.optimiser.base_rates,
        )
        if all(map(math.isfinite, seen)):
            return reading
        bad = float((~batch.finite_B).sum())
        return replace(reading, non_finite_inputs=int(self.processes.gather([bad]).sum()))

    def _compared(self, seen: list[float]) -> list[float]:
        """What process 0 sees of a step; whose state looks otherwise is remembered, with what came from outside."""
        if self.processes.count == 1:
            return seen
        interruption, every = self.surroundings.interruption, self.surroundings.every
        calls = (float(interruption.number or 0), float(time.monotonic() - self.kept_at >= every.minutes * 60))
        rows = self.processes.gather([*calls, *seen, *self.optimiser.rates])
        self.calls = Calls(int(rows[:, 0].max()), bool(rows[0, 1]))
        # Loss and gradients are the same by their making, so what follows them tells whose memory is another.
        self.unlike = tuple(sorted({*self.unlike, *_unlike(rows[:, 4:])}))
        return rows[0, 2 : 2 + len(seen)].tolist()  # type: ignore[no-any-return]

    def _unsound_weights(self) -> tuple[str, ...]:
        """Names of weights that are wrong, as process 0 finds them: all judge alike."""
        return tuple(self.processes.alone(lambda: unsound_weights(self.model)))

    def _draw(self, position: int) -> tuple[NDArray[np.int64], int]:
        """The windows from a position on that are not left out, as many as a batch has, and the position behind them."""
        chosen, after = [np.empty(0, np.int64)], position
        missing = self.batch_size
        while missing and after < len(self.order):
            piece = self.order[after : after + missing]
            after += len(piece)
            chosen.append(piece[self.allowed[piece]])
            missing -= len(chosen[-1])
        return np.concatenate(chosen), after

    def _following(self, position: int) -> Iterator[NDArray[np.int64]]:
        """What will be drawn from a position of the epoch on, unless something happens."""
        while position < len(self.order):
            chosen, position = self._draw(position)
            yield chosen[self.processes.share(len(chosen))]

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

    def agree(self) -> None:
        """The present state of process 0 becomes that of all."""
        self.unlike = ()
        if self.processes.count == 1:
            return
        own = self.capture()
        for tensor in own.tensors.values():
            self.processes.spread(tensor)
        self.restore(Snapshot(own.tensors, self.processes.alone(lambda: dict(own.facts))))

    def is_alike(self) -> bool:
        """Whether all processes have the same weights, moments and average, bit for bit; those that have not are remembered."""
        if self.processes.count > 1:
            rows = self.processes.gather(checksums(self.model, self.optimiser, self.average))
            self.unlike = tuple(sorted({*self.unlike, *_unlike(rows)}))
        return not self.unlike

    def alone(self, work: Callable[[], Result]) -> Result:
        """Process 0 does it, on whole batches and without the others, who wait for what comes out."""

        def apart() -> Result:
            together, self.processes = self.processes, Processes()
            try:
                return work()
            finally:
                self.processes = together

        return self.processes.alone(apart) if self.processes.count > 1 else work()

    def remember(self) -> None:
        """Take a copy of the state now and then, if it is sound and the same in all processes."""
        if self.place.steps % SNAPSHOT_STEPS == 0 and self.is_alike():
            snapshot = self.capture()
            if snapshot.is_sound:
                self.healthy = snapshot
                self.passed_over.clear()


def _unlike(rows: NDArray[np.float64]) -> list[int]:
    """Processes whose numbers are not those of process 0."""
    return [rank for rank, row in enumerate(rows) if not np.array_equal(row, rows[0], equal_nan=True)]


def _clipped(config: TrainConfig, clip_norm: float | None) -> TrainConfig:
    if clip_norm is None or clip_norm >= config.clip_norm:
        return config
    return config.model_copy(update={"clip_norm": clip_norm})
