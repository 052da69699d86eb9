"""The corpus and its windows: labels by visible arithmetic, places that never mix, and what training hides."""

import numpy as np
import pandas as pd
import pytest

from llueve.errors import DataError
from llueve.panel import UNKNOWN
from llueve.pretraining.corpus import EPOCH, read_corpus
from llueve.pretraining.corpus_windows import CorpusWindows, drawn_windows, part_with_outcomes
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES, RAIN
from llueve.samples.split import Part

HOURS = 24 * 40
RAINING, WARM = ENCODER_QUANTITIES.index(RAIN), ENCODER_QUANTITIES.index("air_temperature")
START = np.datetime64("2024-01-01T00", "h")


def table(sites, **columns):
    rows = []
    for number, site in enumerate(sites):
        hours = pd.DataFrame({"time": pd.date_range("2024-01-01", periods=HOURS, freq="h").astype("datetime64[ms]")})
        hours["site"], hours["latitude"], hours["longitude"] = site, 10.0 * (number % 9), 20.0 * (number % 9)
        generator = np.random.default_rng(number)
        hours["temperature_c"] = 100.0 * number + generator.normal(size=HOURS)
        hours["precipitation_mm"] = 0.0
        for name, values in columns.items():
            hours[name] = values
        rows.append(hours)
    return pd.concat(rows, ignore_index=True)


def corpus_of(tmp_path, frame):
    frame.to_parquet(tmp_path / "hourly_some.parquet")
    return read_corpus([tmp_path / "hourly_some.parquet"], 0.05)


def window(corpus, site, hour, name="validation"):
    end = corpus.stretches[site].first + hour
    return Part(name, np.array([site]), np.array([end]), np.array([UNKNOWN]))


def test_rain_is_counted_after_each_day(tmp_path):
    rain = np.zeros(HOURS)
    rain[48:72] = 0.05  # 1.2 mm on the third day
    rain[96] = 12.0  # on the fifth
    corpus = corpus_of(tmp_path, table(["a"], precipitation_mm=rain))
    windows = CorpusWindows(corpus, 0, days=3)
    _, _, rain_BNR, known_BNR = windows.next_days(window(corpus, 0, 95))  # days two to four, each with the next one
    assert known_BNR.all()
    assert rain_BNR[0].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    assert part_with_outcomes(windows, window(corpus, 0, 95)).y.tolist() == [1]
    assert part_with_outcomes(windows, window(corpus, 0, 71)).y.tolist() == [0]


def test_a_day_with_gaps_counts_only_if_its_answer_is_certain(tmp_path):
    rain = np.zeros(HOURS)
    rain[72:80] = np.nan
    rain[90] = 3.0
    corpus = corpus_of(tmp_path, table(["a"], precipitation_mm=rain))
    _, _, rain_BNR, known_BNR = CorpusWindows(corpus, 0, days=1).next_days(window(corpus, 0, 71))
    assert known_BNR[0, 0].tolist() == [True, True, False, False]
    assert rain_BNR[0, 0, :2].tolist() == [1, 1]


def test_places_never_mix(tmp_path):
    corpus = corpus_of(tmp_path, table(["a", "b"]))
    windows = CorpusWindows(corpus, 0, days=7)
    early = window(corpus, 1, 30)
    values, observed, _ = windows.batch(early)
    assert not observed[0, :, : 7 * 24 - 31].any() and observed[0, WARM, 7 * 24 - 31 :].all()
    late = window(corpus, 0, HOURS - 1)
    _, known, _, rain_known = windows.next_days(late)
    assert not known[0, :, -1].any() and not rain_known[0, -1].any()
    assert np.abs(values[0, WARM]).max() < 6  # by its own mean and spread


def test_only_training_windows_hide_something(tmp_path):
    corpus = corpus_of(tmp_path, table([f"site {number}" for number in range(40)], relative_humidity_pct=50.0))
    windows = CorpusWindows(corpus, 0, days=7)
    training = drawn_windows(corpus, windows, 300, 0, held_out=False)
    held_out = drawn_windows(corpus, windows, 20, 0, held_out=True)
    assert not {*training.site} & {*held_out.site} and len({*held_out.site}) == 2
    plain = windows.batch(Part("validation", training.site, training.end, training.y))[1]
    hidden = windows.batch(training)[1]
    assert (hidden <= plain).all() and hidden.sum() < plain.sum()
    assert (hidden == windows.batch(training)[1]).all()
    assert hidden.any(axis=(1, 2)).all()
    assert (EPOCH + training.end >= START).all() and (held_out.y == 0).all()


def test_a_longer_step_keeps_sums_of_rain_and_means_of_the_rest(tmp_path):
    rain = np.tile([1.0, 0.0, 2.0, 0.0, 0.0, 0.0], HOURS // 6)
    corpus = corpus_of(tmp_path, table(["a"], precipitation_mm=rain))
    windows = CorpusWindows(corpus, 0, days=1)
    ends = corpus.stretches[0].first + np.arange(24, HOURS - 24)
    part = Part("training", np.zeros(len(ends), int), ends, np.zeros(len(ends), int))
    values, observed, _ = windows.batch(part)
    seen = observed[:, RAINING].sum(axis=1)
    six = np.flatnonzero((seen > 0) & (seen <= 4))
    assert len(six) > 50
    amounts = np.expm1(values[six, RAINING][observed[six, RAINING]])
    assert amounts == pytest.approx(3.0, abs=0.02) or set(np.round(amounts)) <= {1.0, 2.0, 3.0}


@pytest.mark.parametrize("name", ["site", "time", "latitude"])
def test_a_file_without_a_column_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=name):
        corpus_of(tmp_path, table(["a"]).drop(columns=name))


