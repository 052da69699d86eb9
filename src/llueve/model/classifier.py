"""From windows to class logits: the encoder and its two heads.

Shapes: B batch, L steps, C variables, N patches, D width, F facts known at issue time (calendar, static per-site values),
V level values of one variable, J knots of their encoding, W width of one variable in the head, K classes; X what the head
is given of one variable.
"""

from typing import Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llueve.errors import UsageError
from llueve.model.patches import Normalised, PatchEncoder, to_patches
from llueve.panel import FloatArray

NOTE_HIDDEN = 128
NOTE_DROPOUT = 0.1
NOTE_WEIGHT_STD = 0.01
VARIABLE_WIDTH = 32
HIDDEN = 128
KNOTS = 16
"""Training quantiles between which a level is encoded piecewise linearly."""
LARGEST = 1e3
"""Training spreads at which ends what is used without normalisation, so that squares and scores of it stay exact."""
LEVELS = 3
"""Levels of one variable: mean of the window, mean of its last patch, newest observed value."""
EXTRAS = 3
"""Besides them: the window's spread, the share of it that was observed, whether its last step was."""


class MeanHead(nn.Module):
    """The troubleshooting note's head: forecasting head → mean over all tokens → LayerNorm → Linear → GELU → Linear.

    Dropout 0.1, weights N(0, 0.01²), biases zero. It cannot tell one variable from another, nor see any level: it is
    here as the reference that the default head is measured against.
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
                nn.init.normal_(module.weight, mean=0.0, std=NOTE_WEIGHT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, mean_BD: Tensor, forecasting: nn.Linear) -> Tensor:
        """Logits (B, K) from the mean of all tokens."""
        # The forecasting head is linear, so the mean of its outputs is its output for the mean: exact, and T times less work.
        return cast(Tensor, self.classifier(forecasting(mean_BD)))


class VariablesHead(nn.Module):
    """The default head: each variable keeps its own place, level and spread until a small network joins them.

    For variable c: hidden_c = GELU(LayerNorm(A·[mean token, last token] + E_c + Σ_v level_cv·G_cv)); all hidden_c, side
    by side with the facts, go through two hidden layers to the logits. Levels are encoded piecewise linearly between
    the variable's training quantiles, so that a millimetre of rain counts where it matters, not where the extremes put
    it (Gorishniy et al., arXiv:2203.05556). The last layer starts at zero: the first forecast is the same for all.
    """

    knots_CJ: Tensor

    def __init__(self, width: int, variables: int, facts: int, classes: int, dropout: float) -> None:
        super().__init__()
        inputs = LEVELS * (KNOTS - 1) + EXTRAS
        self.token = nn.Linear(2 * width, VARIABLE_WIDTH)
        self.variable_CW = nn.Parameter(torch.empty(variables, VARIABLE_WIDTH))
        self.level_CVW = nn.Parameter(torch.empty(variables, inputs, VARIABLE_WIDTH))
        self.norm = nn.LayerNorm(VARIABLE_WIDTH)
        self.network = nn.Sequential(
            nn.Linear(variables * VARIABLE_WIDTH + facts, HIDDEN),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(HIDDEN, HIDDEN),
            nn.GELU(),
            nn.Dropout(dropout),
        )
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(HIDDEN, classes)
        self.register_buffer("knots_CJ", torch.linspace(-2, 2, KNOTS).repeat(variables, 1))
        nn.init.normal_(self.variable_CW, std=0.02)
        nn.init.normal_(self.level_CVW, std=inputs**-0.5)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, pooled_BCX: Tensor, facts_BF: Tensor) -> Tensor:
        """Logits (B, K) from each variable's mean token, last token and levels side by side, X = 2D + V."""
        token_BCX, level_BCV = pooled_BCX.split((self.token.in_features, LEVELS + EXTRAS), dim=-1)
        token_BCW = self.token(token_BCX.contiguous())
        level_BCW = torch.einsum("bcv,cvw->bcw", self.encode_levels(level_BCV), self.level_CVW)
        hidden_BCW = self.dropout(F.gelu(self.norm(token_BCW + self.variable_CW + level_BCW)))
        return cast(Tensor, self.out(self.network(torch.cat((hidden_BCW.flatten(1), facts_BF), dim=-1))))

    def encode_levels(self, level_BCV: Tensor) -> Tensor:
        """Each level as how far it is through each interval between knots, 0…1; extras as they are."""
        low_CJ, high_CJ = self.knots_CJ[:, :-1], self.knots_CJ[:, 1:]
        # Equal knots (most days have no rain) are a step just above them.
        width_CJ = (high_CJ - low_CJ).clamp(min=1e-4)
        value_BCV1 = level_BCV[..., :LEVELS, None]
        through_BCVJ = ((value_BCV1 - low_CJ[:, None]) / width_CJ[:, None]).clamp(0, 1)
        return torch.cat((through_BCVJ.flatten(2), level_BCV[..., LEVELS:]), dim=-1)


