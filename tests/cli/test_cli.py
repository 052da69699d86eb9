"""The command line as its user meets it: exit codes, words, and the files of a run.

One tiny model is trained once; the tests look at it, copy it, or damage the copy.
"""

import errno
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save

from llueve.cli import main as cli
from llueve.errors import WorkerLost
from llueve.runs.directory import FILES
from llueve.version import __version__

ROWS = 400
CONTEXT = 8
VALIDATION, TEST = 240, 320
"""Rows of each site at which the parts begin."""
CONFIG = f"""
[data]
path = "table.csv"
site = "site"

[target]
label = "wet"

[split]
validation_fraction = 0.2
test_fraction = 0.2

[windows]
context = {CONTEXT}

[model]
patch_length = 4
width = 8
layers = 1
heads = 1
feed_forward = 8

[train]
epochs = 2
warmup_steps = 5

[verify]
bootstrap = 100
lags = [1]
"""


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *parts: str) -> None:
        """A message with every part, no traceback, nothing on stdout."""
        assert self.code == code, self.err
        assert self.err.count("error:") == 1 and "Traceback" not in self.err
        assert self.out == ""
        for part in parts:
            assert part in self.err

    def fine(self) -> "Outcome":
        assert self.code == 0, self.err
        return self


def llueve(*arguments: str | Path) -> Outcome:
    """Run the command line in this process; an exception that it lets through fails the test."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["llueve", *map(str, arguments)])
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # which the command line sets, and must not leave behind
        with pytest.raises(SystemExit) as caught:
            cli.main()
    code = caught.value.code
    assert code is None or isinstance(code, int)
    return Outcome(code or 0, out.getvalue(), err.getvalue())


def weather() -> pd.DataFrame:
    """Two sites of daily weather; it rains after humid days more often than after dry ones."""
    random = np.random.default_rng(0)
    sites = []
    for site in ("Lima", "Puno"):
        humidity = np.convolve(random.normal(size=ROWS + 4), np.ones(5) / 5, mode="valid")
        tp = np.where(np.roll(humidity, 1) + random.normal(scale=0.3, size=ROWS) > 0, random.gamma(1, 3, ROWS) + 1, 0)
        wet = pd.array([*(tp[1:] > 0).astype(int), None], dtype="Int64")
        times = pd.date_range("2020-01-01", periods=ROWS).strftime("%Y-%m-%d")
        sites.append(
            pd.DataFrame({"site": site, "time": times, "tp [mm]": tp, "humidity": humidity, "wet": wet}).round(4)
        )
    return pd.concat(sites, ignore_index=True)


@dataclass(frozen=True)
class Project:
    """A folder with a configuration and its table."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "project.toml"

    @property
    def table(self) -> Path:
        return self.folder / "table.csv"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def write(self, frame: pd.DataFrame) -> None:
        frame.to_csv(self.table, index=False)

    def train(self, *arguments: str) -> Outcome:
        return llueve("train", self.config, "--run", self.run, *arguments)

    def train_with(self, *overrides: str) -> Outcome:
        return self.train(*(word for override in overrides for word in ("--set", override)))

    def json(self, name: str) -> Any:
        return json.loads((self.run / name).read_text())

    def files(self) -> set[str]:
        return {path.name for path in self.run.iterdir()} if self.run.exists() else set()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Ready to be trained."""
    project = Project(tmp_path)
    project.config.write_text(CONFIG)
    project.write(weather())
    return project


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Outcome]:
    """Trained once; read it only."""
    project = Project(tmp_path_factory.mktemp("trained"))
    project.config.write_text(CONFIG)
    project.write(weather())
    return project, project.train().fine()


@pytest.fixture(scope="session")
def done(trained: tuple[Project, Outcome]) -> Project:
    return trained[0]


@pytest.fixture
def copy(done: Project, tmp_path: Path) -> Project:
    """A trained project to damage."""
    return Project(Path(shutil.copytree(done.folder, tmp_path / "copy")))


# Help and configuration


def test_help_does_not_wait_for_the_heavy_libraries() -> None:
    script = (
        "import runpy, sys\n"
        "sys.argv = ['llueve', '--help']\n"
        "try: runpy.run_module('llueve', run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'sklearn', 'pandas', 'xarray', 'scipy', 'requests', 'cdsapi'} & set(sys.modules)\n"
        "sys.stderr.write(','.join(sorted(heavy)))\n"
        "sys.exit(code)"
    )
    shown = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    for word in ("train", "evaluate", "predict", "audit", "config", "data", "Exit codes"):
        assert word in shown.stdout


def test_the_version() -> None:
    assert llueve("--version").fine().out == f"llueve {__version__}\n"


@pytest.mark.parametrize("arguments", [("prognosis",), ("train",), ("train", "a.toml"), ("predict", "run", "--every")])
def test_wrong_use_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    outcome = llueve(*arguments)
    assert outcome.code == 2 and "Usage: " in outcome.err and "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("audit", "a.toml", "--context", "x"), "x: expected a whole number"),
        (("incident", "show", "run", "one"), "one: expected a whole number"),
        (("data", "era5", "--area", "0", "-82", "south", "-68"), "south: expected a number"),
        (("incident", "explain", "run", "--language", "fr"), "--language fr: expected en or es"),
    ],
)
def test_a_value_of_the_wrong_type(arguments: tuple[str, ...], words: str) -> None:
    outcome = llueve(*arguments)
    assert outcome.code == 2 and words in outcome.err and "Traceback" not in outcome.err


def test_config_check_prints_every_default(project: Project) -> None:
    outcome = llueve("config", "check", project.config, "--set", "train.epochs=7").fine()
    assert "epochs = 7" in outcome.out and "max_skipped = 0.01" in outcome.out


def test_a_refused_configuration_is_exit_code_2(project: Project) -> None:
    project.train_with("windows.contxt=9").refused(2, "windows.contxt", "did you mean windows.context?")
    assert not project.run.exists()


@pytest.mark.parametrize("name", ["gone[bold].csv", "gone\\[bold].csv", "gone[/].csv"])
def test_square_brackets_of_a_message_are_shown(project: Project, name: str) -> None:
    project.train_with(f"data.path={name}").refused(1, f"{name}: no such file")


# A run directory


def test_a_run_leaves_exactly_its_files(done: Project) -> None:
    assert done.files() == set(FILES)


def test_the_verdict_is_printed(trained: tuple[Project, Outcome]) -> None:
    project, outcome = trained
    words = " ".join(outcome.out.split())
    assert project.json("verification.json")["verdict"] in words
    for name in ("model", "climatology", "persistence", "logistic", "gradient boosting"):
        assert name in words


def test_the_configuration_of_a_run_trains_it_again(done: Project, tmp_path: Path) -> None:
    llueve("train", done.run / "config.toml", "--run", tmp_path / "again").fine()
    for name in ("predictions.csv", "verification.json", "config.toml"):
        assert (tmp_path / "again" / name).read_text() == (done.run / name).read_text()


def test_the_history_has_one_object_per_epoch(done: Project) -> None:
    start, *lines = [json.loads(line) for line in (done.run / "history.jsonl").read_text().splitlines()]
    assert list(start) == ["event", "epoch", "calibrated_loss", "validation_skill"] and start["event"] == "start"
    assert [line["epoch"] for line in (start, *lines)] == [0, 1, 2]
    counts = ["steps", "refused", "skipped", "quarantined"]
    before = ["epoch", "phase", "train_loss", "validation_loss", "calibrated_loss", "validation_skill"]
    keys = [*before, *counts, "collapsed", "overfit", "limited", "seconds", "learning_rate"]
    assert all(list(line) == keys for line in lines)
    assert all(line["steps"] > line["refused"] == line["quarantined"] == 0 for line in lines)
    assert all(math.isfinite(line["train_loss"]) and line["skipped"] == 0 for line in lines)


def test_predictions_are_probabilities_of_the_whole_test_period(done: Project) -> None:
    rows = pd.read_csv(done.run / "predictions.csv")
    references = ["climatology", "persistence", "markov", "logistic", "gradient_boosting"]
    assert list(rows.columns) == ["site", "time", "observed", "probability", *references]
    assert rows["probability"].between(0, 1, inclusive="neither").all()
    table = pd.read_csv(done.table)
    known = table.groupby("site").nth(slice(TEST, None)).dropna(subset="wet")
    expected = {(row.site, row.time): row.wet for row in known.itertuples()}
    assert {(row.site, row.time): row.observed for row in rows.itertuples()} == expected


def test_verification_holds_the_model_beside_five_references(done: Project) -> None:
    found = done.json("verification.json")
    rows = pd.read_csv(done.run / "predictions.csv")
    assert found["n"] == len(rows) and found["base_rate"] == pytest.approx(rows["observed"].mean())
    assert set(found["references"]) == {"climatology", "persistence", "markov", "logistic", "gradient_boosting"}
    for scores in (found["model"], *found["references"].values()):
        assert {"brier", "bss", "log_score", "auc", "accuracy", "f1"} <= set(scores)
    brier = ((rows["probability"] - rows["observed"]) ** 2).mean()
    assert found["model"]["brier"] == pytest.approx(brier)
    assert str(found["n"]) in found["verdict"]
    for name, scores in found["references"].items():  # every comparison can be checked from the files
        assert scores["brier"] == pytest.approx(((rows[name] - rows["observed"]) ** 2).mean())


def test_three_classes_have_scores_of_their_own(project: Project) -> None:
    frame = weather()
    amount = frame.groupby("site")["tp [mm]"].shift(-1)
    frame["wet"] = np.select([amount.isna(), amount == 0, amount < 4], [None, "dry", "light"], "heavy")
    project.write(frame)
    project.train_with('target.classes=["dry", "light", "heavy"]', "train.epochs=1").fine()
    found = project.json("verification.json")
    assert set(found["classes"]) == {"rps", "rpss", "class_brier", "class_log_score"}
    # The event is the last class, so its Brier score is one of two terms of RPS, and one of three of the class Brier score.
    event = found["model"]["brier"]
    assert event / 2 < found["classes"]["rps"] < (event + 1) / 2 and event < found["classes"]["class_brier"] < 2


def test_the_description_of_the_model(done: Project) -> None:
    model = done.json("model.json")
    assert model["variables"] == [["tp", "mm"], ["humidity", None]]
    assert (model["context"], model["step_hours"], model["classes"]) == (CONTEXT, 24.0, ["0", "1"])
    assert model["trained"]["best_epoch"] in (1, 2)


def test_the_scale_comes_from_the_training_period_alone(project: Project, done: Project) -> None:
    changed = weather()
    last = changed.groupby("site").cumcount() >= VALIDATION
    changed.loc[last, "humidity"] *= 1000
    project.write(changed)
    project.train_with("train.epochs=1").fine()
    assert project.json("model.json")["scaler"] == done.json("model.json")["scaler"]


# Evaluate and predict


def test_evaluate_gives_the_same_verification(copy: Project) -> None:
    before = copy.json("verification.json")
    # `data.path` of the copy still names the first table, which is the same.
    outcome = llueve("evaluate", copy.run, "--json").fine()
    assert json.loads(outcome.out) == before == copy.json("verification.json")


def test_evaluate_prints_the_verdict(copy: Project) -> None:
    outcome = llueve("evaluate", copy.run).fine()
    assert copy.json("verification.json")["verdict"] in " ".join(outcome.out.split())


def test_evaluate_with_other_keys_of_verify(copy: Project, tmp_path: Path) -> None:
    before = copy.json("verification.json")
    report = tmp_path / "report.json"
    llueve("evaluate", copy.run, "--set", "verify.bootstrap=250", "--output", report).fine()
    found = copy.json("verification.json")
    assert json.loads(report.read_text()) == found and found["settings"]["bootstrap"] == 250
    assert found["comparison"]["resamples"] == 250 != before["comparison"]["resamples"]
    assert found["model"] == before["model"] and found["comparison"]["interval"] != before["comparison"]["interval"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "train.epochs=5",
            "--set train.epochs=5: only keys of [verify] can be changed here, as in verify.bootstrap=200",
        ),
        ("bootstrap=200", "only keys of [verify] can be changed here"),
        ("verify=200", "expected section.key=value"),
        ("verify.bootstrap=5", "--set: verify.bootstrap = 5: expected"),
        ("verify.bootstrp=500", "did you mean verify.bootstrap?"),
        ("verify.lags.x=5", "verify.lags"),
    ],
)
@pytest.mark.parametrize("what", ["run", "--predictions"])
def test_evaluate_refuses_other_keys(copy: Project, override: str, words: str, what: str) -> None:
    before = (copy.run / "verification.json").read_bytes()
    given = (copy.run,) if what == "run" else ("--predictions", copy.run / "predictions.csv")
    llueve("evaluate", *given, "--set", override).refused(2, words)
    assert (copy.run / "verification.json").read_bytes() == before


def test_evaluate_takes_anybodys_forecasts(copy: Project, tmp_path: Path) -> None:
    own = copy.json("verification.json")
    file, report = tmp_path / "mine.csv", tmp_path / "mine.json"
    pd.read_csv(copy.run / "predictions.csv").to_csv(file, index=False)
    outcome = llueve("evaluate", "--predictions", file, "--output", report, "--set", "verify.bootstrap=100").fine()
    found = json.loads(report.read_text())
    assert found["verdict"] in " ".join(outcome.out.split()) and "mine.csv: " in outcome.out
    for name in ("model", "constant"):
        assert found[name] == {key: pytest.approx(value) for key, value in own[name].items()}
    assert found["intervals"]["brier"] == pytest.approx(own["intervals"]["brier"])
    assert set(found["references"]) == set(own["references"])
    printed = llueve("evaluate", "--predictions", file, "--json", "--set", "verify.bootstrap=100").fine()
    assert json.loads(printed.out) == found


def test_evaluate_needs_one_of_run_and_forecasts(copy: Project, tmp_path: Path) -> None:
    file = copy.run / "predictions.csv"
    llueve("evaluate").refused(2, "give a run directory, or --predictions FILE.csv, one of them")
    llueve("evaluate", copy.run, "--predictions", file).refused(2, "one of them")
    before = file.read_bytes()
    llueve("evaluate", "--predictions", file, "--output", file).refused(2, "--output", "predictions.csv")
    llueve("evaluate", copy.run, "--output", copy.run / "model.json").refused(2, "--output", "model.json")
    assert file.read_bytes() == before
    bad = tmp_path / "bad.csv"
    bad.write_text("time,observed,probability\n2020-01-01,1,0.5\n2020-01-02,1,7\n")
    llueve("evaluate", "--predictions", bad).refused(1, f"{bad}: row 3, column 'probability': '7' is not a probability")
    llueve("evaluate", "--predictions", tmp_path / "gone.csv").refused(1, "gone.csv: cannot be read")


@pytest.mark.parametrize(
    "change",
    [lambda frame: frame.iloc[: ROWS - 80], lambda frame: frame.assign(humidity=frame["humidity"] * 25)],
    ids=["shorter", "rescaled"],
)
def test_evaluate_refuses_a_table_that_has_changed(
    copy: Project, tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]
) -> None:
    """Fractions of a shorter table would make a test period out of what the model was trained with."""
    table = tmp_path / "changed.csv"
    change(weather()).to_csv(table, index=False)
    config = (copy.run / "config.toml").read_text()
    start = config.index("path = ")
    line = config[start : config.index("\n", start)]
    (copy.run / "config.toml").write_text(config.replace(line, f"path = {json.dumps(str(table))}"))
    before = (copy.run / "verification.json").read_bytes()
    llueve("evaluate", copy.run).refused(1, str(table), "is not the table that the run was trained on")
    assert (copy.run / "verification.json").read_bytes() == before


def test_the_references_see_every_issue_time_whatever_the_stride(copy: Project) -> None:
    before = copy.json("verification.json")["references"]
    copy.train("--overwrite", "--set", "windows.stride=5").fine()
    assert copy.json("verification.json")["references"] == before


def test_a_category_of_the_test_period_alone_changes_no_training_input(project: Project) -> None:
    """Nor does it become a variable: it counts as missing."""
    frame = weather().assign(sky=np.where(weather()["humidity"] > 0, "sun", "fog"))
    weights = []
    for text in (frame["sky"], frame["sky"].where(frame.index != ROWS - 3, "hail")):
        project.write(frame.assign(sky=text))
        project.train("--overwrite", "--set", 'data.categories={sky="one-hot"}', "--set", "train.epochs=1").fine()
        assert [name for name, _ in project.json("model.json")["variables"]] == ["tp", "humidity", "sky=sun"]
        weights.append(load_file(project.run / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert "unknown_category" in {finding["code"] for finding in project.json("audit.json")["findings"]}


def test_a_static_column_between_the_features_is_no_change_of_the_table(project: Project) -> None:
    frame = weather()
    frame.insert(2, "soil", frame["site"].map({"Lima": "sand", "Puno": "clay"}))
    project.write(frame)
    project.train_with('data.categories={soil="static"}', "train.epochs=1").fine()
    before = project.json("verification.json")
    llueve("evaluate", project.run).fine()
    assert project.json("verification.json") == before


def test_predict_takes_the_columns_in_any_order_and_ignores_the_label(done: Project, tmp_path: Path) -> None:
    outcomes = []
    for number, frame in enumerate(
        (weather(), weather().assign(wet="?")[["wet", "humidity", "time", "tp [mm]", "site"]])
    ):
        path = tmp_path / f"{number}.csv"
        frame.to_csv(path, index=False)
        outcomes.append(llueve("predict", done.run, path).fine().out)
    assert outcomes[0] == outcomes[1]


def test_a_test_period_without_a_finite_forecast_leaves_no_model(project: Project) -> None:
    """Exit 3, and nothing that predict could use."""
    frame = weather()
    frame.loc[ROWS - 5, "humidity"] = np.nan
    project.write(frame)
    project.train_with('windows.missing="raw"').refused(3, "not finite", "nothing is reported")
    assert not {"model.json", "model.safetensors", "verification.json"} & project.files()


def test_a_value_no_scale_can_hold_is_refused_where_it_is(project: Project) -> None:
    """Its square would overflow in the normalisation of its window."""
    frame = weather()
    frame.loc[ROWS - 5, "humidity"] = -1e30
    project.write(frame)
    project.train().refused(1, "humidity", "-1e+30", "Lima", "2021-01-30", "data.sentinels")


def test_the_history_holds_the_rate_that_was_used(copy: Project) -> None:
    copy.train("--overwrite", "--set", "train.epochs=1", "--set", 'train.schedule="constant"').fine()
    *_, line = (json.loads(text) for text in (copy.run / "history.jsonl").read_text().splitlines())
    assert line["learning_rate"] == pytest.approx(1e-3)


def test_a_sum_of_precipitation_is_trained_evaluated_and_forecast(project: Project) -> None:
    text = project.config.read_text().replace('label = "wet"', 'variable = "tp"\nthreshold_mm = 1.0')
    project.config.write_text(text)
    project.write(weather().drop(columns="wet"))
    project.train_with("train.epochs=1").fine()
    assert json.loads(llueve("evaluate", project.run, "--json").fine().out) == project.json("verification.json")
    assert len(llueve("predict", project.run, project.table).fine().out.splitlines()) == 3


def forecasts(text: str) -> pd.DataFrame:
    frame = pd.read_csv(StringIO(text))
    assert list(frame.columns) == ["site", "time", "probability", "event"]
    assert (frame["event"] == (frame["probability"] >= 0.5)).all()
    return frame


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    path = tmp_path / "new.csv"
    weather().drop(columns="wet").to_csv(path, index=False)
    return path


def test_predict_gives_the_last_window_of_each_site(done: Project, unlabelled: Path) -> None:
    found = forecasts(llueve("predict", done.run, unlabelled).fine().out)
    assert found["site"].tolist() == ["Lima", "Puno"]
    assert set(found["time"]) == {weather()["time"].max()}
    assert found["probability"].between(0, 1, inclusive="neither").all()


def test_predict_all_gives_every_whole_window(done: Project, unlabelled: Path) -> None:
    found = forecasts(llueve("predict", done.run, unlabelled, "--all").fine().out)
    assert len(found) == 2 * (ROWS - CONTEXT + 1)


def test_predict_agrees_with_the_verified_forecasts(done: Project, unlabelled: Path) -> None:
    found = forecasts(llueve("predict", done.run, unlabelled, "--all").fine().out)
    verified = pd.read_csv(done.run / "predictions.csv")
    both = verified.merge(found, on=["site", "time"], how="left", suffixes=("_verified", ""))
    np.testing.assert_allclose(both["probability"], both["probability_verified"], atol=1e-5)


def test_a_forecast_does_not_change_with_what_comes_after_or_long_before(done: Project, tmp_path: Path) -> None:
    whole = weather().drop(columns="wet")
    position = whole.groupby("site").cumcount()
    alone = tmp_path / "alone.csv"
    whole[(position > 350 - CONTEXT) & (position <= 350)].to_csv(alone, index=False)
    (tmp_path / "whole.csv").write_text(whole.to_csv(index=False))
    found = forecasts(llueve("predict", done.run, alone).fine().out)
    every = forecasts(llueve("predict", done.run, tmp_path / "whole.csv", "--all").fine().out)
    same = found.merge(every, on=["site", "time"])
    assert len(same) == 2
    np.testing.assert_allclose(same["probability_x"], same["probability_y"], atol=1e-5)


def test_predict_output_goes_to_a_file(done: Project, unlabelled: Path, tmp_path: Path) -> None:
    outcome = llueve("predict", done.run, unlabelled, "--output", tmp_path / "out.csv").fine()
    assert outcome.out == ""
    assert len(forecasts((tmp_path / "out.csv").read_text())) == 2


def test_predict_output_that_cannot_be_written(done: Project, unlabelled: Path, tmp_path: Path) -> None:
    output = tmp_path / "nowhere" / "out.csv"
    llueve("predict", done.run, unlabelled, "--output", output).refused(1, str(output))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda frame: frame.drop(columns="humidity"), ["lacks the variables humidity"]),
        (lambda frame: frame.assign(cloud=1.0), ["never saw: cloud"]),
        (lambda frame: frame.rename(columns={"tp [mm]": "tp [m]"}), ["tp is in m, trained in mm"]),
        (lambda frame: frame[frame.groupby("site").cumcount() % 2 == 0], ["step is 48 h, trained on 24 h"]),
        (lambda frame: frame.rename(columns={"tp [mm]": "rain [mm]"}), ["lacks the variables tp", "never saw: rain"]),
        (lambda frame: frame.drop(columns="site"), ["data.site", "'site'"]),
        (lambda frame: frame.groupby("site").head(CONTEXT - 1), ["Lima", "7 rows", "8 steps"]),
    ],
    ids=["missing", "extra", "unit", "step", "renamed", "no site", "short"],
)
def test_predict_refuses_another_table(
    done: Project, tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], parts: list[str]
) -> None:
    path = tmp_path / "other.csv"
    change(weather().drop(columns="wet")).to_csv(path, index=False)
    llueve("predict", done.run, path).refused(1, *parts)


# The data


def test_audit_prints_json_and_ends_well(project: Project) -> None:
    found = json.loads(llueve("audit", project.config, "--json").fine().out)
    assert set(found["splits"]) == {"training", "validation", "test"}
    assert not project.run.exists()


def test_audit_with_an_error_is_exit_code_4(project: Project) -> None:
    project.write(weather().assign(copy=weather()["wet"]))
    outcome = llueve("audit", project.config)
    assert outcome.code == 4 and "holds_future" in outcome.out and "Traceback" not in outcome.err


def test_a_column_that_holds_the_future_is_not_trained_on(project: Project) -> None:
    project.write(weather().assign(copy=weather()["wet"]))
    project.train().refused(4, "holds_future: copy", "data.exclude")
    assert not project.run.exists()  # the corrected command can use the same --run


def test_an_excluded_column_is_no_leak(project: Project) -> None:
    project.write(weather().assign(copy=weather()["wet"]))
    project.train_with('data.exclude=["copy"]', "train.epochs=1").fine()


def test_a_missing_table(project: Project) -> None:
    project.table.unlink()
    project.train().refused(1, str(project.table), "no such file")


def test_an_empty_file(project: Project) -> None:
    project.table.write_text("")
    project.train().refused(1, str(project.table), "is empty")


def test_a_missing_column(project: Project) -> None:
    project.write(weather().rename(columns={"wet": "Wet"}))
    project.train().refused(1, "target.label names 'wet'", "did you mean 'Wet'?")


def test_text_in_a_number_column(project: Project) -> None:
    changed = weather().astype({"humidity": object})
    changed.loc[5, "humidity"] = "moist"
    project.write(changed)
    project.train().refused(1, "'humidity'", "'moist'", "row 7")


def test_unordered_times_are_sorted_and_reported(project: Project, done: Project) -> None:
    project.write(weather().iloc[::-1])
    project.train().fine()
    assert (project.run / "predictions.csv").read_text() == (done.run / "predictions.csv").read_text()
    codes = [finding["code"] for finding in project.json("audit.json")["findings"]]
    assert codes.count("unordered_times") == 2


def test_duplicated_times(project: Project) -> None:
    project.write(pd.concat([weather(), weather().iloc[:1]]))
    project.train().refused(1, "Lima at 2020-01-01", "rows 2 and 802", "data.duplicates")


def test_one_class_in_training(project: Project) -> None:
    changed = weather()
    changed.loc[(changed.groupby("site").cumcount() < VALIDATION), "wet"] = 0
    project.write(changed)
    project.train().refused(4, "one_class", "training holds only the class '0'")
    assert "model.safetensors" not in project.files()


def test_a_context_longer_than_any_site(project: Project) -> None:
    project.train_with("windows.context=500").refused(4, "windows.context = 500", "400")


def test_infinite_values(project: Project) -> None:
    changed = weather()
    changed.loc[5, "humidity"] = np.inf
    project.write(changed)
    project.train().refused(1, "'humidity'", "infinite", "row 7", "data.infinite")


def test_a_variable_without_an_observation(project: Project) -> None:
    project.write(weather().assign(cloud=""))
    project.train().refused(4, "all_missing: cloud", "data.exclude")


def test_cut_dates_outside_the_table(project: Project) -> None:
    text = project.config.read_text()
    dates = "validation_start = 2030-01-01\ntest_start = 2031-01-01"
    project.config.write_text(text.replace("validation_fraction = 0.2\ntest_fraction = 0.2", dates))
    project.train().refused(4, "2020-01-01", "move the cuts inside it")


def test_a_horizon_that_is_no_whole_number_of_steps(project: Project) -> None:
    project.train_with("target.horizon_hours=25").refused(4, "target.horizon_hours = 25", "choose a multiple of 24")


def test_missing_cells_are_masked(project: Project) -> None:
    changed = weather()
    changed.loc[[10, 50, 330, 395, 799], "humidity"] = np.nan
    project.write(changed)
    project.train_with("train.epochs=1").fine()
    assert pd.read_csv(project.run / "predictions.csv")["probability"].between(0, 1, inclusive="neither").all()
    (finding,) = [found for found in project.json("audit.json")["findings"] if found["code"] == "missing_cells"]
    assert (finding["variable"], finding["count"]) == ("humidity", 5)


# The guard


def stopped(outcome: Outcome, project: Project, *parts: str) -> None:
    outcome.refused(3, *parts)
    assert not {"model.safetensors", "model.json", "predictions.csv", "verification.json"} & project.files()
    assert not [name for name in project.files() if name.endswith(".part")]


def test_missing_cells_left_raw_stop_the_training(project: Project) -> None:
    changed = weather()
    changed.loc[50, "humidity"] = np.nan
    project.write(changed)
    outcome = project.train_with('windows.missing="raw"')
    # One cell is in the 8 windows of one site that end on it or on the 7 rows after it.
    training = 2 * (VALIDATION - (CONTEXT + 1) + 1 - (CONTEXT - 1))
    stopped(outcome, project, f"{CONTEXT} of {training} training samples", 'windows.missing = "mask"')


def test_missing_cells_left_raw_in_validation_alone_leave_no_model(project: Project) -> None:
    changed = weather()
    changed.loc[VALIDATION + 20, "humidity"] = np.nan
    project.write(changed)
    stopped(project.train_with('windows.missing="raw"'), project, "validation loss was never finite")
    lines = [json.loads(line) for line in (project.run / "history.jsonl").read_text().splitlines()]
    assert len(lines) > 1 and all(line["validation_loss"] is None for line in lines if "event" not in line)
    assert lines[-1]["event"] == "stopped" and "validation loss was never finite" in lines[-1]["reason"]


def test_missing_cells_left_raw_in_the_test_alone_leave_no_scores(project: Project) -> None:
    changed = weather()
    changed.loc[TEST + 20, "humidity"] = np.nan
    project.write(changed)
    project.train_with('windows.missing="raw"').refused(3, "8 of 158 forecasts are not finite", "Lima at 2020-12-06")
    assert not {"predictions.csv", "verification.json"} & project.files()


def test_predict_never_gives_a_forecast_that_is_not_finite(project: Project) -> None:
    project.train_with('windows.missing="raw"', "train.epochs=1").fine()
    changed = weather()
    changed.loc[ROWS - 1, "humidity"] = np.nan
    project.write(changed)
    llueve("predict", project.run, project.table).refused(3, "1 of 2 forecasts are not finite", "Lima")


def diverging(monkeypatch: pytest.MonkeyPatch, when: Callable[[torch.Tensor], bool]) -> None:
    """A cross-entropy that is NaN where `when` says so of its logits."""
    real = torch.nn.functional.cross_entropy

    def cross_entropy(logits: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        loss = real(logits, *others, **options)
        return loss * math.nan if when(logits) else loss

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", cross_entropy)


def test_a_diverging_training_leaves_no_model(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    diverging(monkeypatch, lambda logits: logits.requires_grad)
    stopped(project.train(), project, "loss nan", "llueve incident explain", "guard.max_skipped = 1.00%")


def test_a_validation_loss_that_is_never_finite_leaves_no_model(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging(monkeypatch, lambda logits: not logits.requires_grad)
    stopped(project.train(), project, "validation loss was never finite", "no model")


def test_a_gradient_that_is_not_finite_leaves_no_model(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.nn.utils.get_total_norm

    def norm(*arguments: Any, **options: Any) -> torch.Tensor:
        return real(*arguments, **options) * math.inf

    monkeypatch.setattr(torch.nn.utils, "get_total_norm", norm)
    stopped(project.train(), project, "gradient norm inf")


# Places that cannot be used


def test_a_run_directory_that_exists_is_refused(copy: Project) -> None:
    before = {name: (copy.run / name).read_bytes() for name in copy.files()}
    copy.train().refused(1, str(copy.run), "holds a finished run", "--overwrite")
    assert {name: (copy.run / name).read_bytes() for name in copy.files()} == before


def test_overwrite_replaces_a_run_and_nothing_else(copy: Project) -> None:
    (copy.run / "notes.txt").write_text("mine")
    copy.train("--overwrite", "--set", "train.epochs=1").fine()
    assert copy.files() == {*FILES, "notes.txt"}
    last = json.loads((copy.run / "history.jsonl").read_text().splitlines()[-1])
    assert last["epoch"] == 1


@pytest.mark.parametrize(
    ("override", "code"), [("windows.context=500", 4), ("data.path=nope.csv", 1), ("data.time=dat", 1)]
)
def test_overwrite_costs_nothing_when_there_is_nothing_to_train_on(copy: Project, override: str, code: int) -> None:
    before = {name: (copy.run / name).read_bytes() for name in copy.files()}
    copy.train("--overwrite", "--set", override).refused(code)
    assert {name: (copy.run / name).read_bytes() for name in copy.files()} == before


def test_overwrite_of_a_folder_that_is_no_run_is_refused(project: Project) -> None:
    project.run.mkdir()
    (project.run / "model.json").write_text("mine")
    project.train("--overwrite").refused(1, str(project.run), "no run")
    assert (project.run / "model.json").read_text() == "mine" and len(project.files()) == 1


def test_overwrite_never_replaces_the_configuration_it_was_given(project: Project) -> None:
    """A folder with a config.toml of the user's own looks like a run."""
    own = project.folder / "config.toml"
    own.write_text(CONFIG)
    llueve("train", own, "--run", project.folder, "--overwrite").refused(2, str(own), "lies in the run directory")
    assert own.read_text() == CONFIG


