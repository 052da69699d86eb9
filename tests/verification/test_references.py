"""References against arithmetic done by hand, without a leak, and on data with holes."""

from dataclasses import replace

import numpy as np
import pytest

from llueve.errors import DataError, UsageError
from llueve.samples.split import Part
from llueve.verification import learned_references
from llueve.verification import references as r
from llueve.verification.learned_references import learned
from llueve.verification.predictors import PredictorSet, design, most_columns
from llueve.verification.reference_data import ReferenceData
from llueve.verification.scores import auc

LEARNED = ("logistic", "gradient_boosting")


def part(name: str, site: list[int], end: list[int], event_ST: np.ndarray) -> Part:
    """The rows (site, end), labelled as the events say."""
    rows = np.array(site, dtype=np.intp), np.array(end, dtype=np.intp)
    return Part(name, *rows, np.asarray(event_ST[rows], dtype=np.int64))


def period(name: str, start: int, stop: int, event_ST: np.ndarray) -> Part:
    """All rows of all sites whose issue time is in start … stop."""
    sites = len(event_ST)
    return part(name, np.repeat(range(sites), stop - start).tolist(), list(range(start, stop)) * sites, event_ST)


def times(start: str, number: int, hours: int = 24) -> np.ndarray:
    return (np.datetime64(start, "ns") + np.arange(number) * np.timedelta64(hours, "h")).astype("datetime64[ns]")


def random_data(seed: int, sites: int = 2, steps: int = 300, hours: int = 24, horizon: int = 24) -> ReferenceData:
    """Weather whose first variable two steps ago decides the event; holes in it; 60 % training, 20 % validation."""
    random = np.random.default_rng(seed)
    cube_STC = random.normal(size=(sites, steps, 3)).astype(np.float32)
    event_ST = np.zeros((sites, steps), dtype=np.float32)
    event_ST[:, 2:] = cube_STC[:, :-2, 0] > 0.3
    cube_STC[:, :, 1][random.random((sites, steps)) < 0.3] = np.nan
    return ReferenceData(
        cube_STC=cube_STC,
        derived_C=np.zeros(3, bool),
        statics_SF=random.normal(size=(sites, 1)).astype(np.float32),
        times=times("2019-02-03", steps, hours),
        step_hours=hours,
        horizon_hours=horizon,
        context=8,
        event_ST=event_ST,
        training=period("training", 0, steps * 6 // 10, event_ST),
        validation=period("validation", steps * 6 // 10, steps * 8 // 10, event_ST),
        lags=(1, 2),
        seed=0,
    )


def tiny(days: list[str], events: list[float], training: list[int], asked: list[int]) -> tuple[ReferenceData, Part]:
    """One site with an arbitrary time axis, for climatology by hand."""
    event_ST = np.array([events], dtype=np.float32)
    data = ReferenceData(
        cube_STC=np.zeros((1, len(days), 1), dtype=np.float32),
        derived_C=np.zeros(1, bool),
        statics_SF=np.empty((1, 0), dtype=np.float32),
        times=np.array(days, dtype="datetime64[ns]"),
        step_hours=24,
        horizon_hours=24,
        context=8,
        event_ST=event_ST,
        training=part("training", [0] * len(training), training, event_ST),
        validation=part("validation", [], [], event_ST),
        lags=(1,),
        seed=0,
    )
    return data, part("test", [0] * len(asked), asked, event_ST)


def test_climatology_around_new_year() -> None:
    # From 31 December: 15 January is 15 days ahead and counts, 16 January does not; 16 December counts, 15 does not.
    days = ["2001-01-15", "2001-01-16", "2001-12-15", "2001-12-16", "2001-12-30", "2002-12-31"]
    data, rows = tiny(days, [1, 0, 0, 1, 0, 0], training=[0, 1, 2, 3, 4], asked=[5])
    assert r.climatology(data, rows).tolist() == [pytest.approx((1 + 1 + 0) / 3)]


def test_climatology_around_the_leap_day() -> None:
    # On the calendar of 366 days 14 February is 15 days before 29 February and 15 March 15 days after it.
    days = ["2001-02-13", "2001-02-14", "2001-03-15", "2001-03-16", "2004-02-29", "2005-03-01"]
    data, rows = tiny(days, [0, 1, 0, 1, 0, 0], training=[0, 1, 2, 3], asked=[4, 5])
    # 1 March is 15 days after 15 February, so that 14 February is out and 16 March is in.
    assert r.climatology(data, rows).tolist() == [pytest.approx(1 / 2), pytest.approx((0 + 1) / 2)]


def test_climatology_falls_back_to_the_site_and_then_to_all_sites() -> None:
    event_ST = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], dtype=np.float32)
    data = replace(
        tiny(["2001-01-01", "2001-01-02", "2001-01-03", "2001-07-01"], [1, 1, 0, 0], [0], [1])[0],
        cube_STC=np.zeros((2, 4, 1), dtype=np.float32),
        statics_SF=np.empty((2, 0), dtype=np.float32),
        event_ST=event_ST,
        training=part("training", [0, 0, 0], [0, 1, 2], event_ST),
    )
    assert r.climatology(data, part("test", [0, 1], [3, 3], event_ST)).tolist() == [2 / 3, 2 / 3]
    mixed = replace(data, training=part("training", [0, 0, 0, 1], [0, 1, 2, 0], event_ST))
    assert r.climatology(mixed, part("test", [0, 1], [3, 3], event_ST)).tolist() == [2 / 3, 0]


