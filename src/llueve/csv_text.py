"""Text cells of the CSV files that llueve writes: a spreadsheet must not run them as formulas.

A spreadsheet takes a cell that begins with `=`, `+`, `-`, `@`, a tab or a line end for a formula. Such a text is written
after an apostrophe, and the reader of tables takes the apostrophe away. Numbers, such as `-3.5`, stay as they are.
"""

import re

import pandas as pd

FORMULA = re.compile(r"'*[=+\-@\t\r\n]")
QUOTED_FORMULA = re.compile(r"'+[=+\-@\t\r\n]")
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def as_cell(text: str) -> str:
    """The text as llueve writes it into a CSV file."""
    return f"'{text}" if FORMULA.match(text) and not NUMBER.fullmatch(text) else text


def from_cell(cell: str) -> str:
    """The text of a cell of a CSV file: `from_cell(as_cell(text)) == text`."""
    return cell[1:] if QUOTED_FORMULA.match(cell) else cell


def with_safe_sites(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with its column `site`, if it has one, as llueve writes it into a CSV file."""
    if "site" not in frame:
        return frame
    return frame.assign(site=frame["site"].map({name: as_cell(str(name)) for name in frame["site"].unique()}))
