"""What the guard costs: training steps with and without it in turn; and what it costs to find the cause of a bad one.

    python benchmarks/guard.py [--pairs 200] [--case 256] [--json FILE]

A step is forward, backward, clipping and AdamW. With the guard it is what the loop does: `Course.read` (loss, gradient norm,
all weights, buffers and moments in one read), `Guard.refuses`, and `Course.apply`, which clips only where that changes the
gradients. Without it torch clips, and loss and gradient norm alone are read, as any loop that shows its progress does. Which
of the two comes first changes from pair to pair; the median of the pairs' ratios is quoted with a 95 % interval by bootstrap.
Besides: reading and judging alone, again and again on what a step has left, in the same units; a step that is replayed with
every operation watched; and the whole explanation of a step whose input held a NaN.
"""

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from llueve.config import GuardConfig, TrainConfig
from llueve.model.classifier import TimerXLForClassification
from llueve.model.timer_xl import TimerXL
from llueve.stability.causes import Step, explain
from llueve.stability.step import Batch, loss_and_gradients, random_states, total_norm
from llueve.stability.trace import trace_step
from llueve.training.course import Attempt, Course, Surroundings
from llueve.windows import Part, Windows

CASES = {
    "256": {"batch": 16, "width": 256, "layers": 4, "feed_forward": 512},
    "1024": {"batch": 2, "width": 1024, "layers": 8, "feed_forward": 2048},
}
STEPS, VARIABLES, BATCHES = 1440, 27, 8


def fresh(case: dict[str, int]) -> TimerXLForClassification:
    """A new model."""
    encoder = TimerXL(96, case["width"], case["layers"], 8, case["feed_forward"])
    return TimerXLForClassification(encoder, 2, "variables", num_variables=VARIABLES, num_facts=2).train()


def course_of(case: dict[str, int], precision: torch.dtype = torch.float32) -> Course:
    """The course of a training on random windows."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    count = BATCHES * case["batch"]
    values_STC = random.standard_normal((1, STEPS - 1 + count, VARIABLES), np.float32)
    facts_TF = random.standard_normal((values_STC.shape[1], 2), np.float32)
    windows = Windows(values_STC, np.ones_like(values_STC, bool), facts_TF, np.zeros((1, 0), np.float32), STEPS)
    end = np.arange(count) + STEPS - 1
    part = Part("training", np.zeros_like(end), end, random.integers(2, size=count))
    surroundings = Surroundings(lambda _: None, lambda **_: None, lambda: fresh(case), Console(file=io.StringIO()))
    name = str(precision).removeprefix("torch.")
    config = TrainConfig(batch_size=case["batch"], precision=name, epochs=10_000)  # type: ignore[arg-type]
    return Course(fresh(case), windows, part, part, config, GuardConfig(), surroundings)


def guarded(course: Course, rows: Part, batch: Batch) -> float:
    """A step as the loop does it; returns the gradient norm."""
    config, state = course.effective_config, course.random_state
    loss = loss_and_gradients(course.model, batch, config, course.precision)
    reading = course.read(batch, loss, total_norm(course.model), config)
    assert course.guard.refuses(reading) is None
    course.apply(Attempt(rows, np.arange(len(rows)), course.place.position, batch, state, config, reading))
    return reading.gradient_norm


def plain(course: Course, batch: Batch) -> None:
    """The same step without the guard."""
    config = course.effective_config
    loss = loss_and_gradients(course.model, batch, config, course.precision)
    norm = nn.utils.clip_grad_norm_(course.model.parameters(), config.clip_norm, foreach=True)
    torch.stack((loss, norm)).tolist()
    course.optimiser.adamw.step()


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(case: dict[str, int], pairs: int) -> dict[str, Any]:
    """Seconds of both forms, the guard's share of a step, and explanations in steps."""
    course = course_of(case)
    chosen = [np.arange(first, first + case["batch"]) for first in range(0, len(course.training), case["batch"])]
    batches = [(course.training[rows], course.batch(rows)) for rows in chosen]
    course.optimiser.set_rates(0.01)  # so that hundreds of steps on a few batches stay those of a training that goes on
    norms, times = [], []
    for number in range(-2, pairs):
        rows, batch = batches[number % len(batches)]
        forms = {
            "plain": lambda batch=batch: plain(course, batch),
            "guarded": lambda rows=rows, batch=batch: norms.append(guarded(course, rows, batch)),
        }
        order = list(forms) if number % 2 else list(forms)[::-1]
        took = {name: seconds(forms[name]) for name in order}
        if number >= 0:  # the first two pairs are to warm up
            times.append((took["plain"], took["guarded"]))
    ratios = np.array([with_guard / without for without, with_guard in times]) - 1
    draws = np.random.default_rng(0).choice(ratios, (2000, pairs))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    step_s = median(without for without, _ in times)
    alone_s = median(seconds(lambda: _judge(course, batch)) for _ in range(50))
    return {
        "pairs": pairs,
        "plain_s": step_s,
        "guarded_s": median(with_guard for _, with_guard in times),
        "share": float(np.median(ratios)),
        "share_95": [float(low), float(high)],
        "clipped": float(np.mean(np.array(norms) > course.effective_config.clip_norm)),
        "alone_s": alone_s,
        "alone_share": alone_s / step_s,
        **{f"{name}_steps": each / step_s for name, each in _explanations(course, batch, case).items()},
    }


def _judge(course: Course, batch: Batch) -> None:
    loss = norm = torch.tensor(0.7)
    course.guard.refuses(course.read(batch, loss, norm, course.effective_config))


def _explanations(course: Course, batch: Batch, case: dict[str, int]) -> dict[str, float]:
    """Seconds of a watched replay of a sound step, and of explaining one with a NaN among its inputs."""
    config, state = course.effective_config, random_states(course.device)
    traced_s = seconds(lambda: trace_step(course.model, batch, config, course.precision))
    batch.x_BLC[1, STEPS // 2, 3] = torch.nan
    moments: dict[str, Tensor] = {}
    for name, parameter in course.model.named_parameters():
        memory = course.optimiser.adamw.state.get(parameter, {})
        moments |= {f"{name}.{key}": torch.as_tensor(value) for key, value in memory.items()}
    rates = tuple(course.optimiser.rates)
    step = Step(course.model, batch, config, course.precision, state, "loss", moments, rates, lambda: fresh(case))
    found = []
    explained_s = seconds(lambda: found.append(explain(step)))
    assert found[0].cause == "missing_input"
    return {"trace": traced_s, "explain": explained_s}


def main() -> None:
    """Measure the models, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--case", choices=CASES, action="append", help="width; all if left out")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {}
    for name in arguments.case or CASES:
        case = CASES[name]
        found[name] = row = measure(case, arguments.pairs)
        low, high = row["share_95"]
        print(
            f"width {name}, {case['layers']} layers, batch {case['batch']}: step {row['plain_s']:.3f} s, with the guard "
            f"{row['share']:+.2%} ({low:+.2%} to {high:+.2%}, {row['pairs']} pairs, {row['clipped']:.0%} clipped); reading and "
            f"judging alone {row['alone_s'] * 1e3:.2f} ms, {row['alone_share']:.2%}; trace {row['trace_steps']:.1f} steps, "
            f"explanation {row['explain_steps']:.0f} steps"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
