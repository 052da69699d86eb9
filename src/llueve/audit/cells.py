"""What the cells say of themselves: missing, stuck, far out, marks for missing, wrong units.

Shapes: S sites, T times, W windows.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from llueve.audit.twins import check_twins
from llueve.audit.units import bounds, mistaken, odd_sites, site_middles, unit_of
from llueve.panel import BoolArray, Finding, FloatArray, feature_names, recorded_rows
from llueve.windows import Part, windows_with

MOSTLY_MISSING = 0.5
"""From this share of missing cells on, a variable is worth a warning."""
STUCK_STEPS = 10
STUCK_HOURS = 24
"""A sensor is called stuck after this long at one value, both in steps and in hours."""
STUCK_VALUES = 20
"""Variables with fewer different values stay at one for long without being stuck."""
FAR = 10
"""Times the distance from the median that all but 0.5 % of the cells keep."""
MARKS = (
    -9999.9,
    -9999.0,
    -999.9,
    -999.0,
    -99.9,
    -99.0,
    999.0,
    999.9,
    9999.0,
    9999.9,
    32767.0,
    99999.0,
    1e20,
    9.969209968386869e36,
    -32767.0,
    -32768.0,
)
"""Numbers by which archives say "missing"."""
STUCK_USUAL = 0.2
"""Share of a site's runs from which on their value is its usual one, as a dry day is."""
STUCK_END = 0.01
"""Share of a site's runs below, or above, which lies an end of its range; of all sites' runs it is a tenth of that."""
NEAR_END = 1e-6
"""Times the spread of all values, within which a value is at an end: packing moves zeros about by less."""
NOISE = 1e-5
"""Times the farthest distance from the median; anything nearer is taken for nought."""
FAR_CELLS = 10
"""Fewer cells that are not at the median do not tell how far the others may be."""
MARK_CELLS = 3
"""So many equal cells just outside the range of all others are no tail of it."""
MARK_GAP = 0.05
"""Times the range of all other values, by which a mark for missing lies outside it."""
BAD_SHARE = 0.05
"""Bad cells are at most this share of all, by the second rule of what is far out."""
ALIKE = 0.9
"""From this share of the sites on, what they have in common has one cause."""


@dataclass(frozen=True)
class Cells:
    """One variable's values, and in order, which most checks need."""

    panel: xr.Dataset
    name: str
    values_ST: FloatArray

    @cached_property
    def ordered_ST(self) -> FloatArray:
        """Each site's values in order, those missing last."""
        return np.sort(self.values_ST, axis=1)

    @cached_property
    def known_S(self) -> NDArray[np.int64]:
        """Values of each site."""
        return np.asarray(np.count_nonzero(~np.isnan(self.values_ST), axis=1), np.int64)

    @cached_property
    def ordered(self) -> FloatArray:
        """All known values in order."""
        return np.sort(self.values_ST[~np.isnan(self.values_ST)])

    @cached_property
    def distinct(self) -> int:
        """Number of different values."""
        return 1 + int((np.diff(self.ordered) > 0).sum())

    @cached_property
    def units(self) -> str | None:
        """The variable's unit, if it has one."""
        return unit_of(self.panel, self.name)


def check_cells(panel: xr.Dataset, training: Part | None, training_rows: int, context: int) -> list[Finding]:
    """Every check of single variables and of sites against each other.

    Args:
        training: the training windows, to tell what masking does to them; None where there are none.
        training_rows: times before this index are training.
        context: steps of a window.
    """
    findings = []
    # Steps that the source has no row for are gaps, which the reader reports: here only cells of its rows count.
    recorded_ST = recorded_rows(panel)
    for name in feature_names(panel):
        values_ST = panel[name].values
        known_ST = ~np.isnan(values_ST)
        if not known_ST[:, :training_rows].any():
            message = "no observed value in the training period; name it in data.exclude"
            findings.append(Finding("all_missing", "error", f"{name}: {message}", variable=name))
            continue
        if np.nanmin(values_ST[:, :training_rows]) == np.nanmax(values_ST[:, :training_rows]):
            message = "one value only in the training period: it tells nothing apart; name it in data.exclude"
            findings.append(Finding("constant", "warning", f"{name}: {message}", variable=name))
        if (missing_ST := recorded_ST & ~known_ST).any():
            at_start = _missing_at_start(panel, name, missing_ST, recorded_ST)
            findings.append(_missing(panel, name, missing_ST, recorded_ST, at_start, training, context))
            findings.extend(at_start)
        cells = Cells(panel, name, values_ST)
        for check in (_marks, _implausible, _odd_sites, _far_out, _stuck):
            findings.extend(check(cells))
        if training is not None:
            findings.extend(_flat_windows(cells, training, context))
    return findings + check_twins(panel)


