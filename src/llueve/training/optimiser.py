"""AdamW with its moments in two blocks of memory, so that one look at each tells whether all of them are sound."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Optimiser:
    """AdamW, and every moment of it as two vectors over all trained numbers."""

    adamw: torch.optim.AdamW
    first_moment: Tensor
    second_moment: Tensor
    base_rates: tuple[float, ...]
    """Learning rate of each group where the schedule is 1, encoder first."""

    def extremes(self) -> Tensor:
        """Least and largest first moment, least and largest second moment: (4,). A NaN in any shows in them."""
        return torch.stack((*torch.aminmax(self.first_moment), *torch.aminmax(self.second_moment)))

    @property
    def rates(self) -> list[float]:
        """Learning rate of each group, encoder first."""
        return [float(group["lr"]) for group in self.adamw.param_groups]

    def set_rates(self, factor: float) -> None:
        """Every group's rate as its share of the schedule."""
        for group, rate in zip(self.adamw.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor

    def tensors(self) -> dict[str, Tensor]:
        """Everything that it remembers, as it is in memory."""
        steps = torch.stack([self.adamw.state[each]["step"] for each in self._parameters()])
        return {"first_moment": self.first_moment, "second_moment": self.second_moment, "adamw_steps": steps}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what `tensors()` told."""
        self.first_moment.copy_(tensors["first_moment"])
        self.second_moment.copy_(tensors["second_moment"])
        for parameter, step in zip(self._parameters(), tensors["adamw_steps"], strict=True):
            self.adamw.state[parameter]["step"].copy_(step)

    def forget(self, parameters: Iterable[nn.Parameter]) -> None:
        """Start anew with these parameters."""
        for state in (self.adamw.state[each] for each in parameters if each in self.adamw.state):
            for memory in state.values():
                memory.zero_()

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.adamw.param_groups for parameter in group["params"]]


def build_optimiser(groups: Sequence[dict[str, Any]]) -> Optimiser:
    """AdamW for groups of parameters with rate and weight decay, its moments zero."""
    adamw = torch.optim.AdamW(groups, fused=True)
    parameters = [parameter for group in adamw.param_groups for parameter in group["params"]]
    total = sum(parameter.numel() for parameter in parameters)
    first, second = (torch.zeros(total, device=parameters[0].device) for _ in range(2))
    start = 0
    for parameter in parameters:
        here = slice(start, start + parameter.numel())
        adamw.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": first[here].view_as(parameter),
            "exp_avg_sq": second[here].view_as(parameter),
        }
        start = here.stop
    return Optimiser(adamw, first, second, tuple(float(group["lr"]) for group in adamw.param_groups))
