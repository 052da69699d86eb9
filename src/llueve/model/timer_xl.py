"""The Timer-XL encoder, as published in OpenLTM's multivariate form, with missing values as masks.

Shapes: B batch, L steps, C variables, N patches, P patch length, T = N·C tokens (time-major inside, so that what a token
may see is a prefix), D width, H heads, E = D/H head width.

Module names are those of the public checkpoints, so their tensors load by name. Source of the equations: Liu et al.,
"Timer-XL: Long-Context Transformers for Unified Time Series Forecasting", arXiv:2410.04803.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, cast

import torch
from torch import Tensor, nn

from llueve.errors import UsageError
from llueve.model.attention import variable_attention
from llueve.model.dropout import Dropout
from llueve.model.patches import PatchEncoder
from llueve.model.products import linear

ROTARY_BASE = 10_000.0
NORMALISER_EPSILON = 1e-5

Positions = Literal["flattened", "time"]


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def rotary_table(variables: int, patches: int, head_width: int, positions: Positions, device: torch.device) -> Tensor:
    """Unit complex numbers (T, 1, E/2) that turn each pair of a head's width; the second half of the width is not turned.

    Pair i of the first half turns by position · θ^(−2i / (E/2)), θ = 10000.
    """
    token = torch.arange(variables * patches, device=device)
    patch, variable = token // variables, token % variables
    position_T = variable * patches + patch if positions == "flattened" else patch
    rotated = head_width // 2
    frequency_R = ROTARY_BASE ** (-torch.arange(0, rotated, 2, device=device, dtype=torch.float64) / rotated)
    angle_TR = torch.cat(
        (position_T[:, None] * frequency_R, torch.zeros(len(token), rotated // 2, device=device)), dim=1
    )
    return torch.polar(torch.ones_like(angle_TR), angle_TR)[:, None]


def rotate(x_BTHE: Tensor, turn_T1R: Tensor) -> Tensor:
    """Rotary embedding in interleaved pairs: neighbours of the head width are one complex number, turned by its position."""
    pairs = torch.view_as_complex(x_BTHE.unflatten(-1, (-1, 2)).to(turn_T1R.real.dtype))
    return torch.view_as_real(pairs * turn_T1R).flatten(-2)


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

    def forward(
        self, x_BTD: Tensor, turn_T1R: Tensor, variables: int, absent_BT: Tensor | None, operand: torch.dtype
    ) -> Tensor:
        """Attend over the tokens of all variables; `absent_BT` is True where a token holds no observation."""
        x_BTD = x_BTD.to(operand)
        query_BTHE, key_BTHE, value_BTHE = (
            linear(x_BTD, project.weight, project.bias).unflatten(-1, (self.heads, -1))
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
        mixed_BTD = mixed_BHTE.transpose(1, 2).flatten(2).to(operand)
        return linear(mixed_BTD, self.out_projection.weight, self.out_projection.bias)


class EncoderLayer(nn.Module):
    """Post-norm transformer layer; the feed-forward keeps the public 1×1 convolutions' tensor shapes."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.conv1 = nn.Conv1d(width, feed_forward, kernel_size=1)
        self.conv2 = nn.Conv1d(feed_forward, width, kernel_size=1)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BTD: Tensor, turn_T1R: Tensor, variables: int, absent_BT: Tensor | None, operand: torch.dtype
    ) -> Tensor:
        """One layer over all tokens; the operands of its linear maps are of type `operand`."""
        x_BTD = self.norm1(x_BTD + self.dropout(self.attention(x_BTD, turn_T1R, variables, absent_BT, operand)))
        # A 1×1 convolution is a linear map of each token; as one it needs no transposed copies.
        inner = self.dropout.relu(linear(x_BTD.to(operand), self.conv1.weight.squeeze(-1), self.conv1.bias))
        outer = self.dropout(linear(inner, self.conv2.weight.squeeze(-1), self.conv2.bias))
        out: Tensor = self.norm2(x_BTD + outer)
        return out


class Blocks(nn.Module):
    """The layers and the final norm, under their public names."""

    def __init__(self, layers: int, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attn_layers = nn.ModuleList(EncoderLayer(width, heads, feed_forward, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x_BTD: Tensor, turn_T1R: Tensor, variables: int, absent_BT: Tensor | None, operands: Sequence[torch.dtype]
    ) -> Tensor:
        """Tokens after the final norm; `operands` has the type of each layer's."""
        for layer, operand in zip(self.attn_layers, operands, strict=True):
            x_BTD = layer(x_BTD, turn_T1R, variables, absent_BT, operand)
        out: Tensor = self.norm(x_BTD)
        return out


class TimerXL(PatchEncoder):
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
        super().__init__(patch_length, width)
        if width % heads or (width // heads) % 4:
            raise UsageError(
                f"width {width} over {heads} heads: half of a head is rotated in pairs, so width / heads must be a multiple of 4"
            )
        self.heads = heads
        self.positions: Positions = positions
        self.embedding = nn.Linear(patch_length, width)
        self.blocks = Blocks(layers, width, heads, feed_forward, dropout)
        self.head = nn.Linear(width, patch_length)

    @property
    def forecasting(self) -> nn.Linear:
        """The pre-training head: a token to the patch that follows it."""
        return self.head

    @property
    def stack(self) -> tuple[nn.Module, ...]:
        """The embedding, then each layer."""
        return (self.embedding, *self.blocks.attn_layers)

    def embed(self, patch_BCNP: Tensor) -> Tensor:
        """Tokens (B, C, N, D) before the first layer, time-major in memory."""
        return cast(Tensor, self.embedding(patch_BCNP.transpose(1, 2)).transpose(1, 2))

    def layers(self, token_BCND: Tensor, absent_BCN: Tensor | None) -> Tensor:
        """Tokens after the final norm; all variables are one sequence."""
        _, variables, patches, _ = token_BCND.shape
        turn_T1R = rotary_table(variables, patches, self.width // self.heads, self.positions, token_BCND.device)
        turn_T1R = turn_T1R.to(torch.complex128 if token_BCND.dtype == torch.float64 else torch.complex64)
        absent_BT = None if absent_BCN is None else absent_BCN.transpose(1, 2).flatten(1)
        x_BTD = token_BCND.transpose(1, 2).flatten(1, 2)
        operands = [self.operand(number, x_BTD.dtype) for number in range(self.depth)]
        out_BTD: Tensor = self.blocks(x_BTD, turn_T1R, variables, absent_BT, operands)
        return cast(Tensor, out_BTD.unflatten(1, (patches, variables)).transpose(1, 2))

    def spread(self, variance_BC1: Tensor, count_BC1: Tensor) -> Tensor:
        """√(population variance + 1e-5), as the public code has it."""
        return torch.sqrt(variance_BC1 + NORMALISER_EPSILON)
