"""The windows of one batch, and the device that a model is on.

Shapes: B batch, L steps, C variables, F facts known at issue time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from llueve.model.classifier import TimerXLForClassification
from llueve.model.heads import Answer
from llueve.model.sites import Scenes


class Future(NamedTuple):
    """The values that the forecasting loss compares with: means over the horizon after the issue time."""

    future_BC: Tensor
    """In training-set units; zero where unknown."""
    future_known_BC: Tensor


class NextDays(NamedTuple):
    """Targets of the pre-training after each patch: the next patch of each variable, and the amounts of rain in it."""

    next_BCNP: Tensor
    """In the units of the input; zero where unknown."""
    next_known_BCNP: Tensor
    rain_BNR: Tensor
    """1 if at least each amount fell, otherwise 0; zero where unknown."""
    rain_known_BNR: Tensor


@dataclass(frozen=True)
class Batch:
    """The input of the model for some windows, and their outcomes."""

    x_BLC: Tensor
    """Values in training-set units; zero where not observed, unless missing cells are raw."""
    observed_BLC: Tensor
    facts_BF: Tensor
    y_B: Tensor
    """Class indices; `llueve.panel.UNKNOWN` for a window without an outcome."""
    features: Tensor | None = None
    """Output of `model.pool` for the windows, (B, …), if it is known: the step then starts from it instead of `x_BLC`."""

    scenes: Scenes | None = None
    """The windows that see each other, one scene after the other; None if each window is alone."""
    future: Future | None = None
    """None without a forecasting loss."""
    days: NextDays | None = None
    """None but in a pre-training."""

    def __len__(self) -> int:
        return len(self.y_B)

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        return self._each(lambda tensor: tensor[rows])

    @property
    def finite_B(self) -> Tensor:
        """True for each sample that holds only finite numbers, (B,)."""
        given = [self.x_BLC, self.facts_BF]
        given += [] if self.features is None else [self.features]
        given += [] if self.scenes is None else [self.scenes.position_B2]
        given += [] if self.future is None else [self.future.future_BC]
        given += [] if self.days is None else [self.days.next_BCNP, self.days.rain_BNR]
        return torch.stack([each.isfinite().flatten(1).all(1) for each in given]).all(0)

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on another device; from pinned memory it is copied while the device computes."""
        concurrent = device.type == "cuda"  # a copy from the device must be complete before it is read
        return self._each(lambda tensor: tensor.to(device, non_blocking=concurrent))

    def pinned(self) -> "Batch":
        """Return the batch in pinned memory of this machine."""
        return self._each(lambda tensor: tensor.pin_memory())

    def without_features(self) -> "Batch":
        """Return the batch without features: its step then depends on the windows, the encoder and the precision."""
        return replace(self, features=None)

    def pieces(self, size: int) -> Iterator["Batch"]:
        """Split the batch into pieces of `size` windows, or of `size` scenes, in order."""
        if self.scenes is None:
            for start in range(0, len(self), size):
                yield self[start : start + size]
            return
        _, size_Z = self.scenes.scene_B.unique_consecutive(return_counts=True)
        end_Z = size_Z.cumsum(0).tolist()
        start = 0
        for end in [*end_Z[size - 1 :: size], *([end_Z[-1]] if len(end_Z) % size else [])]:
            yield self[start:end]
            start = end

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the batch by name; those of scenes and future by their own names."""
        found: dict[str, Tensor] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Tensor):
                found[each.name] = value
            elif value is not None:
                found |= value._asdict()
        return found

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> "Batch":
        """The batch with these tensors: the inverse of `tensors`."""
        plain = {each.name: tensors[each.name] for each in fields(cls) if each.name in tensors}
        scenes = Scenes(**{name: tensors[name] for name in Scenes._fields}) if "scene_B" in tensors else None
        future = Future(**{name: tensors[name] for name in Future._fields}) if "future_BC" in tensors else None
        days = NextDays(**{name: tensors[name] for name in NextDays._fields}) if "next_BCNP" in tensors else None
        return cls(**plain, scenes=scenes, future=future, days=days)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch.of({name: change(tensor) for name, tensor in self.tensors().items()})


def answer(model: TimerXLForClassification, batch: Batch) -> Answer:
    """Return logits and forecasts of the windows of a batch, from cached features of the encoder if it has them."""
    pooled = batch.features
    if pooled is None:
        pooled = model.pool(batch.x_BLC, batch.observed_BLC, batch.facts_BF)
    return model.answer(pooled, batch.facts_BF, batch.scenes)


def best_device() -> torch.device:
    """Return the accelerator of this machine, or its processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(model: TimerXLForClassification) -> torch.device:
    """Return the device of the model's weights."""
    return model.encoder.forecasting.weight.device
