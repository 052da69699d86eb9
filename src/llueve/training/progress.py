"""The progress bar of a training run: as much as the terminal has room for, and nothing where none watches."""

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SHORTEST_BAR, LONGEST_BAR = 6, 24
"""Columns; what does not fit beside the shortest one is left out."""
STATM = Path("/proc/self/statm")


class TrainingProgress:
    """One bar per epoch; the line on the screen is never longer than the terminal is wide.

    Args:
        console: where it is drawn.
        epochs: of all phases.
        device: whose memory is told: what torch has allocated on a GPU, else what this process has resident.
    """

    def __init__(self, console: Console, epochs: int, device: torch.device) -> None:
        self._epochs = epochs
        self._progress = Progress(
            _Line(console, device),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, loss=None, skill=None, rate=0.0, skipped=0, batch=0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start_epoch(self, phase: str, epoch: int, steps: int, done: int, batch: int) -> None:
        """Begin the bar of one epoch, counted from 1, with what is done of its steps of so many windows."""
        name = phase if len(phase) <= 12 else f"{phase[:11]}…"
        description = f"{name} {epoch}/{self._epochs}"
        self._progress.update(self._task, loss=None, batch=batch)
        self._progress.reset(self._task, total=steps, completed=done, description=description)

    def step(self, done: int, loss: float, rate: float, skipped: int) -> None:
        """So many batches are done, with the epoch's mean loss so far."""
        self._progress.update(self._task, completed=done, loss=loss, rate=rate, skipped=skipped)

    def validated(self, skill: float | None) -> None:
        """The skill on validation, until the next epoch's; None if there is none."""
        self._progress.update(self._task, skill=skill)

    def line(self, text: str) -> None:
        """One line that stays on the screen."""
        self._progress.console.print(text, highlight=False)


class _Line(ProgressColumn):
    """Phase and epoch, the bar, and what else there is room for."""

    def __init__(self, console: Console, device: torch.device) -> None:
        super().__init__()
        self._console, self._device = console, device

    def render(self, task: Task) -> Table:
        room = self._console.width - len(task.description) - 2
        facts = fitting(self._facts(task), room - SHORTEST_BAR)
        bar = ProgressBar(task.total, task.completed, width=min(LONGEST_BAR, max(1, room - len(facts))))
        line = Table.grid(padding=(0, 1))
        line.add_row(Text(task.description, no_wrap=True), bar, Text(facts, no_wrap=True))
        return line

    def _facts(self, task: Task) -> list[tuple[int, str]]:
        """Each with its rank: what has the largest is left out first."""
        fields, left = task.fields, task.time_remaining
        memory = memory_bytes(self._device)
        return [
            (3, f"{task.completed:.0f}/{task.total or 0:.0f}"),
            (0, "" if fields["loss"] is None else f"loss {fields['loss']:.4f}"),
            (2, "" if fields["skill"] is None else f"skill {fields['skill']:.3f}"),
            (7, f"rate {fields['rate']:.0e}"),
            (5, "" if task.speed is None else f"{task.speed * fields['batch']:,.0f}/s"),
            (1, "" if left is None else f"{_clock(left)} left"),
            (6, "" if memory is None else _size(memory)),
            (4, f"skipped {fields['skipped']}"),
        ]


def fitting(facts: list[tuple[int, str]], room: int) -> str:
    """The facts side by side in so many columns at most.

    Args:
        facts: each with its rank; what does not fit goes from the largest rank on, and an empty one is not there.
    """
    present = [each for each in facts if each[1]]
    while present and sum(len(text) + 1 for _, text in present) - 1 > room:
        present.remove(max(present))
    return " ".join(text for _, text in present)


def memory_bytes(device: torch.device) -> int | None:
    """Memory in use: what torch has allocated on a GPU, else what this process has resident, where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if not STATM.is_file():
        return None
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
