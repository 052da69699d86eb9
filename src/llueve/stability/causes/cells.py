"""Which cells of a batch an experiment takes away, and what they look like once it has cured.

Shapes: B batch, L steps, C variables, N patches, P patch length, F facts.
"""

import torch
from torch import Tensor

from llueve.model.patches import to_patches
from llueve.stability.step import Batch

TINY_SPREAD = 1e-3
"""Height of the ramp that a constant window is given, relative to its level."""
LONG = 4
"""Steps in a row that are a stretch, and not single cells."""


def bad(x: Tensor) -> Tensor:
    """True where a number is not finite."""
    return ~x.isfinite()


def far(x: Tensor, spreads: float) -> Tensor:
    """True where a finite number is beyond so many training spreads."""
    return x.isfinite() & (x.abs() > spreads)


def rows_of(flag: Tensor) -> tuple[int, ...]:
    """Samples with a True, in their order; the first dimension is that of samples."""
    return tuple(flag.flatten(1).any(1).nonzero().flatten().tolist())


def empty_patches(batch: Batch, patch_length: int) -> Tensor:
    """True, (B, L, C), in the steps of patches in which nothing of a variable was observed."""
    seen_BCNP = to_patches(batch.observed_BLC.transpose(1, 2), patch_length)
    empty_BCL = (~seen_BCNP.any(-1)).repeat_interleave(patch_length, -1)[..., -batch.x_BLC.shape[1] :]
    return empty_BCL.transpose(1, 2)


def constant_windows(batch: Batch) -> Tensor:
    """True, (B, C), where the observed cells of a window do not vary, up to rounding; also where there is none."""
    high_BC = torch.where(batch.observed_BLC, batch.x_BLC, -torch.inf).amax(1)
    low_BC = torch.where(batch.observed_BLC, batch.x_BLC, torch.inf).amin(1)
    steady_BC = high_BC - low_BC <= 1e-6 * high_BC.abs().clamp(min=1)
    return batch.x_BLC.isfinite().all(1) & (steady_BC | ~batch.observed_BLC.any(1))


def with_ramp(batch: Batch, windows_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Values and observations with a tiny spread in some windows; one that has no two cells is filled for it."""
    observed_BLC, steps = batch.observed_BLC, batch.x_BLC.shape[1]
    scarce_B1C = observed_BLC.sum(1, keepdim=True) < 2
    level_B1C = (batch.x_BLC * observed_BLC).sum(1, keepdim=True)
    x_BLC = torch.where(scarce_B1C, level_B1C, batch.x_BLC)
    seen_BLC = observed_BLC | scarce_B1C
    ramp_L = torch.linspace(-0.5, 0.5, steps, dtype=x_BLC.dtype, device=x_BLC.device)
    lifted_BLC = x_BLC + TINY_SPREAD * x_BLC.abs().clamp(min=1) * ramp_L[:, None]
    chosen_B1C = windows_BC[:, None]
    return (
        torch.where(chosen_B1C & seen_BLC, lifted_BLC, batch.x_BLC),
        torch.where(chosen_B1C, seen_BLC, observed_BLC),
    )


def is_mark_or_unit(batch: Batch, far_BLC: Tensor) -> bool:
    """Whether far cells are one number that repeats, or stretches of a variable, and not single cells."""
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
    """Whether some window's variable is far over steps in a row, or in half of what was observed of it."""
    number_BC, seen_BC = far_BLC.sum(1), (batch.observed_BLC & batch.x_BLC.isfinite()).sum(1)
    if bool(((number_BC >= LONG - 1) & (2 * number_BC >= seen_BC)).any()):
        return True
    return far_BLC.shape[1] >= LONG and bool(far_BLC.unfold(1, LONG, 1).all(-1).any())


def _different_cells(batch: Batch, flag_BL: Tensor) -> int:
    """At least so many different cells of the data: overlapping windows show one cell several times.

    Within one window all are different. Of two windows they are the same if all variables agree at that step.
    """
    seen = {row_C.numpy().tobytes() for row_C in batch.x_BLC[flag_BL].cpu()}
    return max(len(seen), int(flag_BL.sum(1).max()))
