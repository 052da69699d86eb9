"""Classifier: an encoder and a head that turns windows into class logits.

Shapes: B batch, L steps, C variables, N patches, D width, K classes.
F facts known at issue time (calendar, static values of the site).
V level values of one variable, J knots of their encoding, W width of one variable in the head.
X input of the head for one variable.
"""

from typing import Literal, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llueve.errors import UsageError
from llueve.model.kernels.dropout import Dropout
from llueve.model.patches import Normalised, PatchEncoder, to_patches
from llueve.model.sites import Scenes, SiteAttention
from llueve.model.weather_xl import PLACE_FACTS, WeatherXL
from llueve.panel import FloatArray

NOTE_HIDDEN = 128
NOTE_DROPOUT = 0.1
NOTE_WEIGHT_STD = 0.01
VARIABLE_WIDTH = 32
HIDDEN = 128
KNOTS = 16
"""Number of training quantiles between which a level is encoded piecewise linearly."""
LARGEST = 1e3
"""Limit, in training spreads, of values that are used without normalisation: their squares and scores stay exact."""
LEVELS = 3
"""Levels of one variable: mean of the window, mean of its last patch, newest observed value. Means over the last hours follow."""
EXTRAS = 3
"""Further values of one variable: spread of the window, observed share of it, 1 if the last step was observed."""


