"""Faults of the fault bench, planted into the same small trainings as other tools run them, and as llueve does.

    python benchmarks/fault_others.py [--seeds 2] [--only TEXT] [--tools TEXT] [--json FILE]

Of each run four things are asked, and a cell of the table has a mark for each: a capital letter if it held in every run, a
small one if in some, a dot if in none.

    T  told       an exception, a warning or a line said something at the planted step, or the step was left out in silence
    K  kept       after that step weights and moments are as they were before it, or as a clean run has them after it
    N  named      what was said names the culprit: the number, cell or operation that was planted
    E  ends well  the run ends by itself, all weights finite, its last validation loss not above the clean run's by more than
                  clean runs of five seeds differ

Lightning and the Hugging Face Trainer take part where they can be imported. A NaN printed among a log's other numbers is no
telling: no tool but the reader has seen it.
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
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from fault_course import TIMINGS, Outcome, Shape, Training
from fault_kinds import NAN, Fault, _next_call, _put, _trained, hard_mask, kinds, nowhere, without_epsilon
from fault_loops import LOOPS, PHASES, Run, Tool, conduct
from fault_trainers import trainers, versions
from torch import Tensor

from llueve.stability import step as step_module

TIMES = (TIMINGS[0], TIMINGS[3])
SHAPE = Shape(times=120, layers=1)
AROUND = (hard_mask, without_epsilon)
Random = np.random.Generator
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
    "gradients: all × 1e8, once": r"\bgradient",
    "moments: NaN in a first moment": "",
    "moments: infinite second moment": "",
    "moments: absurd first moment": "",
    "rate: NaN, once": "learning.rate",
    "rate: × 1e6, once": "learning.rate",
    "rate: × 1e4, configured": "learning.rate",
    "loss: NaN, once": r"\bloss\b|\bMul",
    "loss: log of nothing": "",
    "averages: NaN": "",
    "precision: overflow of half precision": "",
    "random state: drawn from": r"\brandom",
}
"""Each with what must be found in the words where the kind itself does not say where its fault is."""


# Planting


def loss_times_nan(training: Training, _here: Any, _random: Random) -> Any:
    """The loss is multiplied by NaN, once."""
    training.patches.enter_context(_next_call(step_module, "classification_loss", lambda loss, *_: loss * NAN))


def _gradient_of(value: float) -> Callable[[Training, Any, Random], Any]:
    def plant(_training: Training, here: Any, random: Random) -> Any:
        name, parameter = _trained(here, random)

        def spoil(each: Tensor) -> None:
            handle.remove()
            _put(cast(Tensor, each.grad), value, random)

        handle = parameter.register_post_accumulate_grad_hook(spoil)
        return name

    return plant


def _gradients_times(factor: float) -> Callable[[Training, Any, Random], Any]:
    def plant(_training: Training, here: Any, _random: Random) -> Any:
        for each in here.model.parameters():
            handles: list[Any] = []

            def spoil(each: Tensor, handles: list[Any] = handles) -> None:
                handles.pop().remove()
                cast(Tensor, each.grad).mul_(factor)

            handles.append(each.register_post_accumulate_grad_hook(spoil))

    return plant


def _rate_times(factor: float) -> Callable[[Training, Any, Random], Any]:
    def plant(_training: Training, here: Any, random: Random) -> Any:
        groups = here.adamw.param_groups
        groups[int(random.integers(len(groups)))]["lr"] *= factor

    return plant


def _rates_times(factor: float) -> Callable[[Training, Any, Random], Any]:
    def plant(_training: Training, here: Any, _random: Random) -> Any:
        here.schedule.base_lrs = [each * factor for each in here.schedule.base_lrs]
        for group in here.adamw.param_groups:
            group["lr"] *= factor

    return plant


ELSEWHERE: dict[str, Callable[[Training, Any, Random], Any]] = {
    "gradients: NaN, once": _gradient_of(NAN),
    "gradients: infinity, once": _gradient_of(-math.inf),
    "gradients: all × 1e8, once": _gradients_times(1e12),
    "rate: NaN, once": _rate_times(NAN),
    "rate: × 1e6, once": _rate_times(1e6),
    "rate: × 1e4, configured": _rates_times(1e4),
}
"""Where llueve's own step is damaged by its kind, the same damage to another loop."""


