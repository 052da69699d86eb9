"""Products: by which of the processor's two libraries, and with operands rounded to bfloat16 where that is asked for.

Torch gives float32 products to MKL, which on some processors uses half of what they can do (measured on one with
AVX-512 that is not Intel's: 210 GFLOP/s by MKL, 450 by oneDNN, equally exact). The one public switch that sends them to
oneDNN is named for something else: it *permits* bfloat16 inside float32 products. Processors with matrix tiles (AMX)
take that permission; the others compute float32 as before. So the switch is thrown only where a product, tried in
several shapes at the start, keeps float32's accuracy.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
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
    """Compute float32 products by oneDNN inside, where it is as exact as MKL."""
    with _permitting("bf16" if _exact() else _products().fp32_precision):
        yield


@contextmanager
def small_products() -> Iterator[None]:
    """Back to MKL inside: it is the quicker one for the many small products of attention's kernel."""
    with _permitting("ieee"):
        yield


def _products() -> Any:
    return cast(Any, torch.backends.mkldnn).matmul


@contextmanager
def _permitting(precision: str) -> Iterator[None]:
    switch = _products()
    before = switch.fp32_precision
    switch.fp32_precision = precision
    try:
        yield
    finally:
        switch.fp32_precision = before


@lru_cache(maxsize=1)
def _exact() -> bool:
    """Whether this processor computes float32 products in float32 though bfloat16 is permitted."""
    generator = torch.Generator().manual_seed(0)
    with _permitting("bf16"):
        for rows, inner, columns in TRIED:
            a, b = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
            error = float((a @ b - a.double() @ b.double()).abs().max())
            if error > FLOAT32_ERROR * math.sqrt(inner):
                return False
    return True
