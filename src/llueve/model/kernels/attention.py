"""Fused causal attention with one learned bias for tokens of the same variable; blocks of later keys are skipped.

Shapes: B batch, H heads, T = N·C tokens (time-major: all variables of the first patch first), N patches, C variables,
E head width, R rows and K keys of one chunk.

In time-major order a token sees a prefix of the keys. The rows are processed in chunks of whole patches, and a chunk gets
no key after its last row: about half of the work of the full matrix. Only the corner of a chunk of several patches needs
a mask.

The fused kernel accepts a mask, but computes no gradient for it. The bias has one degree of freedom, because softmax
ignores a constant added to a row: δ_h = bias_h(same) − bias_h(other). With dS the gradient of the scores,
∂loss/∂δ_h = Σ dS over pairs of one variable. These are C blocks of N × N, recomputed here from the row sums that the
kernel keeps. Rows of dS sum to zero, so the gradient of bias(other) is its negative.
"""

import math
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from llueve.model.kernels.matmul import small_products

ABSENT_SCORE = -1e9
"""Added to the score of a key without an observation: its weight is exactly zero beside any present key. Scores of inputs
that the classifier admits stay far above it."""
HEAD_MULTIPLE = 4
"""The fast kernels of accelerators need a head width that is a multiple of this number."""
CHUNK_ROWS = 64
"""Smallest number of rows in a chunk at which the kernel runs at full speed."""
KERNEL = "_scaled_dot_product_flash_attention_for_cpu"
HAS_KERNEL = all(hasattr(torch.ops.aten, name) for name in (KERNEL, f"{KERNEL}_backward"))
"""True if torch has the processor's kernel, which is not public; without it, the slower public attention is used."""


def variable_attention(
    query_BHTE: Tensor,
    key_BHTE: Tensor,
    value_BHTE: Tensor,
    bias_H2: Tensor,
    variables: int,
    absent_BT: Tensor | None = None,
) -> Tensor:
    """Return softmax((q·k + bias) / √E)·v, (B, H, T, E); a query sees no patch of any variable later than its own.

    Args:
        query_BHTE, key_BHTE, value_BHTE: of time-major tokens.
        bias_H2: bias of each head towards tokens of other variables and of the same variable.
        variables: C; T is a multiple of it.
        absent_BT: True where a token holds no observation; no present token sees it.
    """
    scale = 1 / math.sqrt(query_BHTE.shape[-1])
    delta_H = ((bias_H2[:, 1] - bias_H2[:, 0]) * scale).to(query_BHTE.dtype)
    value_BHTE = value_BHTE.to(query_BHTE.dtype)  # after the rotation, queries and keys are at least float32
    width, on_processor = value_BHTE.shape[-1], query_BHTE.device.type == "cpu"
    if absent_BT is not None:
        added = 1 if on_processor else HEAD_MULTIPLE
        query_BHTE, key_BHTE, value_BHTE = _with_mask_coordinate(
            query_BHTE, key_BHTE, value_BHTE, absent_BT, variables, scale, added
        )
    if on_processor and HAS_KERNEL:
        out_BHTE = cast(Tensor, _FusedAttention.apply(query_BHTE, key_BHTE, value_BHTE, delta_H, variables, scale))  # type: ignore[no-untyped-call]
    else:
        out_BHTE = masked_attention(query_BHTE, key_BHTE, value_BHTE, delta_H, variables, scale)
    return out_BHTE if absent_BT is None else out_BHTE[..., :width]


def causal_attention(
    query_BHNE: Tensor, key_BHNE: Tensor, value_BHNE: Tensor, absent_BN: Tensor | None = None
) -> Tensor:
    """Return softmax(q·k / √E)·v, (B, H, N, E), over patches of one variable not later than the query's."""
    bias_H2 = query_BHNE.new_zeros(query_BHNE.shape[1], 2)
    return variable_attention(query_BHNE, key_BHNE, value_BHNE, bias_H2, 1, absent_BN)