def moment(panel: xr.Dataset, index: int) -> str:
    """Time of an index, ISO 8601."""
    return str(np.datetime_as_string(panel["time"].values[index], unit="s"))


def _where(panel: xr.Dataset, flag_ST: BoolArray) -> dict[str, str | int]:
    """First and last time and number of the flagged cells, as a finding holds them."""
    times = np.flatnonzero(flag_ST.any(axis=0))
    return {"first": moment(panel, int(times[0])), "last": moment(panel, int(times[-1])), "count": int(flag_ST.sum())}


def _at(panel: xr.Dataset, flag_ST: BoolArray) -> str:
    """The first flagged cell in words."""
    site, time = np.argwhere(flag_ST)[0]
    return f"{panel['site'].values[site]}, {moment(panel, int(time))}"


def _missing(
    panel: xr.Dataset,
    name: str,
    missing_ST: BoolArray,
    recorded_ST: BoolArray,
    at_start: list[Finding],
    training: Part | None,
    context: int,
) -> Finding:
    """How much of one variable is missing, where, and what masking does to the training windows."""
    count, rows = int(missing_ST.sum()), int(recorded_ST.sum())
    sites = int(np.any(missing_ST, axis=1).sum())
    gone_ST = np.isnan(panel[name].values)
    never = int(gone_ST.all(axis=1).sum())
    message = f"{name}: {count:,} of {rows:,} cells missing ({count / rows:.1%})"
    message += f", at {sites} of {panel.sizes['site']} sites"
    message += f"; never observed at {never} of them" if never else ""
    if len(at_start) == sites:  # nowhere else
        steps = sorted({finding.count or 0 for finding in at_start})
        message += f", the first {'–'.join(map(str, dict.fromkeys((steps[0], steps[-1]))))} step(s) of each"
    message += "; masked"
    if training is not None:
        gone_W = windows_with(gone_ST, training, context)
        message += f": {(gone_W > 0).sum():,} of {len(gone_W):,} training windows see fewer of its steps"
        message += f", {(gone_W == context).sum():,} none" if (gone_W == context).any() else ""
    severity = "warning" if count > MOSTLY_MISSING * rows else "info"
    return Finding("missing_cells", severity, message, variable=name, **_where(panel, missing_ST))  # type: ignore[arg-type]


def _missing_at_start(panel: xr.Dataset, name: str, missing_ST: BoolArray, recorded_ST: BoolArray) -> list[Finding]:
    """Sites whose missing cells are exactly their first rows; if nearly all miss as many, lags and means that look back."""
    first_of: dict[int, int] = {}
    for site in np.flatnonzero(missing_ST.any(axis=1)):
        gone_R = missing_ST[site][recorded_ST[site]]
        first = int(gone_R.sum())
        if gone_R[:first].all() and first < len(gone_R) // 2:
            first_of[int(site)] = first
    observed = int((recorded_ST & ~missing_ST).any(axis=1).sum())
    (common, alike) = Counter(first_of.values()).most_common(1)[0] if first_of else (0, 0)
    findings = []
    for here, first in first_of.items():
        where = _where(panel, missing_ST[here : here + 1])
        place = str(panel["site"].values[here])
        message = f"{name}: missing in the first {first} step{'s' * (first > 1)} of {place}, and nowhere else there"
        if first == common and alike > 1 and alike >= ALIKE * observed:
            message += f", as at {alike} of {observed} sites: a lag or a rolling mean that looks back beyond the record"
        findings.append(Finding("missing_at_start", "info", f"{message}; masked", name, place, **where))  # type: ignore[arg-type]
    return findings


