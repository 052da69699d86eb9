"""Time saved by the feature cache in the epochs of a frozen encoder.

    python benchmarks/feature_cache.py [--rounds 3] [--windows 6400] [--batch 64] [--only TEXT] [--tiny] [--json FILE]

A cached step is gather, forward, backward and AdamW of the head alone. The first epoch is the computation of the features
and one cached epoch. The data are random, of the shape of the Australian example: 23 variables, a tenth of the cells missing.
Times grow with the number of windows, so a share of them is measured; seconds are also given for 100,000 windows.
"""

import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import measure
import numpy as np
import torch
from workloads import MEDIUM, SMALL, Workload, chosen

from llueve.config import TrainConfig
from llueve.step.gradients import loss_and_gradients
from llueve.step.predict import as_batch
from llueve.training.batches.feature_cache import FeatureCache
from llueve.training.optimiser import build_optimiser
from llueve.training.phases import parameter_groups, plan

SITES, WHOLE = 49, 100_000
CASES = {
    "width 64, 2 layers, patches of 8, context 16": replace(SMALL, context=16),
    "width 256, 4 layers, patches of 8, context 32": MEDIUM,
    "width 1024, 8 layers, patches of 96, context 96": replace(
        MEDIUM, width=1024, layers=8, feed_forward=2048, patch=96, context=96
    ),
}
SHARES = {64: 1.0, 256: 0.2, 1024: 0.04}
"""Share of the windows that is measured, by width."""


def epochs(case: Workload, count_windows: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of computing the features, of opening them again, and of a cached epoch."""
    torch.manual_seed(0)
    number = max(case.batch, int(count_windows * SHARES.get(case.width, 1.0)))
    windows, part = case.windows(SITES, -(-number // SITES) + case.context - 1, missing=0.1)
    part, model, config = part[:number], case.classifier(), TrainConfig()
    model.encoder.requires_grad_(False)
    model.gap_embedding_D.requires_grad_(False)
    optimiser = build_optimiser(parameter_groups(model, plan(config)[0]))
    folders, order = (folder / str(each) for each in count()), np.random.default_rng(1)
    place, cache = next(folders), None

    def opened() -> None:
        nonlocal cache
        size = min(256, case.batch * 4)
        cache = FeatureCache.open(place, model, windows, part, limit_bytes=2**40, compute_batch=size)
        assert cache is not None

    def build() -> None:
        nonlocal place
        place = next(folders)
        opened()

    def epoch() -> None:
        assert cache is not None
        for rows in np.array_split(order.permutation(len(part)), max(1, len(part) // case.batch)):
            batch = replace(as_batch(windows, part[rows], torch.device("cpu")), features=cache.batch(rows))
            loss_and_gradients(model, batch, config, torch.float32)
            optimiser.adamw.step()

    times = measure.alternate({"build": build, "reopen": opened, "cached": epoch}, rounds)
    build_s, reopen_s, cached_s = (median(each) for each in times.values())
    assert cache is not None
    return {
        "windows": len(part),
        "build_s_per_window": build_s / len(part),
        "reopen_s": reopen_s,
        "cached_s_per_window": cached_s / len(part),
        "bytes_per_window": cache.rows[0].nbytes,
        "first_epoch_over_cached": (build_s + cached_s) / cached_s,
    }


def main() -> None:
    """Measure each case, print, and write."""
    given = measure.arguments(
        __doc__,
        3,
        windows={"type": int, "default": 6400},
        batch={"type": int, "default": 64, "help": "windows of a step"},
    )
    found = {}
    if given.tiny:
        given.windows, given.batch = 200, 16
    for name, case in chosen(given, CASES).items():
        case = replace(case, batch=given.batch)
        with tempfile.TemporaryDirectory() as folder:
            found[name] = row = epochs(case, given.windows, given.rounds, Path(folder))
        build, cached = row["build_s_per_window"], row["cached_s_per_window"]
        print(
            f"{name}, batch {case.batch}: features {build * 1e3:.3f} ms a window ({build * WHOLE:.0f} s of {WHOLE:,}, "
            f"{row['bytes_per_window'] * WHOLE / 1e9:.2f} GB), opened again in {row['reopen_s']:.2f} s, cached epoch "
            f"{cached * 1e3:.4f} ms a window ({cached * WHOLE:.1f} s); first epoch takes "
            f"{row['first_epoch_over_cached']:.0f} times as long as a cached one"
        )
    measure.keep(given, batch=given.batch, cases=found)


if __name__ == "__main__":
    main()
