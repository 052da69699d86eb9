"""Matrix products: the choice between the processor's two libraries, and products with operands rounded to bfloat16.

Torch sends float32 products to MKL, which on some processors reaches half of their speed. Measured on an AMD processor
with AVX-512: 210 GFLOP/s by MKL, 450 GFLOP/s by oneDNN, equally exact. The only public setting that sends products to
oneDNN has another purpose: it permits bfloat16 inside float32 products. Processors with matrix tiles (AMX) then round;
the others compute in float32 as before. So the setting is used only if products of several shapes, computed once, keep
the accuracy of float32.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

TRIAL_SHAPES = ((64, 64, 64), (405, 96, 256), (512, 512, 512), (810, 1024, 1024))
"""Rows, inner dimension and columns of the trial products."""
FLOAT32_ERROR = 1e-5
"""Largest error of a product of standard normal numbers, over √(inner dimension): 4e-6 in float32, 1e-2 in bfloat16."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x·Wᵀ + b, for any leading dimensions of `x`; W is (columns, inner dimension).

    With `x` in bfloat16 and the weights in float32, the product is in bfloat16; no rounded copy of the weights is kept.
    """
    if x.dtype == weight.dtype:
        return F.linear(x, weight, bias)
    return cast(Tensor, _RoundedLinear.apply(x, weight, bias))  # type: ignore[no-untyped-call]


class _RoundedLinear(torch.autograd.Function):
    """Rounds the weights in the forward and again in the backward pass, which saves the memory of a rounded copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_ND = grad_out.flatten(0, -2)
        grad_bias = grad_ND.sum(0, dtype=weight.dtype) if ctx.has_bias else None
        grad_weight = (grad_ND.T @ x.flatten(0, -2)).to(weight.dtype)
        return grad_out @ weight.to(grad_out.dtype), grad_weight, grad_bias


_MATMUL: Any = cast(Any, torch.backends.mkldnn).matmul


class _ProductLibrary:
    """Torch's process-wide setting, and the number of threads that need oneDNN; at the end it has its first value."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.here = threading.local()
        self.threads = 0
        self.before = ""
        self.exact: bool | None = None

    @contextmanager
    def quick_products(self) -> Iterator[None]:
        """Inside, compute float32 products by oneDNN if it is as exact as MKL.

        The setting belongs to the whole process: while one thread is inside, the products of all threads use oneDNN. The
        first thread that enters changes the setting, and the last thread that leaves restores it.
        """
        if getattr(self.here, "inside", False):
            yield
            return
        with self.lock:
            self.exact = _is_exact() if self.exact is None else self.exact
            if self.exact and self.threads == 0:
                self.before = _MATMUL.fp32_precision
                _MATMUL.fp32_precision = "bf16"
            self.threads += 1
            self.here.inside = True
        try:
            yield
        finally:
            with self.lock:
                self.here.inside = False
                self.threads -= 1
                if self.exact and self.threads == 0:
                    _MATMUL.fp32_precision = self.before

    @contextmanager
    def small_products(self) -> Iterator[None]:
        """Inside, compute products by MKL again: it is faster for the many small products of the attention kernel."""
        with self.lock:  # if other threads need oneDNN, it stays: both libraries are exact
            paused = bool(self.exact) and self.threads == 1 and getattr(self.here, "inside", False)
            if paused:
                _MATMUL.fp32_precision = "ieee"
        try:
            yield
        finally:
            with self.lock:
                if paused and self.threads:
                    _MATMUL.fp32_precision = "bf16"


def _is_exact() -> bool:
    """True if this processor computes float32 products in float32 although bfloat16 is permitted."""
    generator = torch.Generator().manual_seed(0)
    before = _MATMUL.fp32_precision
    _MATMUL.fp32_precision = "bf16"
    try:
        for rows, inner, columns in TRIAL_SHAPES:
            a, b = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
            error = float((a @ b - a.double() @ b.double()).abs().max())
            if error > FLOAT32_ERROR * math.sqrt(inner):
                return False
    finally:
        _MATMUL.fp32_precision = before
    return True


_LIBRARY = _ProductLibrary()
quick_products, small_products = _LIBRARY.quick_products, _LIBRARY.small_products
