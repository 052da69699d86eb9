"""The exponential moving average of the weights, in one block of memory.

average ← decay · average + (1 − decay) · weights, after each applied step. In the first steps of a phase the decay is smaller,
(1 + n) / (10 + n) for step n from 0: a short training must not remember its start. Averaging is due to Polyak and Juditsky
(1992); for averages in deep learning see Izmailov et al., arXiv:1803.05407.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The moving average of a model's parameters, which starts at the present ones; `decay` is 0…1."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters: list[Tensor] = [each for each in model.parameters() if each.numel()]
        self.block = torch.cat([each.detach().flatten() for each in self.parameters])
        sizes = [each.numel() for each in self.parameters]
        self.parts = [part.view_as(each) for part, each in zip(self.block.split(sizes), self.parameters, strict=True)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after a step of the phase, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        if hasattr(torch, "_foreach_lerp_"):  # all parts in one call; it is not public
            torch._foreach_lerp_(self.parts, self.parameters, 1 - decay)
        else:
            for part, parameter in zip(self.parts, self.parameters, strict=True):
                part.lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def begin(self, parameters: Iterable[Tensor]) -> None:
        """Restart the average of these parameters at their present values."""
        chosen = {id(each) for each in parameters}
        for part, parameter in zip(self.parts, self.parameters, strict=True):
            if id(parameter) in chosen:
                part.copy_(parameter)

    def extremes(self) -> Tensor:
        """Return the smallest and the largest number, (2,); NaN if any number is NaN."""
        return torch.stack(torch.aminmax(self.block))

    def named(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the average of each parameter by its name, not copied."""
        names = [name for name, each in model.named_parameters() if each.numel()]
        return dict(zip(names, self.parts, strict=True))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the weights of the model are the average."""
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
