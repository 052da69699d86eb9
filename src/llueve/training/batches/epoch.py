"""The batches of an epoch: the order of the windows, and their tensors on the device of the model.

Shapes: B batch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from llueve.distributed.processes import Processes
from llueve.model.batch import Batch
from llueve.samples.split import Part
from llueve.samples.windows import Windows
from llueve.stability.remedies import Quarantined
from llueve.step.predict import as_batch
from llueve.training.batches.feature_cache import FeatureCache
from llueve.training.batches.order import epoch_order
from llueve.training.batches.prefetch import Loader, pinned


@dataclass(frozen=True)
class Drawn:
    """The windows of one step."""

    chosen: NDArray[np.int64]
    """Their indices among the training windows."""
    after: int
    """Position in the epoch's order after them."""


class EpochBatches:
    """The batches of one epoch after the other, in an order that `seed` decides, without windows that are quarantined.

    Args:
        windows, training: all windows of the panel, and those to train on.
        processes, device: those that share each batch, and the device of the model.
    """

    def __init__(self, windows: Windows, training: Part, seed: int, processes: Processes, device: torch.device) -> None:
        self.windows, self.training = windows, training
        self._seed, self._processes, self._device = seed, processes, device
        self._features: FeatureCache | None = None
        self._loader = Loader(self._gather)
        self.batch_size = 1
        """Windows of one optimiser step, in all processes together."""

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch in which nothing is left out."""
        return -(-len(self.training) // self.batch_size)

    def start_phase(self, batch_size: int, features: FeatureCache | None) -> None:
        """Set the size of a batch, and the cached outputs of the encoder if it is frozen."""
        self.batch_size, self._features = batch_size, features
        self._loader.forget()

    def start_epoch(self, epoch: int, left_out: Iterable[Quarantined]) -> None:
        """Draw the order of an epoch."""
        self._order = epoch_order(self.training, self._seed, epoch)
        self.leave_out(left_out)

    def leave_out(self, quarantined: Iterable[Quarantined]) -> None:
        """Leave out these windows, and no others."""
        self._allowed = np.ones(len(self.training), bool)
        self._allowed[[at for each in quarantined for at in self.training.find(each.site, each.end)]] = False

    def is_over(self, position: int) -> bool:
        """True if a position is the end of the epoch."""
        return position >= len(self._order)

    def draw(self, position: int) -> Drawn:
        """The windows of the step that starts at a position; none if only quarantined ones are left."""
        chosen, after = [np.empty(0, np.int64)], position
        missing = self.batch_size
        while missing and after < len(self._order):
            piece = self._order[after : after + missing]
            after += len(piece)
            chosen.append(piece[self._allowed[piece]])
            missing -= len(chosen[-1])
        return Drawn(np.concatenate(chosen), after)

    def load(self, drawn: Drawn) -> Batch:
        """This process's share of the windows of a step; the next ones are prepared meanwhile."""
        own = drawn.chosen[self._processes.share(len(drawn.chosen))]
        return self._loader.take(own, self._following(drawn.after)).to(self._device)

    def gather(self, chosen: NDArray[np.int64]) -> Batch:
        """Windows by their indices, without a share and without preparing others."""
        return self._gather(chosen).to(self._device)

    def gather_again(self, rows: Part) -> Batch:
        """Windows from the data, without cached outputs of the encoder."""
        return as_batch(self.windows, rows, self._device)

    def forget_prepared(self) -> None:
        """Drop what is prepared: the data have changed."""
        self._loader.forget()

    def close(self) -> None:
        """End the thread that prepares batches."""
        self._loader.close()

    def _gather(self, chosen: NDArray[np.int64]) -> Batch:
        """Windows in the memory of this machine, with cached outputs of a frozen encoder."""
        batch = as_batch(self.windows, self.training[chosen], torch.device("cpu"))
        cache = self._features
        return pinned(batch if cache is None else replace(batch, features=cache.batch(chosen)), self._device)

    def _following(self, position: int) -> Iterator[NDArray[np.int64]]:
        """The windows of the next steps, as far as can be known."""
        while position < len(self._order):
            drawn = self.draw(position)
            position = drawn.after
            yield drawn.chosen[self._processes.share(len(drawn.chosen))]
