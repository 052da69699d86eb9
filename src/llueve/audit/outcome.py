"""What the outcome says: classes in each part and site, columns that hold it too early, sums that miss the rain.

Shapes: S sites, T times.
"""

import numpy as np
import xarray as xr

from llueve.audit.screen import BELOW_PERSISTENCE, Screen, best_threshold
from llueve.config import Config
from llueve.errors import LlueveError
from llueve.panel import Finding, FloatArray, feature_names
from llueve.rain import MILLIMETRES_PER_UNIT, class_labels, horizon_steps, next_sum_mm
from llueve.windows import Split

LEAK_ROWS = 30
"""Fewer outcomes of either class than this can be separated by chance."""
TOO_GOOD = 0.995
"""An AUC of one variable alone that weather does not give, before the outcome is known."""
SUM_FAULTS = 0.001
"""Share of values that cannot be sums, among values that are."""
LATER_STEPS = 3
"""An outcome is looked for at least so far ahead, however short the horizon."""
RARE = 0.01
"""Below this share of events in training, skill is hard to tell from luck."""


def check_sampling(panel: xr.Dataset, config: Config) -> list[Finding]:
    """A summed variable that covers only a part of each step, as ERA5 taken every 12 hours does."""
    name = config.target.variable
    if name is None or name not in panel:
        return []
    step_hours = float(panel.attrs["step_hours"])
    covered_hours = float(panel[name].attrs.get("accumulation_hours", step_hours))
    if covered_hours >= step_hours or np.isclose(covered_hours, step_hours):
        return []
    message = (
        f"{name}: each value holds {covered_hours:g} h of rain but steps are {step_hours:g} h apart, so a sum over "
        f"{config.target.horizon_hours:g} h sees {covered_hours / step_hours:.1%} of the time and calls most wet days dry; "
        "bring every hour"
    )
    severity = "warning" if config.target.allow_sampled else "error"
    return [Finding("sampled_accumulation", severity, message, variable=name)]  # type: ignore[arg-type]


def check_balance(panel: xr.Dataset, split: Split, config: Config) -> list[Finding]:
    """Parts and sites that hold one class only, and events too rare to learn."""
    findings = _one_class(split, config)
    event_W = split.training.y == config.target.event_index
    if 0 < event_W.mean() < RARE:
        message = (
            f"{event_W.sum():,} of {len(event_W):,} training windows are events ({event_W.mean():.2%}): few to learn from; "
            "consider a lower threshold or train.class_weights"
        )
        findings.append(Finding("rare_event", "warning", message, count=int(event_W.sum())))
    sites = panel["site"].values
    for site in range(len(sites) if len(sites) > 1 else 0):
        here_W = event_W[split.training.site == site]
        if len(here_W) and here_W.all() | ~here_W.any():
            which = "event" if here_W.all() else "non-event"
            message = (
                f"{sites[site]}: each of its {len(here_W):,} training windows is a{'n' if here_W.all() else ''} {which}"
            )
            findings.append(Finding("one_class_site", "info", message, site=str(sites[site]), count=len(here_W)))
    return findings


def _one_class(split: Split, config: Config) -> list[Finding]:
    findings = []
    for part in split.parts:
        present = np.unique(part.y)
        event = config.target.class_names[config.target.event_index]
        if len(np.unique(part.y == config.target.event_index)) > 1:
            continue
        names = [repr(config.target.class_names[index]) for index in present]
        only = f"only the class {names[0]}" if len(names) == 1 else f"{' and '.join(names)}, never the event {event!r}"
        if part.name == "training":
            mend = "there is nothing to learn to tell apart; move the cuts or mend the label"
            findings.append(Finding("one_class", "error", f"training holds {only}: {mend}"))
        else:
            mend = "AUC and skill are undefined there; move the cuts"
            findings.append(Finding("one_class", "warning", f"{part.name} holds {only}: {mend}"))
    return findings


