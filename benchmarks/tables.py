"""Time of reading and auditing large tables: many columns, many rows, many sites.

    python benchmarks/tables.py                  # the tables below
    python benchmarks/tables.py --columns 2000 --rows 1000 --sites 1

Each table is CSV with random numbers, written into a temporary folder. The time has to grow with the number of cells, not
with the square of the columns or the sites. The target is 10 s for 10,000 columns of 1,000 rows.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from llueve.audit import audit_panel
from llueve.config import parse_config
from llueve.samples.read import read_panel

TABLES = ((1_000, 1_000, 1), (10_000, 1_000, 1), (100_000, 20, 1), (3, 60, 10_000))
"""Columns, rows of each site, and sites."""


def write(path: Path, columns: int, rows: int, sites: int) -> None:
    """A table with the columns site, time, rain and as many others as asked for."""
    random = np.random.default_rng(0)
    days = np.datetime64("2020-01-01") + np.arange(rows)
    with path.open("w") as file:
        file.write(",".join(["site", "time", "rain", *(f"v{number}" for number in range(columns - 1))]) + "\n")
        for site in range(sites):
            numbers = random.normal(size=(rows, columns - 1)).round(3).astype(str)
            rain = np.where(random.random(rows) < 0.4, random.gamma(1, 4, rows), 0).round(1)
            for day, amount, row in zip(days, rain, numbers, strict=True):
                file.write(",".join([f"s{site}", str(day), str(amount), *row]) + "\n")


def measured(columns: int, rows: int, sites: int) -> tuple[float, float]:
    """Seconds of reading and of the audit."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write(path, columns, rows, sites)
        config = parse_config(
            {
                "data": {"path": str(path), "site": "site", "units": {"rain": "mm"}},
                "target": {"variable": "rain", "threshold_mm": 1.0},
                "split": {"validation_fraction": 0.2, "test_fraction": 0.2},
                "windows": {"context": 4},
            },
            where="benchmark",
        )
        start = time.perf_counter()
        panel = read_panel(config)
        read = time.perf_counter()
        audit_panel(panel, config)
        return read - start, time.perf_counter() - read


def main() -> None:
    """Measure one table, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("columns", "rows", "sites"):
        parser.add_argument(f"--{name}", type=int)
    given = parser.parse_args()
    tables = TABLES if given.columns is None else ((given.columns, given.rows or 1_000, given.sites or 1),)
    for columns, rows, sites in tables:
        read, audit = measured(columns, rows, sites)
        print(f"{columns:,} columns × {rows:,} rows × {sites:,} sites: read {read:.1f} s, audit {audit:.1f} s")


if __name__ == "__main__":
    main()
