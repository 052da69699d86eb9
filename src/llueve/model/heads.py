"""Heads: they turn the pooled output of an encoder into class logits.

Shapes: B batch, C variables, N patches, D width, K classes, R amounts of rain.
F facts known at issue time (calendar, static values of the site).
V level values of one variable, J knots of their encoding, W width of one variable in the head.
X input of the head for one variable, E encoder's summary of a window.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llueve.errors import UsageError
from llueve.model.kernels.dropout import Dropout
from llueve.model.sites import Scenes, SiteAttention
from llueve.model.weather_xl import WeatherXL

NOTE_HIDDEN = 128
NOTE_DROPOUT = 0.1
NOTE_WEIGHT_STD = 0.01
VARIABLE_WIDTH = 32
HIDDEN = 128
KNOTS = 16
"""Number of training quantiles between which a level is encoded piecewise linearly."""
LEVELS = 3
"""Levels of one variable: mean of the window, mean of its last patch, newest observed value. Means over the last hours follow."""
EXTRAS = 3
"""Further values of one variable: spread of the window, observed share of it, 1 if the last step was observed."""


class DayForecasts(NamedTuple):
    """Forecasts of the pre-training after each patch."""

    next_BCNP: Tensor
    """The values of each variable in the next patch, in the units of the input."""
    rain_BNR: Tensor
    """Logits of at least each amount of rain within the next patch."""


class Answer(NamedTuple):
    """The output of a head."""

    logits_BK: Tensor
    future_BC: Tensor | None = None
    """Forecast of each variable's mean over the horizon, in training-set units; None from a head without forecasts."""
    days: DayForecasts | None = None
    """None but in a pre-training."""


class MeanHead(nn.Module):
    """Head of the troubleshooting note: forecasting head → mean over all tokens → LayerNorm → Linear → GELU → Linear.

    Dropout 0.1, weights N(0, 0.01²), biases zero. It cannot distinguish variables and sees no level: it is the reference
    for the default head.
    """

    def __init__(self, patch_length: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            nn.LayerNorm(patch_length),
            nn.Linear(patch_length, NOTE_HIDDEN),
            nn.GELU(),
            nn.Dropout(NOTE_DROPOUT),
            nn.Linear(NOTE_HIDDEN, classes),
        )
        for module in self.classifier:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=NOTE_WEIGHT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, mean_BD: Tensor, forecasting: nn.Linear) -> Answer:
        """Return logits from the mean of all tokens (B, D)."""
        # The forecasting head is linear: its output for the mean token is the mean of its outputs, with T times less work.
        return Answer(self.classifier(forecasting(mean_BD)))


