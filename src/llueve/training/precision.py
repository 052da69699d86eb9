"""The precision of training steps: asked for, or chosen by what the machine has and by how a first batch comes out.

Shapes: B batch, C variables, L steps.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llueve.errors import UsageError
from llueve.model.patches import PatchEncoder

Wish = Literal["auto", "float32", "bfloat16"]

BFLOAT16_WIDTH = 256
"""Narrower encoders spend too little on products for bfloat16 to win back what casting costs."""
BFLOAT16_ERROR = 0.03
"""Largest distance of the tokens in bfloat16 from those in float32, relative to their norm; 0.008 to 0.010 is usual."""


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
    if math.isnan(error):  # weights that are not sound: the guard says which, at the first step
        asked = torch.bfloat16 if wish == "bfloat16" else torch.float32
        return Choice(asked, "the tokens of the first batch are not finite in any precision")
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
