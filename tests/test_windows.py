"""Split, purge, scaling and windows: nothing leaks, nothing is copied, nothing is invented."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llueve.errors import DataError
from llueve.panel import feature_names
from llueve.samples.scale import fit_scaler
from llueve.samples.split import complete_windows, split_panel, thinned
from llueve.samples.target import class_labels, event_outcomes
from llueve.samples.windows import build_windows, calendar_facts

CONTEXT = 8


def training_inputs(panel, config):
    """Everything that training sees: scaler, rows, labels, values, masks, facts."""
    split = split_panel(panel, config)
    scaler = fit_scaler(panel, split.training_rows)
    windows = build_windows(panel, scaler, config.windows.context, "mask")
    part = split.training
    knots_CJ = windows.quantiles(split.training_rows, 5)
    return [scaler.mean_C, scaler.std_C, knots_CJ, part.site, part.end, part.y, *windows.batch(part)]


@given(
    seed=st.integers(0, 10**6),
    after=st.integers(0, 59),
    value=st.sampled_from([np.nan, 0.0, 1e6, -3.0]),
    variable=st.sampled_from(["a", "b", "c", "rain"]),
)
@settings(max_examples=60, deadline=None)
def test_no_value_of_validation_or_test_changes_any_training_input(request, seed, after, value, variable):
    panel, config = request.getfixturevalue("make_panel")(seed=seed), request.getfixturevalue("make_config")()
    before = training_inputs(panel, config)
    changed = panel.copy(deep=True)
    cut = 60  # validation starts at half of the 120 steps
    changed[variable].values[:, cut + after :] = value
    if variable == "rain":  # a part without any known outcome would be refused
        changed["rain"].values[0, [cut, -1]] = 1
    for old, new in zip(before, training_inputs(changed, config), strict=True):
        np.testing.assert_array_equal(old, new)


@given(seed=st.integers(0, 10**6), variable=st.sampled_from(["a", "b", "c"]), value=st.sampled_from([np.nan, 7e5]))
@settings(max_examples=60, deadline=None)
def test_no_value_after_the_issue_time_changes_a_window(request, seed, variable, value):
    panel, config = request.getfixturevalue("make_panel")(seed=seed), request.getfixturevalue("make_config")()
    split = split_panel(panel, config)
    scaler = fit_scaler(panel, split.training_rows)
    pick = np.random.default_rng(seed).integers(len(split.test))
    row = split.test[pick : pick + 1]
    changed = panel.copy(deep=True)
    changed[variable].values[:, row.end[0] + 1 :] = value
    for old, new in zip(
        build_windows(panel, scaler, CONTEXT, "mask").batch(row),
        build_windows(changed, scaler, CONTEXT, "mask").batch(row),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("horizon_hours", [24, 72])
def test_the_gap_between_parts_is_context_plus_horizon(make_panel, make_config, horizon_hours):
    config = make_config(target={"horizon_hours": horizon_hours})
    split = split_panel(make_panel(), config)
    ahead = horizon_hours // 24
    for earlier, later in ((split.training, split.validation), (split.validation, split.test)):
        newest_cell_used = earlier.end.max() + ahead
        oldest_cell_seen = later.end.min() - CONTEXT + 1
        assert newest_cell_used < oldest_cell_seen
        assert oldest_cell_seen - newest_cell_used == 1  # and no more is given up than is needed


def test_cut_dates_are_the_same_for_sites_of_different_length(make_panel, make_config):
    panel = make_panel(sites=3)
    for name in (*feature_names(panel), "rain"):
        panel[name].values[1, :30] = np.nan  # this site starts later
        panel[name].values[2, 100:] = np.nan  # and this one ends earlier
    dates = {"validation_start": "2020-03-01", "test_start": "2020-04-01"}
    config = make_config(split={"validation_fraction": None, "test_fraction": None, **dates})
    split = split_panel(panel, config)
    for site in range(3):
        assert panel["time"].values[split.test.end[split.test.site == site]].min() == np.datetime64("2020-04-01")
    assert split.training.end[split.training.site == 1].min() == 30 + CONTEXT - 1  # a whole context inside the record


def test_the_split_carries_the_labels_of_the_whole_panel(make_panel, make_config):
    panel, config = make_panel(), make_config()
    panel["rain"].values[1, 7] = np.nan
    split = split_panel(panel, config)
    np.testing.assert_array_equal(split.labels_ST, class_labels(panel, config.target))
    for part in split.parts:
        np.testing.assert_array_equal(split.labels_ST[part.site, part.end], part.y)


def test_outcomes_of_one_class_of_three():
    labels_ST = np.array([[0, 1, 2, np.nan]], np.float32)
    np.testing.assert_array_equal(event_outcomes(labels_ST, 1), [[0, 1, 0, np.nan]])


def test_unknown_outcomes_make_no_window(make_panel, make_config):
    panel = make_panel()
    panel["rain"].values[0, 40:50] = np.nan
    split = split_panel(panel, make_config())
    ends = split.training.end[split.training.site == 0]
    assert not set(ends.tolist()) & set(range(40, 50))


def test_stride_thins_what_the_model_is_given_and_nothing_else(make_panel, make_config):
    full, same = (split_panel(make_panel(), make_config(windows={"stride": n})) for n in (1, 3))
    assert len(same.training) == len(full.training)  # the references see every issue hour
    thin = thinned(full.training, make_config(windows={"stride": 3}), 24.0)
    assert set((thin.end % 3).tolist()) == {0} and len(thin) == np.sum(full.training.end % 3 == 0)
    with pytest.raises(DataError, match=r"windows\.stride = 1000 leaves none"):
        thinned(full.training, make_config(windows={"stride": 1000}), 24.0)


def test_without_a_stride_issue_times_are_a_quarter_of_the_horizon_apart(make_panel, make_config):
    """Also where forecasts are issued at few times alone, which no fixed grid needs to meet."""
    panel = make_panel(times=240).assign_attrs(step_hours=2.0)
    panel = panel.assign_coords(time=np.datetime64("2020-01-01", "ns") + np.arange(240) * np.timedelta64(2, "h"))
    config = make_config()
    every = thinned(split_panel(panel, config).training, config, 2.0)
    assert set(np.diff(np.unique(every.end))) == {3}
    panel["rain"].values[:, np.arange(240) % 12 != 10] = np.nan  # once a day
    daily = split_panel(panel, config).training
    assert np.array_equal(thinned(daily, config, 2.0).end, daily.end)
    hours = make_config(windows={"issue_hours": [20]})
    assert np.array_equal(thinned(split_panel(panel, hours).training, hours, 2.0).end, daily.end)


def test_steps_that_the_source_has_no_row_for_are_not_judged(make_panel, make_config):
    panel = make_panel()
    recorded = np.ones(panel["a"].shape, dtype=bool)
    recorded[0, 95:100] = False
    split = split_panel(panel.assign_coords(recorded=(("site", "time"), recorded)), make_config())
    ends = split.test.end[split.test.site == 0]
    assert not set(ends.tolist()) & set(range(95, 100)) and {94, 100} <= set(ends.tolist())


def test_context_longer_than_any_site_names_both_lengths(make_panel, make_config):
    with pytest.raises(DataError, match=r"context = 500 steps, but the longest site has 120"):
        split_panel(make_panel(), make_config(windows={"context": 500}))


def test_a_part_that_the_purge_empties_is_named(make_panel, make_config):
    with pytest.raises(DataError, match=r"the validation period has no window.*shorten windows\.context"):
        split_panel(make_panel(), make_config(windows={"context": 30}))


def test_cuts_outside_the_panel_are_refused_with_its_extent(make_panel, make_config):
    dates = {"validation_start": "2031-01-01", "test_start": "2032-01-01"}
    config = make_config(split={"validation_fraction": None, "test_fraction": None, **dates})
    with pytest.raises(DataError, match=r"2020-01-01.*2020-04-29"):
        split_panel(make_panel(), config)


def test_scaler_by_hand(make_panel):
    panel = make_panel(sites=1, times=10, missing=0)
    panel["a"].values[0] = [1, 3, np.nan, 1, 3, 900, 900, 900, 900, 900]
    scaler = fit_scaler(panel, training_rows=5)
    assert scaler.mean_C[0] == (1 + 3 + 1 + 3) / 4
    assert scaler.std_C[0] == ((1 + 1 + 1 + 1) / 4) ** 0.5


def test_a_constant_variable_keeps_scale_one(make_panel):
    panel = make_panel(missing=0)
    panel["a"].values[:] = 273.15
    assert fit_scaler(panel, 60).std_C[0] == 1


def test_a_variable_without_training_values_is_refused_by_name(make_panel):
    panel = make_panel()
    panel["b"].values[:, :60] = np.nan
    with pytest.raises(DataError, match=r"^b: no observed value in the training period"):
        fit_scaler(panel, 60)


def test_batches_are_views_and_hold_the_right_cells(make_panel, make_config):
    panel = make_panel()
    split = split_panel(panel, make_config())
    scaler = fit_scaler(panel, split.training_rows)
    windows = build_windows(panel, scaler, CONTEXT, "mask")
    assert windows.values_STC.nbytes == panel["a"].values.nbytes * 3  # rows × variables, whatever the context
    row = split.test[5:6]
    values, observed, facts = windows.batch(row)
    site, end = row.site[0], row.end[0]
    raw = panel["b"].values[site, end - CONTEXT + 1 : end + 1]
    np.testing.assert_array_equal(observed[0, 1], ~np.isnan(raw))
    expected = np.where(np.isnan(raw), 0, (raw - scaler.mean_C[1]) / scaler.std_C[1])
    np.testing.assert_allclose(values[0, 1], expected, rtol=1e-6)
    np.testing.assert_array_equal(facts[0], windows.calendar_TF[end])


def test_raw_windows_keep_their_nan_and_count_them(make_panel, make_config):
    panel = make_panel(missing=0)
    panel["a"].values[0, 20] = np.nan
    split = split_panel(panel, make_config())
    scaler = fit_scaler(panel, split.training_rows)
    assert build_windows(panel, scaler, CONTEXT, "mask").non_finite(split.training) == 0
    raw = build_windows(panel, scaler, CONTEXT, "raw")
    assert raw.non_finite(split.training) == CONTEXT  # the eight windows that hold step 20
    assert np.isnan(raw.batch(split.training)[0]).sum() == CONTEXT


def test_calendar_turns_once_a_year_and_once_a_day():
    times = np.array(["2021-01-01T00", "2021-07-02T15", "2022-01-01T00"], dtype="datetime64[ns]")
    daily, hourly = calendar_facts(times, 24), calendar_facts(times, 1)
    np.testing.assert_allclose(daily[[0, 2]], [[0, 1], [0, 1]], atol=1e-6)
    assert daily[1, 1] < -0.99  # half a year on
    assert hourly.shape == (3, 4)
    np.testing.assert_allclose(hourly[1, 2:], [np.sin(2 * np.pi * 15 / 24), np.cos(2 * np.pi * 15 / 24)], atol=1e-6)


def test_a_window_is_found_by_site_and_time(make_panel, make_config):
    part = split_panel(make_panel(sites=3), make_config(windows={"context": CONTEXT})).training[::3]
    for position in (0, 7, len(part) - 1):
        assert part.find(part.site[position], part.end[position]).tolist() == [position]
    assert part.find(part.site[7], part.end[7] + 1).tolist() == []
    assert part.find(5, part.end[7]).tolist() == []
    assert part[:0].find(0, 0).tolist() == []


def test_a_batch_is_copied_once(make_panel, make_config):
    """Values and masks come as the model takes them, so that nothing turns them around afterwards."""
    config = make_config(windows={"context": CONTEXT})
    panel = make_panel()
    split = split_panel(panel, config)
    windows = build_windows(panel, fit_scaler(panel, split.training_rows), CONTEXT, "mask")
    values, observed, _ = windows.batch(split.training[::5])
    assert values.flags.c_contiguous and observed.flags.c_contiguous
    assert not np.shares_memory(values, windows.values_STC)
    row = split.training[[35]]
    start, end = int(row.end[0]) - CONTEXT + 1, int(row.end[0]) + 1
    np.testing.assert_array_equal(windows.batch(row)[0][0].T, windows.values_STC[row.site[0], start:end])


def test_predictions_need_a_whole_context_and_an_observed_issue_time(make_panel):
    panel = make_panel(sites=2, times=20, missing=0)
    for name in feature_names(panel):
        panel[name].values[1, :5] = np.nan  # this record starts later
        panel[name].values[1, [15, 19]] = np.nan  # and these rows were not observed
    every = complete_windows(panel, CONTEXT, every_window=True)
    ends = [every.end[every.site == site].tolist() for site in (0, 1)]
    assert ends == [list(range(7, 20)), [12, 13, 14, 16, 17, 18]]
    last = complete_windows(panel, CONTEXT, every_window=False)
    assert (last.name, last.site.tolist(), last.end.tolist()) == ("prediction", [0, 1], [19, 18])


@pytest.mark.parametrize("rows", [0, CONTEXT - 1])
def test_predictions_of_a_site_that_is_too_short_are_refused_by_name(make_panel, rows):
    panel = make_panel(sites=2, times=20, missing=0)
    for name in feature_names(panel):
        panel[name].values[1, rows:] = np.nan
    with pytest.raises(DataError, match=rf"s1: {rows} rows do not fill one window of 8 steps"):
        complete_windows(panel, CONTEXT, every_window=True)
