"""The progress bar of a training run."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress:
    """One bar per epoch with loss, learning rate and skipped samples; silent where no terminal watches."""

    def __init__(self, console: Console, epochs: int) -> None:
        self._epochs = epochs
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  rate {task.fields[rate]:.1e}  skipped {task.fields[skipped]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=None, loss=float("nan"), rate=0.0, skipped=0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def start_epoch(self, epoch: int, steps: int, done: int) -> None:
        """Begin the bar of one epoch, counted from 1, with what is done of its steps."""
        self._progress.reset(self._task, total=steps, completed=done, description=f"epoch {epoch}/{self._epochs}")

    def step(self, done: int, loss: float, rate: float, skipped: int) -> None:
        """So many batches are done, with the epoch's mean loss so far."""
        self._progress.update(self._task, completed=done, loss=loss, rate=rate, skipped=skipped)

    def line(self, text: str) -> None:
        """One line that stays on the screen."""
        self._progress.console.print(text, highlight=False)
