"""AdamW with all its moments in two blocks of memory: the extremes of a block show if any moment is not finite."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

BETAS = (0.9, 0.999)
"""Decay of the first and of the second moment in each step."""
EPSILON = 1e-8
"""Added to the root of the second moment, which divides the step."""
WEIGHT_DECAY = 0.01
"""Weight decay of a group that has none of its own."""


class AdamW:
    """AdamW in torch's fused form, as `torch.optim.AdamW(groups, fused=True)` computes it, bit for bit.

    That class imports torch's compiler, which adds seconds to the start of each training and is not used here.

    Args:
        groups: each with its `params` and its rate `lr`, perhaps with a `weight_decay`.

    Reference: Loshchilov and Hutter 2019, arXiv:1711.05101
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self.param_groups = [{"weight_decay": WEIGHT_DECAY, **group} for group in groups]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}
        """`step`, `exp_avg` and `exp_avg_sq` of each parameter."""

    @torch.no_grad()
    def step(self) -> None:
        """Change each parameter that has a gradient."""
        for group in self.param_groups:
            trained = [each for each in group["params"] if each.grad is not None]
            states = [self.state[each] for each in trained]
            adamw(
                trained,
                [each.grad for each in trained],
                [each["exp_avg"] for each in states],
                [each["exp_avg_sq"] for each in states],
                [],
                [each["step"] for each in states],
                fused=True,
                amsgrad=False,
                beta1=BETAS[0],
                beta2=BETAS[1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=EPSILON,
                maximize=False,
            )


@dataclass(frozen=True)
class Optimiser:
    """AdamW, with its moments as two vectors over all trained numbers."""

    adamw: AdamW
    first_moment: Tensor
    second_moment: Tensor
    base_rates: tuple[float, ...]
    """Learning rate of each group at a schedule factor of 1, encoder first."""

    def extremes(self) -> Tensor:
        """Return smallest and largest first moment, smallest and largest second moment, (4,); NaN if a moment is NaN."""
        return torch.stack((*torch.aminmax(self.first_moment), *torch.aminmax(self.second_moment)))

    @property
    def rates(self) -> list[float]:
        """Learning rate of each group, encoder first."""
        return [float(group["lr"]) for group in self.adamw.param_groups]

    def set_rates(self, factor: float) -> None:
        """Set the rate of each group to its base rate times the factor of the schedule."""
        for group, rate in zip(self.adamw.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments and the step counts: the whole state, not copied."""
        steps = torch.stack([self.adamw.state[each]["step"] for each in self._parameters()])
        return {"first_moment": self.first_moment, "second_moment": self.second_moment, "adamw_steps": steps}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the state from `tensors()`."""
        self.first_moment.copy_(tensors["first_moment"])
        self.second_moment.copy_(tensors["second_moment"])
        for parameter, step in zip(self._parameters(), tensors["adamw_steps"], strict=True):
            self.adamw.state[parameter]["step"].copy_(step)

    def forget(self, parameters: Iterable[nn.Parameter]) -> None:
        """Set the state of these parameters to zero."""
        for state in (self.adamw.state[each] for each in parameters if each in self.adamw.state):
            for memory in state.values():
                memory.zero_()

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.adamw.param_groups for parameter in group["params"]]


def build_optimiser(groups: Sequence[dict[str, Any]]) -> Optimiser:
    """Return AdamW with zero moments for the groups of `llueve.training.phases.parameter_groups`."""
    built = AdamW(groups)
    parameters = [parameter for group in built.param_groups for parameter in group["params"]]
    total = sum(parameter.numel() for parameter in parameters)
    first, second = (torch.zeros(total, device=parameters[0].device) for _ in range(2))
    start = 0
    for parameter in parameters:
        here = slice(start, start + parameter.numel())
        built.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": first[here].view_as(parameter),
            "exp_avg_sq": second[here].view_as(parameter),
        }
        start = here.stop
    return Optimiser(built, first, second, tuple(float(group["lr"]) for group in built.param_groups))
