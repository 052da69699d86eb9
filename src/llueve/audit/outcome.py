"""What the outcome says: classes in each part and site, columns that hold it too early, sums that miss the rain.

Shapes: S sites, T times.
"""

import numpy as np
import xarray as xr

from llueve.config import Config
from llueve.panel import Finding, FloatArray, feature_names
from llueve.rain import MILLIMETRES_PER_UNIT, class_labels, horizon_steps
from llueve.windows import Split

LEAK_ROWS = 30
"""Fewer outcomes of either class than this can be separated by chance."""
TOO_GOOD = 0.995
"""An AUC of one variable alone, at issue time, that weather does not give."""
NEARLY = 0.98
"""From this share of agreement on, a rain column is what the label was made of, and the rest is worth a look."""
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
    """Features that equal the label, or the amount behind it, at a time when the outcome is not known yet.

    A feature equals the label up to a threshold when all its values beside events lie on one side of all beside
    non-events. f(t) against y(t + k): for k > −horizon the outcome lies at least partly after t, so f holds the future;
    at k = −horizon it is the newest known outcome, which is fine and worth knowing.
    """
    horizon = horizon_steps(config.target.horizon_hours, float(panel.attrs["step_hours"]))
    labels_ST = class_labels(panel, config.target)[:, :training_rows]
    event_ST = np.where(np.isnan(labels_ST), np.nan, labels_ST == config.target.event_index).astype(np.float32)
    findings = []
    for name in feature_names(panel):
        values_ST = panel[name].values[:, :training_rows]
        leaks = [k for k in range(1 - horizon, horizon + 1) if _tells(values_ST, labels_ST, event_ST, k)]
        if leaks:
            message = (
                f"{name}: equals the outcome (up to a threshold) of {_shift(leaks[0])} at every training time, so it holds "
                "the future; name it in data.exclude"
            )
            findings.append(Finding("holds_future", "error", message, variable=name))
        elif _tells(values_ST, labels_ST, event_ST, -horizon):
            bound = _threshold(values_ST, event_ST, -horizon)
            message = f"{name}: equals the newest outcome known at issue time, {horizon} step(s) ago; no leak; {bound}"
            findings.append(Finding("past_outcome", "info", message, variable=name))
        else:
            findings.extend(_too_good(name, values_ST, event_ST))
            findings.extend(_label_mismatch(panel, name, values_ST, event_ST, horizon, config))
    return findings


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


def _too_good(name: str, values_ST: FloatArray, event_ST: FloatArray) -> list[Finding]:
    """One variable that ranks tomorrow's outcome nearly without a fault."""
    known = ~np.isnan(values_ST) & ~np.isnan(event_ST)
    wet, dry = values_ST[known & (event_ST == 1)], np.sort(values_ST[known & (event_ST == 0)])
    if min(len(wet), len(dry)) < LEAK_ROWS:
        return []
    below = np.searchsorted(dry, wet, "left") + np.searchsorted(dry, wet, "right")
    auc = float(below.mean()) / (2 * len(dry))
    if max(auc, 1 - auc) < TOO_GOOD:
        return []
    message = (
        f"{name}: tells the outcome alone with an AUC of {max(auc, 1 - auc):.4f}, which weather does not give; if it holds "
        "the future, name it in data.exclude"
    )
    return [Finding("too_good", "warning", message, variable=name)]


def _label_mismatch(
    panel: xr.Dataset, name: str, values_ST: FloatArray, event_ST: FloatArray, horizon: int, config: Config
) -> list[Finding]:
    """Rows in which the label contradicts the rain column that it was evidently made of."""
    if config.target.label is None or panel[name].attrs.get("units") not in MILLIMETRES_PER_UNIT:
        return []
    if values_ST.shape[1] <= horizon:
        return []
    value, _, event = _beside(values_ST, event_ST, event_ST, -horizon)
    known = ~np.isnan(value) & ~np.isnan(event)
    if min((event[known] == 1).sum(), (event[known] == 0).sum()) < LEAK_ROWS:
        return []
    order = np.argsort(value[known], kind="stable")
    amount, wet = value[known][order], event[known][order] == 1
    # Calling the first n amounts dry and the rest wet agrees with that many labels.
    agreeing = np.concatenate([[0], np.cumsum(~wet)]) + np.concatenate([[0], np.cumsum(wet)])[-1]
    agreeing = agreeing - np.concatenate([[0], np.cumsum(wet)])
    possible = np.concatenate([[True], amount[1:] > amount[:-1], [True]])
    best = int(np.argmax(np.where(possible, agreeing, -1)))
    share = agreeing[best] / len(amount)
    if share < NEARLY or best in (0, len(amount)):
        return []
    wrong = known & ((value >= amount[best]) != (event == 1))
    site, time = np.argwhere(wrong)[0]
    at = np.datetime_as_string(panel["time"].values[time], unit="m")
    message = (
        f"{config.target.label}: says whether {name} is at least {amount[best]:g} {panel[name].attrs['units']} "
        f"{horizon} step(s) later in {share:.2%} of the cases, and contradicts it in {wrong.sum():,}, the first at "
        f"{panel['site'].values[site]}, {at}; mend whichever is wrong"
    )
    return [Finding("label_mismatch", "warning", message, variable=name, count=int(wrong.sum()))]


def _shift(k: int) -> str:
    return "the same row" if k == 0 else f"the row {abs(k)} step(s) {'later' if k > 0 else 'earlier'}"