def masked_attention(
    query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor, delta_H: Tensor, variables: int, scale: float
) -> Tensor:
    """Compute the same attention in one public call: on accelerators, and where the processor's kernel is absent."""
    same_TT, later_TT = _relations(query_BHTE.shape[2], variables, query_BHTE.device)
    mask_HTT = (delta_H[:, None, None] * same_TT).masked_fill(later_TT, -torch.inf)
    return F.scaled_dot_product_attention(query_BHTE, key_BHTE, value_BHTE, attn_mask=mask_HTT[None], scale=scale)


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def _relations(tokens: int, variables: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two masks (T, T) over pairs of query and key: True if both are of one variable, True if the key's patch is later."""
    token = torch.arange(tokens, device=device)
    same_TT = token[:, None] % variables == token % variables
    return same_TT, token[:, None] // variables < token // variables


def _with_mask_coordinate(
    query_BHTE: Tensor,
    key_BHTE: Tensor,
    value_BHTE: Tensor,
    absent_BT: Tensor,
    variables: int,
    scale: float,
    added: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add coordinates, of which the first carries the mask through the product q·k, instead of a (B, T, T) tensor.

    The first is 1 in queries that may see a present key. It is 0 in the others, which attend to absent keys as if
    these were present: with all scores at −1e9, float32 cannot represent the weights exp(score − log Σ exp(score)).
    """
    penalty_BHT1 = (absent_BT[:, None, :, None] * (ABSENT_SCORE / scale)).to(key_BHTE.dtype)
    penalty_BHT1 = penalty_BHT1.expand(-1, key_BHTE.shape[1], -1, -1)
    present_BN = (~absent_BT).unflatten(1, (-1, variables)).any(-1)
    seeing_BT = (present_BN.cumsum(1) > 0).repeat_interleave(variables, dim=1)
    one_BHT1 = seeing_BT[:, None, :, None].to(query_BHTE.dtype).expand_as(penalty_BHT1)
    zero_BHT1 = torch.zeros_like(penalty_BHT1)
    rest = (zero_BHT1,) * (added - 1)
    return (
        torch.cat((query_BHTE, one_BHT1, *rest), dim=-1),
        torch.cat((key_BHTE, penalty_BHT1, *rest), dim=-1),
        torch.cat((value_BHTE, zero_BHT1, *rest), dim=-1),
    )


def _chunks(tokens: int, variables: int) -> list[tuple[int, int]]:
    rows = variables * -(-CHUNK_ROWS // variables)
    return [(start, min(start + rows, tokens)) for start in range(0, tokens, rows)]


def _mask_1HRK(delta_H: Tensor, variables: int, start: int, end: int) -> Tensor:
    """δ on pairs of one variable, 0 on other pairs, −∞ where the key's patch is later than the query's."""
    rows, heads = end - start, len(delta_H)
    mask_1HRK = delta_H.new_zeros(1, heads, rows, end)
    patches = rows // variables
    if patches > 1:
        later_PP = torch.full((patches, patches), -torch.inf, dtype=delta_H.dtype).triu(1)
        mask_1HRK[..., start:].unflatten(2, (patches, variables)).unflatten(4, (patches, variables)).copy_(
            later_PP[:, None, :, None]
        )
    same = mask_1HRK.unflatten(2, (patches, variables)).unflatten(4, (-1, variables)).diagonal(dim1=3, dim2=5)
    same.add_(delta_H[:, None, None, None])
    return mask_1HRK


class _FusedAttention(torch.autograd.Function):
    """The processor's fused attention kernel, in chunks, with a gradient for δ."""

    @staticmethod
    @small_products()
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, delta_H: Tensor, variables: int, scale: float
    ) -> Tensor:
        batch, heads, tokens, width = query.shape
        # The memory layout is (B, T, H, E), so that the next product joins the heads without a copy.
        out = query.new_empty(batch, tokens, heads, width).transpose(1, 2)
        logsumexp = query.new_empty(batch, heads, tokens)
        for start, end in _chunks(tokens, variables):
            mask = _mask_1HRK(delta_H, variables, start, end)
            out[:, :, start:end], logsumexp[:, :, start:end] = (
                torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    query[:, :, start:end], key[:, :, :end], value[:, :, :end], 0.0, False, attn_mask=mask, scale=scale
                )
            )
        ctx.save_for_backward(query, key, value, delta_H, out, logsumexp)
        ctx.variables, ctx.scale = variables, scale
        return out

    @staticmethod
    @once_differentiable
    @small_products()
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, delta_H, out, logsumexp = ctx.saved_tensors
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for start, end in _chunks(query.shape[2], ctx.variables):
            mask = _mask_1HRK(delta_H, ctx.variables, start, end)
            grad_rows, query_rows, out_rows, sum_rows = (
                each[:, :, start:end] for each in (grad_out, query, out, logsumexp)
            )
            keys = (key[:, :, :end], value[:, :, :end])
            chunk = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_rows, query_rows, *keys, out_rows, sum_rows, 0.0, False, attn_mask=mask, scale=ctx.scale
            )
            grad_query[:, :, start:end] = chunk[0]
            grad_key[:, :, :end] += chunk[1]
            grad_value[:, :, :end] += chunk[2]
        grad_delta_H = None
        if ctx.needs_input_grad[3]:
            # With one variable, δ is a constant of each row, which softmax ignores.
            several = ctx.variables > 1
            grad_delta_H = _bias_gradient(ctx, grad_out) if several else torch.zeros_like(delta_H)
        return grad_query, grad_key, grad_value, grad_delta_H, None, None


def _bias_gradient(ctx: Any, grad_out: Tensor) -> Tensor:
    """∂loss/∂δ, (H,): the gradient of the scores, summed over pairs of one variable in C blocks of N × N."""
    query, key, value, delta_H, out, logsumexp = ctx.saved_tensors

    def by_variable(x: Tensor) -> Tensor:  # (B, H, T, …) to (B, H, C, N, …)
        return cast(Tensor, x.unflatten(2, (-1, ctx.variables)).transpose(2, 3))

    patches = query.shape[2] // ctx.variables
    score = by_variable(query) @ by_variable(key).transpose(-1, -2) * ctx.scale + delta_H[:, None, None, None]
    later = torch.ones(patches, patches, dtype=torch.bool).triu(1)
    # A weight is at most one, but rounding of huge scores could give more.
    weight = (score - by_variable(logsumexp)[..., None]).clamp(max=0).masked_fill(later, -torch.inf).exp()
    share = by_variable((grad_out * out).sum(-1))[..., None]
    grad_score = weight * (by_variable(grad_out) @ by_variable(value).transpose(-1, -2) - share)
    return cast(Tensor, grad_score.sum((0, 2, 3, 4)))
