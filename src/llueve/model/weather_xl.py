"""The weather encoder: Timer-XL whose tokens know what they measure, how large it is, where and when.

Shapes: B batch, L steps, C variables, N patches, P patch length, D width, J knots, V encoded levels, G facts of place and
time, R amounts of rain.

A token is the sum of the patch embedding of Timer-XL, a vector of its variable, a map of the patch's levels, of its gaps,
and of place and time. The layers are those of Timer-XL, with the patch as rotary position, so that the order of the
variables has no meaning.
"""

import math

import torch
from torch import Tensor, nn

from llueve.config.model_keys import DAY_HOURS
from llueve.model.timer_xl import TimerXL
from llueve.panel import FloatArray

RAIN_MM = (0.2, 1.0, 5.0, 10.0)
"""Amounts of rain over the next 24 hours whose probabilities the encoder forecasts, in mm."""
DAYS = 7
"""Most days that the encoder sees."""
LEVEL_KNOTS = 16
"""Knots between which a level is encoded piecewise linearly."""
PATCH_LEVELS = 2
"""Levels of a patch: mean of its observed values, and its newest observed value."""
PLACE_FACTS = 6
"""Facts of place and time: sine and cosine of the day of the year, of the solar hour, and of the latitude."""


class WeatherXL(TimerXL):
    """Timer-XL for a fixed list of variables, with the embeddings that this file describes.

    C counts the variables in `seen`: a part of the list is computed faster.

    Args:
        variables: C, in the order of the inputs.
        patch_length, width, layers, heads, feed_forward, dropout: as in `TimerXL`.
    """

    knots_CJ: Tensor

    def __init__(
        self,
        variables: int,
        patch_length: int = DAY_HOURS,
        width: int = 96,
        layers: int = 3,
        heads: int = 4,
        feed_forward: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(patch_length, width, layers, heads, feed_forward, dropout, "time")
        encoded = PATCH_LEVELS * (LEVEL_KNOTS - 1)
        self.variables = variables
        self.seen: tuple[int, ...] = tuple(range(variables))
        """The variables that are computed, in their order; the others are never observed."""
        self.variable_CD = nn.Parameter(torch.empty(variables, width))
        self.level_CVD = nn.Parameter(torch.empty(variables, encoded, width))
        self.gap = nn.Linear(patch_length, width, bias=False)
        self.place = nn.Linear(PLACE_FACTS, width, bias=False)
        self.rain = nn.Sequential(
            nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, len(RAIN_MM))
        )
        self.register_buffer(
            "knots_CJ", torch.empty(variables, LEVEL_KNOTS).copy_(torch.linspace(-2, 2, LEVEL_KNOTS, device="cpu"))
        )
        nn.init.normal_(self.variable_CD, std=0.02)
        nn.init.normal_(self.level_CVD, std=encoded**-0.5)

    def enriched(
        self, token_BCND: Tensor, patch_BCNP: Tensor, observed_BCNP: Tensor, place_BG: Tensor | None
    ) -> Tensor:
        """Add to the patch embeddings what the encoder knows about each patch."""
        seen_BCNP = observed_BCNP.to(patch_BCNP.dtype)
        mean_BCN = (patch_BCNP * seen_BCNP).sum(-1) / seen_BCNP.sum(-1).clamp(min=1)
        steps_P = torch.arange(1, self.patch_length + 1, device=patch_BCNP.device, dtype=patch_BCNP.dtype)
        newest_BCN1 = (seen_BCNP * steps_P).argmax(-1, keepdim=True)
        newest_BCN = patch_BCNP.gather(-1, newest_BCN1).squeeze(-1)
        level_BCNV = self._encode(torch.stack((mean_BCN, newest_BCN), dim=-1))
        # Without an observation there is no level.
        level_BCNV = level_BCNV * (seen_BCNP.sum(-1, keepdim=True) > 0).to(level_BCNV.dtype)
        rows = list(self.seen)
        token_BCND = token_BCND + self.variable_CD[rows, None] + self.gap(1 - seen_BCNP)
        token_BCND = token_BCND + torch.einsum("bcnv,cvd->bcnd", level_BCNV, self.level_CVD[rows])
        if place_BG is not None:
            token_BCND = token_BCND + self.place(place_BG)[:, None, None]
        return token_BCND

    def _encode(self, level_BCNU: Tensor) -> Tensor:
        """Each level as its fraction of each interval between knots, 0…1: (B, C, N, V)."""
        knots_CJ = self.knots_CJ[list(self.seen)]
        low_CJ, high_CJ = knots_CJ[:, :-1], knots_CJ[:, 1:]
        width_CJ = (high_CJ - low_CJ).clamp(min=1e-4)
        through = (level_BCNU[..., None] - low_CJ[:, None, None]) / width_CJ[:, None, None]
        return through.clamp(0, 1).flatten(-2)

    def summary(self, token_BCND: Tensor, present_BCN: Tensor) -> Tensor:
        """Mean and maximum over the present variables of each patch, (B, N, 2D); zero if none is present."""
        present_BCN1 = present_BCN.to(token_BCND.dtype)[..., None]
        mean_BND = (token_BCND * present_BCN1).sum(1) / present_BCN1.sum(1).clamp(min=1)
        largest_BND = token_BCND.masked_fill(~present_BCN[..., None], -math.inf).amax(1)
        any_BN1 = present_BCN.any(1)[..., None]
        return torch.cat((mean_BND, torch.where(any_BN1, largest_BND, 0.0)), dim=-1)

    def newest(self, token_BCND: Tensor, present_BCN: Tensor) -> Tensor:
        """The newest patch in numbers: its summary, and the logits of the amounts of rain after it, (B, 2D + R)."""
        summary_BD = self.summary(token_BCND[:, :, -1:], present_BCN[..., -1:])[:, 0]
        return torch.cat((summary_BD, self.rain(summary_BD)), dim=-1)

    @property
    def newest_size(self) -> int:
        """Number of values that `newest` gives."""
        return 2 * self.width + len(RAIN_MM)

    def set_knots(self, knots_CJ: FloatArray) -> None:
        """Set the knots of the levels: quantiles of each variable (C, J), in the units of the inputs."""
        self.knots_CJ.copy_(torch.from_numpy(knots_CJ))
