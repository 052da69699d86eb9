"""Speed of two processes on one core each, compared with one process on one core.

    python benchmarks/processes.py [--rounds 3] [--steps 30] [--only TEXT] [--tiny] [--json FILE]

Both train the same small Timer-XL on random data with the same global batch and one thread per process; each process is
held on a core of its own. A step is batch, forward, backward, sum of the gradients, reading and AdamW; the first steps are
left out.
"""

import os
import time
from datetime import timedelta
from statistics import median

import measure
import torch
from workloads import MEDIUM, SMALL, Workload, chosen

from llueve.distributed.processes import join_processes

CASES = {"width 64, 2 layers": SMALL, "width 256, 4 layers": MEDIUM}
WINDOWS, WARM_UP = 4096, 5


def train(sizes: dict[str, int], steps: int, cores: list[int]) -> float | None:
    """Train in one of the processes; process 0 returns the seconds of the steps."""
    os.sched_setaffinity(0, {cores[int(os.environ.get("LOCAL_RANK", "0"))]})
    torch.set_num_threads(1)
    with join_processes(timedelta(minutes=2)) as processes:
        trainer = Workload(**sizes).trainer(WINDOWS, processes=processes)
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                start = time.perf_counter()
            attempt = trainer.stepper.attempt()
            assert attempt is not None and trainer.state.guard.refuses(attempt.reading) is None
            trainer.stepper.apply(attempt)
            trainer.state.count_loss(len(attempt.rows), attempt.reading.loss)
        return time.perf_counter() - start if processes.is_first else None


def main() -> None:
    """Measure, print, and write."""
    given = measure.arguments(
        __doc__,
        3,
        train,
        steps={"type": int, "default": 30},
        cores={"type": int, "nargs": 2, "default": sorted(os.sched_getaffinity(0))[:2]},
    )
    found = {}
    for name, case in chosen(given, CASES).items():

        def seconds(count: int, case: Workload = case) -> float:
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            return measure.in_child(
                torchrun if count > 1 else None,
                {"OMP_NUM_THREADS": "1"},
                sizes=vars(case),
                steps=given.steps,
                cores=given.cores,
            )

        times = measure.alternate({"one": 1, "two": 2}, given.rounds, warm_ups=0, clock=seconds)
        ratio = measure.Ratio.of(times["one"], times["two"])
        rate = {form: given.steps * case.batch / median(each) for form, each in times.items()}
        found[name] = {"samples_per_s": rate, "ratio": ratio, "seconds": times}
        print(f"{name}: one process {rate['one']:.0f} samples/s, two {rate['two']:.0f}, {ratio} as many")
    measure.keep(given, cases=found)


if __name__ == "__main__":
    main()