def test_climatology_tells_issue_hours_apart() -> None:
    event_ST = np.array([[1, 0, 1, 0, 1, 0]], dtype=np.float32)
    data = replace(
        tiny(["2001-01-01"] * 6, [0] * 6, [0], [1])[0],
        times=times("2001-01-01T06", 6, hours=12),
        step_hours=12,
        event_ST=event_ST,
        training=part("training", [0] * 4, [0, 1, 2, 3], event_ST),
    )
    assert r.climatology(data, part("test", [0, 0], [4, 5], event_ST)).tolist() == [1, 0]


def test_persistence_by_hand() -> None:
    days = [f"2001-01-0{day}" for day in range(1, 8)]
    data, rows = tiny(days, [1, 0, 1, np.nan, 0, 1, 0], training=[0, 1, 2], asked=[0, 1, 2, 4, 5])
    # Before the start, and where the outcome was never known, the training frequency 2/3 stands in.
    assert r.persistence(data, rows).tolist() == pytest.approx([2 / 3, 1, 0, 2 / 3, 0])


def test_persistence_waits_until_the_horizon_is_over() -> None:
    days = [f"2001-01-0{day}" for day in range(1, 7)]
    data, rows = tiny(days, [1, 0, 0, 1, 1, 0], training=[0, 1, 2, 3], asked=[1, 2, 3, 4, 5])
    two_steps = replace(data, horizon_hours=48)
    assert r.persistence(two_steps, rows).tolist() == [1 / 2, 1, 0, 0, 1]
    assert replace(data, horizon_hours=48).horizon_steps == 2


def test_markov_by_hand() -> None:
    days = [f"2001-01-0{day}" for day in range(1, 9)]
    data, rows = tiny(days, [1, 1, 0, 0, 1, 1, np.nan, 0], training=[0, 1, 2, 3, 4], asked=[0, 5, 3, 7])
    # In training 1 is followed by 1 and 0, and 0 by 0 and 1; before the first day, and on the last, nothing is known.
    after_rain, after_none = (1 + 1 / 2) / (2 + 1), (1 + 1 / 2) / (2 + 1)
    assert r.markov(data, rows).tolist() == pytest.approx([3 / 5, after_rain, after_none, 3 / 5])
    steady = replace(data, event_ST=np.array([[1, 1, 1, 0, 0, 1, 1, 0]], np.float32))
    # 1 is followed by 1, 1 and 0, and 0 by 0.
    assert r.markov(steady, rows[1:3]).tolist() == pytest.approx([(0 + 0) / (1 + 1), (2 + 2 / 3) / (3 + 1)])


