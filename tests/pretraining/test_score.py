"""Scores and recalibration of an encoder on made-up forecasts, by visible arithmetic."""

import json

import numpy as np
import pytest

from llueve.errors import CheckpointError, DataError
from llueve.model.checkpoints.climate_zone import ClimateZone, zone_of
from llueve.model.checkpoints.model_card import ModelCard, read_card
from llueve.pretraining.corpus import EPOCH, Corpus, Stretch
from llueve.pretraining.provenance import Provenance, read_provenance
from llueve.pretraining.score import RainForecasts, far_from_training, group_scores, skill_of, zone_card
from llueve.pretraining.site_references import SiteRecord
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES, RAIN

RAINING = ENCODER_QUANTITIES.index(RAIN)
WARM = ENCODER_QUANTITIES.index("air_temperature")


def test_the_skill_of_four_forecasts():
    p, happened, climatology = np.array([0.8, 0.4, 0.2, 0.0]), np.array([1, 1, 0, 0]), np.full(4, 0.5)
    found = skill_of(1.0, p, happened, climatology, np.array([0, 0, 7, 7]))
    assert found.brier == pytest.approx((0.04 + 0.36 + 0.04 + 0.0) / 4)
    assert found.skill == pytest.approx(1 - 0.11 / 0.25)
    assert (found.auc, found.windows, found.events, found.sites_judged) == (1.0, 4, 2, 0)


def test_sites_are_judged_with_twenty_events_and_twenty_others():
    """Three sites of 40, 40 and 39 windows: the first is better than climatology, the second worse, the third too small."""
    site = np.repeat([0, 1, 2], [40, 40, 39])
    happened = np.concatenate([np.repeat([1, 0], [20, 20]), np.repeat([1, 0], [20, 20]), np.repeat([1, 0], [20, 19])])
    p = np.where(site == 1, 1 - happened, happened).astype(float)
    found = skill_of(5.0, p, happened, np.full(119, 0.5), site)
    assert (found.sites_judged, found.sites_better) == (2, 1)


def test_no_window_has_no_score():
    none = np.empty(0)
    found = skill_of(1.0, none, none.astype(int), none, none.astype(int))
    assert (found.windows, found.brier, found.skill, found.auc) == (0, None, None, None)


def rain_of(logits, reached, group="north", zone="temperate", climatology=0.25):
    count = len(reached)
    return RainForecasts(
        np.zeros(count, np.int64),
        np.full(count, group),
        np.full(count, zone),
        np.full(count, group == "south"),
        np.repeat(np.asarray(logits, np.float32)[:, None], 4, axis=1),
        np.repeat(np.asarray(reached, bool)[:, None], 4, axis=1),
        np.full((count, 4), climatology),
        np.ones((count, 4), bool),
    )


def test_groups_and_all_together():
    both = [rain_of([2.0, -2.0], [1, 0]), rain_of([3.0, 3.0], [0, 0], group="south")]
    joined = RainForecasts(*(np.concatenate([vars(each)[name] for each in both]) for name in vars(both[0])))
    found = group_scores(joined)
    assert [(each.group, each.amounts[0].windows, each.amounts[0].events) for each in found] == [
        ("all", 4, 1),
        ("far from training", 2, 0),
        ("north", 2, 1),
        ("south", 2, 0),
    ]
    assert found[1].sites == 1 and found[1].amounts == found[3].amounts
    assert found[3].amounts[0].skill == pytest.approx(1 - (1 / (1 + np.exp(-3))) ** 2 / 0.25**2)


def test_the_recalibration_of_forecasts_that_are_too_sure():
    """Log-odds of ±3 that come true in 75 of 100 cases: the probability must be near 0.75 and 0.25, so the slope ln 3 / 3."""
    logits, reached = np.repeat([3.0, -3.0], 400), np.tile([1, 1, 1, 0], 200)
    reached[400:] = 1 - reached[400:]
    trained = rain_of(logits, reached)
    card = zone_card(ClimateZone.TEMPERATE, trained, rain_of(logits, reached, climatology=0.5))
    assert [each.mm for each in card.amounts] == [0.2, 1.0, 5.0, 10.0]
    (first, *_) = card.amounts
    assert first.slope == pytest.approx(np.log(3) / 3, rel=0.02) and first.shift == pytest.approx(0, abs=0.01)
    assert first.recalibrated.brier == pytest.approx(0.25 * 0.75, rel=0.01)
    assert first.held_out.skill < first.recalibrated.skill == pytest.approx(1 - 0.1875 / 0.25, abs=0.01)
    assert (card.sites, card.held_out) == (1, 1)


def test_a_zone_without_enough_events_has_no_map():
    logits, reached = np.zeros(100), np.repeat([1, 0], [19, 81])
    none = rain_of([], [])
    assert zone_card(ClimateZone.POLAR, rain_of(logits, reached), none).amounts == []
    empty = zone_card(ClimateZone.UNKNOWN, none, none)
    assert (empty.sites, empty.amounts) == (0, [])


