"""Classifier: an encoder and a head that turns windows into class logits.

Shapes: B batch, L steps, C variables, N patches, D width, K classes.
F facts known at issue time (calendar, static values of the site).
V level values of one variable, J knots of their encoding, W width of one variable in the head.
X input of the head for one variable.
"""

from typing import Literal, Self, cast

import torch
from torch import Tensor, nn

from llueve.config.model_keys import DAY_HOURS
from llueve.errors import UsageError
from llueve.model.heads import EXTRAS, Answer, DayHead, MeanHead, VariablesHead
from llueve.model.patches import Normalised, PatchEncoder, to_patches
from llueve.model.sites import Scenes
from llueve.model.weather_xl import DAYS, PLACE_FACTS, WeatherXL
from llueve.panel import FloatArray

LARGEST = 1e3
"""Limit, in training spreads, of values that are used without normalisation: their squares and scores stay exact."""


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
        step_hours: hours between two steps, for the weather encoder.

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
        step_hours: int = 1,
    ) -> None:
        super().__init__()
        if head == "variables" and num_variables is None:
            raise UsageError('head="variables" keeps one embedding per variable: give num_variables')
        self.encoder = encoder
        self.num_classes = num_classes
        self.instance_norm = instance_norm
        self.step_hours = step_hours
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
        if isinstance(self.encoder, WeatherXL):
            return self._pool_weather(self.encoder, x_BCL, observed_BCL, facts_BF)
        window = self.encoder.normalise(x_BCL, observed_BCL)
        given_BCL = window.x_BCL if self.instance_norm else x_BCL.clamp(-LARGEST, LARGEST)
        token_BCND = self.encoder.tokens(given_BCL, observed_BCL, self.gap_embedding_D)
        present_BCN = to_patches(observed_BCL, self.encoder.patch_length).any(-1)
        if not isinstance(self.head, VariablesHead):
            return _mean_over(token_BCND.flatten(1, 2), present_BCN.flatten(1))
        level_BCV = self._levels(x_BCL, observed_BCL, window)
        return torch.cat((_mean_over(token_BCND, present_BCN), token_BCND[:, :, -1], level_BCV), dim=-1)

    def _pool_weather(self, encoder: WeatherXL, x_BCL: Tensor, observed_BCL: Tensor, facts_BF: Tensor | None) -> Tensor:
        """The weather encoder sees the last variables: its own quantities. The head sees the levels of the others."""
        place_BG = None if facts_BF is None else facts_BF[:, -PLACE_FACTS:]
        own = x_BCL.shape[1] - encoder.variables
        columns = [own + variable for variable in encoder.seen]
        hours_BQL, seen_BQL = (self._hourly(each_BCL[:, columns]) for each_BCL in (x_BCL, observed_BCL))
        # The encoder embeds gaps itself.
        token_BQND = encoder.tokens(hours_BQL.clamp(-LARGEST, LARGEST), seen_BQL, place_BG=place_BG)
        present_BQN = to_patches(seen_BQL, encoder.patch_length).any(-1)
        if not isinstance(self.head, VariablesHead):
            return torch.cat((token_BQND, present_BQN[..., None].to(token_BQND.dtype)), dim=-1)
        summary_BE = encoder.newest(token_BQND, present_BQN)
        x_BCL, observed_BCL = x_BCL[:, :own], observed_BCL[:, :own]
        level_BCV = self._levels(x_BCL, observed_BCL, self.encoder.normalise(x_BCL, observed_BCL))
        return torch.cat((level_BCV.flatten(1), summary_BE), dim=-1)

    def _hourly(self, each_BCL: Tensor) -> Tensor:
        """The last days of a window hour by hour: a longer step is one value at its end, and nothing before it."""
        steps = DAYS * DAY_HOURS // self.step_hours
        each_BCL = each_BCL[..., -steps:]
        if self.step_hours == 1:
            return each_BCL
        before_BCLH = torch.zeros_like(each_BCL)[..., None].expand(*each_BCL.shape, self.step_hours - 1)
        return torch.cat((before_BCLH, each_BCL[..., None]), dim=-1).flatten(-2)

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
        if isinstance(self.encoder, WeatherXL):
            _, level_BCV, summary_BE = self.head.parts(self.pool(x_BLC, observed_BLC, facts_BF))
        else:
            x_BCL, observed_BCL = x_BLC.transpose(1, 2), observed_BLC.transpose(1, 2)
            level_BCV = self._levels(x_BCL, observed_BCL, self.encoder.normalise(x_BCL, observed_BCL))
            summary_BE = level_BCV[:, 0, :0]
        return self.head.linear_inputs(self.head.encode_levels(level_BCV), summary_BE, facts_BF)

    def pooled_shape(self, variables: int) -> tuple[int, ...]:
        """Return the dimensions of the output of `pool` for one window of `variables` variables."""
        width = self.encoder.width
        if not isinstance(self.head, VariablesHead):
            return (width,)
        levels = self.head.levels + EXTRAS
        if self.head.summary:
            return (self.head.variables * levels + self.head.summary,)
        return variables, 2 * width + levels

    def _levels(self, x_BCL: Tensor, observed_BCL: Tensor, window: Normalised) -> Tensor:
        """Levels of each variable for the head `variables`, as `_levels`."""
        assert isinstance(self.head, VariablesHead)
        day = self.encoder.patch_length // self.step_hours
        return _levels(x_BCL, observed_BCL, window, (day, *self.head.recent_steps))


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
