"""Batches prepared ahead: a thread gathers the next windows while a step computes.

The thread only copies cells, so that it changes no bit of a training. What comes next can change between two steps, when
samples are quarantined or a step is run again or rolled back; so a prepared batch is used only if it is for exactly the
windows that are asked for, and otherwise they are gathered on the spot.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from llueve.stability.step import Batch

AHEAD = 2
"""Batches that are prepared at most: memory is that of so many, whatever the number of windows."""

Chosen = NDArray[np.int64]
"""Positions of windows in the part that is trained on."""


class Loader:
    """Gathers batches, the next ones ahead; `close` ends its thread.

    Args:
        gather: the batch of some windows, in memory that a device copies from; called in the thread too.
        ahead: batches that are prepared at most; 0 for none, and no thread.
    """

    def __init__(self, gather: Callable[[Chosen], Batch], ahead: int = AHEAD) -> None:
        self._gather = gather
        self._ahead = ahead
        self._prepared: list[tuple[Chosen, Future[Batch]]] = []
        self._thread: ThreadPoolExecutor | None = None

    def take(self, chosen: Chosen, following: Iterable[Chosen] = ()) -> Batch:
        """The batch of some windows; those that will probably be asked for next are prepared meanwhile.

        Raises:
            Whatever gathering these windows raised.
        """
        asked = self._taken(chosen)
        self._prepare(list(islice(following, self._ahead)))
        return self._gather(chosen) if asked is None else asked.result()

    def forget(self) -> None:
        """Drop what is prepared: a batch is no longer what it was."""
        for _, future in self._prepared:
            future.cancel()
        self._prepared = []

    def close(self) -> None:
        """End the thread; its last copy is waited for."""
        self.forget()
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._thread = None

    def _taken(self, chosen: Chosen) -> Future[Batch] | None:
        """What is prepared for exactly these windows; it is no longer kept here."""
        for place, (known, future) in enumerate(self._prepared):
            if np.array_equal(known, chosen):
                del self._prepared[place]
                return future
        return None

    def _prepare(self, following: list[Chosen]) -> None:
        """Begin what is not begun yet, and drop what is not expected any more."""
        if following and self._thread is None:
            self._thread = ThreadPoolExecutor(1, "llueve-loading")
        kept = []
        for chosen in following:
            future = self._taken(chosen)
            if future is None:
                assert self._thread is not None
                future = self._thread.submit(self._gather, chosen)
            kept.append((chosen, future))
        self.forget()
        self._prepared = kept


def pinned(batch: Batch, device: torch.device) -> Batch:
    """The batch in memory from which a GPU copies beside its work; elsewhere as it is."""
    if device.type != "cuda":
        return batch
    with torch.cuda.device(device):  # a new thread would otherwise open the first GPU, whichever the model is on
        return batch.pinned()
