"""The fault bench: every kind of fault, at every timing, in both precisions, with several seeds.

    python -m benchmarks.faults [--held-out] [--seeds 7] [--first 0] [--processes 2] [--only TEXT] [--json FILE]
        [--show FILE]

Run it from the root of the repository. Each fault is planted into a small training just before one of its steps. A row of the
table is one kind:

    detected    the step was refused before it was applied, and the whole state was then as before (hashes of weights,
                buffers, moments, average, place, budgets). A fault may show only in a later step; then that step counts.
    located     the explanation names exactly the planted cell, number, operation or samples.
    cause       the explanation's cause is the planted one, and its experiment cures the step.
    recovered   the run ends as expected (`Ending` in fault.py).

With --held-out, the sizes of the damage and of the models are others than those used during development.
"""

import argparse
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from benchmarks.faults.fault import Fault
from benchmarks.faults.kinds import kinds
from benchmarks.faults.refusals import REFUSALS
from benchmarks.faults.scene import Random, Scene
from benchmarks.faults.states import STATE_FAULTS, interrupted
from benchmarks.faults.trial import TIMINGS, Outcome, Shape, Trial

DEEP = Shape(
    width=64,
    heads=8,
    layers=4,
    feed_forward=128,
    patch_length=6,
    context=25,
    variables=7,
    sites=3,
    times=150,
    batch_size=16,
)
"""A deeper and wider model, with a context that is not a multiple of the patch, and larger batches."""
DEVELOPED = (
    Shape(),
    Shape(architecture="timer"),
    DEEP,
    Shape(head="mean"),
    Shape(width=32, heads=4, context=12, sites=3, times=160, variables=4),
    Shape(architecture="timer", head="mean", patch_length=3, context=9),
    Shape(sites=6, times=140, batch_size=3, together=True, forecast_weight=0.3),
)
HELD_OUT = (
    Shape(width=24, heads=2, layers=3, feed_forward=36, context=10, variables=5, batch_size=6, times=160),
    Shape(architecture="timer", width=40, heads=5, layers=1, context=15, patch_length=5, times=210),
    replace(DEEP, width=72, heads=6, layers=5, patch_length=8, context=26, variables=8),
    Shape(head="mean", width=12, heads=1, feed_forward=40, patch_length=6, context=12, learning_rate=2e-3),
    Shape(width=48, heads=4, sites=4, times=150, batch_size=11, variables=2, instance_norm=False),
    Shape(architecture="timer", head="mean", width=20, heads=5, layers=3, patch_length=2, variables=6, missing=0.3),
    Shape(width=24, heads=2, sites=7, times=120, batch_size=2, together=True, sites_per_scene=5, forecast_weight=1.0),
)
"""One for each seed."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One trial with one fault."""

    kind: str
    timing: str
    precision: str
    seed: int
    held_out: bool

    @property
    def shape(self) -> Shape:
        """Sizes of the model and the data."""
        shapes = HELD_OUT if self.held_out else DEVELOPED
        return shapes[self.seed % len(shapes)]

    def random(self) -> Random:
        """A generator that depends on the job alone."""
        words = "|".join((self.kind, self.timing, self.precision))
        return np.random.default_rng((zlib.crc32(words.encode()), self.seed, self.held_out))


def jobs(held_out: bool, seeds: int, first: int = 0) -> Iterator[Job]:
    """Every combination that makes sense, for the seeds from `first` on."""
    for seed in range(first, seeds):
        places = {title: (kind.timings, kind.precisions) for title, kind in kinds(held_out).items()}
        places |= dict.fromkeys(STATE_FAULTS, (TIMINGS[1:4], ("float32", "bfloat16")))
        places |= dict.fromkeys(REFUSALS, (("before the first step",), ("float32",)))
        for title, (timings, precisions) in places.items():
            for timing in timings:
                yield from (Job(title, timing, precision, seed, held_out) for precision in precisions)


