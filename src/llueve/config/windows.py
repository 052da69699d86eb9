"""Periods, and what the model sees of them: `[split]` and `[windows]`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from llueve.config.section import Moment, Section


class SplitConfig(Section):
    """Training, validation and test periods (`[split]`): two cut dates, or two fractions of the panel's time span."""

    validation_start: Moment | None = None
    test_start: Moment | None = None
    test_end: Moment | None = None
    """Exclusive end of the test period; without it the end of the panel."""
    validation_fraction: float | None = Field(None, gt=0, lt=1)
    test_fraction: float | None = Field(None, gt=0, lt=1)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        dates = (self.validation_start, self.test_start)
        fractions = (self.validation_fraction, self.test_fraction)
        neither = (None, None)
        if (dates == neither) == (fractions == neither) or (None in dates) == (None in fractions):
            raise ValueError(
                "give validation_start and test_start (dates), or validation_fraction and test_fraction (of the time span)"
            )
        if self.validation_start is not None and self.test_start is not None:
            if self.validation_start >= self.test_start:
                raise ValueError(f"validation_start {self.validation_start} is not before test_start {self.test_start}")
            if self.test_end is not None and self.test_start >= self.test_end:
                raise ValueError(f"test_start {self.test_start} is not before test_end {self.test_end}")
        if (self.validation_fraction or 0) + (self.test_fraction or 0) >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        return self


class WindowsConfig(Section):
    """What the model sees of the past (`[windows]`)."""

    context: int = Field(ge=1)
    """Steps that end at the issue time."""
    stride: int = Field(1, ge=1)
    """Train the model on every n-th issue time (validation, test and the references use all)."""
    missing: Literal["mask", "raw"] = "mask"
    """`mask` keeps missing cells out of every computation; `raw` hands them to the model as NaN, to show what then happens."""
