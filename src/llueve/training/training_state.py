"""The state of a training: everything that decides its next step, with one owner."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llueve.config import TrainConfig
from llueve.distributed.processes import Processes
from llueve.model.batch import device_of
from llueve.model.classifier import TimerXLForClassification
from llueve.stability.diagnosis import Cause
from llueve.stability.guard import Guard
from llueve.stability.language import Words
from llueve.stability.remedies import Ledger
from llueve.step.random_state import random_states, set_random_states
from llueve.training.average import Average
from llueve.training.checksum import Checksum
from llueve.training.optimiser import build_optimiser
from llueve.training.phases import apply_freeze, parameter_groups, plan
from llueve.training.snapshot import AVERAGE, MODEL, OPTIMISER, RANDOM, Place, Snapshot

SNAPSHOT_STEPS = 64
"""Applied steps between two copies of a healthy state."""
FROZEN_STEPS = 16
"""Steps between two checks of the frozen weights. Damage to them is not lost if it is found later."""


class TrainingState:
    """Weights, optimiser, average, guard, ledger, place and random generators of one training.

    The model is moved to the device of this process.
    """

    def __init__(
        self, model: TimerXLForClassification, config: TrainConfig, guard: Guard, processes: Processes
    ) -> None:
        self.processes, self.guard = processes, guard
        self.model = model.to(processes.device)
        self.phases = plan(config)
        self.place, self.ledger = Place(), Ledger()
        self.average = Average(self.model, config.average_decay) if config.average_decay else None
        self.best: dict[str, Tensor] | None = None
        """Weights of the best epoch so far."""
        self.repeats: Counter[tuple[int, int]] = Counter()
        """Re-runs and roll-backs by epoch and position."""
        self.left_out: set[tuple[int, int]] = set()
        """Epoch and position of the batches that were skipped since the last healthy state."""
        self.advice: dict[Cause, Words] = {}
        """Advice on each cause that was found."""
        self.unlike: tuple[int, ...] = ()
        """Ranks of the processes whose state differs from that of process 0."""
        self.start_phase()
        self.mark_random_state()

    # Reading

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return device_of(self.model)

    @property
    def here(self) -> tuple[int, int]:
        """Epoch and position of the next step."""
        return self.place.epoch, self.place.position

    @property
    def is_over(self) -> bool:
        """True after the last phase."""
        return self.place.phase == len(self.phases)

    @property
    def config(self) -> TrainConfig:
        """The keys that hold in the next step: those of the phase, with the remedies of the ledger."""
        return clipped_at(self.phase.config, self.ledger.clip_norm)

    def moments(self) -> dict[str, Tensor]:
        """The optimiser's memory by `PARAMETER.key`."""
        return {
            f"{name}.{key}": torch.as_tensor(value)
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimiser.adamw.state.get(parameter, {}).items()
        }

    # Steps, epochs, phases

    def start_phase(self) -> None:
        """Freeze what the present phase freezes, and give it an optimiser of its own."""
        self.phase = self.phases[min(self.place.phase, len(self.phases) - 1)]
        apply_freeze(self.model, self.phase)
        self.optimiser = build_optimiser(parameter_groups(self.model, self.phase))
        both = (*self.model.parameters(), *self.model.buffers())
        self.watched = [each for each in both if each.is_floating_point() and each.numel()]
        """Weights and buffers whose norm the guard reads."""
        changing = {
            "weights": [each for each in self.watched if each.requires_grad],
            "moments": [self.optimiser.first_moment, self.optimiser.second_moment],
            "average": [] if self.average is None else [self.average.block],
            "buffers": [each for each in self.model.buffers() if each.is_floating_point() and each.numel()],
        }
        named = self.model.named_parameters()
        kept = {name: each for name, each in named if not each.requires_grad and each.numel()}
        self.kept = tuple(kept)
        """Names of the frozen weights."""
        self.changing = Checksum(changing)
        self.frozen = Checksum({"frozen weights": list(kept.values())}, FROZEN_STEPS)
        self.expect_present_bits()

    def expect_present_bits(self) -> None:
        """Take the present weights, buffers, moments and average as right; only an applied step changes them from now on."""
        self.changing.expect()
        self.frozen.expect()

    def changed(self, everything: bool = False) -> Tensor:
        """One for each group of `changing`, then of `frozen`, in which a bit changed without a step, otherwise zero, (groups,).

        Without `everything`, frozen weights and a large model are checked in some of the steps only.
        """
        due = everything or self.place.steps % self.frozen.every == 0
        return torch.cat((self.changing.changed(), self.frozen.changed() if due else self.frozen.unchecked()))

    def names_of(self, changed: Iterable[float]) -> tuple[str, ...]:
        """Names of the groups that `changed` marks."""
        names = (*self.changing.names, *self.frozen.names)
        return tuple(name for name, flag in zip(names, changed, strict=True) if flag)

    def mark_random_state(self) -> None:
        """Record the generators; the next step expects them as they are now."""
        self.random_state = random_states(self.device)

    def rewind_random_state(self, states: dict[str, Tensor]) -> None:
        """Set the generators back to earlier states."""
        set_random_states(states, self.device)
        self.random_state = states

    def move_to(self, position: int) -> None:
        """Go on to a position of the epoch's order without a step."""
        self.place.position = position

    def count_step(self, position: int) -> None:
        """A step was applied; the next one starts at this position."""
        self.place.steps += 1
        self.place.position = position
        self.changing.expect(self.place.steps)

    def count_loss(self, samples: int, loss: float) -> None:
        """Add an applied step to the mean loss of the epoch."""
        self.place.batches += 1
        self.place.applied += samples
        self.place.loss_sum += loss * samples

    def count_refused(self) -> None:
        """A step was refused."""
        self.place.refused += 1

    def count_repeat(self) -> None:
        """The present step is run again, or rolled back."""
        self.repeats[self.here] += 1

    def skip_batch(self, position: int, states: dict[str, Tensor]) -> None:
        """Leave out the present batch, as if it had never been there, and set the generators back to earlier states."""
        self.left_out.add(self.here)
        self.place.position = position
        self.place.batches += 1
        self.rewind_random_state(states)

    def keep_best(self, loss: float, epoch: int) -> dict[str, Tensor]:
        """The present weights are the best so far, after `epoch`, 0 for the start; returns a copy of them."""
        self.place.best_epoch, self.place.best_loss = epoch, loss
        self.place.best_train_loss = self.place.mean_loss
        self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        return self.best

    def next_epoch(self) -> None:
        """Go on to the next epoch of this phase."""
        place = self.place
        place.skipped += self.guard.skipped
        place.epoch += 1
        place.position = place.batches = place.refused = place.applied = 0
        place.loss_sum = 0.0

    def next_phase(self) -> None:
        """Go on to the next phase, from the best weights so far."""
        self.place.phase += 1
        self.place.first_epoch = self.place.epoch
        self.place.steps = 0
        self.ledger.next_phase()
        if not self.is_over:
            if self.best is not None:
                self.model.load_state_dict(self.best)
            self.start_phase()

    # States to return to

    def capture(self) -> Snapshot:
        """Copy the present state."""
        tensors = {f"{MODEL}{name}": each for name, each in self.model.state_dict().items()}
        tensors |= {f"{OPTIMISER}{name}": each for name, each in self.optimiser.tensors().items()}
        tensors |= {f"{RANDOM}{name}": each for name, each in random_states(self.device).items()}
        if self.average is not None:
            tensors[AVERAGE] = self.average.block
        copies = {name: each.detach().clone() for name, each in tensors.items()}
        buffers = [name for name, _ in self.model.named_buffers()]
        return Snapshot(copies, {"place": asdict(self.place), "guard": self.guard.as_dict(), "buffers": buffers})

    def restore(self, snapshot: Snapshot) -> None:
        """Return to a state of this phase and epoch."""
        self.model.load_state_dict(snapshot.group(MODEL))
        self.optimiser.load(snapshot.group(OPTIMISER))
        if self.average is not None:
            self.average.block.copy_(snapshot.tensors[AVERAGE])
        self.guard.load(snapshot.facts["guard"])
        set_random_states(snapshot.group(RANDOM), self.device)
        self.place = snapshot.place
        self.mark_random_state()
        self.expect_present_bits()

    @contextmanager
    def experiment(self) -> Iterator[None]:
        """Inside, steps may run from any state; afterwards the present state is back, with the bits that were expected."""
        now, expected = self.capture(), (self.changing.expected, self.frozen.expected)
        try:
            yield
        finally:
            self.restore(now)
            self.changing.expected, self.frozen.expected = expected

    def mark_healthy(self, snapshot: Snapshot | None = None) -> None:
        """Make the present state, or a copy of it that exists already, the one to roll back to."""
        self.healthy = self.capture() if snapshot is None else snapshot
        self.left_out.clear()

    def mark_healthy_if_due(self) -> None:
        """Copy the state after every 64 applied steps, if it is sound and the same in all processes."""
        if self.place.steps % SNAPSHOT_STEPS == 0 and self.is_alike():
            snapshot = self.capture()
            if snapshot.is_sound and not bool(self.changed(everything=True).any()):
                self.mark_healthy(snapshot)

    def roll_back(self, rate_factor: float = 1.0, ramp: bool = False) -> None:
        """Return to the last healthy state in all processes, multiply all later rates, and let them rise from zero (`ramp`)."""
        self.ledger.rollbacks += 1
        refused = self.place.refused
        self.restore(self.healthy)
        self.agree()
        self.place.refused = refused
        self.ledger.rate *= rate_factor
        if ramp:
            self.ledger.ramp_from = self.place.steps

    def clip_at_usual_norm(self) -> None:
        """Clip all later gradients at their usual norm."""
        self.ledger.clip_at(self.guard.usual_norm.median or 1.0)

    def compute_exactly(self, layers: Iterable[int]) -> None:
        """Compute layers of the encoder in float32 in all later steps."""
        self.ledger.compute_exactly(layers)
        self.model.encoder.exact_layers = frozenset(self.ledger.exact_layers)

    def replace_head(self, new: TimerXLForClassification) -> None:
        """Start again with the head of a new model."""
        own = list(self.model.head.parameters())
        with torch.no_grad():
            for parameter, value in zip(own, new.head.parameters(), strict=True):
                parameter.copy_(value)
        self.optimiser.forget(own)
        if self.average is not None:
            self.average.begin(own)
        self.expect_present_bits()
        self.agree()
        self.ledger.fresh_heads += 1
        self.mark_healthy()

    def facts(self) -> dict[str, Any]:
        """Facts of a saved state that a snapshot does not hold."""
        troubled = [[*place, count] for place, count in sorted(self.repeats.items())]
        advice = {cause: list(words) for cause, words in self.advice.items()}
        return {"ledger": self.ledger.as_dict(), "troubled": troubled, "advice": advice}

    def load_facts(self, facts: Mapping[str, Any]) -> None:
        """Return to the place, ledger and phase of a saved state; `restore` follows."""
        self.place = Place(**facts["place"])
        self.ledger = Ledger.of(facts["ledger"])
        self.repeats = Counter({(epoch, position): count for epoch, position, count in facts["troubled"]})
        self.advice = {Cause(cause): Words(*words) for cause, words in facts["advice"].items()}
        self.model.encoder.exact_layers = frozenset(self.ledger.exact_layers)
        self.start_phase()

    def load_best(self, read: Callable[[], Mapping[str, Tensor]]) -> None:
        """Take over best weights, which process 0 reads."""
        best = {name: value.clone() for name, value in self.model.state_dict().items()}

        def fill() -> None:
            found = read()
            for name, tensor in best.items():
                tensor.copy_(found[name])

        self.processes.on_first(fill)
        for tensor in best.values():
            self.processes.broadcast(tensor)
        self.best = best

    # Several processes

    def agree(self) -> None:
        """Give all processes the present state of process 0."""
        self.unlike = ()
        if self.processes.count == 1:
            return
        own = self.capture()
        for tensor in own.tensors.values():
            self.processes.broadcast(tensor)
        self.restore(Snapshot(own.tensors, self.processes.on_first(lambda: dict(own.facts))))

    def is_alike(self) -> bool:
        """True if all processes have the same weights, moments and average, bit for bit."""
        if self.processes.count > 1:
            self.compare(self.processes.gather(self._checksums()))
        return not self.unlike

    def compare(self, rows: NDArray[np.float64]) -> None:
        """Record the processes whose numbers are not those of process 0: one row for each process."""
        unlike = [rank for rank, row in enumerate(rows) if not np.array_equal(row, rows[0], equal_nan=True)]
        self.unlike = tuple(sorted({*self.unlike, *unlike}))

    def _checksums(self) -> list[float]:
        """Numbers that change with any bit of the weights and buffers, of the optimiser's memory, and of the average."""
        average = [] if self.average is None else [self.average.block]
        groups = (self.model.state_dict().values(), self.optimiser.tensors().values(), average)
        return [float(sum(map(_checksum, group)) % 2**52) for group in groups]


def clipped_at(config: TrainConfig, clip_norm: float | None) -> TrainConfig:
    """The configuration with a smaller clipping norm; unchanged if it is not smaller."""
    if clip_norm is None or clip_norm >= config.clip_norm:
        return config
    return config.model_copy(update={"clip_norm": clip_norm})


def _checksum(tensor: Tensor) -> int:
    """The sum of a tensor's bits, read as integers."""
    flat = tensor.detach().contiguous().reshape(-1)
    return int(flat.view(torch.int32 if flat.element_size() % 4 == 0 else torch.uint8).sum(dtype=torch.int64))
