"""The first non-finite number of a step: the operation that made it, its place and its first element."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from llueve.stability.language import Language, Words

Phase = Literal["input", "weights", "forward", "backward"]

BEFORE = Words(
    "{tensor} held {many} that are not finite before the step, {where}",
    "{tensor} tenía {many} no finitos antes del paso, {where}",
)
FORWARD = Words("{who} made {many} that are not finite, {where}", "{who} produjo {many} no finitos, {where}")
BACKWARD = Words(
    "the gradient of {who} has {many} that are not finite, although the forward pass was sound, {where}",
    "el gradiente de {who} tiene {many} no finitos, aunque el paso hacia delante fue sano, {where}",
)
REACHED = Words(
    "; {tensor} was the first parameter with such a gradient", "; {tensor} fue el primer parámetro con ese gradiente"
)
MANY = Words("{count} of {total} numbers", "{count} de {total} números")
FIRST = Words("the first at {index} of {shape}", "el primero en {index} de {shape}")
ONLY = Words("its only one", "el único")
SAMPLE = Words(", sample {sample} of the batch", ", muestra {sample} del lote")
CELL = Words(", step {step}, variable {variable}", ", paso {step}, variable {variable}")
UNSEEN = Words("an operation that was not observed", "una operación que no se observó")
INSIDE = Words(" in ", " en ")


@dataclass(frozen=True)
class Trace:
    """The origin of the first non-finite number of a step."""

    phase: Phase
    operation: str
    """The torch operation, such as `softmax`. In the backward pass: the operation whose gradient it is. Empty for inputs
    and weights."""
    module: str
    """Path of the module in the model; empty outside of every module, as in the loss."""
    source: str
    """File and line of llueve that called the operation; empty for inputs and weights."""
    tensor: str | None
    """Name of the input, parameter or buffer. In the backward pass: the first parameter with a non-finite gradient."""
    shape: tuple[int, ...]
    index: tuple[int, ...]
    """Index of the first non-finite element."""
    count: int
    """Number of non-finite elements."""
    sample: int | None = None
    """Row of the batch; None if it is unknown or concerns all rows."""
    step: int | None = None
    """Step of the window for an input, 0…L−1."""
    variable: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The trace for JSON."""
        return {name: list(each) if isinstance(each, tuple) else each for name, each in asdict(self).items()}

    def sentence(self, language: Language = Language.ENGLISH) -> str:
        """The trace in one sentence."""

        def say(words: Words, **facts: object) -> str:
            return words.of(language).format(**facts)

        many = say(MANY, count=self.count, total=math.prod(self.shape))
        where = say(FIRST, index=list(self.index), shape=list(self.shape)) if self.shape else say(ONLY)
        if self.sample is not None:
            where += say(SAMPLE, sample=self.sample)
        if self.step is not None:
            where += say(CELL, step=self.step, variable=self.variable)
        if self.phase in ("input", "weights"):
            return say(BEFORE, tensor=self.tensor, many=many, where=where)
        place = say(INSIDE).join(each for each in (self.module, self.source) if each)
        who = (self.operation or say(UNSEEN)) + (f" ({place})" if place else "")
        if self.phase == "forward":
            return say(FORWARD, who=who, many=many, where=where)
        reached = say(REACHED, tensor=self.tensor) if self.tensor else ""
        return say(BACKWARD, who=who, many=many, where=where) + reached
