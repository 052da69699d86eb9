"""The faults that are planted: what each damages, what its cause is called, where it is, and how the run should end.

`identical` ends bit for bit as the clean run, `without` as a run from which the same samples were left out from the same step
on, `sound` with everything finite and a validation loss like that of clean runs, `stopped` with the cause named.
Shapes: B batch, C variables, L steps, S sites, T times, F facts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from fault_course import TIMINGS, Outcome, Training, next_rows
from torch import Tensor

from llueve.model import attention, timer, timer_xl
from llueve.model.classifier import TimerXLForClassification
from llueve.stability import step as step_module
from llueve.training import course as course_module
from llueve.training.course import Course

NAN, INF = float("nan"), float("inf")
MIDDLE = TIMINGS[3:]
"""Where enough steps were accepted for a spike to be one."""

Random = np.random.Generator
Found = bool | None
"""Whether it was located; None where there is nothing to locate."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    area: str
    name: str
    cause: str
    ends: Literal["identical", "without", "sound", "stopped"]
    plant: Callable[[Training, Course, Random], Any]
    located: Callable[[Any, Outcome], Found]
    timings: tuple[str, ...] = TIMINGS
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    shape: dict[str, Any] = field(default_factory=dict)
    """Sizes that the kind needs."""
    train: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Training, Random], None] | None = None
    """What the kind needs around it, such as a layer that can be made to fail; harmless until the fault is planted."""
    drifts: bool = False
    """Whether it shows only some steps after it was planted."""
    answer: Literal["refused", "repaired"] = "refused"


# Where it is


def at_cells(truth: set[tuple[int, int, int]], found: Outcome) -> Found:
    """Exactly these cells, of site, time and variable."""
    return found.cells == truth


def at_facts(truth: set[tuple[int, int]], found: Outcome) -> Found:
    """Exactly these facts, of sample and number."""
    return found.explanation is not None and set(found.explanation.facts) == truth


def at_number(truth: tuple[str, tuple[int, ...]], found: Outcome) -> Found:
    """This number of the memory first."""
    return found.explanation is not None and found.explanation.numbers[:1] == (truth,)


def at_module(truth: str, found: Outcome) -> Found:
    """An operation of this module."""
    trace = None if found.explanation is None else found.explanation.trace
    return trace is not None and trace.module == truth


def at_operation(truth: str, found: Outcome) -> Found:
    """This operation."""
    trace = None if found.explanation is None else found.explanation.trace
    return trace is not None and trace.operation == truth


def at_samples(truth: set[tuple[int, int]], found: Outcome) -> Found:
    """Exactly these samples, of site and issue time."""
    return found.samples == truth


def in_reason(truth: str, found: Outcome) -> Found:
    """Named in what the guard said."""
    return truth in found.reason


def nowhere(_truth: Any, _found: Outcome) -> Found:
    """Nothing is left of it when it is looked for."""
    return None


# Damage to data


def _cell(training: Training, here: Course, random: Random) -> tuple[int, int, int]:
    """A cell of a window of the next step."""
    rows = next_rows(here)
    row, back = random.integers(len(rows)), random.integers(training.shape.context)
    return int(rows.site[row]), int(rows.end[row] - back), int(random.integers(training.shape.variables))


def _put_cells(training: Training, cells: set[tuple[int, int, int]], value: float) -> None:
    for cell in cells:
        training.windows.values_STC[cell] = value
        training.windows.observed_STC[cell] = True


def _seen(training: Training, here: Course, cells: set[tuple[int, int, int]]) -> set[tuple[int, int, int]]:
    """Those that a window of the next step holds."""
    rows = next_rows(here)
    context = training.shape.context
    return {
        (site, time, variable)
        for site, time, variable in cells
        if any(site == s and end - context < time <= end for s, end in zip(rows.site, rows.end, strict=True))
    }


def _planting(
    choose: Callable[[Training, Course, Random], set[tuple[int, int, int]]], value: float
) -> Callable[[Training, Course, Random], Any]:
    """One value in all cells that are chosen; the truth is those of them that the next step sees."""

    def plant(training: Training, here: Course, random: Random) -> Any:
        cells = choose(training, here, random)
        _put_cells(training, cells, value)
        return _seen(training, here, cells)

    return plant


