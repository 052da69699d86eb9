"""What the cells say of themselves: missing, stuck, far out, marks for missing, wrong units, twice the same.

Shapes: S sites, T times, W windows.
"""

import math
from collections import defaultdict

import numpy as np
import xarray as xr

from llueve.audit.failure import windows_with
from llueve.panel import BoolArray, Finding, FloatArray, feature_names, recorded_rows
from llueve.windows import Part

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
    -9999.0,
    -999.9,
    -999.0,
    -99.9,
    -99.0,
    999.0,
    999.9,
    9999.0,
    99999.0,
    1e20,
    9.969209968386869e36,
    -32767.0,
    -32768.0,
)
"""Numbers by which archives say "missing"."""
TWIN_CELLS = 30
"""Fewer equal cells than this can be chance."""
PLAUSIBLE = {
    "K": (-150.0, 350.0),  # also differences of temperature
    "degC": (-95.0, 65.0),
    "°C": (-95.0, 65.0),
    "Pa": (-1e6, 1.1e5),  # also differences of pressure
    "hPa": (-1e4, 1100.0),
    "%": (-0.5, 110.0),
    "mm": (-0.01, 2000.0),
    "m s-1": (-150.0, 150.0),
    "m/s": (-150.0, 150.0),
    "m s**-1": (-150.0, 150.0),
    "km/h": (-500.0, 500.0),
    "okta": (0.0, 9.0),
}
"""Least and largest value on Earth's surface by unit; a step's worth of water for mm."""


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
        findings.extend(_marks(panel, name, values_ST))
        findings.extend(_implausible(panel, name, values_ST))
        findings.extend(_far_out(panel, name, values_ST))
        findings.extend(_stuck(panel, name, values_ST))
        if training is not None:
            findings.extend(_flat_windows(panel, name, values_ST, training, context))
    return findings + _twins(panel)


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
    """Sites whose missing cells are exactly their first rows: lags and rolling means that had nothing to look back on."""
    findings = []
    for site in np.flatnonzero(missing_ST.any(axis=1)):
        gone_R = missing_ST[site][recorded_ST[site]]
        first = int(gone_R.sum())
        if gone_R[:first].all() and first < len(gone_R) // 2:
            where = _where(panel, missing_ST[site : site + 1])
            place = str(panel["site"].values[site])
            message = (
                f"{name}: missing in the first {first} steps of {place}, as a lag or a rolling mean is that looks back "
                "beyond the record; masked"
            )
            findings.append(Finding("missing_at_start", "info", message, name, place, **where))  # type: ignore[arg-type]
    return findings


def _marks(panel: xr.Dataset, name: str, values_ST: FloatArray) -> list[Finding]:
    """Numbers that archives write for "missing", standing apart from all others."""
    findings = []
    for mark in MARKS:
        marked_ST = np.isclose(values_ST, mark, rtol=1e-6, atol=0)
        if not marked_ST.any():
            continue
        others = values_ST[~marked_ST & ~np.isnan(values_ST)].astype(np.float64)
        if len(others) and np.abs(others - mark).min() <= 3 * max(float(others.std()), 1e-9):
            continue
        message = (
            f"{name}: {marked_ST.sum():,} cells hold {mark:g}, far from every other value, the first at "
            f"{_at(panel, marked_ST)}: a mark for missing; name it in data.sentinels"
        )
        findings.append(Finding("sentinel", "error", message, name, **_where(panel, marked_ST)))  # type: ignore[arg-type]
    return findings


def _implausible(panel: xr.Dataset, name: str, values_ST: FloatArray) -> list[Finding]:
    """Values that the variable's unit does not allow on Earth's surface."""
    units = panel[name].attrs.get("units")
    if units not in PLAUSIBLE:
        return []
    low, high = PLAUSIBLE[units]
    beyond_ST = (values_ST < low) | (values_ST > high)
    if not beyond_ST.any():
        return []
    message = (
        f"{name}: {beyond_ST.sum():,} values are beyond {low:g} to {high:g} {units}, the first "
        f"{values_ST[beyond_ST][0]:g} at {_at(panel, beyond_ST)}, the median {np.nanmedian(values_ST):g}; mend these cells, "
        f"or correct data.units.{name}"
    )
    return [Finding("implausible", "warning", message, name, **_where(panel, beyond_ST))]  # type: ignore[arg-type]


