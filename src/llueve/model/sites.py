"""Attention across the sites of one issue time: each site sees what is upwind of it.

Shapes: B rows of a batch, W width of a row, Z scenes, M most rows of a scene, U different positions, R numbers of a
relative position, H heads, E = W/H head width.
"""

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


class Scenes(NamedTuple):
    """The rows of a batch that see each other, and where they are."""

    scene_B: Tensor
    """Number of the scene, int64: rows with the same number see each other."""
    vector_B: Tensor
    """Index of the site's learned vector, int64, from 1; 0 for a site that training did not have."""
    position_B2: Tensor
    """Latitude and longitude in degrees, float32."""


class _Grid(NamedTuple):
    """The rows laid out by scene."""

    slot_B: Tensor
    """Place of each row among the Z·M places."""
    used_ZM: Tensor
    """True for a place that a row has."""
    position_ZM: Tensor
    """Index of each place's position among the U different ones."""
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
        grid = _grid(scenes)
        known_B1 = (scenes.vector_B > 0).to(row_BW.dtype)[:, None]
        if self.training:
            known_B1 = known_B1 * (torch.rand_like(known_B1) >= DROPPED_VECTORS)
        on_sphere_B3 = _on_sphere(scenes.position_B2).to(row_BW.dtype)
        row_BW = row_BW + self.place(on_sphere_B3) + known_B1 * F.embedding(scenes.vector_B, self.vector_VW)
        scenes_number, places = grid.used_ZM.shape
        flat_XW = row_BW.new_zeros(scenes_number * places, self.width).index_copy(0, grid.slot_B, row_BW)
        x_ZMW = flat_XW.unflatten(0, (scenes_number, places))
        bias_UUX = self.relation(relations(grid.position_U2).to(row_BW.dtype))
        # One row per pair of positions, so that its gradient is a plain sum by index.
        pair_ZMM = grid.position_ZM[:, :, None] * len(grid.position_U2) + grid.position_ZM[:, None, :]
        bias_ZMMX = F.embedding(pair_ZMM, bias_UUX.flatten(0, 1))
        hidden_Z1MM = ~self._seen(grid.used_ZM)[:, None]
        for layer, bias_ZMMH in zip(self.layers, bias_ZMMX.split(self.heads, dim=-1), strict=True):
            bias_ZHMM = bias_ZMMH.permute(0, 3, 1, 2).masked_fill(hidden_Z1MM, -torch.inf)
            x_ZMW = layer(x_ZMW, bias_ZHMM)
        return cast(Tensor, self.norm(x_ZMW.flatten(0, 1).index_select(0, grid.slot_B)))

    def _seen(self, used_ZM: Tensor) -> Tensor:
        """True where a place sees another one, (Z, M, M); each place always sees itself."""
        seen_ZM = used_ZM
        if self.training:
            seen_ZM = used_ZM & (torch.rand(used_ZM.shape, device=used_ZM.device) >= DROPPED_KEYS)
        return seen_ZM[:, None, :] | torch.eye(used_ZM.shape[1], dtype=torch.bool, device=used_ZM.device)


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

    def forward(self, x_ZMW: Tensor, bias_ZHMM: Tensor) -> Tensor:
        """Apply the layer; the bias is −∞ where a place does not see another one."""
        parts = self.projection(self.attention_norm(x_ZMW)).chunk(3, dim=-1)
        query_ZHME, key_ZHME, value_ZHME = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in parts)
        score_ZHMM = query_ZHME @ key_ZHME.transpose(-1, -2) * query_ZHME.shape[-1] ** -0.5 + bias_ZHMM
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


def _grid(scenes: Scenes) -> _Grid:
    """Lay the rows out by scene; the rows of a scene keep their order."""
    order_B = scenes.scene_B.argsort(stable=True)
    _, size_Z = scenes.scene_B[order_B].unique_consecutive(return_counts=True)
    places = int(size_Z.max())
    row = torch.arange(len(order_B), device=order_B.device)
    scene_of_B = torch.arange(len(size_Z), device=order_B.device).repeat_interleave(size_Z)
    sorted_slot_B = scene_of_B * places + row - (size_Z.cumsum(0) - size_Z)[scene_of_B]
    slot_B = torch.empty_like(sorted_slot_B).index_copy(0, order_B, sorted_slot_B)
    # Both numbers as one, by their bits: torch compares rows much more slowly than numbers.
    bits_B2 = scenes.position_B2.float().contiguous().view(torch.int32).long()
    different_U, position_B = (bits_B2[:, 0] * 2**32 + bits_B2[:, 1]).unique(return_inverse=True)
    position_U2 = scenes.position_B2.new_zeros(len(different_U), 2).index_copy(0, position_B, scenes.position_B2)
    used_ZM = torch.zeros(len(size_Z) * places, dtype=torch.bool, device=order_B.device).index_fill(0, slot_B, True)
    position_ZM = torch.zeros(len(size_Z) * places, dtype=torch.int64, device=order_B.device)
    position_ZM = position_ZM.index_copy(0, slot_B, position_B)
    return _Grid(slot_B, used_ZM.view(-1, places), position_ZM.view(-1, places), position_U2)
