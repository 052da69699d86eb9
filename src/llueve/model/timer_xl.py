"""The Timer-XL encoder, as published in OpenLTM's multivariate form, with missing values as masks.

Shapes: B batch, L steps, C variables, N patches, P patch length, T = C·N tokens (variable-major), D width, H heads,
E = D/H head width.

Module names are those of the public checkpoints, so their tensors load by name. Source of the equations: Liu et al.,
"Timer-XL: Long-Context Transformers for Unified Time Series Forecasting", arXiv:2410.04803.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llueve.model.attention import variable_attention

ROTARY_BASE = 10_000.0
NORMALISER_EPSILON = 1e-5

Positions = Literal["flattened", "time"]


@dataclass(frozen=True)
class Normalised:
    """Windows after instance normalisation, with what was taken out of them."""

    x_BCL: Tensor
    """Zero mean and unit spread per window and variable; exactly zero where not observed."""
    mean_BC: Tensor
    spread_BC: Tensor
    """Population standard deviation with ε under the root, so never zero."""


def normalise(x_BCL: Tensor, observed_BCL: Tensor) -> Normalised:
    """Take each variable's own mean and spread out of each window, over the observed cells alone.

    mean = Σ m·x / Σ m, spread = √(Σ m·(x − mean)² / Σ m + ε). A variable without an observation has mean 0 and
    spread √ε. With everything observed this is the public code's normaliser (population variance, ε = 1e-5).
    """
    weight_BCL = observed_BCL.to(x_BCL.dtype)
    count_BC1 = weight_BCL.sum(-1, keepdim=True).clamp(min=1)
    mean_BC1 = (x_BCL * weight_BCL).sum(-1, keepdim=True) / count_BC1
    centred_BCL = (x_BCL - mean_BC1) * weight_BCL
    variance_BC1 = centred_BCL.square().sum(-1, keepdim=True) / count_BC1
    spread_BC1 = torch.sqrt(variance_BC1 + NORMALISER_EPSILON)
    return Normalised(centred_BCL / spread_BC1, mean_BC1.squeeze(-1), spread_BC1.squeeze(-1))


def to_patches(x_BCL: Tensor, patch_length: int) -> Tensor:
    """Cut the steps into patches (B, C, N, P); a length that is no multiple of P is padded on the left with zeros."""
    missing = -x_BCL.shape[-1] % patch_length
    padded_BCL = F.pad(x_BCL, (missing, 0)) if missing else x_BCL
    return cast(Tensor, padded_BCL.unflatten(-1, (-1, patch_length)))


@lru_cache(maxsize=16)
def rotary_table(variables: int, patches: int, head_width: int, positions: Positions, device: torch.device) -> Tensor:
    """Unit complex numbers (T, 1, E/2) that turn each pair of a head's width; the second half of the width is not turned.

    Pair i of the first half turns by position · θ^(−2i / (E/2)), θ = 10000.
    """
    token = torch.arange(variables * patches, device=device)
    position_T = token if positions == "flattened" else token % patches
    rotated = head_width // 2
    frequency_R = ROTARY_BASE ** (-torch.arange(0, rotated, 2, device=device, dtype=torch.float64) / rotated)
    angle_TR = torch.cat(
        (position_T[:, None] * frequency_R, torch.zeros(len(token), rotated // 2, device=device)), dim=1
    )
    return torch.polar(torch.ones_like(angle_TR), angle_TR)[:, None]


def rotate(x_BTHE: Tensor, turn_T1R: Tensor) -> Tensor:
    """Rotary embedding in interleaved pairs: neighbours of the head width are one complex number, turned by its position."""
    pairs = torch.view_as_complex(x_BTHE.unflatten(-1, (-1, 2)).to(turn_T1R.real.dtype))
    return torch.view_as_real(pairs * turn_T1R).flatten(-2).to(x_BTHE.dtype)


class VariableBias(nn.Module):
    """One learned attention bias per head: row 0 for tokens of different variables, row 1 for those of the same."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(2, heads)


class InnerAttention(nn.Module):
    """Holds the variable bias under its public name."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.attn_bias = VariableBias(heads)


class Attention(nn.Module):
    """softmax((q·k + bias) / √E)·v over the tokens that a token may see; the bias is divided by √E as well."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner_attention = InnerAttention(heads)
        self.query_projection = nn.Linear(width, width)
        self.key_projection = nn.Linear(width, width)
        self.value_projection = nn.Linear(width, width)
        self.out_projection = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x_BTD: Tensor, turn_T1R: Tensor, variables: int, absent_BT: Tensor | None) -> Tensor:
        """Attend over the tokens of all variables; `absent_BT` is True where a token holds no observation."""
        query_BTHE, key_BTHE, value_BTHE = (
            project(x_BTD).unflatten(-1, (self.heads, -1))
            for project in (self.query_projection, self.key_projection, self.value_projection)
        )
        mixed_BHTE = variable_attention(
            rotate(query_BTHE, turn_T1R).transpose(1, 2),
            rotate(key_BTHE, turn_T1R).transpose(1, 2),
            value_BTHE.transpose(1, 2),
            self.inner_attention.attn_bias.emb.weight.T,
            variables,
            absent_BT,
        )
        return cast(Tensor, self.out_projection(mixed_BHTE.transpose(1, 2).flatten(2)))


