"""The progress bar of a training: one bar per epoch, with loss, skill, rate, speed and memory beside it."""

import os
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Task

from llueve.progress import Fact, ProgressBar, clock, shortened

LONGEST_PHASE = 12
"""Characters of a phase's name beside the bar."""
STATM = Path("/proc/self/statm")


class TrainingProgress(ProgressBar):
    """One bar for each of all `epochs`, with the memory of a device."""

    def __init__(self, console: Console, epochs: int, device: torch.device) -> None:
        super().__init__(console)
        self._epochs, self._device = epochs, device
        self._loss: float | None = None
        self._skill: float | None = None
        self._rate, self._skipped, self._batch = 0.0, 0, 0

    def start_epoch(self, phase: str, epoch: int, steps: int, done: int, batch: int) -> None:
        """Begin the bar of an epoch, counted from 1, with `done` of its `steps`, each of `batch` windows."""
        self._loss, self._batch = None, batch
        self.restart(f"{shortened(phase, LONGEST_PHASE)} {epoch}/{self._epochs}", steps, done)

    def step(self, done: int, loss: float, rate: float, skipped: int) -> None:
        """Show the number of finished batches, the epoch's mean loss, the rate, and the skipped samples."""
        self._loss, self._rate, self._skipped = loss, rate, skipped
        self.reach(done)

    def validated(self, skill: float | None) -> None:
        """Show the skill on validation until the next one; None shows none."""
        self._skill = skill

    def facts(self, task: Task) -> list[Fact]:
        """The facts beside the bar, from left to right."""
        left = task.time_remaining
        memory = memory_bytes(self._device)
        return [
            (3, f"{task.completed:.0f}/{task.total or 0:.0f}"),
            (0, "" if self._loss is None else f"loss {self._loss:.4f}"),
            (2, "" if self._skill is None else f"skill {self._skill:.3f}"),
            (7, f"rate {self._rate:.0e}"),
            (5, "" if task.speed is None else f"{task.speed * self._batch:,.0f}/s"),
            (1, "" if left is None else f"{clock(left)} left"),
            (6, "" if memory is None else _size(memory)),
            (4, f"skipped {self._skipped}"),
        ]


def memory_bytes(device: torch.device) -> int | None:
    """Memory in use: torch's allocation on a GPU, else the resident memory of this process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if not STATM.is_file():
        return None
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
