"""Everything that can be known before the first step: what is missing, one-sided, or too good to be true.

Shapes: S sites, T times.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from llueve.config import Config
from llueve.errors import AuditError, LlueveError
from llueve.panel import BoolArray, Finding, FloatArray, feature_names, recorded_rows
from llueve.rain import class_labels, horizon_steps
from llueve.windows import Split, split_panel

MOSTLY_MISSING = 0.5
"""From this share of missing cells on, a variable is worth a warning."""
LEAK_ROWS = 30
"""Fewer outcomes of either class than this can be separated by chance."""
SITES_SHOWN = 3
"""Findings of one code that the table shows for single sites; the file has all."""
SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Audit:
    """What the audit found, as `audit.json` holds it."""

    source: str
    sites: int
    times: int
    step_hours: float
    splits: dict[str, dict[str, Any]]
    """Per part: number of windows, first and last issue time, windows of each class."""
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> list[Finding]:
        """Findings that make training meaningless."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def as_dict(self) -> dict[str, Any]:
        """The audit as JSON holds it."""
        return {
            "source": self.source,
            "sites": self.sites,
            "times": self.times,
            "step_hours": self.step_hours,
            "splits": self.splits,
            "findings": [finding.as_dict() for finding in self.findings],
        }

    def require_clean(self) -> None:
        """Raise unless the audit is free of errors.

        Raises:
            AuditError: it is not; the message holds each error.
        """
        if self.errors:
            lines = "\n".join(f"  {finding.code}: {finding.message}" for finding in self.errors)
            raise AuditError(f"the audit found {len(self.errors)} error(s), so nothing was trained:\n{lines}")


def audit_panel(panel: xr.Dataset, config: Config) -> Audit:
    """Judge a panel and the windows that the configuration makes of it; it never raises for what it can report."""
    findings = list(panel.attrs.get("findings", ()))
    splits: dict[str, dict[str, Any]] = {}
    try:
        split = split_panel(panel, config)
    except LlueveError as error:
        findings.append(Finding("no_windows", "error", str(error)))
        findings.extend(_missing(panel, panel.sizes["time"]))
    else:
        splits = {part.name: _describe_part(panel, part.end, part.y, config) for part in split.parts}
        findings.extend(_missing(panel, split.training_rows))
        findings.extend(_one_class(split, config))
        findings.extend(_leaks(panel, config, split.training_rows))
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Audit(
        source=str(panel.attrs.get("source", "")),
        sites=panel.sizes["site"],
        times=panel.sizes["time"],
        step_hours=float(panel.attrs["step_hours"]),
        splits=splits,
        findings=tuple(findings),
    )


def _describe_part(panel: xr.Dataset, end: NDArray[np.intp], y: NDArray[np.int64], config: Config) -> dict[str, Any]:
    names = config.target.class_names
    return {
        "n": len(y),
        "first": _moment(panel, int(end.min())),
        "last": _moment(panel, int(end.max())),
        "classes": {name: int((y == index).sum()) for index, name in enumerate(names)},
    }


def _missing(panel: xr.Dataset, training_rows: int) -> list[Finding]:
    """Missing cells of each variable, and variables of which the training period tells nothing."""
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
        missing_ST = recorded_ST & ~known_ST
        if missing_ST.any():
            findings.append(_missing_cells(panel, name, missing_ST, int(recorded_ST.sum())))
    return findings


def _missing_cells(panel: xr.Dataset, name: str, missing_ST: BoolArray, rows: int) -> Finding:
    """How much of one variable is missing, and where; all of it is masked on the way to the model."""
    times, count = np.flatnonzero(np.any(missing_ST, axis=0)), int(missing_ST.sum())
    never = int(np.isnan(panel[name].values).all(axis=1).sum())
    message = f"{name}: {count:,} of {rows:,} cells missing ({count / rows:.1%})"
    message += f", at {int(np.any(missing_ST, axis=1).sum())} of {panel.sizes['site']} sites"
    message += f"; never observed at {never} of them" if never else ""
    return Finding(
        "missing_cells",
        "warning" if count > MOSTLY_MISSING * rows else "info",
        message + "; masked",
        variable=name,
        first=_moment(panel, int(times[0])),
        last=_moment(panel, int(times[-1])),
        count=count,
    )


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


def _leaks(panel: xr.Dataset, config: Config, training_rows: int) -> list[Finding]:
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
            message = (
                f"{name}: equals the newest outcome known at issue time ({horizon} steps ago): persistence, no leak"
            )
            findings.append(Finding("past_outcome", "info", message, variable=name))
    return findings


def _tells(values_ST: FloatArray, labels_ST: FloatArray, event_ST: FloatArray, k: int) -> bool:
    """Whether value(t) is the class index of t + k, or one threshold on it tells event(t + k), without a single fault."""
    steps = values_ST.shape[1]
    if abs(k) >= steps:
        return False
    value = values_ST[:, max(0, -k) : steps - max(0, k)]
    label, event = (each[:, max(0, k) : steps + min(0, k)] for each in (labels_ST, event_ST))
    known = ~np.isnan(value) & ~np.isnan(event)
    wet, dry = value[known & (event == 1)], value[known & (event == 0)]
    if min(len(wet), len(dry)) < LEAK_ROWS:
        return False
    return bool(wet.min() > dry.max() or wet.max() < dry.min() or (value[known] == label[known]).all())


def _shift(k: int) -> str:
    return "the same row" if k == 0 else f"the row {abs(k)} step(s) {'later' if k > 0 else 'earlier'}"


def _moment(panel: xr.Dataset, index: int) -> str:
    return str(np.datetime_as_string(panel["time"].values[index], unit="s"))


def render(audit: Audit) -> Group:
    """The audit as a person reads it."""
    head = Text(f"{audit.source}: {audit.sites} site(s), {audit.times:,} steps of {audit.step_hours:g} h")
    splits = Table("part", "windows", "first", "last", "classes", title="Windows", title_justify="left")
    for name, part in audit.splits.items():
        shares = ", ".join(f"{label} {count:,} ({count / part['n']:.1%})" for label, count in part["classes"].items())
        splits.add_row(name, f"{part['n']:,}", part["first"], part["last"], Text(shares))
    findings = Table("severity", "code", "what", title="Findings", title_justify="left")
    styles = {"error": "bold red", "warning": "yellow", "info": ""}
    shown: Counter[str] = Counter()
    for finding in audit.findings:
        shown[finding.code] += finding.site is not None
        if finding.site is None or shown[finding.code] <= SITES_SHOWN:
            severity = Text(finding.severity, style=styles[finding.severity])
            findings.add_row(severity, finding.code, Text(finding.message))
    for code, count in shown.items():
        if count > SITES_SHOWN:
            findings.add_row("", code, f"and {count - SITES_SHOWN} more sites: audit.json has all")
    verdict = Text(f"{len(audit.errors)} error(s)" if audit.errors else "no errors", style="bold")
    return Group(head, splits, findings, verdict)
