"""Products: by which of the processor's two libraries, and with operands rounded to bfloat16 where that is asked for.

Torch gives float32 products to MKL, which on some processors uses half of what they can do (measured on one with
AVX-512 that is not Intel's: 210 GFLOP/s by MKL, 450 by oneDNN, equally exact). The one public switch that sends them to
oneDNN is named for something else: it *permits* bfloat16 inside float32 products. Processors with matrix tiles (AMX)
take that permission; the others compute float32 as before. So the switch is thrown only where a product, tried in
several shapes at the start, keeps float32's accuracy.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

TRIED = ((64, 64, 64), (405, 96, 256), (512, 512, 512), (810, 1024, 1024))
"""Rows, inner and columns of the products tried."""
FLOAT32_ERROR = 1e-5
"""Largest error of a product of standard normal numbers, over √inner: 4e-6 in float32, 1e-2 in bfloat16."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x·Wᵀ + b; with `x` in bfloat16 and the weights in float32, a product in bfloat16 that keeps no rounded weights."""
    if x.dtype == weight.dtype:
        return F.linear(x, weight, bias)
    return cast(Tensor, _RoundedLinear.apply(x, weight, bias))  # type: ignore[no-untyped-call]


class _RoundedLinear(torch.autograd.Function):
    """Rounds the weights in each direction anew: a pass over them costs less than room for a second copy of the model."""

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


@contextmanager
def quick_products() -> Iterator[None]:
    """Compute float32 products by oneDNN inside, where it is as exact as MKL.

    The switch is the whole process's: while one thread is inside, products of others go the same way. The outermost that
    enters throws it, and the last that leaves puts it back.
    """
    with _SWITCH.thrown():
        yield


@contextmanager
def small_products() -> Iterator[None]:
    """Back to MKL inside: it is the quicker one for the many small products of attention's kernel."""
    with _SWITCH.rested():
        yield


class _Switch:
    """Torch's process-wide switch, with the number of threads that want it thrown: it is left as it was found."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.here = threading.local()
        self.threads = 0
        self.before = ""
        self.exact: bool | None = None

    @contextmanager
    def thrown(self) -> Iterator[None]:
        if getattr(self.here, "inside", False):
            yield
            return
        with self.lock:
            self.exact = _is_exact() if self.exact is None else self.exact
            if self.exact and self.threads == 0:
                self.before = _products().fp32_precision
                _products().fp32_precision = "bf16"
            self.threads += 1
            self.here.inside = True
        try:
            yield
        finally:
            with self.lock:
                self.here.inside = False
                self.threads -= 1
                if self.exact and self.threads == 0:
                    _products().fp32_precision = self.before

    @contextmanager
    def rested(self) -> Iterator[None]:
        with self.lock:  # beside other threads it stays as it is: both ways are exact, this one slower
            rests = bool(self.exact) and self.threads == 1 and getattr(self.here, "inside", False)
            if rests:
                _products().fp32_precision = "ieee"
        try:
            yield
        finally:
            with self.lock:
                if rests and self.threads:
                    _products().fp32_precision = "bf16"


def _products() -> Any:
    return cast(Any, torch.backends.mkldnn).matmul


def _is_exact() -> bool:
    """Whether this processor computes float32 products in float32 though bfloat16 is permitted."""
    generator = torch.Generator().manual_seed(0)
    before = _products().fp32_precision
    _products().fp32_precision = "bf16"
    try:
        for rows, inner, columns in TRIED:
            a, b = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
            error = float((a @ b - a.double() @ b.double()).abs().max())
            if error > FLOAT32_ERROR * math.sqrt(inner):
                return False
    finally:
        _products().fp32_precision = before
    return True


_SWITCH = _Switch()
