"""The harness of the speed benchmarks: time, memory, command line and files.

Forms of the same work take turns in one run, so a machine whose speed drifts slows all of them. Medians are reported, and
the ratio of two forms comes with a 95 % interval. torch is not imported here: era5.py measures memory without it.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Self

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # libgomp reads it when torch is imported

import numpy as np

Work = Callable[[], object]
Times = dict[str, list[float]]
"""Seconds of each form, one per round."""
RESAMPLES = 2000
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def seconds(work: Work) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def device_seconds(work: Work) -> float:
    """Time of one call by the CUDA device's clock, from its first kernel to its last; wall time without such a device."""
    torch = sys.modules["torch"]
    if not torch.cuda.is_available():
        return seconds(work)
    torch.cuda.synchronize()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    work()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def alternate(
    forms: Mapping[str, Any], rounds: int, warm_ups: int = 1, clock: Callable[[Any], float] = seconds
) -> Times:
    """Time all forms in each round, in the given and the reverse order alternately; warm-up rounds are not counted.

    Args:
        forms: the work of each form, or what `clock` takes for it.
    """
    times: Times = {name: [] for name in forms}
    for number in range(warm_ups + rounds):
        for name in list(forms)[:: -1 if number % 2 else 1]:
            spent = clock(forms[name])
            if number >= warm_ups:
                times[name].append(spent)
    return times


def spread(times: Times) -> dict[str, Any]:
    """Median and quartiles of each form."""
    return {
        name: {"median": median(each), "quartiles": quantiles(each, n=4)[::2] if len(each) > 1 else each * 2}
        for name, each in times.items()
    }


@dataclass(frozen=True)
class Ratio:
    """Median over the rounds of one form's time divided by another's, with a 95 % interval by bootstrap."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, above: list[float], below: list[float]) -> Self:
        """Compare two forms round by round."""
        ratios = np.array(above) / np.array(below)
        draws = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
        low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
        return cls(float(np.median(ratios)), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.median:.2f} times ({self.low:.2f} to {self.high:.2f})"

    @property
    def as_change(self) -> str:
        """The ratio as an increase in percent."""
        return f"{self.median - 1:+.2%} ({self.low - 1:+.2%} to {self.high - 1:+.2%})"


def peak_mib() -> float:
    """Largest resident memory of this process since `forget_peak`, or since its start."""
    if STATUS.exists():  # not getrusage: there, a child's figure begins with the size of its parent
        lines = STATUS.read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> float:
    """Measure the peak from this call; returns the memory in use now, in MiB."""
    if FORGET.exists():
        FORGET.write_text("5")
    return peak_mib()


def machine() -> str:
    """Processor, cores, and versions of Python and torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    words = [model, f"{os.cpu_count()} cores", f"Python {platform.python_version()}"]
    if torch := sys.modules.get("torch"):
        words.append(f"torch {torch.__version__} with {torch.get_num_threads()} threads")
    return ", ".join(words)


# Command line, child processes and results


def arguments(
    description: str | None, rounds: int, child: Callable[..., Any] | None = None, **options: dict[str, Any]
) -> argparse.Namespace:
    """Parse the command line and print the machine; a child process does its part and ends here.

    Args:
        rounds: default of `--rounds`.
        child: work of a child process, called with what `in_child` passes on; the result is printed as JSON.
        options: further options, each with its settings for argparse.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each form (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with this in their name")
    parser.add_argument("--tiny", action="store_true", help="small sizes, only to see that the script works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    for name, settings in options.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    given = parser.parse_args()
    if given.child:
        assert child is not None
        found = child(**json.loads(given.child))
        if found is not None:
            print(json.dumps(found))
        raise SystemExit
    print(machine(), flush=True)
    return given


def in_child(launcher: list[str] | None = None, environment: dict[str, str] | None = None, **work: Any) -> Any:
    """Result of the script's `child` in a fresh process."""
    command = [sys.executable, *(launcher or ()), sys.argv[0], "--child", json.dumps(work)]
    surroundings = {**os.environ, **(environment or {})}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=surroundings)
    return json.loads(done.stdout.splitlines()[-1])


def keep(given: argparse.Namespace, **found: Any) -> None:
    """Write the figures, if a file was asked for."""
    if given.json:
        content = {"machine": machine(), **found}
        given.json.write_text(json.dumps(content, indent=2, default=vars) + "\n", encoding="utf-8")