def cell_of(value: float) -> Callable[[Training, Course, Random], Any]:
    """One cell."""
    return _planting(lambda training, here, random: {_cell(training, here, random)}, value)


def stretch_of(value: float, length: int) -> Callable[[Training, Course, Random], Any]:
    """A variable of one site over several steps."""

    def choose(training: Training, here: Course, random: Random) -> set[tuple[int, int, int]]:
        site, time, variable = _cell(training, here, random)
        return {(site, each, variable) for each in range(max(0, time - length + 1), time + 1)}

    return _planting(choose, value)


def row_of(value: float) -> Callable[[Training, Course, Random], Any]:
    """All variables of one site at one time."""

    def choose(training: Training, here: Course, random: Random) -> set[tuple[int, int, int]]:
        site, time, _ = _cell(training, here, random)
        return {(site, time, each) for each in range(training.shape.variables)}

    return _planting(choose, value)


def mark_of(value: float) -> Callable[[Training, Course, Random], Any]:
    """The same number in several cells that one window holds."""

    def choose(training: Training, here: Course, random: Random) -> set[tuple[int, int, int]]:
        rows = next_rows(here)
        row = int(random.integers(len(rows)))
        variable = int(random.integers(training.shape.variables))
        back = random.choice(training.shape.context, 3, replace=False)
        return {(int(rows.site[row]), int(rows.end[row] - each), variable) for each in back}

    return _planting(choose, value)


def unit_of(factor: float) -> Callable[[Training, Course, Random], Any]:
    """A variable of one site in another unit for a while."""

    def plant(training: Training, here: Course, random: Random) -> Any:
        rows = next_rows(here)
        row = int(random.integers(len(rows)))
        site, time = int(rows.site[row]), int(rows.end[row])
        variable = int(random.integers(training.shape.variables))
        first = max(0, time - training.shape.context)
        values = training.windows.values_STC
        cells = {(site, each, variable) for each in range(first, time + 1)}
        for cell in cells:
            values[cell] = factor * (1 + abs(values[cell]))
        training.windows.observed_STC[site, first : time + 1, variable] = True
        return _seen(training, here, cells)

    return plant


def fact_of(value: float) -> Callable[[Training, Course, Random], Any]:
    """A calendar number of one time."""

    def plant(training: Training, here: Course, random: Random) -> Any:
        rows = next_rows(here)
        time, fact = int(rows.end[random.integers(len(rows))]), int(random.integers(2))
        training.windows.calendar_TF[time, fact] = value
        return {(row, fact) for row in range(len(rows)) if rows.end[row] == time}

    return plant


def steady(training: Training, here: Course, random: Random) -> Any:
    """A variable of one window without any spread."""
    rows = next_rows(here)
    row, variable = int(random.integers(len(rows))), int(random.integers(training.shape.variables))
    site, end = int(rows.site[row]), int(rows.end[row])
    span = slice(end - training.shape.context + 1, end + 1)
    training.windows.values_STC[site, span, variable] = float(random.normal())
    training.windows.observed_STC[site, span, variable] = True
    return "div"


def unlimited(training: Training, _random: Random) -> None:
    """A model that takes levels of any size."""
    training.patches.enter_context(mock.patch("llueve.model.classifier.LARGEST", 1e38))


def without_epsilon(training: Training, _random: Random) -> None:
    """A normalisation that divides by the spread alone."""

    def spread(_: Any, variance_BC1: Tensor, count_BC1: Tensor) -> Tensor:
        return torch.sqrt(variance_BC1) + 1e-3 * (count_BC1 < 2)

    for each in (timer_xl.TimerXL, timer.Timer):
        training.patches.enter_context(mock.patch.object(each, "spread", spread))


