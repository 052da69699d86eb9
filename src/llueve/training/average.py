"""The exponential moving average of the weights, in one block of memory.

average ← decay · average + (1 − decay) · weights after each applied step (Polyak and Juditsky 1992 for the idea; the
exponential form as in Izmailov et al., arXiv:1803.05407, is what is common).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The moving average of a model's parameters.

    Args:
        model: whose parameters; it starts as they are now.
        decay: 0…1; what is left of the average at each step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters: list[Tensor] = [each for each in model.parameters() if each.numel()]
        self.block = torch.cat([each.detach().flatten() for each in self.parameters])
        sizes = [each.numel() for each in self.parameters]
        self.parts = [part.view_as(each) for part, each in zip(self.block.split(sizes), self.parameters, strict=True)]

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the present weights."""
        torch._foreach_lerp_(self.parts, self.parameters, 1 - self.decay)

    @torch.no_grad()
    def begin(self, parameters: Iterable[Tensor]) -> None:
        """Begin anew with these parameters, as they are now."""
        chosen = {id(each) for each in parameters}
        for part, parameter in zip(self.parts, self.parameters, strict=True):
            if id(parameter) in chosen:
                part.copy_(parameter)

    def extremes(self) -> Tensor:
        """Least and largest number, (2,)."""
        return torch.stack(torch.aminmax(self.block))

    def named(self, model: nn.Module) -> dict[str, Tensor]:
        """The average of each parameter, by its name."""
        names = [name for name, each in model.named_parameters() if each.numel()]
        return dict(zip(names, self.parts, strict=True))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the average as its weights."""
        own = [each.detach().clone() for each in self.parameters]
        self._fill(self.parts)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)
