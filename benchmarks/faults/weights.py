"""Faults of weights, of stored tables, and of the moving average of the weights."""

from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.faults.fault import INF, NAN, TIMINGS, VARIABLES_HEAD, Fault, Size
from benchmarks.faults.scene import Random, Scene, put
from benchmarks.faults.trial import Trial


def weight(value: float, scene: Scene, where: str = "") -> Any:
    """Damage one number of a parameter."""
    name, parameter = scene.trained(where)
    return name, put(parameter, value, scene.random)


def layer_weight(scene: Scene) -> Any:
    """Damage one number of the encoder's layers, frozen or not."""
    name, parameter = scene.layer_weight()
    return name, put(parameter, NAN, scene.random)


def unused_weight(scene: Scene) -> Any:
    """Damage one number of the forecasting head, which has no part in the logits."""
    layer = scene.model.encoder.forecasting
    return f"{scene.name_of(layer)}.weight", put(layer.weight, NAN, scene.random)


def sixteen_in_a_row(scene: Scene) -> Any:
    """Damage sixteen neighbours of one matrix."""
    drawn = (scene.trained() for _ in range(1000))
    name, parameter = next(each for each in drawn if each[1].ndim > 1 and each[1].numel() >= 32)
    start = int(scene.random.integers(parameter.numel() - 16))
    with torch.no_grad():
        parameter.view(-1)[start : start + 16] = NAN
    return name, tuple(int(each) for each in np.unravel_index(start, parameter.shape))


def table(scene: Scene) -> Any:
    """Damage one number of a stored table."""
    name, buffer = next(iter(scene.model.named_buffers()))
    return name, put(buffer, NAN, scene.random)


def flip(number: torch.Tensor, index: tuple[int, ...], bit: int) -> None:
    """Flip a bit of a float32 number in memory."""
    with torch.no_grad():
        number.view(torch.int32)[index] ^= 1 << bit


def towards_zero(bits: tuple[int, ...], scene: Scene) -> Any:
    """Flip an exponent bit of a weight from one to zero: the number becomes small, and nothing overflows."""
    while True:
        name, parameter = scene.trained()
        index, bit = tuple(int(scene.random.integers(size)) for size in parameter.shape), int(scene.random.choice(bits))
        if int(parameter.detach().view(torch.int32)[index]) >> bit & 1:
            flip(parameter, index, bit)
            return name, index


def lowest_bit(scene: Scene) -> Any:
    """Flip the lowest bit of a weight."""
    name, parameter = scene.trained()
    index = tuple(int(scene.random.integers(size)) for size in parameter.shape)
    flip(parameter, index, 0)
    return name, index


def finite_table(scene: Scene) -> Any:
    """Write a usual number to a stored table."""
    name, buffer = next(iter(scene.model.named_buffers()))
    return name, put(buffer, 0.123, scene.random)


def average(value: float, scene: Scene) -> Any:
    """Damage one number of the moving average."""
    parts = list(scene.average.named(scene.model).items())
    name, part = parts[int(scene.random.integers(len(parts)))]
    return name, put(part, value, scene.random)


def stuck(scene: Scene) -> Any:
    """Damage a weight again at every step, as a defective memory cell does."""
    name, parameter = scene.trained()
    index = put(parameter, NAN, scene.random)

    def again() -> None:
        with torch.no_grad():
            parameter[index] = NAN

    scene.every_step(again)
    return name, index


# Weights that are damaged before the training starts


def corrupt_checkpoint(trial: Trial, random: Random) -> None:
    """A NaN in a tensor of the pre-trained weights."""
    found = [each for each in trial.model.named_parameters() if "layers" in each[0] and each[0].endswith("weight")]
    name, parameter = found[int(random.integers(len(found)))]
    trial.truth = name, put(parameter, NAN, random)


def scaled_encoder(factor: float, trial: Trial, _random: Random) -> None:
    """Pre-trained weights of another scale, as of another architecture."""
    with torch.no_grad():
        for name, parameter in trial.model.encoder.named_parameters():
            if "conv" in name or "ffn" in name:
                parameter.mul_(factor)


def scaled_head(factor: float, trial: Trial, random: Random) -> None:
    """A head whose weights are too large by a factor."""
    generator = torch.Generator().manual_seed(int(random.integers(2**31)))
    with torch.no_grad():
        for name, parameter in trial.model.head.named_parameters():
            if parameter.ndim > 1 and ("out" in name or "classifier.4" in name):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * factor)


def faults(size: Size) -> tuple[Fault, ...]:
    """The kinds of this file."""
    number = partial(Fault, "parameters", place="number")
    first = partial(Fault, "parameters", timings=TIMINGS[:1], ends="stopped")
    averages = partial(Fault, "averages", cause="poisoned_average", place="number")
    encoder, head = partial(scaled_encoder, size(1e28, 3e24)), partial(scaled_head, size(1000.0, 4000.0))
    damaged, absurd = partial(weight, size(3e33, -7e20)), partial(weight, size(-2e7, 6e9))
    corrupt = "corrupt_weights"
    return (
        number("NaN in a weight", corrupt, partial(weight, NAN)),
        number("infinity in a weight of the head", corrupt, partial(weight, INF, where="head.")),
        number("NaN in a layer, frozen or not", corrupt, layer_weight),
        number("NaN in an unused weight", corrupt, unused_weight, drifts=True, shape=VARIABLES_HEAD),
        number("sixteen NaN in a row", corrupt, sixteen_in_a_row),
        number("flipped exponent", "damaged_weights", damaged),
        number("absurd but finite", "damaged_weights", absurd, drifts=True),
        number(
            "an exponent bit towards zero", "damaged_weights", partial(towards_zero, size((26, 27, 28), (24, 25, 29)))
        ),
        number("the lowest bit", "damaged_weights", lowest_bit),
        number("NaN in a stored table", "corrupt_buffer", table, shape=VARIABLES_HEAD),
        number("a usual number in a stored table", "corrupt_buffer", finite_table, shape=VARIABLES_HEAD),
        first("NaN in a checkpoint's tensor", corrupt, place="number", prepare=corrupt_checkpoint),
        first("pre-trained weights of another scale", "encoder_weights", prepare=encoder),
        first("head weights × 1000", "head_initialisation", prepare=head, ends="sound"),
        Fault("memory", "a weight damaged at every step", corrupt, stuck, "number", "stopped"),
        averages("NaN", plant=partial(average, NAN)),
        averages("infinity", plant=partial(average, INF)),
        averages("a usual number", plant=partial(average, size(0.5, -0.01))),
        averages("absurd", plant=partial(average, size(1e20, -3e8))),
    )
