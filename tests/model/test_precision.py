"""Precision: products stay float32 unless bfloat16 is chosen, and bfloat16 keeps its bounds or is not taken."""

import pytest
import torch

from llueve.errors import UsageError
from llueve.model import precision
from llueve.model.precision import choose_precision, quick_products, small_products
from llueve.model.timer import Timer
from llueve.model.timer_xl import TimerXL

SWITCH = torch.backends.mkldnn.matmul


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


def test_quick_products_are_float32_and_leave_the_switch_as_it_was():
    a, b = torch.randn(300, 500), torch.randn(500, 700)
    before = SWITCH.fp32_precision
    with quick_products():
        quick = a @ b
        with small_products():
            assert SWITCH.fp32_precision == "ieee"
    assert SWITCH.fp32_precision == before
    assert (quick - a.double() @ b.double()).abs().max() < 1e-5 * 500**0.5


def test_a_processor_that_would_round_is_not_given_the_permission(monkeypatch):
    """With the bound at zero any rounding at all is too much, as on a processor with matrix tiles."""
    monkeypatch.setattr(precision, "FLOAT32_ERROR", 0.0)
    precision._exact.cache_clear()
    try:
        before = SWITCH.fp32_precision
        with quick_products():
            assert SWITCH.fp32_precision == before
    finally:
        precision._exact.cache_clear()


def test_a_fault_inside_leaves_the_switch_as_it_was():
    before = SWITCH.fp32_precision
    with pytest.raises(ZeroDivisionError), quick_products():
        1 / 0  # noqa: B018
    assert SWITCH.fp32_precision == before


@pytest.mark.parametrize("kind", [TimerXL, Timer])
def test_bfloat16_tokens_and_gradients_keep_their_bounds(kind, windows):
    torch.manual_seed(0)
    encoder = kind(12, width=256, layers=2, heads=4, feed_forward=256).eval()
    x_BCL, seen = windows
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        with encoder.computing_in(dtype):
            tokens = encoder.tokens(x_BCL, seen)
        assert tokens.dtype == torch.float32
        parameters = [p for name, p in encoder.named_parameters() if not name.startswith(("head", "lm_heads"))]
        gradients.append((tokens.detach(), *torch.autograd.grad(tokens.square().mean() + tokens.mean(), parameters)))
    exact, rounded = gradients
    assert (rounded[0] - exact[0]).norm() <= 0.03 * exact[0].norm()
    # All gradients as one vector: single ones may be nearly zero, like that of the key's bias.
    exact_all, rounded_all = (torch.cat([g.flatten() for g in each[1:]]) for each in (exact, rounded))
    assert (rounded_all - exact_all).norm() <= 0.05 * exact_all.norm()


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
