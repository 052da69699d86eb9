"""Attention with one learned bias for tokens of the same variable, fused, with that bias's gradient at 1/C of the work.

Shapes: B batch, H heads, T = C·N tokens (variable-major), C variables, N patches, E head width.

The fused kernel takes a mask but gives it no gradient. The bias has only one degree of freedom, because softmax does
not see a constant added to a row: δ_h = bias_h(same) − bias_h(other). With P the weights and dS the gradient of the
scores, ∂loss/∂δ_h = Σ dS over pairs of one variable: the C diagonal blocks of N × N, which are recomputed here from the
row sums that the kernel keeps. Rows of dS sum to zero, so the gradient of bias(other) is its negative.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

ABSENT_SCORE = -1e4
"""Added to the score of a key without an observation: exp of it is exactly zero beside any present key, and a row whose
keys are all absent stays finite (uniform), where −∞ would make it NaN."""


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
        bias_H2: per head, the bias towards tokens of other variables and of the same one.
        variables: C; T is a multiple of it.
        absent_BT: True where a token holds no observation; no present token sees it.
    """
    scale = 1 / math.sqrt(query_BHTE.shape[-1])
    if absent_BT is not None:
        query_BHTE, key_BHTE, value_BHTE = _hiding(query_BHTE, key_BHTE, value_BHTE, absent_BT, scale)
    delta_H = (bias_H2[:, 1] - bias_H2[:, 0]) * scale
    out_BHTE = cast(Tensor, _Fused.apply(query_BHTE, key_BHTE, value_BHTE, delta_H, variables, scale))  # type: ignore[no-untyped-call]
    return out_BHTE if absent_BT is None else out_BHTE[..., :-1]


def causal_attention(
    query_BHNE: Tensor, key_BHNE: Tensor, value_BHNE: Tensor, absent_BN: Tensor | None = None
) -> Tensor:
    """softmax(q·k / √E)·v, (B, H, N, E), over patches not later than the query's; no present patch sees an absent one."""
    scale = 1 / math.sqrt(query_BHNE.shape[-1])
    if absent_BN is not None:
        query_BHNE, key_BHNE, value_BHNE = _hiding(query_BHNE, key_BHNE, value_BHNE, absent_BN, scale)
    out_BHNE = F.scaled_dot_product_attention(query_BHNE, key_BHNE, value_BHNE, is_causal=True, scale=scale)
    return out_BHNE if absent_BN is None else out_BHNE[..., :-1]


def _hiding(
    query_BHTE: Tensor, key_BHTE: Tensor, value_BHTE: Tensor, absent_BT: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One more coordinate, which carries the mask through the product q·k instead of a (B, T, T) tensor."""
    penalty_BHT1 = (absent_BT[:, None, :, None] * (ABSENT_SCORE / scale)).to(key_BHTE.dtype)
    penalty_BHT1 = penalty_BHT1.expand(-1, key_BHTE.shape[1], -1, -1)
    return (
        torch.cat((query_BHTE, torch.ones_like(penalty_BHT1)), dim=-1),
        torch.cat((key_BHTE, penalty_BHT1), dim=-1),
        torch.cat((value_BHTE, torch.zeros_like(penalty_BHT1)), dim=-1),
    )


def _mask_HTT(delta_H: Tensor, variables: int, tokens: int) -> Tensor:
    """δ on pairs of one variable, 0 on other pairs, −∞ where the key's patch is later than the query's."""
    token = torch.arange(tokens, device=delta_H.device)
    patches = tokens // variables
    variable, patch = token // patches, token % patches
    mask_HTT = delta_H[:, None, None] * (variable[:, None] == variable)
    return mask_HTT.masked_fill(patch[:, None] < patch, -torch.inf)


class _Fused(torch.autograd.Function):
    """The processor's fused attention kernel, with the gradient of δ added."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, delta_H: Tensor, variables: int, scale: float
    ) -> Tensor:
        mask = _mask_HTT(delta_H, variables, query.shape[2]).to(query.dtype)[None]
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask, scale=scale
        )
        ctx.save_for_backward(query, key, value, delta_H, mask, out, logsumexp)
        ctx.variables, ctx.scale = variables, scale
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, delta_H, mask, out, logsumexp = ctx.saved_tensors
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_out, query, key, value, out, logsumexp, 0.0, False, attn_mask=mask, scale=ctx.scale
        )

        def blocks(x_BHTE: Tensor) -> Tensor:
            return cast(Tensor, x_BHTE.unflatten(2, (ctx.variables, -1)))

        patches = query.shape[2] // ctx.variables
        score = blocks(query) @ blocks(key).transpose(-1, -2) * ctx.scale + delta_H[:, None, None, None]
        later = torch.ones(patches, patches, dtype=torch.bool, device=query.device).triu(1)
        weight = (score - logsumexp.unflatten(2, (ctx.variables, -1))[..., None]).masked_fill(later, -torch.inf).exp()
        share = (grad_out * out).sum(-1).unflatten(2, (ctx.variables, -1))[..., None]
        grad_score = weight * (blocks(grad_out) @ blocks(value).transpose(-1, -2) - share)
        gradients: tuple[Tensor | None, ...] = (*grads, grad_score.sum((0, 2, 3, 4)), None, None)
        return gradients