def test_markov_of_a_site_leans_on_all_sites() -> None:
    event_ST = np.array([[1, 1, 1, 0], [0, 0, 0, 0]], np.float32)
    data = replace(
        tiny(["2001-01-01", "2001-01-02", "2001-01-03", "2001-01-04"], [0] * 4, [0], [1])[0],
        cube_STC=np.zeros((2, 4, 1), np.float32),
        statics_SF=np.empty((2, 0), np.float32),
        event_ST=event_ST,
        training=part("training", [0, 0, 0], [0, 1, 2], event_ST),
    )
    # The second site has no training row: 0 never came before a row, so the frequency of all rows stands in.
    asked = part("test", [0, 1], [3, 3], event_ST)
    assert r.markov(data, asked).tolist() == pytest.approx([(2 + 1) / (2 + 1), 1])
    more = replace(data, training=part("training", [0, 0, 0, 1, 1], [0, 1, 2, 1, 2], event_ST))
    assert r.markov(more, asked).tolist() == pytest.approx([1, (0 + 0) / (2 + 1)])


def matrix(data: ReferenceData, rows: Part, chosen: PredictorSet = PredictorSet.FULL) -> np.ndarray:
    made = design(data, (rows,))
    return made.matrices[0][:, made.columns(chosen)]


def test_recent_predictors_by_hand() -> None:
    data = random_data(0, hours=6)
    rows = part("test", [1, 0], [1, 4], data.event_ST)
    x_nF = matrix(data, rows, PredictorSet.RECENT)
    first, second, third = (data.cube_STC[:, :, c] for c in range(3))
    year = 2 * np.pi * 33 / 366
    calendar = [np.sin(year), np.cos(year), np.sin(2 * year), np.cos(2 * year), 1, 0, 0, -1]
    missing = float(np.isnan(second[1, 1]))
    lagged = [
        first[1, 1],
        first[1, 0],
        np.nan,
        second[1, 1],
        second[1, 0],
        np.nan,
        missing,
        third[1, 1],
        third[1, 0],
        np.nan,
    ]
    assert x_nF.dtype == np.float32
    np.testing.assert_allclose(x_nF[0], [*lagged, *calendar, data.statics_SF[1, 0], 1], atol=1e-6)
    np.testing.assert_array_equal(x_nF[1, :3], [first[0, 4], first[0, 3], first[0, 2]])


def one_variable(values_ST: np.ndarray, hours: int, context: int, **changes: object) -> ReferenceData:
    """Data with a single variable; every row belongs to training."""
    sites, steps = values_ST.shape
    event_ST = np.zeros((sites, steps), np.float32)
    every = period("training", 0, steps, event_ST)
    data = replace(
        random_data(0, sites=sites, steps=steps, hours=hours),
        cube_STC=values_ST[:, :, None].astype(np.float32),
        derived_C=np.zeros(1, bool),
        statics_SF=np.empty((sites, 0), np.float32),
        context=context,
        training=every,
        lags=None,
    )
    return replace(data, **changes)


def test_rain_enters_as_logarithm_sums_and_wet_shares() -> None:
    rain = np.array([[0, 0, 3, 0, 1, 0, 0, 1, 0, 0, 0, 1]], float)  # the median amount is 1
    data = one_variable(rain, hours=6, context=4)
    x_F = matrix(data, part("test", [0], [5], data.event_ST))[0]
    sums = [np.log1p(rain[0, 5 + 1 - steps : 6].sum()) for steps in (4,)]
    expected = [
        np.log1p(0),
        np.log1p(1),
        np.log1p(0),
        *sums,
        0,
        2 / 4,
    ]  # now, 6 h and 12 h ago; sum; wet now, wet share
    np.testing.assert_allclose(x_F[: len(expected)], expected, rtol=1e-6)


