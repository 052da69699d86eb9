"""The forecasts that a model has to beat.

They are climatology, persistence, persistence as a probability (Markov), logistic regression and gradient boosting.

Each is fitted on the training rows alone; the two learned ones choose their settings on the validation rows. Each
forecasts any part from values known at the issue time of the row, as probabilities (n,). It raises `DataError` if
training (for the learned ones also validation) has no row, or a row with an unknown outcome.

Shapes: S sites, T times, n rows of a part.
"""

import numpy as np
from numpy.typing import NDArray

from llueve.samples.climatology import seasonal_frequency, site_frequency
from llueve.samples.split import Part
from llueve.verification.learned_references import learned
from llueve.verification.reference_data import ReferenceData, known_events


def climatology(data: ReferenceData, part: Part) -> NDArray[np.float64]:
    """Training frequency of the event at the same site and issue hour, within ±15 calendar days: see `seasonal_frequency`."""
    known_events(data, data.training)
    return seasonal_frequency(data.event_ST, data.times, data.training, part)


def persistence(data: ReferenceData, part: Part) -> NDArray[np.float64]:
    """The last outcome known at the issue time, as 0 or 1: that of the issue time one horizon earlier at the same site.

    If it is unknown or before the panel's start, the forecast is the site's frequency in the training rows; for a site
    without training rows, that of all sites.

    Reference: Wilks 2019, Statistical Methods in the Atmospheric Sciences, doi:10.1016/C2017-0-03921-6
    """
    known_events(data, data.training)
    last = _last_outcome(data, part)
    return np.where(np.isnan(last), site_frequency(data.event_ST, data.training)[part.site], last)


def markov(data: ReferenceData, part: Part) -> NDArray[np.float64]:
    """Persistence as a probability: how often the event followed the last known outcome in training, at the same site.

    The chain is of first order, with the step of the horizon. (k + q) / (n + 1) is its probability after an outcome with n
    training rows at the site and k events among them; q is the same frequency over all sites. If the last outcome is
    unknown, the forecast is the site's frequency, as for persistence.

    Reference: Gabriel and Neumann 1962, Quarterly Journal of the Royal Meteorological Society 88,
    doi:10.1002/qj.49708837511
    """
    y_n, last_n = known_events(data, data.training), _last_outcome(data, data.training)
    frequency_S = site_frequency(data.event_ST, data.training)
    last = _last_outcome(data, part)
    p_n = frequency_S[part.site]
    for outcome in (0, 1):
        after = last_n == outcome
        everywhere = y_n[after].mean() if after.any() else y_n.mean()
        rows_S, events_S = (
            np.bincount(data.training.site[after], weights=weights, minlength=len(frequency_S))
            for weights in (None, y_n[after])
        )
        after_S = (events_S + everywhere) / (rows_S + 1)
        p_n = np.where(last == outcome, after_S[part.site], p_n)
    return p_n


def _last_outcome(data: ReferenceData, part: Part) -> NDArray[np.float64]:
    """The newest outcome (n,) known at each issue time, 0 or 1; NaN if it is unknown or before the panel's start."""
    known = part.end - data.horizon_steps
    last = data.event_ST[part.site, np.maximum(known, 0)].astype(np.float64)
    return np.where(known < 0, np.nan, last)


def all_references(data: ReferenceData, part: Part) -> dict[str, NDArray[np.float64]]:
    """The probabilities (n,) of all of them by name, for the rows of `part`."""
    simple = {"climatology": climatology, "persistence": persistence, "markov": markov}
    return {name: forecast(data, part) for name, forecast in simple.items()} | learned(data, part)
