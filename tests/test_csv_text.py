"""Names of sites in the CSV files that llueve writes: no spreadsheet runs them, and llueve reads them back."""

import csv
import io
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llueve.config import DataConfig
from llueve.csv_text import as_cell, from_cell, with_safe_sites
from llueve.sources.tables.table import read_table

FORMULAS = ["=1+1", "=cmd|' /C calc'!A0", "+cmd", "-cmd", "@SUM(A1)", "\t=1", "\r=1", "-1+2", "'=1", "''@x"]


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_is_written_after_an_apostrophe(name: str) -> None:
    assert as_cell(name) == f"'{name}" and from_cell(as_cell(name)) == name


@pytest.mark.parametrize("text", ["-3.5", "+2", "-1e-5", "Lima", "Saint-Denis", "'s-Hertogenbosch", "", "0"])
def test_numbers_and_plain_names_stay_as_they_are(text: str) -> None:
    assert as_cell(text) == text and from_cell(text) == text


@given(st.text())
def test_every_name_comes_back(name: str) -> None:
    assert from_cell(as_cell(name)) == name


def test_a_written_table_is_read_back_with_the_same_names(tmp_path: Path) -> None:
    names = [name for name in FORMULAS if name == name.strip()]
    frame = pd.DataFrame(
        {"site": names * 2, "time": ["2024-01-01"] * len(names) + ["2024-01-02"] * len(names), "change": -1.5}
    )
    text = with_safe_sites(frame).to_csv(index=False)
    cells = [row["site"] for row in csv.DictReader(io.StringIO(text))]
    assert all(cell.startswith("'") for cell in cells) and "-1.5" in text and "'-1.5" not in text
    (tmp_path / "table.csv").write_text(text)
    panel = read_table(DataConfig(path=str(tmp_path / "table.csv"), site="site"), None)
    assert panel["site"].values.tolist() == sorted(names)