def hard_mask(training: Training, _random: Random) -> None:
    """Attention that masks absent keys with −∞."""

    def plain(
        query: Tensor, key: Tensor, value: Tensor, delta_H: Tensor, variables: int, scale: float, absent_BT: Any
    ) -> Tensor:
        token_T = torch.arange(query.shape[2])
        same_TT = token_T[:, None] % variables == token_T % variables
        later_TT = token_T[:, None] // variables < token_T // variables
        score = query @ key.transpose(-1, -2) * scale + delta_H.to(query.dtype)[:, None, None] * same_TT
        score = score.masked_fill(later_TT, -INF)
        if absent_BT is not None and hard[0]:
            score = score.masked_fill(absent_BT[:, None, None, :], -INF)
        return score.softmax(-1) @ value.to(query.dtype)

    hard = [False]
    training.planted_flag = hard  # type: ignore[attr-defined]
    training.patches.enter_context(mock.patch.object(attention, "_attention", plain))


def empty_patch(training: Training, here: Course, random: Random) -> Any:
    """The oldest patches of one window without an observation, under attention that masks them with −∞."""
    rows = next_rows(here)
    row = int(random.integers(len(rows)))
    site, end = int(rows.site[row]), int(rows.end[row])
    first = end - training.shape.context + 1
    span = slice(first, first + training.shape.patch_length)
    training.windows.values_STC[site, span] = 0
    training.windows.observed_STC[site, span] = False
    training.planted_flag[0] = True  # type: ignore[attr-defined]
    return "softmax"


# Damage to parameters, moments, averages


def _trained(here: Course, random: Random, where: str = "") -> tuple[str, Tensor]:
    """A parameter that is trained now and used, and has several numbers."""
    unused = "encoder.head.", "encoder.lm_heads."
    found = [
        (name, each)
        for name, each in here.model.named_parameters()
        if each.requires_grad
        and each.numel() > 1
        and where in name
        and not ("knots" in name or (name.startswith(unused) and here.model.num_classes and _is_apart(here)))
    ]
    return found[int(random.integers(len(found)))]


def _is_apart(here: Course) -> bool:
    """Whether the forecasting head has no part in the logits."""
    return type(here.model.head).__name__ == "VariablesHead"


def _put(tensor: Tensor, value: float, random: Random) -> tuple[int, ...]:
    index = tuple(int(random.integers(size)) for size in tensor.shape)
    with torch.no_grad():
        tensor[index] = value
    return index


def weight_of(value: float, where: str = "") -> Callable[[Training, Course, Random], Any]:
    """One number of a parameter."""

    def plant(_training: Training, here: Course, random: Random) -> Any:
        name, parameter = _trained(here, random, where)
        return name, _put(parameter, value, random)

    return plant


def frozen_weight_of(value: float) -> Callable[[Training, Course, Random], Any]:
    """One number of the encoder, frozen or not."""

    def plant(_training: Training, here: Course, random: Random) -> Any:
        found = [
            each
            for each in here.model.named_parameters()
            if each[0].startswith(("encoder.blocks.attn_layers", "encoder.model.layers")) and each[0].endswith("weight")
        ]
        name, parameter = found[int(random.integers(len(found)))]
        return name, _put(parameter, value, random)

    return plant


def unused_weight(_training: Training, here: Course, random: Random) -> Any:
    """One number of the forecasting head, which has no part in the logits."""
    name = next(name for name, each in here.model.named_parameters() if each is here.model.encoder.forecasting.weight)
    return name, _put(here.model.encoder.forecasting.weight, NAN, random)


def page(_training: Training, here: Course, random: Random) -> Any:
    """Sixteen numbers in a row of one matrix."""
    name, parameter = next(
        each for each in (_trained(here, random) for _ in range(1000)) if each[1].ndim > 1 and each[1].numel() >= 32
    )
    start = int(random.integers(parameter.numel() - 16))
    with torch.no_grad():
        parameter.view(-1)[start : start + 16] = NAN
    return name, tuple(int(each) for each in np.unravel_index(start, parameter.shape))


def buffer_of(value: float) -> Callable[[Training, Course, Random], Any]:
    """One number of a stored table."""

    def plant(_training: Training, here: Course, random: Random) -> Any:
        name, table = next(iter(here.model.named_buffers()))
        return name, _put(table, value, random)

    return plant


