"""Kills of trainings at random moments, each resumed to its end and compared with an uninterrupted run.

    python -m benchmarks.kills [--kills 100] [--seed 0] [--only TEXT] [--tiny] [--json FILE]

Run it from the root of the repository. Every recipe is trained with both heads, and on scenes
(`together`), in three ways:

    alone       one process; after a kill the command is given again with --resume.
    overwrite   the same over an earlier run, whose files must be unchanged as long as the new run is not finished.
    torchrun    two processes; torchrun restarts both after one of them was killed.

A kill is SIGKILL, at a moment drawn uniformly from the duration of the uninterrupted run. In the ways `alone` and
`overwrite`, the processes are forked from this one, which has imported torch but trained nothing. At the end every file of
the run directory is compared byte by byte, without the seconds in `history.jsonl`. With --tiny there is one kill for each
recipe and head, without torchrun.
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np
import pandas as pd
import torch

with suppress(ImportError):  # xarray imports it, if it is there; before the forks that is done once
    import dask.array  # noqa: F401

from benchmarks import measure
from llueve import pipeline  # noqa: F401 (imported before the forks)
from llueve.cli import main as cli
from llueve.runs.directory import CONFIG, HISTORY, UNFINISHED

RECIPES, HEADS, WAYS = (
    ("plain", "default", "conservative", "scratch"),
    ("variables", "mean", "together"),
    ("torchrun", "alone", "overwrite"),
)
CONFIGURATION = """
[data]
path = "table.csv"
site = "site"
position_columns = ["latitude", "longitude"]
[target]
label = "rain"
[split]
validation_fraction = 0.2
test_fraction = 0.2
[windows]
context = 8
[model]
patch_length = 4
width = 16
layers = 2
heads = 2
feed_forward = 16
site_layers = 2
site_width = 16
site_heads = 2
sites_per_scene = 3
[train]
epochs = 2
patience = 2
batch_size = 32
average_decay = 0.9
[checkpoints]
steps = 2
[verify]
bootstrap = 100
"""
MOST_RESTARTS, TORCHRUN_KILLS = 20, 2
"""Restarts that torchrun may do, and kills in a run under it: each start takes several seconds."""
WORKER = """
import os, sys
from pathlib import Path
place = Path(os.environ["KILLS"], os.environ["RANK"])
place.with_suffix(".new").write_text(f"{os.getpid()} {os.environ['TORCHELASTIC_RESTART_COUNT']}")
place.with_suffix(".new").replace(place)
import torch
torch.set_num_threads(1)
from llueve.cli import main as cli
sys.argv[0] = "llueve"
cli.main()
"""
"""A process of torchrun, which first writes its number and that of its start."""


@dataclass
class Cell:
    """One recipe, head and way, with the outcome of its kills."""

    recipe: str
    head: str
    way: str
    folder: Path
    kills: int = 0
    runs: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name in the table and for --only."""
        return f"{self.recipe}, {self.head}, {self.way}"

    def command(self, run: Path, *more: str) -> list[str]:
        """Arguments of the training."""
        keys = [f"train.recipe={self.recipe}", "train.seed=1"]
        if self.head == "together":
            keys += ["model.sites=together", "train.forecast_weight=0.3", "train.batch_size=8"]
        else:
            keys += ["model.sites=alone", f"model.head={self.head}"]
        config = self.folder.parent / "config.toml"
        return ["train", str(config), "-r", str(run), *(part for key in keys for part in ("--set", key)), *more]


