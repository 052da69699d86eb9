"""A signal that ends a training between two steps, so that it can write a checkpoint first."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """Inside, SIGTERM and SIGINT are remembered; a second one ends the program as it would have without this."""

    def __init__(self) -> None:
        self.number: int | None = None
        """Of the signal that came; None while there was none."""
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._earlier = {each: signal.signal(each, self._remember) for each in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for each, handler in self._earlier.items():
            signal.signal(each, handler)
        self._earlier = {}
