"""Remarks on an epoch: facts that do not stop a training, but that its reader should know."""

from collections.abc import Mapping

from llueve.config import TrainConfig
from llueve.model.classifier import LARGEST
from llueve.samples.scale import MOST_SPREADS
from llueve.stability.incidents import DataNames
from llueve.training.batches.epoch import Cell

FAR_BELOW, LEAST_GAP = 3.0, 0.1
"""A training loss is far below the validation loss if that is this many times as large, and larger by this many nats."""


def overfit(training_loss: float | None, validation_loss: float, config: TrainConfig) -> str | None:
    """One sentence if the training loss is far below the validation loss; None if it is not, or if they are not alike.

    A focal factor, class weights or label smoothing make the training loss another quantity.
    """
    if training_loss is None or config.focal_gamma or config.label_smoothing or config.class_weights is not None:
        return None
    if not (validation_loss > FAR_BELOW * training_loss and validation_loss - training_loss > LEAST_GAP):
        return None
    return (
        f"the training loss {training_loss:.3g} is far below the validation loss {validation_loss:.3g}: the model has learned "
        "its training windows by heart, or the two periods differ"
    )


def limited(cells: Mapping[Cell, float], total: int, names: DataNames | None) -> str | None:
    """One sentence about cells that the model limits; None without any.

    Args:
        cells: value in training spreads of those that this process saw.
        total: their number in all processes.
        names: names of the data; None to use indices.
    """
    if not total:
        return None
    worst = max(cells, key=lambda cell: abs(cells[cell]), default=None)
    example = ""
    if worst is not None:
        where = f"variable {worst[2]} of site {worst[0]} at time {worst[1]}" if names is None else names.cell(*worst)
        example = f", the largest with {cells[worst]:.3g}: {where}"
        if abs(cells[worst]) > MOST_SPREADS:
            example += ". A table with such a value is refused, so it was damaged in memory"
    return (
        f"{total} cell(s) of the training windows are more than {LARGEST:g} training spreads from the mean, and the model "
        f"limits them to that{example}"
    )
