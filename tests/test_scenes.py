"""Scenes: all windows of an issue time, no more than a limit, and nothing of the future or of an absent site."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llueve.errors import ConfigError, DataError
from llueve.panel import UNKNOWN
from llueve.runs.saved_model import SavedModel
from llueve.samples.scale import fit_scaler
from llueve.samples.scenes import Network
from llueve.samples.split import Part, complete_windows, split_panel
from llueve.step.predict import as_batch, predict_logits
from llueve.training.batches.order import epoch_order

SITES = 5


@pytest.fixture
def spread(make_panel):
    """A panel of five sites with positions; s4 has rows from day 12 on, and s3 has a gap."""
    panel = make_panel(sites=SITES, missing=0.05)
    for name in ("a", "b", "c"):
        panel[name].values[4, :12] = np.nan
        panel[name].values[3, 20:26] = np.nan
    panel["rain"].values[4, :12] = np.nan
    panel["rain"].values[3, 20:26] = np.nan
    panel["rain"].values[2, 30:40] = np.nan  # observed, but without an outcome
    return panel.assign_coords(
        latitude=("site", [-10.0, -12.0, -14.0, -11.0, -13.0]), longitude=("site", [-75.0, -74.0, -72.0, -70.0, -77.0])
    )


def informed(saved):
    """The model with random weights everywhere, so that no part of it is silent."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in saved.classifier.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return saved


def built(panel, config):
    split = split_panel(panel, config)
    return informed(SavedModel.build(panel, split, fit_scaler(panel, split.training_rows), config)), split


def test_sites_are_together_where_positions_are_known(spread, make_config, make_panel):
    config = make_config()
    saved, _ = built(spread, config)
    assert [site.name for site in saved.sites] == [f"s{i}" for i in range(SITES)] and saved.classifier.sees_sites
    for panel, asked in (
        (spread, make_config(model={"sites": "alone"})),
        (spread, make_config(model={"head": "mean"})),
        (spread.isel(site=[0, 1]), config),
        (make_panel(sites=SITES), config),
    ):
        assert built(panel, asked)[0].sites is None
    assert built(spread.isel(site=[0, 1]), make_config(model={"sites": "together"}))[0].site_vectors == 2
    with pytest.raises(DataError, match=r'sites = "together" needs the position of each site'):
        built(make_panel(sites=SITES), make_config(model={"sites": "together"}))
    with pytest.raises(ConfigError, match='sites = "together" needs head = "variables"'):
        make_config(model={"sites": "together", "head": "mean"})


def test_a_part_is_completed_by_all_that_was_observed(spread, make_config):
    saved, split = built(spread, make_config())
    network, part = saved.windows(spread).network, split.training
    whole = network.complete(part)
    assert set(whole.end) == set(part.end)
    known = whole[whole.y != UNKNOWN]
    assert all(np.array_equal(getattr(known, name), getattr(part, name)) for name in ("site", "end", "y"))
    added = whole[whole.y == UNKNOWN]
    assert len(added) and set(added.site) == {2} and 30 <= added.end.min() <= added.end.max() < 40
    assert not len(whole.find(4, 18)) and len(whole.find(4, 19))  # without a whole context a site is absent
    assert network.complete(whole[::-1][::-1]).site.tolist() == whole.site.tolist()


