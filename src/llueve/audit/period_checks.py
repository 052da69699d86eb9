"""Checks of the periods: seasons and rates of events that training does not cover, too few events, sites without training."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from llueve.config import Config
from llueve.errors import listed
from llueve.panel import Finding
from llueve.samples.periods import FEW_EVENTS, period_warnings
from llueve.samples.split import Split
from llueve.samples.target import event_outcomes


def check_periods(panel: xr.Dataset, split: Split, config: Config) -> Iterator[Finding]:
    """Properties of validation and test that make scores misleading, known before the training."""
    event_ST, times = event_outcomes(split.labels_ST, config.target.event_index), panel["time"].values
    trained = np.unique(split.training.site)
    for part in (split.validation, split.test):
        one_class = len(np.unique(event_ST[part.site, part.end])) == 1  # a finding of its own
        for warning in period_warnings(event_ST, times, split.training, part, config.verify.block_days):
            if one_class and warning.code == FEW_EVENTS:
                continue
            yield Finding(warning.code, "warning", warning.message, count=warning.count)
        unseen = np.setdiff1d(part.site, trained)
        if len(unseen):
            names = listed(panel["site"].values[unseen].tolist(), 5)
            message = (
                f"{part.name}: {len(unseen)} of its {len(np.unique(part.site))} sites have no training row ({names}), so "
                "climatology and the learned references know nothing of them; move the cuts of [split], or leave them out"
            )
            yield Finding("unseen_sites", "warning", message, count=len(unseen))
