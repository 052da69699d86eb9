"""The moment before a step of a trial: everything that a fault can damage.

Only this file and trial.py know the inside of llueve's training. Shapes: B batch, C variables, L steps.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.faults.trial import Trial
from llueve.model.batch import Batch
from llueve.model.classifier import TimerXLForClassification
from llueve.panel import UNKNOWN
from llueve.samples.split import Part
from llueve.stability.diagnosis import Cause
from llueve.training import stepper as stepper_module
from llueve.training.average import Average
from llueve.training.optimiser import AdamW

Random = np.random.Generator
Index = tuple[int, ...]


def put(tensor: Tensor, value: float, random: Random) -> Index:
    """Write a value to a random place of a tensor; returns the index."""
    index = tuple(int(random.integers(size)) for size in tensor.shape)
    with torch.no_grad():
        tensor[index] = value
    return index


@dataclass
class Scene:
    """The moment before a step of llueve's own training."""

    trial: Trial
    trainer: Any
    random: Random

    @property
    def model(self) -> TimerXLForClassification:
        """The model that is trained."""
        return self.trainer.state.model

    @property
    def adamw(self) -> AdamW:
        """The optimiser."""
        return self.trainer.state.optimiser.adamw

    @property
    def average(self) -> Average:
        """The moving average of the weights."""
        return self.trainer.state.average

    @cached_property
    def rows(self) -> Part:
        """The windows of the next step."""
        batches = self.trainer.batches
        return batches.training[batches.draw(self.trainer.state.place.position).chosen]

    # Random places

    def window(self, answered: bool = False) -> tuple[int, int]:
        """Site and issue time of a window of the next step; `answered`: of one with an outcome."""
        rows = self.rows[self.rows.y != UNKNOWN] if answered else self.rows
        row = int(self.random.integers(len(rows)))
        return int(rows.site[row]), int(rows.end[row])

    def variable(self) -> int:
        """Number of a variable."""
        return int(self.random.integers(self.trial.shape.variables))

    def trained(self, where: str = "") -> tuple[str, Tensor]:
        """A parameter with several numbers that has a part in the logits and is trained now."""
        # VariablesHead reads the tokens of the encoder before its forecasting head.
        apart = type(self.model.head).__name__ == "VariablesHead"
        unused = ("encoder.head.", "encoder.lm_heads.") if apart else ()
        return self._one_of(
            (name, each)
            for name, each in self.model.named_parameters()
            if each.requires_grad and each.numel() > 1 and where in name
            if "knots" not in name and not name.startswith(unused)
        )

    def layer_weight(self) -> tuple[str, Tensor]:
        """A matrix of the encoder's layers, frozen or not."""
        layers = ("encoder.blocks.attn_layers", "encoder.model.layers")
        named = self.model.named_parameters()
        return self._one_of(each for each in named if each[0].startswith(layers) and each[0].endswith("weight"))

    def _one_of(self, found: Iterable[tuple[str, Tensor]]) -> tuple[str, Tensor]:
        known = list(found)
        return known[int(self.random.integers(len(known)))]

    def name_of(self, wanted: Any) -> str:
        """Name of a module of the model."""
        return next(name for name, each in self.model.named_modules() if each is wanted)

    def group(self) -> dict[str, Any]:
        """A group of the optimiser."""
        groups = self.adamw.param_groups
        return groups[int(self.random.integers(len(groups)))]

    # Interventions in the next steps

    def change_next(self, target: Any, name: str, change: Callable[[Any], Any]) -> None:
        """Change the result of a function's next call, and of no later one."""
        function, pending = getattr(target, name), [change]

        def once(*arguments: Any, **options: Any) -> Any:
            out = function(*arguments, **options)
            return pending.pop()(out) if pending else out

        self.trial.patch(target, name, once)

    def next_gradients(self, change: Callable[[Tensor], object]) -> None:
        """Change the next step's gradients, parameter by parameter, before the guard reads them."""

        def spoil(loss: Tensor) -> Tensor:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    change(parameter)
            return loss

        self.change_next(stepper_module, "loss_and_gradients", spoil)

    def next_loss(self, value: float) -> None:
        """Replace the next step's loss by a value."""
        self.change_next(stepper_module, "loss_and_gradients", lambda loss: torch.full_like(loss, value))

    def next_batch(self, change: Callable[[Batch], object]) -> None:
        """Change the next step's batch in memory; the data stay as they are."""

        def spoil(batch: Batch) -> Batch:
            change(batch)
            return batch

        self.change_next(self.trainer.batches, "load", spoil)

    def repeat_batch(self) -> None:
        """Hand the training the batch of the next step in all later steps, too."""
        loader, first = self.trainer.batches._loader, []
        take = loader.take

        def same(*given: Any) -> Any:
            first.append(take(*given))
            return first[0]

        self.trial.patch(loader, "take", same)

    def repeat_order(self) -> None:
        """Let the rest of the epoch repeat the windows of its first step."""
        batches, position = self.trainer.batches, self.trainer.state.place.position
        windows = batches._order.windows
        windows[position:] = np.resize(windows[: batches.draw(0).after], len(windows) - position)

    def damage_features(self, value: float) -> None:
        """Write a value into the cached features of one window of the next step."""
        batches = self.trainer.batches
        cache, row = batches._features, int(batches.draw(self.trainer.state.place.position).chosen[0])
        cache.rows = cache.rows.copy()
        put(torch.from_numpy(cache.rows[row]), value, self.random)

    def every_step(self, before: Callable[[], object]) -> None:
        """Do something before each forward pass of the later steps."""
        compute = stepper_module.loss_and_gradients

        def spoiled(*arguments: Any) -> Tensor:
            before()
            return compute(*arguments)

        self.trial.patch(stepper_module, "loss_and_gradients", spoiled)

    def next_rate(self, factor: float) -> None:
        """Multiply the learning rate of one group in the next step, after the schedule has set it."""
        group = self.group()

        def spoil(loss: Tensor) -> Tensor:
            group["lr"] *= factor
            return loss

        self.change_next(stepper_module, "loss_and_gradients", spoil)

    def scale_rates(self, factor: float) -> None:
        """Multiply the learning rates until the phase ends."""
        state, optimiser = self.trainer.state, self.trainer.state.optimiser
        state.optimiser = replace(optimiser, base_rates=tuple(each * factor for each in optimiser.base_rates))

    def quarantine(self, samples: list[tuple[int, int]]) -> None:
        """Leave samples out from the next step on, for good."""
        state = self.trainer.state
        for site, end in samples:
            state.ledger.quarantine(site, end, state.place.epoch, Cause.UNKNOWN)
        for each in state.ledger.quarantined:
            each.tries = 1
        self.trainer.batches.leave_out(state.ledger.held())