def _marks(cells: Cells) -> list[Finding]:
    """Numbers that archives write for "missing", outside the range of all others."""
    known = cells.ordered
    spans = {}
    for mark in MARKS:
        ends = sorted((mark * (1 - 1e-6), mark * (1 + 1e-6)))
        start, end = int(np.searchsorted(known, ends[0], "left")), int(np.searchsorted(known, ends[1], "right"))
        if end > start:
            spans[mark] = (start, end)
    if not spans:
        return []
    other = np.ones(len(known), dtype=np.bool_)
    for start, end in spans.values():
        other[start:end] = False
    others = known[other].astype(np.float64)
    findings = []
    for mark, (start, end) in spans.items():
        if len(others):
            gap = max(others[0] - mark, mark - others[-1])
            below_nought = mark < 0 <= others[0]
            # A few cells just beyond the range may be its tail: 999 hPa is a pressure.
            apart = end - start >= MARK_CELLS or gap > 3 * max(float(others.std()), 1e-9) or below_nought
            if gap <= MARK_GAP * (others[-1] - others[0]) or gap <= 0 or not apart:
                continue
        marked_ST = np.isclose(cells.values_ST, mark, rtol=1e-6, atol=0)
        message = (
            f"{cells.name}: {marked_ST.sum():,} cells hold {mark:g}, far from every other value, the first at "
            f"{_at(cells.panel, marked_ST)}: a mark for missing; name it in data.sentinels"
        )
        findings.append(Finding("sentinel", "error", message, cells.name, **_where(cells.panel, marked_ST)))  # type: ignore[arg-type]
    return findings


def _implausible(cells: Cells) -> list[Finding]:
    """Values that the variable's unit does not allow on Earth's surface, one by one or as a whole."""
    name, values_ST = cells.name, cells.values_ST
    middle, spread = site_middles(cells.ordered_ST, cells.known_S)
    range_ = bounds(cells.units, cells.ordered, middle)
    findings = []
    if range_ is not None and (beyond_ST := (values_ST < range_[0]) | (values_ST > range_[1])).any():
        message = (
            f"{name}: {beyond_ST.sum():,} values are beyond {range_[0]:g} to {range_[1]:g} {cells.units}, the first "
            f"{values_ST[beyond_ST][0]:g} at {_at(cells.panel, beyond_ST)}, the median {np.nanmedian(values_ST):g}; mend "
            f"these cells, or correct data.units.{name}"
        )
        findings.append(Finding("implausible", "warning", message, name, **_where(cells.panel, beyond_ST)))  # type: ignore[arg-type]
    elif (why := mistaken(name, cells.units, cells.ordered, middle, spread)) is not None:
        message = f"{name}: {why}; correct data.units.{name} if so"
        findings.append(Finding("implausible", "warning", message, name, count=len(cells.ordered)))
    return findings


def _odd_sites(cells: Cells) -> list[Finding]:
    """Sites that seem to have another unit than all others."""
    findings = []
    for site, how in odd_sites(cells.units, cells.ordered_ST, cells.known_S):
        place = str(cells.panel["site"].values[site])
        message = (
            f"{cells.name}: the values at {place}, with a median of {np.nanmedian(cells.values_ST[site]):g}, lie far from "
            f"those of every other site; {how}; mend its unit if it differs"
        )
        findings.append(Finding("odd_site", "warning", message, cells.name, place, count=int(cells.known_S[site])))
    return findings


