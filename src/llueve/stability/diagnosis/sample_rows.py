"""The samples that a non-finite tensor of a step belongs to, by its dimensions.

Outside the attention across sites, the first dimension of a tensor is the sample, alone or merged with others. Inside it a
tensor is laid out by scene and place: (Z, M, …), (Z·M, …) or (Z, H, M, …), where smaller scenes leave places empty.

Shapes: B samples, Z scenes, M places of a scene, H heads.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from llueve.model.batch import Batch
from llueve.model.sites import Scenes, SiteAttention, lay_out


@dataclass(frozen=True)
class PieceRows:
    """The samples of a piece of a batch, which one forward pass computes."""

    first: int
    """Position of its first sample in the batch."""
    count: int
    scenes: Scenes | None
    """None if each sample is alone."""
    attention: str
    """Path of the attention across sites in the model; empty without one."""

    def of(self, bad: Tensor, operation: str, module: str) -> tuple[int, ...]:
        """Rows of the batch with a True in an operation's result; none if the tensor does not tell.

        Args:
            operation, module: name of the operation, and path of the module that it belongs to.
        """
        in_attention = bool(self.attention) and f"{module}.".startswith(f"{self.attention}.")
        # A product of batches may have its samples anywhere; that of the encoder has them first.
        is_product = operation == "matmul" and not (self.scenes is not None and module.startswith("encoder"))
        if is_product or module.startswith(f"{self.attention}.relation"):
            return ()
        flag_B = self._by_place(bad) if in_attention else None
        if flag_B is None:
            if not bad.ndim or not self.count or bad.shape[0] % self.count or (in_attention and len(bad) != self.count):
                return ()
            flag_B = bad.reshape(self.count, -1).any(1)
        return tuple((flag_B.nonzero().flatten() + self.first).tolist())

    def _by_place(self, bad: Tensor) -> Tensor | None:
        """The flags of a tensor that is laid out by scene and place, (B,); None if it is not."""
        assert self.scenes is not None
        layout = lay_out(self.scenes)
        places = tuple(layout.used_ZM.shape)
        if bad.ndim == 4 and (bad.shape[0], bad.shape[2]) == places:
            bad = bad.transpose(1, 2)
        elif not bad.ndim or (bad.shape[:2] != places and len(bad) != layout.used_ZM.numel()):
            return None
        return bad.reshape(layout.used_ZM.numel(), -1).any(-1)[layout.slot_B]


def piece_rows(model: nn.Module, batch: Batch, size: int) -> Iterator[PieceRows]:
    """The pieces of a batch in the order in which a step computes them; `size` as for `Batch.pieces`."""
    attention = next((name for name, each in model.named_modules() if isinstance(each, SiteAttention)), "")
    first = 0
    for piece in batch.pieces(size):
        yield PieceRows(first, len(piece), piece.scenes, attention)
        first += len(piece)


def at_fault(rows: Sequence[int], hit: Sequence[int], scene_B: Tensor | None, samples: int) -> list[int]:
    """The samples of a fault, or all of them, from those of its tensor and those with a non-finite logit.

    A sample of a scene also makes the logits of the others non-finite, so these alone name it only if it is the only one.
    """
    if scene_B is None:
        return [row for row in rows if row in hit] or [*hit] if len(hit) < samples else [*hit]
    scene_of = scene_B.tolist()
    reached = {scene_of[row] for row in hit}
    named = [row for row in rows if row in hit] or [row for row in rows if scene_of[row] in reached]
    if reached == {scene_of[row] for row in named}:
        return named
    return [*hit] if len(hit) == 1 else [*range(samples)]
