"""Checksums of tensors that only an applied step may change: they show any flipped bit between two steps."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

SMALL = 2**16
"""Tensors with fewer numbers are copied into one vector first: one sum is faster than many."""


class Checksum:
    """The expected and the present sums of the bits of float32 tensors, by group.

    A flipped bit changes the sum of its group, modulo 2⁶⁴. Several flipped bits can cancel out, which is very unlikely.

    Args:
        groups: tensors by the name of their group; they stay where they are in memory as long as this object is used.
        bytes_per_step: most bytes that a processor sums in every step; if there are more, only every n-th step is checked.
    """

    def __init__(self, groups: Mapping[str, Sequence[Tensor]], bytes_per_step: int) -> None:
        self.names = tuple(groups)
        self._groups = [_Group([each.detach().view(-1) for each in group]) for group in groups.values()]
        tensors = [each for group in groups.values() for each in group]
        on_processor, size = all(each.device.type == "cpu" for each in tensors), sum(each.nbytes for each in tensors)
        self.every = max(1, math.ceil(size / bytes_per_step)) if on_processor else 1
        """Number of steps from one check to the next."""
        self.expected: Tensor | None = None
        """Sum of each group after the last step; None if it is not known."""

    def expect(self, step: int = 0) -> None:
        """Expect the present bits from now on; at a step that is not a multiple of `every`, expect nothing."""
        self.expected = self.sums() if step % self.every == 0 else None

    def changed(self) -> Tensor:
        """Return one for each group that is not as expected, otherwise zero, (groups,); zero if nothing is expected."""
        if self.expected is None:
            return torch.zeros(len(self.names))
        return self.sums().ne(self.expected).float()

    def fits(self, expected: Tensor | None) -> bool:
        """Return True if the present sums are these, or if none are known."""
        return expected is None or torch.equal(self.sums(), expected)

    def sums(self) -> Tensor:
        """Return the sum of each group, (groups,), int64, on the device of the tensors."""
        return torch.stack([each.sum() for each in self._groups])


class _Group:
    """One group: large tensors as pairs of numbers, all others and what remains as one vector of pairs."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        large = [each for each in tensors if len(each) >= SMALL]
        self._pairs = [each[: len(each) // 2 * 2].view(torch.int64) for each in large]
        self._rest = [each for each in tensors if len(each) < SMALL] + [each[-1:] for each in large if len(each) % 2]
        size = sum(map(len, self._rest))
        self._vector = torch.zeros(size + size % 2, device=tensors[0].device if tensors else None)
        self._filled = self._vector[:size]

    def sum(self) -> Tensor:
        if self._rest:
            torch.cat(self._rest, out=self._filled)
        total = self._vector.view(torch.int64).sum()
        for each in self._pairs:
            total = total + each.sum()
        return total