def moment_of(which: Literal["exp_avg", "exp_avg_sq"], value: float) -> Callable[[Training, Course, Random], Any]:
    """One moment."""

    def plant(_training: Training, here: Course, random: Random) -> Any:
        name, parameter = _trained(here, random)
        return f"{name}.{which}", _put(here.optimiser.adamw.state[parameter][which], value, random)

    return plant


def average_of(value: float) -> Callable[[Training, Course, Random], Any]:
    """One number of the moving average."""

    def plant(_training: Training, here: Course, random: Random) -> Any:
        assert here.average is not None
        parts = list(here.average.named(here.model).items())
        name, part = parts[int(random.integers(len(parts)))]
        return name, _put(part, value, random)

    return plant


def stuck(training: Training, here: Course, random: Random) -> Any:
    """A weight that is damaged again at every step, as by a memory cell that does not hold."""
    name, parameter = _trained(here, random)
    index = _put(parameter, NAN, random)
    compute = course_module.loss_and_gradients

    def again(*arguments: Any) -> Tensor:
        with torch.no_grad():
            parameter[index] = NAN
        return compute(*arguments)

    training.patches.enter_context(mock.patch.object(course_module, "loss_and_gradients", again))
    return name, index


# Before the training starts


def corrupt_checkpoint(training: Training, random: Random) -> None:
    """A tensor of the pre-trained weights with a NaN."""
    found = [each for each in training.model.named_parameters() if "layers" in each[0] and each[0].endswith("weight")]
    name, parameter = found[int(random.integers(len(found)))]
    training.truth = name, _put(parameter, NAN, random)


def scaled_encoder(factor: float) -> Callable[[Training, Random], None]:
    """Pre-trained weights of another scale, as of another architecture."""

    def prepare(training: Training, _random: Random) -> None:
        with torch.no_grad():
            for name, parameter in training.model.encoder.named_parameters():
                if "conv" in name or "ffn" in name:
                    parameter.mul_(factor)

    return prepare


def scaled_head(factor: float) -> Callable[[Training, Random], None]:
    """A head whose weights are too large by a factor."""

    def prepare(training: Training, random: Random) -> None:
        generator = torch.Generator().manual_seed(int(random.integers(2**31)))
        with torch.no_grad():
            for name, parameter in training.model.head.named_parameters():
                if parameter.ndim > 1 and ("out" in name or "classifier.4" in name):
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * factor)

    return prepare


def as_it_is(training: Training, _here: Course, _random: Random) -> Any:
    """Nothing more than what was prepared."""
    return training.truth


# Faults of a step


@contextmanager
def _next_call(target: Any, name: str, change: Callable[..., Any]) -> Iterator[None]:
    """The next call of a function goes through `change`, all later ones do not."""
    function, done = getattr(target, name), []

    def once(*arguments: Any, **options: Any) -> Any:
        out = function(*arguments, **options)
        if done:
            return out
        done.append(None)
        return change(out, *arguments)

    with mock.patch.object(target, name, once):
        yield


def _layer(here: Course, random: Random) -> tuple[str, torch.nn.Module]:
    number = int(random.integers(here.model.encoder.depth))
    layer = here.model.encoder.stack[number + 1]
    return next(name for name, each in here.model.named_modules() if each is layer), layer


def activation_of(value: float) -> Callable[[Training, Course, Random], Any]:
    """One number of a layer's output, once."""

    def plant(_training: Training, here: Course, random: Random) -> Any:
        name, layer = _layer(here, random)

        def spoil(_module: Any, _given: Any, out: Tensor) -> Tensor:
            handle.remove()
            index = tuple(int(random.integers(size)) for size in out.shape)
            flag = torch.zeros(out.shape, dtype=torch.bool)
            flag[index] = True
            return torch.where(flag, value, out)

        handle = layer.register_forward_hook(spoil)
        return name

    return plant


