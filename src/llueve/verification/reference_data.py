"""Input of the reference forecasts. Shapes: S sites, T times, C variables, F features, n rows of a part."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llueve.errors import DataError, UsageError
from llueve.panel import BoolArray, FloatArray, minute
from llueve.samples.split import Part
from llueve.samples.target import horizon_steps


@dataclass(frozen=True, eq=False)
class ReferenceData:
    """Input of the reference forecasts."""

    cube_STC: FloatArray
    """Features in their own units, NaN where not observed."""
    derived_C: BoolArray
    """True for variables of `[features]`: they are sums, means or lags already."""
    statics_SF: FloatArray
    """Per-site features that never change; may have no column."""
    times: NDArray[np.datetime64]
    """Issue times (T,), UTC."""
    step_hours: float
    horizon_hours: float
    context: int
    """Steps that the model sees, up to and including the issue time: the learned references see as far back."""
    event_ST: FloatArray
    """1 event, 0 no event, NaN unknown, at the issue time. An outcome is known one horizon after its issue time."""
    training: Part
    validation: Part
    lags: tuple[int, ...] | None
    """Steps before the issue time that the learned references also see; None for the usual hours."""
    seed: int
    sample: Part | None = None
    """Training windows that the learned references are fitted on, if the model too has only a share of them; None for all."""
    position_S2: NDArray[np.float64] | None = None
    """Latitude and longitude of each site in degrees, if the model sees its neighbours: the learned references see them too.
    None if it sees no other site."""

    def __post_init__(self) -> None:
        sites, times, variables = self.cube_STC.shape
        found = (self.statics_SF.shape[0], self.times.shape, self.event_ST.shape, self.derived_C.shape)
        if found != (sites, (times,), (sites, times), (variables,)):
            match = f"expected statics, times, events and variables to match it, found {found}"
            raise UsageError(f"the cube has {sites} sites, {times} times and {variables} variables; {match}")
        if self.position_S2 is not None and self.position_S2.shape != (sites, 2):
            raise UsageError(
                f"the cube has {sites} sites; expected positions ({sites}, 2), found {self.position_S2.shape}"
            )
        if any(lag < 1 for lag in self.lags or ()):
            raise UsageError(f"lags are {self.lags}; expected steps back in time, each at least 1")

    @property
    def fitted(self) -> Part:
        """Training windows that the learned references are fitted on."""
        return self.training if self.sample is None else self.sample

    @property
    def horizon_steps(self) -> int:
        """Steps after which an outcome is known."""
        return horizon_steps(self.horizon_hours, self.step_hours)


def known_events(data: ReferenceData, rows: Part) -> NDArray[np.int64]:
    """Outcomes (n,) of the rows of training or validation.

    Raises:
        DataError: there is no row, or a row with an unknown outcome.
    """
    if len(rows) == 0:
        raise DataError(f"{rows.name} has no row: expected at least one; move the cut dates of [split]")
    events = data.event_ST[rows.site, rows.end]
    if (unknown := np.isnan(events)).any():
        at = int(np.argmax(unknown))
        raise DataError(
            f"{rows.name}: {unknown.sum()} of {len(rows)} rows have no known outcome, the first at site index "
            f"{rows.site[at]}, {minute(data.times[rows.end[at]])}; expected only labelled rows"
        )
    return events.astype(np.int64)
