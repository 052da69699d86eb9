"""Attention across the sites of one issue time: each site sees what is upwind of it.

Shapes: B rows of a batch, W width of a row, Z scenes, M places of a scene, U different positions, R numbers of a relative
position. H heads, E = W/H head width, X = layers × H. Y is 1 if all scenes have the same bias, otherwise Z.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llueve.model.kernels.dropout import Dropout
from llueve.sphere import EARTH_RADIUS_KM

RELATION = 5
"""Numbers that describe a relative position."""
RELATION_HIDDEN = 32
DROPPED_KEYS = 0.1
"""Share of the other sites of a scene that a site does not see in a training step."""
DROPPED_VECTORS = 0.1
"""Share of the rows that lack the vector of their site in a training step, as a site without training always does."""


MOST_EMPTY = 2
"""Most places for each row of a batch: beyond, scenes do not share their places."""


class Scenes(NamedTuple):
    """The rows of a batch that see each other, and where they are."""

    scene_B: Tensor
    """Number of the scene, int64: rows with the same number see each other."""
    vector_B: Tensor
    """Index of the site's learned vector, int64, from 1; 0 for a site that training did not have."""
    position_B2: Tensor
    """Latitude and longitude in degrees, float32."""


class Layout(NamedTuple):
    """The rows of a batch by scene and place."""

    slot_B: Tensor
    """Place of each row among the Z·M places."""
    used_ZM: Tensor
    """True for a place that a row has."""
    position_YM: Tensor
    """Index of each place's position among the U different ones: one row for all scenes where these have the same places."""
    position_U2: Tensor


