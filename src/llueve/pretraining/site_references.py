"""Reference forecasts of the pre-training's scores: the climatology of each site, from its own record.

Shapes: n windows of one site, D days, H hours of the record, R amounts of rain, Q quantities, P hours of a day.
"""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from llueve.config.model_keys import DAY_HOURS
from llueve.panel import BoolArray, FloatArray
from llueve.pretraining.corpus import EPOCH, Corpus
from llueve.pretraining.corpus_windows import rain_reached
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES, RAIN
from llueve.samples.climatology import CALENDAR_DAYS, WINDOW_DAYS, calendar_day

APART_DAYS = 183
"""Days between a forecast and a day of another year, at least."""
LEAST_DAYS = 20
"""Fewest days of the record that make a frequency."""
MONTHS = 12
_RAIN = ENCODER_QUANTITIES.index(RAIN)


@dataclass(frozen=True, eq=False)
class SiteRecord:
    """The record of one site on whole days of UTC."""

    first_day: int
    """Its first day on the common time axis."""
    values_HQ: FloatArray
    """In the units of the encoder; NaN where missing."""

    @classmethod
    def of(cls, corpus: Corpus, site: int) -> "SiteRecord":
        """The record of a site of the corpus, counted as in `Corpus.site_S`."""
        stretches = np.flatnonzero(corpus.site_S == site)
        first_day = int(corpus.first_S[stretches].min()) // DAY_HOURS
        end = int((corpus.first_S + corpus.hours_S)[stretches].max())
        values_HQ = np.full(
            (-(-(end - first_day * DAY_HOURS) // DAY_HOURS) * DAY_HOURS, len(ENCODER_QUANTITIES)), np.nan, np.float32
        )
        for each in stretches:
            start = int(corpus.first_S[each]) - first_day * DAY_HOURS
            part_HQ = corpus.values_HQ[corpus.start_S[each] : corpus.start_S[each + 1]]
            values_HQ[start : start + len(part_HQ)] = part_HQ
        return cls(first_day, values_HQ)

    @property
    def days(self) -> int:
        """D."""
        return len(self.values_HQ) // DAY_HOURS

    def rain_frequency(self, end_n: NDArray[np.integer]) -> NDArray[np.float64]:
        """Frequency of each amount of rain in the 24 hours after the same hour of other days, (n, R).

        The other days are within ±15 calendar days in other years (EPC15), that is at least 183 days apart. If fewer than 20
        of them are known, as in a record of one year, they are all days of the record. This includes the day that is forecast
        and favours the reference; without that season, the record of a few months would tell against it. If fewer than 20
        days are known, the frequency is NaN.

        Args:
            end_n: issue times on the common time axis.

        Reference: Walz et al. 2021, Weather and Forecasting 36, doi:10.1175/WAF-D-20-0233.1
        """
        reached_DPR, known_DPR = self._outcomes()
        day_n, hour_n = end_n // DAY_HOURS - self.first_day, end_n % DAY_HOURS
        calendar_D = calendar_day(EPOCH + (self.first_day + np.arange(self.days)) * DAY_HOURS)
        calendar_n = calendar_day(EPOCH + end_n)
        apart_nD = np.abs(day_n[:, None] - np.arange(self.days))
        gap_nD = np.abs(calendar_n[:, None] - calendar_D)
        season_nD = np.minimum(gap_nD, CALENDAR_DAYS - gap_nD) <= WINDOW_DAYS
        frequency_nR = np.full((len(end_n), known_DPR.shape[-1]), np.nan)
        for used_nD in (np.ones_like(season_nD), season_nD & (apart_nD >= APART_DAYS)):
            known_nDR = known_DPR[:, hour_n].transpose(1, 0, 2) & used_nD[..., None]
            count_nR = known_nDR.sum(1)
            events_nR = (known_nDR & reached_DPR[:, hour_n].transpose(1, 0, 2)).sum(1)
            enough_nR = count_nR >= LEAST_DAYS
            frequency_nR[enough_nR] = events_nR[enough_nR] / count_nR[enough_nR]
        return frequency_nR

    def usual_values(self, end_n: NDArray[np.integer]) -> FloatArray:
        """Mean of each quantity in the same month at the same hour, for the 24 hours after each issue time, (n, Q, P).

        It is NaN without a value. The record includes the hours that are forecast, which favours this reference a little.
        """
        start = self.first_day * DAY_HOURS
        cell_H = _month_and_hour(start + np.arange(len(self.values_HQ)))
        usual_XQ = np.full((MONTHS * DAY_HOURS, self.values_HQ.shape[1]), np.nan, np.float32)
        for quantity, values_H in enumerate(self.values_HQ.T):
            seen_H = ~np.isnan(values_H)
            count_X = np.bincount(cell_H[seen_H], minlength=len(usual_XQ))
            total_X = np.bincount(cell_H[seen_H], weights=values_H[seen_H], minlength=len(usual_XQ))
            usual_XQ[count_X > 0, quantity] = total_X[count_X > 0] / count_X[count_X > 0]
        hours_nP = end_n[:, None] + np.arange(1, DAY_HOURS + 1)
        return usual_XQ[_month_and_hour(hours_nP)].transpose(0, 2, 1)

    def _outcomes(self) -> tuple[BoolArray, BoolArray]:
        """True where the 24 hours after each hour of each day reach an amount, and where this is known, (D, P, R)."""
        after_H = np.append(self.values_HQ[1:, _RAIN], np.full(DAY_HOURS, np.nan, np.float32))
        reached_HR, known_HR = rain_reached(sliding_window_view(after_H, DAY_HOURS))
        shape = (self.days, DAY_HOURS, reached_HR.shape[-1])
        return reached_HR.reshape(shape), known_HR.reshape(shape)


def _month_and_hour(hours: NDArray[np.integer]) -> NDArray[np.int64]:
    """One number for each month and hour of the day, from 0."""
    times = EPOCH + hours
    month = times.astype("datetime64[M]").astype(np.int64) % MONTHS
    return np.asarray(month * DAY_HOURS + hours % DAY_HOURS, np.int64)