def gradient_of(value: float) -> Callable[[Training, Course, Random], Any]:
    """One number of a gradient, once."""

    def plant(training: Training, here: Course, random: Random) -> Any:
        name, parameter = _trained(here, random)

        def spoil(loss: Tensor, *_: Any) -> Tensor:
            assert parameter.grad is not None
            _put(parameter.grad, value, random)
            return loss

        training.patches.enter_context(_next_call(course_module, "loss_and_gradients", spoil))
        return name

    return plant


def gradients_times(factor: float) -> Callable[[Training, Course, Random], Any]:
    """All gradients times a factor, once."""

    def plant(training: Training, here: Course, _random: Random) -> Any:
        def spoil(loss: Tensor, *_: Any) -> Tensor:
            for parameter in here.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            return loss

        training.patches.enter_context(_next_call(course_module, "loss_and_gradients", spoil))

    return plant


def loss_of(value: float) -> Callable[[Training, Course, Random], Any]:
    """The loss, once."""

    def plant(training: Training, _here: Course, _random: Random) -> Any:
        spoil = mock.Mock(side_effect=lambda loss, *_: torch.full_like(loss, value))
        training.patches.enter_context(_next_call(course_module, "loss_and_gradients", spoil))

    return plant


def rate_of(change: Callable[[float], float]) -> Callable[[Training, Course, Random], Any]:
    """The learning rate of one group, once, after it was set."""

    def plant(training: Training, here: Course, random: Random) -> Any:
        group = here.optimiser.adamw.param_groups[int(random.integers(len(here.optimiser.adamw.param_groups)))]

        def spoil(loss: Tensor, *_: Any) -> Tensor:
            group["lr"] = change(group["lr"])
            return loss

        training.patches.enter_context(_next_call(course_module, "loss_and_gradients", spoil))

    return plant


def batch_of(value: float) -> Callable[[Training, Course, Random], Any]:
    """One number of a batch in memory, once; the data are sound."""

    def plant(training: Training, here: Course, random: Random) -> Any:
        def spoil(batch: Any, *_: Any) -> Any:
            _put(batch.x_BLC, value, random)
            return batch

        training.patches.enter_context(_next_call(here.loader, "take", spoil))

    return plant


def _content_of(training: Training, here: Course, random: Random) -> tuple[tuple[int, int], Tensor]:
    """A sample of the next step, and what the model is given of it."""
    rows = next_rows(here)
    row = int(random.integers(len(rows)))
    x_LC = torch.from_numpy(training.windows.batch(rows[[row]])[0][0]).T
    return (int(rows.site[row]), int(rows.end[row])), x_LC


def sample_that_fails(training: Training, here: Course, random: Random) -> Any:
    """The logits of one sample are not finite, whenever it is seen."""
    key, wanted_LC = _content_of(training, here, random)
    forward = TimerXLForClassification.forward

    def spoiled(model: Any, x_BLC: Tensor, *rest: Any) -> Tensor:
        row_B = (x_BLC == wanted_LC).flatten(1).all(1)
        return torch.where(row_B[:, None], NAN, forward(model, x_BLC, *rest))

    training.patches.enter_context(mock.patch.object(TimerXLForClassification, "forward", spoiled))
    return {key}


def sample_that_explodes(factor: float) -> Callable[[Training, Course, Random], Any]:
    """The gradient of one sample is enormous, whenever it is seen; the loss is as usual."""

    def plant(training: Training, here: Course, random: Random) -> Any:
        _, wanted_LC = _content_of(training, here, random)
        forward = TimerXLForClassification.forward

        def spoiled(model: Any, x_BLC: Tensor, *rest: Any) -> Tensor:
            logits_BK = forward(model, x_BLC, *rest)
            row_B = (x_BLC == wanted_LC).flatten(1).all(1)
            if logits_BK.requires_grad:
                logits_BK.register_hook(lambda grad: torch.where(row_B[:, None], grad * factor, grad))
            return logits_BK

        training.patches.enter_context(mock.patch.object(TimerXLForClassification, "forward", spoiled))

    return plant