def test_months_of_different_years_are_stretches_that_never_mix(tmp_path):
    """A typical year: each month keeps its true year, and the standardisation is that of all of them together."""
    frame = table(["a"])
    later = frame["time"] >= "2024-01-25"
    frame.loc[later, "time"] = frame.loc[later, "time"] - pd.Timedelta(days=366 * 20)
    frame["temperature_c"] = np.where(later, 10.0, 20.0)
    corpus = corpus_of(tmp_path, frame.sample(frac=1, random_state=0))
    assert [(str(EPOCH + each.first), hours) for each, hours in zip(corpus.stretches, corpus.hours_S, strict=True)] == [
        ("2004-01-10T00", 16 * 24),
        ("2024-01-01T00", 24 * 24),
    ]
    assert corpus.site_S.tolist() == [0, 0]
    mean, spread = 16.0, (0.4 * 0.6) ** 0.5 * 10  # 40 % are 10 °C and 60 % are 20 °C
    for stretch, warm in ((0, 10.0), (1, 20.0)):
        values, observed, _ = CorpusWindows(corpus, 0).batch(window(corpus, stretch, 30))
        assert observed[0, WARM].sum() == 31
        assert values[0, WARM, -1] == pytest.approx((warm - mean) / spread, abs=2e-3)


@pytest.mark.parametrize("hours", [3, 24])
def test_a_file_with_a_longer_step_is_left_out(tmp_path, hours, caplog):
    caplog.set_level("INFO")
    frame = table(["a"])
    frame.iloc[::hours].to_parquet(tmp_path / "hourly_by_name.parquet")
    frame.to_parquet(tmp_path / "other.parquet")
    corpus = read_corpus([tmp_path / "hourly_by_name.parquet", tmp_path / "other.parquet"], 0.05)
    assert [each.group for each in corpus.stretches] == ["other"]
    assert corpus.left_out == {"hourly_by_name.parquet": f"its step is {hours} h, expected 1 h"}
    assert "hourly_by_name.parquet: left out" in caplog.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"latitude": 91.0}, "is at 91, 0; expected latitude and longitude in degrees"),
        ({"time": pd.NaT}, "960 rows have no time"),
        ({"site": None}, "960 rows have no site"),
        ({"temperature_c": "warm"}, "a column of values does not hold numbers"),
        ({"time": 1_700_000_000}, "the column time holds int64; expected times in UTC"),
        ({"site": b"\xff\xfe"}, "the column site does not hold names"),
        ({"time": "noon"}, r"the column time holds \w*string; expected times in UTC"),
        ({"time": pd.Timestamp("1900-01-01")}, "has a row at 1900-01-01T00; expected times from 1950 to 2099"),
    ],
)
def test_impossible_values_are_named(tmp_path, change, said):
    with pytest.raises(DataError, match=said):
        corpus_of(tmp_path, table(["a"]).assign(**change))


def test_files_that_are_no_tables_are_named(tmp_path):
    (tmp_path / "hourly_some.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"hourly_some.parquet: cannot be read as a Parquet file"):
        read_corpus([tmp_path / "hourly_some.parquet"], 0.05)
    with pytest.raises(DataError, match="no site with at least 720 hours"):
        corpus_of(tmp_path, table(["a"]).iloc[:100])
    with pytest.raises(DataError, match="no site with at least 720 hours"):
        corpus_of(tmp_path, table(["a"]).iloc[:0])


def test_a_group_without_held_out_sites_or_windows_is_told(tmp_path):
    corpus = corpus_of(tmp_path, table(["a"], precipitation_mm=np.nan))
    with pytest.raises(DataError, match="no site of the corpus is held out"):
        drawn_windows(corpus, CorpusWindows(corpus, 0), 10, 0, held_out=True)
    dry = read_corpus([tmp_path / "hourly_some.parquet"], 0.9)
    with pytest.raises(DataError, match=r"none of .* drawn validation windows has enough observations and rain"):
        drawn_windows(dry, CorpusWindows(dry, 0), 10, 0, held_out=True)


def test_a_group_may_end_early(tmp_path):
    table(["a", "b"]).to_parquet(tmp_path / "hourly_some.parquet")
    end = np.datetime64("2024-02-05T00", "h")
    corpus = read_corpus([tmp_path / "hourly_some.parquet"], 0.0, {"hourly_some": end.astype(object)})
    assert (EPOCH + corpus.first_S + corpus.hours_S == end).all() and len(corpus.stretches) == 2
    with pytest.raises(DataError, match=r"corpus\.until names 'other', but there is no such file"):
        read_corpus([tmp_path / "hourly_some.parquet"], 0.0, {"other": end.astype(object)})
