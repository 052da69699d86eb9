"""Timer-XL, the multivariate encoder published with OpenLTM, with masks for missing values.

Shapes: B batch, L steps, C variables, N patches, P patch length, D width, H heads, E = D/H head width.
T = N·C tokens, time-major: a token sees a prefix of the sequence.

Module names are those of the public checkpoints, so their tensors load by name. Source of the equations: Liu et al.,
"Timer-XL: Long-Context Transformers for Unified Time Series Forecasting", arXiv:2410.04803.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, cast

import torch
from torch import Tensor, nn

from llueve.model.kernels.attention import variable_attention
from llueve.model.kernels.dropout import Dropout
from llueve.model.kernels.matmul import linear
from llueve.model.patches import PatchEncoder

ROTARY_BASE = 10_000.0

Positions = Literal["flattened", "time"]


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def rotary_table(variables: int, patches: int, head_width: int, positions: Positions, device: torch.device) -> Tensor:
    """Return unit complex numbers (T, 1, E/2), one rotation for each pair of the head width.

    Pair i of the first half turns by position · θ^(−2i / (E/2)), θ = 10000; the second half is not rotated.
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
    """Apply the rotary embedding: two neighbours of the head width are one complex number, rotated by its position."""
    pairs = torch.view_as_complex(x_BTHE.unflatten(-1, (-1, 2)).to(turn_T1R.real.dtype))
    return torch.view_as_real(pairs * turn_T1R).flatten(-2)


class Attention(nn.Module):
    """softmax((q·k + bias) / √E)·v over tokens of patches that are not later.

    Each head has a learned bias for tokens of different variables (row 0) and of the same variable (row 1).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner_attention = nn.ModuleDict({"attn_bias": nn.ModuleDict({"emb": nn.Embedding(2, heads)})})
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
            self.inner_attention.get_parameter("attn_bias.emb.weight").T,
            variables,
            absent_BT,
        )
        mixed_BTD = mixed_BHTE.transpose(1, 2).flatten(2).to(operand)
        return linear(mixed_BTD, self.out_projection.weight, self.out_projection.bias)


class EncoderLayer(nn.Module):
    """Post-norm transformer layer; the feed-forward has the tensor shapes of the public 1×1 convolutions."""

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
        """Apply the layer to all tokens; the operands of its linear maps are of type `operand`."""
        x_BTD = self.norm1(x_BTD + self.dropout(self.attention(x_BTD, turn_T1R, variables, absent_BT, operand)))
        # A 1×1 convolution is a linear map of each token; the linear map needs no transposed copies.
        inner = self.dropout.relu(linear(x_BTD.to(operand), self.conv1.weight.squeeze(-1), self.conv1.bias))
        outer = self.dropout(linear(inner, self.conv2.weight.squeeze(-1), self.conv2.bias))
        return cast(Tensor, self.norm2(x_BTD + outer))


class Blocks(nn.Module):
    """The layers and the final norm, under their public names."""

    def __init__(self, layers: int, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attn_layers = nn.ModuleList(EncoderLayer(width, heads, feed_forward, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x_BTD: Tensor, turn_T1R: Tensor, variables: int, absent_BT: Tensor | None, operands: Sequence[torch.dtype]
    ) -> Tensor:
        """Return tokens after the final norm; `operands` holds the type of the operands of each layer."""
        for layer, operand in zip(self.attn_layers, operands, strict=True):
            x_BTD = layer(x_BTD, turn_T1R, variables, absent_BT, operand)
        return cast(Tensor, self.norm(x_BTD))


class TimerXL(PatchEncoder):
    """Timer-XL: the patches of all variables are tokens of one sequence, causal in time.

    Args:
        patch_length: P, steps in one token.
        width: D; width / heads must be a multiple of 4.
        feed_forward: inner width of the feed-forward.
        dropout: rate after attention and feed-forward in training, 0…1.
        positions: rotary index. `flattened` runs over variable × patch, as in the public code. `time` runs over the patch,
            as in the paper; the encoder is then equivariant to the order of the variables.

    Raises:
        UsageError: width / heads is not a multiple of 4.
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
        super().__init__(patch_length, width, heads, head_multiple=4)
        self.positions: Positions = positions
        self.embedding = nn.Linear(patch_length, width)
        self.blocks = Blocks(layers, width, heads, feed_forward, dropout)
        self.head = nn.Linear(width, patch_length)

    @property
    def forecasting(self) -> nn.Linear:
        """The pre-training head: it maps a token to the next patch."""
        return self.head

    @property
    def stack(self) -> tuple[nn.Module, ...]:
        """The embedding, then each layer."""
        return (self.embedding, *self.blocks.attn_layers)

    def embed(self, patch_BCNP: Tensor) -> Tensor:
        """Return tokens (B, C, N, D) before the first layer, time-major in memory."""
        return cast(Tensor, self.embedding(patch_BCNP.transpose(1, 2)).transpose(1, 2))

    def layers(self, token_BCND: Tensor, absent_BCN: Tensor | None) -> Tensor:
        """Return tokens after the final norm; all variables are one sequence."""
        _, variables, patches, _ = token_BCND.shape
        turn_T1R = rotary_table(variables, patches, self.width // self.heads, self.positions, token_BCND.device)
        turn_T1R = turn_T1R.to(torch.complex128 if token_BCND.dtype == torch.float64 else torch.complex64)
        absent_BT = None if absent_BCN is None else absent_BCN.transpose(1, 2).flatten(1)
        x_BTD = token_BCND.transpose(1, 2).flatten(1, 2)
        operands = [self.operand(number, x_BTD.dtype) for number in range(self.depth)]
        out_BTD: Tensor = self.blocks(x_BTD, turn_T1R, variables, absent_BT, operands)
        return cast(Tensor, out_BTD.unflatten(1, (patches, variables)).transpose(1, 2))

    def spread(self, variance_BC1: Tensor, count_BC1: Tensor) -> Tensor:
        """Return √(population variance + 1e-5), as in the public code."""
        return torch.sqrt(variance_BC1 + 1e-5)
