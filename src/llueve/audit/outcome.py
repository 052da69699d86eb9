"""Checks of the outcome: classes, columns that hold it too early, labels of the wrong rain. Shapes: S sites, T times."""

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr

from llueve.audit.gauges import DeadGauge
from llueve.audit.threshold_scan import BELOW_PERSISTENCE, Outcomes, ThresholdScan, ThresholdScore, best_threshold
from llueve.config import Config
from llueve.errors import LlueveError
from llueve.panel import Finding, FloatArray, Severity, feature_names, minute
from llueve.samples.features import earlier
from llueve.samples.split import Split
from llueve.samples.target import event_outcomes, horizon_steps, next_sum_mm, sampled_share
from llueve.sources.names_and_units import MILLIMETRES_PER_UNIT

TOO_GOOD = 0.995
"""AUC of a single variable that weather does not reach before the outcome is known."""
SUM_FAULTS = 0.001
"""Largest share of values that contradict a sum, among values that are sums."""
LATER_STEPS = 3
"""Fewest steps ahead in which to look for an outcome, even if the horizon is shorter."""
RARE = 0.01
"""Share of events in training below which skill is hard to distinguish from chance."""


def check_sampling(panel: xr.Dataset, config: Config) -> list[Finding]:
    """A summed variable whose values cover only a part of each step, as ERA5 taken every 12 hours does."""
    name = config.target.variable
    if name is None or name not in panel or (fault := sampled_share(panel, name, config.target.horizon_hours)) is None:
        return []
    severity: Severity = "warning" if config.target.allow_sampled else "error"
    message = f"{fault} and counts most wet days as dry; bring every hour"
    return [Finding("sampled_accumulation", severity, message, name)]


def check_balance(panel: xr.Dataset, split: Split, config: Config, gauges: Sequence[DeadGauge]) -> Iterator[Finding]:
    """Parts and sites with one class only, and events too rare to learn."""
    yield from _one_class(split, config, gauges)
    event_W = split.training.y == config.target.event_index
    if 0 < event_W.mean() < RARE:
        message = (
            f"{event_W.sum():,} of {len(event_W):,} training windows are events ({event_W.mean():.2%}): few to learn from; "
            "consider a lower threshold or train.class_weights"
        )
        yield Finding("rare_event", "warning", message, count=int(event_W.sum()))
    sites = panel.variables["site"].values
    windows_S = np.bincount(split.training.site, minlength=len(sites))
    events_S = np.bincount(split.training.site, weights=event_W, minlength=len(sites))
    one_class_S = (windows_S > 0) & ((events_S == 0) | (events_S == windows_S))
    for site in np.flatnonzero(one_class_S) if len(sites) > 1 else ():
        kind = "an event" if events_S[site] else "a non-event"
        message = f"{sites[site]}: each of its {windows_S[site]:,} training windows is {kind}"
        yield Finding("one_class_site", "info", message, site=str(sites[site]), count=int(windows_S[site]))


def _one_class(split: Split, config: Config, gauges: Sequence[DeadGauge]) -> Iterator[Finding]:
    """Parts in which the event always or never happens; a dead gauge may be the cause."""
    names, event = config.target.class_names, config.target.event_index
    for part in split.parts:
        if len(np.unique(part.y == event)) > 1:
            continue
        present = [repr(names[index]) for index in np.unique(part.y)]
        only = f"only the class {present[0]}"
        held = only if len(present) == 1 else f"{' and '.join(present)}, never the event {names[event]!r}"
        severity: Severity = "error" if part.name == "training" else "warning"
        advice = "AUC and skill are undefined there; move the cuts"
        if part.name == "training":
            advice = "the model has nothing to learn; move the cuts or correct the label"
        dead = [
            gauge for gauge in gauges if 2 * gauge.covers(part.site, part.end).sum() >= len(part) / len(set(part.site))
        ]
        if dead:
            advice = "a dead gauge explains it: blank the cells that dead_gauge names"
        yield Finding("one_class", severity, f"{part.name} holds {held}: {advice}")