class TimerXLForClassification(nn.Module):
    """An encoder with a classification head.

    Args:
        encoder: Timer-XL or Timer, fresh or from `llueve.load_pretrained`.
        num_classes: K.
        head: `mean` is the troubleshooting note's head, for any variables; `variables` keeps variables and levels apart,
            for a fixed list of variables.
        num_variables: C, needed by `variables`.
        num_facts: F, numbers that `variables` is given besides the window, such as the calendar.
        dropout: of the `variables` head.
        instance_norm: normalise each variable of each window for the encoder, as published checkpoints expect.

    Raises:
        UsageError: `variables` without a number of variables.
    """

    def __init__(
        self,
        encoder: PatchEncoder,
        num_classes: int,
        head: Literal["variables", "mean"] = "mean",
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
        # Zero at first: an encoder that never saw a gap then starts from exactly what it knows.
        self.gap_embedding_D = nn.Parameter(torch.zeros(encoder.width))
        self.head: MeanHead | VariablesHead = (
            MeanHead(encoder.patch_length, num_classes)
            if head == "mean" or num_variables is None
            else VariablesHead(encoder.width, num_variables, num_facts, num_classes, dropout)
        )

    def freeze_encoder(self) -> None:
        """Train the head alone: the encoder, and the gap embedding that feeds it, get no gradient and no dropout."""
        self._set_encoder_trained(False)

    def unfreeze_encoder(self) -> None:
        """Train everything."""
        self._set_encoder_trained(True)

    @property
    def is_encoder_frozen(self) -> bool:
        """Whether nothing of the encoder is trained."""
        return not any(parameter.requires_grad for parameter in self.encoder.parameters())

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; an encoder that is frozen stays in evaluation mode, without dropout."""
        super().train(mode)
        if self.is_encoder_frozen:
            self.encoder.eval()
        return self

    def _set_encoder_trained(self, trained: bool) -> None:
        self.encoder.requires_grad_(trained)
        self.gap_embedding_D.requires_grad_(trained)
        self.train(self.training)

    def set_knots(self, knots_CJ: FloatArray) -> None:
        """Place the knots of the levels: quantiles of each variable in training, in the units of the windows."""
        if isinstance(self.head, VariablesHead):
            self.head.knots_CJ.copy_(torch.from_numpy(knots_CJ))

    def forward(self, x_BLC: Tensor, observed_BLC: Tensor | None = None, facts_BF: Tensor | None = None) -> Tensor:
        """Logits (B, K).

        Args:
            x_BLC: values, for the `variables` head in training-set units; zero where not observed.
            observed_BLC: True where observed; None means everything.
            facts_BF: facts known at issue time; None means none.
        """
        return self.classify(self.pool(x_BLC, observed_BLC), facts_BF)

    def pool(self, x_BLC: Tensor, observed_BLC: Tensor | None = None) -> Tensor:
        """Everything that the head needs of the windows, (B, *pooled_shape); while the encoder is frozen it stays the same."""
        x_BCL = x_BLC.transpose(1, 2)
        observed_BCL = (
            torch.ones_like(x_BCL, dtype=torch.bool) if observed_BLC is None else observed_BLC.transpose(1, 2)
        )
        window = self.encoder.normalise(x_BCL, observed_BCL)
        given_BCL = window.x_BCL if self.instance_norm else x_BCL.clamp(-LARGEST, LARGEST)
        token_BCND = self.encoder.tokens(given_BCL, observed_BCL, self.gap_embedding_D)
        present_BCN = to_patches(observed_BCL, self.encoder.patch_length).any(-1)
        if isinstance(self.head, MeanHead):
            return _mean_over(token_BCND.flatten(1, 2), present_BCN.flatten(1))
        level_BCV = _levels(x_BCL, observed_BCL, window, self.encoder.patch_length)
        return torch.cat((_mean_over(token_BCND, present_BCN), token_BCND[:, :, -1], level_BCV), dim=-1)

    def classify(self, pooled: Tensor, facts_BF: Tensor | None = None) -> Tensor:
        """Logits (B, K) from what `pool` gave."""
        if isinstance(self.head, MeanHead):
            return cast(Tensor, self.head(pooled, self.encoder.forecasting))
        if facts_BF is None:
            facts_BF = pooled.new_zeros((len(pooled), 0))
        return cast(Tensor, self.head(pooled, facts_BF))

    def pooled_shape(self, variables: int) -> tuple[int, ...]:
        """Dimensions of what `pool` gives for one window."""
        width = self.encoder.width
        return (width,) if isinstance(self.head, MeanHead) else (variables, 2 * width + LEVELS + EXTRAS)


def _mean_over(token_XTD: Tensor, present_XT: Tensor) -> Tensor:
    """Mean over the tokens that are present, (X, D) for any leading dimensions X; zero where none is."""
    weight_XT1 = present_XT.to(token_XTD.dtype)[..., None]
    return (token_XTD * weight_XT1).sum(-2) / weight_XT1.sum(-2).clamp(min=1)


def _levels(x_BCL: Tensor, observed_BCL: Tensor, window: Normalised, patch_length: int) -> Tensor:
    """What instance normalisation removes, and how much was observed: (B, C, LEVELS + EXTRAS)."""
    last_BCP, seen_BCP = x_BCL[..., -patch_length:], observed_BCL[..., -patch_length:]
    recent_BC = (last_BCP * seen_BCP).sum(-1) / seen_BCP.sum(-1).clamp(min=1)
    steps_L = torch.arange(1, x_BCL.shape[-1] + 1, device=x_BCL.device)
    newest_BC = (observed_BCL * steps_L).argmax(-1)
    value_BC = x_BCL.gather(-1, newest_BC[..., None]).squeeze(-1)
    observed = observed_BCL.to(x_BCL.dtype)
    spread_BC = window.spread_BC.clamp(max=LARGEST)
    return torch.stack((window.mean_BC, recent_BC, value_BC, spread_BC, observed.mean(-1), observed[..., -1]), dim=-1)
