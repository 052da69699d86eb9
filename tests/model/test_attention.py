"""Fused attention against its equation: one chunk and many, with absent tokens, on both paths."""

import pytest
import torch

from llueve.model.kernels import attention
from llueve.model.kernels.attention import CHUNK_ROWS, causal_attention, variable_attention

HEADS, WIDTH = 2, 8


def plain(q, k, v, bias_H2, variables, absent_BT):
    token = torch.arange(q.shape[2])
    patch, variable = token // variables, token % variables
    score = (q @ k.transpose(-1, -2) + bias_H2[:, (variable[:, None] == variable).long()]) / WIDTH**0.5
    hidden = (patch[:, None] < patch)[None, None] | absent_BT[:, None, None, :]
    return score.masked_fill(hidden, -1e4).softmax(-1) @ v


def inputs(tokens):
    torch.manual_seed(3)
    qkv = [torch.randn(2, HEADS, tokens, WIDTH, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    return qkv, torch.randn(HEADS, 2, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("device", ["processor", "accelerator", "processor without the kernel"])
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize(
    ("variables", "patches"),
    [
        pytest.param(3, 4, id="one chunk"),
        pytest.param(1, 150, id="one variable, three chunks"),
        pytest.param(5, 40, id="chunks of several patches, the last one shorter"),
        pytest.param(CHUNK_ROWS + 6, 3, id="chunks of one patch"),
    ],
)
def test_values_and_gradients_equal_those_of_the_equation(variables, patches, absent, device, monkeypatch):
    tokens = variables * patches
    qkv, bias_H2 = inputs(tokens)
    absent_BT = torch.zeros(2, tokens, dtype=torch.bool)
    absent_BT[0, [1, 2, tokens // 2, tokens - 1]] = absent
    if device == "accelerator":  # the path that other devices take, here on the processor
        add = attention._with_mask_coordinate
        monkeypatch.setattr(attention._FusedAttention, "apply", attention.masked_attention)
        monkeypatch.setattr(
            attention, "_with_mask_coordinate", lambda *given: add(*given[:-1], attention.HEAD_MULTIPLE)
        )
    if device == "processor without the kernel":
        monkeypatch.setattr(attention, "HAS_KERNEL", False)
        monkeypatch.setattr(attention._FusedAttention, "apply", None)
    weigh = torch.randn(qkv[0].shape, dtype=torch.float64) * ~absent_BT[:, None, :, None]
    results = [
        form(*qkv, bias_H2, variables, absent_BT if absent or form is plain else None)
        for form in (variable_attention, plain)
    ]
    torch.testing.assert_close(results[0] * (weigh != 0), results[1] * (weigh != 0), rtol=1e-9, atol=1e-9)
    found, expected = (torch.autograd.grad((out * weigh).sum(), [*qkv, bias_H2]) for out in results)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_one_variable_alone_is_causal_attention():
    qkv, _ = inputs(70)
    nobody = torch.zeros(2, 70, dtype=torch.bool)
    expected = plain(*qkv, torch.zeros(HEADS, 2, dtype=torch.float64), 1, nobody)
    torch.testing.assert_close(causal_attention(*qkv), expected, rtol=1e-9, atol=1e-9)


def test_rows_that_see_nothing_present_have_their_gradient_in_float32():
    """The first patches of a window are absent: weights of their rows add up to one in the backward pass too."""
    qkv, bias_H2 = inputs(12)
    weigh = torch.randn(qkv[0].shape, dtype=torch.float64)
    absent_BT = torch.zeros(2, 12, dtype=torch.bool)
    absent_BT[0, :9] = True
    found = []
    for dtype in (torch.float32, torch.float64):
        given = [each.detach().to(dtype).requires_grad_() for each in qkv]
        out = variable_attention(*given, bias_H2.to(dtype), 3, absent_BT)
        found.append((out, *torch.autograd.grad((out * weigh.to(dtype)).sum(), given)))
    for single, double in zip(*found, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)