def check_leaks(panel: xr.Dataset, config: Config, labels_ST: FloatArray, training_rows: int) -> Iterator[Finding]:
    """Features that equal the outcome, or the amount behind it, or nearly, at a time when the outcome is not yet known.

    A feature equals the outcome up to a threshold if all its values beside events lie on one side of all its values
    beside non-events. f(t) is compared with y(t + k). For k > −horizon the outcome lies at least partly after t, so f
    holds the future. At k = −horizon it is the newest known outcome, which is allowed and worth a note. Only the first
    `training_rows` times count; `labels_ST` are those of `class_labels`.
    """
    horizon = horizon_steps(config.target.horizon_hours, float(panel.attrs["step_hours"]))
    labels_ST = labels_ST[:, :training_rows]
    outcomes = Outcomes(labels_ST, event_outcomes(labels_ST, config.target.event_index), horizon)
    ahead = range(1 - horizon, max(horizon, LATER_STEPS) + 1)
    newest_known = ThresholdScan(earlier(outcomes.event_ST, horizon), outcomes)
    persistence = newest_known.scores(ahead)
    for name in feature_names(panel):
        leak = _leak(name, panel.variables[name].values[:, :training_rows], outcomes, persistence)
        if leak is not None:
            yield leak
        if leak is None or leak.code not in ("holds_future", "nearly_holds_future"):
            yield from _label_faults(panel, name, outcomes, config)


def _leak(
    name: str, values_ST: FloatArray, outcomes: Outcomes, persistence: dict[int, ThresholdScore]
) -> Finding | None:
    """The knowledge of the outcome in one variable, at the shifts of `persistence`."""
    scan = ThresholdScan(values_ST, outcomes)
    horizon = outcomes.horizon
    scores = scan.scores([*persistence, -horizon])
    newest = scores.pop(-horizon)
    # An exception in a sample of the cells is an exception in all cells.
    if leaks := [k for k in scores if not scores[k].wrong and outcomes.equals(values_ST, k)]:
        message = (
            f"{name}: equals the outcome (up to a threshold) of {_row(leaks[0])} at every training time, so it holds the "
            "future; name it in data.exclude"
        )
        return Finding("holds_future", "error", message, name)
    if nearly := [k for k in scores if scores[k].nearly_equals(persistence[k])]:
        k = min(nearly, key=lambda k: scores[k].error)
        message = (
            f"{name}: matches the outcome (up to a threshold) of {_row(k)} in {1 - scores[k].error:.2%} of the cases, much "
            "more often than the newest known outcome does; if it holds the future, name it in data.exclude"
        )
        return Finding("nearly_holds_future", "warning", message, name)
    if not newest.wrong and outcomes.equals(values_ST, -horizon):
        message = f"{name}: equals the newest outcome known at issue time, {horizon} step(s) ago; this is not a leak"
        return Finding("past_outcome", "info", f"{message}; {_threshold_in_words(values_ST, outcomes)}", name)
    # Most of a long outcome may be known at its end, so only shifts up to half the horizon back are judged.
    k = max((k for k in scores if 2 * k >= -horizon), key=lambda k: scores[k].auc)
    allowed = min(1 - TOO_GOOD, BELOW_PERSISTENCE * (1 - persistence[k].auc))
    if scores[k].has_enough_cases and 1 - scores[k].auc <= allowed:
        message = (
            f"{name}: alone predicts the outcome of {_row(k)} with an AUC of {scores[k].auc:.4f}, more than weather allows; "
            "if it holds the future, name it in data.exclude"
        )
        return Finding("too_good", "warning", message, name)
    return None


def _threshold_in_words(values_ST: FloatArray, outcomes: Outcomes) -> str:
    """The threshold on a variable that equals the newest known outcome."""
    value, _, event = outcomes.paired(values_ST, -outcomes.horizon)
    wet, dry = value[event == 1], value[event == 0]
    if np.nanmin(wet) > np.nanmax(dry):
        return f"the event is more than {np.nanmax(dry):g}, and at least {np.nanmin(wet):g} in this table"
    return f"the event is less than {np.nanmin(dry):g}, and at most {np.nanmax(wet):g} in this table"


