"""The forecast of failure: how many windows hold a missing cell, and what that would do to training left as it is.

Shapes: S sites, T times, R rows laid end to end, W windows, L steps of context.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from llueve.panel import BoolArray, Finding, feature_cube, feature_names, recorded_rows

LAID_TRAINING = 0.7
"""Share of the rows that OpenLTM's datasets train on, from the top of the table."""


@dataclass(frozen=True)
class FailureForecast:
    """What a training on these windows would meet if missing cells reached the model."""

    windows: int
    """Training windows."""
    bad_windows: int
    """Those that hold a value that is not finite."""
    batch_size: int
    steps: int
    """Steps of an epoch."""
    masked: bool
    """Whether llueve masks these cells, so that none of it happens."""

    @property
    def share(self) -> float:
        """Bad windows among all, 0…1."""
        return self.bad_windows / self.windows

    @property
    def clean_batch_probability(self) -> float:
        """(1 − share)^batch: a batch is lost with any bad window in it."""
        return (1 - self.share) ** self.batch_size

    @property
    def expected_bad_steps(self) -> float:
        """Of an epoch in random order."""
        return self.steps * (1 - self.clean_batch_probability)

    def as_dict(self) -> dict[str, Any]:
        """The forecast as JSON holds it."""
        return {
            "windows": self.windows,
            "bad_windows": self.bad_windows,
            "batch_size": self.batch_size,
            "clean_batch_probability": self.clean_batch_probability,
            "steps": self.steps,
            "expected_bad_steps": self.expected_bad_steps,
            "masked": self.masked,
        }

    def sentence(self) -> str:
        """The forecast in words."""
        would, expect = ("would be", "would be") if self.masked else ("is", "are expected to be")
        words = (
            f"{self.share:.1%} of the {self.windows:,} training windows hold a missing cell; a random batch of "
            f"{self.batch_size} {would} clean with probability {self.clean_batch_probability:.2g}, so "
            f"{self.expected_bad_steps:,.0f} of {self.steps:,} steps {expect} NaN"
        )
        return f"{words}, were these cells not masked" if self.masked else words


def forecast_failure(bad_W: BoolArray, batch_size: int, masked: bool) -> FailureForecast:
    """The forecast for windows of which some are bad."""
    return FailureForecast(len(bad_W), int(bad_W.sum()), batch_size, math.ceil(len(bad_W) / batch_size), masked)


def judge_laid_end_to_end(
    panel: xr.Dataset, context: int, batch_size: int
) -> tuple[list[Finding], FailureForecast | None]:
    """Judge the table as OpenLTM's datasets would cut it: sites one below the other, windows over everything.

    The first 70 % of the rows train, a window starts at each row that leaves a whole context, and none asks whether it
    crosses from one site into another.
    """
    order = list(panel.attrs.get("sites_in_file", panel["site"].values))
    panel = panel.sel(site=order)
    recorded_ST = recorded_rows(panel)
    bad_ST = np.any(~np.isfinite(feature_cube(panel, feature_names(panel))), axis=-1)
    bad_R = bad_ST[recorded_ST]
    rows_S = recorded_ST.sum(axis=1)
    training = int(len(bad_R) * LAID_TRAINING)
    if training <= context:
        message = f"{training:,} training rows laid end to end are no more than the context of {context:,}"
        return [Finding("no_windows", "error", message)], None
    before_R = np.concatenate([[0], bad_R.cumsum()])
    bad_W = (before_R[context:training] - before_R[: training - context]) > 0
    forecast = forecast_failure(bad_W, batch_size, masked=False)
    findings = []
    if forecast.bad_windows:
        message = f"{forecast.sentence()}; mask them, as llueve does, or mend the cells that missing_cells names"
        findings.append(Finding("bad_windows", "error", message, count=forecast.bad_windows))
    borders = np.cumsum(rows_S)[:-1]
    crosses_W = np.zeros(training - context, dtype=np.bool_)  # a window that holds two borders is one
    for border in borders:
        crosses_W[max(0, border - context + 1) : border] = True
    crossing = int(crosses_W.sum())
    if crossing:
        message = (
            f"{crossing:,} of the {forecast.windows:,} training windows cross from one site into the next; windows "
            "must be cut per site"
        )
        findings.append(Finding("crosses_sites", "error", message, count=crossing))
    if len(rows_S) > 1:
        tested = [
            str(site) for site, end in zip(panel["site"].values, np.cumsum(rows_S), strict=True) if end > training
        ]
        message = (
            f"cut at row {training:,} of {len(bad_R):,} laid end to end, so what is not trained on comes from "
            f"{', '.join(tested)} alone, over every year; cut all sites at the same dates"
        )
        findings.append(Finding("split_by_row", "error", message))
    return findings, forecast
