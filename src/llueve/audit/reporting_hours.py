"""Hours of the day at which a source never reports rain, so that no sum over the horizon is complete.

Shapes: S sites, T times, P steps of a day.
"""

from collections import defaultdict

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from llueve.config import Config
from llueve.errors import LlueveError, listed
from llueve.panel import BoolArray, Finding, Severity, recorded_rows, seen_only, whole_steps
from llueve.samples.split import split_panel

LEAST_HOURS = 3.0
"""Shortest horizon to advise: a single report an hour long is mostly the sum of several hours."""
SELDOM = 0.01
"""Share of the values at the most common hour at or below which an hour counts as never reported."""


def check_reporting_hours(panel: xr.Dataset, config: Config) -> list[Finding]:
    """Sites that report the rain of the target at so few hours of the day that no sum over the horizon is complete.

    It is an error if every site does, else a warning. The advice was tried on the panel.
    """
    name, steps = config.target.variable, whole_steps(24, float(panel.attrs["step_hours"]))
    horizon = whole_steps(config.target.horizon_hours, float(panel.attrs["step_hours"]))
    if name is None or name not in panel or steps is None or steps == 1 or horizon is None:
        return []
    known_ST = ~np.isnan(panel.variables[name].values) & ~seen_only(panel)[:, None]
    phase_T = _phase(panel, steps)
    count_SP = np.stack([known_ST[:, phase_T == phase].sum(axis=1) for phase in range(steps)], axis=1)
    reported_SP = count_SP > SELDOM * count_SP.max(axis=1, keepdims=True)
    groups: dict[bytes, list[int]] = defaultdict(list)
    for site, reported_P in enumerate(reported_SP):
        if reported_P.any() and _longest(reported_P) < min(horizon, steps):
            groups[reported_P.tobytes()].append(site)
    affected = sum(map(len, groups.values()))
    everywhere = affected == int(reported_SP.any(axis=1).sum())
    severity: Severity = "error" if everywhere else "warning"
    findings = []
    for sites in groups.values():
        reported_P, group = reported_SP[sites[0]], panel.isel(site=sites)
        is_all = everywhere and len(groups) == 1
        place = "" if is_all else f" at {listed(group['site'].values.tolist())}"
        message = (
            f"{name}: has values{place} only at {_hours(group, reported_P)} UTC, never at {_hours(group, ~reported_P)}, so no "
            f"sum over {config.target.horizon_hours:g} h is complete; "
            f"{'' if is_all else 'put these sites into a table of their own: '}{_advice(group, config, reported_P)}"
        )
        only = str(group["site"].values[0]) if len(sites) == 1 else None
        findings.append(Finding("hours_never_reported", severity, message, name, only, count=len(sites)))
    return findings


def _advice(panel: xr.Dataset, config: Config, reported_P: BoolArray) -> str:
    """The first remedy that gives windows on the panel, in words."""
    steps, step_hours = len(reported_P), float(panel.attrs["step_hours"])
    phases = np.flatnonzero(reported_P)
    apart = steps // len(phases)
    if len(phases) * apart == steps and (np.diff(phases) == apart).all():
        chosen_T = _phase(panel, steps) % apart == phases[0] % apart
        if _gives_windows(_with_step(panel.isel(time=chosen_T), config, apart * step_hours), config):
            rows = "" if not recorded_rows(panel)[:, ~chosen_T].any() else "keep only the rows of these hours and "
            return f"{rows}set data.step_hours = {apart * step_hours:g}, if each value is the rain since the one before"
    hours = _longest(reported_P) * step_hours
    shorter = config.target.model_copy(update={"horizon_hours": hours})
    if hours >= LEAST_HOURS and _gives_windows(panel, config.model_copy(update={"target": shorter})):
        return f"set target.horizon_hours = {hours:g}, or add the missing hours to the table"
    return "add the missing hours to the table"


def _with_step(panel: xr.Dataset, config: Config, step_hours: float) -> xr.Dataset:
    """The panel as the reader would make it with this step: a value sums one step unless the configuration says otherwise."""
    panel = panel.copy()
    panel.attrs = {**panel.attrs, "step_hours": step_hours}
    name = str(config.target.variable)
    if name not in config.data.accumulation_hours:
        panel[name] = panel[name].assign_attrs(accumulation_hours=step_hours)
    return panel


def _gives_windows(panel: xr.Dataset, config: Config) -> bool:
    try:
        split_panel(panel, config)
    except LlueveError:
        return False
    return True


def _phase(panel: xr.Dataset, steps: int) -> NDArray[np.int64]:
    """The step of the day of each time, from 0."""
    times = panel.variables["time"].values
    seconds: NDArray[np.int64] = (times - times.astype("datetime64[D]")).astype("timedelta64[s]").astype(np.int64)
    return seconds * steps // 86400


def _longest(reported_P: BoolArray) -> int:
    """The largest number of reported steps in a row, across midnight too."""
    if reported_P.all():
        return len(reported_P)
    turned_P = np.roll(reported_P, -int(np.argmin(reported_P)))  # it begins with a step that is not reported
    return int(np.diff(np.flatnonzero(np.concatenate([~turned_P, [True]]))).max()) - 1


def _hours(panel: xr.Dataset, chosen_P: BoolArray) -> str:
    """The chosen steps of the day as clock times."""
    phases, first = np.unique(_phase(panel, len(chosen_P)), return_index=True)
    clock = np.datetime_as_string(panel.variables["time"].values[first], unit="m")
    return listed([text[11:] for phase, text in zip(phases, clock, strict=True) if chosen_P[phase]], 6)
