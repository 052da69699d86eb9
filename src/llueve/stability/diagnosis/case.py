"""The evidence that helps to explain a refused step, besides the step itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor, nn

from llueve.model.batch import Batch
from llueve.model.classifier import TimerXLForClassification
from llueve.stability.diagnosis.advice import Settings


@dataclass(frozen=True)
class Rerun:
    """Changes under which the steps since the last healthy state run again."""

    rate_factor: float = 1.0
    """Factor of all learning rates."""
    warmup_steps: int = 0
    """Steps over which the rates rise linearly to their planned size."""
    clip_norm: float | None = None
    """Largest gradient norm; None for the configured one."""
    further_steps: int = 0
    """Steps of the epoch to run after the refused one, as far as there are any."""


@dataclass(frozen=True)
class Stored:
    """Copies of the numbers that a training stores between two steps."""

    model: Mapping[str, Tensor]
    """Weights and buffers."""
    moments: Mapping[str, Tensor]
    """Memory of the optimiser, as `PARAMETER.exp_avg` and the like."""
    average: Mapping[str, Tensor]
    """Moving average of each weight; empty without one."""

    @classmethod
    def of(cls, model: nn.Module, moments: Mapping[str, Tensor], average: Mapping[str, Tensor]) -> Self:
        """Copy the numbers."""

        def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: each.detach().clone() for name, each in tensors.items()}

        return cls(copied(model.state_dict()), copied(moments), copied(average))


@dataclass(frozen=True)
class Evidence:
    """Facts that a training knows about a refused step; an incident file holds few of them."""

    new_model: Callable[[], TimerXLForClassification]
    """Builds a newly initialised model of the same sizes."""
    healthy: Mapping[str, Tensor] | None = None
    """Weights and buffers of the last healthy state."""
    rerun: Callable[[Rerun], tuple[float, float]] | None = None
    """Runs all steps since the last healthy state again and returns loss and gradient norm (before clipping) of the
    refused step, or the largest ones of it and the further steps. The training is unchanged afterwards."""
    rebuild: Callable[[], Stored | None] | None = None
    """Runs all steps since the last healthy state again and returns the stored numbers to which they lead. None if they do
    not have the bits that the last applied step left. The training is unchanged afterwards."""
    steps_since_healthy: int = 50
    usual_norm: float | None = None
    """Median gradient norm of accepted steps."""
    usual_loss: float | None = None
    settings: Settings = field(default_factory=Settings)
    """Settings that advice depends on."""
    gathered: Batch | None = None
    """The same windows, gathered from the data again."""
