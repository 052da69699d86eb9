"""The batches of an epoch: the order of the windows, and their tensors on the device of the model.

Shapes: B batch.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from llueve.config import TrainConfig
from llueve.distributed.processes import Processes
from llueve.errors import GuardStop
from llueve.model.batch import Batch
from llueve.model.classifier import LARGEST
from llueve.panel import UNKNOWN
from llueve.samples.split import Part
from llueve.samples.windows import WindowSource
from llueve.stability.diagnosis.suspects import far
from llueve.stability.remedies import Quarantined
from llueve.step.predict import as_batch
from llueve.training.batches.feature_cache import DamagedFeatures, FeatureCache
from llueve.training.batches.feature_files import UnusableFiles
from llueve.training.batches.order import EpochOrder, epoch_order, units_of
from llueve.training.batches.prefetch import Loader, pinned

MOST_FAR = 1000
"""Most cells of one batch that are counted as far."""
WRONG_BATCH = "a batch did not hold the windows that were drawn for its step"
REPORT = "What to do: train again; if it happens again, test the machine's memory, and report it"


Cell = tuple[int, int, int]
"""Site, time and variable, as indices in the panel."""


@dataclass(frozen=True)
class Drawn:
    """The windows of one step."""

    chosen: NDArray[np.int64]
    """Their indices among the training windows."""
    after: int
    """Position in the epoch's order after them."""
    start: int = 0
    """Position in the epoch's order before them."""


