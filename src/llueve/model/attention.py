"""Attention with one learned bias for tokens of the same variable, fused, blocks of the future skipped.

Shapes: B batch, H heads, T = N·C tokens (time-major: all variables of the first patch first), N patches, C variables,
E head width, R rows and K keys of one chunk.

Tokens in time-major order see a prefix of the keys, so the rows are taken in chunks of whole patches and each chunk is
given no key later than its own last: about half of the work of the full matrix. Only the corner of a chunk of several
patches needs a mask.

The fused kernel takes a mask but gives it no gradient. The bias has only one degree of freedom, because softmax does
not see a constant added to a row: δ_h = bias_h(same) − bias_h(other). With P the weights and dS the gradient of the
scores, ∂loss/∂δ_h = Σ dS over pairs of one variable: C blocks of N × N, which are recomputed here from the row sums
that the kernel keeps. Rows of dS sum to zero, so the gradient of bias(other) is its negative.
"""

import math
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from llueve.model.products import small_products

ABSENT_SCORE = -1e9
"""Added to the score of a key without an observation: exp of it is exactly zero beside any present key. Scores of inputs
that the classifier admits stay far above it."""

ALIGNED = 4
"""Accelerators' kernels want heads of whole groups of so many numbers; others would be given to a slower one."""

CHUNK_ROWS = 64
"""Rows from which on the kernel works at full speed; chunks have at least so many, in whole patches."""


def variable_attention(
    query_BHTE: Tensor,
    key_BHTE: Tensor,
    value_BHTE: Tensor,
    bias_H2: Tensor,
    variables: int,
    absent_BT: Tensor | None = None,
) -> Tensor:
    """softmax((q·k + bias) / √E)·v, (B, H, T, E), where a query sees no patch later than its own, of any variable.

    Args:
        query_BHTE, key_BHTE, value_BHTE: of time-major tokens.
        bias_H2: per head, the bias towards tokens of other variables and of the same one.
        variables: C; T is a multiple of it.
        absent_BT: True where a token holds no observation; no present token sees it.
    """
    scale = 1 / math.sqrt(query_BHTE.shape[-1])
    delta_H = (bias_H2[:, 1] - bias_H2[:, 0]) * scale
    return _attention(query_BHTE, key_BHTE, value_BHTE, delta_H, variables, scale, absent_BT)


def causal_attention(
    query_BHNE: Tensor, key_BHNE: Tensor, value_BHNE: Tensor, absent_BN: Tensor | None = None
) -> Tensor:
    """softmax(q·k / √E)·v, (B, H, N, E), over patches not later than the query's; no present patch sees an absent one."""
    heads, width = query_BHNE.shape[1], query_BHNE.shape[3]
    return _attention(query_BHNE, key_BHNE, value_BHNE, query_BHNE.new_zeros(heads), 1, 1 / math.sqrt(width), absent_BN)


def _attention(
    query_BHTE: Tensor,
    key_BHTE: Tensor,
    value_BHTE: Tensor,
    delta_H: Tensor,
    variables: int,
    scale: float,
    absent_BT: Tensor | None,
) -> Tensor:
    value_BHTE = value_BHTE.to(query_BHTE.dtype)  # rotation has made queries and keys float32 at least
    width, on_processor = value_BHTE.shape[-1], query_BHTE.device.type == "cpu"
    if absent_BT is not None:
        more = 1 if on_processor else ALIGNED
        hidden = _hiding(query_BHTE, key_BHTE, value_BHTE, absent_BT, variables, scale, more)
        query_BHTE, key_BHTE, value_BHTE = hidden
    delta_H = delta_H.to(query_BHTE.dtype)
    if on_processor:
        out_BHTE = cast(Tensor, _Fused.apply(query_BHTE, key_BHTE, value_BHTE, delta_H, variables, scale))  # type: ignore[no-untyped-call]
    else:
        out_BHTE = masked_attention(query_BHTE, key_BHTE, value_BHTE, delta_H, variables, scale)
    return out_BHTE if absent_BT is None else out_BHTE[..., :width]


