"""Batches prepared ahead: a thread gathers the next windows while a step computes.

The thread only copies cells, so it does not change the results of a training. The next windows can change between two
steps, when samples are quarantined or a step is run again or rolled back. A prepared batch is therefore used only if it
holds exactly the requested windows; otherwise the batch is gathered immediately.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from llueve.model.batch import Batch

AHEAD = 2
"""Largest number of prepared batches; it bounds the memory, whatever the number of windows."""
Chosen = NDArray[np.int64]
"""Positions of windows in the part that is trained on."""


class Loader:
    """Gathers batches, and prepares up to `ahead` of the next ones in a thread; `close` ends the thread."""

    def __init__(self, gather: Callable[[Chosen], Batch], ahead: int = AHEAD) -> None:
        self._gather, self._ahead = gather, ahead
        self._prepared: dict[bytes, Future[Batch]] = {}
        self._thread: ThreadPoolExecutor | None = None

    def take(self, chosen: Chosen, following: Iterable[Chosen] = ()) -> Batch:
        """Return the batch of some windows, and start to prepare those that will probably be requested next.

        An error of `gather` for these windows, also in the thread, is raised here.
        """
        prepared = self._prepared.pop(chosen.tobytes(), None)
        expected = {each.tobytes(): each for each in islice(following, self._ahead)}
        for key in self._prepared.keys() - expected.keys():
            self._prepared.pop(key).cancel()
        for key, each in expected.items():
            if key not in self._prepared:
                self._thread = self._thread or ThreadPoolExecutor(1, "llueve-loading")
                self._prepared[key] = self._thread.submit(self._gather, each)
        return self._gather(chosen) if prepared is None else prepared.result()

    def forget(self) -> None:
        """Drop the prepared batches, because the data or the features have changed."""
        for future in self._prepared.values():
            future.cancel()
        self._prepared = {}

    def close(self) -> None:
        """Wait for the last copy of the thread, and end the thread."""
        self.forget()
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._thread = None


def pinned(batch: Batch, device: torch.device) -> Batch:
    """Return the batch in pinned memory for a GPU, which then copies it while it computes; unchanged for a processor."""
    if device.type != "cuda":
        return batch
    with torch.cuda.device(device):  # a new thread would otherwise use the first GPU instead of the model's GPU
        return batch.pinned()
