"""Find the first non-finite number of a step: replay the step and watch every operation, forward and backward.

A non-finite result has an origin. If an argument was not finite, it is the origin of that argument; otherwise it is the
operation itself. Origins belong to memory, so the non-finite loss or gradient names its own origin. A number that was
never used, or was replaced later, is not reported. Of several origins the earliest counts: inputs, then weights, then
operations in their order.

NaN and +∞ are faults. −∞ is a fault if an operation makes it from finite arguments (log 0, overflow). Written as a
constant, or passed on from an argument, it is a mask. If an operation turns a mask into NaN or +∞, that operation is the
origin: for a row of attention with nothing to attend to, the softmax.
A watched step costs about four plain steps in a model of width 16, and one and a half at width 256.
"""

import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor, autograd, nn
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode

from llueve.config import TrainConfig
from llueve.model.batch import Batch
from llueve.model.classifier import TimerXLForClassification
from llueve.model.heads import Answer
from llueve.stability.diagnosis.origin import Phase, Trace
from llueve.stability.diagnosis.sample_rows import at_fault, piece_rows
from llueve.step.gradients import loss_and_gradients

OWN_CODE = str(Path(__file__).parents[2]) + os.sep
PLAIN_NAMES = {"addmm": "linear", "mm": "linear", "bmm": "matmul", "baddbmm": "matmul", "to_copy": "to"}
"""Usual names of the matrix products; other operations keep their own."""
NOT_WRITTEN = re.compile(r"(new_)?empty(_like|_strided|_permuted)?|lift_fresh")
"""Operations that return memory without computing it: its content is judged after it is written."""
PADDED = re.compile(r"_scaled_dot_product_\w+_attention")
"""Operations of which only the first result is used: accelerators pad the logarithms beside it with +∞."""
OVERWRITING = ("copy_", "fill_", "zero_")
"""In-place operations that do not read the old content."""


def trace_step(
    model: TimerXLForClassification, batch: Batch, config: TrainConfig, precision: torch.dtype
) -> Trace | None:
    """Replay a step and find the origin of its first non-finite number; None if loss and gradients are finite.

    Weights and gradients are unchanged afterwards. The random generator advances as in any step, so set it first to its
    state before the step. The arguments are those of `loss_and_gradients`.
    """
    watch = _Watch(model, batch, config.batch_size)
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(partial(watch.enter, name)).remove)
            hooks.callback(module.register_forward_hook(watch.leave, always_call=True).remove)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                reached = partial(watch.reached.__setitem__, name)
                hooks.callback(parameter.register_post_accumulate_grad_hook(reached).remove)
        try:
            with watch:
                loss = loss_and_gradients(model, batch, config, precision)
            return watch.verdict(loss)
        finally:
            for parameter, gradient in before:
                parameter.grad = gradient


class _Origin(NamedTuple):
    order: int
    trace: Trace
    mask: bool
    """True if it is −∞ on purpose."""
    rows: tuple[int, ...]
    """Samples with a non-finite number, if the tensor has one row per sample."""


class _Call(NamedTuple):
    operation: str
    module: str
    source: str