def naive_loss(kind: Literal["log", "focal"]) -> Callable[[Training, Course, Random], Any]:
    """From now on a loss that fails at the edge."""

    def plant(training: Training, _here: Course, _random: Random) -> Any:
        def loss(logits_BK: Tensor, y_B: Tensor, *_: Any) -> Tensor:
            sure_BK = logits_BK + torch.nn.functional.one_hot(1 - y_B, 2) * 200.0
            p_B = sure_BK.softmax(-1).gather(1, y_B[:, None]).squeeze(1)
            if kind == "log":
                return -p_B.log().mean()
            return (p_B**0.5).mean()  # its gradient at 0 is infinite

        training.patches.enter_context(mock.patch.object(step_module, "classification_loss", loss))
        return "log" if kind == "log" else "pow"

    return plant


# Precision, rates, random state, features


def half_range(kind: Literal["overflow", "underflow"]) -> Callable[[Training, Random], None]:
    """Rounded products of the feed-forward that can be made to leave the range of half precision."""

    def prepare(training: Training, _random: Random) -> None:
        training.planted_flag = on = [False]  # type: ignore[attr-defined]
        wide = training.shape.feed_forward

        def given(module: Any) -> Callable[..., Tensor]:
            plain = module.linear

            def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
                out: Tensor = plain(x, weight, bias)
                if not on[0] or x.dtype != torch.bfloat16 or weight.shape[0] != wide:
                    return out
                if kind == "overflow":  # what float16 does beyond 65504, and bfloat16 beyond 3.39e38
                    return out * 1e38 * 1e38
                return out + 1 / (out * 1e-38 * 1e-38).abs()

            return linear

        for module in (timer_xl, timer):
            training.patches.enter_context(mock.patch.object(module, "linear", given(module)))

    return prepare


def out_of_range(training: Training, here: Course, _random: Random) -> Any:
    """From now on rounded products leave the range."""
    training.planted_flag[0] = True  # type: ignore[attr-defined]
    inner = "" if training.shape.architecture == "timer_xl" else ".ffn_layer"
    first = here.model.encoder.stack[1]
    return next(name for name, each in here.model.named_modules() if each is first) + inner


def rates_times(factor: float) -> Callable[[Training, Course, Random], Any]:
    """From now on, until the phase ends, rates that are too high by a factor."""

    def plant(_training: Training, here: Course, _random: Random) -> Any:
        here.optimiser = replace(here.optimiser, base_rates=tuple(each * factor for each in here.optimiser.base_rates))

    return plant


def without_warmup(training: Training, _random: Random) -> None:
    """Rates that a warm-up bears and no start from the whole rates does, found by trying; the training has no warm-up."""
    for rate in (0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4):
        ends = []
        for steps in (0, 50):
            tried = Training(training.shape, training.seed, training.precision, **_at_once(rate, steps))
            ends.append(tried.run())
        cold, warm = ends
        losses = [line["train_loss"] for line in warm.history]
        if cold.refused_at and not warm.refused_at and max(losses) < 1.5:
            training.__init__(training.shape, training.seed, training.precision, **_at_once(rate, 0))  # type: ignore[misc]
            training.reference_loss = warm.validation_loss
            return
    training.impossible = True


def _at_once(rate: float, warmup_steps: int) -> dict[str, Any]:
    return {
        "encoder_learning_rate": rate,
        "head_learning_rate": rate,
        "warmup_steps": warmup_steps,
        "phases": [{"name": "all", "epochs": 3}],
    }


def drawn(_training: Training, _here: Course, random: Random) -> Any:
    """Numbers drawn from the generator by something else."""
    torch.rand(int(random.integers(1, 9)))


def reseeded(_training: Training, _here: Course, random: Random) -> Any:
    """The generator set anew by something else."""
    torch.manual_seed(int(random.integers(2**31)))


