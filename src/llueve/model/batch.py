"""The windows of one batch, and the device that a model is on.

Shapes: B batch, L steps, C variables, F facts known at issue time.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llueve.model.classifier import TimerXLForClassification


@dataclass(frozen=True)
class Batch:
    """The input of the model for some windows, and their outcomes."""

    x_BLC: Tensor
    """Values in training-set units; zero where not observed, unless missing cells are raw."""
    observed_BLC: Tensor
    facts_BF: Tensor
    y_B: Tensor
    """Class indices."""
    features: Tensor | None = None
    """Output of `model.pool` for the windows, (B, …), if it is known: the step then starts from it instead of `x_BLC`."""

    def __len__(self) -> int:
        return len(self.y_B)

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        return self._each(lambda tensor: tensor[rows])

    @property
    def finite_B(self) -> Tensor:
        """True for each sample that holds only finite numbers, (B,)."""
        given = (self.x_BLC, self.facts_BF, *([] if self.features is None else [self.features]))
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

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        features = None if self.features is None else change(self.features)
        return Batch(change(self.x_BLC), change(self.observed_BLC), change(self.facts_BF), change(self.y_B), features)


def best_device() -> torch.device:
    """Return the accelerator of this machine, or its processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(model: TimerXLForClassification) -> torch.device:
    """Return the device of the model's weights."""
    return model.encoder.forecasting.weight.device
