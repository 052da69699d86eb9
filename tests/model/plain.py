"""Both encoders in their plain form: each equation as it stands, eager, over whole score matrices. Slow, and obvious.

They take the tensors of the fast encoders by name, so values and gradients can be held against each other; the
benchmark measures the fast ones against these.

Shapes: B batch, C variables, L steps, P patch length, T = C·N tokens (variable-major), D width, H heads, E head width.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


def linear(x, state, name):
    return F.linear(x, state[f"{name}.weight"].flatten(1), state.get(f"{name}.bias"))


def norm(x, state, name):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def rotate_pairs(x_BHTE, position_T):
    """Pair (2i, 2i+1) of the first half of the head turns by position · 10000^(−2i/(E/2))."""
    half = x_BHTE.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(0, half, 2, dtype=torch.float64, device=x_BHTE.device) / half)
    angle = (position_T[:, None] * frequency).repeat_interleave(2, dim=-1)
    turned = x_BHTE[..., :half]
    swapped = torch.stack((-turned[..., 1::2], turned[..., 0::2]), dim=-1).flatten(-2)
    cosine, sine = angle.cos().to(x_BHTE.dtype), angle.sin().to(x_BHTE.dtype)
    return torch.cat((turned * cosine + swapped * sine, x_BHTE[..., half:]), dim=-1)


def rotate_halves(x_BHTE, position_T):
    """Coordinates i and i + E/2 turn by position · 10000^(−2i/E)."""
    width = x_BHTE.shape[-1]
    frequency = 10_000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64, device=x_BHTE.device) / width)
    angle = (position_T[:, None] * frequency).repeat(1, 2)
    first, second = x_BHTE.chunk(2, dim=-1)
    cosine, sine = angle.cos().to(x_BHTE.dtype), angle.sin().to(x_BHTE.dtype)
    return x_BHTE * cosine + torch.cat((-second, first), dim=-1) * sine


def attend(query, key, value, allowed, bias, dropout, training):
    """softmax((q·k + bias) / √E)·v over the allowed keys; a row with none stays finite."""
    score = (query @ key.transpose(-1, -2) + bias) / math.sqrt(query.shape[-1])
    weight = score.masked_fill(~allowed, -1e9).softmax(-1)
    return F.dropout(weight, dropout, training) @ value


class PlainTimerXL(nn.Module):
    """Timer-XL from its tensors."""

    def __init__(self, encoder, positions="flattened", dropout=0.0):
        super().__init__()
        self.state = encoder.state_dict(keep_vars=True)
        self.heads, self.patch_length, self.dropout = encoder.heads, encoder.patch_length, dropout
        self.positions, self.layers = positions, len(encoder.blocks.attn_layers)

    def forward(self, x_BCL, absent_BCN=None):
        """Tokens after the final norm, (B, C, N, D); the length is a multiple of the patch."""
        state, variables = self.state, x_BCL.shape[1]
        x_BTD = linear(x_BCL.unflatten(-1, (-1, self.patch_length)), state, "embedding").flatten(1, 2)
        tokens = x_BTD.shape[1]
        token = torch.arange(tokens, device=x_BCL.device)
        variable, patch = token // (tokens // variables), token % (tokens // variables)
        position = token if self.positions == "flattened" else patch
        allowed = (patch[:, None] >= patch)[None, None]
        if absent_BCN is not None:
            allowed = allowed & ~absent_BCN.flatten(1)[:, None, None, :]
        same = (variable[:, None] == variable).long()

        def drop(x):
            return F.dropout(x, self.dropout, self.training)

        for n in range(self.layers):
            at = f"blocks.attn_layers.{n}."
            query, key, value = (
                linear(x_BTD, state, f"{at}attention.{part}_projection").unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            bias = F.embedding(same, state[f"{at}attention.inner_attention.attn_bias.emb.weight"]).permute(2, 0, 1)
            query, key = rotate_pairs(query, position), rotate_pairs(key, position)
            mixed = attend(query, key, value, allowed, bias, self.dropout, self.training)
            out = linear(mixed.transpose(1, 2).flatten(2), state, f"{at}attention.out_projection")
            x_BTD = norm(x_BTD + drop(out), state, f"{at}norm1")
            inner = drop(F.relu(linear(x_BTD, state, f"{at}conv1")))
            x_BTD = norm(x_BTD + drop(linear(inner, state, f"{at}conv2")), state, f"{at}norm2")
        return norm(x_BTD, state, "blocks.norm").unflatten(1, (variables, -1))


class PlainTimer(nn.Module):
    """Timer from its tensors; every variable is a sequence of its own."""

    def __init__(self, encoder):
        super().__init__()
        self.state = encoder.state_dict(keep_vars=True)
        self.heads, self.patch_length, self.layers = encoder.heads, encoder.patch_length, len(encoder.model.layers)

    def forward(self, x_BCL, absent_BCN=None):
        """Tokens after the final norm, (B, C, N, D); the length is a multiple of the patch."""
        state, variables = self.state, x_BCL.shape[1]
        x = linear(x_BCL.unflatten(-1, (-1, self.patch_length)), state, "model.embed_layer.emb").flatten(0, 1)
        patch = torch.arange(x.shape[1], device=x.device)
        allowed = (patch[:, None] >= patch)[None, None]
        if absent_BCN is not None:
            allowed = allowed & ~absent_BCN.flatten(0, 1)[:, None, None, :]
        for n in range(self.layers):
            at = f"model.layers.{n}."
            query, key, value = (
                linear(x, state, f"{at}self_attn.{part}_proj").unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in "qkv"
            )
            mixed = attend(rotate_halves(query, patch), rotate_halves(key, patch), value, allowed, 0.0, 0.0, False)
            x = norm(x + linear(mixed.transpose(1, 2).flatten(2), state, f"{at}self_attn.o_proj"), state, f"{at}norm1")
            gated = F.silu(linear(x, state, f"{at}ffn_layer.gate_proj")) * linear(x, state, f"{at}ffn_layer.up_proj")
            x = norm(x + linear(gated, state, f"{at}ffn_layer.down_proj"), state, f"{at}norm2")
        return norm(x, state, "model.norm").unflatten(0, (-1, variables))
