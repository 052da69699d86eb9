"""What is forecast: `[target]`."""

from typing import Self

from pydantic import Field, model_validator

from llueve.config.section import Section


class TargetConfig(Section):
    """What is forecast (`[target]`): a label column, or a sum of precipitation over the next hours."""

    label: str | None = None
    """Label column."""
    classes: tuple[str, ...] = ("0", "1")
    """Values of the label column, in the order of the classes."""
    missing: tuple[str, ...] = ()
    """Values of the label column that mean "unknown", besides `data.missing`."""
    event: str | None = None
    """The class whose probability is verified; without it the last one."""
    variable: str | None = None
    """Precipitation variable that is summed over the horizon."""
    threshold_mm: float | None = Field(None, ge=0.01)
    """The event is a sum of at least this many millimetres. Packed archives hold traces of rain that never fell: 0.1 mm
    is the usual least."""
    horizon_hours: float = Field(24.0, gt=0)
    """The target looks over (t, t + horizon]."""
    allow_sampled: bool = False
    """Accept sums of a variable whose accumulation is shorter than the step, knowing that they miss most of the rain."""

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
        # `to_toml` writes the default too, so only another value tells a wish.
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
