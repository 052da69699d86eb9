"""Predictors of the learned references: what a forecaster with a spreadsheet would take from the same past.

Each column is known at the issue time. Rain enters as its logarithm, as sums and as shares of wet steps: on hourly data
single values say little, and a linear model cannot take a logarithm itself.

Shapes: S sites, T times, C variables, F predictors, n rows of a part.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Flag, auto

import numpy as np
from numpy.typing import NDArray

from llueve.panel import FloatArray, whole_steps
from llueve.samples.climatology import CALENDAR_DAYS, calendar_day
from llueve.samples.features import earlier, nearest_sites, tendency
from llueve.samples.scale import usual_amount
from llueve.samples.split import Part
from llueve.verification.reference_data import ReferenceData

Doubles = NDArray[np.float64]

LAG_STEPS = (1, 2, 3, 7)
"""Steps before the issue time at which the set `recent` sees each variable, as far as they are inside the context."""
LAG_HOURS = (1, 3, 6, 12, 24, 48, 72, 168)
"""Hours before the issue time at which the set `full` does, as far as they are whole steps inside the context."""
MEAN_HOURS = (6, 24, 72)
"""Lengths of the means and sums that end at the issue time; the context is one more."""
TENDENCY_HOURS = (3, 24)
"""Lengths of the changes up to the issue time."""
NEIGHBOURS = 8
"""Most nearest sites whose values a learned reference sees, if the model sees other sites."""
LEAST_KNOWN = 0.5
"""Smallest share of observed steps for which a mean counts as known."""
WET = 0.1
"""Share of the median amount from which a step counts as wet."""


class PredictorSet(Flag):
    """Columns that a learned reference may use. Validation chooses between them: few rows do not carry many columns."""

    RECENT = auto()
    """Values at the issue time and at a few lags, calendar, static values and site."""
    FULL = auto()
    """Lags of hours to days, and also means, sums, changes, shares of wet steps, and the mean of the other sites."""
    NEIGHBOURS = auto()
    """Values of the nearest sites at the issue time, and their means or sums over a day: added to one of the others."""


EITHER = PredictorSet.RECENT | PredictorSet.FULL


@dataclass(frozen=True, eq=False)
class Column:
    """One predictor that changes in time."""

    values_ST: Doubles
    sets: PredictorSet
    """The sets that it belongs to."""
    seen_from_S: NDArray[np.intp] | None = None
    """Index of the site whose values each site sees; None for its own."""

    def of(self, part: Part) -> Doubles:
        """Its values (n,) for the rows of a part."""
        site_n = part.site if self.seen_from_S is None else self.seen_from_S[part.site]
        return self.values_ST[site_n, part.end]


@dataclass(frozen=True, eq=False)
class Design:
    """All predictors of some parts, each column computed once."""

    matrices: list[FloatArray]
    """The predictors of each part, (n, F): one row per issue time. With several sites the last column is the site's index.
    A cell is NaN if it was not observed, or if it reaches before the panel's start."""
    sets_F: list[PredictorSet]
    """The sets that each column belongs to."""

    def columns(self, chosen: PredictorSet) -> NDArray[np.intp]:
        """Indices of the columns of one of the chosen sets."""
        return np.flatnonzero([bool(each & chosen) for each in self.sets_F])


def design(data: ReferenceData, parts: Sequence[Part]) -> Design:
    """The predictors of all sets for each part, float32."""
    taken: list[list[NDArray[np.float32]]] = [[] for _ in parts]
    sets_F = []
    for column in _columns(data):
        sets_F.append(column.sets)
        for part, columns in zip(parts, taken, strict=True):
            columns.append(column.of(part).astype(np.float32))
    fixed = data.statics_SF.shape[1] + (len(data.cube_STC) > 1)
    matrices = []
    for part, columns in zip(parts, taken, strict=True):
        columns.extend(data.statics_SF[part.site].T)
        if len(data.cube_STC) > 1:
            columns.append(part.site.astype(np.float32))
        matrix_nF = np.empty((len(part), len(columns)), np.float32)
        for place in range(matrix_nF.shape[1]):  # one by one: the matrix is the largest array of a verification
            matrix_nF[:, place] = columns.pop(0)
        matrices.append(matrix_nF)
    return Design(matrices, [*sets_F, *[EITHER] * fixed])


def most_columns(data: ReferenceData) -> int:
    """A bound on the number of predictors, without computing them."""
    sums, near = len(_lengths(data)), 1 + len(_steps(data, (24,), least=2))
    lags = {*_lags(data, PredictorSet.RECENT), *_lags(data, PredictorSet.FULL)}
    changes = max(len(_steps(data, TENDENCY_HOURS)), 1 + sums)
    own = 2 + len(lags) + sums + changes + near * (1 + len(_neighbours(data)))
    statics: int = data.statics_SF.shape[1]
    return own * len(data.derived_C) + 2 * 2 * 2 + statics + 1


def _columns(data: ReferenceData) -> Iterator[Column]:
    """Every predictor that changes in time, in a fixed order."""
    training_rows = int(data.training.end.max()) + 1
    neighbours = _neighbours(data)
    for c, derived in enumerate(data.derived_C):
        values_ST = data.cube_STC[:, :, c].astype(np.float64)
        scale = usual_amount(values_ST[:, :training_rows])
        if derived:  # a lag or a sum of a sum would repeat what [features] made
            yield Column(_level(values_ST, scale), EITHER)
        else:
            yield from _of_variable(data, values_ST, scale, neighbours)
        missing_ST = np.isnan(values_ST)
        if missing_ST[:, :training_rows].any():
            yield Column(missing_ST.astype(np.float64), EITHER)
    for turn_T in _turns(data):
        for wave in (np.sin, np.cos):
            yield Column(np.broadcast_to(wave(2 * np.pi * turn_T), data.event_ST.shape), EITHER)


