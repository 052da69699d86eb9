"""Where a non-finite number was born: one step replayed with every operation watched, forward and backward.

A result that is not finite has an origin: that of its arguments that were not finite, or, when they were sound, the
operation itself. Origins travel with the memory they were written to, so the non-finite loss, or gradient, names its own,
and a number that was never used, or was healed on the way, is not blamed. Of several the earliest counts: inputs, then
weights, then operations in their order.

NaN and +∞ are faults. −∞ is one where it is born from finite arguments (log 0, overflow); written as a constant, or handed
on from an argument that holds it, it is a mask, until something turns it into NaN or +∞, which is then named: of a row
of attention with nothing to attend to, the softmax.

A watched step costs about four plain ones in a model 16 wide, one and a half in one 256 wide.
"""

import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeGuard, cast

import torch
from torch import Tensor, autograd, nn
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode

from llueve.config import TrainConfig
from llueve.model.classifier import TimerXLForClassification
from llueve.stability.step import Batch, loss_and_gradients

Phase = Literal["input", "weights", "forward", "backward"]

OWN_CODE = str(Path(__file__).parents[1]) + os.sep
PLAIN_NAMES = {"addmm": "linear", "mm": "linear", "bmm": "matmul", "baddbmm": "matmul", "to_copy": "to"}
"""What the products are called by who writes them; the others are recognised."""
NOT_WRITTEN = re.compile(r"(new_)?empty(_like|_strided|_permuted)?|lift_fresh")
"""Operations whose result nobody has computed: what is in it is judged once it was written."""
PADDED = re.compile(r"_scaled_dot_product_\w+_attention")
"""Operations whose first result alone is of use to others: accelerators fill up the logarithms beside it with +∞."""
OVERWRITING = ("copy_", "fill_", "zero_")
"""Operations in place that do not read what was there."""