def chosen(only: str) -> Iterator[tuple[str, Fault, str]]:
    """Name, kind and timing."""
    for kind in kinds(False):
        name = f"{kind.area}: {kind.name}"
        if name not in KINDS or only not in name:
            continue
        if name == "loss: NaN, once":
            kind = replace(kind, plant=loss_times_nan)
        yield from ((name, kind, timing) for timing in TIMES if timing in kind.timings)


# Judging


def training_of(kind: Fault | None, seed: int) -> Training:
    """Model and data, with what the kind needs around it but without its fault."""
    shape, precision = (SHAPE, "float32") if kind is None else (replace(SHAPE, **kind.shape), kind.precisions[0])
    return Training(shape, seed, precision, phases=PHASES)


@cache
def clean(tool: Tool | None, around: Any, missing: float, precision: str, seed: int) -> Any:
    """What becomes of the training when nothing is planted: the run of a tool, or llueve's outcome."""
    training = Training(replace(SHAPE, missing=missing), seed, precision, phases=PHASES)
    if around is not None:
        around(training, np.random.default_rng(0))
    if tool is None:
        return training.run()
    run = Run(training, None, 0, {training.attempt_at(each) for each in TIMES})
    conduct(tool, run)
    return run


def _clean_like(tool: Tool | None, kind: Fault, training: Training, seed: int) -> Any:
    around = kind.prepare if kind.prepare in AROUND else None
    return clean(tool, around, training.shape.missing, training.precision, seed)


def _ends_well(loss: float, like: float, tool: Tool | None) -> bool:
    found = [clean(tool, None, SHAPE.missing, "float32", seed) for seed in range(5)]
    losses = [last_loss(each) for each in found]
    return math.isfinite(loss) and loss - like <= max(losses) - min(losses)


def last_loss(found: Any) -> float:
    """Validation loss after the last epoch; NaN if there was none."""
    if isinstance(found, Run):
        return found.last_loss
    sound = bool(found.weights) and all(bool(each.isfinite().all()) for each in found.weights.values())
    loss = found.history[-1]["validation_loss"] if sound else None
    return math.nan if loss is None else float(loss)


def _same(one: dict[str, Tensor], other: dict[str, Tensor], apart: Any) -> bool:
    """Bit for bit, NaN too; but for the tensor that was damaged itself."""
    apart = apart[0] if isinstance(apart, tuple) else None

    def bits(each: Tensor) -> Tensor:
        return each.reshape(-1).view(torch.uint8)

    return all(torch.equal(bits(each), bits(other[name])) for name, each in one.items() if name != apart)


def _is_named(name: str, kind: Fault, truth: Any, words: str) -> bool:
    if KINDS[name]:
        return re.search(KINDS[name], words, re.IGNORECASE) is not None
    if kind.located.__name__ == "at_operation":
        return re.search(rf"\b{truth}Backward", words, re.IGNORECASE) is not None
    if isinstance(truth, set):
        return False  # no tool speaks of cells or samples
    where = truth[0] if isinstance(truth, tuple) else truth
    return bool(where) and where in words


def elsewhere(tool: Tool, name: str, kind: Fault, timing: str, seed: int, random: Random) -> Row:
    """One training of another tool with one fault, judged."""
    training = training_of(kind, seed)
    if kind.prepare is not None:
        kind.prepare(training, random)
    at, plant = training.attempt_at(timing), ELSEWHERE.get(name, kind.plant)
    run = Run(training, lambda mine, here: plant(mine, here, random), at, {at})
    conduct(tool, run)
    like = _clean_like(tool, kind, training, seed)
    usual = {words for _, words in like.told}
    # That the schedule moved before the optimiser is said of a first step that was left out, and blames the order of calls.
    told = [each for each in run.told if each[0] >= at and each[1] not in usual and "lr_scheduler.step" not in each[1]]
    first = min((number for number, _ in told), default=None)
    left_out = _same(run.before[at], run.after[at], None)
    return {
        "told": first == at or left_out,
        "mute": left_out and first != at,
        "later": first is not None and first > at and not left_out,
        "kept": left_out or _same(run.after[at], like.after[at], training.truth),
        "named": _is_named(name, kind, training.truth, " ".join(words for number, words in told if number == first)),
        "ends": _ends_well(run.last_loss, like.last_loss, tool),
        "words": [words[:300] for number, words in told if number == first],
    }