def _of_variable(
    data: ReferenceData, values_ST: Doubles, scale: float | None, neighbours: Sequence[NDArray[np.intp]]
) -> Iterator[Column]:
    """The predictors of one variable. `scale` is its usual amount if it is intermittent, as rain is, otherwise None."""
    full = PredictorSet.FULL
    level_ST = _level(values_ST, scale)
    yield Column(level_ST, EITHER)
    recent_lags, full_lags = _lags(data, PredictorSet.RECENT), _lags(data, full)
    for lag in sorted({*recent_lags, *full_lags}):
        sets = (
            EITHER if lag in recent_lags and lag in full_lags else PredictorSet.RECENT if lag in recent_lags else full
        )
        yield Column(earlier(level_ST, lag), sets)
    mean = _running_mean(values_ST)

    def total_or_mean(steps: int) -> Doubles:
        return _level(mean(steps) if scale is None else mean(steps) * steps, scale)

    for steps in _lengths(data):
        yield Column(total_or_mean(steps), full)
    if scale is None:
        for steps in _steps(data, TENDENCY_HOURS):
            yield Column(tendency(values_ST, steps), full)
    else:
        wet_ST = np.where(np.isnan(values_ST), np.nan, values_ST > WET * scale)
        yield Column(wet_ST, full)
        share = _running_mean(wet_ST)
        for steps in _lengths(data):
            yield Column(share(steps), full)
    if len(values_ST) > 1:
        for seen_ST in (level_ST, *map(total_or_mean, _steps(data, (24,), least=2))):
            yield Column(_mean_of_others(seen_ST), full)
            for near_S in neighbours:
                yield Column(seen_ST, PredictorSet.NEIGHBOURS, near_S)


def _level(amount_ST: Doubles, scale: float | None) -> Doubles:
    """The values themselves, or the logarithm of an intermittent variable."""
    return amount_ST if scale is None else np.log1p(np.maximum(amount_ST, 0) / scale)


def _neighbours(data: ReferenceData) -> list[NDArray[np.intp]]:
    """Index of the nearest site of each site, of the second nearest, and so on; none if the model sees no other site."""
    if data.position_S2 is None:
        return []
    latitude_S, longitude_S = data.position_S2.T
    return list(nearest_sites(latitude_S, longitude_S, min(NEIGHBOURS, len(latitude_S) - 1)).T)


def _lengths(data: ReferenceData) -> list[int]:
    """Steps of the means and sums that end at the issue time."""
    return sorted({*_steps(data, MEAN_HOURS, least=2), *([data.context] if data.context > 1 else [])})


def _lags(data: ReferenceData, chosen: PredictorSet) -> list[int]:
    if data.lags is not None:
        return sorted(set(data.lags))
    if chosen == PredictorSet.RECENT:
        return [lag for lag in LAG_STEPS if lag < data.context]
    return _steps(data, LAG_HOURS)


def _steps(data: ReferenceData, hours: Sequence[float], least: int = 1) -> list[int]:
    """Numbers of steps that these hours are, without those that reach beyond the context."""
    steps = {whole_steps(each, data.step_hours) for each in hours}
    return sorted(each for each in steps if each is not None and least <= each < data.context)


def _running_mean(values_ST: Doubles) -> Callable[[int], Doubles]:
    """The mean of the observed values among the last steps, as a function of their number; NaN if too few are observed."""
    known_ST = ~np.isnan(values_ST)
    sums_ST, counts_ST = (
        np.concatenate([np.zeros((len(each_ST), 1)), each_ST.cumsum(axis=1)], axis=1)
        for each_ST in (np.where(known_ST, values_ST, 0.0), known_ST.astype(np.float64))
    )

    def mean(steps: int) -> Doubles:
        mean_ST = np.full_like(values_ST, np.nan)
        total_ST, count_ST = (each[:, steps:] - each[:, :-steps] for each in (sums_ST, counts_ST))
        enough_ST = count_ST >= LEAST_KNOWN * steps
        np.divide(total_ST, count_ST, out=mean_ST[:, steps - 1 :], where=enough_ST)
        return mean_ST

    return mean


def _mean_of_others(values_ST: Doubles) -> Doubles:
    """The mean over all other sites at the same time; NaN where none is observed."""
    known_ST = ~np.isnan(values_ST)
    filled_ST, others_ST = np.where(known_ST, values_ST, 0.0), known_ST.sum(axis=0) - known_ST
    mean_ST = np.full_like(values_ST, np.nan)
    np.divide(filled_ST.sum(axis=0) - filled_ST, others_ST, out=mean_ST, where=others_ST > 0)
    return mean_ST


def _turns(data: ReferenceData) -> Iterator[Doubles]:
    """Angles of the calendar (T,) in turns: of the year, and of the day if the step is shorter, each also twice as fast."""
    turns = [calendar_day(data.times) / CALENDAR_DAYS]
    if data.step_hours < 24:
        turns.append((data.times - data.times.astype("datetime64[D]")) / np.timedelta64(24, "h"))
    for turn_T in turns:
        yield turn_T
        yield 2 * turn_T
