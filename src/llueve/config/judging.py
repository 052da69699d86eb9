"""What may pass, and how forecasts are judged: `[audit]`, `[guard]`, `[checkpoints]`, `[processes]` and `[verify]`."""

from typing import Annotated, Literal

from pydantic import Field

from llueve.config.section import Section


class AuditConfig(Section):
    """What the audit may let pass (`[audit]`)."""

    allow: tuple[str, ...] = ()
    """Codes of errors in spite of which training goes on, such as `sentinel`."""


class GuardConfig(Section):
    """When the guard ends a run (`[guard]`)."""

    max_skipped: float = Field(0.01, ge=0, le=1)
    """Share of an epoch's training samples that may be skipped; one more ends the run with exit code 3 and no model."""
    policy: Literal["repair", "skip", "stop"] = "repair"
    """What becomes of a refused step: its cause is found and mended, its samples are skipped, or the run ends."""


class CheckpointConfig(Section):
    """When the state of a training is written to the disk (`[checkpoints]`), besides the end of each epoch."""

    minutes: float = Field(10.0, gt=0)
    """At the latest after so many."""
    steps: int | None = Field(None, ge=1)
    """After each so many applied steps of a phase."""


class ProcessesConfig(Section):
    """How processes that train one model together wait for each other (`[processes]`)."""

    timeout_minutes: float = Field(5.0, gt=0)
    """A process that does not answer for so long is called lost, and all end."""


class VerifyConfig(Section):
    """How the test period is judged (`[verify]`)."""

    lags: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 3, 7)
    """Steps back that logistic regression and gradient boosting see besides the issue time."""
    bootstrap: int = Field(1000, ge=100, le=100_000)
    """Resamples behind each interval."""
    block_days: int = Field(7, ge=1)
    """Days that are resampled together, since neighbouring days are alike; never shorter than the horizon."""