def run(job: Job) -> Row:
    """Do one job and judge it; a row without `detected` if the fault does not fit the shape or the timing."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    started, random = time.perf_counter(), job.random()
    if job.kind in REFUSALS:
        row = REFUSALS[job.kind](job.shape, job.seed, random)
    elif job.kind in STATE_FAULTS:
        row = interrupted(job.shape, job.seed, job.precision, job.timing, STATE_FAULTS[job.kind], random)
    else:
        row = planted(job, random)
    seconds = round(time.perf_counter() - started, 2)
    place = {"kind": job.kind, "timing": job.timing, "precision": job.precision, "seed": job.seed}
    return {**place, **row, "seconds": seconds}


def planted(job: Job, random: Random) -> Row:
    """Plant a fault into a trial, and judge the outcome."""
    kind = kinds(job.held_out)[job.kind]
    trial = Trial(replace(job.shape, **kind.shape), job.seed, job.precision, **kind.train)
    if kind.prepare is not None:
        trial = kind.prepare(trial, random) or trial
    if trial.impossible:
        return {}
    at, state = trial.attempt_at(job.timing), random.bit_generator.state
    # The first seed's incidents are explained from their files, as for a user; this doubles the time of the search.
    outcome = trial.run(lambda trainer: kind.plant(Scene(trial, trainer, random)), at, files=job.seed == 0)
    random.bit_generator.state = state
    found, first = outcome.explanation, next(iter(outcome.refused_at), 0)
    row: Row = {"expected": kind.cause, "recovered": recovered(kind, trial, at, outcome, random)}
    if kind.repaired:
        repaired = any(each["event"] == "repaired" for each in outcome.events)
        row |= {"detected": repaired, "located": kind.is_located(trial.truth, outcome)}
    else:
        row |= {
            "detected": (first >= at if kind.drifts else first == at) and outcome.untouched is True,
            "located": False if found is None else kind.is_located(trial.truth, outcome),
            "cause": "none" if found is None else found.cause,
            # A learning rate is shown by the steps before, not by an experiment with the refused one.
            "cured": found is not None
            and (found.cause == "learning_rate" or any(each.cures for each in found.experiments)),
        }
    actions = sorted({each["action"] for each in outcome.events if each.get("action")})
    return {**row, "actions": actions, "stop": outcome.stop, "error": outcome.error}


def recovered(kind: Fault, trial: Trial, at: int, outcome: Outcome, random: Random) -> bool:
    """True if the trial ended as expected."""
    if kind.ends == "stopped":
        named = outcome.stop is not None and f"Cause: {kind.cause}" in outcome.stop
        return named and outcome.loads is not False and (at <= trial.steps or outcome.loads is True)
    if not outcome.is_finite:
        return False
    key = (trial.shape, trial.precision, tuple(sorted(kind.train.items())), kind.prepare if kind.shared else None)
    if kind.ends == "sound":
        losses = [clean(*key, each)[1] for each in range(5)]
        assert outcome.validation_loss is not None
        expected = clean(*key, trial.seed)[1] if trial.reference_loss is None else trial.reference_loss
        return outcome.validation_loss - expected <= max(losses) - min(losses)
    if kind.ends == "identical":
        weights = clean(*key, trial.seed)[0]
    else:
        weights = without_samples(kind, trial, at, outcome.quarantined, random)
    return all(torch.equal(weights[name], each) for name, each in outcome.weights.items())


@lru_cache(maxsize=512)
def clean(
    shape: Shape, precision: str, train: tuple[tuple[str, Any], ...], prepare: Callable[..., Any] | None, seed: int
) -> tuple[dict[str, torch.Tensor], float]:
    """Weights and validation loss of the trial without a fault."""
    trial = Trial(shape, seed, precision, **dict(train))
    if prepare is not None:
        prepare(trial, np.random.default_rng(0))
    outcome = trial.run()
    assert outcome.validation_loss is not None and not outcome.events, (outcome.stop, outcome.error, outcome.events)
    return outcome.weights, outcome.validation_loss


def without_samples(
    kind: Fault, like: Trial, at: int, samples: list[tuple[int, int]], random: Random
) -> dict[str, torch.Tensor]:
    """Weights of a trial with the same data, from which the samples were left out from the same step on."""
    trial = Trial(like.shape, like.seed, like.precision, **kind.train)
    if kind.prepare is not None:
        kind.prepare(trial, random)

    def leave_out(trainer: Any) -> None:
        scene = Scene(trial, trainer, random)
        kind.plant(scene)
        scene.quarantine(samples)

    return trial.run(leave_out, at).weights


# The table


def is_right(row: Row) -> bool | None:
    """True if the cause is the planted one, and an experiment cured the step; None if the fault has no cause."""
    return bool(row["cause"] == row["expected"] and row["cured"]) if row.get("expected") else None


def is_miss(row: Row) -> bool:
    """True if anything about a run is not as expected."""
    answers = (row["detected"], row["located"], row["recovered"], is_right(row))
    return any(each is False for each in answers) or row["error"] is not None


def cells(rows: list[Row]) -> str:
    """The hits among the runs that can be judged, for each column."""
    columns = [[row.get(name) for row in rows] for name in ("detected", "located", "recovered")]
    columns.insert(2, [is_right(row) for row in rows])
    known = [[each for each in column if each is not None] for column in columns]
    return " | ".join(f"{sum(each)} of {len(each)}" if each else "–" for each in known)


def table(rows: list[Row]) -> str:
    """A line for each kind, and the totals."""
    by_kind: dict[str, list[Row]] = {kind: [] for kind in (*kinds(), *STATE_FAULTS, *REFUSALS)}
    for row in rows:
        by_kind[row["kind"]].append(row)
    lines = ["| fault | runs | detected | located | cause | recovered |", "| --- | --- | --- | --- | --- | --- |"]
    for kind, some in [*by_kind.items(), ("**all**", rows)]:
        if some:
            lines.append(f"| {kind} | {len(some)} | {cells(some)} |")
    known = [row for row in rows if is_right(row) is not None]
    unknown, right = sum(row["cause"] in ("unknown", "none") for row in known), sum(map(bool, map(is_right, known)))
    wrong = len(known) - right - unknown
    score = 1 - (unknown + 2 * wrong) / max(1, len(known))
    counts = f"{right} right and cured, {unknown} unknown, {wrong} wrong of {len(known)}"
    return "\n".join([*lines, f"\ncause: {counts}; wrong counted double: {score:.2%}"])


def main() -> None:
    """Run, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", action="store_true", help="damage and models that were not used in development")
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--first", type=int, default=0, help="seed to begin with")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", metavar="TEXT", help="kinds with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a line for each run as it ends")
    parser.add_argument("--show", type=Path, metavar="FILE", help="run nothing; print the table of such a file")
    given = parser.parse_args()
    chosen = [job for job in jobs(given.held_out, given.seeds, given.first) if given.only in job.kind]
    rows: list[Row] = []
    if given.show:
        chosen, rows = [], [json.loads(line) for line in given.show.read_text(encoding="utf-8").splitlines()]
    started = time.perf_counter()
    with ProcessPoolExecutor(given.processes) as pool:
        for done in as_completed([pool.submit(run, job) for job in chosen]):
            if "detected" not in (row := done.result()):
                continue
            rows.append(row)
            if given.json:
                with given.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    print(table(rows))
    for row in filter(is_miss, rows):
        print("miss:", json.dumps(row, ensure_ascii=False))
    print(f"{len(rows)} runs in {time.perf_counter() - started:.0f} s on {given.processes} processes")


if __name__ == "__main__":
    main()
