"""Dropout on the processor with a quarter of the random numbers that torch draws.

One draw of 64 random bits decides four elements, at a resolution of 2⁻¹⁶: a rate of 0.1 is 6554/65536. The bits come from
torch's default generator, so a seed or a saved generator state repeats them.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 2**16


def _kept(x: Tensor, rate: float) -> tuple[Tensor, float]:
    """A mask in the shape of `x`, True where an element is kept, and the factor 1 / (share of kept elements)."""
    elements, dropped = x.numel(), round(rate * LEVELS)
    bits = torch.empty(-(-elements // 4), dtype=torch.int64).random_(-(2**63), None)
    kept = bits.view(torch.int16)[:elements] >= dropped - LEVELS // 2
    return kept.view(x.shape), LEVELS / (LEVELS - dropped)


def _factor(kept: Tensor, scale: float, like: Tensor) -> Tensor:
    # Torch multiplies numbers by booleans forty times more slowly than by numbers.
    return kept.to(like.dtype).mul_(scale)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        kept, ctx.scale = _kept(x, rate)
        ctx.save_for_backward(kept)
        return x * _factor(kept, ctx.scale, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return grad * _factor(kept, ctx.scale, grad), None


class _ReluDropout(torch.autograd.Function):
    """Dropout of max(x, 0). It saves only its result, which is zero exactly where the gradient is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        kept, ctx.scale = _kept(x, rate)
        out = x.relu().mul_(_factor(kept, ctx.scale, x))
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, out, 0).mul_(ctx.scale), None


class Dropout(nn.Module):
    """In training, set each element to zero with probability `rate`, 0…1, and multiply the others by 1 / (1 − rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout to a tensor of any shape."""
        if not self.training or self.rate == 0:
            return x
        return cast(Tensor, _Dropout.apply(x, self.rate)) if self._is_fast(x) else F.dropout(x, self.rate)  # type: ignore[no-untyped-call]

    def relu(self, x: Tensor) -> Tensor:
        """Apply dropout to max(x, 0), in one operation."""
        if not self.training or self.rate == 0 or not self._is_fast(x):
            return cast(Tensor, self(F.relu(x)))
        return cast(Tensor, _ReluDropout.apply(x, self.rate))  # type: ignore[no-untyped-call]

    def _is_fast(self, x: Tensor) -> bool:
        return x.device.type == "cpu" and round(self.rate * LEVELS) < LEVELS