class EpochBatches:
    """The batches of one epoch after the other, in an order that the seed decides, without windows that are quarantined.

    Args:
        windows, training: all windows of the panel, and those to train on.
        config: its seed, share of an epoch and weight of the forecasting loss.
        processes, device: those that share each batch, and the device of the model.
        repaired: receives the kind and one sentence about each fault that is repaired here.
    """

    def __init__(
        self,
        windows: WindowSource,
        training: Part,
        config: TrainConfig,
        processes: Processes,
        device: torch.device,
        repaired: Callable[[str, str], object],
    ) -> None:
        self.windows, self.training, self._repaired = windows, training, repaired
        self._with_future, self._share = config.forecast_weight > 0, config.epoch_share
        self._most_sites = None if windows.network is None else windows.network.most_sites
        self._seed, self._processes, self._device = config.seed, processes, device
        self._features: FeatureCache | None = None
        self._loader = Loader(self._gather)
        self.batch_size = 1
        """Windows, or scenes, of one optimiser step, in all processes together."""
        self._drawn: list[Drawn] = []
        """The steps of this epoch so far."""
        self.far_cells: dict[Cell, float] = {}
        """Cells of this process's windows in this epoch that the model limits, with their values in training spreads."""

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch in which nothing is left out."""
        return -(-units_of(self.training, self._share, self._most_sites is not None) // self.batch_size)

    def start_phase(self, batch_size: int, features: FeatureCache | None) -> None:
        """Set the size of a batch, and the cached outputs of the encoder if it is frozen."""
        self.batch_size, self._features = batch_size, features
        self._loader.forget()

    def start_epoch(self, epoch: int, left_out: Iterable[Quarantined]) -> None:
        """Draw the order of an epoch."""
        self._epoch, self._order = epoch, self._new_order(epoch)
        self._require_all_windows()
        self._uses, self._drawn = np.zeros(len(self.training), np.int32), []
        self.far_cells = {}
        self.leave_out(left_out)

    def leave_out(self, quarantined: Iterable[Quarantined]) -> None:
        """Leave out these windows, and no others."""
        self._allowed = np.ones(len(self.training), bool)
        self._allowed[[at for each in quarantined for at in self.training.find(each.site, each.end)]] = False

    def is_over(self, position: int) -> bool:
        """True if a position is the end of the epoch."""
        return position >= len(self._order)

    def draw(self, position: int) -> Drawn:
        """The windows of the step that starts at a position; none if only quarantined ones are left.

        A scene without an allowed window that has an outcome is passed over.
        """
        order, chosen = self._order, [np.empty(0, np.int64)]
        unit, missing = int(np.searchsorted(order.bounds, position)), self.batch_size
        while missing and unit < order.units:
            behind = min(unit + missing, order.units)
            piece = order.windows[order.bounds[unit] : order.bounds[behind]]
            number = np.repeat(np.arange(behind - unit), np.diff(order.bounds[unit : behind + 1]))
            allowed = self._allowed[piece]
            useful = np.unique(number[allowed & (self.training.y[piece] != UNKNOWN)])
            chosen.append(piece[allowed & np.isin(number, useful)])
            missing -= len(useful)
            unit = behind
        return Drawn(np.concatenate(chosen), int(order.bounds[unit]), position)

    def draw_unused(self, position: int) -> Drawn:
        """The windows of the step that starts at a position, none of which this epoch has used before it.

        Raises:
            GuardStop: the order of the epoch repeats windows.
        """
        drawn = self.draw(position)
        if self._is_repeated(drawn):
            self._order = self._new_order(self._epoch)
            self._require_all_windows()
            drawn = self.draw(position)
            if self._is_repeated(drawn):
                raise GuardStop(f"stopped by the guard: {self._repeated_words(drawn)}. No model was written. {REPORT}")
            self._loader.forget()
            self._repaired("order", "the order of the epoch had changed in memory; it was drawn again")
        return drawn

    def load(self, drawn: Drawn) -> Batch:
        """This process's share of the windows of a step; the next ones are prepared meanwhile."""
        own = self.own(drawn)
        return self._with_sound_features(lambda: self._loader.take(own, self._following(drawn.after)))

    def checked(self, batch: Batch, drawn: Drawn) -> Batch:
        """A batch that was loaded for a step; gathered again if it does not hold the windows that were drawn.

        Raises:
            GuardStop: the batch that is gathered again does not hold them either.
        """
        own = self.own(drawn)
        if not self._holds(batch, own):
            batch = self.gather(own)
            if not self._holds(batch, own):
                raise GuardStop(f"stopped by the guard: {WRONG_BATCH}. No model was written. {REPORT}")
            self._repaired("batch", f"{WRONG_BATCH}; it was gathered again")
        self._remember_far_cells(batch, own)
        return batch

    def own(self, drawn: Drawn) -> NDArray[np.int64]:
        """This process's share of the windows of a step; a scene stays whole."""
        if self._most_sites is None:
            return drawn.chosen[self._processes.share(len(drawn.chosen))]
        starts = np.flatnonzero(np.diff(self.training.end[drawn.chosen], prepend=-1))
        share = self._processes.share(len(starts))
        bounds = np.append(starts, len(drawn.chosen))
        return drawn.chosen[bounds[share.start] : bounds[share.stop]]

    def _new_order(self, epoch: int) -> EpochOrder:
        return epoch_order(self.training, self._seed, epoch, self._most_sites, self._share)

    def _is_repeated(self, drawn: Drawn) -> bool:
        """Count the use of these windows, and forget those of later steps; True if one of them was used before."""
        while self._drawn and self._drawn[-1].start >= drawn.start:  # steps that run again
            self._uses[self._drawn.pop().chosen] -= 1
        np.add.at(self._uses, drawn.chosen, 1)
        self._drawn.append(drawn)
        return bool((self._uses[drawn.chosen] > 1).any())

    def _repeated_words(self, drawn: Drawn) -> str:
        again = int((self._uses[drawn.chosen] > 1).sum())
        return f"epoch {self._epoch}: {again} of {len(drawn.chosen)} windows of a step were used in this epoch before"

    def _require_all_windows(self) -> None:
        """Raise `GuardStop` if the order does not have each window once, or the drawn ones of a large scene."""
        uses, order = np.bincount(self._order.windows, minlength=len(self.training)), self._order
        covered = int((uses > 0).sum())
        expected = int(order.bounds[-1])
        units = units_of(self.training, self._share, self._most_sites is not None)
        if len(order) != expected or covered != expected or order.units != units:
            raise GuardStop(
                f"stopped by the guard: the order of epoch {self._epoch} has {covered} of {expected} windows, some of "
                f"them several times; expected each once. No model was written. {REPORT}"
            )

    def _holds(self, batch: Batch, own: NDArray[np.int64]) -> bool:
        """True if at least half of a batch has the classes and the newest values of these windows.

        Single damaged cells are left to the guard, which finds their cause.
        """
        if len(batch) != len(own):
            return False
        part = self.training[own]
        newest_BC = torch.from_numpy(self.windows.newest(part)).to(batch.x_BLC.device)
        given_BC = batch.x_BLC[:, -1]
        same_BC = (given_BC == newest_BC) | (given_BC.isnan() & newest_BC.isnan())
        same_B = same_BC.all(1) & (batch.y_B == torch.from_numpy(part.y).to(batch.y_B.device))
        return bool(2 * same_B.sum() >= len(own))

    def _remember_far_cells(self, batch: Batch, own: NDArray[np.int64]) -> None:
        if not len(batch) or not bool(batch.x_BLC.abs().amax() > LARGEST):
            return
        part, first = self.training[own], batch.x_BLC.shape[1] - 1
        for row, step, variable in far(batch.x_BLC, LARGEST).nonzero()[:MOST_FAR].tolist():
            cell = int(part.site[row]), int(part.end[row]) - first + step, variable
            self.far_cells[cell] = float(batch.x_BLC[row, step, variable])

    def gather(self, chosen: NDArray[np.int64]) -> Batch:
        """Windows by their indices, without a share and without preparing others."""
        return self._with_sound_features(lambda: self._gather(chosen))

    def gather_again(self, rows: Part) -> Batch:
        """Windows from the data, without cached outputs of the encoder."""
        return as_batch(self.windows, rows, self._device, with_future=self._with_future)

    def forget_prepared(self) -> None:
        """Drop what is prepared: the data have changed."""
        self._loader.forget()

    def close(self) -> None:
        """End the thread that prepares batches."""
        self._loader.close()

    def _with_sound_features(self, gather: Callable[[], Batch]) -> Batch:
        """Gather a batch on the device; damaged features are computed again first."""
        while True:
            try:
                return gather().to(self._device)
            except DamagedFeatures as damage:
                self._loader.forget()
                assert self._features is not None  # they are where the damage is
                try:
                    self._features.mend(damage)
                    self._repaired("features", f"{damage}; they were computed again")
                except UnusableFiles as error:
                    self._features = None
                    self._repaired("features", f"{error}; they are computed in each step from now on")

    def _gather(self, chosen: NDArray[np.int64]) -> Batch:
        """Windows in the memory of this machine, with cached outputs of a frozen encoder."""
        batch = as_batch(self.windows, self.training[chosen], torch.device("cpu"), with_future=self._with_future)
        cache = self._features
        return pinned(batch if cache is None else replace(batch, features=cache.batch(chosen)), self._device)

    def _following(self, position: int) -> Iterator[NDArray[np.int64]]:
        """The windows of the next steps, as far as can be known."""
        while position < len(self._order):
            drawn = self.draw(position)
            position = drawn.after
            yield self.own(drawn)
