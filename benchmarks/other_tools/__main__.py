"""Faults of the fault bench, planted into the same small trainings as other tools run them, and as llueve does.

    python -m benchmarks.other_tools [--seeds 2] [--only TEXT] [--tools TEXT] [--json FILE]

Run it from the root of the repository. Each cell of the table has four marks: a capital letter if the answer is yes in every
run, a small letter if in some runs, a dot if in none.

    T  told       an exception, a warning or a message came at the planted step, or the step was left out silently.
    K  kept       after that step weights and moments are as before it, or as a clean run has them after it.
    N  named      the message names the planted number, cell or operation.
    E  ends well  the run ends normally with finite weights. Its last validation loss exceeds the clean run's by no more
                  than the range of five clean runs with other seeds.

Lightning and the Hugging Face Trainer take part where they can be imported. A NaN among a log's other numbers does not count
as told: no tool has noticed it.
"""

import argparse
import json
import logging
import math
import os
import re
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from benchmarks.faults.fault import Fault
from benchmarks.faults.kinds import kinds
from benchmarks.faults.scene import Scene
from benchmarks.faults.trial import TIMINGS, Outcome, Shape, Trial
from benchmarks.other_tools.loops import LOOPS, PHASES, Tool, ToolRun, ToolScene, conduct
from benchmarks.other_tools.trainers import trainers, versions

TIMES = (TIMINGS[0], TIMINGS[3])
SHAPE = Shape(times=120, layers=1)
Row = dict[str, Any]

KINDS = {
    "data: missing cell": "",
    "data: infinite cell": "",
    "data: constant window without ε": "",
    "data: empty attention row": "",
    "parameters: NaN in a weight": "",
    "parameters: absurd but finite": "",
    "parameters: NaN in an unused weight": "",
    "parameters: NaN in a stored table": "",
    "parameters: NaN in a checkpoint's tensor": "",
    "parameters: head weights × 1000": r"\bhead",
    "activations: NaN, once": r"\bWhere",
    "activations: one sample, always": "",
    "gradients: NaN, once": "",
    "gradients: infinity, once": "",
    "gradients: all × 1e12, once": r"\bgradient",
    "moments: NaN in a first moment": "",
    "moments: infinite second moment": "",
    "moments: absurd first moment": "",
    "rate: NaN, once": "learning.rate",
    "rate: × 1e6, once": "learning.rate",
    "rate: × 1e4, in memory": "learning.rate",
    "loss: NaN, once": r"\bloss\b|\bMul",
    "loss: log of zero": "",
    "averages: NaN": "",
    "precision: overflow of half precision": "",
    "random state: numbers drawn": r"\brandom",
}
"""Each with the pattern that the message must match, where the kind itself has no place."""


@dataclass(frozen=True)
class Case:
    """One fault at one timing, for all tools."""

    name: str
    timing: str
    seed: int

    @property
    def kind(self) -> Fault:
        """The fault."""
        return kinds()[self.name]

    def prepared(self) -> tuple[Trial, Callable[[Any, type[Scene]], Any]]:
        """A trial with the fault's preparation, and the function that plants the fault."""
        kind, random = self.kind, np.random.default_rng((zlib.crc32(f"{self.name}|{self.timing}".encode()), self.seed))
        trial = Trial(replace(SHAPE, **kind.shape), self.seed, kind.precisions[0], phases=PHASES)
        if kind.prepare is not None:
            kind.prepare(trial, random)
        return trial, lambda trainer, scene: kind.plant(scene(trial, trainer, random))

    def is_named(self, truth: Any, words: str) -> bool:
        """True if a message names the planted fault."""
        if KINDS[self.name]:
            return re.search(KINDS[self.name], words, re.IGNORECASE) is not None
        if self.kind.place == "operation":
            return re.search(rf"\b{truth}Backward", words, re.IGNORECASE) is not None
        if isinstance(truth, set):
            return False  # no tool names cells or samples
        place = truth[0] if isinstance(truth, tuple) else truth
        return bool(place) and place in words


def cases(only: str, seeds: int) -> Iterator[Case]:
    """All faults that are asked for."""
    for name in KINDS:
        for timing in TIMES:
            if only in name and timing in kinds()[name].timings:
                yield from (Case(name, timing, seed) for seed in range(seeds))


# Judging


@cache
def clean(tool: Tool | None, prepare: Any, missing: float, precision: str, seed: int) -> Any:
    """The same training without a fault: the run of a tool, or llueve's outcome."""
    trial = Trial(replace(SHAPE, missing=missing), seed, precision, phases=PHASES)
    if prepare is not None:
        prepare(trial, np.random.default_rng(0))
    if tool is None:
        return trial.run()
    run = ToolRun(trial, None, 0, {trial.attempt_at(each) for each in TIMES})
    conduct(tool, run)
    return run


def clean_like(tool: Tool | None, kind: Fault, trial: Trial) -> Any:
    """The clean training that belongs to a trial with a fault."""
    return clean(tool, kind.prepare if kind.shared else None, trial.shape.missing, trial.precision, trial.seed)


def last_loss(found: ToolRun | Outcome) -> float:
    """Validation loss after the last epoch; NaN without one."""
    if isinstance(found, ToolRun):
        return found.last_loss
    loss = found.history[-1]["validation_loss"] if found.is_finite else None
    return math.nan if loss is None else float(loss)


