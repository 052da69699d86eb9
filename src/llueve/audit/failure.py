"""Forecast of failure: the windows with a missing cell, and their effect on a training without masks.

Shapes: S sites, T times, R concatenated rows, W windows.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from llueve.errors import listed
from llueve.panel import Finding, feature_cube, feature_names, recorded_rows

CONCATENATED_TRAINING = 0.7
"""Share of the rows, from the top of the table, that OpenLTM's datasets train on."""


@dataclass(frozen=True)
class FailureForecast:
    """Bad windows and bad steps of a training if missing cells reached the model."""

    windows: int
    """Number of training windows."""
    bad_windows: int
    """Number of those with a value that is not finite."""
    batch_size: int
    masked: bool
    """True if llueve masks these cells, which prevents the failure."""

    @property
    def steps(self) -> int:
        """Training steps in one epoch."""
        return math.ceil(self.windows / self.batch_size)

    @property
    def clean_batch_probability(self) -> float:
        """(1 − share of bad windows)^batch: one bad window spoils its whole batch."""
        return (1 - self.bad_windows / self.windows) ** self.batch_size

    @property
    def expected_bad_steps(self) -> float:
        """Expected number of bad steps in an epoch with a random order."""
        return self.steps * (1 - self.clean_batch_probability)

    def as_dict(self) -> dict[str, Any]:
        """The forecast as JSON holds it."""
        keys = ("windows", "bad_windows", "batch_size", "clean_batch_probability", "steps", "expected_bad_steps")
        return {key: getattr(self, key) for key in (*keys, "masked")}

    def sentence(self) -> str:
        """The forecast in words."""
        would, expect = ("would be", "would be") if self.masked else ("is", "are expected to be")
        words = (
            f"{self.bad_windows / self.windows:.1%} of the {self.windows:,} training windows hold a missing cell; a random "
            f"batch of {self.batch_size} {would} clean with probability {self.clean_batch_probability:.2g}, so "
            f"{self.expected_bad_steps:,.0f} of {self.steps:,} steps {expect} NaN"
        )
        return f"{words} if these cells were not masked" if self.masked else words


def check_concatenated(panel: xr.Dataset, context: int, batch: int) -> tuple[list[Finding], FailureForecast | None]:
    """Findings about the table as OpenLTM's datasets cut it: sites one below the other, with windows over everything.

    The first 70 % of the rows train. A window starts at each row that leaves a whole context, even if it crosses from one
    site into the next.
    """
    panel = panel.sel(site=list(panel.attrs.get("sites_in_file", panel.variables["site"].values)))
    recorded_ST = recorded_rows(panel)
    bad_R = np.any(~np.isfinite(feature_cube(panel, feature_names(panel))), axis=-1)[recorded_ST]
    border_S = np.cumsum(recorded_ST.sum(axis=1))
    training = int(len(bad_R) * CONCATENATED_TRAINING)
    if training <= context:
        message = f"{training:,} concatenated training rows are not more than the context of {context:,}"
        return [Finding("no_windows", "error", message)], None
    before_R = np.concatenate([[0], bad_R.cumsum()])
    bad_windows = int((before_R[context:training] > before_R[: training - context]).sum())
    forecast = FailureForecast(training - context, bad_windows, batch, masked=False)
    findings = []
    if forecast.bad_windows:
        message = f"{forecast.sentence()}; mask them, as llueve does, or correct the cells in missing_cells"
        findings.append(Finding("bad_windows", "error", message, count=forecast.bad_windows))
    crosses_W = np.zeros(training - context, dtype=np.bool_)  # a window over two borders counts once
    for border in border_S[:-1]:
        crosses_W[max(0, border - context + 1) : border] = True
    if crossing := int(crosses_W.sum()):
        windows = f"{crossing:,} of the {forecast.windows:,} training windows"
        message = f"{windows} cross from one site into the next; windows must be cut for each site"
        findings.append(Finding("crosses_sites", "error", message, count=crossing))
    if len(border_S) > 1:
        tested = panel.variables["site"].values[border_S > training]
        message = (
            f"the table is cut at row {training:,} of {len(bad_R):,} concatenated rows, so validation and test come from "
            f"{listed(tested.tolist())} alone, over every year; cut all sites at the same dates"
        )
        findings.append(Finding("split_by_row", "error", message))
    return findings, forecast
