"""A refused step with everything that it was computed from: one value, from the guard to the incident and the remedy."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llueve.config import TrainConfig
from llueve.model.batch import Batch
from llueve.model.classifier import TimerXLForClassification
from llueve.samples.split import Part
from llueve.stability.reading import FaultKind, Reading


@dataclass(frozen=True)
class RefusedStep:
    """A training step that the guard refused, before anything of it was applied."""

    kind: FaultKind
    reason: str
    """One sentence for people."""
    epoch: int
    reading: Reading
    rows: Part
    """The windows of the batch: site and issue time of each sample."""
    batch: Batch
    model: TimerXLForClassification
    """The model as it was before the step."""
    moments: Mapping[str, Tensor]
    """Memory of the optimiser, as `PARAMETER.exp_avg` and the like."""
    random_state: Mapping[str, Tensor]
    """`llueve.step.random_state.random_states` before the forward pass."""
    config: TrainConfig
    """The `[train]` keys that held in this step."""
    precision: torch.dtype
    average: Mapping[str, Tensor] | None = None
    """Moving average of each weight, if the training keeps one."""

    @property
    def device(self) -> torch.device:
        """The device of the step."""
        return self.batch.y_B.device

    def without_features(self) -> "RefusedStep":
        """The same step computed from its windows, not from cached features of the encoder."""
        return replace(self, batch=self.batch.without_features())

    def to(self, device: torch.device) -> "RefusedStep":
        """A copy of the step on a device, with a model of its own."""
        return replace(self, model=copy.deepcopy(self.model).to(device), batch=self.batch.to(device))