class EncoderLayer(nn.Module):
    """Post-norm transformer layer; the feed-forward keeps the public 1×1 convolutions' tensor shapes."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.conv1 = nn.Conv1d(width, feed_forward, kernel_size=1)
        self.conv2 = nn.Conv1d(feed_forward, width, kernel_size=1)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, turn_T1R: Tensor, variables: int, absent_BT: Tensor | None) -> Tensor:
        """One layer over all tokens."""
        x_BTD = self.norm1(x_BTD + self.dropout(self.attention(x_BTD, turn_T1R, variables, absent_BT)))
        # A 1×1 convolution is a linear map of each token; as one it needs no transposed copies.
        inner = self.dropout(F.relu(F.linear(x_BTD, self.conv1.weight.squeeze(-1), self.conv1.bias)))
        outer = self.dropout(F.linear(inner, self.conv2.weight.squeeze(-1), self.conv2.bias))
        out: Tensor = self.norm2(x_BTD + outer)
        return out


class Blocks(nn.Module):
    """The layers and the final norm, under their public names."""

    def __init__(self, layers: int, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attn_layers = nn.ModuleList(EncoderLayer(width, heads, feed_forward, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BTD: Tensor, turn_T1R: Tensor, variables: int, absent_BT: Tensor | None) -> Tensor:
        """Tokens after the final norm."""
        for layer in self.attn_layers:
            x_BTD = layer(x_BTD, turn_T1R, variables, absent_BT)
        out: Tensor = self.norm(x_BTD)
        return out


class TimerXL(nn.Module):
    """Timer-XL: patches of every variable as tokens, causal in time across all variables.

    Args:
        patch_length: P, steps in one token.
        width, layers, heads, feed_forward: sizes; width / heads must be a multiple of 4.
        dropout: of attention output and feed-forward.
        positions: rotary index over variable × patch (`flattened`, the public code) or over the patch alone (`time`,
            the paper; the encoder is then equivariant to the order of the variables).
    """

    def __init__(
        self,
        patch_length: int = 96,
        width: int = 1024,
        layers: int = 8,
        heads: int = 8,
        feed_forward: int = 2048,
        dropout: float = 0.1,
        positions: Positions = "flattened",
    ) -> None:
        super().__init__()
        self.patch_length = patch_length
        self.width = width
        self.heads = heads
        self.positions: Positions = positions
        self.embedding = nn.Linear(patch_length, width)
        self.blocks = Blocks(layers, width, heads, feed_forward, dropout)
        self.head = nn.Linear(width, patch_length)

    def encode(
        self, x_BCL: Tensor, observed_BCL: Tensor | None = None, gap_embedding_D: Tensor | None = None
    ) -> Tensor:
        """Tokens after the final norm, (B, C, N, D).

        Args:
            x_BCL: values; where not observed they must be zero.
            observed_BCL: True where observed; None means everything. A patch without an observation is
                seen by no token that has one, and no row is ever left with nothing to attend to.
            gap_embedding_D: added to a token in proportion to the share of its patch that was not observed.
        """
        patches_BCNP = to_patches(x_BCL, self.patch_length)
        token_BCND = self.embedding(patches_BCNP)
        _, variables, patches, _ = token_BCND.shape
        if observed_BCL is None and patches * self.patch_length != x_BCL.shape[-1]:
            observed_BCL = torch.ones_like(x_BCL, dtype=torch.bool)
        absent_BT = None
        if observed_BCL is not None:
            observed_BCNP = to_patches(observed_BCL, self.patch_length)
            absent_BT = ~observed_BCNP.any(-1).flatten(1)
            absent_BT = absent_BT if bool(absent_BT.any()) else None
            if gap_embedding_D is not None:
                gap_BCN1 = 1 - observed_BCNP.to(x_BCL.dtype).mean(-1, keepdim=True)
                token_BCND = token_BCND + gap_BCN1 * gap_embedding_D
        turn_T1R = rotary_table(variables, patches, self.width // self.heads, self.positions, x_BCL.device)
        turn_T1R = turn_T1R.to(torch.complex128 if x_BCL.dtype == torch.float64 else torch.complex64)
        out_BTD: Tensor = self.blocks(token_BCND.flatten(1, 2), turn_T1R, variables, absent_BT)
        return cast(Tensor, out_BTD.unflatten(1, (variables, patches)))

    def forecast(self, x_BLC: Tensor, instance_norm: bool = True) -> Tensor:
        """The pre-training task: each patch's token predicts the next patch, in the units of the input, (B, L, C)."""
        x_BCL = x_BLC.transpose(1, 2)
        steps = x_BCL.shape[-1]
        if not instance_norm:
            plain_BCL: Tensor = self.head(self.encode(x_BCL)).flatten(2)[..., -steps:]
            return plain_BCL.transpose(1, 2)
        window = normalise(x_BCL, torch.ones_like(x_BCL, dtype=torch.bool))
        forecast_BCL: Tensor = self.head(self.encode(window.x_BCL)).flatten(2)[..., -steps:]
        return (forecast_BCL * window.spread_BC[..., None] + window.mean_BC[..., None]).transpose(1, 2)