def test_an_empty_folder_is_free(project: Project) -> None:
    project.run.mkdir()
    project.train_with("windows.context=500").refused(4)


def test_a_file_in_the_place_of_the_run(project: Project) -> None:
    project.run.write_text("mine")
    project.train("--overwrite").refused(1, str(project.run), "is a file")
    assert project.run.read_text() == "mine"


def read_only(*_: Any, **__: Any) -> NoReturn:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_run_directory_that_cannot_be_made(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "mkdir", read_only)
    project.train().refused(1, str(project.run), "cannot be written (Read-only file system)", "--run")


def test_weights_that_cannot_be_written(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def opened(path: Any, *arguments: Any, **keywords: Any) -> int:
        return read_only() if "model.safetensors" in str(path) else real(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", opened)
    project.train_with("train.epochs=1").refused(1, str(project.run), "cannot be written (Read-only file system)")
    assert project.files() == {"config.toml", "audit.json", "history.jsonl", "checkpoints"}  # to resume from


def test_a_place_in_the_way_of_the_weights(copy: Project) -> None:
    before = {name: (copy.run / name).read_bytes() for name in copy.files()}
    place = copy.run / "unfinished" / ".model.safetensors.part"
    place.mkdir(parents=True)
    shutil.copy(copy.run / "config.toml", place.parent)
    copy.train("--overwrite", "--set", "train.epochs=1").refused(1, str(copy.run), "cannot be written")
    assert {name: (copy.run / name).read_bytes() for name in copy.files() - {"unfinished"}} == before
    place.rmdir()
    copy.train("--resume", "--set", "train.epochs=1").fine()
    assert copy.files() == {*before}


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 64 kB in memory, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_really_read_only(project: Project, mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
    llueve("train", project.config, "--run", mounted / "run").refused(1, "Read-only file system")


def test_a_disk_that_is_full_when_the_weights_come(project: Project, mounted: Path) -> None:
    run = mounted / "run"
    width = ("--set", "model.width=64", "--set", "model.feed_forward=64", "--set", "train.epochs=1")
    llueve("train", project.config, "--run", run, *width).refused(1, str(run), "No space left on device")
    assert {path.name for path in run.iterdir()} <= {"audit.json", "config.toml", "history.jsonl", "checkpoints"}
    assert not list(run.rglob("*.part"))


# Damaged runs


def test_a_folder_that_is_no_run(tmp_path: Path, unlabelled: Path) -> None:
    llueve("evaluate", tmp_path).refused(1, str(tmp_path), "is not a run directory")
    llueve("predict", tmp_path / "nothing", unlabelled).refused(1, "is not a run directory")


@pytest.mark.parametrize("name", ["model.safetensors", "model.json"])
def test_a_run_that_did_not_finish(copy: Project, name: str) -> None:
    (copy.run / name).unlink()
    llueve("evaluate", copy.run).refused(1, f"has no {name}", "did not finish")


@pytest.mark.parametrize("left", [0, 7, 200, -1], ids=["empty", "header", "middle", "last byte"])
def test_torn_weights(copy: Project, unlabelled: Path, left: int) -> None:
    weights = copy.run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:left])
    llueve("predict", copy.run, unlabelled).refused(1, "model.safetensors")


def test_weights_of_another_architecture(copy: Project) -> None:
    model = copy.json("model.json")
    model["model"]["width"] = 16
    (copy.run / "model.json").write_text(json.dumps(model))
    llueve("evaluate", copy.run).refused(1, "model.json", "does not belong to these weights")


def test_weights_that_are_not_finite(copy: Project, unlabelled: Path) -> None:
    weights = load_file(copy.run / "model.safetensors")
    weights["head.out.bias"][0] = math.nan
    (copy.run / "model.safetensors").write_bytes(save(weights))
    llueve("predict", copy.run, unlabelled).refused(1, "not finite in head.out.bias")


@pytest.mark.parametrize("length", [1, 3])
def test_a_scale_of_another_number_of_variables(copy: Project, length: int) -> None:
    model = copy.json("model.json")
    model["scaler"]["mean"] = [0.0] * length
    (copy.run / "model.json").write_text(json.dumps(model))
    llueve("evaluate", copy.run).refused(1, "model.json")


def test_a_torn_description(copy: Project) -> None:
    description = copy.run / "model.json"
    description.write_text(description.read_text()[:100])
    llueve("evaluate", copy.run).refused(1, "model.json", "is damaged")


@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_a_description_that_is_no_object(copy: Project, content: str) -> None:
    (copy.run / "model.json").write_text(content)
    llueve("evaluate", copy.run).refused(1, "model.json")


def test_a_description_that_is_not_text(copy: Project) -> None:
    (copy.run / "model.json").write_bytes(b"\xff\xfe\x00")
    llueve("evaluate", copy.run).refused(1, "model.json", "is damaged")


@pytest.mark.parametrize("key", ["model", "scaler", "variables", "statics", "classes", "context", "split"])
def test_a_description_that_lacks_a_part(copy: Project, key: str) -> None:
    model = copy.json("model.json")
    del model[key]
    (copy.run / "model.json").write_text(json.dumps(model))
    llueve("evaluate", copy.run).refused(1, "model.json", key)


def test_a_description_with_a_part_too_many(copy: Project) -> None:
    (copy.run / "model.json").write_text(json.dumps({**copy.json("model.json"), "colour": "blue"}))
    llueve("evaluate", copy.run).refused(1, "model.json", "colour")


def test_a_description_of_another_version(copy: Project) -> None:
    (copy.run / "model.json").write_text(json.dumps({**copy.json("model.json"), "format": 1}))
    llueve("evaluate", copy.run).refused(1, "model.json", "another version of llueve")


def test_evaluate_without_the_table(copy: Project) -> None:
    config = copy.run / "config.toml"
    config.write_text(config.read_text().replace("table.csv", "gone.csv"))
    llueve("evaluate", copy.run).refused(1, "gone.csv", "no such file")


def test_colons_of_a_message_are_text_not_pictures(tmp_path: Path) -> None:
    llueve("config", "check", tmp_path / ":x:.toml").refused(2, ":x:.toml")


def test_sigterm_ends_as_an_exception_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Context managers clean up: unpacked files leave the temporary folder."""
    left = []

    def work() -> None:
        with tempfile.TemporaryDirectory(prefix="llueve-") as folder:
            left.append(Path(folder))
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "app", work)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 143 and not left[0].exists() and signal.getsignal(signal.SIGTERM) is before


class Lost(WorkerLost):
    """An error whose message takes so long that a signal arrives."""

    def __str__(self) -> str:
        end_by_torchrun()
        return "another process was lost"


def end_by_torchrun() -> None:
    """Send this process the signal that torchrun sends as soon as another process has ended."""
    os.kill(os.getpid(), signal.SIGTERM)


def raise_and_clean_up() -> NoReturn:
    try:
        raise WorkerLost("another process was lost")
    finally:
        end_by_torchrun()


def raise_and_clean_up_twice() -> NoReturn:
    try:
        raise_and_clean_up()
    finally:
        with suppress(KeyError):
            try:
                {}["absent"]
            finally:
                end_by_torchrun()


def raise_while_an_exit_is_handled() -> NoReturn:
    try:
        sys.exit(0)
    finally:
        raise_and_clean_up()


def raise_with_a_slow_message() -> NoReturn:
    raise Lost


@pytest.mark.parametrize(
    "command",
    [raise_and_clean_up, raise_and_clean_up_twice, raise_while_an_exit_is_handled, raise_with_a_slow_message],
)
def test_an_error_under_torchrun_keeps_its_exit_code_when_torchrun_ends_the_process(
    command: Callable[[], NoReturn], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0", **address}.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main(command)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # until Python has ended
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 1
    assert capsys.readouterr().err.count("error: another process was lost") == 1


def test_predict_keeps_an_address_as_it_is(done: Project) -> None:
    llueve("predict", done.run, "gs://nowhere/era5.zarr").refused(
        1, "gs://nowhere/era5.zarr: data.site does not apply to an ERA5 archive"
    )
