"""Dead rain gauges: months of zeros where the site's other years, or the other sites, have rain.

Shapes: S sites, T times, D days, N days with a value.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from llueve.audit.variable_cells import iso_time
from llueve.panel import BoolArray, Finding, feature_names, minute
from llueve.sources.names_and_units import MILLIMETRES_PER_UNIT

LEAST_DAYS = 60
"""Shortest dry spell, in days with a value, that a dead gauge can explain."""
LEAST_SPELLS = 12.0
"""Fewest wet spells that were to be expected in those days: chance and droughts leave out fewer."""
LONGER = 2.0
"""Least length of the spell, relative to the longest other dry spell of the same season at the site."""
LONGER_ALONE = 5.0
"""The same, relative to every other dry spell, for a record without other years and without other sites."""
MOST_ALONE_DAYS = 150
"""Longest spell that is judged in such a record: a longer one may be a dry season."""
SEASON_DAYS = 15
"""Days before and after a date whose wet days show how wet that date usually is."""
EDGE_DAYS = 45
"""Days before and after a spell that show the usual rain of a record without other years."""
USUAL_EDGE = 0.7
"""Least share of wet days in these weeks, relative to that of the whole record."""
ENOUGH_DAYS = 15
"""Fewest days from which a share of wet days is taken."""
MOST_UNKNOWN = 0.2
"""Largest share of a spell whose season no other year shows."""
MOST_OTHERS = 100
"""Largest number of other sites to compare with."""
ALIKE = 0.2
"""Least correlation of the wet days of two sites that share their weather."""
YEAR = 366


@dataclass(frozen=True)
class DeadGauge:
    """A site whose rain gauge reported only zeros for months."""

    variable: str
    site: int
    first: int
    """Index of the first time of the zeros."""
    last: int
    days: int
    """Days with a value."""
    expected: float
    """Wet days that were to be expected."""

    def finding(self, panel: xr.Dataset) -> Finding:
        """The gauge in words."""
        place, times = str(panel.variables["site"].values[self.site]), panel.variables["time"].values
        start, end = (minute(times[index])[:10] for index in (self.first, self.last))
        message = (
            f"{self.variable}: only zeros at {place} from {start} to {end} ({self.days} days), while about {self.expected:.0f} "
            "of these days should have rain; the gauge was probably dead: blank these cells, so that they count as missing"
        )
        first, last = iso_time(panel, self.first), iso_time(panel, self.last)
        return Finding("dead_gauge", "warning", message, self.variable, place, first, last, self.last - self.first + 1)

    def covers(self, site_W: NDArray[np.intp], end_W: NDArray[np.intp]) -> BoolArray:
        """True for each issue time at the site within the zeros."""
        inside: BoolArray = (site_W == self.site) & (end_W >= self.first - 1) & (end_W <= self.last)
        return inside


def dead_gauges(panel: xr.Dataset) -> list[DeadGauge]:
    """The dead gauges of all variables that are amounts of rain, at steps of at most a day.

    A dry season or a desert is no dead gauge: the expected number of wet days comes from the same season of the site's
    other years, and is smaller if sites of the same weather were drier than usual too. A record without other years is
    compared with these sites alone, and without them with the weeks before and after the zeros.
    """
    if float(panel.attrs["step_hours"]) > 24:
        return []
    found: list[DeadGauge] = []
    for name in feature_names(panel):
        array = panel.variables[name]
        is_depth = array.attrs.get("units") in MILLIMETRES_PER_UNIT or "accumulation_hours" in array.attrs
        if is_depth and not array.attrs.get("derived"):
            days = _WetDays.of(np.asarray(array.values), panel.variables["time"].values)
            if days is not None:
                found.extend(days.dead(name))
    return found


@dataclass(frozen=True)
class _WetDays:
    """Days with and without rain of all sites."""

    known_SD: BoolArray
    wet_SD: BoolArray
    season_D: NDArray[np.int64]
    """Day of the year from 0."""
    start_D: NDArray[np.intp]
    """Index of the first time of each day, and the number of times."""

    @classmethod
    def of(cls, values_ST: NDArray[np.float32], times: NDArray[np.datetime64]) -> "_WetDays | None":
        """The days of an amount of rain; None for a variable that is below zero or rarely zero."""
        with np.errstate(invalid="ignore"):
            zero, observed = int((values_ST == 0).sum()), int((~np.isnan(values_ST)).sum())
            if not observed or zero < 0.1 * observed or (values_ST < 0).any():
                return None
            # A value belongs to the time before it: 00 UTC is the end of a day.
            day_T = (times - np.timedelta64(1, "s")).astype("datetime64[D]")
            first = np.flatnonzero(np.concatenate([[True], day_T[1:] != day_T[:-1]]))
            known_SD = np.add.reduceat(~np.isnan(values_ST), first, axis=1, dtype=np.int64)
            wet_SD = np.logical_or.reduceat(values_ST > 0, first, axis=1)
        steps_D = np.diff(np.append(first, len(times)))
        days = day_T[first]
        season_D = (days - days.astype("datetime64[Y]")).astype(np.int64)
        return cls(2 * known_SD >= steps_D, wet_SD, season_D, np.append(first, len(times)))

    def dead(self, name: str) -> Iterator[DeadGauge]:
        """The dead gauges of the variable of this name."""
        for site in range(len(self.known_SD)):
            known_N = np.flatnonzero(self.known_SD[site])
            wet_N = np.flatnonzero(self.wet_SD[site][known_N])
            # Dry spells lie between wet days, and before the first and after the last one.
            border = np.concatenate([[-1], wet_N, [len(known_N)]])
            length = np.diff(border) - 1
            if not len(wet_N):
                continue
            for spell in np.flatnonzero(length >= LEAST_DAYS):
                inside = known_N[border[spell] + 1 : border[spell + 1]]
                if 2 * len(inside) < inside[-1] - inside[0] + 1:
                    continue
                others = known_N[
                    np.stack([border[:-1] + 1, border[1:] - 1])[:, (length > 0) & (border[:-1] != border[spell])]
                ]
                if (expected := self._expected(site, inside, others)) is not None:
                    first, last = int(self.start_D[inside[0]]), int(self.start_D[inside[-1] + 1]) - 1
                    yield DeadGauge(name, site, first, last, len(inside), expected)

    def _expected(self, site: int, inside_N: NDArray[np.intp], others_2N: NDArray[np.intp]) -> float | None:
        """Wet days to be expected in a dry spell; None if the spell needs no dead gauge.

        `inside_N` holds its days, `others_2N` the first and the last day of the site's other dry spells.
        """
        outside_D = self.known_SD[site].copy()
        outside_D[inside_N] = False
        outside_N = np.flatnonzero(outside_D)
        wet_N = self.wet_SD[site][outside_N]
        # Wet days come in spells, which count as one piece of evidence each.
        begins = 1 + int((wet_N[1:] & ~wet_N[:-1]).sum())
        least = LEAST_SPELLS * wet_N.sum() / begins
        others_N = others_2N[1] - others_2N[0] + 1
        usual_N = _usual(self.season_D[outside_N], wet_N)[self.season_D[inside_N]]
        span = inside_N[-1] - inside_N[0] + 1
        if np.isnan(usual_N).mean() <= MOST_UNKNOWN:
            expected = float(np.nanmean(usual_N)) * len(inside_N)
            in_season = np.isin(self.season_D[others_2N], self.season_D[inside_N]).any(axis=0)
            if expected < least or span < LONGER * others_N[in_season].max(initial=0):
                return None
            drier = self._drier(site, inside_N, outside_N)
            expected *= 1.0 if drier is None else drier
        else:
            by_others = self._by_others(site, inside_N, outside_N)
            longest = int(others_N.max(initial=0))
            expected = self._by_edges(site, inside_N, outside_N, longest) if by_others is None else by_others
        return expected if expected >= least else None

    def _by_edges(
        self, site: int, inside_N: NDArray[np.intp], outside_N: NDArray[np.intp], longest_other: int
    ) -> float:
        """Wet days to be expected from the weeks before and after a spell; 0 if a dry season may explain it.

        Rain fades before a dry season and comes back slowly after it. A dead gauge lies between weeks of usual rain.
        """
        before, after = outside_N[outside_N < inside_N[0]][-EDGE_DAYS:], outside_N[outside_N > inside_N[-1]][:EDGE_DAYS]
        span = inside_N[-1] - inside_N[0] + 1
        if min(len(before), len(after)) < ENOUGH_DAYS or not LONGER_ALONE * longest_other <= span <= MOST_ALONE_DAYS:
            return 0.0
        share = min(float(self.wet_SD[site][edge].mean()) for edge in (before, after))
        return share * len(inside_N) if share >= USUAL_EDGE * self.wet_SD[site][outside_N].mean() else 0.0

    def _similar(self, site: int, outside_N: NDArray[np.intp]) -> NDArray[np.intp]:
        """Other sites whose wet days go with those of the site on these days."""
        sites = np.flatnonzero(np.arange(len(self.known_SD)) != site)
        if len(sites) > MOST_OTHERS:
            sites = np.random.default_rng(0).choice(sites, MOST_OTHERS, replace=False)
        wet_N = self.wet_SD[site][outside_N]
        similar = []
        for other in sites:
            both = self.known_SD[other][outside_N]
            one, two = wet_N[both], self.wet_SD[other][outside_N][both]
            vary = len(one) >= EDGE_DAYS and one.any() and two.any() and not (one.all() or two.all())
            if vary and np.corrcoef(one, two)[0, 1] >= ALIKE:
                similar.append(other)
        return np.array(similar, dtype=np.intp)

    def _drier(self, site: int, inside_N: NDArray[np.intp], outside_N: NDArray[np.intp]) -> float | None:
        """Wet days of similar sites in these days, as a share of the usual number there, at most 1; None without such sites."""
        shares = []
        for other in self._similar(site, outside_N):
            days_N = inside_N[self.known_SD[other][inside_N]]
            rest_N = outside_N[self.known_SD[other][outside_N]]
            usual_N = _usual(self.season_D[rest_N], self.wet_SD[other][rest_N])[self.season_D[days_N]]
            if 2 * len(days_N) >= len(inside_N) and not np.isnan(usual_N).any() and usual_N.sum() > 0:
                shares.append(float(self.wet_SD[other][days_N].sum()) / float(usual_N.sum()))
        return min(1.0, float(np.median(shares))) if shares else None

    def _by_others(self, site: int, inside_N: NDArray[np.intp], outside_N: NDArray[np.intp]) -> float | None:
        """Wet days to be expected from those of similar sites on the same days; None without such sites."""
        counts = []
        for other in self._similar(site, outside_N):
            days_N = inside_N[self.known_SD[other][inside_N]]
            both_N = outside_N[self.known_SD[other][outside_N]]
            if 2 * len(days_N) < len(inside_N):
                continue
            ratio = self.wet_SD[site][both_N].mean() / self.wet_SD[other][both_N].mean()
            counts.append(ratio * self.wet_SD[other][days_N].mean() * len(inside_N))
        return float(np.median(counts)) if counts else None


def _usual(season_N: NDArray[np.int64], wet_N: BoolArray) -> NDArray[np.float64]:
    """Share of wet days around each day of the year, (366,); NaN where too few days are known."""
    around = np.ones(2 * SEASON_DAYS + 1)

    def summed(count_Y: NDArray[Any]) -> NDArray[np.float64]:
        return np.convolve(np.pad(count_Y, SEASON_DAYS, mode="wrap"), around, mode="valid")

    known_Y = summed(np.bincount(season_N, minlength=YEAR).astype(float))
    wet_Y = summed(np.bincount(season_N, weights=wet_N, minlength=YEAR))
    return np.where(known_Y >= ENOUGH_DAYS, wet_Y / np.maximum(known_Y, 1), np.nan)
