"""AdamW with its moments in two blocks of memory, so that one look at each tells whether all of them are sound."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llueve.config import TrainConfig
from llueve.model.classifier import TimerXLForClassification


@dataclass(frozen=True)
class Optimiser:
    """AdamW, and every moment of it as two vectors over all trained numbers."""

    adamw: torch.optim.AdamW
    first_moment: Tensor
    second_moment: Tensor

    def extremes(self) -> Tensor:
        """Least and largest first moment, least and largest second moment: (4,). A NaN in any shows in them."""
        return torch.stack((*torch.aminmax(self.first_moment), *torch.aminmax(self.second_moment)))

    @property
    def rates(self) -> list[float]:
        """Learning rate of each group, encoder first."""
        return [float(group["lr"]) for group in self.adamw.param_groups]


def build_optimiser(model: TimerXLForClassification, config: TrainConfig) -> Optimiser:
    """AdamW with the encoder's and the head's own rate, its moments zero."""
    encoder = list(model.encoder.parameters())
    known = {id(parameter) for parameter in encoder}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    adamw = torch.optim.AdamW(
        [
            {"params": encoder, "lr": config.encoder_learning_rate},
            {"params": rest, "lr": config.head_learning_rate},
        ],
        weight_decay=config.weight_decay,
        fused=True,
    )
    total = sum(parameter.numel() for parameter in encoder + rest)
    first, second = (torch.zeros(total, device=encoder[0].device) for _ in range(2))
    start = 0
    for parameter in encoder + rest:
        here = slice(start, start + parameter.numel())
        adamw.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": first[here].view_as(parameter),
            "exp_avg_sq": second[here].view_as(parameter),
        }
        start = here.stop
    return Optimiser(adamw, first, second)
