"""Keys of a run around its training: `[audit]`, `[guard]`, `[checkpoints]`, `[track]`, `[processes]` and `[verify]`."""

from typing import Annotated, Literal

from pydantic import Field

from llueve.config.section import MOST_STEPS, Section

YEAR = 525_600
"""Minutes of a year."""


class AuditConfig(Section):
    """Errors of the audit that do not stop the training (`[audit]`)."""

    allow: tuple[str, ...] = ()
    """Codes of the errors to accept, such as `sentinel`."""


class GuardConfig(Section):
    """Limits and policy of the guard, which checks each training step (`[guard]`)."""

    max_skipped: float = Field(0.01, ge=0, le=1)
    """Largest share of an epoch's training samples that may be skipped, 0 to 1. More end the run: exit code 3, no model."""
    policy: Literal["repair", "skip", "stop"] = "repair"
    """Response to a refused step: `repair` finds its cause and applies a remedy, `skip` skips its samples, `stop` ends."""


class CheckpointConfig(Section):
    """Times at which a training saves its state to disk, in addition to the end of each epoch (`[checkpoints]`)."""

    minutes: float = Field(10.0, gt=0, le=YEAR)
    """Longest time between two saved states, in minutes."""
    steps: int | None = Field(None, ge=1, le=MOST_STEPS)
    """Number of applied steps of a phase after which to save. Not set: the number of steps does not matter."""


class TrackConfig(Section):
    """Trackers that receive the content of `history.jsonl` (`[track]`); they need the extra `track`."""

    tensorboard: bool = False
    """Write events for TensorBoard into the folder `tensorboard` of the run directory."""
    mlflow: str | None = Field(None, min_length=1)
    """Folder or server address where MLflow keeps its runs. Not set: MLflow is not used."""
    experiment: str = Field("llueve", min_length=1)
    """Name of the MLflow experiment that the run belongs to."""

    @property
    def mlflow_folder(self) -> str | None:
        """The folder of MLflow; None if it is not used or is an address."""
        return None if self.mlflow is None or ":" in self.mlflow else self.mlflow


class ProcessesConfig(Section):
    """Waiting of processes that train one model together (`[processes]`)."""

    timeout_minutes: float = Field(5.0, gt=0, le=YEAR)
    """Minutes to wait for a process that does not answer. After them it counts as lost, and all processes end."""


class VerifyConfig(Section):
    """Verification on the test period (`[verify]`)."""

    lags: tuple[Annotated[int, Field(ge=1, le=MOST_STEPS)], ...] | None = Field(None, max_length=100)
    """Steps before the issue time whose values logistic regression and gradient boosting also see, each at least 1. Not
    set: validation chooses between 1, 2, 3, 7 steps and 1 to 168 hours, as far as they are inside the context."""
    bootstrap: int = Field(1000, ge=100, le=100_000)
    """Number of resamples behind each interval, from 100 to 100,000."""
    block_days: int = Field(7, ge=1, le=3660)
    """Days of the blocks that are resampled whole, since neighbouring days are alike; at least the horizon."""
