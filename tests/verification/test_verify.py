"""The verdict: right when the answer is known, honest when it is not, and refused when a number is not a number."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from llueve.errors import DataError, GuardStop, UsageError
from llueve.samples.periods import few_events
from llueve.samples.split import Part
from llueve.verification.class_scores import class_summary
from llueve.verification.curves import economic_value
from llueve.verification.learned_references import learned
from llueve.verification.reference_data import ReferenceData
from llueve.verification.references import all_references
from llueve.verification.score_table import render
from llueve.verification.verify import verify

SITES = ["Albury", "Cobar"]


def rows(name: str, start: int, stop: int, event_ST: np.ndarray) -> Part:
    """All rows of all sites whose issue time is in start … stop."""
    site, end = np.divmod(np.arange(len(event_ST) * (stop - start)), stop - start)
    return Part(name, site, end + start, np.asarray(event_ST[site, end + start], dtype=np.int64))


def noisy_data(seed: int = 0, steps: int = 400) -> ReferenceData:
    """Two sites, daily from 2015-01-01, an event that the first variable half decides; test is 300 … 400."""
    random = np.random.default_rng(seed)
    cube_STC = random.normal(size=(2, steps, 2)).astype(np.float32)
    days = np.arange(steps) + 85 * (np.arange(steps) >= 200)  # the test is in the season of the training
    event_ST = (cube_STC[:, :, 0] + random.normal(size=(2, steps)) > 0.5).astype(np.float32)
    return ReferenceData(
        cube_STC=cube_STC,
        derived_C=np.zeros(2, bool),
        statics_SF=np.empty((2, 0), dtype=np.float32),
        times=np.datetime64("2015-01-01", "ns") + days.astype("timedelta64[D]"),
        step_hours=24,
        horizon_hours=24,
        context=8,
        event_ST=event_ST,
        training=rows("training", 0, 200, event_ST),
        validation=rows("validation", 200, 300, event_ST),
        lags=(1,),
        seed=0,
    )


@pytest.fixture(scope="module")
def data() -> ReferenceData:
    return noisy_data()


@pytest.fixture(scope="module")
def test_part(data: ReferenceData) -> Part:
    return rows("test", 300, 400, data.event_ST)


FITTED: dict[tuple[int, int, int], tuple[ReferenceData, dict[str, np.ndarray]]] = {}


@pytest.fixture(autouse=True)
def _fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The references of the same data and rows are fitted once: most tests are about what is done with them."""

    def fitted(data: ReferenceData, part: Part) -> dict[str, np.ndarray]:
        key = (id(data.event_ST), id(data.times), len(part))
        if key not in FITTED:
            FITTED[key] = (data, all_references(data, part))  # the data are kept, so that their ids stay theirs
        return FITTED[key][1]

    monkeypatch.setattr("llueve.verification.verify.all_references", fitted)


def run(data: ReferenceData, part: Part, p: np.ndarray, **changes: int) -> dict:
    return verify(data, part, p, SITES, **({"bootstrap": 200, "block_days": 7, "event_index": 1} | changes)).content


def test_a_perfect_model_beats(data, test_part) -> None:
    found = run(data, test_part, test_part.y.astype(float))
    best = found["comparison"]["best_reference"]
    assert found["verdict_code"] == "beats"
    assert found["comparison"]["brier_difference"] == pytest.approx(found["references"][best]["brier"])
    assert found["comparison"]["skill_over_best"] == 1 and found["comparison"]["skill_interval"] == [1, 1]
    assert found["verdict"].startswith(
        f"The model beats {'logistic regression' if best == 'logistic' else best}, the best of the five references: Brier 0.0000"
    )
    assert found["verdict"].endswith("BSS over climatology 1.000 on 200 forecasts.")


def test_a_model_worse_than_the_best_reference_does_not_beat(data, test_part) -> None:
    found = run(data, test_part, 0.3 * learned(data, test_part)["logistic"] + 0.7 * test_part.y.mean())
    assert found["verdict_code"] == "does_not_beat"
    assert found["comparison"]["interval"][1] < 0 < found["model"]["bss"]
    assert "The model does not beat logistic regression, the best" in found["verdict"]
    low, high = found["comparison"]["skill_interval"]
    skill = f"{found['comparison']['skill_over_best']:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
    assert f"; skill relative to logistic regression {skill}; BSS over climatology" in found["verdict"]


def test_a_model_that_is_the_best_reference_ties(data, test_part) -> None:
    p = learned(data, test_part)["logistic"]
    found = run(data, test_part, p)
    assert found["comparison"]["best_reference"] == "logistic"
    assert found["comparison"]["interval"] == [0, 0] and found["comparison"]["skill_interval"] == [0, 0]
    assert found["verdict_code"] == "ties" and "The model ties with logistic" in found["verdict"]