def _far_out(cells: Cells) -> list[Finding]:
    """Cells many times as far from the median as nearly all others: a robust measure that rain's long tail passes.

    Where 0.5 % of the cells are bad, or fewer than that are not dry, it says nothing. There a gap tells: few cells, all
    of them many times as far from the median as the next.
    """
    known, values_ST = cells.ordered.astype(np.float64), cells.values_ST
    centre = float(np.median(known))
    distance = np.sort(np.abs(known - centre))
    usual = float(np.quantile(distance, 0.995))
    least, how = FAR * usual, "99.5 % of the cells"
    if usual == 0 or distance[-1] <= least:
        telling = distance[distance > NOISE * distance[-1]]  # packing leaves tiny numbers for nought
        # At most this many may be bad, and as many times four must be left to tell what is usual.
        most = min(int(BAD_SHARE * len(known)), len(telling) // 5)
        if not most or len(telling) - most < FAR_CELLS:
            return []
        jump = np.flatnonzero(telling[-most:] > FAR * telling[-most - 1 : -1])
        if not len(jump):
            return []
        least, how = float(telling[-most - 1 : -1][jump[0]]), "all the others that are not at it"
        least *= FAR
    far_ST = np.abs(values_ST.astype(np.float64) - centre) > least
    message = (
        f"{cells.name}: {far_ST.sum():,} values are over {FAR} times as far from the median ({centre:g}) as {how}, the "
        f"first {values_ST[far_ST][0]:g} at {_at(cells.panel, far_ST)}; mend or blank them if they cannot be true"
    )
    return [Finding("outliers", "warning", message, cells.name, **_where(cells.panel, far_ST))]  # type: ignore[arg-type]


def _stuck(cells: Cells) -> list[Finding]:
    """Long runs of one value of a variable that otherwise varies.

    Neither at an end of its range nor at a site's usual value: no rain is no fault. What the ends are is asked of the
    runs, each counted once, so that neither an odd cell nor the stuck sensor itself moves them.
    """
    if cells.distinct < STUCK_VALUES:
        return []
    values_ST = cells.values_ST
    least = max(STUCK_STEPS, math.ceil(STUCK_HOURS / float(cells.panel.attrs["step_hours"])))
    last = len(cells.ordered) - 1
    near = NEAR_END * float(cells.ordered[math.floor(0.9999 * last)] - cells.ordered[math.ceil(0.0001 * last)])
    starts_of: list[NDArray[np.intp]] = []
    runs_of: list[FloatArray] = []
    varied_S = np.zeros(len(values_ST), dtype=np.bool_)
    for site, values_T in enumerate(values_ST):
        border = np.flatnonzero(np.concatenate([[True], values_T[1:] != values_T[:-1], [True]]))  # NaN equals nothing
        ordered_R = np.sort(values_T[border[:-1]])
        ordered_R = ordered_R[~np.isnan(ordered_R)]
        varied_S[site] = 1 + (np.diff(ordered_R) > 0).sum() >= STUCK_VALUES
        starts_of.append(border)
        runs_of.append(ordered_R)
    all_runs = np.sort(np.concatenate(runs_of))
    ends = _ends(all_runs, STUCK_END / 10)
    stuck_ST, held_S = np.zeros_like(values_ST, dtype=np.bool_), 0
    # A height or a coordinate is one value at each site: by its nature, not by a fault.
    varies = 2 * varied_S.sum() > np.count_nonzero(cells.known_S)
    for site, (values_T, border, ordered_R) in enumerate(zip(values_ST, starts_of, runs_of, strict=True)):
        long = np.flatnonzero(np.diff(border) >= least)
        if not len(long) or not (varied_S[site] or varies):
            continue
        allowed = [ends]
        if varied_S[site]:
            allowed.append(_ends(ordered_R, STUCK_END))
            value, count = np.unique(ordered_R, return_counts=True)
            if count.max() >= STUCK_USUAL * len(ordered_R):
                usual = float(value[count.argmax()])
                long = long[np.abs(values_T[border[long]] - usual) > near]
        for low, high in allowed:
            long = long[(values_T[border[long]] > low + near) & (values_T[border[long]] < high - near)]
        for run in long:
            stuck_ST[site, border[run] : border[run + 1]] = True
        held_S += len(long) >= STUCK_STEPS and 2 * stuck_ST[site].sum() > cells.known_S[site]
    # Monthly values in a daily table stay for a month each, everywhere.
    if not stuck_ST.any() or 2 * held_S > np.count_nonzero(cells.known_S):
        return []
    sites = int(stuck_ST.any(axis=1).sum())
    message = (
        f"{cells.name}: {stuck_ST.sum():,} cells are in runs of at least {least} equal values, at {sites} sites, the first "
        f"at {_at(cells.panel, stuck_ST)}; blank them if a sensor was stuck"
    )
    return [Finding("stuck", "warning", message, cells.name, **_where(cells.panel, stuck_ST))]  # type: ignore[arg-type]


def _ends(ordered: FloatArray, share: float) -> tuple[float, float]:
    """The values that `share` of all are at or below, and at or above."""
    last = len(ordered) - 1
    return float(ordered[math.floor(share * last)]), float(ordered[math.ceil((1 - share) * last)])


def _flat_windows(cells: Cells, training: Part, context: int) -> list[Finding]:
    """Training windows in which the variable does not vary: the published Hugging Face normaliser divides by zero there."""
    if context < 2 or cells.distinct < STUCK_VALUES:
        return []
    values_ST = cells.values_ST
    moves_ST = np.zeros_like(values_ST, dtype=np.bool_)
    moves_ST[:, 1:] = values_ST[:, 1:] != values_ST[:, :-1]
    whole_W = windows_with(np.isnan(values_ST), training, context) == 0
    # The first step of a window has nothing before it to differ from.
    flat = int((whole_W & (windows_with(moves_ST, training, context - 1) == 0)).sum())
    if not flat:
        return []
    message = (
        f"{cells.name}: does not vary in {flat:,} of {whole_W.sum():,} fully observed training windows; normalised to zero "
        "there, its level is kept by the head"
    )
    return [Finding("flat_windows", "info", message, cells.name, count=flat)]