def test_other_variables_enter_as_means_and_changes() -> None:
    random = np.random.default_rng(0)
    warm = random.normal(15, 5, size=(1, 40))
    data = one_variable(warm, hours=6, context=12)
    x_F = matrix(data, part("test", [0], [30], data.event_ST))[0]
    lags = [warm[0, 30 - lag] for lag in (0, 1, 2, 4, 8)]  # 6, 12, 24 and 48 h; 72 h reach beyond the context
    means = [warm[0, 31 - steps : 31].mean() for steps in (4, 12)]  # a day, and the context
    np.testing.assert_allclose(x_F[:8], [*lags, *means, warm[0, 30] - warm[0, 26]], rtol=1e-5)


def test_the_other_sites_enter_as_their_mean_without_the_site_itself() -> None:
    random = np.random.default_rng(0)
    warm = random.normal(15, 5, size=(3, 20))
    warm[2, 12] = np.nan
    data = one_variable(warm, hours=24, context=1)
    x_nF = matrix(data, part("test", [0, 1, 2], [12, 12, 12], data.event_ST))
    np.testing.assert_allclose(x_nF[:, 1], [warm[1, 12], warm[0, 12], (warm[0, 12] + warm[1, 12]) / 2], rtol=1e-6)


def network(hours: int, **changes: object) -> ReferenceData:
    """Four sites on a meridian, at 0, 1, 3 and 7 degrees north, with rain that is log(1 + x) around its median amount 1."""
    values_ST = np.array(
        [[0, 0, 1, 0, 0, 2, 0, 0], [0, 3, 0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 1, 4], [0, 1, 0, 0, 0, 1, 0, 0]]
    )
    positions = np.array([[0.0, 10], [1, 10], [3, 10], [7, 10]])
    return one_variable(values_ST.astype(float), hours, context=8, position_S2=positions, **changes)


def test_neighbours_enter_by_distance_at_the_issue_time() -> None:
    data = network(hours=24)
    rain_ST = np.log1p(data.cube_STC[:, :, 0])
    rows = part("test", [0, 1, 2, 3], [4, 5, 6, 7], data.event_ST)
    near = [[1, 2, 3], [0, 2, 3], [1, 0, 3], [2, 1, 0]]
    expected = [[rain_ST[site, end] for site in sites] for sites, end in zip(near, range(4, 8), strict=True)]
    np.testing.assert_allclose(matrix(data, rows, PredictorSet.NEIGHBOURS), expected, rtol=1e-6)
    assert matrix(replace(data, position_S2=None), rows, PredictorSet.NEIGHBOURS).shape == (4, 0)


def test_neighbours_of_sub_daily_data_also_enter_as_sums_over_a_day() -> None:
    data = network(hours=6)
    found = matrix(data, part("test", [0], [5], data.event_ST), PredictorSet.NEIGHBOURS)[0]
    values_ST = data.cube_STC[:, :, 0]
    sums_S = values_ST[:, 2:6].sum(axis=1)
    np.testing.assert_allclose(found, np.log1p([*values_ST[1:, 5], *sums_S[1:]]), rtol=1e-6)


def test_a_missing_neighbour_stays_missing_and_at_most_eight_are_seen() -> None:
    random = np.random.default_rng(0)
    positions = np.stack([np.arange(12.0), np.zeros(12)], axis=-1)
    data = one_variable(random.normal(15, 5, size=(12, 40)), hours=24, context=1, position_S2=positions)
    data.cube_STC[3, 30] = np.nan
    rows = part("test", [2, 2], [30, 31], data.event_ST)
    found = matrix(data, rows, PredictorSet.NEIGHBOURS)
    nearest = [1, 3, 0, 4, 5, 6, 7, 8]
    np.testing.assert_allclose(found, data.cube_STC[nearest, 30:32, 0].T, rtol=1e-6)
    assert np.isnan(found[0, 1]) and not np.isnan(found[1]).any()