def test_a_model_with_a_little_noise_ties(data, test_part) -> None:
    p = learned(data, test_part)["logistic"]
    noisy = np.clip(p + np.random.default_rng(1).normal(scale=0.03, size=len(p)), 0, 1)
    found = run(data, test_part, noisy)
    low, high = found["comparison"]["interval"]
    assert low < 0 < high and found["verdict_code"] == "ties"


def test_a_short_part_is_too_short_to_tell(data) -> None:
    part = rows("test", 300, 328, data.event_ST)
    found = run(data, part, part.y.astype(float))
    assert found["comparison"]["blocks"] == 4
    assert found["comparison"]["interval"] is None and found["comparison"]["skill_interval"] is None
    assert found["verdict_code"] == "too_short"
    assert "too short to tell" in found["verdict"] and "4 blocks of 7 days where 5 are needed" in found["verdict"]


def test_the_content_is_json_with_the_promised_keys(data, test_part) -> None:
    found = run(data, test_part, np.linspace(0.2, 0.6, len(test_part)))
    keys = ["part", "n", "base_rate", "mean_forecast", "threshold", "model", "references", "constant", "collapsed"]
    keys += ["intervals", "comparison", "comparisons", "curves", "groups", "cautions", "verdict", "verdict_code"]
    assert list(found) == [*keys, "classes", "settings"]
    assert list(found["references"]) == ["climatology", "persistence", "markov", "logistic", "gradient_boosting"]
    assert found["references"]["climatology"]["bss"] == 0
    assert found["base_rate"] == pytest.approx(test_part.y.sum() / 200) and found["n"] == 200
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_beside_a_perfect_climatology_the_brier_difference_is_given(data) -> None:
    event_ST = np.zeros_like(data.event_ST)
    event_ST[0] = 1  # always at one site, never at the other
    certain = replace(data, event_ST=event_ST, training=rows("training", 0, 200, event_ST))
    certain = replace(certain, validation=rows("validation", 200, 300, event_ST))
    part = rows("test", 300, 400, event_ST)
    found = run(certain, part, np.where(part.site == 0, 0.9, 0.1))
    assert found["model"]["bss"] is None and found["verdict_code"] == "does_not_beat"
    assert found["comparison"]["skill_interval"] is None
    assert "BSS over climatology undefined, since it is perfect, on 200 forecasts" in found["verdict"]
    # 0 - 0.1² in every block: without a skill, the sentence gives the Brier difference itself.
    difference = "Brier score of climatology minus that of the model -0.0100 (95 % interval -0.0100 to -0.0100)"
    assert difference in found["verdict"]
    assert "–" in text_of(found)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_probability_that_is_not_finite_stops_everything(data, test_part, value: float) -> None:
    p = np.full(200, 0.4)
    p[[103, 150]] = value
    with pytest.raises(
        GuardStop, match=r"2 non-finite .* 200 rows of test, the first .* site Cobar, issue time 2016-01-24 00:00"
    ):
        run(data, test_part, p)


def test_wrong_lengths_ranges_and_outcomes_are_refused(data, test_part) -> None:
    with pytest.raises(UsageError, match="one probability each"):
        run(data, test_part, np.full(199, 0.4))
    with pytest.raises(DataError, match=r"in \[0, 1\]"):
        run(data, test_part, np.full(200, 1.4))
    with pytest.raises(DataError, match="not that of the references, the first at site Albury"):
        run(data, test_part, np.full(200, 0.4), event_index=0)
    with pytest.raises(DataError, match="no forecast to score"):
        run(data, rows("test", 300, 300, data.event_ST), np.empty(0))


def text_of(found: dict) -> str:
    """The table as a terminal shows it, with its bold marks."""
    console = Console(width=120, force_terminal=True, color_system="standard", record=True)
    with console.capture() as capture:
        console.print(render(found))
    return capture.get()


def test_the_table_has_all_rows_and_the_best_in_bold(data, test_part) -> None:
    found = run(data, test_part, test_part.y.astype(float))
    text = text_of(found)
    for word in (
        "model",
        "climatology",
        "persistence",
        "logistic",
        "gradient boosting",
        "BSS",
        "log score",
        "200 forecasts",
    ):
        assert word in text
    assert "\x1b[1m0.0000\x1b[0m" in text
    assert f"\x1b[1m{found['references']['persistence']['brier']:.4f}" not in text


def cautions(found: dict) -> list[str]:
    return [each["code"] for each in found["cautions"]]


