"""The fault bench: every kind of fault, at every timing, in both precisions, over several seeds.

    python benchmarks/faults.py [--held-out] [--seeds 5] [--processes 2] [--only TEXT] [--json FILE] [--told FILE]

Each fault is planted into a small training just before one of its steps. A row of the table is one kind:

    detected    the step was refused before it was applied, and everything was then as before (hashes of weights, buffers,
                moments, average, place, budgets); of faults that show only later, the step in which they show
    located     the explanation names exactly the planted cell, number, operation or samples
    cause       the explanation's cause is the planted one, and its experiment cures
    recovered   the run ends as it should (see fault_kinds.py)

With --held-out sizes of the damage and of the models are others than those that were looked at while llueve was made.
"""

import argparse
import json
import os
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from fault_course import TIMINGS, Outcome, Shape, Training, quiet
from fault_kinds import Fault, hard_mask, kinds, unlimited, without_epsilon
from fault_states import STATE_FAULTS, interrupted, refused_file

DEVELOPED = (
    Shape(),
    Shape(architecture="timer"),
    Shape(head="mean"),
    Shape(width=32, heads=4, context=12, sites=3, times=160, variables=4),
    Shape(architecture="timer", head="mean", patch_length=3, context=9),
)
HELD_OUT = (
    Shape(width=24, heads=2, layers=3, feed_forward=36, context=10, variables=5, batch_size=6, times=160),
    Shape(architecture="timer", width=40, heads=5, layers=1, context=15, patch_length=5, times=210),
    Shape(head="mean", width=12, heads=1, feed_forward=40, patch_length=6, context=12, learning_rate=2e-3),
    Shape(width=48, heads=4, sites=4, times=150, batch_size=11, variables=2, instance_norm=False),
    Shape(architecture="timer", head="mean", width=20, heads=5, layers=3, patch_length=2, variables=6, missing=0.3),
)
"""One for each seed."""
AROUND = (hard_mask, unlimited, without_epsilon)
"""What must be around the clean run as well."""
PLAIN_CAUSES = ("", "checkpoint")

Job = tuple[str, str, str, int, bool]
"""Kind, timing, precision, seed, whether held out."""


def jobs(held_out: bool, seeds: int, only: str) -> Iterator[Job]:
    """Every combination that makes sense."""
    for seed in range(seeds):
        for kind in kinds(held_out):
            for timing in kind.timings:
                for precision in kind.precisions:
                    yield f"{kind.area}: {kind.name}", timing, precision, seed, held_out
        for each in STATE_FAULTS:
            for timing in TIMINGS[1:4]:
                for precision in ("float32", "bfloat16"):
                    yield f"checkpoint: {each.name}", timing, precision, seed, held_out
        yield "checkpoint: NaN in a published file", "before the first step", "float32", seed, held_out


def run(job: Job) -> dict[str, Any]:
    """One training with one fault, judged."""
    quiet()
    name, timing, precision, seed, held_out = job
    started = time.perf_counter()
    random = np.random.default_rng((zlib.crc32("|".join(map(str, job[:3])).encode()), seed, held_out))
    shapes = HELD_OUT if held_out else DEVELOPED
    shape = shapes[seed % len(shapes)]
    if name == "checkpoint: NaN in a published file":
        row = refused_file(shape, seed, random)
    elif name.startswith("checkpoint: "):
        fault = next(each for each in STATE_FAULTS if f"checkpoint: {each.name}" == name)
        row = interrupted(shape, seed, precision, timing, fault, random)
    else:
        kind = next(each for each in kinds(held_out) if f"{each.area}: {each.name}" == name)
        row = _judged(kind, replace(shape, **kind.shape), seed, precision, timing, random)
    seconds = round(time.perf_counter() - started, 2)
    return {"kind": name, "timing": timing, "precision": precision, "seed": seed, **row, "seconds": seconds}


def _judged(
    kind: Fault, shape: Shape, seed: int, precision: str, timing: str, random: np.random.Generator
) -> dict[str, Any]:
    training = Training(shape, seed, precision, **kind.train)
    if kind.prepare is not None:
        kind.prepare(training, random)
    if training.impossible:
        return {}
    at = training.attempt_at(timing)
    replay = random.bit_generator.state
    # The first seed's incidents are explained from their files, as a user would; that takes as long again.
    outcome = training.run(lambda mine, here: kind.plant(mine, here, random), at, from_files=seed == 0)
    found = outcome.explanation
    if kind.answer == "repaired":
        detected, cause, cured = any(each["event"] == "repaired" for each in outcome.events), "", True
    else:
        first = outcome.refused_at[:1]
        detected = bool(first) and (first[0] >= at if kind.drifts else first[0] == at) and outcome.untouched is True
        cause = "none" if found is None else found.cause
        cured = found is not None and any(each.cures for each in found.experiments)
        cured = cured or cause == "learning_rate"
    random.bit_generator.state = replay
    return {
        "detected": detected,
        "located": kind.located(training.truth, outcome) if found is not None or kind.answer == "repaired" else False,
        "cause": cause,
        "expected": kind.cause,
        "cured": cured,
        "recovered": _recovered(kind, shape, seed, precision, at, training, outcome, random),
        "refused": len(outcome.refused_at),
        "actions": sorted({each["action"] for each in outcome.events if each.get("action")}),
        "stop": outcome.stop,
        "error": outcome.error,
    }


