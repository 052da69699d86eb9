"""Curves of probability forecasts: ROC, precision-recall, performance diagram, reliability, relative economic value.

Shapes: n rows, K operating points, Q bins, R cost/loss ratios. NaN marks a point of a curve that is undefined.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llueve.errors import DataError
from llueve.verification.scores import checked

Floats = NDArray[np.float64]
BINS = 10
"""Bins of a reliability diagram and of the expected calibration error."""
MOST_BINS = 1000
COST_LOSS_RATIOS = np.arange(1, 100) / 100
"""Cost/loss ratios of a curve of economic value: 0.01 to 0.99."""


@dataclass(frozen=True, eq=False)
class OperatingPoints:
    """The yes/no forecasts of every distinct threshold, from "never yes" (threshold ∞) to "always yes".

    ROC curve: `pod` over `pofd`. Precision-recall curve: `success_ratio` over `pod`. Performance diagram: `pod` over
    `success_ratio`, with lines of equal `csi` and `bias`.

    Reference: Wilks 2019, doi:10.1016/C2017-0-03921-6; Roebber 2009, Weather and Forecasting 24,
    doi:10.1175/2008WAF2222159.1
    """

    threshold_K: Floats
    """A forecast is "yes" from this probability upwards; falling."""
    hits_K: NDArray[np.int64]
    false_alarms_K: NDArray[np.int64]
    events: int
    non_events: int

    @property
    def pod(self) -> Floats:
        """Probability of detection (recall) of each point; NaN without an event."""
        return _divided(self.hits_K, self.events)

    @property
    def pofd(self) -> Floats:
        """Probability of false detection of each point; NaN without a non-event."""
        return _divided(self.false_alarms_K, self.non_events)

    @property
    def success_ratio(self) -> Floats:
        """Share of right ones among the yes forecasts (precision, 1 - FAR); NaN if there is no yes."""
        return _divided(self.hits_K, self.hits_K + self.false_alarms_K)

    @property
    def bias(self) -> Floats:
        """Number of yes forecasts per event; NaN without an event."""
        return _divided(self.hits_K + self.false_alarms_K, self.events)

    @property
    def csi(self) -> Floats:
        """Critical success index of each point; NaN without event and yes."""
        return _divided(self.hits_K, self.events + self.false_alarms_K)

    def thinned(self, most: int) -> "OperatingPoints":
        """At most this many points, evenly spaced along the yes forecasts of events and non-events; both ends stay."""
        if len(self.threshold_K) <= most:
            return self
        # Shares, so that a rare event gets as many points as the non-events.
        way_K = self.hits_K / max(self.events, 1) + self.false_alarms_K / max(self.non_events, 1)
        at = np.unique(np.searchsorted(way_K, np.linspace(0, way_K[-1], most)))
        return OperatingPoints(
            self.threshold_K[at], self.hits_K[at], self.false_alarms_K[at], self.events, self.non_events
        )


@dataclass(frozen=True, eq=False)
class Reliability:
    """A binned reliability diagram: how often the event followed forecasts of about the same probability."""

    edges: Floats
    """Q + 1 edges of the bins. A bin holds its lower edge; the last one holds both."""
    bin_n: NDArray[np.intp]
    """Bin of each row."""
    rows_Q: NDArray[np.int64]
    forecast_Q: Floats
    """Mean probability; NaN without a row."""
    frequency_Q: Floats
    """Frequency of the event; NaN without a row."""


def operating_points(p: ArrayLike, y: ArrayLike) -> OperatingPoints:
    """Hits and false alarms at every threshold; `DataError` if p and y cannot be scored."""
    p, y = checked(p, y)
    threshold, group_n, rows = np.unique(p, return_inverse=True, return_counts=True)
    events = np.bincount(group_n, weights=y).astype(np.int64)[::-1]
    hits = np.concatenate([[0], np.cumsum(events)])
    false_alarms = np.concatenate([[0], np.cumsum(rows[::-1] - events)])
    return OperatingPoints(
        np.concatenate([[np.inf], threshold[::-1]]), hits, false_alarms, int(hits[-1]), int(false_alarms[-1])
    )


def reliability(
    p: ArrayLike, y: ArrayLike, bins: int = BINS, equal: Literal["width", "count"] = "width"
) -> Reliability:
    """The reliability diagram in bins of equal width on [0, 1], or of about equal count (equal probabilities together).

    Reference: Murphy and Winkler 1977, Applied Statistics 26, doi:10.2307/2346866

    Raises:
        DataError: p and y cannot be scored, or the number of bins is not from 1 to 1000.
    """
    p, y = checked(p, y)
    if not 1 <= bins <= MOST_BINS:
        raise DataError(f"{bins} bins: expected 1 to {MOST_BINS}")
    bin_n, edges = _bins_of_equal_width(p, bins) if equal == "width" else _bins_of_equal_count(p, bins)
    count = len(edges) - 1
    rows_Q = np.bincount(bin_n, minlength=count)
    forecast_Q = _divided(np.bincount(bin_n, weights=p, minlength=count), rows_Q)
    frequency_Q = _divided(np.bincount(bin_n, weights=y, minlength=count), rows_Q)
    return Reliability(edges, bin_n, rows_Q, forecast_Q, frequency_Q)


def _bins_of_equal_width(p: Floats, bins: int) -> tuple[NDArray[np.intp], Floats]:
    """The bin of each row, and the edges."""
    # Whole numbers divided, so that an edge is the number that a forecast of 0.3 is.
    edges = np.arange(bins + 1) / bins
    return np.clip(np.searchsorted(edges, p, side="right") - 1, 0, bins - 1), edges


def _bins_of_equal_count(p: Floats, bins: int) -> tuple[NDArray[np.intp], Floats]:
    """The bin of each row by the middle rank of its probability, and the edges; a bin begins at its lowest probability."""
    value_G, group_n, rows_G = np.unique(p, return_inverse=True, return_counts=True)
    # Twice the middle rank, in whole numbers.
    place_G = bins * (2 * np.cumsum(rows_G) - rows_G) // (2 * len(p))
    _, first, bin_G = np.unique(place_G, return_index=True, return_inverse=True)
    return bin_G[group_n], np.append(value_G[first], value_G[-1])


def expected_calibration_error(
    p: ArrayLike, y: ArrayLike, bins: int = BINS, equal: Literal["width", "count"] = "count"
) -> float:
    """Expected calibration error ECE = Σ_bins (rows / n) |frequency - mean probability|: dimensionless, 0 (best) to 1.

    Bins hold about equally many forecasts; equal probabilities stay in one bin. Chance alone gives a positive ECE, about
    0.8 √(r(1 - r) · bins / n) at the base rate r. MCB of `decomposition` needs no bins.

    Reference: Naeini, Cooper and Hauskrecht 2015, AAAI 29, doi:10.1609/aaai.v29i1.9602; bins of equal count as in Nguyen
    and O'Connor 2015, EMNLP, doi:10.18653/v1/D15-1182
    """
    found = reliability(p, y, bins, equal)
    filled = found.rows_Q > 0
    gap = np.abs(found.frequency_Q[filled] - found.forecast_Q[filled])
    return float((found.rows_Q[filled] * gap).sum() / found.rows_Q.sum())


def economic_value(
    p: ArrayLike,
    y: ArrayLike,
    ratios: ArrayLike = COST_LOSS_RATIOS,
    acts_from: Literal["own ratio", "best threshold"] | float = "own ratio",
) -> Floats | None:
    """Relative economic value (R,) for users with a cost/loss ratio α: 1 as a perfect forecast, 0 as the base rate alone.

    Protection costs C, an event without protection loses L, α = C / L. With base rate s, POD H and POFD F at the user's
    threshold: V = [min(α, s) - F α (1 - s) + H s (1 - α) - s] / [min(α, s) - s α]. Below 0 a user does better without the
    forecast. A user acts from the probability α ("own ratio"), which is best if the forecast is calibrated; or from the
    best of all thresholds in hindsight ("best threshold"), the potential value; or from one fixed probability.

    None if the event always or never happened: nothing can be gained then.

    Reference: Richardson 2000, Quarterly Journal of the Royal Meteorological Society 126, doi:10.1002/qj.49712656313

    Raises:
        DataError: p and y cannot be scored, or a ratio or a threshold is outside of its range.
    """
    p, y = checked(p, y)
    alpha = np.asarray(ratios, dtype=np.float64)
    if alpha.ndim != 1 or not ((alpha > 0) & (alpha < 1)).all():
        raise DataError("expected cost/loss ratios above 0 and below 1, in one dimension")
    if not isinstance(acts_from, str) and not 0 <= acts_from <= 1:
        raise DataError(f"the threshold is {acts_from}; expected a probability in [0, 1]")
    points = operating_points(p, y)
    if 0 in (points.events, points.non_events):
        return None
    if acts_from == "best threshold":
        return np.asarray(_value(alpha[:, None], points.pod, points.pofd, float(y.mean())).max(axis=1))
    from_R = alpha if isinstance(acts_from, str) else np.full(len(alpha), float(acts_from))
    # The last point whose threshold is not below the user's: thresholds fall.
    at_R = np.searchsorted(-points.threshold_K, -from_R, side="right") - 1
    return _value(alpha, points.pod[at_R], points.pofd[at_R], float(y.mean()))


def _value(alpha: Floats, pod: Floats, pofd: Floats, rate: float) -> Floats:
    without = np.minimum(alpha, rate)
    gain = without - pofd * alpha * (1 - rate) + pod * rate * (1 - alpha) - rate
    return np.asarray(gain / (without - rate * alpha))


def _divided(part: ArrayLike, whole: ArrayLike) -> Floats:
    """part / whole, NaN where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    found: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)
    return found