def _label_faults(panel: xr.Dataset, name: str, outcomes: Outcomes, config: Config) -> list[Finding]:
    """A label that was computed from the wrong rain, or rows in which it contradicts the rain it was computed from.

    It is compared with the sum over the horizon, with that sum some steps earlier and later, and with each of its steps.
    """
    units, label, hours = panel.variables[name].attrs.get("units"), config.target.label, config.target.horizon_hours
    rows, horizon = outcomes.event_ST.shape[1], outcomes.horizon
    if label is None or units not in MILLIMETRES_PER_UNIT or rows <= horizon:
        return []
    try:
        total_ST = next_sum_mm(panel, name, hours, allow_sampled=True)[:, :rows]
    except LlueveError:  # not amounts of single steps: they have no sum
        return []
    values_ST = panel.variables[name].values[:, :rows]
    sums = ThresholdScan(total_ST, outcomes)
    right = sums.at(0)
    if not right.has_enough_cases:
        return []
    reach = max(horizon, LATER_STEPS)
    shift, shifted = _best(sums, [k for k in range(-reach, reach + 1) if k])
    least = BELOW_PERSISTENCE * right.error
    if horizon > 1 and not _is_sum(values_ST, max(2, horizon // 2)):
        step, single = _best(ThresholdScan(values_ST, outcomes), range(-1, -horizon - 1, -1))
        if single.is_source and single.error < min(least, shifted.error + 1e-9):
            message = (
                f"{label}: matches the one value of {name} {-step} step(s) later in {1 - single.error:.2%} of the cases, and "
                f"the sum over the {hours:g} h of target.horizon_hours in {1 - right.error:.2%}; unless these values are sums "
                "already, the label is not a sum: compute it again"
            )
            return [Finding("label_single_step", "warning", message, name)]
    if shifted.is_source and shifted.error < least:
        message = (
            f"{label}: matches the sum of {name} over {hours:g} h {'earlier' if shift > 0 else 'later'} by {abs(shift)} "
            f"step(s) in {1 - shifted.error:.2%} of the cases, and that of the horizon in {1 - right.error:.2%}: shift the label"
        )
        return [Finding("label_shifted", "warning", message, name)]
    if not right.is_source or (not right.wrong and not sums.is_sample):
        return []
    return _contradictions(panel, name, total_ST, outcomes, config)


def _contradictions(
    panel: xr.Dataset, name: str, total_ST: FloatArray, outcomes: Outcomes, config: Config
) -> list[Finding]:
    """Rows in which the label contradicts the sum of rain that it was computed from."""
    event_ST, units = outcomes.event_ST, panel.variables[name].attrs["units"]
    known = ~np.isnan(total_ST) & ~np.isnan(event_ST)
    wrong, bound = best_threshold(total_ST[known], event_ST[known] == 1)
    if not wrong or bound is None:
        return []
    site, time = np.argwhere(known & ((total_ST >= bound) != (event_ST == 1)))[0]
    rule = f"{name} summed over {config.target.horizon_hours:g} h is at least {bound:g} mm"
    if outcomes.horizon == 1:
        rule = f"{name} is at least {bound / MILLIMETRES_PER_UNIT[units]:g} {units} 1 step(s) later"
    message = (
        f'{config.target.label}: agrees with "{rule}" in {1 - wrong / known.sum():.2%} of the cases and contradicts it in '
        f"{wrong:,}, the first at {panel['site'].values[site]}, {minute(panel['time'].values[time])}; correct the wrong one"
    )
    return [Finding("label_mismatch", "warning", message, name, count=wrong)]


def _best(scan: ThresholdScan, shifts: Sequence[int]) -> tuple[int, ThresholdScore]:
    """The shift with the smallest error, and its score."""
    scores = scan.scores(shifts)
    k = min(scores, key=lambda k: scores[k].error)
    return k, scores[k]


def _is_sum(values_ST: FloatArray, steps: int) -> bool:
    """True if the values are sums over at least this many steps: then none is below the rises among those steps."""
    if values_ST.shape[1] <= steps:
        return False
    with np.errstate(invalid="ignore"):
        # Rain that never stops is a part of every value, whatever the value sums.
        values_ST = values_ST - np.fmin.reduce(values_ST, axis=1, keepdims=True)
    rise_ST = np.fmax(np.diff(values_ST.astype(np.float64), axis=1), 0)  # fmax: a rise from or to a gap counts as zero
    total_ST = np.concatenate([np.zeros((len(rise_ST), 1)), rise_ST.cumsum(axis=1)], axis=1)
    short_ST = values_ST[:, steps:] < total_ST[:, steps:] - total_ST[:, :-steps] - 1e-3 * np.nanstd(values_ST)
    return bool(short_ST.mean() < SUM_FAULTS)


def _row(k: int) -> str:
    """A shift in words."""
    return "the same row" if k == 0 else f"the row {abs(k)} step(s) {'later' if k > 0 else 'earlier'}"
