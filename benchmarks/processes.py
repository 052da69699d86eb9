"""What a second process saves: samples per second of two processes, one core each, against one process on one core.

    python benchmarks/processes.py [--rounds 3] [--steps 30] [--json FILE]

Both train the same small Timer-XL on random data with the same global batch, one thread per process; each process is held
on a core of its own. They are measured in turn, and medians are told. A step is batch, forward, backward, sum of the
gradients, reading, AdamW; the first steps are left out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

CASES = {"width 64, 2 layers": (64, 2, 4, 128, 64), "width 256, 4 layers": (256, 4, 8, 512, 64)}
"""Width, layers, heads, feed-forward, and the global batch."""
CONTEXT, PATCH, VARIABLES, WINDOWS = 32, 8, 23, 4096
WARM_UP = 5


def work(name: str, steps: int, cores: list[int]) -> None:
    """The steps of one case, in one of the processes; process 0 tells samples per second."""
    os.sched_setaffinity(0, {cores[int(os.environ.get("LOCAL_RANK", "0"))]})
    import numpy as np
    import torch
    from rich.console import Console

    from llueve.config import GuardConfig, TrainConfig
    from llueve.model.classifier import TimerXLForClassification
    from llueve.model.timer_xl import TimerXL
    from llueve.training.course import Course, Surroundings
    from llueve.training.processes import joined
    from llueve.windows import Part, Windows

    torch.set_num_threads(1)
    width, layers, heads, feed_forward, size = CASES[name]
    random = np.random.default_rng(0)
    shape = (1, WINDOWS + CONTEXT, VARIABLES)
    values_STC = random.standard_normal(shape, np.float32)
    facts_TF = random.standard_normal((shape[1], 2), np.float32)
    windows = Windows(values_STC, np.ones(shape, bool), facts_TF, np.zeros((1, 0), np.float32), CONTEXT)
    end = np.arange(WINDOWS) + CONTEXT
    part = Part("training", np.zeros(WINDOWS, np.int64), end, random.integers(2, size=WINDOWS))
    torch.manual_seed(0)
    encoder = TimerXL(PATCH, width, layers, heads, feed_forward)
    model = TimerXLForClassification(encoder, 2, "variables", num_variables=VARIABLES, num_facts=2).train()
    with joined(timedelta(minutes=2)) as processes:
        config = TrainConfig(batch_size=size, precision="float32")
        around = Surroundings(
            lambda line: None, lambda **step: None, lambda: model, Console(quiet=True), processes=processes
        )
        course = Course(model, windows, part, replace(part[:64], name="validation"), config, GuardConfig(), around)
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                begun = time.perf_counter()
            attempt = course.attempt()
            assert attempt is not None and course.guard.refuses(attempt.reading) is None
            course.apply(attempt)
            course.place.batches += 1
        if processes.is_first:
            print(json.dumps(steps * size / (time.perf_counter() - begun)))


def measure(name: str, count: int, steps: int, cores: list[int]) -> float:
    """Samples per second of one or two processes."""
    launcher = [] if count == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    worker = [__file__, "--case", name, "--steps", str(steps), "--cores", *map(str, cores)]
    done = subprocess.run(
        [sys.executable, *launcher, *worker],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, nargs="*", default=sorted(os.sched_getaffinity(0))[:2])
    given = parser.parse_args()
    if given.case:
        work(given.case, given.steps, given.cores)
        return
    found = {}
    for name in CASES:
        rounds = [
            tuple(measure(name, count, given.steps, given.cores) for count in (1, 2)) for _ in range(given.rounds)
        ]
        one, two = (statistics.median(column) for column in zip(*rounds, strict=True))
        found[name] = {"one": one, "two": two, "ratio": two / one, "rounds": rounds}
        print(f"{name}: one process {one:.0f} samples/s, two {two:.0f}, {two / one:.2f} times as many")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