class VariablesHead(nn.Module):
    """The default head: it keeps variables, levels and spreads apart until a small network joins them.

    For variable c: hidden_c = GELU(LayerNorm(A·[mean token, last token] + E_c + Σ_v level_cv·G_cv)). All hidden_c and the
    facts are concatenated and go through two hidden layers to the logits. Levels are encoded piecewise linearly between
    training quantiles of the variable (Gorishniy et al., arXiv:2203.05556), so extremes do not compress small amounts of
    rain. With `sites`, the windows of one issue time see each other before the logits. A linear map of the encoded levels and
    the facts is added to the logits, as in logistic regression. The last layers start at zero: the first forecast is the same
    for all windows.

    Args:
        recent_steps: numbers of steps up to the issue time whose means are levels, too.
        summary: E, if the encoder summarises the window instead of giving a mean and a last token of each variable.
    """

    knots_CJ: Tensor

    def __init__(
        self,
        width: int,
        variables: int,
        facts: int,
        classes: int,
        dropout: float,
        recent_steps: tuple[int, ...] = (),
        sites: SiteAttention | None = None,
        summary: int = 0,
    ) -> None:
        super().__init__()
        hidden = HIDDEN if sites is None else sites.width
        self.variables, self.summary = variables, summary
        self.recent_steps, self.levels = recent_steps, LEVELS + len(recent_steps)
        inputs = self.levels * (KNOTS - 1) + EXTRAS
        self.token = None if summary else nn.Linear(2 * width, VARIABLE_WIDTH)
        self.variable_CW = nn.Parameter(torch.empty(variables, VARIABLE_WIDTH))
        self.level_CVW = nn.Parameter(torch.empty(variables, inputs, VARIABLE_WIDTH))
        self.norm = nn.LayerNorm(VARIABLE_WIDTH)
        self.network = nn.Sequential(
            nn.Linear(variables * VARIABLE_WIDTH + summary + facts, hidden),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(hidden, hidden),
            # The layers across sites add to their input: it must not be cut at zero.
            *((nn.GELU(), Dropout(dropout)) if sites is None else ()),
        )
        self.sites = sites
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(hidden, classes)
        self.future = nn.Linear(hidden, variables)
        self.linear = nn.Linear(variables * inputs + summary + facts, classes, bias=False)
        self.register_buffer(
            "knots_CJ", torch.empty(variables, KNOTS).copy_(torch.linspace(-2, 2, KNOTS, device="cpu"))
        )
        nn.init.normal_(self.variable_CW, std=0.02)
        nn.init.normal_(self.level_CVW, std=inputs**-0.5)
        for layer in (self.out, self.future, self.linear):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, pooled: Tensor, facts_BF: Tensor, scenes: Scenes | None = None) -> Answer:
        """Answer from the output of `TimerXLForClassification.pool`, and the facts.

        Without a summary it is (B, C, X): mean token, last token, levels and extras of each variable, X = 2D + levels +
        EXTRAS. With a summary it is (B, C · (levels + EXTRAS) + E).

        Raises:
            UsageError: the head sees other sites, and `scenes` is None.
        """
        token_BCX, level_BCV, summary_BE = self.parts(pooled)
        encoded_BCV = self.encode_levels(level_BCV)
        start_BCW = self.variable_CW if self.token is None else self.token(token_BCX.contiguous()) + self.variable_CW
        level_BCW = torch.einsum("bcv,cvw->bcw", encoded_BCV, self.level_CVW)
        hidden_BCW = self.dropout(F.gelu(self.norm(start_BCW + level_BCW)))
        row_BW = self.network(torch.cat((hidden_BCW.flatten(1), summary_BE, facts_BF), dim=-1))
        if self.sites is not None:
            if scenes is None:
                raise UsageError("this model sees the sites of an issue time together: give scenes")
            row_BW = self.sites(row_BW, scenes)
        linear_BK = self.linear(self.linear_inputs(encoded_BCV, summary_BE, facts_BF))
        return Answer(self.out(row_BW) + linear_BK, self.future(row_BW))

    def parts(self, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, C, 2D), levels (B, C, levels + EXTRAS) and summary (B, E) of a pooled output; one of them is empty."""
        levels = self.levels + EXTRAS
        if self.token is None:
            level_BX, summary_BE = pooled.split((self.variables * levels, self.summary), dim=-1)
            level_BCV = level_BX.unflatten(-1, (self.variables, levels))
            return level_BCV[..., :0], level_BCV, summary_BE
        token_BCX, level_BCV = pooled.split((self.token.in_features, levels), dim=-1)
        return token_BCX, level_BCV, level_BCV[:, 0, :0]

    @staticmethod
    def linear_inputs(encoded_BCV: Tensor, summary_BE: Tensor, facts_BF: Tensor) -> Tensor:
        """Return the inputs of the linear map: encoded levels, summary and facts, (B, C·V + E + F)."""
        return torch.cat((encoded_BCV.flatten(1), summary_BE, facts_BF), dim=-1)

    def encode_levels(self, level_BCV: Tensor) -> Tensor:
        """Encode each level as its fraction of each interval between knots, 0…1; extras stay as they are."""
        low_CJ, high_CJ = self.knots_CJ[:, :-1], self.knots_CJ[:, 1:]
        # Equal knots (most days have no rain) become a step just above them.
        width_CJ = (high_CJ - low_CJ).clamp(min=1e-4)
        value_BCV1 = level_BCV[..., : self.levels, None]
        through_BCVJ = ((value_BCV1 - low_CJ[:, None]) / width_CJ[:, None]).clamp(0, 1)
        return torch.cat((through_BCVJ.flatten(2), level_BCV[..., self.levels :]), dim=-1)


class DayHead(nn.Module):
    """Head of the pre-training: after each patch the next values of each variable, and probabilities of amounts of rain.

    All its weights belong to the encoder. Its logits are those of the second amount of rain after the last patch.
    """

    def forward(self, pooled_BCNX: Tensor, encoder: WeatherXL) -> Answer:
        """Answer from the tokens of all patches, and 1 beside each present one: X = D + 1."""
        token_BCND, present_BCN = pooled_BCNX[..., :-1], pooled_BCNX[..., -1] > 0
        rain_BNR = encoder.rain(encoder.summary(token_BCND, present_BCN))
        logit_B = rain_BNR[:, -1, 1]
        logits_BK = torch.stack((torch.zeros_like(logit_B), logit_B), dim=-1)
        return Answer(logits_BK, days=DayForecasts(encoder.forecasting(token_BCND), rain_BNR))
