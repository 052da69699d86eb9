"""Signals that end a training between two steps, after it has saved its state."""

import signal
import threading
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Inside, the first SIGTERM or SIGINT is only recorded; a second one has its usual effect."""

    def __init__(self) -> None:
        self.number: int | None = None
        """Number of the signal; None before one has arrived."""
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._earlier = {each: signal.signal(each, self._remember) for each in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for each, handler in self._earlier.items():
            signal.signal(each, handler)
        self._earlier = {}
