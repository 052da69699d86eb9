"""What both published encoders share: patches as tokens, masks for what was not observed, normalisation, forecasting.

Shapes: B batch, L steps, C variables, N patches, P patch length, T = C·N tokens (variable-major), D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llueve.model.products import quick_products


@dataclass(frozen=True)
class Normalised:
    """Windows after instance normalisation, with what was taken out of them."""

    x_BCL: Tensor
    """Zero mean and unit spread per window and variable; exactly zero where not observed."""
    mean_BC: Tensor
    spread_BC: Tensor
    """Never zero."""


def to_patches(x_BCL: Tensor, patch_length: int) -> Tensor:
    """Cut the steps into patches (B, C, N, P); a length that is no multiple of P is padded on the left with zeros."""
    missing = -x_BCL.shape[-1] % patch_length
    padded_BCL = F.pad(x_BCL, (missing, 0)) if missing else x_BCL
    return cast(Tensor, padded_BCL.unflatten(-1, (-1, patch_length)))


class PatchEncoder(nn.Module, ABC):
    """Base of both encoders. It has no tensors of its own, so that theirs keep their public names."""

    def __init__(self, patch_length: int, width: int) -> None:
        super().__init__()
        self.patch_length = patch_length
        self.width = width
        self.rounding: torch.dtype | None = None
        """What the operands of the layers' linear maps are rounded to; None leaves them as they are."""
        self.exact_layers: frozenset[int] = frozenset()
        """Layers, counted from 0, whose operands are never rounded."""

    @contextmanager
    def computing_in(self, precision: torch.dtype) -> Iterator[None]:
        """Inside, linear maps of the layers are products in bfloat16, or in float32; all else stays as it is."""
        before = self.rounding
        self.rounding = torch.bfloat16 if precision == torch.bfloat16 else None
        try:
            yield
        finally:
            self.rounding = before

    @property
    def depth(self) -> int:
        """Layers."""
        return len(self.stack) - 1

    def operand(self, layer: int, given: torch.dtype) -> torch.dtype:
        """The type of the operands in one layer for values of type `given`."""
        return given if self.rounding is None or layer in self.exact_layers else self.rounding

    @property
    @abstractmethod
    def forecasting(self) -> nn.Linear:
        """The pre-training head: a token to the patch that follows it."""

    @property
    @abstractmethod
    def stack(self) -> tuple[nn.Module, ...]:
        """The embedding, then each layer: from what is frozen first, and learns slowest, upwards."""

    @abstractmethod
    def embed(self, patch_BCNP: Tensor) -> Tensor:
        """Tokens (B, C, N, D) before the first layer."""

    @abstractmethod
    def layers(self, token_BCND: Tensor, absent_BCN: Tensor | None) -> Tensor:
        """Tokens (B, C, N, D) after the final norm; `absent_BCN` is True where a patch holds no observation."""

    @abstractmethod
    def spread(self, variance_BC1: Tensor, count_BC1: Tensor) -> Tensor:
        """What each window is divided by, from its population variance and its number of observations; never zero."""

    def normalise(self, x_BCL: Tensor, observed_BCL: Tensor) -> Normalised:
        """Take each variable's own mean and spread out of each window, over the observed cells alone.

        mean = Σ m·x / Σ m, variance = Σ m·(x − mean)² / Σ m; nothing observed has mean and variance 0. The spread is the
        published encoder's own. All of it in float64, where no square of a float32 overflows and no constant is lost to
        rounding; it costs a thousandth of the layers.
        """
        given, x_BCL = x_BCL.dtype, x_BCL.double()
        weight_BCL = observed_BCL.double()
        count_BC1 = weight_BCL.sum(-1, keepdim=True).clamp(min=1)
        mean_BC1 = (x_BCL * weight_BCL).sum(-1, keepdim=True) / count_BC1
        centred_BCL = (x_BCL - mean_BC1) * weight_BCL
        spread_BC1 = self.spread(centred_BCL.square().sum(-1, keepdim=True) / count_BC1, count_BC1)
        normalised = Normalised(centred_BCL / spread_BC1, mean_BC1.squeeze(-1), spread_BC1.squeeze(-1))
        return Normalised(normalised.x_BCL.to(given), normalised.mean_BC.to(given), normalised.spread_BC.to(given))

    @quick_products()
    def tokens(
        self, x_BCL: Tensor, observed_BCL: Tensor | None = None, gap_embedding_D: Tensor | None = None
    ) -> Tensor:
        """Tokens after the final norm, (B, C, N, D).

        Args:
            x_BCL: values; where not observed they must be zero.
            observed_BCL: True where observed; None means everything. A patch without an observation is seen by no
                token that has one, and no row is ever left with nothing to attend to.
            gap_embedding_D: added to a token in proportion to the share of its patch that was not observed.
        """
        token_BCND = self.embed(to_patches(x_BCL, self.patch_length))
        absent_BCN: Tensor | None = None
        if observed_BCL is None and x_BCL.shape[-1] % self.patch_length:
            observed_BCL = torch.ones_like(x_BCL, dtype=torch.bool)  # what is padded was not observed
        if observed_BCL is not None:
            observed_BCNP = to_patches(observed_BCL, self.patch_length)
            if gap_embedding_D is not None:
                gap_BCN1 = 1 - observed_BCNP.to(token_BCND.dtype).mean(-1, keepdim=True)
                token_BCND = token_BCND + gap_BCN1 * gap_embedding_D
            absent_BCN = ~observed_BCNP.any(-1)
            absent_BCN = absent_BCN if bool(absent_BCN.any()) else None
        return self.layers(token_BCND, absent_BCN)

    def encode(self, x_BLC: Tensor, normalise: bool = True) -> Tensor:
        """Tokens after the final norm, (B, T, D), all patches of the first variable first."""
        x_BCL = x_BLC.transpose(1, 2)
        given_BCL = self.normalise(x_BCL, torch.ones_like(x_BCL, dtype=torch.bool)).x_BCL if normalise else x_BCL
        return self.tokens(given_BCL).flatten(1, 2)

    def forecast(self, x_BLC: Tensor, normalise: bool = True) -> Tensor:
        """The pre-training task: each patch's token predicts the next patch, in the units of the input, (B, L, C)."""
        x_BCL = x_BLC.transpose(1, 2)
        steps = x_BCL.shape[-1]
        if not normalise:
            plain_BCL: Tensor = self.forecasting(self.tokens(x_BCL)).flatten(2)[..., -steps:]
            return plain_BCL.transpose(1, 2)
        window = self.normalise(x_BCL, torch.ones_like(x_BCL, dtype=torch.bool))
        forecast_BCL: Tensor = self.forecasting(self.tokens(window.x_BCL)).flatten(2)[..., -steps:]
        return (forecast_BCL * window.spread_BC[..., None] + window.mean_BC[..., None]).transpose(1, 2)
