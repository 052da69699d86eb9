"""What gathering windows costs beside the steps that use them.

    python benchmarks/loading.py [--seconds 2] [--json FILE]

The loader alone: windows a second on the spot, and through the thread that gathers ahead, for random windows of a panel,
a tenth of whose cells are missing. The model: windows a second of training steps (forward, backward, clipping, AdamW) with
the smallest model of that shape, and with the example's own. The loader should be at least twenty times as quick.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from llueve.config import TrainConfig, load_config
from llueve.forecasting import as_batch
from llueve.model.classifier import TimerXLForClassification
from llueve.model.timer_xl import TimerXL
from llueve.stability.step import Batch, loss_and_gradients
from llueve.training.loading import Loader
from llueve.training.optimiser import build_optimiser
from llueve.windows import Part, Windows

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALLEST = (16, 1, 2, 32)
"""Width, layers, heads, width of the feed-forward."""
CASES = {
    "49 sites, daily, context 32": (49, 3500, 20, 32, 64, (8, *SMALLEST)),
    "1 site, hourly, context 1440": (1, 35_040, 27, 1440, 16, (96, *SMALLEST)),
    "seattle.toml": (1, 1461, 8, *([None] * 3)),
    "weather_aus.toml": (49, 3500, 23, *([None] * 3)),
    "peru_era5.toml": (5, 17_520, 9, *([None] * 3)),
}
"""Sites, steps, variables, context, batch, and patch length with the sizes of the encoder; None: as the example has it."""


def sized(name: str, case: tuple[Any, ...]) -> tuple[Any, ...]:
    """A case with what its example says."""
    if case[3] is not None:
        return case
    config = load_config(EXAMPLES / name)
    model = config.model
    sizes = (model.patch_length, model.width, model.layers, model.heads, model.feed_forward)
    return (*case[:3], config.windows.context, config.train.batch_size, sizes)


def data(sites: int, times: int, variables: int, context: int) -> tuple[Windows, Part]:
    """A random panel, laid out as `build_windows` does, and all of its windows."""
    random = np.random.default_rng(0)
    observed_SCT = random.random((sites, variables, times), np.float32) > 0.1
    values_SCT = random.standard_normal((sites, variables, times), np.float32) * observed_SCT
    site, end = np.nonzero(np.ones((sites, times - context + 1), bool))
    part = Part("training", site, end + context - 1, random.integers(2, size=len(site)))
    facts_TF, statics_SF = random.standard_normal((times, 2), np.float32), np.zeros((sites, 0), np.float32)
    return Windows(values_SCT.transpose(0, 2, 1), observed_SCT.transpose(0, 2, 1), facts_TF, statics_SF, context), part


def batches(part: Part, size: int) -> Iterator[NDArray[np.int64]]:
    """Positions of random batches, without end."""
    random = np.random.default_rng(1)
    while True:
        order = random.permutation(len(part))
        yield from (order[start : start + size] for start in range(0, len(part) - size + 1, size))


def per_second(take: Callable[[], Any], size: int, seconds: float) -> float:
    """Windows a second, once what is done first is over."""
    for _ in range(3):
        take()
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        take()
        count += 1
    return count * size / spent


def loader_speed(gather: Callable[..., Batch], part: Part, size: int, ahead: int, seconds: float) -> float:
    """Windows a second of the loader alone."""
    loader, coming = Loader(gather, ahead), batches(part, size)
    waiting = list(islice(coming, ahead + 1))

    def take() -> None:
        waiting.append(next(coming))
        loader.take(waiting.pop(0), waiting)

    try:
        return per_second(take, size, seconds)
    finally:
        loader.close()


def step_speed(windows: Windows, part: Part, size: int, sizes: tuple[int, ...], seconds: float) -> float:
    """Windows a second of training steps on a batch that is there already."""
    torch.manual_seed(0)
    variables = windows.values_STC.shape[2]
    model = TimerXLForClassification(TimerXL(*sizes), 2, "variables", num_variables=variables, num_facts=2).train()
    optimiser, config = (
        build_optimiser([{"params": list(model.parameters()), "lr": 1e-3}]),
        TrainConfig(batch_size=size),
    )
    batch = as_batch(windows, part[next(batches(part, size))], torch.device("cpu"))

    def step() -> None:
        loss_and_gradients(model, batch, config, torch.float32)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimiser.adamw.step()

    return per_second(step, size, seconds)


def main() -> None:
    """Measure every case, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {}
    for name, case in CASES.items():
        sites, times, variables, context, size, sizes = sized(name, case)
        windows, part = data(sites, times, variables, context)

        def gather(chosen: NDArray[np.int64], windows: Windows = windows, part: Part = part) -> Batch:
            return as_batch(windows, part[chosen], torch.device("cpu"))

        row = {
            "batch": size,
            "loader": loader_speed(gather, part, size, 0, arguments.seconds),
            "loader_ahead": loader_speed(gather, part, size, 2, arguments.seconds),
            "steps": step_speed(windows, part, size, sizes, arguments.seconds),
        }
        row["ratio"] = row["loader"] / row["steps"]
        found[name] = row
        print(
            f"{name}: {variables} variables × {context}, batch {size}: loader {row['loader']:,.0f} windows/s "
            f"({row['loader_ahead']:,.0f} by its thread), width {sizes[1]} × {sizes[2]} trains on {row['steps']:,.0f}: "
            f"{row['ratio']:,.0f} ×"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
