"""The evidence that helps to explain a refused step, besides the step itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from llueve.model.batch import Batch
from llueve.model.classifier import TimerXLForClassification


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
class Evidence:
    """Facts that a training knows about a refused step; an incident file holds few of them."""

    new_model: Callable[[], TimerXLForClassification]
    """Builds a newly initialised model of the same sizes."""
    healthy: Mapping[str, Tensor] | None = None
    """Weights and buffers of the last healthy state."""
    rerun: Callable[[Rerun], tuple[float, float]] | None = None
    """Runs all steps since the last healthy state again and returns loss and gradient norm (before clipping) of the
    refused step, or the largest ones of it and the further steps. The training is unchanged afterwards."""
    steps_since_healthy: int = 50
    usual_norm: float | None = None
    """Median gradient norm of accepted steps."""
    usual_loss: float | None = None
    gathered: Batch | None = None
    """The same windows, gathered from the data again."""
