"""Keys of the windows and their outcomes: `[target]`, `[split]` and `[windows]`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from llueve.config.section import MOST_STEPS, TEN_YEARS, Moment, Section


class TargetConfig(Section):
    """Target of the forecast (`[target]`): either a label column, or a sum of precipitation over the next hours."""

    label: str | None = None
    """Column with the label. Not set: `variable` gives the target."""
    classes: tuple[str, ...] = ("0", "1")
    """Values of the label column in the order of the classes: at least two, all different. They belong to `label`."""
    missing: tuple[str, ...] = ()
    """Values of the label column that mean "unknown", in addition to `data.missing`."""
    event: str | None = None
    """Class whose probability is verified. Not set: the last class."""
    variable: str | None = None
    """Precipitation variable to sum over the horizon. Not set: `label` gives the target."""
    threshold_mm: float | None = Field(None, ge=0.01, le=100_000)
    """Least sum of `variable` that counts as the event, in millimetres; 0.01 or more. Packed archives hold small amounts
    without rain, so 0.1 is a usual minimum. Not set: allowed only with `label`."""
    horizon_hours: float = Field(24.0, gt=0, le=TEN_YEARS)
    """Length H of the horizon in hours; the target is about (t, t + H]. A whole number of steps."""
    allow_sampled: bool = False
    """Accept a sum whose values cover only a part of each step. It misses the rain of the other hours."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.label is None) == (self.variable is None):
            raise ValueError(
                "give either label (a column) or variable (precipitation to sum), not both and not neither"
            )
        if self.variable is not None and self.threshold_mm is None:
            raise ValueError("variable needs threshold_mm, the millimetres from which it counts as rain, such as 1.0")
        if self.label is not None and self.threshold_mm is not None:
            raise ValueError("threshold_mm belongs to variable; a label column is already decided")
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise ValueError(f"classes needs at least two different values, found {list(self.classes)}")
        # `to_toml` writes the default too, so only another value is a choice of the user.
        if self.variable is not None and self.classes != type(self).model_fields["classes"].default:
            raise ValueError("classes belongs to label; with variable they are dry and wet")
        if self.event is not None and self.event not in self.class_names:
            raise ValueError(f"event is {self.event!r}, which is not one of the classes {list(self.class_names)}")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in order; `dry` and `wet` for a sum of precipitation."""
        return self.classes if self.label is not None else ("dry", "wet")

    @property
    def event_index(self) -> int:
        """Index of the class whose probability is verified."""
        return self.class_names.index(self.event) if self.event is not None else len(self.class_names) - 1


class SplitConfig(Section):
    """Training, validation and test periods (`[split]`): two cut dates, or two fractions of the time span of the data."""

    validation_start: Moment | None = None
    """First time of the validation period, UTC; a date is its midnight. Not set: the fractions give the periods."""
    test_start: Moment | None = None
    """First time of the test period, UTC, after `validation_start`. Not set: the fractions give the periods."""
    test_end: Moment | None = None
    """End of the test period, UTC, after `test_start`; this time itself is not part of it. Not set: the end of the data."""
    validation_fraction: float | None = Field(None, gt=0, lt=1)
    """Share of the time span for validation, just before the test period. Not set: the dates give the periods."""
    test_fraction: float | None = Field(None, gt=0, lt=1)
    """Share of the time span for the test, at its end. Not set: the dates give the periods."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        dates, neither = (self.validation_start, self.test_start), (None, None)
        fractions = (self.validation_fraction, self.test_fraction)
        if (dates == neither) == (fractions == neither) or (None in dates) == (None in fractions):
            given = "validation_fraction and test_fraction (of the time span)"
            raise ValueError(f"give validation_start and test_start (dates), or {given}")
        for first, second in (("validation_start", "test_start"), ("test_start", "test_end")):
            earlier, later = getattr(self, first), getattr(self, second)
            if earlier is not None and later is not None and earlier >= later:
                raise ValueError(f"{first} {earlier:%Y-%m-%d %H:%M} is not before {second} {later:%Y-%m-%d %H:%M}")
        if (self.validation_fraction or 0) + (self.test_fraction or 0) >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        return self


class WindowsConfig(Section):
    """Windows: the part of the past that the model sees (`[windows]`)."""

    context: int = Field(ge=1, le=MOST_STEPS)
    """Length of a window in steps, up to and including the issue time."""
    stride: int | None = Field(None, ge=1, le=MOST_STEPS)
    """Steps between the issue times of training. Not set: a quarter of the horizon, since later ones have nearly the same
    outcome; 1 with `issue_hours`. Validation, test and the reference forecasts use every issue time."""
    issue_hours: tuple[Annotated[int, Field(ge=0, le=23)], ...] | None = None
    """Hours of the day, UTC, at which forecasts are issued, such as `[0, 12]`: training, verification, the reference forecasts
    and predictions use no other times. Not set: every time of the data."""
    missing: Literal["mask", "raw"] = "mask"
    """Treatment of missing cells. `mask` computes without them; `raw` passes them to the model as NaN, as a demonstration."""

    @model_validator(mode="after")
    def _some_hour(self) -> Self:
        if self.issue_hours == ():
            raise ValueError("issue_hours is an empty list: give at least one hour, such as [0, 12], or leave it out")
        return self
