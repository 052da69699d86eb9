"""The case that llueve was born from, as the original code saw it: every step refused, and why; with masks, none.

The five regions of the table stand one below the other, and windows of 1440 steps were cut across them. Each region's first
one to six rows lack what eleven columns say of earlier days, so nearly every window holds such a cell, and every batch does.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from llueve import pipeline
from llueve.cli import main as cli
from llueve.config import load_config
from llueve.errors import GuardStop

EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS = 2190
"""Of one region."""
START = np.datetime64("2000-01-01T06:00:00")
STEP = np.timedelta64(12, "h")
LACKING = {
    **{f"{name}_lag_{days}d": 2 * days for name in ("tp", "t2m", "tcwv") for days in (1, 2, 3)},
    **{f"{name}_rolling_std_7d": 1 for name in ("tp", "t2m")},
}
"""Columns, and how many of a region's first rows lack them."""
INSIDE = (1, 2, 3)
"""Regions that begin inside the training windows: the first begins before nearly all of them, the fifth behind the cut."""


def moment(row: int) -> str:
    return str(START + row * STEP)


@pytest.fixture(scope="module")
def laid_end_to_end(tmp_path_factory):
    """The table as one site, in consecutive artificial times."""
    path = Path(__file__).parents[3] / "shared" / "data" / "seed_case" / "peru_rainfall.csv"
    if not path.exists():
        pytest.skip(f"{path} is absent: this test reads real data that the repository does not carry")
    table = pd.read_csv(path)
    table["region"] = "peru"
    table["timestamp"] = START + np.arange(len(table)) * STEP
    target = tmp_path_factory.mktemp("seed") / "end_to_end.csv"
    table.to_csv(target, index=False)
    return target


def settings(table: Path, missing: str, *more: str):
    changes = (
        f"data.path={table}",
        f"split.validation_start={moment(9104)}",
        f"split.test_start={moment(10700)}",
        "windows.context=1440",
        f"windows.missing={missing}",
        "model.patch_length=240",
        "model.width=8",
        "model.layers=1",
        "model.heads=2",
        "model.feed_forward=8",
        "train.epochs=1",
        "train.batch_size=16",
        "train.precision=float32",
        "train.linear_start=false",
        "train.forecast_weight=0",
        "verify.bootstrap=100",
        "verify.lags=[1]",
    )
    return load_config(EXAMPLES / "seed_case.toml", (*changes, *more))


@pytest.fixture(scope="module")
def refused(laid_end_to_end, tmp_path_factory):
    """The run directory of an epoch without masks, in which the guard may skip everything."""
    config = settings(laid_end_to_end, "raw", "guard.max_skipped=1", 'guard.policy="skip"')
    run = tmp_path_factory.mktemp("seed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llueve.stability.incidents.write.MOST", 6)  # each is explained by thirty steps
        with pytest.raises(GuardStop, match="validation loss was never finite"):
            pipeline.train(config, run, console=Console(quiet=True))
    return run


def llueve(capsys, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["llueve", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
    assert not caught.value.code
    return capsys.readouterr().out


def test_every_one_of_389_steps_is_refused_and_all_by_the_same_cells(refused, capsys):
    lines = [json.loads(text) for text in (refused / "history.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if "event" not in line]
    assert (line["steps"], line["refused"]) == (389, 389)
    assert sum(line.get("event") == "refused" for line in lines) == 389

    told = json.loads(llueve(capsys, "incident", "explain", refused, "--all", "--json"))
    assert told["sentence"] == {
        "en": "389 of 389 steps of 1 epoch were refused; 6 were kept, all of them: missing_input",
        "es": "389 de 389 pasos de 1 época fueron rechazados; se guardaron 6, todos por: missing_input",
    }
    assert [(each["cause"], each["incidents"]) for each in told["causes"]] == [("missing_input", 6)]

    # The eleven columns, and the first steps of each region; of the first region what a window happens to begin with.
    assert {each["variable"] for each in told["cells"]} == set(LACKING)
    for each in told["cells"]:
        rows = LACKING[each["variable"]]
        later = [stretch for stretch in each["stretches"] if stretch[0] >= moment(ROWS)]
        assert later == [[moment(ROWS * r), moment(ROWS * r + rows - 1)] for r in INSIDE]
        assert all(stretch[1] == moment(rows - 1) for stretch in each["stretches"] if stretch not in later)
        assert each["count"] - len(INSIDE) * rows <= rows

    # Masking those cells cures each step; what the note suspected cures none.
    experiments = {each["words"]["en"]: (each["tried"], each["cured"]) for each in told["experiments"]}
    assert experiments["missing and infinite cells masked"] == (6, 6)
    assert {change for change, (_, cured) in experiments.items() if cured} == {
        "missing and infinite cells masked",
        "without samples",
    }
    for suspect in (
        "learning rates divided by 10",
        "learning rates divided by 100",
        "new head",
        "gradients clipped at 0.1",
        "new encoder, no pre-trained weights",
    ):
        assert experiments[suspect] == (6, 0)


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("en", ("389 of 389 steps", "Cause: missing_input: cells without a value", "tp_lag_3d")),
        ("es", ("389 de 389 pasos", "Causa: missing_input: celdas sin valor", "curó")),
    ],
)
def test_the_same_for_a_reader(refused, capsys, monkeypatch, language, words):
    monkeypatch.setenv("COLUMNS", "200")
    shown = llueve(capsys, "incident", "explain", refused, "--all", "--language", language)
    assert all(word in shown for word in words)


def test_with_masks_no_step_is_refused(laid_end_to_end, tmp_path):
    pipeline.train(settings(laid_end_to_end, "mask"), tmp_path / "run", console=Console(quiet=True))
    *_, line = [json.loads(text) for text in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert (line["steps"], line["refused"], line["skipped"]) == (389, 0, 0)
    assert not (tmp_path / "run" / "incidents").exists()
