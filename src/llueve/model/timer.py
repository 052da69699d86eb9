"""Timer, the encoder of the published `timer-base-84m`: one variable at a time, gated feed-forward, whole heads rotated.

Shapes: B batch, L steps, C variables, N patches, P patch length, D width, H heads, E = D/H head width.

Module names are those of the public checkpoint, so its tensors load by name. Each variable is a separate sequence; only
the classification head combines variables. Source of the equations: Liu et al., "Timer: Generative Pre-trained
Transformers Are Large Time Series Models", arXiv:2402.02368, and the names and shapes in the checkpoint.
"""

from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llueve.model.kernels.attention import causal_attention
from llueve.model.kernels.dropout import Dropout
from llueve.model.kernels.matmul import linear
from llueve.model.patches import PatchEncoder

ROTARY_BASE = 10_000.0


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def rotary_waves(patches: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosine and sine (N, 1, E) of the rotation: coordinates i and i + E/2 turn by position · θ^(−2i/E), θ = 10000."""
    frequency_R = ROTARY_BASE ** (-torch.arange(0, head_width, 2, device=device, dtype=torch.float64) / head_width)
    angle_NE = (torch.arange(patches, device=device)[:, None] * frequency_R).repeat(1, 2)
    return angle_NE.cos()[:, None], angle_NE.sin()[:, None]


def rotate_halves(x_BNHE: Tensor, waves: tuple[Tensor, Tensor]) -> Tensor:
    """Apply the rotary embedding to the whole head width; each coordinate of its first half is paired with the second."""
    x_BNHE = x_BNHE.to(torch.promote_types(x_BNHE.dtype, torch.float32))
    cosine, sine = (wave.to(x_BNHE.dtype) for wave in waves)
    first, second = x_BNHE.chunk(2, dim=-1)
    return x_BNHE * cosine + torch.cat((-second, first), dim=-1) * sine


class SelfAttention(nn.Module):
    """softmax(q·k / √E)·v over patches of the same variable that are not later; the output map has no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.heads = heads

    def forward(
        self, x_BND: Tensor, waves: tuple[Tensor, Tensor], absent_BN: Tensor | None, operand: torch.dtype
    ) -> Tensor:
        """Attend over the patches; `absent_BN` is True where a patch holds no observation."""
        x_BND = x_BND.to(operand)
        query, key, value = (
            linear(x_BND, project.weight, project.bias).unflatten(-1, (self.heads, -1))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed_BHNE = causal_attention(
            rotate_halves(query, waves).transpose(1, 2),
            rotate_halves(key, waves).transpose(1, 2),
            value.transpose(1, 2),
            absent_BN,
        )
        return linear(mixed_BHNE.transpose(1, 2).flatten(2).to(operand), self.o_proj.weight, None)


class FeedForward(nn.Module):
    """down(SiLU(gate(x)) · up(x))."""

    def __init__(self, width: int, feed_forward: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, feed_forward, bias=False)
        self.up_proj = nn.Linear(width, feed_forward, bias=False)
        self.down_proj = nn.Linear(feed_forward, width, bias=False)

    def forward(self, x_BND: Tensor, operand: torch.dtype) -> Tensor:
        """Map each token separately."""
        x_BND = x_BND.to(operand)
        inner = F.silu(linear(x_BND, self.gate_proj.weight, None)) * linear(x_BND, self.up_proj.weight, None)
        return linear(inner, self.down_proj.weight, None)


class DecoderLayer(nn.Module):
    """Post-norm transformer layer."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, heads)
        self.ffn_layer = FeedForward(width, feed_forward)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BND: Tensor, waves: tuple[Tensor, Tensor], absent_BN: Tensor | None, operand: torch.dtype
    ) -> Tensor:
        """Apply the layer to all patches; the operands of its linear maps are of type `operand`."""
        x_BND = self.norm1(x_BND + self.dropout(self.self_attn(x_BND, waves, absent_BN, operand)))
        return cast(Tensor, self.norm2(x_BND + self.dropout(self.ffn_layer(x_BND, operand))))


class Decoder(nn.Module):
    """Embedding, layers and final norm, under their public names."""

    def __init__(
        self, patch_length: int, width: int, layers: int, heads: int, feed_forward: int, dropout: float
    ) -> None:
        super().__init__()
        self.embed_layer = nn.ModuleDict({"emb": nn.Linear(patch_length, width, bias=False)})
        self.layers = nn.ModuleList(DecoderLayer(width, heads, feed_forward, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)


class Timer(PatchEncoder):
    """The univariate Timer. Its arguments are those of `TimerXL`, but width / heads must be even."""

    def __init__(
        self,
        patch_length: int = 96,
        width: int = 1024,
        layers: int = 8,
        heads: int = 8,
        feed_forward: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(patch_length, width, heads, head_multiple=2)
        self.model = Decoder(patch_length, width, layers, heads, feed_forward, dropout)
        self.lm_heads = nn.ModuleList([nn.Linear(width, patch_length, bias=False)])

    @property
    def forecasting(self) -> nn.Linear:
        """The pre-training head: it maps a token to the next patch."""
        return cast(nn.Linear, self.lm_heads[0])

    @property
    def stack(self) -> tuple[nn.Module, ...]:
        """The embedding, then each layer."""
        return (self.model.embed_layer, *self.model.layers)

    def embed(self, patch_BCNP: Tensor) -> Tensor:
        """Return tokens (B, C, N, D) before the first layer."""
        return cast(Tensor, self.model.embed_layer["emb"](patch_BCNP))

    def layers(self, token_BCND: Tensor, absent_BCN: Tensor | None) -> Tensor:
        """Return tokens after the final norm; each variable is a separate sequence."""
        variables, patches, width = token_BCND.shape[1:]
        waves = rotary_waves(patches, width // self.heads, token_BCND.device)
        x_BND = token_BCND.flatten(0, 1)
        absent_BN = None if absent_BCN is None else absent_BCN.flatten(0, 1)
        for number, layer in enumerate(self.model.layers):
            x_BND = layer(x_BND, waves, absent_BN, self.operand(number, x_BND.dtype))
        return cast(Tensor, self.model.norm(x_BND).unflatten(0, (-1, variables)))

    def spread(self, variance_BC1: Tensor, count_BC1: Tensor) -> Tensor:
        """Return the unbiased standard deviation, at least 1e-5.

        The published code has no lower limit: there a constant window has a spread of zero and gives NaN.
        """
        unbiased = variance_BC1 * count_BC1 / (count_BC1 - 1).clamp(min=1)
        return torch.sqrt(unbiased.clamp(min=1e-10))
