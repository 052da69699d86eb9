"""Checks of the cells of each variable: missing, constant, marks for missing, implausible, far out, flat.

Shapes: S sites, T times, W windows.
"""

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from llueve.audit.angles import check_angles
from llueve.audit.stuck import STUCK_VALUES, check_stuck
from llueve.audit.twins import check_twins
from llueve.audit.units import bounds, mistaken, odd_sites, site_middles, storm
from llueve.audit.variable_cells import VariableCells
from llueve.panel import BoolArray, Finding, Severity, feature_names, recorded_rows
from llueve.samples.split import Part, windows_with

MOSTLY_MISSING = 0.5
"""Share of missing cells above which a variable gets a warning."""
FAR = 10
"""Factor over the distance from the median that 99.5 % of the cells keep, above which a cell is far out."""
MARKS = (
    *(-9999.9, -9999.0, -999.9, -999.0, -99.9, -99.0, 999.0, 999.9, 9999.0, 9999.9),
    *(32767.0, 99999.0, 1e20, 9.969209968386869e36, -32767.0, -32768.0),
)
"""Numbers with which archives mark missing cells."""
NOISE = 1e-5
"""Share of the largest distance from the median below which a distance counts as zero."""
FAR_CELLS = 10
"""Fewest cells off the median that show the usual distance of the others."""
MARK_CELLS = 3
"""Equal cells just outside the range of all others that cannot be the tail of its distribution."""
MARK_GAP = 0.05
"""Share of the range of all other values by which a mark for missing lies outside it."""
BAD_SHARE = 0.05
"""Largest share of bad cells, by the second rule for far-out cells."""
ALIKE = 0.9
"""Share of the sites from which a common property has one common cause."""


def check_cells(panel: xr.Dataset, training: Part | None, training_rows: int, context: int) -> list[Finding]:
    """Every check of single variables and of sites against each other.

    The first `training_rows` times belong to training; `training` holds its windows of `context` steps, None without any.
    """
    findings, recorded_ST = [], recorded_rows(panel)
    for name in feature_names(panel):
        cells = VariableCells(panel, name)
        training_ST = cells.values_ST[:, :training_rows]
        if np.isnan(training_ST).all():
            message = f"{name}: no observed value in the training period; name it in data.exclude"
            findings.append(Finding("all_missing", "error", message, name))
            continue
        if np.nanmin(training_ST) == np.nanmax(training_ST):
            message = f"{name}: a single value in the training period gives no information; name it in data.exclude"
            findings.append(Finding("constant", "warning", message, name))
        findings.extend(_missing(cells, recorded_ST, training, context))
        for check in (_marks, _implausible, _odd_sites, _far_out, check_stuck, check_angles):
            findings.extend(check(cells))
        if training is not None:
            findings.extend(_flat_windows(cells, training, context))
    return [*findings, *check_twins(panel)]


def _missing(cells: VariableCells, recorded_ST: BoolArray, training: Part | None, context: int) -> list[Finding]:
    """Missing cells of the source's rows, and the effect of masking. The reader reports gaps: steps without a row."""
    gone_ST = np.isnan(cells.values_ST)
    missing_ST = recorded_ST & gone_ST
    if not missing_ST.any():
        return []
    at_start = list(_missing_at_start(cells, missing_ST, recorded_ST))
    count, rows, sites = int(missing_ST.sum()), int(recorded_ST.sum()), int(missing_ST.any(axis=1).sum())
    message = f"{count:,} of {rows:,} cells missing ({count / rows:.1%}), at {sites} of {len(missing_ST)} sites"
    if never := int(gone_ST.all(axis=1).sum()):
        message += f"; never observed at {never} of them"
    if len(at_start) == sites:  # and nowhere else
        steps = sorted({finding.count or 0 for finding in at_start})
        message += f", the first {'–'.join(map(str, dict.fromkeys((steps[0], steps[-1]))))} step(s) of each"
    message += "; masked"
    if training is not None:
        gone_W = windows_with(gone_ST, training, context)
        message += f": {(gone_W > 0).sum():,} of {len(gone_W):,} training windows see fewer of its steps"
        message += f", {(gone_W == context).sum():,} see none" if (gone_W == context).any() else ""
    severity: Severity = "warning" if count > MOSTLY_MISSING * rows else "info"
    return [cells.finding("missing_cells", severity, message, missing_ST), *at_start]


