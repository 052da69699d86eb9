"""The shares of the windows by visible arithmetic: neighbours share their weather, and a group counts by its root."""

import numpy as np
import pytest

from llueve.pretraining.corpus import Corpus, Stretch
from llueve.pretraining.window_shares import WITHOUT_RAIN, window_shares
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES, RAIN

HOURS = 1000
TOKYO, NEAR_TOKYO, LIMA = (35.7, 139.7), (35.9, 139.7), (-12.0, -77.0)


def corpus_of(*stretches, without_rain=()):
    """A corpus of stretches: name, group, position, first hour; each of `HOURS` hours."""
    made = [Stretch(name, group, *position, first, False) for name, group, position, first in stretches]
    values_HQ = np.zeros((HOURS * len(made), len(ENCODER_QUANTITIES)), np.float16)
    for place in without_rain:
        values_HQ[place * HOURS : (place + 1) * HOURS, ENCODER_QUANTITIES.index(RAIN)] = np.nan
    return Corpus(made, np.arange(len(made) + 1) * HOURS, values_HQ, {})


def test_sites_far_apart_count_in_full():
    shares = window_shares(corpus_of(("a", "one", TOKYO, 0), ("b", "one", LIMA, 0)), held_out=False)
    np.testing.assert_allclose(shares, [0.5, 0.5])


def test_near_sites_share_the_hours_that_both_have():
    """Both Tokyos have 500 hours in common: each is worth 1000 / 1.5, and Lima 1000."""
    corpus = corpus_of(("a", "one", TOKYO, 0), ("b", "one", NEAR_TOKYO, 500), ("c", "one", LIMA, 0))
    np.testing.assert_allclose(window_shares(corpus, held_out=False), np.array([2, 2, 3]) / 7)


def test_other_years_of_a_near_site_and_of_the_same_site_count_in_full():
    corpus = corpus_of(("a", "one", TOKYO, 0), ("a", "one", TOKYO, 1500), ("b", "one", NEAR_TOKYO, 9000))
    np.testing.assert_allclose(window_shares(corpus, held_out=False), [1 / 3] * 3)


def test_unknown_positions_have_no_neighbour():
    nowhere = (np.nan, np.nan)
    corpus = corpus_of(("a", "one", nowhere, 0), ("b", "one", nowhere, 0), ("c", "one", TOKYO, 0))
    np.testing.assert_allclose(window_shares(corpus, held_out=False), [1 / 3] * 3)


def test_a_group_counts_by_its_root_and_an_hour_without_rain_less():
    """Four sites of one group against one: √4 against √1. Without rain the single one has √0.2."""
    four = [(str(n), "four", (-60.0 + 30 * n, 0.0), 0) for n in range(4)]
    shares = window_shares(corpus_of(*four, ("x", "one", LIMA, 0)), held_out=False)
    np.testing.assert_allclose(shares, [1 / 6] * 4 + [1 / 3])
    dry = window_shares(corpus_of(*four, ("x", "one", LIMA, 0), without_rain=[4]), held_out=False)
    assert dry[4] / dry[:4].sum() == pytest.approx(np.sqrt(WITHOUT_RAIN) / 2)