def check_leaks(panel: xr.Dataset, config: Config, training_rows: int) -> list[Finding]:
    """Features that equal the label, or the amount behind it, or nearly, at a time when the outcome is not known yet.

    A feature equals the label up to a threshold when all its values beside events lie on one side of all beside
    non-events. f(t) against y(t + k): for k > −horizon the outcome lies at least partly after t, so f holds the future;
    at k = −horizon it is the newest known outcome, which is fine and worth knowing.
    """
    horizon = horizon_steps(config.target.horizon_hours, float(panel.attrs["step_hours"]))
    labels_ST = class_labels(panel, config.target)[:, :training_rows]
    event_ST = np.where(np.isnan(labels_ST), np.nan, labels_ST == config.target.event_index).astype(np.float32)
    ahead = range(1 - horizon, max(horizon, LATER_STEPS) + 1)
    known_last = Screen(_earlier(event_ST, horizon), labels_ST, event_ST)
    usual = {k: known_last.at(k) for k in ahead}
    findings = []
    for name in feature_names(panel):
        values_ST = panel[name].values[:, :training_rows]
        screen = Screen(values_ST, labels_ST, event_ST)
        seen = {k: screen.at(k) for k in ahead}
        # Where a sample of the cells contradicts, all cells do.
        leaks = [k for k in ahead if not seen[k].wrong and _tells(values_ST, labels_ST, event_ST, k)]
        nearly = [k for k in ahead if not leaks and seen[k].enough(LEAK_ROWS) and seen[k].holds(usual[k])]
        past = not leaks and not nearly and _tells(values_ST, labels_ST, event_ST, -horizon)
        if leaks:
            message = (
                f"{name}: equals the outcome (up to a threshold) of {_shift(leaks[0])} at every training time, so it holds "
                "the future; name it in data.exclude"
            )
            findings.append(Finding("holds_future", "error", message, variable=name))
        elif nearly:
            k = min(nearly, key=lambda k: seen[k].wrong / seen[k].cases)
            message = (
                f"{name}: equals the outcome (up to a threshold) of {_shift(k)} in "
                f"{1 - seen[k].wrong / seen[k].cases:.2%} of the cases, and nothing known by then does: it seems to hold the "
                "future; if so, name it in data.exclude"
            )
            findings.append(Finding("nearly_holds_future", "warning", message, variable=name))
        elif past:
            bound = _threshold(values_ST, event_ST, -horizon)
            message = f"{name}: equals the newest outcome known at issue time, {horizon} step(s) ago; no leak; {bound}"
            findings.append(Finding("past_outcome", "info", message, variable=name))
        else:
            # Of an outcome that has mostly been, much may be known.
            for k in sorted((k for k in ahead if 2 * k >= -horizon), key=lambda k: -seen[k].auc)[:1]:
                missed, as_usual = 1 - seen[k].auc, 1 - usual[k].auc
                if seen[k].enough(LEAK_ROWS) and missed <= min(1 - TOO_GOOD, BELOW_PERSISTENCE * as_usual):
                    message = (
                        f"{name}: tells the outcome of {_shift(k)} alone with an AUC of {seen[k].auc:.4f}, which weather does "
                        "not give; if it holds the future, name it in data.exclude"
                    )
                    findings.append(Finding("too_good", "warning", message, variable=name))
        if not leaks and not nearly:
            findings.extend(_label_mismatch(panel, name, training_rows, labels_ST, event_ST, horizon, config))
    return findings


def _earlier(event_ST: FloatArray, steps: int) -> FloatArray:
    """The event of `steps` ago at each time: persistence."""
    earlier_ST = np.full_like(event_ST, np.nan)
    earlier_ST[:, steps:] = event_ST[:, : max(0, event_ST.shape[1] - steps)]
    return earlier_ST


def _tells(values_ST: FloatArray, labels_ST: FloatArray, event_ST: FloatArray, k: int) -> bool:
    """Whether value(t) is the class index of t + k, or one threshold on it tells event(t + k), without a single fault."""
    if abs(k) >= values_ST.shape[1]:
        return False
    value, label, event = _beside(values_ST, labels_ST, event_ST, k)
    known = ~np.isnan(value) & ~np.isnan(event)
    wet, dry = value[known & (event == 1)], value[known & (event == 0)]
    if min(len(wet), len(dry)) < LEAK_ROWS:
        return False
    return bool(wet.min() > dry.max() or wet.max() < dry.min() or (value[known] == label[known]).all())


def _beside(values_ST: FloatArray, labels_ST: FloatArray, event_ST: FloatArray, k: int) -> tuple[FloatArray, ...]:
    """value(t), label(t + k), event(t + k) for every t that has both."""
    steps = values_ST.shape[1]
    label, event = (each[:, max(0, k) : steps + min(0, k)] for each in (labels_ST, event_ST))
    return values_ST[:, max(0, -k) : steps - max(0, k)], label, event


def _threshold(values_ST: FloatArray, event_ST: FloatArray, k: int) -> str:
    """The threshold that tells events from non-events, in words."""
    value, _, event = _beside(values_ST, event_ST, event_ST, k)
    wet, dry = value[event == 1], value[event == 0]
    if np.nanmin(wet) > np.nanmax(dry):
        return f"the event is more than {np.nanmax(dry):g}, and at least {np.nanmin(wet):g} in this table"
    return f"the event is less than {np.nanmin(dry):g}, and at most {np.nanmax(wet):g} in this table"