def test_what_neighbours_know_is_found_by_both_references() -> None:
    # The weather of the nearest site comes a day later; the site's own values say nothing, and the mean of all is noise.
    random = np.random.default_rng(0)
    values_ST = random.normal(size=(6, 500))
    positions = np.array([[0.0, 0], [0.1, 0], [20, 0], [20.1, 0], [40, 0], [40.1, 0]])
    event_ST = np.zeros((6, 500), np.float32)
    event_ST[:, :] = values_ST[[1, 0, 3, 2, 5, 4]] > 0.3
    data = one_variable(values_ST, hours=24, context=2, event_ST=event_ST)
    data = replace(
        data, training=period("training", 0, 300, event_ST), validation=period("validation", 300, 400, event_ST)
    )
    test = period("test", 400, 500, event_ST)
    alone, near = learned(data, test), learned(replace(data, position_S2=positions), test)
    for name in LEARNED:
        assert auc(near[name], test.y) > 0.98 > 0.8 > auc(alone[name], test.y), name


def test_the_columns_are_counted_without_computing_them() -> None:
    for data in (
        network(hours=24),
        network(hours=6),
        network(hours=1, lags=(1, 5)),
        random_data(0),
        random_data(0, hours=6),
    ):
        made = design(data, (data.training[:0],))
        bound = most_columns(data)
        assert made.matrices[0].shape[1] <= bound <= 1.3 * made.matrices[0].shape[1] + 12


def test_many_rows_are_compared_on_a_sample_and_all_of_them_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = random_data(1, sites=3, steps=600)
    test = period("test", 480, 600, data.event_ST)
    monkeypatch.setattr(learned_references, "SAMPLE_ROWS", 200)
    fitted: list[int] = []
    for name in ("_fit_logistic", "_fit_gradient_boosting"):
        fit = getattr(learned_references, name)

        def counted(rows, setting, search, fit=fit):  # type: ignore[no-untyped-def]
            fitted.append(len(rows.y_n))
            return fit(rows, setting, search)

        monkeypatch.setattr(learned_references, name, counted)
    once, again = learned(data, test), learned(data, test)
    assert fitted.count(len(data.training)) == 4 and set(fitted) == {200, len(data.training)}
    for name in LEARNED:
        np.testing.assert_array_equal(once[name], again[name])
        assert auc(once[name], test.y) > 0.9


def test_a_site_that_never_measures_a_variable_fills_whole_chunks_with_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_references, "CHUNK_ROWS", 50)
    data = random_data(1)
    data.cube_STC[0, :, 2] = np.nan
    test = period("test", 240, 300, data.event_ST)
    assert auc(learned(data, test)["logistic"], test.y) > 0.9


def test_a_derived_variable_is_not_lagged_or_summed_again() -> None:
    random = np.random.default_rng(0)
    data = one_variable(random.normal(size=(1, 40)), hours=24, context=8)
    derived = replace(data, derived_C=np.ones(1, bool))
    rows = part("test", [0], [30], data.event_ST)
    calendar = 4
    assert matrix(derived, rows).shape[1] == 1 + calendar < matrix(data, rows).shape[1]


def test_a_mean_with_too_few_values_is_missing() -> None:
    warm = np.arange(20.0)[None] - 10
    warm[0, 4:12] = np.nan
    data = one_variable(warm, hours=24, context=4)
    context_mean = 4  # after the value now and lags of 1, 2 and 3 days comes the mean over 3 days, then the context
    rows = part("test", [0] * 3, [9, 13, 14], data.event_ST)
    found = matrix(data, rows)[:, context_mean + 1]
    np.testing.assert_allclose(found, [np.nan, (2 + 3) / 2, (2 + 3 + 4) / 3])