class SiteAttention(nn.Module):
    """Pre-norm transformer layers over the rows of each scene.

    To every attention score a learned function of the relative position is added, one number for each layer and head. Weather
    moves, so it depends on the direction, too. A row starts as its input, plus a learned map of its position on the unit
    sphere, plus the learned vector of its site. The vectors start at zero.

    Args:
        width: W, a multiple of `heads`.
        sites: number of sites with a learned vector.
        dropout: rate in training, 0…1.
    """

    def __init__(self, width: int, layers: int, heads: int, sites: int, dropout: float) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.vector_VW = nn.Parameter(torch.zeros(sites + 1, width))
        self.place = nn.Linear(3, width, bias=False)
        self.relation = nn.Sequential(
            nn.Linear(RELATION, RELATION_HIDDEN), nn.GELU(), nn.Linear(RELATION_HIDDEN, layers * heads)
        )
        self.layers = nn.ModuleList(SiteLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.zeros_(self.place.weight)

    def forward(self, row_BW: Tensor, scenes: Scenes) -> Tensor:
        """Return the rows after all layers, (B, W)."""
        if not len(row_BW):
            return row_BW
        layout = lay_out(scenes)
        known_B1 = (scenes.vector_B > 0).to(row_BW.dtype)[:, None]
        if self.training:
            known_B1 = known_B1 * (torch.rand_like(known_B1) >= DROPPED_VECTORS)
        on_sphere_B3 = _on_sphere(scenes.position_B2).to(row_BW.dtype)
        row_BW = row_BW + self.place(on_sphere_B3) + known_B1 * F.embedding(scenes.vector_B, self.vector_VW)
        scenes_number, places = layout.used_ZM.shape
        flat_XW = row_BW.new_zeros(scenes_number * places, self.width).index_copy(0, layout.slot_B, row_BW)
        x_ZMW = flat_XW.unflatten(0, (scenes_number, places))
        hidden_Z1MM = self._hidden(layout.used_ZM, row_BW.dtype)[:, None]
        for layer, bias_YHMM in zip(self.layers, self._bias(layout, row_BW.dtype), strict=True):
            x_ZMW = layer(x_ZMW, bias_YHMM, hidden_Z1MM)
        return cast(Tensor, self.norm(x_ZMW.flatten(0, 1).index_select(0, layout.slot_B)))

    def _bias(self, layout: Layout, dtype: torch.dtype) -> Sequence[Tensor]:
        """The bias of each layer, (Y, H, M, M)."""
        bias_UUX = self.relation(relations(layout.position_U2).to(dtype))
        if len(layout.position_YM) == 1:
            place_M = layout.position_YM[0]
            bias_YMMX = bias_UUX.index_select(0, place_M).index_select(1, place_M)[None]
        else:
            # One row per pair of positions, so that its gradient is a plain sum by index.
            pair_ZMM = layout.position_YM[:, :, None] * len(layout.position_U2) + layout.position_YM[:, None, :]
            bias_YMMX = F.embedding(pair_ZMM, bias_UUX.flatten(0, 1))
        return cast(Sequence[Tensor], bias_YMMX.permute(0, 3, 1, 2).contiguous().split(self.heads, dim=1))

    def _hidden(self, used_ZM: Tensor, dtype: torch.dtype) -> Tensor:
        """0 where a place sees another one, otherwise −∞, (Z, M, M); each place always sees itself."""
        seen_ZM = used_ZM
        if self.training:
            seen_ZM = used_ZM & (torch.rand(used_ZM.shape, device=used_ZM.device) >= DROPPED_KEYS)
        hidden_ZM = torch.zeros(used_ZM.shape, dtype=dtype, device=used_ZM.device).masked_fill_(~seen_ZM, -torch.inf)
        hidden_ZMM = hidden_ZM[:, None, :].repeat(1, used_ZM.shape[1], 1)
        hidden_ZMM.diagonal(dim1=1, dim2=2).zero_()
        return hidden_ZMM


class SiteLayer(nn.Module):
    """One pre-norm layer: attention over the places of a scene, then a feed-forward network of twice the width."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.network_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projection = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), Dropout(dropout), nn.Linear(2 * width, width)
        )
        self.dropout = Dropout(dropout)

    def forward(self, x_ZMW: Tensor, bias_YHMM: Tensor, hidden_Z1MM: Tensor) -> Tensor:
        """Apply the layer; `hidden_Z1MM` is −∞ where a place does not see another one, otherwise 0."""
        parts = self.projection(self.attention_norm(x_ZMW)).chunk(3, dim=-1)
        query_ZHME, key_ZHME, value_ZHME = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in parts)
        score_ZHMM = (query_ZHME * query_ZHME.shape[-1] ** -0.5) @ key_ZHME.transpose(-1, -2)
        # In place: the scores are the largest tensors of a step.
        score_ZHMM = score_ZHMM.add_(bias_YHMM).add_(hidden_Z1MM)
        mixed_ZMW = (score_ZHMM.softmax(-1) @ value_ZHME).transpose(1, 2).flatten(2)
        x_ZMW = x_ZMW + self.dropout(self.out(mixed_ZMW))
        return cast(Tensor, x_ZMW + self.dropout(self.network(self.network_norm(x_ZMW))))


def relations(position_U2: Tensor) -> Tensor:
    """Return the relative position of every pair, (U, U, R), seen from the first of the two.

    With the great-circle distance d and the bearing b of the second: d·sin b and d·cos b (east and north, in 1000 km),
    log(1 + d / 50 km), exp(−d / 300 km), exp(−d / 1000 km).

    Args:
        position_U2: latitude and longitude in degrees.
    """
    north_U, east_U = position_U2.double().deg2rad().unbind(-1)
    turn_UU = east_U[None, :] - east_U[:, None]
    sin_U, cos_U = north_U.sin(), north_U.cos()
    half_UU = ((north_U[None, :] - north_U[:, None]) / 2).sin().square()
    half_UU = half_UU + cos_U[:, None] * cos_U[None, :] * (turn_UU / 2).sin().square()
    distance_UU = 2 * EARTH_RADIUS_KM * half_UU.clamp(0, 1).sqrt().asin()
    bearing_UU = torch.atan2(
        turn_UU.sin() * cos_U[None, :],
        cos_U[:, None] * sin_U[None, :] - sin_U[:, None] * cos_U[None, :] * turn_UU.cos(),
    )
    scales = (
        distance_UU / 1000 * bearing_UU.sin(),
        distance_UU / 1000 * bearing_UU.cos(),
        (distance_UU / 50).log1p(),
        (-distance_UU / 300).exp(),
        (-distance_UU / 1000).exp(),
    )
    return torch.stack(scales, dim=-1)


def _on_sphere(position_B2: Tensor) -> Tensor:
    """Positions as points of the unit sphere, (B, 3): without a jump at the date line."""
    north_B, east_B = position_B2.double().deg2rad().unbind(-1)
    return torch.stack((north_B.cos() * east_B.cos(), north_B.cos() * east_B.sin(), north_B.sin()), dim=-1)


def lay_out(scenes: Scenes) -> Layout:
    """Lay the rows out by scene.

    Each position has its place, the same in all scenes, so that they share one bias. Where this would leave more than half
    of the places empty, the rows of a scene take the first places in their order.
    """
    _, scene_B = scenes.scene_B.unique(return_inverse=True)
    # Both numbers as one, by their bits: torch compares rows much more slowly than numbers.
    bits_B2 = scenes.position_B2.float().contiguous().view(torch.int32).long()
    different_U, position_B = (bits_B2[:, 0] * 2**32 + bits_B2[:, 1]).unique(return_inverse=True)
    position_U2 = scenes.position_B2.new_zeros(len(different_U), 2).index_copy(0, position_B, scenes.position_B2)
    scenes_number, rows = int(scene_B.max()) + 1, len(scene_B)
    # Sites at one position have places of their own.
    position_and_turn_B = position_B * rows + _turn(scene_B * len(different_U) + position_B)
    different_M, place_B = position_and_turn_B.unique(return_inverse=True)
    position_YM = (different_M // rows)[None]
    if scenes_number * len(different_M) > MOST_EMPTY * rows:
        place_B = _turn(scene_B)
        position_YM = torch.zeros(scenes_number, int(place_B.max()) + 1, dtype=torch.int64, device=place_B.device)
        position_YM[scene_B, place_B] = position_B
    places = position_YM.shape[1]
    slot_B = scene_B * places + place_B
    used_ZM = torch.zeros(scenes_number * places, dtype=torch.bool, device=slot_B.device).index_fill(0, slot_B, True)
    return Layout(slot_B, used_ZM.view(-1, places), position_YM, position_U2)


def _turn(group_B: Tensor) -> Tensor:
    """Count the earlier rows with the same number as each row, (B,)."""
    order_B = group_B.argsort(stable=True)
    _, size = group_B[order_B].unique_consecutive(return_counts=True)
    first_B = (size.cumsum(0) - size).repeat_interleave(size)
    rows_B = torch.arange(len(group_B), device=group_B.device)
    return torch.empty_like(group_B).index_copy(0, order_B, rows_B - first_B)
