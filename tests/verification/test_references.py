"""References against arithmetic done by hand, without a leak, and on data with holes."""

from dataclasses import replace

import numpy as np
import pytest

from llueve.errors import DataError, UsageError
from llueve.samples.split import Part
from llueve.verification import references as r
from llueve.verification.scores import auc


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


def random_data(seed: int, sites: int = 2, steps: int = 300, hours: int = 24, horizon: int = 24) -> r.ReferenceData:
    """Weather whose first variable two steps ago decides the event; holes in it; 60 % training, 20 % validation."""
    random = np.random.default_rng(seed)
    cube_STC = random.normal(size=(sites, steps, 3)).astype(np.float32)
    event_ST = np.zeros((sites, steps), dtype=np.float32)
    event_ST[:, 2:] = cube_STC[:, :-2, 0] > 0.3
    cube_STC[:, :, 1][random.random((sites, steps)) < 0.3] = np.nan
    return r.ReferenceData(
        cube_STC=cube_STC,
        statics_SF=random.normal(size=(sites, 1)).astype(np.float32),
        times=times("2019-02-03", steps, hours),
        step_hours=hours,
        horizon_hours=horizon,
        event_ST=event_ST,
        training=period("training", 0, steps * 6 // 10, event_ST),
        validation=period("validation", steps * 6 // 10, steps * 8 // 10, event_ST),
        lags=(1, 2),
        seed=0,
    )


def tiny(days: list[str], events: list[float], training: list[int], asked: list[int]) -> tuple[r.ReferenceData, Part]:
    """One site with an arbitrary time axis, for climatology by hand."""
    event_ST = np.array([events], dtype=np.float32)
    data = r.ReferenceData(
        cube_STC=np.zeros((1, len(days), 1), dtype=np.float32),
        statics_SF=np.empty((1, 0), dtype=np.float32),
        times=np.array(days, dtype="datetime64[ns]"),
        step_hours=24,
        horizon_hours=24,
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


def test_design_matrix_by_hand() -> None:
    data = random_data(0, hours=6)
    rows = part("test", [1, 0], [1, 4], data.event_ST)
    x_nF = r.design_matrix(data, rows)
    cube = data.cube_STC
    quarter = 2 * np.pi * (33 + 0) / 366
    calendar = [np.sin(quarter), np.cos(quarter), 1, 0]
    expected = [*cube[1, 1], *cube[1, 0], *[np.nan] * 3, *calendar, data.statics_SF[1, 0], 1]
    assert x_nF.dtype == np.float32
    np.testing.assert_allclose(x_nF[0], expected, atol=1e-6)
    np.testing.assert_array_equal(x_nF[1, :9], [*cube[0, 4], *cube[0, 3], *cube[0, 2]])


def test_one_site_and_daily_steps_need_neither_site_nor_hour() -> None:
    data = random_data(0, sites=1)
    assert r.design_matrix(data, data.training).shape[1] == 3 * 3 + 2 + 1


@pytest.mark.parametrize("seed", range(10))
def test_nothing_after_the_issue_time_is_seen(seed: int) -> None:
    random = np.random.default_rng(seed)
    data = random_data(seed, horizon=int(random.choice([24, 48, 72])))
    end = int(random.integers(250, 300))
    row = part("test", [int(random.integers(2))], [end], data.event_ST)
    cube_STC, event_ST = data.cube_STC.copy(), data.event_ST.copy()
    cube_STC[:, end + 1 :] = random.normal(size=cube_STC[:, end + 1 :].shape)
    event_ST[:, end - data.horizon_steps + 1 :] = 1 - event_ST[:, end - data.horizon_steps + 1 :]
    changed = replace(data, cube_STC=cube_STC, event_ST=event_ST)
    np.testing.assert_array_equal(r.design_matrix(changed, row), r.design_matrix(data, row))
    np.testing.assert_array_equal(r.persistence(changed, row), r.persistence(data, row))


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
    for reference in (r.logistic, r.gradient_boosting):
        np.testing.assert_allclose(reference(blind, test), reference(data, test), rtol=1e-9)


@pytest.mark.parametrize("sites", [1, 2])
@pytest.mark.parametrize("reference", [r.logistic, r.gradient_boosting])
def test_a_clear_signal_is_learned_through_holes_and_an_empty_column(reference, sites: int) -> None:
    data = random_data(1, sites=sites, steps=600)
    data.cube_STC[:, :, 2] = np.nan
    test = period("test", 480, 600, data.event_ST)
    p = reference(data, test)
    assert p.dtype == np.float64 and p.shape == (len(test),)
    area = auc(p, test.y)
    assert area is not None and area > 0.9


def test_a_column_that_only_training_lacks_is_ignored() -> None:
    data = random_data(2)
    data.cube_STC[:, :180, 2] = np.nan
    test = period("test", 240, 300, data.event_ST)
    assert np.isfinite(r.logistic(data, test)).all()
    assert np.isfinite(r.gradient_boosting(data, test)).all()


def test_a_site_without_training_rows_is_answered() -> None:
    data = random_data(2)
    first = data.training.site == 0
    training = Part("training", data.training.site[first], data.training.end[first], data.training.y[first])
    found = r.all_references(replace(data, training=training), period("test", 240, 300, data.event_ST))
    assert all(np.isfinite(p).all() and (p >= 0).all() and (p <= 1).all() for p in found.values())


def test_more_sites_than_categories() -> None:
    data = random_data(4, sites=300, steps=20)
    assert np.isfinite(r.gradient_boosting(data, period("test", 16, 20, data.event_ST))).all()


def test_a_large_seed_and_extreme_units_do_no_harm() -> None:
    data = replace(random_data(5), seed=2**63 - 1)
    data.cube_STC[:, :, 0] = data.cube_STC[:, :, 0] * 1e-12 + 1e-12
    data.cube_STC[:, :, 2] *= 1e20
    test = period("test", 240, 300, data.event_ST)
    for reference in (r.logistic, r.gradient_boosting):
        p = reference(data, test)
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
    assert list(once) == ["climatology", "persistence", "logistic", "gradient_boosting"]
    for name, p in once.items():
        np.testing.assert_allclose(again[name], p, rtol=1e-9)
    nothing = r.all_references(data, period("test", 240, 240, data.event_ST))
    assert [p.shape for p in nothing.values()] == [(0,)] * 4


def test_rows_without_outcome_and_empty_training_are_refused() -> None:
    data = random_data(8)
    test = period("test", 240, 300, data.event_ST)
    with pytest.raises(DataError, match="training has no row"):
        r.climatology(replace(data, training=period("training", 0, 0, data.event_ST)), test)
    with pytest.raises(DataError, match="validation has no row"):
        r.logistic(replace(data, validation=period("validation", 0, 0, data.event_ST)), test)
    data.event_ST[1, 5] = np.nan
    with pytest.raises(DataError, match="1 of 360 rows have no known outcome, the first at site index 1, 2019-02-08"):
        r.climatology(data, test)


def test_arrays_that_do_not_fit_are_refused() -> None:
    data = random_data(9)
    with pytest.raises(UsageError, match="2 sites and 300 times"):
        replace(data, event_ST=data.event_ST[:, :-1])
    with pytest.raises(UsageError, match="at least 1"):
        replace(data, lags=(0, 1))
