"""Anybody's forecasts in a table are verified like those of a run, and a bad row is named."""

import io
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from llueve.config import VerifyConfig
from llueve.errors import DataError
from llueve.verification.bootstrap import DateBlocks
from llueve.verification.given_forecasts import read_forecasts, verify_file
from llueve.verification.score_table import render
from llueve.verification.verify import judged

sys.path.insert(0, str(Path(__file__).parent))
from forecast_cases import noisy_forecasts

SETTINGS = VerifyConfig(bootstrap=100)


def as_table(forecasts, **changes) -> pd.DataFrame:
    columns = {
        "site": np.array(forecasts.sites)[forecasts.site_n],
        "time": forecasts.issued_n,
        "observed": forecasts.y_n,
        "probability": forecasts.model_p,
        **forecasts.reference_p,
    }
    return pd.DataFrame({**columns, **changes})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.csv"
    as_table(noisy_forecasts()).to_csv(path, index=False)
    return path


def test_a_file_gives_the_numbers_of_its_forecasts(file: Path) -> None:
    forecasts = noisy_forecasts()
    expected = judged(forecasts, DateBlocks.of(forecasts.issued_n, 7, None, 100, 0), [])
    found = verify_file(file, SETTINGS)
    lead = found["groups"].pop("lead"), expected["groups"].pop("lead")
    assert lead[0][0] == lead[1][0] | {"name": "unknown"}
    assert found.pop("settings") == {"bootstrap": 100, "block_days": 7, "lags": None} and found.pop("classes") is None
    assert found == expected | {"part": "mine.csv"}
    assert found["verdict_code"] == "beats"
    assert found["verdict"].startswith("The model beats climatology, the best of the two references: Brier 0.")


def test_parquet_quoted_sites_and_times_with_an_offset_are_read(tmp_path: Path) -> None:
    forecasts = noisy_forecasts(sites=2)
    table = as_table(forecasts, site=np.array(["=1+1", "Lima"])[forecasts.site_n])
    table.to_parquet(tmp_path / "mine.parquet")
    assert read_forecasts(tmp_path / "mine.parquet").sites == ["=1+1", "Lima"]
    written = table.assign(site=table["site"].replace("=1+1", "'=1+1"), time=table["time"].astype(str) + "T01:00+01:00")
    written.to_csv(tmp_path / "mine.csv", index=False)
    found = read_forecasts(tmp_path / "mine.csv")
    assert found.sites == ["=1+1", "Lima"] and (found.issued_n == forecasts.issued_n).all()


def test_without_references_nothing_is_compared(tmp_path: Path) -> None:
    forecasts = noisy_forecasts(sites=1)
    as_table(forecasts)[["time", "observed", "probability"]].to_csv(tmp_path / "mine.csv", index=False)
    found = verify_file(tmp_path / "mine.csv", SETTINGS)
    assert found["verdict_code"] == "no_reference" and found["references"] == found["comparisons"] == {}
    assert found["model"]["bss"] is None and found["intervals"]["bss"] is None
    assert found["comparison"]["best_reference"] is None and found["intervals"]["brier"] is not None
    assert found["verdict"].startswith("No comparison, since no reference forecast is given: Brier 0.")
    assert "better than a constant at the period's own rate" in found["verdict"]


def test_names_of_files_and_references_are_shown_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "mine[b].csv"
    as_table(noisy_forecasts()).rename(columns={"weaker": "x[bold]y[a"}).to_csv(path, index=False)
    console = Console(file=io.StringIO(), width=100)
    console.print(render(verify_file(path, SETTINGS)))
    shown = console.file.getvalue()
    assert "mine[b].csv: 360 forecasts" in shown and "x[bold]y[a" in shown


def test_one_reference_without_climatology(tmp_path: Path) -> None:
    as_table(noisy_forecasts()).drop(columns="climatology").to_csv(tmp_path / "mine.csv", index=False)
    found = verify_file(tmp_path / "mine.csv", SETTINGS)
    assert found["verdict"].startswith("The model beats weaker, the only reference:") and "BSS" not in found["verdict"]


def test_few_events_are_said_with_fitting_advice(tmp_path: Path) -> None:
    as_table(noisy_forecasts(), observed=0).to_csv(tmp_path / "mine.csv", index=False)
    found = verify_file(tmp_path / "mine.csv", SETTINGS)
    assert found["verdict_code"] == "too_few_events"
    assert "give more forecasts" in found["verdict"] and "[split]" not in found["verdict"]


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        (
            "probability",
            "1.2",
            "row 5, column 'probability': '1.2' is not a probability from 0 to 1; correct or remove it",
        ),
        ("probability", "", "row 5, column 'probability': '' is not a probability"),
        ("probability", "nan", "row 5, column 'probability': 'nan' is not"),
        ("probability", "inf", "row 5, column 'probability': 'inf' is not"),
        ("probability", "30 %", "row 5, column 'probability': '30 %' is not"),
        ("observed", "0.5", "row 5, column 'observed': '0.5' is not 1 (the event happened) or 0"),
        ("observed", "", "row 5, column 'observed': '' is not 1"),
        ("observed", "yes", "row 5, column 'observed': 'yes' is not 1"),
        (
            "climatology",
            "-0.1",
            "row 5, column 'climatology': '-0.1' is not a probability from 0 to 1; correct or remove it (every",
        ),
        ("time", "yesterday", "row 5, column 'time': 'yesterday' is not a time in ISO 8601, such as 2024-01-31T06:00"),
        ("time", "", "row 5, column 'time': '' is not a time"),
        ("time", "9999-01-01", "row 5, column 'time': '9999-01-01' is not a time"),
        ("site", "", "is missing in 1 of 360 rows (row 5)"),
        ("time", "2015-01-02", "rows 3, 5 have the same site and time 2015-01-02 00:00"),
    ],
)
def test_a_bad_cell_is_named(file: Path, column: str, cell: str, message: str) -> None:
    table = pd.read_csv(file, dtype=str)
    table.loc[3, column] = cell
    table.to_csv(file, index=False)
    with pytest.raises(DataError) as caught:
        verify_file(file, SETTINGS)
    assert str(caught.value).startswith(str(file)) and message in str(caught.value)


def test_further_bad_cells_are_counted(file: Path) -> None:
    table = pd.read_csv(file, dtype=str)
    table.loc[[3, 5, 8], "probability"] = "x"
    table.to_csv(file, index=False)
    with pytest.raises(DataError, match=r"row 5, column 'probability': 'x' .*, and 2 more rows are wrong"):
        verify_file(file, SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda table: table.drop(columns="observed"),
            "has no column observed, found site, time, probability, climatology",
        ),
        (lambda table: table.rename(columns={"time": "date"}), "has no column time"),
        (lambda table: table.rename(columns={"weaker": "model"}), "a reference cannot be named model"),
        (lambda table: table.iloc[:0], "but no rows"),
        (lambda table: table.assign(**{f"r{i}": 0.5 for i in range(60)}), "has 62 references, expected at most 50"),
    ],
    ids=["no outcome", "no time", "own name", "no row", "many"],
)
def test_a_file_of_another_form_is_refused(file: Path, change, message: str) -> None:
    change(pd.read_csv(file)).to_csv(file, index=False)
    with pytest.raises(DataError, match=message):
        verify_file(file, SETTINGS)


def test_a_file_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.csv: cannot be read .No such file or directory.; give the path"):
        verify_file(tmp_path / "gone.csv", SETTINGS)
