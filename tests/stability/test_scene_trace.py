"""The trace of a step on scenes names the sample, although tensors inside the attention across sites are laid out by scene."""

import math

import pytest
import torch

from llueve.config import TrainConfig
from llueve.model.batch import Batch, Future
from llueve.model.classifier import TimerXLForClassification
from llueve.model.heads import VariablesHead
from llueve.model.sites import Scenes, SiteAttention, lay_out
from llueve.model.timer_xl import TimerXL
from llueve.panel import UNKNOWN
from llueve.stability.diagnosis.trace import trace_step

NAN, INF = math.nan, math.inf
SIZES = {
    "padded": (3, 1, 5, 2),
    "as many places as twice the samples": (3, 1, 1, 1),
    "full": (4, 4, 4, 4),  # as many scenes, places and heads
    "one": (5,),
    "alone": (1, 1, 1, 1),
}
PIECES = [64, 2]
"""Scenes of a piece."""
CASES = [*((name, 64) for name in SIZES), ("padded", 2)]


def prepared(sizes):
    """A model without a silent weight, and a batch whose scenes are not in the order of their numbers."""
    torch.manual_seed(0)
    sites = SiteAttention(20, layers=2, heads=4, sites=6, dropout=0.1)
    encoder = TimerXL(4, width=16, layers=2, heads=2, feed_forward=16, dropout=0.1)
    model = TimerXLForClassification(encoder, 2, VariablesHead(encoder.width, 3, 2, 2, 0.1, sites=sites)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    count, numbers = sum(sizes), torch.arange(len(sizes)) * 7 % 5 + 10
    x_BLC, vector_B = torch.randn(count, 8, 3), torch.cat([torch.randperm(6)[:size] + 1 for size in sizes])
    position_B2 = torch.stack((-30.0 + vector_B, 140.0 + 2.0 * vector_B), dim=-1)
    y_B = torch.randint(2, (count,))
    if count > len(sizes):
        y_B[sizes[0] - 1] = UNKNOWN if sizes[0] > 1 else y_B[0]
    return model, Batch(
        x_BLC,
        torch.ones_like(x_BLC, dtype=torch.bool),
        torch.randn(count, 2),
        y_B,
        scenes=Scenes(numbers.repeat_interleave(torch.tensor(sizes)), vector_B, position_B2),
        future=Future(torch.randn(count, 3), torch.ones(count, 3, dtype=torch.bool)),
    )


def trace(model, batch, pieces):
    config = TrainConfig(batch_size=pieces, forecast_weight=0.5)
    return trace_step(model, batch, config, torch.float32)


def flagged(out, batch, calls, size, path, row):
    """True at the first numbers of one sample in a module's output, whatever its layout; nothing in another piece."""
    first = 0
    for number, piece in enumerate(batch.pieces(size)):
        if number == calls:
            break
        first += len(piece)
    flag, local = torch.zeros(out.shape, dtype=torch.bool), row - first
    if not 0 <= local < len(piece):
        return flag
    if "sites.layers" in path:  # (Z, M, …)
        flag.flatten(0, 1)[lay_out(piece.scenes).slot_B[local], 1] = True
    else:
        flag[local * (len(out) // len(piece))].view(-1)[1] = True
    return flag


def plant(model, batch, size, path, row, change):
    """Change the numbers of a sample in a module's output."""
    calls = []

    def spoil(_module, _given, out):
        flag = flagged(out, batch, len(calls), size, path, row)
        calls.append(None)
        return change(out, flag)

    model.get_submodule(path).register_forward_hook(spoil)


def not_a_number(out, flag):
    return out + torch.where(flag, -1.0, 1.0).sqrt() - 1


def no_gradient(out, flag):
    """A number whose gradient is not finite: that of the square root at zero."""
    return out + torch.where(flag, out - out.detach(), 1.0).sqrt()


MODULES = (
    "encoder.blocks.attn_layers.0",
    "head.network.0",
    "head.sites.layers.0.projection",
    "head.sites.layers.0",
    "head.sites.layers.1.attention_norm",
    "head.out",
)


@pytest.mark.parametrize(("name", "pieces"), CASES)
@pytest.mark.parametrize("path", MODULES)
def test_the_sample_is_named(path, name, pieces):
    sizes = SIZES[name]
    _, batch = prepared(sizes)
    for row in (len(batch) // 2, len(batch) - 1):
        if path == "head.out" and batch.y_B[row] == UNKNOWN:
            continue  # such a logit reaches nothing
        model, batch = prepared(sizes)
        plant(model, batch, pieces, path, row, not_a_number)
        found = trace(model, batch, pieces)
        assert (found.phase, found.module) == ("forward", path), found
        assert found.sample == row, found


@pytest.mark.parametrize(("name", "pieces"), CASES)
@pytest.mark.parametrize("path", MODULES[2:4])
def test_the_sample_of_a_gradient_is_named(path, name, pieces):
    model, batch = prepared(SIZES[name])
    row = len(batch) - 1
    plant(model, batch, pieces, path, row, no_gradient)
    found = trace(model, batch, pieces)
    assert (found.phase, found.operation, found.module) == ("backward", "sqrt", path), found
    assert found.sample == row, found


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_a_sound_step_has_no_origin(sizes):
    for pieces in PIECES:
        assert trace(*prepared(sizes), pieces) is None


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("pieces", PIECES)
def test_inputs_of_scenes_and_of_the_forecasting_loss_are_named(value, pieces):
    for name, place in (("future", "future_BC"), ("position", "position_B2"), ("x", "x_BLC")):
        model, batch = prepared(SIZES["padded"])
        batch.tensors()[place][4].view(-1)[1] = value
        found = trace(model, batch, pieces)
        assert (found.phase, found.tensor, found.sample, found.count) == ("input", name, 4, 1)
        assert f"{name} held 1 of" in found.sentence()


def test_a_fault_of_whole_scenes_names_no_sample():
    """Numbers of a scene that no sample has: a score between two others."""
    model, batch = prepared(SIZES["padded"])

    def spoil(_module, _given, out):
        flag = torch.zeros_like(out, dtype=torch.bool)
        flag[0, 1:] = flag[1, 2:] = True
        return not_a_number(out, flag)

    model.head.sites.relation.register_forward_hook(spoil)
    found = trace(model, batch, 64)
    assert (found.phase, found.module, found.sample) == ("forward", "head.sites.relation", None)