@dataclass(frozen=True)
class Trace:
    """The place where a non-finite number was born, and its first element."""

    phase: Phase
    operation: str
    """The torch operation, such as `softmax`; in the backward pass that whose gradient it is. Empty for inputs, weights."""
    module: str
    """Path of the module in the model; empty outside of all, as in the loss."""
    source: str
    """File and line of llueve's own that asked for it; empty for inputs and weights."""
    tensor: str | None
    """Name of the input, parameter or buffer; in the backward pass the first parameter whose gradient was hit."""
    shape: tuple[int, ...]
    index: tuple[int, ...]
    """The first non-finite element."""
    count: int
    """Non-finite elements."""
    sample: int | None = None
    """Row of the batch; None when it cannot be told, or is all of them."""
    step: int | None = None
    """Of an input: step of the window, 0…L−1."""
    variable: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The trace as JSON holds it."""
        return {name: list(each) if isinstance(each, tuple) else each for name, each in asdict(self).items()}

    def sentence(self) -> str:
        """The trace in one sentence."""
        many = f"{self.count} of {math.prod(self.shape)} numbers"
        where = f"the first at {list(self.index)} of {list(self.shape)}" if self.shape else "its only one"
        if self.sample is not None:
            where += f", sample {self.sample} of the batch"
        if self.step is not None:
            where += f", step {self.step}, variable {self.variable}"
        if self.phase in ("input", "weights"):
            return f"{self.tensor} held {many} that are not finite before the step, {where}"
        who = self.operation or "an operation that was not seen"
        place = " in ".join(each for each in (self.module, self.source) if each)
        who += f" ({place})" if place else ""
        if self.phase == "forward":
            return f"{who} made {many} that are not finite, {where}"
        reached = f"; {self.tensor} was the first parameter with such a gradient" if self.tensor else ""
        return (
            f"the gradient of {who} has {many} that are not finite, though the forward pass was sound, {where}{reached}"
        )


def trace_step(
    model: TimerXLForClassification, batch: Batch, config: TrainConfig, precision: torch.dtype
) -> Trace | None:
    """Replay a step and find where its first non-finite number was born; None if loss and gradients are finite.

    Weights and gradients stay as they are, and torch's generator advances as in any step: set it to what it was before
    the step that is to be explained.

    Args:
        model, batch, config, precision: as `loss_and_gradients` takes them.
    """
    watch = _Watch(model, batch)
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(partial(watch.enter, name)).remove)
            hooks.callback(module.register_forward_hook(watch.leave, always_call=True).remove)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                reach = partial(watch.reach, name)
                hooks.callback(parameter.register_post_accumulate_grad_hook(reach).remove)
        try:
            with watch:
                loss = loss_and_gradients(model, batch, config, precision)
            return watch.verdict(loss)
        finally:
            for parameter, gradient in before:
                parameter.grad = gradient


def first_bad_cell(batch: Batch) -> tuple[int, int, int] | None:
    """Sample, step and variable of the first cell that is not finite, in that order; observed or not, it does harm."""
    if _is_sound(batch.x_BLC):
        return None
    sample, step, variable = (~batch.x_BLC.isfinite()).nonzero()[0].tolist()
    return sample, step, variable


@dataclass(frozen=True)
class _Origin:
    order: int
    trace: Trace
    mask: bool
    """Whether it is −∞ on purpose."""
    rows: tuple[int, ...]
    """Samples that the tensor says are hit, if it goes by samples."""


@dataclass(frozen=True)
class _Call:
    """An operation and who asked for it."""

    operation: str
    module: str
    source: str


class _Watch(TorchDispatchMode):
    """Sees every operation, and keeps the origin of every memory that holds something non-finite."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.samples = len(batch)
        self.modules = [""]
        self.logits: Tensor | None = None
        self.reached: list[tuple[str, Tensor]] = []
        """Parameters in the order in which the backward pass came to them."""
        self.origins: dict[int, _Origin] = {}
        """By the address of the memory."""
        self.calls: dict[int, _Call] = {}
        """The operation that made each node of the backward pass, by the node's number."""
        self.weights = {shape for each in model.parameters() for shape in _shapes(each)}
        self.orders = 0
        for trace, tensor in _given(model, batch):
            self._born(tensor, trace, mask=False, rows=())

    def enter(self, name: str, *_: object) -> None:
        """The forward pass goes into a module."""
        self.modules.append(name)

    def leave(self, _module: nn.Module, _given: object, out: object) -> None:
        """The forward pass leaves a module; what leaves the last one are the logits."""
        self.modules.pop()
        if len(self.modules) == 1 and isinstance(out, Tensor):
            self.logits = out.detach()

    def reach(self, name: str, parameter: Tensor) -> None:
        """The backward pass has left a gradient in a parameter."""
        self.reached.append((name, parameter))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        node: Any = torch._C._current_autograd_node()
        call = None
        if node is None:
            call = _Call(_plain(func, args), self.modules[-1], _own_line())
            # The number of the node that was made for this operation just before; the first of several is its own.
            self.calls.setdefault(cast(Any, autograd)._get_sequence_nr() - 1, call)
        kind = _kind(func)
        if kind == "view":
            return func(*args, **kwargs)
        read = args[1:] if _name(func) in OVERWRITING else args
        given = list(_leaves((*read, *kwargs.values())))
        held = [origin for each in given if (origin := self.origin(each)) is not None]
        out = func(*args, **kwargs)
        for number, each in enumerate(filter(_is_judged, _leaves((out,)))):
            if kind != "write" or _is_whole(each):
                self.origins.pop(_memory(each), None)
            if number and PADDED.fullmatch(_name(func)):
                continue
            if kind != "raw" and not _is_sound(each):
                self._judge(each, given, held, call or self._backward(func, args, node), node is not None)
        return out

    def origin(self, each: object) -> _Origin | None:
        """The origin of what is non-finite in a tensor; None if nothing is, or nobody knows of it."""
        if not _is_judged(each) or not (origin := self.origins.get(_memory(each))) or _is_sound(each):
            return None
        return origin

    def _judge(self, out: Tensor, given: list[object], held: list[_Origin], call: _Call, backward: bool) -> None:
        bad = ~out.isfinite()
        handed_on = bool(held) or any(_holds_mask(each) for each in given if each is not out)
        mask = False
        if handed_on and not out.is_complex():
            worse = out.isnan() | (out == torch.inf)
            mask = not bool(worse.any())
            bad = bad if mask else worse
        if known := [origin for origin in held if mask or not origin.mask]:
            self._keep(out, min(known, key=lambda origin: (origin.mask, origin.order)))
            return
        phase: Phase = "backward" if backward else "forward"
        trace = Trace(phase, call.operation, call.module, call.source, None, *_extent(bad))
        # Weights have no samples, and a product of batches may have them anywhere.
        by_samples = tuple(out.shape) not in self.weights and call.operation != "matmul"
        self._born(out, trace, mask, _rows(bad, self.samples) if by_samples else ())

    def _born(self, tensor: Tensor, trace: Trace, mask: bool, rows: tuple[int, ...]) -> None:
        self.orders += 1
        self._keep(tensor, _Origin(self.orders, trace, mask, rows))

    def _keep(self, tensor: Tensor, origin: _Origin) -> None:
        """In memory that is written piece by piece the first fault stays."""
        known = self.origins.get(_memory(tensor))
        if known is None or known.mask:
            self.origins[_memory(tensor)] = origin

    def _backward(self, func: Any, args: Any, node: Any) -> _Call:
        """The forward operation whose gradient is computed, or the line of llueve's own that computes it."""
        asked = self.calls.get(node._sequence_nr(), _Call("", "", ""))
        written_out = isinstance(node, BackwardCFunction) or not asked.operation
        operation = _plain(func, args) if written_out else asked.operation
        return _Call(operation, asked.module, _own_line() or asked.source)

    def verdict(self, loss: Tensor) -> Trace | None:
        """The origin of the loss, or else of the first gradient in backward order, that is not finite."""
        if not _is_sound(loss):
            return self._explain(loss, "forward", None)
        for name, parameter in self.reached:
            if parameter.grad is not None and not _is_sound(parameter.grad):
                return self._explain(parameter.grad, "backward", name)
        return None

    def _explain(self, bad: Tensor, phase: Phase, name: str | None) -> Trace:
        origin = self.origin(bad)
        if origin is None:  # computed where no operation is seen
            return Trace(phase, "", "", "", name, *_extent(~bad.isfinite()))
        if origin.trace.phase in ("input", "weights"):
            return origin.trace
        reached = name if origin.trace.phase == "backward" else None
        return replace(origin.trace, tensor=reached, sample=self._sample(origin))

    def _sample(self, origin: _Origin) -> int | None:
        """The sample that the origin belongs to: as its tensor says, where the logits do not object."""
        rows = list(origin.rows)
        if origin.trace.phase == "forward" and self.logits is not None and len(self.logits) == self.samples:
            hit = (~self.logits.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
            if hit:
                rows = [row for row in rows if row in hit] or hit if len(hit) < self.samples else hit
        return rows[0] if rows and (len(rows) < self.samples or self.samples == 1) else None


def _given(model: nn.Module, batch: Batch) -> Iterator[tuple[Trace, Tensor]]:
    """Non-finite inputs, parameters and buffers, each with its trace."""
    if (cell := first_bad_cell(batch)) is not None:
        extent = _extent(~batch.x_BLC.isfinite())
        yield Trace("input", "", "", "", "x", *extent, *cell), batch.x_BLC
    if batch.features is not None and not _is_sound(batch.features):
        extent = _extent(~batch.features.isfinite())
        yield Trace("input", "", "", "", "features", *extent, extent[1][0]), batch.features
    if not _is_sound(batch.facts_BF):
        extent = _extent(~batch.facts_BF.isfinite())
        yield Trace("input", "", "", "", "facts", *extent, extent[1][0]), batch.facts_BF
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if _is_judged(tensor) and not _is_sound(tensor):
            extent = _extent(~tensor.detach().isfinite())
            yield Trace("weights", "", name.rpartition(".")[0], "", name, *extent), tensor


def _leaves(values: Iterable[object]) -> Iterator[object]:
    for each in values:
        if isinstance(each, (list, tuple)):
            yield from _leaves(each)
        else:
            yield each


def _is_judged(each: object) -> TypeGuard[Tensor]:
    return isinstance(each, Tensor) and (each.is_floating_point() or each.is_complex())


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_whole(tensor: Tensor) -> bool:
    """Whether it is all of its memory, and not a slice of it."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _is_sound(tensor: Tensor) -> bool:
    """Whether every element is finite: an extremum of numbers with a NaN among them is NaN."""
    if not tensor.numel():
        return True
    real = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    return all(map(math.isfinite, torch.stack(real.aminmax()).tolist()))  # one read from the device, not two


def _holds_mask(each: object) -> bool:
    if isinstance(each, Tensor):
        return each.is_floating_point() and each.numel() > 0 and bool((each == -torch.inf).any())
    return each == -math.inf


def _extent(bad: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, first True and number of them."""
    return tuple(bad.shape), tuple(bad.nonzero()[0].tolist()), int(bad.sum())


def _shapes(weight: Tensor) -> Iterator[tuple[int, ...]]:
    """Those in which a weight or its gradient occurs: itself, without the 1 of a convolution, and turned."""
    matrix = tuple(weight.shape[:-1] if weight.shape[2:] == (1,) else weight.shape)
    yield from (tuple(weight.shape), matrix, matrix[::-1])


def _rows(bad: Tensor, samples: int) -> tuple[int, ...]:
    """The samples with a True, if the first dimension can be that of samples, alone or joined with others."""
    if bad.ndim == 0 or bad.shape[0] % samples:
        return ()
    return tuple(bad.reshape(samples, -1).any(1).nonzero().flatten().tolist())


@lru_cache(maxsize=4096)
def _kind(func: Any) -> Literal["raw", "view", "write", "fresh"]:
    """Whether it leaves its result unwritten, looks at memory in another way, writes into it, or takes new memory."""
    if NOT_WRITTEN.fullmatch(_name(func)):
        return "raw"
    aliases = [each.alias_info for each in func._schema.returns]
    if all(each is None for each in aliases):
        return "fresh"
    return "write" if any(each is not None and each.is_write for each in aliases) else "view"


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


def _plain(func: Any, args: Any) -> str:
    """The operation as its user calls it: `_softmax.default` is softmax, a power of two a square."""
    name = _name(func).strip("_").removeprefix("native_").removesuffix("_for_cpu")
    if kernel := re.search(r"scaled_dot_product_(\w*attention)(_for_cpu)?(_backward)?", name):
        return kernel[1] + (kernel[3] or "")
    if name == "pow" and len(args) > 1 and not isinstance(args[1], Tensor) and args[1] == 2:
        return "square"
    return PLAIN_NAMES.get(name, name.removesuffix("_forward"))


def _own_line() -> str:
    """The innermost line of llueve's own code that is being executed; inside a backward pass only what that pass calls."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_name != "_engine_run_backward":
        file = frame.f_code.co_filename
        if file.startswith(OWN_CODE) and file != __file__:
            return f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
