"""Cost of the guard: training steps with and without it, and the search for the cause of a refused step.

    python benchmarks/guard.py [--rounds 200] [--only TEXT] [--tiny] [--json FILE]

It runs on the CUDA device if there is one, there also in bfloat16. A step is forward, backward, clipping and AdamW. With
the guard it is the loop's own step: `Stepper.read` (loss, gradient norm, all weights, buffers and moments in one read),
`Guard.refuses`, and `Stepper.apply`, which clips only if that changes the gradients. Without the guard torch clips, and loss
and gradient norm are read, as a loop with a progress bar does. Reading and judging are also timed alone. A trace is a
replay with every operation watched; an explanation is the whole search for the cause of a step with a NaN in its input.
Both are given in steps.
"""

from itertools import product
from statistics import median
from typing import Any

import measure
import numpy as np
import torch
from torch import nn
from workloads import Workload, chosen, name_of

from llueve.model.batch import Batch
from llueve.stability.diagnosis import Cause, Evidence, explain
from llueve.stability.diagnosis.trace import trace_step
from llueve.step.gradients import loss_and_gradients, total_norm
from llueve.training.batches.epoch import Drawn
from llueve.training.stepper import Attempt
from llueve.training.trainer import Trainer

BATCHES = 8


class Steps:
    """Steps of a training on batches in memory.

    Args:
        trainer: the training.
        size: windows of a batch.
    """

    def __init__(self, trainer: Trainer, size: int) -> None:
        self.trainer, self.state, self.stepper = trainer, trainer.state, trainer.stepper
        drawn = [Drawn(rows, 0) for rows in np.split(np.arange(BATCHES * size), BATCHES)]
        self.batches = [(each, trainer.batches.gather(each.chosen)) for each in drawn]
        self.clipped: list[bool] = []

    def attempt(self, drawn: Drawn, batch: Batch) -> Attempt:
        """A step up to the reading of its numbers."""
        config, random_state = self.state.config, self.state.random_state
        loss = loss_and_gradients(self.state.model, batch, config, self.stepper.precision)
        reading = self.stepper.read(batch, loss, total_norm(self.state.model), config)
        rows = self.trainer.batches.training[drawn.chosen]
        return Attempt(drawn, rows, batch, random_state, config, reading)

    def guarded(self, number: int = 0) -> None:
        """A step as the loop does it."""
        attempt = self.attempt(*self.batches[number % BATCHES])
        assert self.state.guard.refuses(attempt.reading) is None
        self.stepper.apply(attempt)
        self.clipped.append(attempt.reading.gradient_norm > attempt.config.clip_norm)

    def unguarded(self, number: int = 0) -> None:
        """The same step without the guard."""
        config, model, (_, batch) = self.state.config, self.state.model, self.batches[number % BATCHES]
        loss = loss_and_gradients(model, batch, config, self.stepper.precision)
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm, foreach=True)
        torch.stack((loss, norm)).tolist()
        self.state.optimiser.adamw.step()

    def judge(self) -> None:
        """Reading and judging alone, on the state that a step has left."""
        loss = norm = torch.tensor(0.7, device=self.state.device)
        self.state.guard.refuses(self.stepper.read(self.batches[0][1], loss, norm, self.state.config))

    def trace(self) -> None:
        """A replay of a step with every operation watched."""
        trace_step(self.state.model, self.batches[0][1], self.state.config, self.stepper.precision)

    def explain(self) -> None:
        """Search for the cause of a step with a NaN in its input."""
        drawn, batch = self.batches[0]
        batch.x_BLC[1, batch.x_BLC.shape[1] // 2, 3] = torch.nan
        attempt = self.attempt(drawn, batch)
        fault = self.state.guard.refuses(attempt.reading)
        assert fault is not None
        step = self.stepper.refused(attempt, fault)
        found = explain(step, Evidence(new_model=self.trainer.environment.new_model))
        assert found.cause == Cause.MISSING_INPUT


def costs(case: Workload, precision: torch.dtype, rounds: int) -> dict[str, Any]:
    """Seconds of both forms, the guard's share of a step, and trace and explanation in steps."""
    steps = Steps(case.trainer(BATCHES * case.batch, precision), case.batch)
    steps.stepper.set_rates(0.01)  # hundreds of steps on a few batches then remain those of a usual training
    turns = {"unguarded": iter(range(rounds + 2)), "guarded": iter(range(rounds + 2))}
    forms = {
        "unguarded": lambda: steps.unguarded(next(turns["unguarded"])),
        "guarded": lambda: steps.guarded(next(turns["guarded"])),
    }
    times = measure.alternate(forms, rounds, 2, measure.device_seconds)
    step_s = median(times["unguarded"])
    return {
        "step_s": step_s,
        "guard": measure.Ratio.of(times["guarded"], times["unguarded"]),
        "clipped": float(np.mean(steps.clipped)),
        "alone_s": median(measure.device_seconds(steps.judge) for _ in range(50)),
        "trace_steps": measure.device_seconds(steps.trace) / step_s,
        "explain_steps": measure.seconds(steps.explain) / step_s,
    }


def main() -> None:
    """Measure each model, print, and write."""
    given, found = measure.arguments(__doc__, 200), {}
    precisions = (torch.float32, torch.bfloat16) if torch.cuda.is_available() else (torch.float32,)
    for (case_name, case), precision in product(chosen(given).items(), precisions):
        name = f"{case_name}, {name_of(precision)}"
        found[name] = row = costs(case, precision, given.rounds)
        print(
            f"{name}: step {row['step_s']:.3f} s, with the guard {row['guard'].as_change}, {row['clipped']:.0%} clipped; "
            f"reading and judging alone {row['alone_s'] * 1e3:.2f} ms, {row['alone_s'] / row['step_s']:.2%}; "
            f"trace {row['trace_steps']:.1f} steps, explanation {row['explain_steps']:.0f} steps"
        )
    measure.keep(given, cases=found)


if __name__ == "__main__":
    main()
