"""What the feature cache saves: epochs of a frozen encoder, first with its computation and then from the cache.

    python benchmarks/feature_cache.py [--windows 6400] [--batch 64] [--json FILE]

A cached step is gather, forward, backward and AdamW of the head alone. The first epoch is the computation of the features
and one cached epoch. Data are random, of the shape of the Australian example: 23 variables, a tenth of the cells missing.
Times grow with the number of windows, so a part of them is measured; seconds are also given for 100,000 windows.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llueve.config import TrainConfig
from llueve.forecasting import as_batch
from llueve.model.classifier import TimerXLForClassification
from llueve.model.timer_xl import TimerXL
from llueve.stability.step import Batch, loss_and_gradients
from llueve.training.feature_cache import FeatureCache
from llueve.training.optimiser import build_optimiser
from llueve.training.phases import parameter_groups, plan
from llueve.windows import Part, Windows

CASES = {
    "width 64, 2 layers, patches of 8, context 16": (16, TimerXL, (8, 64, 2, 4, 128), 1.0),
    "width 256, 4 layers, patches of 8, context 32": (32, TimerXL, (8, 256, 4, 8, 512), 0.2),
    "width 1024, 8 layers, patches of 96, context 96": (96, TimerXL, (96, 1024, 8, 8, 2048), 0.04),
}
"""Context, encoder with its sizes, and the share of the windows that is measured."""
SITES, VARIABLES, WHOLE = 49, 23, 100_000


def data(windows: int, context: int) -> tuple[Windows, Part]:
    """Random windows, an equal number of each site."""
    random = np.random.default_rng(0)
    times = -(-windows // SITES) + context - 1
    observed_STC = random.random((SITES, times, VARIABLES)) > 0.1
    values_STC = random.standard_normal((SITES, times, VARIABLES), np.float32) * observed_STC
    site, end = np.nonzero(np.ones((SITES, times - context + 1), bool))
    part = Part("training", site, end + context - 1, random.integers(2, size=len(site)))
    facts_TF = random.standard_normal((times, 2), np.float32)
    return Windows(values_STC, observed_STC, facts_TF, np.zeros((SITES, 0), np.float32), context), part[:windows]


def measure(case: tuple[Any, ...], windows: int, size: int, folder: Path) -> dict[str, Any]:
    """Seconds per window of the computation and of cached steps, and seconds of opening again."""
    context, encoder, sizes, share = case
    torch.manual_seed(0)
    given, part = data(max(size, int(windows * share)), context)
    model = TimerXLForClassification(encoder(*sizes), 2, "variables", num_variables=VARIABLES, num_facts=2)
    model.encoder.requires_grad_(False)
    model.gap_embedding_D.requires_grad_(False)
    model.train()
    config = TrainConfig()
    optimiser = build_optimiser(parameter_groups(model, plan(config)[0]))
    options: dict[str, Any] = {"limit_bytes": 2**40, "compute_batch": min(256, size * 4)}
    start = time.perf_counter()
    assert FeatureCache.open(folder, model, given, part, **options) is not None
    built = time.perf_counter()
    cache = FeatureCache.open(folder, model, given, part, **options)
    opened = time.perf_counter()
    assert cache is not None
    order = np.random.default_rng(1)

    def epoch() -> float:
        begin = time.perf_counter()
        for rows in np.array_split(order.permutation(len(part)), max(1, len(part) // size)):
            plain = as_batch(given, part[rows], torch.device("cpu"))
            batch = Batch(plain.x_BLC, plain.observed_BLC, plain.facts_BF, plain.y_B, cache.batch(rows))
            loss_and_gradients(model, batch, config, torch.float32)
            optimiser.adamw.step()
        return time.perf_counter() - begin

    epoch()
    cached = min(epoch() for _ in range(3)) / len(part)
    build = (built - start) / len(part)
    return {
        "windows": len(part),
        "batch": size,
        "build_s_per_window": build,
        "reopen_s": opened - built,
        "cached_s_per_window": cached,
        "bytes_per_window": cache.rows[0].nbytes,
        "first_epoch_over_cached": (build + cached) / cached,
    }


def main() -> None:
    """Measure every case, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=6400)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = row = measure(case, arguments.windows, arguments.batch, Path(folder) / "features")
        print(
            f"{name}, batch {row['batch']}: features {row['build_s_per_window'] * 1e3:.3f} ms a window "
            f"({row['build_s_per_window'] * WHOLE:.0f} s of {WHOLE:,}, {row['bytes_per_window'] * WHOLE / 1e9:.2f} GB), "
            f"opened again in {row['reopen_s']:.2f} s, cached epoch {row['cached_s_per_window'] * 1e3:.4f} ms a window "
            f"({row['cached_s_per_window'] * WHOLE:.1f} s); first epoch {row['first_epoch_over_cached']:.0f} × a cached one"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