def _missing_at_start(cells: VariableCells, missing_ST: BoolArray, recorded_ST: BoolArray) -> Iterator[Finding]:
    """Sites whose missing cells are exactly their first rows. The same number at nearly all sites suggests a lag."""
    first_of: dict[int, int] = {}
    for site in np.flatnonzero(missing_ST.any(axis=1)):
        gone_R = missing_ST[site][recorded_ST[site]]
        first = int(gone_R.sum())
        if gone_R[:first].all() and first < len(gone_R) // 2:
            first_of[int(site)] = first
    observed = int((recorded_ST & ~missing_ST).any(axis=1).sum())
    (common, alike) = Counter(first_of.values()).most_common(1)[0] if first_of else (0, 0)
    for here, first in first_of.items():
        place = str(cells.panel.variables["site"].values[here])
        message = f"missing in the first {first} step{'s' * (first > 1)} of {place}, and nowhere else there"
        if first == common and alike > 1 and alike >= ALIKE * observed:
            message += f", as at {alike} of {observed} sites: a lag or a rolling mean that reaches beyond the record"
        yield cells.finding("missing_at_start", "info", f"{message}; masked", missing_ST[here : here + 1], place)


def _marks(cells: VariableCells) -> Iterator[Finding]:
    """Numbers that archives write for "missing", outside the range of all other values."""
    known = cells.ordered
    marks = np.array(MARKS)
    starts = np.searchsorted(known, marks - 1e-6 * np.abs(marks), "left").tolist()
    ends = np.searchsorted(known, marks + 1e-6 * np.abs(marks), "right").tolist()
    spans = {m: slice(start, end) for m, start, end in zip(MARKS, starts, ends, strict=True) if end > start}
    if not spans:
        return
    other = np.ones(len(known), dtype=np.bool_)
    for span in spans.values():
        other[span] = False
    others = known[other].astype(np.float64)
    for mark, span in spans.items():
        if len(others):
            gap = max(others[0] - mark, mark - others[-1])
            below_zero = mark < 0 <= others[0]
            # A few cells just beyond the range may be its tail: 999 hPa is a pressure.
            apart = span.stop - span.start >= MARK_CELLS or gap > 3 * max(float(others.std()), 1e-9) or below_zero
            if gap <= MARK_GAP * (others[-1] - others[0]) or gap <= 0 or not apart:
                continue
        marked_ST = np.isclose(cells.values_ST, mark, rtol=1e-6, atol=0)
        message = (
            f"{marked_ST.sum():,} cells hold {mark:g}, far from every other value, the first at "
            f"{cells.first_of(marked_ST)}; this is a mark for missing: name it in data.sentinels"
        )
        yield cells.finding("sentinel", "error", message, marked_ST)


def _implausible(cells: VariableCells) -> Iterator[Finding]:
    """Values that the variable's unit does not allow on Earth's surface, one by one or as a whole."""
    name, values_ST = cells.name, cells.values_ST
    if cells.units is None:
        return
    middle, spread = site_middles(cells.ordered_ST, cells.known_S)
    least, most = bounds(cells.units, cells.ordered, middle)
    if (beyond_ST := (values_ST < least) | (values_ST > most)).any():
        message = (
            f"{beyond_ST.sum():,} values are beyond {least:g} to {most:g} {cells.units}, the first "
            f"{values_ST[beyond_ST][0]:g} at {cells.first_of(beyond_ST)}, the median {np.nanmedian(values_ST):g}; correct "
            f"these cells, or correct data.units.{name}"
        )
        yield cells.finding("implausible", "warning", message, beyond_ST)
    elif (reason := mistaken(name, cells.units, cells.ordered, middle, spread)) is not None:
        message = f"{name}: {reason}; correct data.units.{name} if so"
        yield Finding("implausible", "warning", message, name, count=len(cells.ordered))


