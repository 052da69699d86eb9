"""Checksums of tensors that only an applied step may change: they show any flipped bit between two steps."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

SMALL = 2**16
"""Tensors with fewer numbers are copied into one vector first: one sum is faster than many."""
BYTES_PER_STEP = 2**26
"""Largest number of bytes whose bits a processor sums in each step, on average."""


class Checksum:
    """The expected and the present sums of the bits of float32 tensors, by group.

    A flipped bit changes the sum of its group, modulo 2⁶⁴. Several flipped bits can cancel out, which is very unlikely.

    Args:
        groups: tensors by the name of their group; they stay where they are in memory as long as this object is used.
        every: number of steps from one check to the next; None for every step, or if a processor would have to sum more than
            64 MB, for as many steps as bring it to 64 MB for each.
    """

    def __init__(self, groups: Mapping[str, Sequence[Tensor]], every: int | None = None) -> None:
        flat = {name: [each.detach().view(-1) for each in group] for name, group in groups.items() if group}
        tensors = [each for group in flat.values() for each in group]
        size = sum(each.nbytes for each in tensors if each.device.type == "cpu")
        self.names = tuple(flat)
        self.every = every or max(1, math.ceil(size / BYTES_PER_STEP))
        self.expected: Tensor | None = None
        """Sum of each group after the last step; None if it is not known."""
        self._pairs, self._copied, ends = [], [], [0]
        for group in flat.values():
            large = [each for each in group if len(each) >= SMALL]
            self._pairs.append([each[: len(each) // 2 * 2].view(torch.int64) for each in large])
            small = [each for each in group if len(each) < SMALL] + [each[-1:] for each in large if len(each) % 2]
            if sum(map(len, small)) % 2:
                small.append(small[0].new_zeros(1))
            self._copied += small
            ends.append(ends[-1] + sum(map(len, small)))
        self._vector = torch.zeros(ends[-1], device=tensors[0].device if tensors else None)
        whole = self._vector.view(torch.int64)
        self._slices = [whole[start // 2 : end // 2] for start, end in pairwise(ends)]

    def expect(self, step: int = 0) -> None:
        """Expect the present bits from now on; at a step that is not a multiple of `every`, expect nothing."""
        self.expected = self.sums() if step % self.every == 0 else None

    def changed(self) -> Tensor:
        """Return one for each group that is not as expected, otherwise zero, (groups,); zero if nothing is expected."""
        if self.expected is None:
            return self.unchecked()
        return self.sums().ne(self.expected).float()

    def unchecked(self) -> Tensor:
        """Return zero for each group, (groups,)."""
        return torch.zeros(len(self.names), device=self._vector.device)

    def fits(self, expected: Tensor | None) -> bool:
        """Return True if the present sums are these, or if none are known."""
        return expected is None or torch.equal(self.sums(), expected)

    def sums(self) -> Tensor:
        """Return the sum of each group, (groups,), int64, on the device of the tensors."""
        if self._copied:
            torch.cat(self._copied, out=self._vector)
        sums = [each.sum() for each in self._slices]
        for group, pairs in enumerate(self._pairs):
            for each in pairs:
                sums[group] = sums[group] + each.sum()
        return torch.stack(sums) if sums else self._vector.view(torch.int64)