def kinds(held_out: bool = False) -> tuple[Fault, ...]:
    """Every kind; with `held_out` at other sizes of the damage than those that were looked at while llueve was made."""

    def v(developed: Any, other: Any) -> Any:
        return other if held_out else developed

    return (
        Fault("data", "missing cell", "missing_input", "without", cell_of(NAN), at_cells),
        Fault("data", "infinite cell", "infinite_input", "without", cell_of(INF), at_cells),
        Fault("data", "minus infinite cell", "infinite_input", "without", cell_of(-INF), at_cells),
        Fault("data", "lagged column, first steps", "missing_input", "without", stretch_of(NAN, v(4, 6)), at_cells),
        Fault("data", "whole row missing", "missing_input", "without", row_of(NAN), at_cells),
        Fault("data", "missing fact", "missing_input", "without", fact_of(NAN), at_facts, shape={"head": "variables"}),
        Fault(
            "data", "infinite fact", "infinite_input", "without", fact_of(INF), at_facts, shape={"head": "variables"}
        ),
        Fault(
            "data",
            "outlier without limit",
            "outlier_input",
            "without",
            cell_of(v(1e30, -4e27)),
            at_cells,
            prepare=unlimited,
            shape={"head": "variables"},
        ),
        Fault(
            "data",
            "mark without limit",
            "sentinel_or_unit",
            "without",
            mark_of(v(-1e30, 7e26)),
            at_cells,
            prepare=unlimited,
            shape={"head": "variables"},
        ),
        Fault(
            "data",
            "unit without limit",
            "sentinel_or_unit",
            "without",
            unit_of(v(1e28, -3e26)),
            at_cells,
            prepare=unlimited,
            shape={"head": "variables"},
        ),
        Fault(
            "data",
            "constant window without ε",
            "constant_window",
            "without",
            steady,
            at_operation,
            prepare=without_epsilon,
            shape={"missing": 0.0, "instance_norm": True},
        ),
        Fault(
            "data",
            "empty attention row",
            "empty_attention_row",
            "without",
            empty_patch,
            at_operation,
            prepare=hard_mask,
            shape={"missing": 0.0},
        ),
        Fault("parameters", "NaN in a weight", "corrupt_weights", "identical", weight_of(NAN), at_number),
        Fault(
            "parameters",
            "infinity in a weight of the head",
            "corrupt_weights",
            "identical",
            weight_of(INF, "head."),
            at_number,
        ),
        Fault(
            "parameters",
            "NaN in a layer, frozen or not",
            "corrupt_weights",
            "identical",
            frozen_weight_of(NAN),
            at_number,
        ),
        Fault(
            "parameters",
            "NaN in an unused weight",
            "corrupt_weights",
            "identical",
            unused_weight,
            at_number,
            drifts=True,
            shape={"head": "variables"},
        ),
        Fault("parameters", "sixteen NaN in a row", "corrupt_weights", "identical", page, at_number),
        Fault("parameters", "flipped exponent", "damaged_weights", "identical", weight_of(v(3e33, -7e20)), at_number),
        Fault(
            "parameters",
            "absurd but finite",
            "damaged_weights",
            "identical",
            weight_of(v(-2e7, 6e9)),
            at_number,
            drifts=True,
        ),
        Fault(
            "parameters",
            "NaN in a stored table",
            "corrupt_buffer",
            "identical",
            buffer_of(NAN),
            at_number,
            shape={"head": "variables"},
        ),
        Fault(
            "parameters",
            "NaN in a checkpoint's tensor",
            "corrupt_weights",
            "stopped",
            as_it_is,
            at_number,
            TIMINGS[:1],
            prepare=corrupt_checkpoint,
        ),
        Fault(
            "parameters",
            "pre-trained weights of another scale",
            "encoder_weights",
            "stopped",
            as_it_is,
            nowhere,
            TIMINGS[:1],
            prepare=scaled_encoder(v(1e28, 3e24)),
        ),
        Fault(
            "parameters",
            "head weights × 1000",
            "head_initialisation",
            "sound",
            as_it_is,
            nowhere,
            TIMINGS[:1],
            prepare=scaled_head(v(1000.0, 4000.0)),
        ),
        Fault("activations", "NaN, once", "transient", "identical", activation_of(NAN), nowhere),
        Fault("activations", "infinity, once", "transient", "identical", activation_of(INF), nowhere),
        Fault("activations", "minus infinity, once", "transient", "identical", activation_of(-INF), nowhere),
        Fault("activations", "one sample, always", "few_samples", "without", sample_that_fails, at_samples),
        Fault("gradients", "NaN, once", "transient", "identical", gradient_of(NAN), in_reason),
        Fault("gradients", "infinity, once", "transient", "identical", gradient_of(-INF), in_reason),
        Fault(
            "gradients", "all × 1e12, once", "transient", "identical", gradients_times(v(1e12, 1e15)), nowhere, MIDDLE
        ),
        Fault(
            "gradients",
            "one sample, always, no clipping",
            "exploding_gradient",
            "sound",
            sample_that_explodes(v(1e24, 3e21)),
            nowhere,
            train={"clip_norm": 1e38},
        ),
        Fault(
            "moments", "NaN in a first moment", "poisoned_moments", "identical", moment_of("exp_avg", NAN), at_number
        ),
        Fault(
            "moments",
            "absurd first moment",
            "poisoned_moments",
            "identical",
            moment_of("exp_avg", v(1e9, -5e3)),
            at_number,
        ),
        Fault(
            "moments",
            "negative second moment",
            "poisoned_moments",
            "identical",
            moment_of("exp_avg_sq", v(-1e-3, -1e-9)),
            at_number,
        ),
        Fault(
            "moments",
            "infinite second moment",
            "poisoned_moments",
            "identical",
            moment_of("exp_avg_sq", INF),
            at_number,
        ),
        Fault(
            "moments",
            "absurd second moment",
            "poisoned_moments",
            "identical",
            moment_of("exp_avg_sq", v(1e12, 50.0)),
            at_number,
        ),
        Fault("rate", "NaN, once", "learning_rate", "identical", rate_of(lambda _: NAN), nowhere),
        Fault("rate", "negative, once", "learning_rate", "identical", rate_of(lambda rate: -rate), nowhere),
        Fault("rate", "× 1e6, once", "learning_rate", "identical", rate_of(lambda rate: rate * v(1e6, 30.0)), nowhere),
        Fault(
            "rate",
            "× 1e4, configured",
            "learning_rate",
            "sound",
            rates_times(v(1e4, 3e3)),
            nowhere,
            (TIMINGS[0], TIMINGS[2]),
            drifts=True,
        ),
        Fault("loss", "NaN, once", "transient", "identical", loss_of(NAN), nowhere),
        Fault("loss", "infinity, once", "transient", "identical", loss_of(INF), nowhere),
        Fault("loss", "log of nothing", "loss_edge", "stopped", naive_loss("log"), at_operation, TIMINGS[:4]),
        Fault("loss", "power at the edge", "loss_edge", "stopped", naive_loss("focal"), at_operation, TIMINGS[:4]),
        Fault(
            "rate",
            "no warm-up",
            "missing_warmup",
            "sound",
            as_it_is,
            nowhere,
            TIMINGS[:1],
            prepare=without_warmup,
            drifts=True,
        ),
        Fault("random state", "drawn from", "", "identical", drawn, nowhere, answer="repaired"),
        Fault("random state", "set anew", "", "identical", reseeded, nowhere, answer="repaired"),
        Fault("averages", "NaN", "poisoned_average", "identical", average_of(NAN), at_number),
        Fault("averages", "infinity", "poisoned_average", "identical", average_of(INF), at_number),
        Fault("averages", "absurd", "poisoned_average", "identical", average_of(v(1e20, -3e8)), at_number),
        Fault(
            "precision",
            "overflow of half precision",
            "half_precision",
            "sound",
            out_of_range,
            at_module,
            precisions=("bfloat16",),
            prepare=half_range("overflow"),
        ),
        Fault(
            "precision",
            "underflow of half precision",
            "half_precision",
            "sound",
            out_of_range,
            at_module,
            precisions=("bfloat16",),
            prepare=half_range("underflow"),
        ),
        Fault("memory", "NaN in a batch, once", "transient", "identical", batch_of(NAN), nowhere),
        Fault("memory", "infinity in a batch, once", "transient", "identical", batch_of(-INF), nowhere),
        Fault("memory", "a weight that does not hold", "corrupt_weights", "stopped", stuck, at_number),
    )
