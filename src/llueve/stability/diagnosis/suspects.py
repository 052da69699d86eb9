"""Suspicious cells, patches and windows of a batch.

Shapes: B batch, L steps, C variables, N patches, P patch length, F facts.
"""

import torch
from torch import Tensor

from llueve.model.batch import Batch
from llueve.model.patches import to_patches

LONG = 4
"""Steps in a row that count as a stretch, not as single cells."""


def far(x: Tensor, spreads: float) -> Tensor:
    """True where a finite number exceeds this many training standard deviations."""
    return x.isfinite() & (x.abs() > spreads)


def rows_of(flag: Tensor) -> tuple[int, ...]:
    """Samples with a True; the first dimension is the sample."""
    return tuple(flag.flatten(1).any(1).nonzero().flatten().tolist())


def empty_patches(batch: Batch, patch_length: int) -> Tensor:
    """True, (B, L, C), in patches without any observation of the variable."""
    seen_BCNP = to_patches(batch.observed_BLC.transpose(1, 2), patch_length)
    empty_BCL = (~seen_BCNP.any(-1)).repeat_interleave(patch_length, -1)[..., -batch.x_BLC.shape[1] :]
    return empty_BCL.transpose(1, 2)


def constant_windows(batch: Batch) -> Tensor:
    """True, (B, C), where the observed cells of a window are constant up to rounding, or where nothing is observed."""
    high_BC = torch.where(batch.observed_BLC, batch.x_BLC, -torch.inf).amax(1)
    low_BC = torch.where(batch.observed_BLC, batch.x_BLC, torch.inf).amin(1)
    steady_BC = high_BC - low_BC <= 1e-6 * high_BC.abs().clamp(min=1)
    return batch.x_BLC.isfinite().all(1) & (steady_BC | ~batch.observed_BLC.any(1))


def is_mark_or_unit(batch: Batch, far_BLC: Tensor) -> bool:
    """True if far cells are one repeated number or stretches of a variable, not single cells."""
    if _in_stretches(batch, far_BLC):
        return True
    repeated = total = 0
    for variable in rows_of(far_BLC.permute(2, 0, 1)):
        for value in batch.x_BLC[..., variable][far_BLC[..., variable]].unique():
            number = _different_cells(batch, far_BLC[..., variable] & (batch.x_BLC[..., variable] == value))
            total += number
            repeated += number if number > 1 else 0
    return repeated * 2 > total


def _in_stretches(batch: Batch, far_BLC: Tensor) -> bool:
    """True if a variable of a window is far over several steps in a row, or in half of its observations."""
    number_BC, seen_BC = far_BLC.sum(1), (batch.observed_BLC & batch.x_BLC.isfinite()).sum(1)
    if bool(((number_BC >= LONG - 1) & (2 * number_BC >= seen_BC)).any()):
        return True
    return far_BLC.shape[1] >= LONG and bool(far_BLC.unfold(1, LONG, 1).all(-1).any())


def _different_cells(batch: Batch, flag_BL: Tensor) -> int:
    """Lower bound of the different cells. Cells of overlapping windows are the same if all variables agree at that step."""
    seen = {row_C.numpy().tobytes() for row_C in batch.x_BLC[flag_BL].cpu()}
    return max(len(seen), int(flag_BL.sum(1).max()))