def write_table(folder: Path, days: int) -> None:
    """Daily rows at four sites, some of them absent, and the configuration."""
    random, frames = np.random.default_rng(3), []
    for number, site in enumerate("abcd"):
        wet = np.convolve(random.standard_normal(days), np.ones(5) / 5, mode="same")
        columns = {
            "site": site,
            "time": pd.date_range("2020-01-01", periods=days, freq="D"),
            "latitude": 2.0 * number,
            "longitude": -60.0 + number**2,
            "humidity": wet + 0.3 * random.standard_normal(days),
            "pressure": random.standard_normal(days),
            "rain": (np.roll(wet, -1) > 0.1).astype(int),
        }
        frames.append(pd.DataFrame(columns)[random.random(days) > 0.05])
    pd.concat(frames).to_csv(folder / "table.csv", index=False)
    (folder / "config.toml").write_text(CONFIGURATION, encoding="utf-8")
    (folder / "worker.py").write_text(WORKER, encoding="utf-8")


def fork(arguments: list[str], log: Path) -> int:
    """Start the command line in a forked process; returns its number."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        with log.open("a", encoding="utf-8") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        torch.set_num_threads(1)
        sys.argv = ["llueve", *arguments]
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def attempt(arguments: list[str], log: Path, after_s: float | None) -> int | None:
    """Run a command and kill it after some seconds; returns None if it was killed, or else its exit code."""
    pid, end = fork(arguments, log), None if after_s is None else time.monotonic() + after_s
    while end is not None and time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0005)
    if end is not None:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return None if code == -signal.SIGKILL else code


def content(run: Path) -> dict[str, bytes]:
    """Every file of a run directory; the history without its seconds."""
    found = {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    lines = [json.loads(line) for line in found.get(HISTORY, b"").splitlines()]
    found[HISTORY] = json.dumps([{**line, "seconds": None} for line in lines]).encode()
    return found


def compare(cell: Cell, run: Path, whole: Path) -> None:
    """Note the files in which a finished run differs from the uninterrupted one."""
    cell.runs += 1
    one, other = content(run), content(whole)
    if different := sorted(name for name in {*one, *other} if one.get(name) != other.get(name)):
        cell.faults.append(f"{run.name} differs in {', '.join(different)}")


def kill_forks(cell: Cell, kills: int, random: np.random.Generator) -> None:
    """Kill trainings of one process, alone or over an earlier run."""
    whole, log, earlier = cell.folder / "whole", cell.folder / "log", cell.folder.parent / "earlier"
    start = time.monotonic()
    if attempt(cell.command(whole), log, None) != 0:
        cell.faults.append(f"the uninterrupted run failed: {log.read_text()[-500:]}")
        return
    duration_s = time.monotonic() - start
    before = content(earlier)
    while cell.kills < kills and not cell.faults:
        run, code = cell.folder / f"run{cell.runs}", None
        if cell.way == "overwrite":
            shutil.copytree(earlier, run)
        while code is None:
            begun = cell.way == "alone" or is_replacing(run, earlier)
            arguments = cell.command(run, "--resume" if begun else "--overwrite")
            after_s = random.uniform(0, duration_s) if cell.kills < kills else None
            code = attempt(arguments, log, after_s)
            cell.kills += code is None
            if cell.way == "overwrite" and (run / UNFINISHED).exists():
                kept = {name: each for name, each in content(run).items() if not name.startswith(f"{UNFINISHED}/")}
                if {name: each for name, each in kept.items() if name != ".lock"} != before:
                    cell.faults.append(f"{run.name}: the earlier run has changed")
        if code:
            cell.faults.append(f"{run.name}: exit code {code}: {log.read_text()[-500:]}")
        else:
            compare(cell, run, whole)


def is_replacing(run: Path, earlier: Path) -> bool:
    """True if a new run has begun in a directory that held an earlier one."""
    config = run / CONFIG
    return (
        (run / UNFINISHED / CONFIG).is_file()
        or not config.is_file()
        or config.read_bytes() != (earlier / CONFIG).read_bytes()
    )


def kill_torchrun(cell: Cell, kills: int, random: np.random.Generator) -> None:
    """Kill one of two processes again and again; torchrun restarts both."""
    duration_s = 0.0
    for name, count in (("whole", 0), ("run", kills)):
        numbers = cell.folder / f"{name}.processes"
        numbers.mkdir()
        log = cell.folder / f"{name}.log"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        options = [f"--max-restarts={MOST_RESTARTS}", "--monitor-interval=0.1", "--shutdown-timeout=3"]
        worker = [str(cell.folder.parent / "worker.py"), "--", *cell.command(cell.folder / name)]
        with log.open("w", encoding="utf-8") as file:
            job = subprocess.Popen(
                [*launcher, *options, *worker],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "KILLS": str(numbers)},
            )
            for pid in generations(job, numbers, count, random):
                time.sleep(random.uniform(0, duration_s))
                if job.poll() is None:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        break  # it has finished
                    cell.kills += 1
            code = job.wait()
        duration_s = time.time() - (numbers / "0").stat().st_mtime  # from the start of the processes
        if code:
            cell.faults.append(f"{name}: exit code {code}: {log.read_text()[-500:]}")
            return
    compare(cell, cell.folder / "run", cell.folder / "whole")


def generations(job: subprocess.Popen[bytes], numbers: Path, count: int, random: np.random.Generator) -> Iterator[int]:
    """The number of one process of each start by torchrun, as soon as it runs."""
    for start in range(count):
        place, seen = numbers / str(random.integers(2)), ["", ""]
        while job.poll() is None and seen[1] != str(start):
            time.sleep(0.02)
            seen = place.read_text().split() if place.exists() else ["", ""]
        if job.poll() is not None:
            return
        yield int(seen[0])


def cells(given: argparse.Namespace, folder: Path) -> list[Cell]:
    """The cells that were asked for, each with a folder of its own."""
    found = [(recipe, head, way) for way, recipe, head in product(WAYS, RECIPES, HEADS)]
    if given.tiny:
        way = len(RECIPES) * len(HEADS)
        found = [each for number, each in enumerate(found[way:]) if (number + number // way) % 2 == 0]
    made = [Cell(*each, folder / str(number)) for number, each in enumerate(found)]
    return [cell for cell in made if given.only in cell.name]


def main() -> None:
    """Kill, resume, compare, print."""
    options: dict[str, dict[str, Any]] = {
        "kills": {"type": int, "default": 100, "help": "kills in all cells together (default: %(default)s)"},
        "seed": {"type": int, "default": 0, "help": "of the moments (default: %(default)s)"},
    }
    given = measure.arguments(__doc__, 1, **options)
    random = np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory(prefix="llueve-kills-") as place:
        folder = Path(place)
        write_table(folder, 100 if given.tiny else 160)
        earlier = ["train", str(folder / "config.toml"), "--run", str(folder / "earlier"), "--set", "train.epochs=1"]
        if attempt(earlier, folder / "log", None) != 0:
            raise SystemExit((folder / "log").read_text())
        chosen = cells(given, folder)
        done, total = [], len(chosen) if given.tiny else given.kills
        print(f"{'recipe, head, way':<34}{'kills':>7}{'runs':>6}  identical", flush=True)
        for number, cell in enumerate(chosen):
            cell.folder.mkdir()
            left = total - sum(each.kills for each in done)
            share = TORCHRUN_KILLS if cell.way == "torchrun" else math.ceil(left / (len(chosen) - number))
            (kill_torchrun if cell.way == "torchrun" else kill_forks)(cell, share, random)
            print(f"{cell.name:<34}{cell.kills:>7}{cell.runs:>6}  {'; '.join(cell.faults) or 'yes'}", flush=True)
            shutil.rmtree(cell.folder)
            done.append(cell)
    kills, faults = sum(cell.kills for cell in done), sum(len(cell.faults) for cell in done)
    print(
        f"{kills} kills, {sum(cell.runs for cell in done)} runs: {'all bit-identical' if not faults else f'{faults} FAULTS'}"
    )
    measure.keep(given, cells=[{**vars(cell), "folder": None} for cell in done])
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
