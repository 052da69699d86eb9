"""Faults of a step's computation: activations, gradients, loss, precision, and a batch in memory.

Shapes: B batch, C variables, K classes, L steps.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.faults.fault import INF, NAN, TIMINGS, VARIABLES_HEAD, Fault, Size
from benchmarks.faults.scene import Random, Scene, put
from benchmarks.faults.trial import Trial
from llueve.model import timer, timer_xl
from llueve.model.batch import Batch
from llueve.model.heads import Answer
from llueve.step import gradients as step_module


def activation(value: float, scene: Scene) -> Any:
    """Damage one number of a layer's output, once. The last layer across sites may have places that nothing uses."""
    model = scene.model
    layers = list(model.encoder.stack[1 : model.encoder.depth + 1])
    if scene.trial.shape.together:
        layers += model.head.sites.layers[:-1]
    layer = layers[int(scene.random.integers(len(layers)))]

    def spoil(_module: Any, _given: Any, out: Tensor) -> Tensor:
        handle.remove()
        flag = torch.zeros(out.shape, dtype=torch.bool)
        put(flag, True, scene.random)
        return torch.where(flag, value, out)

    handle = layer.register_forward_hook(spoil)
    return scene.name_of(layer)


def gradient(value: float, scene: Scene) -> Any:
    """Damage one number of a gradient, once."""
    name, chosen = scene.trained()
    scene.next_gradients(lambda each: put(each.grad, value, scene.random) if each is chosen else None)
    return name


def gradients(factor: float, scene: Scene) -> Any:
    """Multiply all gradients, once. After few steps, a factor below 1e12 is clipped instead of refused."""
    scene.next_gradients(lambda each: each.grad.mul_(factor))


def batch(value: float, scene: Scene) -> Any:
    """Damage one number of a batch in memory, once; the data are sound."""
    scene.next_batch(lambda batch: put(batch.x_BLC, value, scene.random))


def target(value: float, scene: Scene) -> Any:
    """Damage one number that the forecasting loss compares with, once, in a window with an outcome."""

    def spoil(batch: Batch) -> None:
        row, variable = (batch.y_B >= 0).nonzero()[0], scene.variable()
        batch.future.future_BC[row, variable] = value
        batch.future.future_known_BC[row, variable] = True

    scene.next_batch(spoil)


def one_sample(change: Callable[[Tensor, Tensor], Tensor], scene: Scene) -> Any:
    """Change the logits (B, K) of one sample of the next step in every forward pass; `change` gets them and the rows (B, 1)."""
    site, end = scene.window(answered=True)
    at = scene.trial.training.find(site, end)
    wanted_LC = torch.from_numpy(scene.trial.windows.batch(scene.trial.training[at])[0][0]).T
    answer = step_module.answer

    def spoiled(model: Any, batch: Batch) -> Answer:
        row_B, found = (batch.x_BLC == wanted_LC).flatten(1).all(1), answer(model, batch)
        return found._replace(logits_BK=change(found.logits_BK, row_B[:, None]))

    scene.trial.patch(step_module, "answer", spoiled)
    return {(site, end)}


def not_finite(logits_BK: Tensor, row_B1: Tensor) -> Tensor:
    """Logits that are NaN in some rows."""
    return torch.where(row_B1, NAN, logits_BK)


def explosive(factor: float, logits_BK: Tensor, row_B1: Tensor) -> Tensor:
    """Logits whose gradient is enormous in some rows; the loss stays as usual."""
    if logits_BK.requires_grad:
        logits_BK.register_hook(lambda grad: torch.where(row_B1, grad * factor, grad))
    return logits_BK


def naive_loss(kind: Literal["log", "pow"], scene: Scene) -> Any:
    """Replace the loss by one without safeguards, which fails for a probability of zero."""

    def edge(logits_BK: Tensor, y_B: Tensor, *_: Any) -> Tensor:
        sure_BK = logits_BK + torch.nn.functional.one_hot(1 - y_B, 2) * 200.0
        p_B = sure_BK.softmax(-1).gather(1, y_B[:, None]).squeeze(1)
        if kind == "log":
            return -p_B.log()
        return p_B**0.5  # its gradient at 0 is infinite

    scene.trial.patch(step_module, "sample_losses", edge)
    return kind


def half_range(kind: Literal["overflow", "underflow"], trial: Trial, _random: Random) -> None:
    """Rounded products of the feed-forward that leave the range of half precision once the fault is active."""
    wide = trial.shape.feed_forward

    def ranged(module: Any) -> Callable[..., Tensor]:
        plain = module.linear

        def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            out: Tensor = plain(x, weight, bias)
            if not trial.active or x.dtype != torch.bfloat16 or weight.shape[0] != wide:
                return out
            if kind == "overflow":  # as float16 overflows beyond 65504, and bfloat16 beyond 3.39e38
                return out * 1e38 * 1e38
            return out + 1 / (out * 1e-38 * 1e-38).abs()

        return linear

    for module in (timer_xl, timer):
        trial.patch(module, "linear", ranged(module))


def out_of_range(scene: Scene) -> Any:
    """Let rounded products leave the range in all later steps."""
    scene.trial.active = True
    inner = "" if scene.trial.shape.architecture == "timer_xl" else ".ffn_layer"
    return scene.name_of(scene.model.encoder.stack[1]) + inner


def faults(size: Size) -> tuple[Fault, ...]:
    """The kinds of this file."""
    once = partial(Fault, cause="transient")
    edge = partial(Fault, "loss", cause="loss_edge", place="operation", ends="stopped", timings=TIMINGS[:4])
    half = partial(Fault, "precision", cause="half_precision", plant=out_of_range, place="module", ends="sound")
    rounded = partial(half, precisions=("bfloat16",))
    targets = partial(once, "memory", shape={**VARIABLES_HEAD, "forecast_weight": 0.3})
    fails = partial(one_sample, not_finite)
    explodes = partial(one_sample, partial(explosive, size(1e24, 3e21)))
    always = partial(Fault, "gradients", "one sample, always, no clipping", "exploding_gradient", explodes)
    return (
        once("activations", "NaN, once", plant=partial(activation, NAN)),
        once("activations", "infinity, once", plant=partial(activation, INF)),
        once("activations", "minus infinity, once", plant=partial(activation, -INF)),
        Fault("activations", "one sample, always", "few_samples", fails, "samples", "without"),
        once("gradients", "NaN, once", plant=partial(gradient, NAN), place="reason"),
        once("gradients", "infinity, once", plant=partial(gradient, -INF), place="reason"),
        once("gradients", "all × 1e12, once", plant=partial(gradients, size(1e12, 1e15)), timings=TIMINGS[3:]),
        always(ends="sound", train={"clip_norm": 1e38}),
        once("loss", "NaN, once", plant=lambda scene: scene.next_loss(NAN)),
        once("loss", "infinity, once", plant=lambda scene: scene.next_loss(INF)),
        edge("log of zero", plant=partial(naive_loss, "log")),
        edge("power of zero", plant=partial(naive_loss, "pow")),
        rounded("overflow of half precision", prepare=partial(half_range, "overflow")),
        rounded("underflow of half precision", prepare=partial(half_range, "underflow")),
        once("memory", "NaN in a batch, once", plant=partial(batch, NAN)),
        once("memory", "infinity in a batch, once", plant=partial(batch, -INF)),
        targets("NaN in a target of the forecasting loss, once", plant=partial(target, NAN)),
        targets("infinity in a target of the forecasting loss, once", plant=partial(target, INF)),
    )
