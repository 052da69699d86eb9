"""The precision of training steps: taken where the machine has it and a batch comes out alike, and said."""

import pytest
import torch

from llueve.errors import UsageError
from llueve.model.timer_xl import TimerXL
from llueve.training import precision
from llueve.training.precision import choose_precision


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return TimerXL(12, width=256, layers=2, heads=4, feed_forward=256, dropout=0.1)


@pytest.fixture
def windows():
    torch.manual_seed(1)
    x_BCL = torch.randn(4, 5, 120)
    seen = torch.rand(x_BCL.shape) > 0.1
    return x_BCL * seen, seen


def test_auto_takes_bfloat16_where_the_machine_has_it(encoder, windows, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    choice = choose_precision("auto", encoder, *windows)
    assert (choice.name, "within" in choice.reason) == ("bfloat16", True)
    assert encoder.training and encoder.rounding is None  # left as they were
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    choice = choose_precision("auto", encoder, *windows)
    assert (choice.name, choice.reason) == ("float32", "this cpu has no bfloat16 products")
    assert choose_precision("float32", encoder, *windows).reason == "asked for"


def test_auto_leaves_narrow_encoders_in_float32(windows, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    choice = choose_precision("auto", TimerXL(12, width=64, layers=1, heads=2, feed_forward=64), *windows)
    assert (choice.name, choice.reason) == ("float32", "an encoder of width 64 gains nothing from bfloat16")


def test_what_does_not_come_out_alike_is_not_taken(encoder, windows, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(precision, "BFLOAT16_ERROR", 1e-5)
    choice = choose_precision("auto", encoder, *windows)
    assert choice.name == "float32" and "away from float32" in choice.reason
    with pytest.raises(UsageError, match='set it to "float32"'):
        choose_precision("bfloat16", encoder, *windows)


def test_windows_with_a_nan_are_left_out_of_the_comparison(encoder, windows):
    x_BCL, seen = windows
    x_BCL[0, 0, 0] = float("nan")
    assert choose_precision("bfloat16", encoder, x_BCL, seen).name == "bfloat16"
    x_BCL[:, 0, 0] = float("nan")
    with pytest.raises(UsageError, match="no window of the first batch is finite"):
        choose_precision("bfloat16", encoder, x_BCL, seen)
