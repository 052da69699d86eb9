"""A training, assembled: its state, the batches of its epochs, its validation windows and its steps."""

from functools import partial

import numpy as np

from llueve.config import GuardConfig, TrainConfig
from llueve.model.classifier import TimerXLForClassification
from llueve.panel import UNKNOWN
from llueve.samples.split import Part
from llueve.samples.windows import Windows, WindowSource
from llueve.stability.guard import Guard
from llueve.training.batches.epoch import EpochBatches
from llueve.training.batches.feature_cache import FeatureCache
from llueve.training.batches.order import units_of
from llueve.training.environment import Environment
from llueve.training.phases import check_rates, is_encoder_frozen, plan
from llueve.training.stepper import Stepper
from llueve.training.training_state import TrainingState
from llueve.training.validation import Validation


class Trainer:
    """The parts of one training.

    Args:
        model: trained in place.
        windows: all windows of the panel.
        training, validation: the windows to train on, and to validate on after each epoch.
        config, guard, environment: the recipe, the limits of the guard, and records, files and processes.

    Raises:
        GuardStop: too many training windows hold a number that is not finite.
        ConfigError: the learning rates of a phase are wrong.
    """

    def __init__(
        self,
        model: TimerXLForClassification,
        windows: WindowSource,
        training: Part,
        validation: Part,
        config: TrainConfig,
        guard: GuardConfig,
        environment: Environment,
    ) -> None:
        processes, phases = environment.processes, plan(config)
        network = windows.network
        units = units_of(training, config.epoch_share, network is not None)
        check_rates(phases, units)
        largest_clip = max(phase.config.clip_norm for phase in phases)
        judge = Guard(guard.max_skipped, len(training), model.num_classes, largest_clip)
        single = guard.policy == "repair"  # this policy leaves out single windows, the others whole batches
        whole_batch = round(phases[0].config.batch_size * len(training) * config.epoch_share / units)
        judge.check_inputs(windows.non_finite(training), 1 if single else whole_batch)
        self.environment, self.processes, self.policy = environment, processes, guard.policy
        known_y = training.y[training.y != UNKNOWN]
        self.class_share_K = np.bincount(known_y, minlength=model.num_classes) / len(known_y)
        """Share of each class in the training windows."""
        self.state = TrainingState(model, config, judge, processes)
        self.batches = EpochBatches(windows, training, config, processes, self.state.device, self._repaired)
        self.validation = Validation(windows, validation, processes)
        self._told: set[tuple[int, str]] = set()
        self.stepper = Stepper(self.state, self.batches, environment)
        self.start_phase()
        self.start_order()
        self.state.agree()
        self.state.mark_healthy()

    def start_phase(self) -> None:
        """Prepare batches, validation and steps for the present phase of the state."""
        config = self.state.phase.config
        self.batches.start_phase(config.batch_size * config.accumulate, self._features(self.batches.training))
        self.validation.start_phase(self._features(self.validation.part))
        self.stepper.start_phase()

    def start_order(self) -> None:
        """Draw the order of the present epoch."""
        self.batches.start_epoch(self.state.place.epoch, self.state.ledger.held())
        self.state.mark_random_state()

    def next_epoch(self, phase_is_over: bool) -> None:
        """Go on to the next epoch, and to the next phase if this one is over."""
        self.state.next_epoch()
        if phase_is_over:
            self.state.next_phase()
            if self.state.is_over:
                return
            self.start_phase()
        self.start_order()

    def drop_features(self) -> None:
        """Compute the outputs of the encoder in each later step."""
        self.batches.start_phase(self.batches.batch_size, None)
        self.validation.start_phase(None)

    def _repaired(self, kind: str, reason: str) -> None:
        """Record a repair by the batches, once for each kind and epoch: it may concern every step."""
        epoch = self.state.place.epoch
        if (epoch, kind) not in self._told:
            self._told.add((epoch, kind))
            self.environment.record_repair(epoch, kind, reason)

    def close(self) -> None:
        """End the thread that prepares batches."""
        self.batches.close()

    def _features(self, part: Part) -> FeatureCache | None:
        """The cached outputs of the encoder for a part's windows, if it is frozen in this phase and there is room."""
        directory, phase = self.environment.features, self.state.phase
        room = int(phase.config.feature_cache_gb * 1e9)
        windows = self.batches.windows
        if directory is None or not room or not is_encoder_frozen(phase) or not isinstance(windows, Windows):
            return None
        opened = partial(FeatureCache.open, directory, self.state.model, windows, part, limit_bytes=room)
        with self.environment.console.status(f"computing the features of {len(part)} {part.name} windows"):
            return self.processes.on_first(
                opened, lambda cache: cache is not None, lambda kept: opened(write=False) if kept else None
            )