def ends_well(loss: float, like: float, tool: Tool | None) -> bool:
    """True if a loss exceeds that of the clean run by no more than the range of five clean runs."""
    losses = [last_loss(clean(tool, None, SHAPE.missing, "float32", seed)) for seed in range(5)]
    return math.isfinite(loss) and loss - like <= max(losses) - min(losses)


def is_same(one: dict[str, Tensor], other: dict[str, Tensor], damaged: Any = None) -> bool:
    """True if all tensors are bit for bit the same, NaN included; the damaged tensor itself is left out."""
    left_out = damaged[0] if isinstance(damaged, tuple) else None

    def bits(each: Tensor) -> Tensor:
        return each.reshape(-1).view(torch.uint8)

    return all(torch.equal(bits(each), bits(other[name])) for name, each in one.items() if name != left_out)


def elsewhere(tool: Tool, case: Case) -> Row:
    """One training of another tool with one fault, judged."""
    trial, plant = case.prepared()
    at = trial.attempt_at(case.timing)
    run = ToolRun(trial, lambda run: plant(run, ToolScene), at, {at})
    conduct(tool, run)
    like = clean_like(tool, case.kind, trial)
    usual = {words for _, words in like.messages}
    # After a first step that was left out, torch warns that the scheduler ran before the optimiser: that is not the fault.
    found = [
        (number, words)
        for number, words in run.messages
        if number >= at and words not in usual and "lr_scheduler.step" not in words
    ]
    first = min((number for number, _ in found), default=None)
    words = [words for number, words in found if number == first]
    left_out = is_same(run.before[at], run.after[at])
    return {
        "told": first == at or left_out,
        "mute": left_out and first != at,
        "later": first is not None and first > at and not left_out,
        "kept": left_out or is_same(run.after[at], like.after[at], trial.truth),
        "named": case.is_named(trial.truth, " ".join(words)),
        "ends": ends_well(run.last_loss, like.last_loss, tool),
        "words": [each[:300] for each in words],
    }


def in_llueve(case: Case) -> Row:
    """The same in llueve."""
    trial, plant = case.prepared()
    at = trial.attempt_at(case.timing)
    found = trial.run(lambda trainer: plant(trainer, Scene), at)
    like = clean_like(None, case.kind, trial)
    repaired = any(each["event"] == "repaired" for each in found.events)
    first = at if repaired else next(iter(found.refused_at), None)
    words = " ".join((found.reason, *((found.explanation.cause,) if found.explanation else ()), found.stop or ""))
    placed = case.kind.place != "none" and not repaired
    same = bool(found.weights) and is_same(found.weights, like.weights)
    return {
        "told": first == at,
        "mute": False,
        "later": first is not None and first > at,
        "kept": (first == at and found.untouched is True) or same,
        "named": bool(case.kind.is_located(trial.truth, found)) if placed else case.is_named(trial.truth, words),
        "ends": ends_well(last_loss(found), last_loss(like), None),
        "words": [words, found.error or ""],
    }


# The tables


def marks(rows: list[Row]) -> str:
    """The four marks of a cell."""
    found = ""
    for letter, key in zip("TKNE", ("told", "kept", "named", "ends"), strict=True):
        count = sum(row[key] for row in rows)
        found += letter if count == len(rows) else letter.lower() if count else "·"
    return found


def tables(rows: list[Row]) -> str:
    """A line for each kind, and one for each tool."""
    tools, cells = list(dict.fromkeys(row["tool"] for row in rows)), defaultdict(list)
    for row in rows:
        cells[row["kind"], row["tool"]].append(row)
    lines = [f"| fault | {' | '.join(tools)} |", "| --- " * (len(tools) + 1) + "|"]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        lines.append(f"| {kind} | {' | '.join(marks(cells[kind, tool]) for tool in tools)} |")
    head = "tool | runs | told at the step | without a message | later | never | kept | named | ends well | bad end, never told"
    lines += ["", f"| {head} |", "| --- " * 10 + "|"]
    for tool in tools:
        some = [row for row in rows if row["tool"] == tool]
        never = [row for row in some if not row["told"] and not row["later"]]
        told, mute, later, kept, named, ends = (
            sum(row[key] for row in some) for key in ("told", "mute", "later", "kept", "named", "ends")
        )
        bad = sum(not row["ends"] for row in never)
        numbers = (len(some), told, mute, later, len(never), kept, named, ends, bad)
        lines.append(f"| {tool} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def main() -> None:
    """Run, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", metavar="TEXT", help="kinds with this in their name")
    parser.add_argument("--tools", default="", metavar="TEXT", help="tools with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a line for each run as it ends")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("llueve", "pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).propagate = False
    logging.getLogger("llueve").setLevel(logging.CRITICAL + 1)
    found, missing = trainers()
    tools: dict[str, Tool | None] = {**LOOPS, **found, "llueve": None}
    started, rows = time.perf_counter(), []
    for case in cases(given.only, given.seeds):
        for name, tool in tools.items():
            if given.tools not in name:
                continue
            row = in_llueve(case) if tool is None else elsewhere(tool, case)
            rows.append({"kind": case.name, "tool": name, "timing": case.timing, "seed": case.seed, **row})
            if given.json:
                with given.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
    print(tables(rows))
    for name in missing:
        print(f"not run, because it cannot be imported: {name}")
    print(f"{len(rows)} runs in {time.perf_counter() - started:.0f} s; {versions()}")


if __name__ == "__main__":
    main()