def _recovered(
    kind: Fault,
    shape: Shape,
    seed: int,
    precision: str,
    at: int,
    training: Training,
    outcome: Outcome,
    random: np.random.Generator,
) -> bool:
    """Whether the run ended as it should."""
    if kind.ends == "stopped":
        named = outcome.stop is not None and (f"Cause: {kind.cause}" in outcome.stop)
        return named and outcome.loads is not False and (at <= training.steps or outcome.loads is True)
    if not outcome.weights or not all(bool(each.isfinite().all()) for each in outcome.weights.values()):
        return False
    around = kind.prepare if kind.prepare in AROUND else None
    key = (shape, precision, tuple(sorted(kind.train.items())), around)
    if kind.ends == "sound":
        losses = [_clean(*key, each)[1] for each in range(5)]
        assert outcome.validation_loss is not None
        expected = _clean(*key, seed)[1] if training.reference_loss is None else training.reference_loss
        return outcome.validation_loss - expected <= max(losses) - min(losses)
    weights = (
        _clean(*key, seed)[0]
        if kind.ends == "identical"
        else _without(kind, shape, seed, precision, at, outcome, random)
    )
    return all(torch.equal(weights[name], each) for name, each in outcome.weights.items())


@lru_cache(maxsize=512)
def _clean(
    shape: Shape, precision: str, train: tuple[tuple[str, Any], ...], around: Any, seed: int
) -> tuple[dict[str, torch.Tensor], float]:
    """Weights and validation loss of the run in which nothing was planted."""
    training = Training(shape, seed, precision, **dict(train))
    if around is not None:
        around(training, np.random.default_rng(0))
    outcome = training.run()
    assert outcome.validation_loss is not None and not outcome.events, (outcome.stop, outcome.error, outcome.events)
    return outcome.weights, outcome.validation_loss


def _without(
    kind: Fault, shape: Shape, seed: int, precision: str, at: int, outcome: Outcome, random: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Weights of the run from which the samples were left out in the same step, with the same data."""
    training = Training(shape, seed, precision, **kind.train)
    if kind.prepare is not None:
        kind.prepare(training, random)

    def leave_out(mine: Training, here: Any) -> None:
        kind.plant(mine, here, random)
        for site, end in outcome.quarantined:
            here.ledger.quarantine(site, end, here.place.epoch, "left out")
        for each in here.ledger.quarantined:
            each.tries = 1
        here.allow()

    return training.run(leave_out, at).weights


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each kind, and the totals."""
    by_kind = defaultdict(list)
    order = [f"{kind.area}: {kind.name}" for kind in kinds()]
    for row in sorted(rows, key=lambda each: order.index(each["kind"]) if each["kind"] in order else len(order)):
        by_kind[row["kind"]].append(row)
    lines = ["| fault | runs | detected | located | cause | recovered |", "| --- | --- | --- | --- | --- | --- |"]
    for kind, some in [*by_kind.items(), ("**all**", rows)]:
        numbers = [_share(some, "detected"), _share(some, "located"), _causes(some), _share(some, "recovered")]
        lines.append(f"| {kind} | {len(some)} | {' | '.join(numbers)} |")
    judged = [row for row in rows if row.get("expected")]
    unknown = sum(row["cause"] in ("unknown", "none") for row in judged)
    right = sum(_is_right(row) for row in judged)
    wrong = len(judged) - right - unknown
    score = 1 - (unknown + 2 * wrong) / max(1, len(judged))
    lines.append(
        f"\ncause: {right} right and cured, {unknown} unknown, {wrong} wrong of {len(judged)}; wrong counted double: {score:.2%}"
    )
    return "\n".join(lines)


def _is_right(row: dict[str, Any]) -> bool:
    return bool(row["cause"] == row["expected"] and row["cured"])


def _share(rows: list[dict[str, Any]], name: str) -> str:
    known = [row[name] for row in rows if row.get(name) is not None]
    return f"{sum(known)} of {len(known)}" if known else "–"


def _causes(rows: list[dict[str, Any]]) -> str:
    judged = [row for row in rows if row.get("expected")]
    return f"{sum(map(_is_right, judged))} of {len(judged)}" if judged else "–"


def main() -> None:
    """Run, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="kinds with this in their name")
    parser.add_argument("--json", type=Path, help="a line for each run, written as they end")
    parser.add_argument("--told", type=Path, help="run nothing; the table of such a file")
    arguments = parser.parse_args()
    chosen = [job for job in jobs(arguments.held_out, arguments.seeds, arguments.only) if arguments.only in job[0]]
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    if arguments.told:
        rows = [json.loads(line) for line in arguments.told.read_text(encoding="utf-8").splitlines()]
        chosen = []
    with ProcessPoolExecutor(arguments.processes) as pool:
        for done in as_completed([pool.submit(run, job) for job in chosen]):
            row = done.result()
            if "detected" not in row:
                continue
            rows.append(row)
            if arguments.json:
                with arguments.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    print(table(rows))
    for row in rows:
        good = row["detected"] and row["located"] is not False and row["recovered"]
        if not good or (row.get("expected") and not _is_right(row)) or row["error"]:
            print("miss:", json.dumps(row, ensure_ascii=False))
    print(f"{len(rows)} runs in {time.perf_counter() - started:.0f} s on {arguments.processes} processes")


if __name__ == "__main__":
    main()