def in_llueve(name: str, kind: Fault, timing: str, seed: int, random: Random) -> Row:
    """The same in llueve."""
    training = training_of(kind, seed)
    if kind.prepare is not None:
        kind.prepare(training, random)
    at = training.attempt_at(timing)
    found: Outcome = training.run(lambda mine, here: kind.plant(mine, here, random), at)
    like = _clean_like(None, kind, training, seed)
    repaired = any(each["event"] == "repaired" for each in found.events)
    first = at if repaired else next(iter(found.refused_at), None)
    same = bool(found.weights) and _same(found.weights, like.weights, None)
    words = " ".join((found.reason, *((found.explanation.cause,) if found.explanation else ()), found.stop or ""))
    if kind.located is nowhere or repaired:
        named = _is_named(name, kind, training.truth, words)
    else:
        named = bool(kind.located(training.truth, found))
    return {
        "told": first == at,
        "mute": False,
        "later": first is not None and first > at,
        "kept": (first == at and found.untouched is True) or same,
        "named": named,
        "ends": _ends_well(last_loss(found), last_loss(like), None),
        "words": [words, found.error or ""],
    }


# The tables


def cell(rows: list[Row]) -> str:
    """Four marks."""
    marks = ""
    for letter, key in zip("TKNE", ("told", "kept", "named", "ends"), strict=True):
        count = sum(row[key] for row in rows)
        marks += letter if count == len(rows) else letter.lower() if count else "·"
    return marks


def tables(rows: list[Row]) -> str:
    """A line for each kind, and one for each tool."""
    tools, by = list(dict.fromkeys(row["tool"] for row in rows)), defaultdict(list)
    for row in rows:
        by[row["kind"], row["tool"]].append(row)
    lines = [f"| fault | {' | '.join(tools)} |", "| --- " * (len(tools) + 1) + "|"]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        lines.append(f"| {kind} | {' | '.join(cell(by[kind, tool]) for tool in tools)} |")
    lines += [
        "",
        "| tool | runs | told at the step | without a word | later | never | kept | named | ends well | bad end, never told |",
    ]
    lines.append("| --- " * 10 + "|")
    for tool in tools:
        some = [row for row in rows if row["tool"] == tool]
        never = [row for row in some if not row["told"] and not row["later"]]
        numbers = [sum(row[key] for row in some) for key in ("told", "mute", "later")]
        numbers += [len(never), *(sum(row[key] for row in some) for key in ("kept", "named", "ends"))]
        numbers.append(sum(not row["ends"] for row in never))
        lines.append(f"| {tool} | {len(some)} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def main() -> None:
    """Run, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="kinds with this in their name")
    parser.add_argument("--tools", default="", help="tools with this in their name")
    parser.add_argument("--json", type=Path, help="a line for each run, written as they end")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("llueve", "pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).propagate = False
    logging.getLogger("llueve").setLevel(logging.CRITICAL + 1)
    found, missing = trainers()
    columns: dict[str, Tool | None] = {**LOOPS, **found, "llueve": None}
    started, rows = time.perf_counter(), []
    for name, kind, timing in chosen(arguments.only):
        for seed in range(arguments.seeds):
            for column, tool in columns.items():
                if arguments.tools not in column:
                    continue
                began = time.perf_counter()
                random = np.random.default_rng((zlib.crc32(f"{name}|{timing}".encode()), seed))
                job = (name, kind, timing, seed, random)
                row = in_llueve(*job) if tool is None else elsewhere(tool, *job)
                seconds = round(time.perf_counter() - began, 2)
                rows.append({"kind": name, "tool": column, "timing": timing, "seed": seed, **row, "seconds": seconds})
                if arguments.json:
                    with arguments.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
    print(tables(rows))
    for each in missing:
        print(f"not run, since it cannot be imported: {each}")
    print(f"{len(rows)} runs in {time.perf_counter() - started:.0f} s; {versions()}")


if __name__ == "__main__":
    main()
