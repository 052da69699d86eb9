"""Intervals: each resample scores the rows that it drew, and all scores and differences come from the same draws."""

import math
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llueve.verification import scores
from llueve.verification.bootstrap import DateBlocks, interval, interval_from_halves
from llueve.verification.curves import reliability
from llueve.verification.decomposition import decompose, recalibration_curve
from llueve.verification.intervals import comparisons, drawn, score_intervals

sys.path.insert(0, str(Path(__file__).parent))
from forecast_cases import noisy_forecasts

AT = np.array([0.05, 0.3, 0.8])


def blocks_of(forecasts, resamples: int = 40, days: int = 7, seed: int = 0) -> DateBlocks:
    return DateBlocks.of(forecasts.issued_n, days, forecasts.horizon_hours, resamples, seed)


def rows_of(blocks: DateBlocks, draws: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The rows of each resample, written out as often as their block is drawn."""
    counts = np.concatenate(list(draws)).astype(int)
    return [np.repeat(np.arange(len(blocks.block_n)), row[blocks.block_n]) for row in counts]


@pytest.fixture(scope="module")
def forecasts():
    return noisy_forecasts()


@pytest.fixture(scope="module")
def found(forecasts):
    blocks = blocks_of(forecasts)
    return drawn(forecasts, blocks, reliability(forecasts.model_p, forecasts.y_n), AT)


def test_each_resample_scores_the_rows_that_it_drew(forecasts, found) -> None:
    each = [forecasts.model_p, *forecasts.reference_p.values()]
    blocks, values = blocks_of(forecasts), found.scores
    for number, rows in enumerate(rows_of(blocks, blocks.draws())):
        y = forecasts.y_n[rows]
        assert values.brier_RF[number] == pytest.approx([scores.brier(p[rows], y) for p in each])
        assert values.auc_RF[number] == pytest.approx([scores.auc(p[rows], y) for p in each])
        assert values.log_score_R[number] == pytest.approx(scores.log_score(each[0][rows], y))
        bins = reliability(each[0][rows], y)
        assert values.frequency_RQ[number] == pytest.approx(bins.frequency_Q, nan_ok=True)


def test_each_half_sample_recalibrates_half_of_the_blocks(forecasts, found) -> None:
    blocks, p = blocks_of(forecasts), forecasts.model_p
    for number, rows in enumerate(rows_of(blocks, blocks.halves())):
        assert len(set(rows)) == len(rows) and len(set(blocks.block_n[rows])) == blocks.count // 2
        y = forecasts.y_n[rows]
        assert found.calibration.mcb_R[number] == pytest.approx(decompose(p[rows], y).mcb)
        curve = recalibration_curve(p[rows], y)
        expected = np.interp(AT, curve.probability_G, curve.frequency_G)
        assert found.calibration.isotonic_RQ[number] == pytest.approx(expected)


def test_the_interval_of_miscalibration_by_hand() -> None:
    # 4 blocks, so half of them is 2: the error of the estimate is the excess of the halves / (2^(2/3) - 1).
    blocks = DateBlocks(np.arange(4), 7, 3, 0)
    halves = np.array([0.03, 0.04, 0.05])
    error = (0.04 - 0.03) / (2 ** (2 / 3) - 1)
    low, high = interval_from_halves(0.03, halves, blocks)
    assert low == pytest.approx(0.03 - error - 0.0095) and high == pytest.approx(0.03 - error + 0.0095)
    assert interval_from_halves(0.001, halves, blocks)[0] == 0


@pytest.mark.parametrize("slope", [1.0, 0.6])
def test_the_interval_of_miscalibration_holds_the_truth(slope: float) -> None:
    held, random = 0, np.random.default_rng(0)
    for _ in range(20):
        logit = random.normal(-1, 1.2, 1200)
        p, truth = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(-slope * logit))
        y = (random.random(1200) < truth).astype(np.int64)
        one = replace(noisy_forecasts(sites=10), y_n=y, model_p=p, reference_p={})
        blocks = blocks_of(one, resamples=60, days=3)
        draws = drawn(one, blocks, reliability(p, y), AT)
        low, high = score_intervals(one, draws)["mcb"]
        held += low <= ((p - truth) ** 2).mean() <= high
    assert held >= 16  # 19 of 20 are expected; a percentile interval holds the 0 of a calibrated forecast never


def test_intervals_are_quantiles_of_the_resamples(forecasts, found) -> None:
    given = score_intervals(forecasts, found)
    assert list(given) == ["brier", "bss", "log_score", "auc", "mcb"]
    values = found.scores
    assert given["brier"] == np.quantile(values.brier_RF[:, 0], [0.025, 0.975]).tolist()
    assert given["bss"] == np.quantile(1 - values.brier_RF[:, 0] / values.brier_RF[:, 1], [0.025, 0.975]).tolist()
    against = comparisons(forecasts, found)
    assert list(against) == ["climatology", "weaker"]
    difference = values.brier_RF[:, 2] - values.brier_RF[:, 0]
    assert against["weaker"]["brier_interval"] == np.quantile(difference, [0.025, 0.975]).tolist()
    areas = values.auc_RF[:, 0] - values.auc_RF[:, 2]
    assert against["weaker"]["auc_interval"] == np.quantile(areas, [0.025, 0.975]).tolist()
    assert given["bss"] == against["climatology"]["skill_interval"]


def test_differences_are_those_of_the_scores(forecasts) -> None:
    p, y = forecasts.model_p, forecasts.y_n
    for name, row in comparisons(forecasts, None).items():
        reference = forecasts.reference_p[name]
        assert row["brier_difference"] == pytest.approx(scores.brier(reference, y) - scores.brier(p, y))
        assert row["auc_difference"] == pytest.approx(scores.auc(p, y) - scores.auc(reference, y))
        assert row["skill"] == pytest.approx(scores.brier_skill(p, y, reference))
        assert [row[key] for key in ("brier_interval", "skill_interval", "auc_interval")] == [None] * 3


def test_pairs_are_far_narrower_than_two_intervals(forecasts) -> None:
    shifted = replace(forecasts, reference_p={"shifted": np.clip(forecasts.model_p + 0.02, 0, 1)})
    blocks = blocks_of(shifted, resamples=300)
    found = drawn(shifted, blocks, reliability(shifted.model_p, shifted.y_n), AT)
    low, high = comparisons(shifted, found)["shifted"]["brier_interval"]
    own = score_intervals(shifted, found)["brier"]
    assert high - low < (own[1] - own[0]) / 3


def test_the_interval_is_that_of_resampled_blocks() -> None:
    # The spread of the mean over B equal blocks is the blocks' own spread over √B, as for any mean.
    forecasts = noisy_forecasts(sites=2, days=100)
    blocks = blocks_of(forecasts, resamples=20_000, days=10)
    # Only sums are needed here, so the draws are used directly: AUC and MCB of 20,000 resamples take seconds.
    gain = (forecasts.reference_p["weaker"] - forecasts.y_n) ** 2 - (forecasts.model_p - forecasts.y_n) ** 2
    sums = blocks.sums(gain, np.ones(200))
    drawn = np.concatenate([counts @ sums for counts in blocks.draws()])
    low, high = interval(drawn[:, 0] / drawn[:, 1])
    half = 1.96 * gain.reshape(2, 10, 10).mean(axis=(0, 2)).std() / math.sqrt(10)
    assert (low + high) / 2 == pytest.approx(gain.mean(), abs=half / 5)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def test_the_same_seed_gives_the_same_draws_however_many_rows_there_are(monkeypatch) -> None:
    forecasts = noisy_forecasts()
    once = np.concatenate(list(blocks_of(forecasts).draws()))
    monkeypatch.setattr("llueve.verification.bootstrap.NUMBERS_AT_ONCE", 2000)
    parts = list(blocks_of(forecasts).draws())
    assert len(parts) == 8 and (np.concatenate(parts) == once).all()
    assert (np.concatenate(list(blocks_of(forecasts, seed=1).draws())) != once).any()


def test_blocks_hold_all_sites_of_a_date_and_never_less_than_the_horizon() -> None:
    forecasts = noisy_forecasts(sites=2, days=100)
    weeks = blocks_of(forecasts)
    assert weeks.count == math.ceil(100 / 7)
    assert (weeks.block_n[:100] == weeks.block_n[100:]).all()
    slow = blocks_of(replace(forecasts, horizon_hours=24 * 9 + 1))
    assert (slow.days, slow.count) == (10, 10)
    assert blocks_of(replace(forecasts, horizon_hours=None)).days == 7


def test_fewer_than_five_blocks_are_too_few() -> None:
    assert not blocks_of(noisy_forecasts(days=28)).enough
    assert blocks_of(noisy_forecasts(days=29)).enough


def test_a_statistic_that_a_resample_leaves_undefined_has_no_interval() -> None:
    forecasts = noisy_forecasts()
    y = np.zeros(len(forecasts), np.int64)
    y[:12] = 1  # all events fall in two weeks, which many resamples leave out
    rare = replace(forecasts, y_n=y, reference_p={"climatology": y.astype(float)})
    found = drawn(rare, blocks_of(rare), reliability(rare.model_p, y), AT)
    given = score_intervals(rare, found)
    assert given["auc"] is None and given["bss"] is None and given["brier"] is not None
    against = comparisons(rare, found)["climatology"]
    assert against["skill"] is None and against["skill_interval"] is None and against["auc_interval"] is None
    assert against["brier_interval"][1] < 0


def test_without_resamples_there_is_no_interval(forecasts) -> None:
    assert set(score_intervals(forecasts, None).values()) == {None}
