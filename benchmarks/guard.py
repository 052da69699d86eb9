"""What the guard costs: training steps with and without it in turn.

    python benchmarks/guard.py [--pairs 200] [--json FILE]

A step is forward, backward, clipping and AdamW. Without the guard, loss and gradient norm alone are read from the device,
as any loop that shows its progress does. The median of the pairs' differences is quoted with a 95 % interval by bootstrap.
"""

import argparse
import io
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from llueve.config import GuardConfig, TrainConfig
from llueve.model.classifier import TimerXLForClassification
from llueve.model.timer_xl import TimerXL
from llueve.stability.step import loss_and_gradients
from llueve.training.course import Course, Surroundings
from llueve.windows import Part, Windows

CASES = {
    "width 256, 4 layers, batch 16": {"batch": 16, "width": 256, "layers": 4, "feed_forward": 512},
    "width 1024, 8 layers, batch 2": {"batch": 2, "width": 1024, "layers": 8, "feed_forward": 2048},
}
STEPS, VARIABLES = 1440, 27


def build_course(case: dict[str, int], precision: torch.dtype) -> Course:
    """A training on random data at its beginning."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    times = STEPS + 600

    def fresh() -> TimerXLForClassification:
        encoder = TimerXL(96, case["width"], case["layers"], 8, case["feed_forward"])
        return TimerXLForClassification(encoder, 2, "variables", num_variables=VARIABLES, num_facts=2).train()

    windows = Windows(
        values_STC=random.standard_normal((2, times, VARIABLES)).astype(np.float32),
        observed_STC=np.ones((2, times, VARIABLES), bool),
        calendar_TF=random.standard_normal((times, 2)).astype(np.float32),
        statics_SF=np.zeros((2, 0), np.float32),
        context=STEPS,
    )
    site, end = (each.ravel() for each in np.meshgrid([0, 1], np.arange(STEPS, times), indexing="ij"))
    part = Part("training", site, end, random.integers(0, 2, len(site)))
    config = TrainConfig(batch_size=case["batch"], precision=str(precision).removeprefix("torch."))  # type: ignore[arg-type]
    surroundings = Surroundings(lambda _: None, lambda **_: None, fresh, Console(file=io.StringIO()))
    course = Course(fresh(), windows, part, part[:64], config, GuardConfig(), surroundings)
    course.model.train()
    return course


def measure(case: dict[str, int], pairs: int) -> dict[str, Any]:
    """Seconds of both forms, and the guard's share of a step."""
    course = build_course(case, torch.float32)
    config, guard = course.effective_config, course.guard
    batch = course.batch(np.arange(case["batch"]))

    def step(number: int, guarded: bool) -> float:
        start = time.perf_counter()
        loss = loss_and_gradients(course.model, batch, config, torch.float32)
        norm = nn.utils.clip_grad_norm_(course.model.parameters(), config.clip_norm, foreach=True)
        course.place.batches = number
        if guarded:
            assert guard.refuses(course.read(batch, loss, norm, config)) is None
        else:
            torch.stack((loss, norm)).tolist()
        course.optimiser.adamw.step()
        return time.perf_counter() - start

    for number in range(4):
        step(number, guarded=True)
    # Which of the two comes first changes from pair to pair.
    times = [(step(n, False), step(n, True)) if n % 2 else (step(n, True), step(n, False))[::-1] for n in range(pairs)]
    shares = np.array([(guarded - plain) / plain for plain, guarded in times])
    draws = np.random.default_rng(0).choice(shares, (2000, pairs))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    # The guard alone, on what a step leaves: its share is far below the noise of a whole step.
    loss, norm = (torch.tensor(each, device=course.device) for each in (0.7, 1.0))
    alone = []
    for number in range(50):
        start = time.perf_counter()
        course.place.batches = number
        guard.refuses(course.read(batch, loss, norm, config))
        alone.append(time.perf_counter() - start)
    plain_s = median(plain for plain, _ in times)
    return {
        "pairs": pairs,
        "plain_s": round(plain_s, 4),
        "guarded_s": round(median(guarded for _, guarded in times), 4),
        "share": round(float(np.median(shares)), 5),
        "share_95": [round(float(low), 5), round(float(high), 5)],
        "guard_alone_s": round(median(alone), 5),
        "guard_alone_share": round(median(alone) / plain_s, 5),
    }


def main() -> None:
    """Measure both models, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {}
    for name, case in CASES.items():
        found[name] = measure(case, arguments.pairs)
        row = found[name]
        print(
            f"{name}: step {row['plain_s']:.3f} s, guard {row['share']:+.2%} of it "
            f"({row['share_95'][0]:+.2%} to {row['share_95'][1]:+.2%}, {row['pairs']} pairs); alone "
            f"{row['guard_alone_s'] * 1e3:.2f} ms, {row['guard_alone_share']:.2%}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
