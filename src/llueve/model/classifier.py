"""From windows to class logits: the encoder and its two heads.

Shapes: B batch, L steps, C variables, N patches, D width, F facts known at issue time (calendar, static per-site values),
V level values of one variable, W hidden width of the head, Q pooling queries, K classes.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llueve.config import ModelConfig
from llueve.model.timer_xl import TimerXL, normalise, to_patches

NOTE_HIDDEN = 128
NOTE_DROPOUT = 0.1
NOTE_WEIGHT_STD = 0.01
LEVELS = 4
"""Level values of one variable: window mean, window spread, mean of the last patch, last observed value."""


class MeanHead(nn.Module):
    """The troubleshooting note's head: forecasting head → mean over all tokens → LayerNorm → Linear → GELU → Linear.

    Dropout 0.1, weights N(0, 0.01²), biases zero. It cannot tell one variable from another, nor see any level: it is here as the
    reference that the default head is measured against.
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

    def forward(self, token_BCND: Tensor, present_BCN: Tensor, forecasting: nn.Linear) -> Tensor:
        """Logits (B, K)."""
        # The forecasting head is linear, so the mean of its outputs is its output for the mean: exact, and T times less work.
        mean_BD = _mean_over(token_BCND.flatten(1, 2), present_BCN.flatten(1))
        return cast(Tensor, self.classifier(forecasting(mean_BD)))


class VariablesHead(nn.Module):
    """The default head: each variable keeps its own embedding, level and spread until a learned pooling weighs them.

    For variable c: hidden_c = GELU(LayerNorm(A·[mean token, last token] + E_c + Σ_v level_cv·G_cv)), then Q learned
    queries weigh the variables by softmax, and a small network turns the Q pooled vectors, with the facts, into logits.
    The last layer starts at zero: the first forecast is the same for every window.
    """

    def __init__(self, width: int, variables: int, facts: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.queries = 8
        self.token = nn.Linear(2 * width, width)
        self.variable_CD = nn.Parameter(torch.empty(variables, width))
        self.level_CVD = nn.Parameter(torch.empty(variables, LEVELS, width))
        self.norm = nn.LayerNorm(width)
        self.weigh = nn.Linear(width, self.queries)
        self.pooled = nn.Linear(self.queries * width + facts, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(2 * width, classes)
        nn.init.normal_(self.variable_CD, std=0.02)
        nn.init.normal_(self.level_CVD, std=LEVELS**-0.5)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, token_BCND: Tensor, present_BCN: Tensor, level_BCV: Tensor, facts_BF: Tensor) -> Tensor:
        """Logits (B, K)."""
        mean_BCD = _mean_over(token_BCND.flatten(0, 1), present_BCN.flatten(0, 1)).unflatten(0, token_BCND.shape[:2])
        summary_BCD = self.token(torch.cat((mean_BCD, token_BCND[:, :, -1]), dim=-1))
        level_BCD = torch.einsum("bcv,cvd->bcd", level_BCV, self.level_CVD)
        hidden_BCD = self.dropout(F.gelu(self.norm(summary_BCD + self.variable_CD + level_BCD)))
        weight_BCQ = self.weigh(hidden_BCD).softmax(dim=1)
        pooled_BQD = torch.einsum("bcq,bcd->bqd", weight_BCQ, hidden_BCD)
        joined = torch.cat((pooled_BQD.flatten(1), facts_BF), dim=-1)
        return cast(Tensor, self.out(self.dropout(F.gelu(self.pooled(joined)))))


class Classifier(nn.Module):
    """Timer-XL with a classification head, for a fixed list of variables."""

    def __init__(self, config: ModelConfig, variables: int, facts: int, classes: int) -> None:
        super().__init__()
        self.encoder = TimerXL(
            patch_length=config.patch_length,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            feed_forward=config.feed_forward,
            dropout=config.dropout,
            positions=config.positions,
        )
        self.instance_norm = config.instance_norm
        # Zero at first: an encoder that never saw a gap then starts from exactly what it knows.
        self.gap_embedding_D = nn.Parameter(torch.zeros(config.width))
        self.head: MeanHead | VariablesHead = (
            MeanHead(config.patch_length, classes)
            if config.head == "mean"
            else VariablesHead(config.width, variables, facts, classes, config.dropout)
        )

    def forward(self, x_BCL: Tensor, observed_BCL: Tensor, facts_BF: Tensor) -> Tensor:
        """Logits (B, K) from values in training-set units (zero where not observed), their mask, and the facts."""
        window = normalise(x_BCL, observed_BCL)
        token_BCND = self.encoder.encode(
            window.x_BCL if self.instance_norm else x_BCL, observed_BCL, self.gap_embedding_D
        )
        present_BCN = to_patches(observed_BCL, self.encoder.patch_length).any(-1)
        if isinstance(self.head, MeanHead):
            return cast(Tensor, self.head(token_BCND, present_BCN, self.encoder.head))
        level_BCV = torch.stack(
            (window.mean_BC, window.spread_BC, *_recent(x_BCL, observed_BCL, self.encoder.patch_length)), dim=-1
        )
        return cast(Tensor, self.head(token_BCND, present_BCN, level_BCV, facts_BF))


def _mean_over(x_BTD: Tensor, present_BT: Tensor) -> Tensor:
    """Mean over the tokens that are present, (B, D); zero where none is."""
    weight_BT1 = present_BT.to(x_BTD.dtype)[..., None]
    return (x_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1)


def _recent(x_BCL: Tensor, observed_BCL: Tensor, patch_length: int) -> tuple[Tensor, Tensor]:
    """Mean of the last patch and the last observed value of each variable, (B, C); zero where there is none."""
    last_BCP, seen_BCP = x_BCL[..., -patch_length:], observed_BCL[..., -patch_length:]
    mean_BC = (last_BCP * seen_BCP).sum(-1) / seen_BCP.sum(-1).clamp(min=1)
    steps_L = torch.arange(1, x_BCL.shape[-1] + 1, device=x_BCL.device)
    newest_BC = (observed_BCL * steps_L).argmax(-1)
    return mean_BC, x_BCL.gather(-1, newest_BC[..., None]).squeeze(-1)
