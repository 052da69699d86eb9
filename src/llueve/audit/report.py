"""The audit as a whole: every check on a panel, as JSON and as a table.

Shapes: S sites, T times, W windows.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from llueve.audit.cells import check_cells, moment
from llueve.audit.failure import FailureForecast, forecast_failure, judge_laid_end_to_end
from llueve.audit.outcome import check_balance, check_leaks, check_sampling
from llueve.config import Config
from llueve.errors import AuditError, LlueveError
from llueve.panel import Finding, feature_cube, feature_names
from llueve.windows import split_panel, thinned, windows_with

SHOWN = 3
"""Notes of one code that the table shows; the file has all."""
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
    forecast: FailureForecast | None = None
    """None where there is no training window."""

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
            "forecast": None if self.forecast is None else self.forecast.as_dict(),
            "findings": [finding.as_dict() for finding in self.findings],
        }

    def require_clean(self, allowed: Sequence[str] = ()) -> None:
        """Raise unless the audit is free of errors, but for those whose codes are allowed.

        Raises:
            AuditError: it is not; the message holds each error.
        """
        errors = [finding for finding in self.errors if finding.code not in allowed]
        if errors:
            lines = "\n".join(f"  {finding.code}: {finding.message}" for finding in errors)
            codes = ", ".join(f'"{code}"' for code in sorted({finding.code for finding in errors}))
            raise AuditError(
                f"the audit found {len(errors)} error(s), so nothing was trained:\n{lines}\nTo train all the same: "
                f"audit.allow = [{codes}]"
            )


def audit_panel(panel: xr.Dataset, config: Config) -> Audit:
    """Judge a panel and the windows that the configuration makes of it; it never raises for what it can report."""
    findings = [*panel.attrs.get("findings", ()), *check_sampling(panel, config)]
    splits: dict[str, dict[str, Any]] = {}
    forecast = None
    context = config.windows.context
    try:
        split = split_panel(panel, config)
        training = thinned(split.training, config.windows.stride)
    except LlueveError as error:
        findings.append(Finding("no_windows", "error", str(error)))
        findings.extend(check_cells(panel, None, panel.sizes["time"], context))
    else:
        splits = {part.name: _describe_part(panel, part.end, part.y, config) for part in split.parts}
        findings.extend(check_cells(panel, training, split.training_rows, context))
        findings.extend(check_balance(panel, split, config))
        findings.extend(check_leaks(panel, config, split.training_rows))
        bad_ST = np.any(~np.isfinite(feature_cube(panel, feature_names(panel))), axis=-1)
        bad_W = windows_with(bad_ST, training, context) > 0
        forecast = forecast_failure(bad_W, config.train.batch_size, config.windows.missing == "mask")
        if forecast.bad_windows and not forecast.masked:
            message = f'{forecast.sentence()}; set windows.missing = "mask"'
            # The guard refuses such a training before its first step, with its own exit code and budget.
            findings.append(Finding("bad_windows", "warning", message, count=forecast.bad_windows))
    return _audit(panel, splits, findings, forecast)


def audit_laid_end_to_end(panel: xr.Dataset, config: Config) -> Audit:
    """Judge the table as OpenLTM's datasets would cut it, sites one below the other; `panel` has every column."""
    context = config.windows.context
    laid, forecast = judge_laid_end_to_end(panel, context, config.train.batch_size)
    findings = [
        *panel.attrs.get("findings", ()),
        *check_cells(panel, None, panel.sizes["time"], context),
        *check_leaks(panel, config, panel.sizes["time"]),
        *laid,
    ]
    return _audit(panel, {}, findings, forecast)


def _audit(
    panel: xr.Dataset, splits: dict[str, dict[str, Any]], findings: list[Finding], forecast: FailureForecast | None
) -> Audit:
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Audit(
        source=str(panel.attrs.get("source", "")),
        sites=panel.sizes["site"],
        times=panel.sizes["time"],
        step_hours=float(panel.attrs["step_hours"]),
        splits=splits,
        findings=tuple(findings),
        forecast=forecast,
    )


def _describe_part(panel: xr.Dataset, end: NDArray[np.intp], y: NDArray[np.int64], config: Config) -> dict[str, Any]:
    names = config.target.class_names
    return {
        "n": len(y),
        "first": moment(panel, int(end.min())),
        "last": moment(panel, int(end.max())),
        "classes": {name: int((y == index).sum()) for index, name in enumerate(names)},
    }


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
        note = finding.site is not None or (finding.severity == "info" and finding.code != "missing_cells")
        shown[finding.code] += note
        if not note or shown[finding.code] <= SHOWN:
            severity = Text(finding.severity, style=styles[finding.severity])
            findings.add_row(severity, finding.code, Text(finding.message))
    for code, count in shown.items():
        if count > SHOWN:
            findings.add_row("", code, f"and {count - SHOWN} more: audit.json has all")
    failure = Text()
    if audit.forecast is not None:
        failure = Text(
            f"Forecast of failure: {audit.forecast.sentence()}.", style="" if audit.forecast.masked else "bold"
        )
    verdict = Text(f"{len(audit.errors)} error(s)" if audit.errors else "no errors", style="bold")
    return Group(head, *([splits] if audit.splits else []), findings, failure, verdict)
