"""Variables derived from those of the table: `[features]`."""

from typing import Annotated, Literal

from pydantic import Field

from llueve.config.section import Section

Statistic = Literal["mean", "std", "sum", "min", "max"]
Hours = Annotated[float, Field(gt=0)]


class Rolling(Section):
    """One statistic of a variable over the last hours (an entry of `features.rolling`)."""

    variable: str
    hours: Hours
    statistic: Statistic


class FeaturesConfig(Section):
    """Variables derived from those of the table (`[features]`); each is known at its own time."""

    wind: dict[str, tuple[str, str]] = Field(default_factory=dict)
    """New name → eastward and northward component: `wind10 = ["u10", "v10"]` makes wind10_speed, _from_sin, _from_cos."""
    dewpoint_spread: dict[str, tuple[str, str]] = Field(default_factory=dict)
    """New name → temperature and dewpoint."""
    relative_humidity: dict[str, tuple[str, str]] = Field(default_factory=dict)
    """New name → temperature and dewpoint."""
    tendency_hours: dict[str, tuple[Hours, ...]] = Field(default_factory=dict)
    """Variable → over how many hours its change is taken: `sp = [3, 24]` makes sp_change_3h and sp_change_24h."""
    lag_hours: dict[str, tuple[Hours, ...]] = Field(default_factory=dict)
    """Variable → how many hours back."""
    rolling: tuple[Rolling, ...] = ()
    """Statistics over the last hours: `{ variable = "tp", hours = 168, statistic = "sum" }` makes tp_sum_168h."""
    neighbours: int = Field(0, ge=0, le=50)
    """How many nearest sites lend their variables."""
    neighbour_variables: tuple[str, ...] | None = None
    """Which of them; all without it."""