def masked_attention(
    query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor, delta_H: Tensor, variables: int, scale: float
) -> Tensor:
    """The same in one call, for accelerators: their kernels give a mask its gradient."""
    same_TT, later_TT = _relations(query_BHTE.shape[2], variables, query_BHTE.device)
    mask_HTT = (delta_H[:, None, None] * same_TT).masked_fill(later_TT, -torch.inf)
    return F.scaled_dot_product_attention(query_BHTE, key_BHTE, value_BHTE, attn_mask=mask_HTT[None], scale=scale)


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def _relations(tokens: int, variables: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which pairs of query and key are of one variable, and in which the key's patch is later, (T, T) each."""
    token = torch.arange(tokens, device=device)
    same_TT = token[:, None] % variables == token % variables
    return same_TT, token[:, None] // variables < token // variables


def _hiding(
    query_BHTE: Tensor,
    key_BHTE: Tensor,
    value_BHTE: Tensor,
    absent_BT: Tensor,
    variables: int,
    scale: float,
    more: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """One more coordinate, which carries the mask through the product q·k instead of a (B, T, T) tensor.

    It is 1 in the queries that may see a present key and 0 in the others, which attend to absent keys as if they were
    present: with all scores at −1e9 a backward pass in float32 could not tell the weights, exp(score − log Σ exp(score)).

    Args:
        more: by how many coordinates a head grows; all but that one are zero.
    """
    penalty_BHT1 = (absent_BT[:, None, :, None] * (ABSENT_SCORE / scale)).to(key_BHTE.dtype)
    penalty_BHT1 = penalty_BHT1.expand(-1, key_BHTE.shape[1], -1, -1)
    present_BN = (~absent_BT).unflatten(1, (-1, variables)).any(-1)
    seeing_BT = (present_BN.cumsum(1) > 0).repeat_interleave(variables, dim=1)
    one_BHT1 = seeing_BT[:, None, :, None].to(query_BHTE.dtype).expand_as(penalty_BHT1)
    zero_BHT1 = torch.zeros_like(penalty_BHT1)
    rest = (zero_BHT1,) * (more - 1)
    return (
        torch.cat((query_BHTE, one_BHT1, *rest), dim=-1),
        torch.cat((key_BHTE, penalty_BHT1, *rest), dim=-1),
        torch.cat((value_BHTE, zero_BHT1, *rest), dim=-1),
    )


def _chunks(tokens: int, variables: int) -> list[tuple[int, int]]:
    """First and last row (exclusive) of each chunk; the keys of a chunk are all up to its last row."""
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


class _Fused(torch.autograd.Function):
    """The processor's fused attention kernel in chunks, with the gradient of δ added."""

    @staticmethod
    @small_products()
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, delta_H: Tensor, variables: int, scale: float
    ) -> Tensor:
        batch, heads, tokens, width = query.shape
        # In memory (B, T, H, E): the product that follows joins the heads without a copy.
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
            rows = slice(start, end)
            chunk = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_out[:, :, rows],
                query[:, :, rows],
                key[:, :, :end],
                value[:, :, :end],
                out[:, :, rows],
                logsumexp[:, :, rows],
                0.0,
                False,
                attn_mask=_mask_1HRK(delta_H, ctx.variables, start, end),
                scale=ctx.scale,
            )
            grad_query[:, :, rows] = chunk[0]
            grad_key[:, :, :end] += chunk[1]
            grad_value[:, :, :end] += chunk[2]
        grad_delta_H = None
        if ctx.needs_input_grad[3] and ctx.variables == 1:
            grad_delta_H = torch.zeros_like(
                delta_H
            )  # every pair is of one variable: a constant, which softmax does not see
        elif ctx.needs_input_grad[3]:
            grad_delta_H = _bias_gradient(
                query, key, value, delta_H, out, logsumexp, grad_out, ctx.variables, ctx.scale
            )
        return grad_query, grad_key, grad_value, grad_delta_H, None, None


def _bias_gradient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    delta_H: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    grad_out: Tensor,
    variables: int,
    scale: float,
) -> Tensor:
    """∂loss/∂δ, (H,): the scores' gradient summed over pairs of one variable, from their C blocks of N × N alone."""

    def by_variable(x: Tensor) -> Tensor:  # (B, H, T, …) to (B, H, C, N, …)
        return cast(Tensor, x.unflatten(2, (-1, variables)).transpose(2, 3))

    patches = query.shape[2] // variables
    score = by_variable(query) @ by_variable(key).transpose(-1, -2) * scale + delta_H[:, None, None, None]
    later = torch.ones(patches, patches, dtype=torch.bool).triu(1)
    # No weight is above one; beside huge scores the difference of two roundings could say otherwise.
    weight = (score - by_variable(logsumexp)[..., None]).clamp(max=0).masked_fill(later, -torch.inf).exp()
    share = by_variable((grad_out * out).sum(-1))[..., None]
    grad_score = weight * (by_variable(grad_out) @ by_variable(value).transpose(-1, -2) - share)
    return grad_score.sum((0, 2, 3, 4))
