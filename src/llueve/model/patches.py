"""Base of both published encoders: patches as tokens, masks of missing values, normalisation, forecasting.

Shapes: B batch, L steps, C variables, N patches, P patch length, T = C·N tokens (variable-major), D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llueve.errors import UsageError
from llueve.model.kernels.matmul import quick_products


class Normalised(NamedTuple):
    """Windows after instance normalisation, with the removed means and spreads."""

    x_BCL: Tensor
    """Zero mean and unit spread per window and variable; exactly zero where not observed."""
    mean_BC: Tensor
    spread_BC: Tensor
    """Never zero."""


def to_patches(x_BCL: Tensor, patch_length: int) -> Tensor:
    """Cut the steps into patches (B, C, N, P); other lengths than multiples of P are padded on the left with zeros."""
    missing = -x_BCL.shape[-1] % patch_length
    padded_BCL = F.pad(x_BCL, (missing, 0)) if missing else x_BCL
    return cast(Tensor, padded_BCL.unflatten(-1, (-1, patch_length)))


class PatchEncoder(nn.Module, ABC):
    """Base class of both encoders. It has no tensors, so the tensors of its subclasses keep their public names."""

    def __init__(self, patch_length: int, width: int, heads: int, head_multiple: int) -> None:
        super().__init__()
        if width % heads or width // heads % head_multiple:
            rotated = "half of each head" if head_multiple == 4 else "each head"
            raise UsageError(
                f"width {width} with {heads} heads: expected width / heads to be a multiple of {head_multiple}, because "
                f"{rotated} is rotated in pairs"
            )
        self.patch_length, self.width, self.heads = patch_length, width, heads
        self.rounding: torch.dtype | None = None
        """Type to which the operands of the layers' linear maps are rounded; None for no rounding."""
        self.exact_layers: frozenset[int] = frozenset()
        """Layers, counted from 0, whose operands are never rounded."""

    @contextmanager
    def computing_in(self, precision: torch.dtype) -> Iterator[None]:
        """Inside, the linear maps of the layers use bfloat16 or float32 products; everything else is unchanged."""
        before = self.rounding
        self.rounding = torch.bfloat16 if precision == torch.bfloat16 else None
        try:
            yield
        finally:
            self.rounding = before

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.stack) - 1

    def operand(self, layer: int, given: torch.dtype) -> torch.dtype:
        """Return the type of the operands in one layer, for values of type `given`."""
        return given if self.rounding is None or layer in self.exact_layers else self.rounding

    @property
    @abstractmethod
    def forecasting(self) -> nn.Linear:
        """The pre-training head: it maps a token to the next patch."""

    @property
    @abstractmethod
    def stack(self) -> tuple[nn.Module, ...]:
        """The embedding, then each layer: the order in which parts are frozen, and learning rates rise."""

    @abstractmethod
    def embed(self, patch_BCNP: Tensor) -> Tensor:
        """Return tokens (B, C, N, D) before the first layer."""

    @abstractmethod
    def layers(self, token_BCND: Tensor, absent_BCN: Tensor | None) -> Tensor:
        """Return tokens (B, C, N, D) after the final norm; `absent_BCN` is True where a patch holds no observation."""

    @abstractmethod
    def spread(self, variance_BC1: Tensor, count_BC1: Tensor) -> Tensor:
        """Return the divisor of each window from its population variance and number of observations; never zero."""

    def normalise(self, x_BCL: Tensor, observed_BCL: Tensor) -> Normalised:
        """Normalise each variable of each window by its mean and spread over the observed cells.

        With m = 1 where observed: mean = Σ m·x / Σ m, variance = Σ m·(x − mean)² / Σ m; both are 0 if nothing was observed.
        Each published encoder defines its own spread. The computation is in float64: squares do not overflow and constants
        lose no digits, at a thousandth of the cost of the layers.
        """
        given, x_BCL = x_BCL.dtype, x_BCL.double()
        weight_BCL = observed_BCL.double()
        count_BC1 = weight_BCL.sum(-1, keepdim=True).clamp(min=1)
        mean_BC1 = (x_BCL * weight_BCL).sum(-1, keepdim=True) / count_BC1
        centred_BCL = (x_BCL - mean_BC1) * weight_BCL
        spread_BC1 = self.spread(centred_BCL.square().sum(-1, keepdim=True) / count_BC1, count_BC1)
        normalised = (centred_BCL / spread_BC1, mean_BC1.squeeze(-1), spread_BC1.squeeze(-1))
        return Normalised(*(each.to(given) for each in normalised))

    def enriched(
        self, token_BCND: Tensor, patch_BCNP: Tensor, observed_BCNP: Tensor, place_BG: Tensor | None
    ) -> Tensor:
        """Return the tokens with what an encoder adds to its patch embeddings; the published ones add nothing."""
        return token_BCND

    @quick_products()
    def tokens(
        self,
        x_BCL: Tensor,
        observed_BCL: Tensor | None = None,
        gap_embedding_D: Tensor | None = None,
        place_BG: Tensor | None = None,
    ) -> Tensor:
        """Return tokens after the final norm, (B, C, N, D).

        Args:
            x_BCL: values; where not observed they must be zero.
            observed_BCL: True where observed; None if everything was observed. A token with an observation never sees a
                patch without one, and every token has something to attend to.
            gap_embedding_D: added to a token in proportion to the missing share of its patch.
            place_BG: facts of place and time, for an encoder that takes them.
        """
        patch_BCNP = to_patches(x_BCL, self.patch_length)
        token_BCND = self.embed(patch_BCNP)
        absent_BCN: Tensor | None = None
        if observed_BCL is None and x_BCL.shape[-1] % self.patch_length:
            observed_BCL = torch.ones_like(x_BCL, dtype=torch.bool)  # the padding was not observed
        if observed_BCL is not None:
            observed_BCNP = to_patches(observed_BCL, self.patch_length)
            if gap_embedding_D is not None:
                gap_BCN1 = 1 - observed_BCNP.to(token_BCND.dtype).mean(-1, keepdim=True)
                token_BCND = token_BCND + gap_BCN1 * gap_embedding_D
            token_BCND = self.enriched(token_BCND, patch_BCNP, observed_BCNP, place_BG)
            absent_BCN = ~observed_BCNP.any(-1)
            absent_BCN = absent_BCN if bool(absent_BCN.any()) else None
        return self.layers(token_BCND, absent_BCN)

    def encode(self, x_BLC: Tensor, normalise: bool = True) -> Tensor:
        """Return tokens after the final norm, (B, T, D), all patches of the first variable first."""
        x_BCL = x_BLC.transpose(1, 2)
        given_BCL = self.normalise(x_BCL, torch.ones_like(x_BCL, dtype=torch.bool)).x_BCL if normalise else x_BCL
        return self.tokens(given_BCL).flatten(1, 2)

    def forecast(self, x_BLC: Tensor, normalise: bool = True) -> Tensor:
        """Forecast the next patch after each patch (the pre-training task), in the units of the input, (B, L, C)."""
        x_BCL = x_BLC.transpose(1, 2)
        window = self.normalise(x_BCL, torch.ones_like(x_BCL, dtype=torch.bool))
        given_BCL = window.x_BCL if normalise else x_BCL
        forecast_BCL: Tensor = self.forecasting(self.tokens(given_BCL)).flatten(2)[..., -x_BCL.shape[-1] :]
        if normalise:
            forecast_BCL = forecast_BCL * window.spread_BC[..., None] + window.mean_BC[..., None]
        return forecast_BCL.transpose(1, 2)