def test_a_test_without_enough_events_has_no_verdict_and_no_skill(data) -> None:
    event_ST = data.event_ST.copy()
    event_ST[:, 300:] = 0
    event_ST[:, 310:314] = 1  # 8 rows
    part = rows("test", 300, 400, event_ST)
    found = run(replace(data, event_ST=event_ST), part, np.where(part.end % 2, 0.03, 0.05))
    assert found["verdict_code"] == "too_few_events" and "8 events on 4 day(s) among 200 rows" in found["verdict"]
    assert "BSS" not in found["verdict"] and "skill" not in found["verdict"]
    summaries = [found["model"], found["constant"], *found["references"].values()]
    assert [each["bss"] for each in summaries] == [None] * len(summaries)
    assert [found["comparison"][key] for key in ("interval", "skill_over_best", "skill_interval")] == [None] * 3
    Console(file=io.StringIO()).print(render(found))


def test_many_events_on_too_few_days_are_too_few() -> None:
    issued = np.repeat(np.datetime64("2020-01-01") + np.arange(40), 5)
    events = np.where(issued < np.datetime64("2020-01-05"), 1.0, 0.0)  # 20 events on 4 days
    assert few_events(events, issued) is not None
    assert few_events(np.where(issued < np.datetime64("2020-01-06"), 1.0, 0.0), issued) is None
    assert few_events(1 - events, issued) is not None


def test_a_test_in_a_season_without_training_is_said(data) -> None:
    days = np.arange(400).astype("timedelta64[D]")
    other_season = replace(data, times=np.datetime64("2015-01-01", "ns") + days)  # January to July; October to February
    part = rows("test", 300, 400, data.event_ST)
    found = run(other_season, part, np.full(len(part), 0.4))
    assert "out_of_season" in cautions(found) and "lie in a season without training" in found["verdict"]
    assert "out_of_season" not in cautions(run(data, part, np.full(len(part), 0.4)))


def test_a_rate_that_shifts_beyond_chance_is_said_and_the_constant_shown(data) -> None:
    random = np.random.default_rng(3)
    event_ST = data.event_ST.copy()
    event_ST[:, 300:] = random.random((2, 100)) < 0.1
    part = rows("test", 300, 400, event_ST)
    varied = np.where(part.end % 2, 0.11, 0.13)  # nearly a constant, but not collapsed
    found = run(replace(data, event_ST=event_ST), part, varied)
    rate = event_ST[:, 300:].mean()
    assert "rate_shift" in cautions(found)
    assert found["model"]["bss"] > 0.2  # a constant looks skilful over climatology
    assert found["constant"]["brier"] == pytest.approx(rate * (1 - rate))
    assert "no better than a constant at the period's own rate" in found["verdict"]
    assert "rate_shift" not in cautions(run(data, rows("test", 300, 400, data.event_ST), np.full(200, 0.4)))


def test_the_first_sentence_says_that_a_model_collapsed(data, test_part) -> None:
    for p in (np.full(200, 0.4), 0.4 + np.linspace(0, 1e-7, 200), 0.4 + 0.004 * np.sin(np.arange(200))):
        found = run(data, test_part, p)
        assert found["verdict_code"] == "collapsed" and found["collapsed"] is True
        assert found["verdict"].startswith("The model collapsed: its forecasts are constant or nearly so (mean 0.400")
    assert run(data, test_part, 0.4 + 0.01 * np.sin(np.arange(200)))["verdict_code"] != "collapsed"


def test_the_first_sentence_says_that_a_model_does_not_beat_climatology(data, test_part) -> None:
    found = run(data, test_part, 1.0 - test_part.y)
    assert found["verdict_code"] == "does_not_beat_climatology" and found["collapsed"] is False
    low, high = found["intervals"]["bss"]
    assert found["verdict"].startswith(
        f"The model does not beat climatology: BSS {found['model']['bss']:.3f} (95 % interval {low:+.3f} to {high:+.3f}), "
        f"Brier 1.0000 against {found['references']['climatology']['brier']:.4f}, on 200 forecasts."
    )
    assert "The best of the references is logistic regression (Brier 0." in found["verdict"]
    climatology = all_references(data, test_part)["climatology"]
    assert run(data, test_part, climatology)["verdict_code"] == "does_not_beat_climatology"  # BSS = 0
    short = rows("test", 300, 328, data.event_ST)
    found = run(data, short, 1.0 - short.y)
    assert found["verdict_code"] == "does_not_beat_climatology" and "interval" not in found["verdict"]