def _odd_sites(cells: VariableCells) -> Iterator[Finding]:
    """Sites that seem to have another unit than all others."""
    for site, conversion in odd_sites(cells.units, cells.ordered_ST, cells.known_S):
        place = str(cells.panel.variables["site"].values[site])
        message = (
            f"{cells.name}: the values at {place}, with a median of {np.nanmedian(cells.values_ST[site]):g}, lie far from "
            f"those of every other site; {conversion} they would be among them; correct their unit if it differs"
        )
        yield Finding("odd_site", "warning", message, cells.name, place, count=int(cells.known_S[site]))


def _far_out(cells: VariableCells) -> Iterator[Finding]:
    """Cells many times as far from the median as nearly all others: a robust measure that the long tail of rain passes.

    If 0.5 % of the cells are bad, or if fewer than that are not dry, this measure fails. Then the sign is a gap: a few
    cells, all of them many times as far from the median as the next.
    """
    known = cells.ordered.astype(np.float64)
    centre = _quantile(known, 0.5)
    distance = np.sort(np.abs(known - centre))
    usual, others = distance, "99.5 % of the cells"
    if centre == 0 and known[0] >= 0:  # dry cells say nothing on how much rain falls in a storm
        usual, others = distance[np.flatnonzero(distance)], "99.5 % of the cells above zero"
    least = FAR * _quantile(usual, 0.995) if len(usual) else 0.0
    if least == 0 or distance[-1] <= least:
        away = distance[distance > NOISE * distance[-1]]  # packing leaves tiny numbers instead of zero
        # At most this many may be bad, and four times as many must remain to show what is usual.
        most = min(int(BAD_SHARE * len(known)), len(away) // 5)
        if not most or len(away) - most < FAR_CELLS:
            return
        jump = np.flatnonzero(away[-most:] > FAR * away[-most - 1 : -1])
        if not len(jump):
            return
        least, others = FAR * float(away[-most - 1 : -1][jump[0]]), "all other cells off the median"
    least = max(least, storm(cells.name, cells.units, cells.hours))
    if distance[-1] <= least:
        return
    far_ST = np.abs(cells.values_ST.astype(np.float64) - centre) > least
    message = (
        f"{far_ST.sum():,} values are over {FAR} times as far from the median ({centre:g}) as {others}, the first "
        f"{cells.values_ST[far_ST][0]:g} at {cells.first_of(far_ST)}; correct or blank them if they cannot be true"
    )
    yield cells.finding("outliers", "warning", message, far_ST)


def _quantile(ordered: NDArray[np.float64], share: float) -> float:
    """Quantile of numbers in order, between two of them in proportion, as `numpy.quantile` has it."""
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return float(low + (high - low) * (place - math.floor(place)))


def _flat_windows(cells: VariableCells, training: Part, context: int) -> Iterator[Finding]:
    """Training windows in which the variable is constant: the published Hugging Face normaliser divides by zero there."""
    if context < 2 or cells.distinct < STUCK_VALUES or cells.is_cosine:
        return
    values_ST = cells.values_ST
    moves_ST = np.zeros_like(values_ST, dtype=np.bool_)
    moves_ST[:, 1:] = values_ST[:, 1:] != values_ST[:, :-1]
    if moves_ST[:, 1:].all():
        return
    whole_W = windows_with(np.isnan(values_ST), training, context) == 0
    # The first step of a window has no step before it to differ from.
    if flat := int((whole_W & (windows_with(moves_ST, training, context - 1) == 0)).sum()):
        message = (
            f"{cells.name}: does not vary in {flat:,} of {whole_W.sum():,} fully observed training windows; normalised to "
            "zero there, while the head keeps its level"
        )
        yield Finding("flat_windows", "info", message, cells.name, count=flat)
