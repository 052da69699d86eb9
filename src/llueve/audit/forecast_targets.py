"""Targets of the forecasting loss: the mean of each variable over the horizon, unknown where nothing was observed."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import xarray as xr

from llueve.panel import Finding, Severity, feature_names
from llueve.samples.split import Part, windows_with


def check_forecast_targets(panel: xr.Dataset, training: Part, horizon: int) -> Iterator[Finding]:
    """Variables whose mean over the next `horizon` steps is unknown for some or all training windows."""
    inside = training[training.end + horizon < panel.sizes["time"]]
    ahead, total = replace(inside, end=inside.end + horizon), len(training)
    for name in feature_names(panel):
        seen = windows_with(np.isfinite(panel.variables[name].values), ahead, horizon)
        known = int((seen > 0).sum())
        if known == total:
            continue
        message = f"{name}: {total - known:,} of {total:,} training windows ({1 - known / total:.1%})"
        message = f"{message} have no value of it in the horizon, which train.forecast_weight compares with"
        severity: Severity = "info" if known else "warning"
        what = "they do not train its forecast"
        if not known:
            what = "its forecast is not trained: name it in data.exclude, or bring its values"
        yield Finding("unknown_target", severity, f"{message}; {what}", name, count=total - known)