def test_a_collapsed_model_without_events_is_still_called_that(data) -> None:
    event_ST = data.event_ST.copy()
    event_ST[:, 300:] = 0
    part = rows("test", 300, 400, event_ST)
    found = run(replace(data, event_ST=event_ST), part, np.full(len(part), 0.1))
    assert found["verdict_code"] == "collapsed" and "No verdict otherwise: test: 0 events" in found["verdict"]


def test_the_comparison_is_that_with_the_best_reference(data, test_part) -> None:
    found = run(data, test_part, np.linspace(0.2, 0.6, 200))
    best = found["comparisons"][found["comparison"]["best_reference"]]
    assert list(found["comparisons"]) == list(found["references"])
    assert found["comparison"]["brier_difference"] == best["brier_difference"]
    assert found["comparison"]["interval"] == best["brier_interval"]
    assert found["comparison"]["skill_interval"] == best["skill_interval"]
    assert found["comparisons"]["climatology"]["skill"] == pytest.approx(found["model"]["bss"])
    assert found["comparisons"]["climatology"]["skill_interval"] == found["intervals"]["bss"]
    assert found["comparison"]["resamples"] == found["settings"]["bootstrap"] == 200


def test_the_same_seed_gives_the_same_numbers(data, test_part) -> None:
    p = np.linspace(0.2, 0.6, 200)
    once = run(data, test_part, p)
    assert run(data, test_part, p) == once
    assert run(replace(data, seed=1), test_part, p)["intervals"] != once["intervals"]


def test_yes_and_no_follow_the_threshold(data, test_part) -> None:
    p = np.linspace(0.2, 0.6, 200)
    found = run(data, test_part, p, threshold=0.3)
    assert found["threshold"] == 0.3
    counts = found["model"]["confusion"]
    assert counts["hits"] + counts["false_alarms"] == (p >= 0.3).sum()
    assert run(data, test_part, p)["model"]["confusion"]["hits"] < counts["hits"]
    assert "yes from a probability of 0.30" in text_of(found)


def test_the_curves_are_those_of_the_model_with_bands_around_them(data, test_part) -> None:
    p = np.linspace(0.02, 0.98, 200)
    curves = run(data, test_part, p)["curves"]
    points = curves["operating_points"]
    assert points["threshold"][0] is None and (points["pod"][0], points["pofd"][0]) == (0, 0)
    assert (points["pod"][-1], points["pofd"][-1]) == (1, 1) and points["success_ratio"][0] is None
    assert sum(curves["reliability"]["rows"]) == 200
    for name in ("reliability", "isotonic"):
        bands = [curves[name][key] for key in ("low", "frequency", "high")]
        known = [each for each in zip(*bands, strict=True) if None not in each]
        assert known and all(low <= high for low, _, high in known)
        assert np.mean([low <= middle <= high for low, middle, high in known]) > 0.8
    values = curves["economic_value"]
    assert list(values["value"]) == ["model", "climatology", "persistence", "markov", "logistic", "gradient_boosting"]
    expected = economic_value(p, test_part.y)
    assert values["value"]["model"] == pytest.approx(expected, abs=1e-6) and len(values["cost_loss"]) == 99


def test_several_classes_have_scores_of_their_own(data, test_part) -> None:
    event = np.linspace(0.1, 0.7, 200)
    p = np.stack([0.4 * (1 - event), event, 0.6 * (1 - event)], axis=1)
    found = run(data, test_part, p)
    assert found["model"] == run(data, test_part, event)["model"]
    frequency = [1 - data.training.y.mean(), data.training.y.mean(), 0]
    assert found["classes"] == class_summary(p, test_part.y, frequency)
    assert run(data, test_part, np.stack([1 - event, event], axis=1))["classes"] is None
    with pytest.raises(GuardStop, match="2 non-finite"):
        run(data, test_part, np.where(np.arange(200)[:, None] < 2, math.nan, p))


def test_the_probabilities_of_the_references_are_given(data, test_part) -> None:
    found = verify(data, test_part, np.linspace(0.2, 0.6, 200), SITES, bootstrap=100, block_days=7, event_index=1)
    for name, p in found.reference_p.items():
        assert found.content["references"][name]["brier"] == pytest.approx(((p - test_part.y) ** 2).mean())


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_tables_fit_narrow_screens(data, test_part, width: int) -> None:
    found = run(data, test_part, test_part.y.astype(float))
    console = Console(width=width, file=io.StringIO())
    console.print(render(found))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= min(width, 70)
    # Each forecast is one line of each table: nothing is wrapped or cut.
    for name in ("model", "climatology", "persistence", "logistic regression", "gradient boosting", "constant"):
        assert len([line for line in lines if line.strip().startswith(name)]) == 3
    assert "…" not in console.file.getvalue()