def _far_out(panel: xr.Dataset, name: str, values_ST: FloatArray) -> list[Finding]:
    """Cells many times as far from the median as nearly all others: a robust measure that rain's long tail passes."""
    known = values_ST[~np.isnan(values_ST)].astype(np.float64)
    distance_ST = np.abs(values_ST.astype(np.float64) - np.median(known))
    usual = float(np.quantile(np.abs(known - np.median(known)), 0.995))
    far_ST = distance_ST > FAR * usual
    if usual == 0 or not far_ST.any():
        return []
    message = (
        f"{name}: {far_ST.sum():,} values are over {FAR} times as far from the median ({np.median(known):g}) as 99.5 % of "
        f"the cells, the first {values_ST[far_ST][0]:g} at {_at(panel, far_ST)}; mend or blank them if they cannot be true"
    )
    return [Finding("outliers", "warning", message, name, **_where(panel, far_ST))]  # type: ignore[arg-type]


def _stuck(panel: xr.Dataset, name: str, values_ST: FloatArray) -> list[Finding]:
    """Long runs of one value of a variable that otherwise varies, at neither end of its range (no rain is no fault)."""
    least = max(STUCK_STEPS, math.ceil(STUCK_HOURS / float(panel.attrs["step_hours"])))
    low, high = np.nanmin(values_ST), np.nanmax(values_ST)
    stuck_ST = np.zeros_like(values_ST, dtype=np.bool_)
    for site, values_T in enumerate(values_ST):
        if len(np.unique(values_T)) < STUCK_VALUES:
            continue
        border = np.flatnonzero(np.concatenate([[True], values_T[1:] != values_T[:-1], [True]]))  # NaN equals nothing
        for run in np.flatnonzero(np.diff(border) >= least):
            start, end = border[run : run + 2]
            if low < values_T[start] < high:
                stuck_ST[site, start:end] = True
    if not stuck_ST.any():
        return []
    sites = int(stuck_ST.any(axis=1).sum())
    message = (
        f"{name}: {stuck_ST.sum():,} cells are in runs of at least {least} equal values, at {sites} sites, the first at "
        f"{_at(panel, stuck_ST)}; blank them if a sensor was stuck"
    )
    return [Finding("stuck", "warning", message, name, **_where(panel, stuck_ST))]  # type: ignore[arg-type]


def _flat_windows(panel: xr.Dataset, name: str, values_ST: FloatArray, training: Part, context: int) -> list[Finding]:
    """Training windows in which the variable does not vary: the published Hugging Face normaliser divides by zero there."""
    if context < 2 or len(np.unique(values_ST)) < STUCK_VALUES:
        return []
    moves_ST = np.zeros_like(values_ST, dtype=np.bool_)
    moves_ST[:, 1:] = values_ST[:, 1:] != values_ST[:, :-1]
    whole_W = windows_with(np.isnan(values_ST), training, context) == 0
    # The first step of a window has nothing before it to differ from.
    flat = int((whole_W & (windows_with(moves_ST, training, context - 1) == 0)).sum())
    if not flat:
        return []
    message = (
        f"{name}: does not vary in {flat:,} of {whole_W.sum():,} fully observed training windows; normalised to zero there, "
        "its level is kept by the head"
    )
    return [Finding("flat_windows", "info", message, name, count=flat)]


def _twins(panel: xr.Dataset) -> list[Finding]:
    """Sites that hold the same series under two names."""
    shared: dict[tuple[str, ...], list[str]] = defaultdict(list)
    sites = [str(site) for site in panel["site"].values]
    for name in feature_names(panel):
        same: dict[bytes, list[str]] = defaultdict(list)
        for site, values_T in zip(sites, panel[name].values, strict=True):
            known = values_T[~np.isnan(values_T)]
            if len(known) >= TWIN_CELLS and len(np.unique(known)) > STUCK_VALUES:
                same[values_T.tobytes()].append(site)
        for twins in same.values():
            if len(twins) > 1:
                shared[tuple(twins)].append(name)
    return [
        Finding(
            "twin_sites",
            "warning",
            f"{', '.join(twins)}: identical series of {', '.join(names)}; keep one of them, or a split by site would leak",
            variable=names[0],
            site=twins[1],
            count=len(twins),
        )
        for twins, names in shared.items()
    ]
