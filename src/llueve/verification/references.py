"""The four forecasts that a model has to beat: climatology, persistence, logistic regression and gradient boosting.

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
    known = part.end - data.horizon_steps
    last = data.event_ST[part.site, np.maximum(known, 0)].astype(np.float64)
    unknown = np.isnan(last) | (known < 0)
    return np.where(unknown, site_frequency(data.event_ST, data.training)[part.site], last)


def all_references(data: ReferenceData, part: Part) -> dict[str, NDArray[np.float64]]:
    """The probabilities (n,) of all four by name, for the rows of `part`."""
    simple = {"climatology": climatology(data, part), "persistence": persistence(data, part)}
    return simple | learned(data, part)
