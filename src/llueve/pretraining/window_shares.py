"""Shares of the windows: a group counts by the weather that it holds, not by its rows.

Shapes: S stretches of the corpus, G groups, N stretches of one group.

Neighbours see the same weather at the same time. An encoder that meets the same hours at a hundred neighbouring sites learns
them by heart. The hours of a stretch are therefore divided by the number of sites near it that have the same hours.
"""

import numpy as np
from numpy.typing import NDArray

from llueve.errors import DataError
from llueve.pretraining.corpus import Corpus
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES, RAIN
from llueve.sphere import distance_km

NEAR_KM = 150.0
"""Distance within which two sites have the same weather."""
WITHOUT_RAIN = 0.2
"""Worth of an hour without a value of rain: it teaches only the other quantities."""
_RAIN = ENCODER_QUANTITIES.index(RAIN)


def window_shares(corpus: Corpus, held_out: bool) -> NDArray[np.float64]:
    """Share of each stretch in the windows, (S,): zero for stretches of the other kind of sites.

    The share of a group goes with the square root of its independent hours with rain, so that a large group does not drown
    the others. Within a group that of a stretch goes with its own ones.

    Raises:
        DataError: no site is of this kind.
    """
    of_kind_S = np.array([each.held_out == held_out for each in corpus.stretches])
    if not of_kind_S.any():
        kind = "held out: raise corpus.held_out" if held_out else "left for the training: lower corpus.held_out"
        raise DataError(f"no site of the corpus is {kind}, or bring more sites")
    groups_S = np.unique([each.group for each in corpus.stretches], return_inverse=True)[1]
    worth_S = np.zeros(len(of_kind_S))
    for group in range(int(groups_S.max()) + 1):
        rows_N = np.flatnonzero(of_kind_S & (groups_S == group))
        if len(rows_N):
            worth_S[rows_N] = _independent_hours(corpus, rows_N)
    share_S = worth_S / np.sqrt(np.maximum(np.bincount(groups_S, weights=worth_S), 1.0))[groups_S]
    return np.asarray(share_S / share_S.sum())


def _independent_hours(corpus: Corpus, rows_N: NDArray[np.intp]) -> NDArray[np.float64]:
    """Hours of the stretches of one group, an hour at several near sites shared by them, (N,)."""
    first_N, hours_N = corpus.first_S[rows_N], corpus.hours_S[rows_N].astype(np.float64)
    last_N, (latitude_N, longitude_N) = first_N + hours_N, corpus.position_S2[rows_N].T
    sites_N = corpus.site_S[rows_N]
    worth_N = np.empty(len(rows_N))
    for at, row in enumerate(rows_N):
        # A comparison with an unknown position, NaN, is false: such a site has no neighbour.
        near_N = distance_km(latitude_N[at], longitude_N[at], latitude_N, longitude_N) <= NEAR_KM
        near_N &= sites_N != sites_N[at]
        shared_N = np.minimum(last_N, last_N[at]) - np.maximum(first_N, first_N[at])
        sharing = 1 + shared_N[near_N].clip(0).sum() / hours_N[at]
        inside = slice(corpus.start_S[row], corpus.start_S[row + 1])
        with_rain = float((~np.isnan(corpus.values_HQ[inside, _RAIN])).mean())
        worth_N[at] = hours_N[at] * (WITHOUT_RAIN + (1 - WITHOUT_RAIN) * with_rain) / sharing
    return worth_N
