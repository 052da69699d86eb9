"""The whole audit: every check of a panel, as JSON and as a table. Shapes: S sites, T times, W windows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xarray as xr
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from llueve.audit.cell_checks import check_cells
from llueve.audit.failure import FailureForecast, check_concatenated
from llueve.audit.forecast_targets import check_forecast_targets
from llueve.audit.gauges import dead_gauges
from llueve.audit.missingness import check_missingness
from llueve.audit.outcome import check_balance, check_leaks, check_sampling
from llueve.audit.period_checks import check_periods
from llueve.audit.reporting_hours import check_reporting_hours
from llueve.audit.variable_cells import iso_time
from llueve.config import Config
from llueve.errors import AuditError, LlueveError
from llueve.panel import Finding, feature_cube, feature_names, known_quantities
from llueve.samples.split import Split, split_panel, thinned, windows_with
from llueve.samples.target import class_labels, event_outcomes, horizon_steps

SHOWN = 3
"""Largest number of notes with one code in the table; the file has all of them."""
MOST_SHOWN = 20
"""The same for errors and warnings."""
SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Audit:
    """The findings of an audit, as `audit.json` holds them."""

    source: str
    sites: int
    times: int
    step_hours: float
    splits: dict[str, dict[str, Any]]
    """Number of windows, first and last issue time and windows of each class, by part."""
    quantities: dict[str, dict[str, str | None]]
    """Physical quantity, unit and evidence of each variable whose quantity is known, by name. Without any, `audit.json` has
    no such part."""
    findings: tuple[Finding, ...]
    forecast: FailureForecast | None
    """None without training windows."""
    split: Split | None
    """The windows of each period; None without any. Not part of `audit.json`."""

    @property
    def errors(self) -> list[Finding]:
        """Findings that would make training meaningless."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def as_dict(self) -> dict[str, Any]:
        """The audit as JSON holds it."""
        return {
            **{key: getattr(self, key) for key in ("source", "sites", "times", "step_hours", "splits")},
            **({"quantities": self.quantities} if self.quantities else {}),
            "forecast": None if self.forecast is None else self.forecast.as_dict(),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def require_clean(self, allowed: Sequence[str] = ()) -> None:
        """Raise `AuditError` if the audit has errors, apart from those with allowed codes; the message holds each."""
        errors = [finding for finding in self.errors if finding.code not in allowed]
        if errors:
            lines = "\n".join(f"  {finding.code}: {finding.message}" for finding in errors[:MOST_SHOWN])
            lines += f"\n  and {len(errors) - MOST_SHOWN} more" * (len(errors) > MOST_SHOWN)
            codes = ", ".join(f'"{code}"' for code in sorted({finding.code for finding in errors}))
            message = f"the audit found {len(errors)} error(s), so nothing was trained:\n{lines}\n"
            raise AuditError(f"{message}To train all the same: audit.allow = [{codes}]")


def audit_panel(panel: xr.Dataset, config: Config) -> Audit:
    """Audit a panel and its windows under a configuration; faults become findings instead of exceptions."""
    gauges = dead_gauges(panel)
    findings = [*panel.attrs.get("findings", ()), *check_sampling(panel, config)]
    findings += [gauge.finding(panel) for gauge in gauges]
    findings += (hours := check_reporting_hours(panel, config))
    context = config.windows.context
    try:
        split = split_panel(panel, config)
        training = thinned(split.training, config, float(panel.attrs["step_hours"]))
    except LlueveError as error:
        if not any(finding.severity == "error" for finding in hours):  # they are the reason, and other cuts do not help
            findings.append(Finding("no_windows", "error", str(error)))
        findings.extend(check_cells(panel, None, panel.sizes["time"], context))
        return _audit(panel, config, findings, None, None)
    findings.extend(check_cells(panel, training, split.training_rows, context))
    findings.extend(check_balance(panel, split, config, gauges))
    findings.extend(check_periods(panel, split, config))
    findings.extend(check_leaks(panel, config, split.labels_ST, split.training_rows))
    event_ST = event_outcomes(split.labels_ST[:, : split.training_rows], config.target.event_index)
    horizon = horizon_steps(config.target.horizon_hours, panel.attrs["step_hours"])
    findings.extend(check_missingness(panel, event_ST, horizon))
    if config.train.forecast_weight > 0:
        findings.extend(check_forecast_targets(panel, training, horizon))
    bad_ST = np.any(~np.isfinite(feature_cube(panel, feature_names(panel))), axis=-1)
    bad_windows = int((windows_with(bad_ST, training, context) > 0).sum())
    forecast = FailureForecast(len(training), bad_windows, config.train.batch_size, config.windows.missing == "mask")
    if forecast.bad_windows and not forecast.masked:
        message = f'{forecast.sentence()}; set windows.missing = "mask"'
        # A warning only: the guard refuses such a training before its first step, with its own exit code and limit.
        findings.append(Finding("bad_windows", "warning", message, count=forecast.bad_windows))
    return _audit(panel, config, findings, forecast, split)


def audit_concatenated(panel: xr.Dataset, config: Config) -> Audit:
    """Audit the table as OpenLTM's datasets cut it, sites one below the other; `panel` has every column."""
    context, times = config.windows.context, panel.sizes["time"]
    concatenated, forecast = check_concatenated(panel, context, config.train.batch_size)
    findings = [*panel.attrs.get("findings", ()), *check_cells(panel, None, times, context)]
    findings += [*check_leaks(panel, config, class_labels(panel, config.target), times), *concatenated]
    return _audit(panel, config, findings, forecast, None)


def _audit(
    panel: xr.Dataset, config: Config, findings: list[Finding], forecast: FailureForecast | None, split: Split | None
) -> Audit:
    """The audit with its findings in order of severity."""
    splits = {
        part.name: {
            "n": len(part),
            "first": iso_time(panel, int(part.end.min())),
            "last": iso_time(panel, int(part.end.max())),
            "classes": {name: int((part.y == index).sum()) for index, name in enumerate(config.target.class_names)},
        }
        for part in (split.parts if split else ())
    }
    ordered = tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
    source, step_hours = str(panel.attrs.get("source", "")), float(panel.attrs["step_hours"])
    sites, times = panel.sizes["site"], panel.sizes["time"]
    quantities = {
        name: {"quantity": str(known.meaning), "units": known.units, "from": known.origin}
        for name, known in known_quantities(panel).items()
    }
    return Audit(source, sites, times, step_hours, splits, quantities, ordered, forecast, split)


def _quantity_table(audit: Audit) -> list[Table]:
    """The table of the variables whose quantity is known; empty without any."""
    if not audit.quantities:
        return []
    table = Table(title="Quantities", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("variable", "unit", "quantity", "from"):
        table.add_column(name)
    for variable, facts in [*audit.quantities.items()][:MOST_SHOWN]:
        table.add_row(Text(variable), *(Text(facts[key] or "") for key in ("units", "quantity", "from")))
    if (left := len(audit.quantities) - MOST_SHOWN) > 0:
        table.add_row("", "", f"and {left} more: audit.json has all", "")
    return [table]


def render(audit: Audit) -> Group:
    """The audit as tables for a terminal."""
    head = Text(f"{audit.source}: {audit.sites} site(s), {audit.times:,} steps of {audit.step_hours:g} h")
    splits = Table(title="Windows", title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("part", "windows", "first", "last", "classes"):
        splits.add_column(name, min_width=10 if name in ("part", "first", "last") else None)
    for name, part in audit.splits.items():
        shares = ", ".join(f"{label} {count:,} ({count / part['n']:.1%})" for label, count in part["classes"].items())
        first, last = (part[end][:16].replace("T", " ") for end in ("first", "last"))
        splits.add_row(name, f"{part['n']:,}", first, last, Text(shares))
    findings = Table("severity", "code", "what", title="Findings", title_justify="left")
    styles = {"error": "bold red", "warning": "yellow", "info": ""}
    shown: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for finding in audit.findings:
        note = finding.site is not None or (finding.severity == "info" and finding.code != "missing_cells")
        most = SHOWN if note else MOST_SHOWN
        if shown[finding.code] >= most:
            left[finding.code] += 1
            continue
        shown[finding.code] += 1
        findings.add_row(Text(finding.severity, style=styles[finding.severity]), finding.code, Text(finding.message))
    for code, count in left.items():
        findings.add_row("", code, f"and {count} more: audit.json has all")
    failure, forecast = Text(), audit.forecast
    if forecast is not None:
        failure = Text(f"Forecast of failure: {forecast.sentence()}.", style="" if forecast.masked else "bold")
    verdict = Text(f"{len(audit.errors)} error(s)" if audit.errors else "no errors", style="bold")
    return Group(head, *([splits] if audit.splits else []), *_quantity_table(audit), findings, failure, verdict)