class DayForecasts(NamedTuple):
    """What the pre-training forecasts after each patch."""

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
    ) -> None:
        super().__init__()
        hidden = HIDDEN if sites is None else sites.width
        self.recent_steps, self.levels = recent_steps, LEVELS + len(recent_steps)
        inputs = self.levels * (KNOTS - 1) + EXTRAS
        self.token = nn.Linear(2 * width, VARIABLE_WIDTH)
        self.variable_CW = nn.Parameter(torch.empty(variables, VARIABLE_WIDTH))
        self.level_CVW = nn.Parameter(torch.empty(variables, inputs, VARIABLE_WIDTH))
        self.norm = nn.LayerNorm(VARIABLE_WIDTH)
        self.network = nn.Sequential(
            nn.Linear(variables * VARIABLE_WIDTH + facts, hidden),
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
        self.linear = nn.Linear(variables * inputs + facts, classes, bias=False)
        self.register_buffer(
            "knots_CJ", torch.empty(variables, KNOTS).copy_(torch.linspace(-2, 2, KNOTS, device="cpu"))
        )
        nn.init.normal_(self.variable_CW, std=0.02)
        nn.init.normal_(self.level_CVW, std=inputs**-0.5)
        for layer in (self.out, self.future, self.linear):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def forward(self, pooled_BCX: Tensor, facts_BF: Tensor, scenes: Scenes | None = None) -> Answer:
        """Answer from mean token, last token and levels of each variable: X = 2D + levels + EXTRAS.

        Raises:
            UsageError: the head sees other sites, and `scenes` is None.
        """
        token_BCX, level_BCV = pooled_BCX.split((self.token.in_features, self.levels + EXTRAS), dim=-1)
        token_BCW = self.token(token_BCX.contiguous())
        encoded_BCV = self.encode_levels(level_BCV)
        level_BCW = torch.einsum("bcv,cvw->bcw", encoded_BCV, self.level_CVW)
        hidden_BCW = self.dropout(F.gelu(self.norm(token_BCW + self.variable_CW + level_BCW)))
        row_BW = self.network(torch.cat((hidden_BCW.flatten(1), facts_BF), dim=-1))
        if self.sites is not None:
            if scenes is None:
                raise UsageError("this model sees the sites of an issue time together: give scenes")
            row_BW = self.sites(row_BW, scenes)
        linear_BK = self.linear(self.linear_inputs(encoded_BCV, facts_BF))
        return Answer(self.out(row_BW) + linear_BK, self.future(row_BW))

    @staticmethod
    def linear_inputs(encoded_BCV: Tensor, facts_BF: Tensor) -> Tensor:
        """Return the inputs of the linear map: encoded levels and facts, (B, C·V + F)."""
        return torch.cat((encoded_BCV.flatten(1), facts_BF), dim=-1)

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


class TimerXLForClassification(nn.Module):
    """An encoder with a classification head.

    Args:
        encoder: Timer-XL or Timer, fresh or from `llueve.load_pretrained`.
        head: `mean` is the head of the troubleshooting note, for any variables; `variables` keeps variables and levels
            apart, for a fixed list of variables. Or a head that was made before; `num_variables` to `dropout` are then unused.
        num_variables: C; the `variables` head needs it.
        num_facts: F, number of facts known at issue time, for the `variables` head.
        dropout: rate of the `variables` head in training, 0…1.
        instance_norm: normalise each variable of each window for the encoder, as published checkpoints expect.

    Raises:
        UsageError: `variables` without a number of variables.
    """

    def __init__(
        self,
        encoder: PatchEncoder,
        num_classes: int,
        head: "Literal['variables', 'mean'] | MeanHead | VariablesHead | DayHead" = "mean",
        *,
        num_variables: int | None = None,
        num_facts: int = 0,
        dropout: float = 0.1,
        instance_norm: bool = True,
    ) -> None:
        super().__init__()
        if head == "variables" and num_variables is None:
            raise UsageError('head="variables" keeps one embedding per variable: give num_variables')
        self.encoder = encoder
        self.num_classes = num_classes
        self.instance_norm = instance_norm
        # It starts at zero: a pre-trained encoder without gaps in its training then starts with its own outputs.
        self.gap_embedding_D = nn.Parameter(torch.zeros(encoder.width))
        if head == "variables" and num_variables is not None:
            head = VariablesHead(encoder.width, num_variables, num_facts, num_classes, dropout)
        self.head = MeanHead(encoder.patch_length, num_classes) if isinstance(head, str) else head

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Train only the head: the encoder and its gap embedding get no gradient and no dropout."""
        self.encoder.requires_grad_(not frozen)
        self.gap_embedding_D.requires_grad_(not frozen)
        self.train(self.training)

    def unfreeze_encoder(self) -> None:
        """Train the whole model."""
        self.freeze_encoder(False)

    @property
    def is_encoder_frozen(self) -> bool:
        """True if no parameter of the encoder is trained."""
        return not any(parameter.requires_grad for parameter in self.encoder.parameters())

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; a frozen encoder stays in evaluation mode, without dropout."""
        super().train(mode)
        if self.is_encoder_frozen:
            self.encoder.eval()
        return self

    def set_knots(self, knots_CJ: FloatArray) -> None:
        """Set the knots of the levels: training quantiles of each variable (C, J), in the units of the windows."""
        if isinstance(self.head, VariablesHead):
            self.head.knots_CJ.copy_(torch.from_numpy(knots_CJ))

    @property
    def sees_sites(self) -> bool:
        """True if the windows of one issue time see each other."""
        return isinstance(self.head, VariablesHead) and self.head.sites is not None

    def forward(
        self,
        x_BLC: Tensor,
        observed_BLC: Tensor | None = None,
        facts_BF: Tensor | None = None,
        scenes: Scenes | None = None,
    ) -> Tensor:
        """Return logits (B, K).

        Args:
            x_BLC: values, for the `variables` head in training-set units; zero where not observed.
            observed_BLC: True where observed; None if everything was observed.
            facts_BF: facts known at issue time; None for a model without facts.
            scenes: the windows that see each other, for a model with `sites`.
        """
        return self.answer(self.pool(x_BLC, observed_BLC, facts_BF), facts_BF, scenes).logits_BK

    def pool(self, x_BLC: Tensor, observed_BLC: Tensor | None = None, facts_BF: Tensor | None = None) -> Tensor:
        """Return the input of the head, (B, *pooled_shape); with a frozen encoder it never changes for a window.

        The last facts are those of place and time, if the encoder takes them.
        """
        x_BCL = x_BLC.transpose(1, 2)
        observed_BCL = (
            torch.ones_like(x_BCL, dtype=torch.bool) if observed_BLC is None else observed_BLC.transpose(1, 2)
        )
        window = self.encoder.normalise(x_BCL, observed_BCL)
        given_BCL = window.x_BCL if self.instance_norm else x_BCL.clamp(-LARGEST, LARGEST)
        place_BG = None
        if isinstance(self.encoder, WeatherXL) and facts_BF is not None:
            place_BG = facts_BF[:, -PLACE_FACTS:]
        token_BCND = self.encoder.tokens(given_BCL, observed_BCL, self.gap_embedding_D, place_BG)
        present_BCN = to_patches(observed_BCL, self.encoder.patch_length).any(-1)
        if isinstance(self.head, MeanHead):
            return _mean_over(token_BCND.flatten(1, 2), present_BCN.flatten(1))
        if isinstance(self.head, DayHead):
            return torch.cat((token_BCND, present_BCN[..., None].to(token_BCND.dtype)), dim=-1)
        level_BCV = _levels(x_BCL, observed_BCL, window, (self.encoder.patch_length, *self.head.recent_steps))
        return torch.cat((_mean_over(token_BCND, present_BCN), token_BCND[:, :, -1], level_BCV), dim=-1)

    def answer(self, pooled: Tensor, facts_BF: Tensor | None = None, scenes: Scenes | None = None) -> Answer:
        """Return logits and forecasts from the output of `pool`."""
        if isinstance(self.head, MeanHead):
            return cast(Answer, self.head(pooled, self.encoder.forecasting))
        if isinstance(self.head, DayHead):
            return cast(Answer, self.head(pooled, self.encoder))
        if facts_BF is None:
            facts_BF = pooled.new_zeros((len(pooled), 0))
        return cast(Answer, self.head(pooled, facts_BF, scenes))

    def linear_inputs(self, x_BLC: Tensor, observed_BLC: Tensor, facts_BF: Tensor) -> Tensor:
        """Return the inputs of the head's linear map for windows, (B, I). The head is `variables`."""
        assert isinstance(self.head, VariablesHead)
        x_BCL, observed_BCL = x_BLC.transpose(1, 2), observed_BLC.transpose(1, 2)
        window = self.encoder.normalise(x_BCL, observed_BCL)
        level_BCV = _levels(x_BCL, observed_BCL, window, (self.encoder.patch_length, *self.head.recent_steps))
        return self.head.linear_inputs(self.head.encode_levels(level_BCV), facts_BF)

    def pooled_shape(self, variables: int) -> tuple[int, ...]:
        """Return the dimensions of the output of `pool` for one window."""
        width = self.encoder.width
        if isinstance(self.head, VariablesHead):
            return variables, 2 * width + self.head.levels + EXTRAS
        assert isinstance(self.head, MeanHead)
        return (width,)


def _mean_over(token_XTD: Tensor, present_XT: Tensor) -> Tensor:
    """Mean over the present tokens, (X, D) for any leading dimensions X; zero if no token is present."""
    weight_XT1 = present_XT.to(token_XTD.dtype)[..., None]
    return (token_XTD * weight_XT1).sum(-2) / weight_XT1.sum(-2).clamp(min=1)


def _levels(x_BCL: Tensor, observed_BCL: Tensor, window: Normalised, recent: tuple[int, ...]) -> Tensor:
    """Levels and spread, which instance normalisation removes, and the observed share: (B, C, levels + EXTRAS).

    `recent` holds the numbers of last steps whose means are levels.
    """
    means = []
    observed = observed_BCL.to(x_BCL.dtype)
    for steps in recent:
        last_BCS, seen_BCS = x_BCL[..., -steps:], observed[..., -steps:]
        means.append((last_BCS * seen_BCS).sum(-1) / seen_BCS.sum(-1).clamp(min=1))
    steps_L = torch.arange(1, x_BCL.shape[-1] + 1, device=x_BCL.device)
    newest_BC = (observed_BCL * steps_L).argmax(-1)
    value_BC = x_BCL.gather(-1, newest_BC[..., None]).squeeze(-1)
    spread_BC = window.spread_BC.clamp(max=LARGEST)
    levels = (window.mean_BC, means[0], value_BC, *means[1:])
    return torch.stack((*levels, spread_BC, observed.mean(-1), observed[..., -1]), dim=-1)
