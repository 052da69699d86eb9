"""A progress bar on one line of the terminal, with as many facts beside it as fit."""

import threading
from collections.abc import Callable
from typing import Self

from rich import progress_bar
from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.table import Table
from rich.text import Text

SHORTEST_BAR, LONGEST_BAR = 6, 24
"""Columns of the bar itself. A fact that does not fit beside the shortest bar is left out."""
DELAY_S = 2.0
"""Delay of a bar whose work is often over at once."""

Fact = tuple[int, str]
"""Rank and text. The fact with the largest rank is left out first; an empty text is never shown."""


class ProgressBar:
    """A bar that disappears at its end, and appears after `delay_s` seconds; without a terminal, nothing is drawn.

    `description` is the text before the bar; `total` is the number of steps, None if it is not known yet.
    """

    def __init__(self, console: Console, description: str = "", total: int | None = None, delay_s: float = 0.0) -> None:
        line = _Line(console, self.facts)
        self._progress = Progress(line, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(description, total=total, note="")
        self._lock, self._ended = threading.Lock(), False
        self._timer = threading.Timer(delay_s, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        if self._timer.interval:
            self._timer.start()
        else:
            self._show()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._ended = True
            self._progress.stop()

    def restart(self, description: str, total: int, done: int) -> None:
        """Draw the bar of another piece of work, with `done` of its `total` steps."""
        self._progress.reset(self._task, total=total, completed=done, description=description)

    def reach(self, done: int) -> None:
        """Set the number of finished steps."""
        self._progress.update(self._task, completed=done)

    def advance(self) -> None:
        """Count one more finished step, and remove the note."""
        self._progress.update(self._task, advance=1, note="")

    def note(self, text: str) -> None:
        """Show a text beside the bar until the next step, cut to the width of the terminal."""
        self._progress.update(self._task, note=text)

    def line(self, text: str) -> None:
        """Print one line that stays on the screen."""
        self._progress.console.print(text, highlight=False)

    def facts(self, task: Task) -> list[Fact]:
        """The facts beside the bar, from left to right."""
        return [(1, f"{task.completed:.0f}/{task.total or 0:.0f}"), (2, clock(task.elapsed or 0.0))]

    def _show(self) -> None:
        with self._lock:
            if not self._ended:
                self._progress.start()


class _Line(ProgressColumn):
    """Description, bar, and the facts that fit."""

    def __init__(self, console: Console, facts: Callable[[Task], list[Fact]]) -> None:
        super().__init__()
        self._console, self._facts = console, facts

    def render(self, task: Task) -> Table:
        room = self._console.width - len(task.description) - 2
        note = shortened(task.fields["note"], max(0, room - SHORTEST_BAR))
        facts = fitting([*self._facts(task), (0, note)], room - SHORTEST_BAR)
        bar = progress_bar.ProgressBar(task.total, task.completed, width=min(LONGEST_BAR, max(1, room - len(facts))))
        line = Table.grid(padding=(0, 1))
        line.add_row(Text(task.description, no_wrap=True), bar, Text(facts, no_wrap=True))
        return line


def fitting(facts: list[Fact], room: int) -> str:
    """The facts side by side in at most `room` columns, without those of the largest ranks that do not fit."""
    present = [each for each in facts if each[1]]
    while present and sum(len(text) + 1 for _, text in present) - 1 > room:
        present.remove(max(present))
    return " ".join(text for _, text in present)


def shortened(text: str, length: int) -> str:
    """A text of at most `length` characters; a longer one ends in `…`."""
    return text if len(text) <= length else f"{text[: max(0, length - 1)]}…"[:length]


def clock(seconds: float) -> str:
    """A duration as `1:05` or `2:01:05`."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