@pytest.mark.parametrize(
    ("latitude", "zone"),
    [
        (0, "tropical"),
        (-23.4, "tropical"),
        (23.5, "subtropical"),
        (-35, "temperate"),
        (54.9, "temperate"),
        (-66.5, "polar"),
        (90, "polar"),
        (float("nan"), "unknown"),
    ],
)
def test_the_zone_of_a_latitude(latitude, zone):
    assert zone_of(latitude) == zone


def test_a_site_is_far_from_all_training_sites_or_not():
    """Held out: 11 km and 111 km from a training site on the equator, and without a position."""
    places = [(0.0, 0.0, False), (0.0, 0.1, True), (0.0, 1.0, True), (np.nan, np.nan, True), (np.nan, np.nan, False)]
    stretches = [Stretch(str(at), "some", *place[:2], 0, place[2]) for at, place in enumerate(places)]
    values = np.zeros((5, len(ENCODER_QUANTITIES)), np.float16)
    corpus = Corpus(stretches, np.arange(6), values, {})
    assert far_from_training(corpus, 50.0).tolist() == [False, False, True, False, False]
    assert far_from_training(corpus, 10.0).tolist() == [False, True, True, False, False]


# References


def record(days, wet_days, first="2020-01-01"):
    """A site with 1.2 mm on some days, and a temperature that is its hour."""
    values = np.full((24 * days, len(ENCODER_QUANTITIES)), np.nan, np.float16)
    values[:, RAINING] = 0
    values[:, WARM] = np.arange(24 * days) % 24
    for day in wet_days:
        values[24 * day : 24 * day + 24, RAINING] = np.log1p(0.05)
    start = int((np.datetime64(first, "h") - EPOCH).astype(int))
    stretch = Stretch("a", "some", 50.0, 0.0, start, True)
    return start, SiteRecord.of(Corpus([stretch], np.array([0, 24 * days]), values, {}), 0)


def issued(start, day):
    """The last hour before a day."""
    return np.array([start + 24 * day - 1])


def test_the_climatology_is_that_of_the_same_season_in_other_years():
    """Two years; the second year rains each day from 20 January on, so 31 days of it are near 1 February: days 16 to 46."""
    start, site = record(730, range(365 + 19, 365 + 100), first="2021-01-01")
    of_first_year = site.rain_frequency(issued(start, 31))
    assert of_first_year[0, 1] == pytest.approx(28 / 31)
    assert site.rain_frequency(issued(start, 365 + 31))[0, 1] == 0


def test_a_short_record_is_its_own_climatology():
    """100 days: 99 are forecast at 23 UTC the day before, the first of the 25 wet ones is not."""
    start, site = record(100, range(25))
    assert site.rain_frequency(issued(start, 50))[0].tolist() == pytest.approx([24 / 99, 24 / 99, 0, 0])
    start, site = record(15, range(5))
    assert np.isnan(site.rain_frequency(issued(start, 5))).all()


def test_the_usual_values_are_those_of_month_and_hour():
    start, site = record(60, ())
    usual = site.usual_values(issued(start, 30) - 5)  # issued at 18 UTC: the next hours are 19 … 23, 0 … 18
    assert usual[0, WARM].tolist() == [*range(19, 24), *range(19)]
    assert np.isnan(usual[0, RAINING + 1]).all()
    assert np.isnan(site.usual_values(issued(start, 200))[0, WARM]).all()  # no July in the record


def test_stretches_of_a_site_are_one_record():
    values = np.zeros((48, len(ENCODER_QUANTITIES)), np.float16)
    values[24:] = 1
    stretches = [Stretch("a", "some", 0.0, 0.0, first, True) for first in (30, 24 * 20)]
    site = SiteRecord.of(Corpus(stretches, np.array([0, 24, 48]), values, {}), 0)
    assert (site.first_day, site.days) == (1, 20)
    hours = site.values_HQ[:, 0]
    assert np.isnan(hours[:6]).all() and (hours[6:30] == 0).all() and (hours[-24:] == 1).all()
    assert np.isnan(hours[30:-24]).all()


# Files


def test_source_and_licence_of_each_group(tmp_path):
    assert read_provenance(tmp_path) == {}
    text = "# x\n- source: none\n## one\n- source: A, B\n- licence: CC0\n- quirks: - source: no\n## two\n- license: MIT\n### a\n"
    (tmp_path / "PROVENANCE.md").write_text(text)
    assert read_provenance(tmp_path) == {"one": Provenance("A, B", "CC0"), "two": Provenance(None, "MIT")}
    (tmp_path / "PROVENANCE.md").write_bytes(b"x" * (2**22 + 1))
    with pytest.raises(DataError, match="expected at most"):
        read_provenance(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', "[" * 10_000, '{"a": 1e999}', "\x00", '{"sha256": NaN}'])
def test_a_damaged_card_is_refused(tmp_path, text):
    (tmp_path / "model_card.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model_card.json: (is damaged|has missing)"):
        read_card(tmp_path / "model_card.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_card(tmp_path / "absent.json")


def test_a_card_is_read_back():
    schema = ModelCard.model_json_schema()
    assert set(json.loads(json.dumps(schema))["required"]) >= {"sha256", "scores", "zones", "corpus"}