def test_a_daily_signal_in_hourly_data_is_found_without_a_lag_in_the_configuration() -> None:
    random = np.random.default_rng(0)
    signal = random.normal(size=(1, 3000))
    event_ST = np.zeros((1, 3000), np.float32)
    event_ST[:, 24:] = signal[:, :-24] > 0.3
    data = one_variable(signal, hours=1, context=48, event_ST=event_ST)
    data = replace(
        data, training=period("training", 24, 1800, event_ST), validation=period("validation", 1800, 2400, event_ST)
    )
    test = period("test", 2400, 3000, event_ST)
    for name, p in learned(data, test).items():
        assert float(np.mean((p - test.y) ** 2)) < 0.03, name


def test_the_penalty_is_searched_beyond_any_list() -> None:
    # 40 predictors of pure noise for 60 rows: only a penalty far stronger than usual is right.
    random = np.random.default_rng(0)
    event_ST = random.integers(0, 2, (1, 1060)).astype(np.float32)
    data = replace(
        random_data(0, sites=1, steps=1060),
        cube_STC=random.normal(size=(1, 1060, 40)).astype(np.float32),
        derived_C=np.ones(40, bool),
        event_ST=event_ST,
        training=period("training", 0, 60, event_ST),
        validation=period("validation", 60, 560, event_ST),
    )
    p = learned(data, period("test", 560, 1060, event_ST))["logistic"]
    assert np.abs(p - event_ST[0, :60].mean()).max() < 0.05


def test_one_site_and_daily_steps_need_neither_site_nor_hour() -> None:
    data = random_data(0, sites=1)
    missing = 1
    assert matrix(data, data.training, PredictorSet.RECENT).shape[1] == 3 * 3 + missing + 4 + 1


@pytest.mark.parametrize("seed", range(10))
def test_nothing_after_the_issue_time_is_seen(seed: int) -> None:
    random = np.random.default_rng(seed)
    data = random_data(seed, horizon=int(random.choice([24, 48, 72])))
    end = int(random.integers(250, 300))
    row = part("test", [int(random.integers(2))], [end], data.event_ST)
    cube_STC, event_ST = data.cube_STC.copy(), data.event_ST.copy()
    cube_STC[:, end + 1 :] = random.normal(size=cube_STC[:, end + 1 :].shape)
    event_ST[:, end - data.horizon_steps + 1 :] = 1 - event_ST[:, end - data.horizon_steps + 1 :]
    data = replace(data, position_S2=np.array([[0.0, 0], [1, 1]]))
    changed = replace(data, cube_STC=cube_STC, event_ST=event_ST)
    for chosen in PredictorSet:
        np.testing.assert_array_equal(matrix(changed, row, chosen), matrix(data, row, chosen))
    for forecast in (r.persistence, r.markov):
        np.testing.assert_array_equal(forecast(changed, row), forecast(data, row))


@pytest.mark.parametrize("seed", range(5))
def test_only_training_rows_reach_the_climatology(seed: int) -> None:
    random = np.random.default_rng(seed)
    data = random_data(seed)
    test = period("test", 240, 300, data.event_ST)
    cube_STC, event_ST = data.cube_STC.copy(), data.event_ST.copy()
    cube_STC[:, 180:] = np.nan
    event_ST[:, 180:] = random.integers(0, 2, size=(2, 120))
    changed = replace(data, cube_STC=cube_STC, event_ST=event_ST)
    for rows in (data.training, data.validation, test):
        np.testing.assert_array_equal(r.climatology(changed, rows), r.climatology(data, rows))


def test_learned_references_see_no_test_outcome() -> None:
    data = random_data(3)
    event_ST = data.event_ST.copy()
    event_ST[:, 240:] = np.nan
    blind = replace(data, event_ST=event_ST)
    test = period("test", 240, 300, data.event_ST)
    before, after = learned(data, test), learned(blind, test)
    for name in LEARNED:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-9)