def _label_mismatch(
    panel: xr.Dataset,
    name: str,
    rows: int,
    labels_ST: FloatArray,
    event_ST: FloatArray,
    horizon: int,
    config: Config,
) -> list[Finding]:
    """Rows in which the label contradicts the rain that it was evidently made of, and labels made of the wrong rain.

    Held against it are the sum over the horizon; that sum some steps earlier and later; and each single step of it.
    """
    units, label = panel[name].attrs.get("units"), config.target.label
    if label is None or units not in MILLIMETRES_PER_UNIT or event_ST.shape[1] <= horizon:
        return []
    try:
        total_ST = next_sum_mm(panel, name, config.target.horizon_hours, allow_sampled=True)[:, :rows]
    except LlueveError:  # no amounts of single steps: of these no sum can be made
        return []
    values_ST = panel[name].values[:, :rows]
    summed = Screen(total_ST, labels_ST, event_ST)
    right = summed.at(0)
    if not right.enough(LEAK_ROWS):
        return []
    sums = {k: summed.at(k) for k in range(-max(horizon, LATER_STEPS), max(horizon, LATER_STEPS) + 1) if k}
    single = Screen(values_ST, labels_ST, event_ST)
    singles = (
        {-j: single.at(-j) for j in range(1, horizon + 1)}
        if horizon > 1 and not _is_sum(values_ST, max(2, horizon // 2))
        else {}
    )
    best_sum = min(sums, key=lambda k: sums[k].error)
    best_single = min(singles, key=lambda k: singles[k].error, default=0)
    least = BELOW_PERSISTENCE * right.error
    hours = config.target.horizon_hours
    if (
        singles
        and singles[best_single].made_of()
        and singles[best_single].error < min(least, sums[best_sum].error + 1e-9)
    ):
        told = singles[best_single]
        message = (
            f"{label}: is told by the one value of {name} {-best_single} step(s) later in {1 - told.error:.2%} of the cases, "
            f"and by the sum over the {hours:g} h of target.horizon_hours in {1 - right.error:.2%}: unless these "
            "values are sums already, the label is no sum: make it anew"
        )
        return [Finding("label_single_step", "warning", message, variable=name)]
    if sums[best_sum].made_of() and sums[best_sum].error < least:
        message = (
            f"{label}: is told by the sum of {name} over {hours:g} h {'earlier' if best_sum > 0 else 'later'} by "
            f"{abs(best_sum)} step(s) in {1 - sums[best_sum].error:.2%} of the cases, and by that of the horizon in "
            f"{1 - right.error:.2%}: shift the label"
        )
        return [Finding("label_shifted", "warning", message, variable=name)]
    if (not right.wrong and len(summed) == summed.all_cells) or not right.made_of():
        return []
    known = ~np.isnan(total_ST) & ~np.isnan(event_ST)
    wrong, bound, upward = best_threshold(total_ST[known], event_ST[known] == 1)
    if not wrong or not upward:
        return []
    wrong_ST = known & ((total_ST >= bound) != (event_ST == 1))
    site, time = np.argwhere(wrong_ST)[0]
    at = np.datetime_as_string(panel["time"].values[time], unit="m")
    what = f"{name} is at least" if horizon == 1 else f"{name} summed over {hours:g} h is at least"
    when = f" {horizon} step(s) later" if horizon == 1 else ""
    amount = f"{bound / MILLIMETRES_PER_UNIT[units]:g} {units}" if horizon == 1 else f"{bound:g} mm"
    message = (
        f"{label}: says whether {what} {amount}{when} in {1 - wrong / known.sum():.2%} of the cases, and contradicts it in "
        f"{wrong:,}, the first at {panel['site'].values[site]}, {at}; mend whichever is wrong"
    )
    return [Finding("label_mismatch", "warning", message, variable=name, count=wrong)]


def _is_sum(values_ST: FloatArray, steps: int) -> bool:
    """Whether values are themselves sums over so many steps or more: then none is less than the rises among those steps."""
    if values_ST.shape[1] <= steps:
        return False
    with np.errstate(invalid="ignore"):
        # Where it always rains a little, that little is in every value, whatever it sums.
        values_ST = values_ST - np.fmin.reduce(values_ST, axis=1, keepdims=True)
    rise_ST = np.fmax(np.diff(values_ST.astype(np.float64), axis=1), 0)  # fmax: a rise from or to a gap counts as none
    total_ST = np.concatenate([np.zeros((len(rise_ST), 1)), rise_ST.cumsum(axis=1)], axis=1)
    short_ST = values_ST[:, steps:] < total_ST[:, steps:] - total_ST[:, :-steps] - 1e-3 * np.nanstd(values_ST)
    return bool(short_ST.mean() < SUM_FAULTS)


def _shift(k: int) -> str:
    return "the same row" if k == 0 else f"the row {abs(k)} step(s) {'later' if k > 0 else 'earlier'}"
