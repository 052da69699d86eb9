"""Speed of gathering windows, compared with the training steps that use them.

    python benchmarks/loading.py [--rounds 7] [--seconds 0.3] [--only TEXT] [--tiny] [--json FILE]

Loader: windows per second without and with its thread, for random windows of a panel with a tenth of its cells missing.
Model: windows per second of training steps (forward, backward, clipping, AdamW), with the smallest model of that shape and
with the models of the examples. The loader is expected to be at least twenty times as fast as the model.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import median

import measure
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from workloads import Workload

from llueve.config import TrainConfig, load_config
from llueve.samples.split import Part
from llueve.samples.windows import Windows
from llueve.step.gradients import loss_and_gradients
from llueve.step.predict import as_batch
from llueve.training.batches.prefetch import AHEAD, Loader
from llueve.training.optimiser import build_optimiser

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALLEST = Workload(batch=16, width=16, layers=1, feed_forward=32, heads=2)


def example(name: str, variables: int) -> Workload:
    """The sizes that an example's configuration has."""
    config = load_config(EXAMPLES / name)
    model = config.model
    return Workload(
        batch=config.train.batch_size,
        width=model.width,
        layers=model.layers,
        feed_forward=model.feed_forward,
        heads=model.heads,
        patch=model.patch_length,
        context=config.windows.context,
        variables=variables,
    )


def cases() -> dict[str, tuple[int, int, Workload]]:
    """Sites, steps and sizes of each case."""
    daily = Workload(batch=64, width=16, layers=1, feed_forward=32, heads=2, patch=8, context=32, variables=20)
    return {
        "49 sites, daily, context 32": (49, 3500, daily),
        "1 site, hourly, context 1440": (1, 35_040, SMALLEST),
        "seattle.toml": (1, 1461, example("seattle.toml", 8)),
        "weather_aus.toml": (49, 3500, example("weather_aus.toml", 23)),
        "peru_era5.toml": (5, 17_520, example("peru_era5.toml", 9)),
    }


def batches(part: Part, size: int) -> Iterator[NDArray[np.int64]]:
    """Positions of random batches, without end."""
    random = np.random.default_rng(1)
    while True:
        order = random.permutation(len(part))
        yield from (order[start : start + size] for start in range(0, len(part) - size + 1, size))


def loading(windows: Windows, part: Part, size: int, ahead: int) -> tuple[Loader, Callable[[], None]]:
    """A loader, and a function that takes its next batch."""
    loader = Loader(lambda rows: as_batch(windows, part[rows], torch.device("cpu")), ahead)
    coming = batches(part, size)
    waiting = list(islice(coming, ahead + 1))

    def take() -> None:
        waiting.append(next(coming))
        loader.take(waiting.pop(0), waiting)

    return loader, take


def training(case: Workload, windows: Windows, part: Part) -> Callable[[], None]:
    """A function that does a training step on a batch in memory."""
    torch.manual_seed(0)
    model, config = case.classifier(), TrainConfig(batch_size=case.batch)
    optimiser = build_optimiser([{"params": list(model.parameters()), "lr": 1e-3}])
    batch = as_batch(windows, part[next(batches(part, case.batch))], torch.device("cpu"))

    def step() -> None:
        loss_and_gradients(model, batch, config, torch.float32)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimiser.adamw.step()

    return step


def rates(sites: int, times: int, case: Workload, rounds: int, seconds: float) -> dict[str, float]:
    """Windows per second of the loader, of the loader with its thread, and of training steps."""
    windows, part = case.windows(sites, times, missing=0.1)
    loaders = {"loader": loading(windows, part, case.batch, 0), "thread": loading(windows, part, case.batch, AHEAD)}
    work = {**{name: take for name, (_, take) in loaders.items()}, "steps": training(case, windows, part)}
    warm = measure.spread(measure.alternate(work, 3))
    counts = {name: max(1, round(seconds / warm[name]["median"])) for name in work}

    def repeated(name: str) -> None:
        for _ in range(counts[name]):
            work[name]()

    found = measure.alternate({name: lambda name=name: repeated(name) for name in work}, rounds)  # type: ignore[misc]
    for loader, _ in loaders.values():
        loader.close()
    return {name: counts[name] * case.batch / median(each) for name, each in found.items()}


def main() -> None:
    """Measure each case, print, and write."""
    given = measure.arguments(__doc__, 7, seconds={"type": float, "default": 0.3, "help": "length of each turn"})
    found = {}
    chosen = {"tiny": (2, 2000, SMALLEST)} if given.tiny else cases()
    for name, (sites, times, case) in chosen.items():
        if given.only not in name:
            continue
        found[name] = row = rates(sites, times, case, given.rounds, given.seconds)
        print(
            f"{name}: {case.variables} variables × {case.context}, batch {case.batch}: loader {row['loader']:,.0f} windows/s "
            f"({row['thread']:,.0f} with its thread), width {case.width} × {case.layers} trains on {row['steps']:,.0f}: "
            f"{row['loader'] / row['steps']:,.0f} times as fast"
        )
    measure.keep(given, cases=found)


if __name__ == "__main__":
    main()
