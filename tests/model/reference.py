"""The encoder in its plain form, straight from the equations, in NumPy float64: slow, and obvious.

Shapes: B batch, T = C·N tokens (variable-major), D width, H heads, E head width.
"""

import math

import numpy as np


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].squeeze().T + weights[f"{name}.bias"]


def layer_norm(x, weights, name):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def rotate(x_E, position):
    """Turn pair i of the first half of the head width by position · 10000^(−2i/(E/2))."""
    out, half = x_E.copy(), len(x_E) // 2
    for i in range(half // 2):
        angle = position * 10_000.0 ** (-2 * i / half)
        even, odd = x_E[2 * i], x_E[2 * i + 1]
        out[2 * i] = even * math.cos(angle) - odd * math.sin(angle)
        out[2 * i + 1] = odd * math.cos(angle) + even * math.sin(angle)
    return out


def attention(x_TD, weights, name, heads, variables, positions, absent_T):
    tokens, width = x_TD.shape
    patches, head_width = tokens // variables, width // heads
    query, key, value = (
        linear(x_TD, weights, f"{name}.{part}_projection").reshape(tokens, heads, head_width)
        for part in ("query", "key", "value")
    )
    bias_2H = weights[f"{name}.inner_attention.attn_bias.emb.weight"]
    mixed = np.zeros_like(query)
    for h in range(heads):
        for i in range(tokens):
            seen = [j for j in range(tokens) if j % patches <= i % patches and not absent_T[j]]
            if not seen:
                continue  # what such a token holds is never used
            place = (lambda t: t) if positions == "flattened" else (lambda t: t % patches)
            turned = rotate(query[i, h], place(i))
            scores = np.array(
                [
                    (turned @ rotate(key[j, h], place(j)) + bias_2H[int(i // patches == j // patches), h])
                    / math.sqrt(head_width)
                    for j in seen
                ]
            )
            share = np.exp(scores - scores.max())
            mixed[i, h] = (share / share.sum()) @ value[seen, h]
    return linear(mixed.reshape(tokens, width), weights, f"{name}.out_projection")


def encode(x_CL, weights, patch_length, layers, heads, positions="flattened", absent_CN=None):
    """Tokens after the final norm, (C, N, D), of one window whose length is a multiple of the patch."""
    variables, patches = x_CL.shape[0], x_CL.shape[1] // patch_length
    absent_T = np.zeros(variables * patches, bool) if absent_CN is None else absent_CN.reshape(-1)
    x_TD = linear(x_CL.reshape(variables * patches, patch_length), weights, "embedding")
    for n in range(layers):
        name = f"blocks.attn_layers.{n}"
        mixed = attention(x_TD, weights, f"{name}.attention", heads, variables, positions, absent_T)
        x_TD = layer_norm(x_TD + mixed, weights, f"{name}.norm1")
        inner = np.maximum(linear(x_TD, weights, f"{name}.conv1"), 0)
        x_TD = layer_norm(x_TD + linear(inner, weights, f"{name}.conv2"), weights, f"{name}.norm2")
    return layer_norm(x_TD, weights, "blocks.norm").reshape(variables, patches, -1)