@given(sites=st.integers(1, 60), most=st.integers(2, 20), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_large_scenes_answer_each_window_once_and_see_the_nearest_sites(sites, most, seed):
    random = np.random.default_rng(seed)
    position_S2 = np.stack([random.uniform(-60, 60, sites), random.uniform(-180, 180, sites)], axis=-1).astype(
        np.float32
    )
    present_ST = random.random((sites, 3)) < 0.8
    network = Network(position_S2, np.arange(sites) + 1, present_ST, most)
    site, end = np.nonzero(present_ST)
    part = Part("test", site, end, np.zeros(len(site), np.int64))
    answered = np.zeros(len(part), np.int64)
    for scene in network.scenes(part):
        assert len(scene.rows) <= most and len({*part.end[scene.rows].tolist()}) == 1
        assert len({*scene.rows.tolist()}) == len(scene.rows)
        np.add.at(answered, scene.rows[scene.answered], 1)
    assert (answered == 1).all()


@given(most=st.integers(1, 8), seed=st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_the_order_of_an_epoch_has_each_issue_time_once(most, seed):
    random = np.random.default_rng(seed)
    site, end = np.nonzero(random.random((6, 10)) < 0.7)
    y = np.where(random.random(len(site)) < 0.6, 1, UNKNOWN)
    part = Part("training", site, end, y)
    order = epoch_order(part, seed, 1, most)
    units = [order.windows[a:b] for a, b in zip(order.bounds[:-1], order.bounds[1:], strict=True)]
    assert sorted(int(part.end[unit[0]]) for unit in units) == sorted(set(end.tolist()))
    for unit in units:
        size = int((end == part.end[unit[0]]).sum())
        assert len(set(part.end[unit])) == 1 and len(set(unit.tolist())) == len(unit) == min(size, most)
        assert (y[unit] != UNKNOWN).any() == (y[end == part.end[unit[0]]] != UNKNOWN).any()
    assert not np.array_equal(order.windows, epoch_order(part, seed, 2, most).windows)


def test_nothing_after_the_issue_time_changes_a_forecast(spread, make_config):
    """Of any site; and what is before it does."""
    saved, split = built(spread, make_config())
    issue = int(split.test.end[3])
    part = split.test[split.test.end == issue]
    before = predict_logits(saved.classifier, saved.windows(spread), part)
    for moved, same in ((issue + 1, True), (issue, False)):
        changed = spread.copy(deep=True)
        for name in ("a", "b", "c"):
            changed[name].values[:, moved:] = 5.0
        after = predict_logits(saved.classifier, saved.windows(changed), part)
        assert np.array_equal(before, after) == same


def test_an_absent_site_has_no_influence_by_one_bit(spread, make_config):
    """A site without a row at the issue time is not seen, whatever its earlier values are."""
    saved, split = built(spread, make_config())
    issue = 22  # inside the gap of s3
    part = split.training[split.training.end == issue]
    assert 3 not in part.site
    recorded = np.ones((SITES, spread.sizes["time"]), bool)
    recorded[3, 20:26] = False
    panel = spread.assign_coords(recorded=(("site", "time"), recorded))
    before = predict_logits(saved.classifier, saved.windows(panel), part)
    changed = panel.copy(deep=True)
    changed["a"].values[3, 10:20] = -7.0
    assert np.array_equal(before, predict_logits(saved.classifier, saved.windows(changed), part))
    seen = changed.assign_coords(recorded=(("site", "time"), np.ones_like(recorded)))
    assert not np.array_equal(before, predict_logits(saved.classifier, saved.windows(seen), part))


def test_a_forecast_of_some_sites_sees_all(spread, make_config):
    saved, split = built(spread, make_config())
    windows, part = saved.windows(spread), split.test
    whole = predict_logits(saved.classifier, windows, part)
    some = part.site == 1
    np.testing.assert_allclose(predict_logits(saved.classifier, windows, part[some]), whole[some], rtol=1e-5, atol=1e-6)
    shuffled = np.random.default_rng(0).permutation(np.flatnonzero(part.site == 1))
    found = predict_logits(saved.classifier, windows, part[np.sort(shuffled)])
    np.testing.assert_allclose(found, whole[np.sort(shuffled)], rtol=1e-5, atol=1e-6)


def test_a_limit_below_the_network_changes_who_is_seen(spread, make_config):
    saved, split = built(spread, make_config())
    small, _ = built(spread, make_config(model={"sites_per_scene": 3}))
    windows = saved.windows(spread)
    narrow = replace(windows, network=replace(windows.network, most_sites=3))
    wide_nK, narrow_nK = (predict_logits(saved.classifier, each, split.test) for each in (windows, narrow))
    assert wide_nK.shape == narrow_nK.shape and not np.allclose(wide_nK, narrow_nK)
    assert np.array_equal(narrow_nK, predict_logits(small.classifier, small.windows(spread), split.test))


def test_new_sites_are_forecast_without_a_vector_and_said(spread, make_config, caplog):
    saved, split = built(spread.isel(site=[0, 1, 2]), make_config())
    windows = saved.windows(spread)
    assert windows.network.vector_S.tolist() == [1, 2, 3, 0, 0]
    assert "2 site(s) were not in the training and are forecast without a vector of their own: s3, s4" in caplog.text
    assert np.isfinite(predict_logits(saved.classifier, windows, split.test)).all()
    with pytest.raises(DataError, match=r"s3, s4: .* needs the position of each site that it was not trained on"):
        saved.windows(spread.drop_vars(["latitude", "longitude"]))
    known = saved.windows(spread.isel(site=[2, 0]).drop_vars(["latitude", "longitude"])).network
    assert known.position_S2.tolist() == [[-14.0, -72.0], [-10.0, -75.0]] and known.vector_S.tolist() == [3, 1]


def test_the_future_is_the_mean_over_the_horizon(spread, make_config):
    """Of what was observed, in training-set units; unknown where nothing was, or where the panel ends."""
    saved, _ = built(spread, make_config())
    windows = saved.windows(spread, horizon_steps=3)
    last = spread.sizes["time"] - 1
    part = Part("training", np.array([0, 3, 0, 0]), np.array([17, 19, last - 3, last - 2]), np.zeros(4, np.int64))
    values, known = windows.future(part)
    scaled = saved.scaler.scale(np.stack([spread[name].values for name in ("a", "b", "c")], axis=-1))
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning):
        expected = np.stack(
            [np.nanmean(scaled[s, e + 1 : e + 4], axis=0) for s, e in ((0, 17), (3, 19), (0, last - 3))]
        )
    np.testing.assert_allclose(values[:3][known[:3]], expected[known[:3]], rtol=1e-5)
    assert np.array_equal(known[:3], ~np.isnan(expected)) and not known[1].any() and known[2].all()
    assert not known[3].any() and not values[3].any()


def test_pieces_of_a_batch_are_whole_scenes(spread, make_config):
    saved, split = built(spread, make_config())
    windows = saved.windows(spread)
    part = windows.network.complete(split.training)
    part = part[np.lexsort((part.site, part.end))]
    batch = as_batch(windows, part, torch.device("cpu"), with_future=True)
    pieces = list(batch.pieces(7))
    assert sum(map(len, pieces)) == len(batch)
    scenes = [set(piece.scenes.scene_B.tolist()) for piece in pieces]
    assert all(len(each) == 7 for each in scenes[:-1]) and 1 <= len(scenes[-1]) <= 7
    assert len(set().union(*scenes)) == sum(map(len, scenes))
    again = type(batch).of(batch.tensors())
    assert all(torch.equal(each, again.tensors()[name]) for name, each in batch.tensors().items())


def test_forecasts_are_issued_at_the_configured_hours_alone(make_panel, make_config):
    panel = make_panel(times=240)
    hourly = np.datetime64("2020-01-01", "ns") + np.arange(240) * np.timedelta64(6, "h")
    panel = panel.assign_coords(time=hourly).assign_attrs(step_hours=6.0)
    config = make_config(windows={"issue_hours": [0, 12]}, split={"validation_fraction": 0.3, "test_fraction": 0.3})
    for part in split_panel(panel, config).parts:
        assert {
            int(each) for each in (hourly[part.end] - hourly[part.end].astype("datetime64[D]")) / np.timedelta64(1, "h")
        } == {0, 12}
    every = complete_windows(panel, 8, True, (6,))
    assert len(every) and (hourly[every.end].astype("datetime64[h]").astype(int) % 24 == 6).all()
    with pytest.raises(DataError, match=r"issue_hours = \[3\]: no time .* its times are at 00:00, 06:00, 12:00, 18:00"):
        split_panel(panel, make_config(windows={"issue_hours": [3]}))
