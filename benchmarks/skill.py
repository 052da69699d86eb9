"""The tables of skill in docs/results.md: `python -m benchmarks.skill weather_aus --seeds 0 1 2`.

Each run is one `llueve train` in a process of its own, with its time and peak memory. BSS is against EPC15, as in
`verification.json`; BSS_m is against the training frequency of each station and calendar month.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llueve.config import Config, load_config
from llueve.csv_text import with_safe_sites
from llueve.samples.read import read_panel
from llueve.samples.split import split_panel

EXAMPLES = Path(__file__).parents[1] / "examples"
COLUMNS = ("brier", "bss", "log_score", "auc")


def monthly_frequency(config: Config) -> pd.DataFrame:
    """Training frequency of the event by site and calendar month: columns site, month, frequency."""
    panel = read_panel(config)
    part = split_panel(panel, config).training
    rows = pd.DataFrame(
        {
            "site": panel["site"].values[part.site],
            "month": pd.DatetimeIndex(panel["time"].values[part.end]).month,
            "frequency": part.y == config.target.event_index,
        }
    )
    return with_safe_sites(rows.groupby(["site", "month"], as_index=False)["frequency"].mean())


def brier_by_month(predictions: pd.DataFrame, frequency: pd.DataFrame) -> float:
    """Brier score of the monthly frequency on the test period; a month without training has the mean of its site."""
    month = pd.to_datetime(predictions["time"]).dt.month
    rows = predictions[["site", "observed"]].assign(month=month).merge(frequency, on=["site", "month"], how="left")
    mean = rows["site"].map(frequency.groupby("site")["frequency"].mean())
    return float(np.square(rows["frequency"].fillna(mean) - rows["observed"]).mean())


def run(config: Path, overrides: list[str], folder: Path) -> dict[str, Any]:
    """One training and verification, as a user does it."""
    settings = [part for override in overrides for part in ("--set", override)]
    started = time.perf_counter()
    command = [sys.executable, "-m", "llueve", "train", str(config), "--run", str(folder), *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((folder / "verification.json").read_text())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {**found, "seconds": time.perf_counter() - started, "peak_mib": peak}


def row(name: str, scores: dict[str, Any], reference: float, *cells: str) -> str:
    """A line of the table."""
    values = " | ".join("–" if scores[key] is None else f"{scores[key]:.4f}" for key in COLUMNS)
    return f"| {name} | {values} | {1 - scores['brier'] / reference:.4f} | {' | '.join(cells)} |"


def main() -> None:
    """Train, verify, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("example", help="name of a file in examples/ without .toml, or the path of a configuration")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    path = Path(given.example) if given.example.endswith(".toml") else EXAMPLES / f"{given.example}.toml"
    frequency = monthly_frequency(load_config(path, given.overrides))
    print("| | Brier | BSS | log score | AUC | BSS_m | MCB / Brier | ECE | verdict |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    means: list[NDArray[np.float64]] = []
    probabilities: list[NDArray[np.float64]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in given.seeds:
            folder = Path(temporary) / str(seed)
            found = run(path, [*given.overrides, f"train.seed={seed}"], folder)
            predictions = pd.read_csv(folder / "predictions.csv")
            probabilities.append(predictions["probability"].to_numpy())
            reference = brier_by_month(predictions, frequency)
            model = found["model"]
            verdict = f"{found['verdict_code']}, {found['seconds']:.0f} s, {found['peak_mib']:.0f} MiB"
            calibration = (f"{model['mcb'] / model['brier']:.2%}", f"{model['ece']:.4f}")
            print(row(f"llueve, seed {seed}", model, reference, *calibration, verdict), flush=True)
            means.append(np.array([*(model[key] for key in COLUMNS), 1 - model["brier"] / reference], np.float64))
            if seed == given.seeds[-1]:
                for name, scores in found["references"].items():
                    versus = found["comparisons"][name]
                    skill = "–" if versus["skill"] is None else f"skill of the model over it {versus['skill']:+.3f}"
                    if versus.get("skill_interval"):
                        skill += " ({:+.3f} to {:+.3f})".format(*versus["skill_interval"])
                    print(row(name, scores, reference, "", "", skill))
    if len(means) > 1:
        names = ("Brier", "BSS", "log score", "AUC", "BSS_m")
        print("mean of seeds:", ", ".join(f"{n} {v:.4f}" for n, v in zip(names, np.mean(means, axis=0), strict=True)))
        brier = float(np.square(np.mean(probabilities, axis=0) - predictions["observed"]).mean())
        print(f"mean of their probabilities: Brier {brier:.4f}, BSS_m {1 - brier / reference:.4f}")


if __name__ == "__main__":
    main()