class _Watch(TorchDispatchMode):
    """Observe every operation, and record the origin of each memory that holds a non-finite number."""

    def __init__(self, model: TimerXLForClassification, batch: Batch, piece_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.batch, self.pieces, self.done = batch, list(piece_rows(model, batch, piece_size)), 0
        """Pieces of the batch whose backward pass has begun."""
        self.modules = [""]
        self.logits: list[Tensor] = []
        """Logits of each piece of the batch."""
        self.reached: dict[str, Tensor] = {}
        """Parameters by name, in the order in which the backward pass wrote their gradients."""
        self.origins: dict[int, _Origin] = {}
        """Origin by the address of the memory."""
        self.calls: dict[int, _Call] = {}
        """Operation that made each node of the backward pass, by the number of the node."""
        self.weights = {shape for each in model.parameters() for shape in _shapes(each)}
        self.order = count()
        for trace, tensor in _given(model, batch):
            self._keep(tensor, _Origin(next(self.order), trace, False, ()))

    def enter(self, name: str, *_: object) -> None:
        self.modules.append(name)

    def leave(self, _module: nn.Module, _given: object, out: object) -> None:
        self.modules.pop()
        if isinstance(out, Answer):
            self.logits.append(out.logits_BK.detach())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        node: Any = torch._C._current_autograd_node()
        call = None
        if node is not None:
            self.done = len(self.logits)
        else:
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
        """The origin of the non-finite numbers of a tensor; None if all are finite, or it is unknown."""
        if not _is_judged(each) or not (origin := self.origins.get(_memory(each))) or _is_sound(each):
            return None
        return origin

    def _judge(self, out: Tensor, given: list[object], held: list[_Origin], call: _Call, backward: bool) -> None:
        bad = ~out.isfinite()
        passed_on = bool(held) or any(_holds_mask(each) for each in given if each is not out)
        mask = False
        if passed_on and not out.is_complex():
            worse = out.isnan() | (out == torch.inf)
            mask = not bool(worse.any())
            bad = bad if mask else worse
        if known := [origin for origin in held if mask or not origin.mask]:
            self._keep(out, min(known, key=lambda origin: (origin.mask, origin.order)))
            return
        phase: Phase = "backward" if backward else "forward"
        trace = Trace(phase, call.operation, call.module, call.source, None, *_extent(bad))
        piece = self.pieces[min(len(self.logits) - 1 if backward else self.done, len(self.pieces) - 1)]
        # Gradients of weights have no samples.
        is_weight = backward and tuple(out.shape) in self.weights
        rows = () if is_weight else piece.of(bad, call.operation, call.module)
        self._keep(out, _Origin(next(self.order), trace, mask, rows))

    def _keep(self, tensor: Tensor, origin: _Origin) -> None:
        """Record an origin; in memory that is written in pieces the first fault stays."""
        known = self.origins.get(_memory(tensor))
        if known is None or known.mask:
            self.origins[_memory(tensor)] = origin

    def _backward(self, func: Any, args: Any, node: Any) -> _Call:
        """The forward operation whose gradient is computed, or the line of llueve that computes it."""
        asked = self.calls.get(node._sequence_nr(), _Call("", "", ""))
        written_out = isinstance(node, BackwardCFunction) or not asked.operation
        operation = _plain(func, args) if written_out else asked.operation
        return _Call(operation, asked.module, _own_line() or asked.source)

    def verdict(self, loss: Tensor) -> Trace | None:
        """The origin of a non-finite loss, or else of the first non-finite gradient in backward order."""
        if not _is_sound(loss):
            return self._explain(loss, "forward", None)
        for name, parameter in self.reached.items():
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
        """The sample of the origin, from its tensor and the non-finite logits."""
        rows, samples, scenes = list(origin.rows), len(self.batch), self.batch.scenes
        if origin.trace.phase == "forward" and self.logits:
            hit = (~torch.cat(self.logits).isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
            if hit:
                rows = at_fault(rows, hit, None if scenes is None else scenes.scene_B, samples)
        return rows[0] if rows and (len(rows) < samples or samples == 1) else None


def _given(model: nn.Module, batch: Batch) -> Iterator[tuple[Trace, Tensor]]:
    """Non-finite inputs, parameters and buffers, each with its trace."""
    position_B2 = None if batch.scenes is None else batch.scenes.position_B2
    future_BC = None if batch.future is None else batch.future.future_BC
    inputs = (("x", batch.x_BLC), ("features", batch.features), ("facts", batch.facts_BF))
    next_BCNP, rain_BNR = (None, None) if batch.days is None else (batch.days.next_BCNP, batch.days.rain_BNR)
    targets = (("future", future_BC), ("next day", next_BCNP), ("rain", rain_BNR))
    for name, given in (*inputs, ("position", position_B2), *targets):
        if given is not None and not _is_sound(given):
            shape, index, number = _extent(~given.isfinite())
            yield Trace("input", "", "", "", name, shape, index, number, *index[: 3 if name == "x" else 1]), given
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
    """True if the tensor is all of its memory, not a slice."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _is_sound(tensor: Tensor) -> bool:
    """True if every element is finite; the extremes of numbers with a NaN among them are NaN."""
    if not tensor.numel():
        return True
    real = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    return all(map(math.isfinite, torch.stack(real.aminmax()).tolist()))  # one read from the device, not two


def _holds_mask(each: object) -> bool:
    if isinstance(each, Tensor):
        return each.is_floating_point() and each.numel() > 0 and bool((each == -torch.inf).any())
    return each == -math.inf


def _extent(bad: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Shape, index of the first True, and number of True."""
    return tuple(bad.shape), tuple(bad.nonzero()[0].tolist()), int(bad.sum())


def _shapes(weight: Tensor) -> Iterator[tuple[int, ...]]:
    """Shapes of a weight or its gradient: as it is, without the 1 of a convolution, and transposed."""
    matrix = tuple(weight.shape[:-1] if weight.shape[2:] == (1,) else weight.shape)
    yield from (tuple(weight.shape), matrix, matrix[::-1])


@lru_cache(maxsize=4096)
def _kind(func: Any) -> Literal["raw", "view", "write", "fresh"]:
    """The effect of an operation on memory: unwritten memory, a view, a write in place, or new memory."""
    if NOT_WRITTEN.fullmatch(_name(func)):
        return "raw"
    aliases = [each.alias_info for each in func._schema.returns]
    if all(each is None for each in aliases):
        return "fresh"
    return "write" if any(each is not None and each.is_write for each in aliases) else "view"


def _name(func: Any) -> str:
    return str(func._schema.name).removeprefix("aten::")


def _plain(func: Any, args: Any) -> str:
    """The usual name of an operation: `_softmax.default` is softmax, a power of two is square."""
    name = _name(func).strip("_").removeprefix("native_").removesuffix("_for_cpu")
    if kernel := re.search(r"scaled_dot_product_(\w*attention)(_for_cpu)?(_backward)?", name):
        return kernel[1] + (kernel[3] or "")
    if name == "pow" and len(args) > 1 and not isinstance(args[1], Tensor) and args[1] == 2:
        return "square"
    return PLAIN_NAMES.get(name, name.removesuffix("_forward"))


def _own_line() -> str:
    """The innermost line of llueve that is running; in a backward pass only lines that the pass calls."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_name != "_engine_run_backward":
        file = frame.f_code.co_filename
        if file.startswith(OWN_CODE) and file != __file__:
            return f"{Path(file).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