@pytest.mark.parametrize("sites", [1, 2])
@pytest.mark.parametrize("name", LEARNED)
def test_a_clear_signal_is_learned_through_holes_and_an_empty_column(name: str, sites: int) -> None:
    data = random_data(1, sites=sites, steps=600)
    data.cube_STC[:, :, 2] = np.nan
    test = period("test", 480, 600, data.event_ST)
    p = learned(data, test)[name]
    assert p.dtype == np.float64 and p.shape == (len(test),)
    area = auc(p, test.y)
    assert area is not None and area > 0.9


def test_a_column_that_only_training_lacks_is_ignored() -> None:
    data = random_data(2)
    data.cube_STC[:, :180, 2] = np.nan
    test = period("test", 240, 300, data.event_ST)
    assert all(np.isfinite(p).all() for p in learned(data, test).values())


def test_a_site_without_training_rows_is_answered() -> None:
    data = random_data(2)
    first = data.training.site == 0
    training = Part("training", data.training.site[first], data.training.end[first], data.training.y[first])
    found = r.all_references(replace(data, training=training), period("test", 240, 300, data.event_ST))
    assert all(np.isfinite(p).all() and (p >= 0).all() and (p <= 1).all() for p in found.values())


def test_more_sites_than_categories() -> None:
    data = random_data(4, sites=300, steps=20)
    assert np.isfinite(learned(data, period("test", 16, 20, data.event_ST))["gradient_boosting"]).all()


def test_a_large_seed_and_extreme_units_do_no_harm() -> None:
    data = replace(random_data(5), seed=2**63 - 1)
    data.cube_STC[:, :, 0] = data.cube_STC[:, :, 0] * 1e-12 + 1e-12
    data.cube_STC[:, :, 2] *= 1e20
    test = period("test", 240, 300, data.event_ST)
    for p in learned(data, test).values():
        assert ((p >= 0) & (p <= 1)).all()


def test_training_with_one_outcome_gives_that_outcome() -> None:
    data = random_data(6)
    data.event_ST[:, :180] = 0
    test = period("test", 240, 300, data.event_ST)
    found = r.all_references(data, test)
    assert not found["climatology"].any() and not found["logistic"].any() and not found["gradient_boosting"].any()


def test_all_references_in_order_repeatable_and_empty_for_no_rows() -> None:
    data = random_data(7)
    test = period("test", 240, 300, data.event_ST)
    once, again = r.all_references(data, test), r.all_references(data, test)
    assert list(once) == ["climatology", "persistence", "markov", "logistic", "gradient_boosting"]
    for name, p in once.items():
        np.testing.assert_allclose(again[name], p, rtol=1e-9)
    nothing = r.all_references(data, period("test", 240, 240, data.event_ST))
    assert [p.shape for p in nothing.values()] == [(0,)] * 5


def test_rows_without_outcome_and_empty_training_are_refused() -> None:
    data = random_data(8)
    test = period("test", 240, 300, data.event_ST)
    with pytest.raises(DataError, match="training has no row"):
        r.climatology(replace(data, training=period("training", 0, 0, data.event_ST)), test)
    with pytest.raises(DataError, match="validation has no row"):
        learned(replace(data, validation=period("validation", 0, 0, data.event_ST)), test)
    data.event_ST[1, 5] = np.nan
    with pytest.raises(DataError, match="1 of 360 rows have no known outcome, the first at site index 1, 2019-02-08"):
        r.climatology(data, test)


def test_arrays_that_do_not_fit_are_refused() -> None:
    data = random_data(9)
    with pytest.raises(UsageError, match="2 sites, 300 times and 3 variables"):
        replace(data, event_ST=data.event_ST[:, :-1])
    with pytest.raises(UsageError, match=r"expected positions \(2, 2\), found \(3, 2\)"):
        replace(data, position_S2=np.zeros((3, 2)))
    with pytest.raises(UsageError, match="at least 1"):
        replace(data, lags=(0, 1))
