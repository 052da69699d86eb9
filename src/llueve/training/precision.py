"""The precision of training steps: configured, or chosen from the hardware and the error on a first batch.

Shapes: B batch, C variables, L steps.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llueve.errors import UsageError
from llueve.model.patches import PatchEncoder

Precision = Literal["auto", "float32", "bfloat16"]

BFLOAT16_WIDTH = 256
"""Narrower encoders lose more time by casting than bfloat16 products save."""
BFLOAT16_ERROR = 0.03
"""Largest distance of bfloat16 tokens from float32 tokens, relative to their norm; usual values are 0.008 to 0.010."""


@dataclass(frozen=True)
class ChosenPrecision:
    """A precision and the reason for it."""

    name: str
    """`float32` or `bfloat16`."""
    reason: str


def choose_precision(
    configured: Precision, encoder: PatchEncoder, x_BCL: Tensor, observed_BCL: Tensor
) -> ChosenPrecision:
    """Return the precision of training steps.

    `auto` is bfloat16 if the device multiplies it in hardware and the tokens of a batch are close to those in float32.

    Args:
        configured: `auto`, or a precision.
        encoder: the encoder that is trained.
        x_BCL, observed_BCL: windows to compare on, on the encoder's device; zero where not observed.

    Raises:
        UsageError: bfloat16 is configured, but the tokens are too far from those in float32.
    """
    if configured == "float32":
        return ChosenPrecision("float32", "asked for")
    if configured == "auto" and not has_bfloat16(x_BCL.device):
        return ChosenPrecision("float32", f"this {x_BCL.device.type} has no bfloat16 products")
    if configured == "auto" and encoder.width < BFLOAT16_WIDTH:
        return ChosenPrecision("float32", f"an encoder of width {encoder.width} gains nothing from bfloat16")
    whole_B = x_BCL.isfinite().flatten(1).all(1)
    error = _distance(encoder, x_BCL[whole_B], observed_BCL[whole_B]) if whole_B.any() else math.inf
    if math.isnan(error):  # some weights are not finite: the guard names them at the first step
        asked = "float32" if configured == "auto" else configured
        return ChosenPrecision(asked, "the tokens of the first batch are not finite in any precision")
    if error <= BFLOAT16_ERROR:
        return ChosenPrecision("bfloat16", f"its tokens are within {error:.1%} of float32's on the first batch")
    differs = f"bfloat16 tokens are {error:.1%} away from float32's on the first batch, more than {BFLOAT16_ERROR:.0%}"
    if math.isinf(error):
        differs = "no window of the first batch is finite, so bfloat16 cannot be tried"
    if configured == "bfloat16":
        raise UsageError(f'train.precision = "bfloat16": {differs}; set it to "float32"')
    return ChosenPrecision("float32", differs)


def _distance(encoder: PatchEncoder, x_BCL: Tensor, observed_BCL: Tensor) -> float:
    """Distance of the tokens in bfloat16 from those in float32, relative to their norm."""
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
    """Return True if the device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
