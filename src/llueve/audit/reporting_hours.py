"""Hours of the day at which a source never reports rain, so that no sum over the horizon is complete.

Shapes: S sites, T times, P steps of a day.
"""

from collections import defaultdict

import numpy as np
import xarray as xr

from llueve.config import Config
from llueve.errors import LlueveError, listed
from llueve.panel import BoolArray, Finding, recorded_rows, whole_steps
from llueve.samples.split import split_panel

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
    known_ST = ~np.isnan(panel[name].values)
    phase_T = _phase(panel, steps)
    count_SP = np.stack([known_ST[:, phase_T == phase].sum(axis=1) for phase in range(steps)], axis=1)
    reported_SP = count_SP > SELDOM * count_SP.max(axis=1, keepdims=True)
    groups: dict[bytes, list[int]] = defaultdict(list)
    for site, reported_P in enumerate(reported_SP):
        if reported_P.any() and _longest(reported_P) < min(horizon, steps):
            groups[reported_P.tobytes()].append(site)
    affected = sum(map(len, groups.values()))
    everywhere = affected == int(reported_SP.any(axis=1).sum())
    findings = []
    for sites in groups.values():
        reported_P = reported_SP[sites[0]]
        place = "" if everywhere and len(groups) == 1 else f" at {listed(panel['site'].values[sites].tolist())}"
        message = (
            f"{name}: has values at {_hours(reported_P, panel)} UTC only{place}, never at {_hours(~reported_P, panel)}, so no sum "
            f"over {config.target.horizon_hours:g} h is complete; {_advice(panel.isel(site=sites), config, reported_P)}"
        )
        only = str(panel["site"].values[sites[0]]) if len(sites) == 1 and place else None
        severity = "error" if everywhere else "warning"
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
    if _gives_windows(panel, config.model_copy(update={"target": shorter})):
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


def _phase(panel: xr.Dataset, steps: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The step of the day of each time, from 0."""
    times = panel["time"].values
    seconds = (times - times.astype("datetime64[D]")) // np.timedelta64(1, "s")
    return seconds.astype(np.int64) * steps // 86400


def _longest(reported_P: BoolArray) -> int:
    """The largest number of reported steps in a row, across midnight too."""
    if reported_P.all():
        return len(reported_P)
    turned_P = np.roll(reported_P, -int(np.argmin(reported_P)))  # it begins with a step that is not reported
    return int(np.diff(np.flatnonzero(np.concatenate([~turned_P, [True]]))).max()) - 1


def _hours(chosen_P: BoolArray, panel: xr.Dataset) -> str:
    """Steps of the day as clock times."""
    minutes = np.flatnonzero(chosen_P) * float(panel.attrs["step_hours"]) * 60
    offset = int(_first_minutes(panel))
    return listed([f"{(int(m) + offset) // 60 % 24:02}:{(int(m) + offset) % 60:02}" for m in minutes], 6)


def _first_minutes(panel: xr.Dataset) -> int:
    """Minutes of the times of a panel after the start of their step of the day."""
    time = panel["time"].values[0]
    minutes = int((time - time.astype("datetime64[D]")) // np.timedelta64(1, "m"))
    return minutes % round(float(panel.attrs["step_hours"]) * 60)
