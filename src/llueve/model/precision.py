"""In what precision an encoder computes, and by which of the processor's two libraries.

Torch gives float32 products to MKL, which on some processors uses half of what they can do (measured on one with
AVX-512 that is not Intel's: 210 GFLOP/s by MKL, 450 by oneDNN, equally exact). The one public switch that sends them to
oneDNN is named for something else: it *permits* bfloat16 inside float32 products. Processors with matrix tiles (AMX)
take that permission; the others compute float32 as before. So the switch is thrown only where a product, tried in
several shapes at the start, keeps float32's accuracy.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from llueve.errors import UsageError
from llueve.model.patches import PatchEncoder

Wish = Literal["auto", "float32", "bfloat16"]

TRIED = ((64, 64, 64), (405, 96, 256), (512, 512, 512), (810, 1024, 1024))
"""Rows, inner and columns of the products tried."""
FLOAT32_ERROR = 1e-5
"""Largest error of a product of standard normal numbers, over √inner: 4e-6 in float32, 1e-2 in bfloat16."""

BFLOAT16_WIDTH = 256
"""Narrower encoders spend too little on products for bfloat16 to win back what casting costs."""
BFLOAT16_ERROR = 0.03
"""Largest distance of the tokens in bfloat16 from those in float32, relative to their norm; 0.008 to 0.010 is usual."""


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


@dataclass(frozen=True)
class Choice:
    """A precision and why it was chosen."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        """`float32` or `bfloat16`."""
        return str(self.dtype).removeprefix("torch.")


def choose_precision(wish: Wish, encoder: PatchEncoder, x_BCL: Tensor, observed_BCL: Tensor) -> Choice:
    """The precision of training steps: bfloat16 products where the device has them and a batch comes out alike.

    Args:
        wish: `auto`, or a precision that is asked for.
        x_BCL, observed_BCL: windows to compare on, on the encoder's device; zero where not observed.

    Raises:
        UsageError: bfloat16 is asked for and the batch does not come out alike.
    """
    if wish == "float32":
        return Choice(torch.float32, "asked for")
    if wish == "auto" and not has_bfloat16(x_BCL.device):
        return Choice(torch.float32, f"this {x_BCL.device.type} has no bfloat16 products")
    if wish == "auto" and encoder.width < BFLOAT16_WIDTH:
        return Choice(torch.float32, f"an encoder of width {encoder.width} gains nothing from bfloat16")
    whole_B = x_BCL.isfinite().flatten(1).all(1)
    error = _distance(encoder, x_BCL[whole_B], observed_BCL[whole_B]) if whole_B.any() else math.inf
    if error <= BFLOAT16_ERROR:
        return Choice(torch.bfloat16, f"its tokens are within {error:.1%} of float32's on the first batch")
    differs = f"bfloat16 tokens are {error:.1%} away from float32's on the first batch, more than {BFLOAT16_ERROR:.0%}"
    if math.isinf(error):
        differs = "no window of the first batch is finite, so bfloat16 cannot be tried"
    if wish == "bfloat16":
        raise UsageError(f'train.precision = "bfloat16": {differs}; set it to "float32"')
    return Choice(torch.float32, differs)


def _distance(encoder: PatchEncoder, x_BCL: Tensor, observed_BCL: Tensor) -> float:
    """How far the tokens in bfloat16 are from those in float32, relative to their norm."""
    training = encoder.training
    encoder.eval()
    with torch.inference_mode():
        given_BCL = encoder.normalise(x_BCL, observed_BCL).x_BCL
        exact = encoder.tokens(given_BCL, observed_BCL)
        with encoder.computing_in(torch.bfloat16):
            rounded = encoder.tokens(given_BCL, observed_BCL)
    encoder.train(training)
    return float((rounded - exact).norm() / exact.norm())


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


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
