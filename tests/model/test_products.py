"""Products: float32 by whichever library, and bfloat16 within its bounds."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from llueve.model.kernels import matmul as products
from llueve.model.kernels.matmul import quick_products, small_products
from llueve.model.timer import Timer
from llueve.model.timer_xl import TimerXL

SWITCH = torch.backends.mkldnn.matmul


def test_quick_products_are_float32_and_leave_the_switch_as_it_was():
    a, b = torch.randn(300, 500), torch.randn(500, 700)
    before = SWITCH.fp32_precision
    with quick_products():
        quick = a @ b
        with quick_products(), small_products():
            assert SWITCH.fp32_precision in ("ieee", before)  # nesting is one use
    assert SWITCH.fp32_precision == before
    assert (quick - a.double() @ b.double()).abs().max() < 1e-5 * 500**0.5


def test_a_processor_that_would_round_is_not_given_the_permission(monkeypatch):
    """With the bound at zero any rounding at all is too much, as on a processor with matrix tiles."""
    monkeypatch.setattr(products, "FLOAT32_ERROR", 0.0)
    monkeypatch.setattr(products._LIBRARY, "exact", None)  # not computed yet
    before = SWITCH.fp32_precision
    with quick_products(), small_products():
        assert SWITCH.fp32_precision == before


def test_threads_leave_the_switch_as_it_was():
    before = SWITCH.fp32_precision
    torch.manual_seed(0)
    encoder = TimerXL(4, width=16, layers=1, heads=2, feed_forward=16).eval()
    x_BCL = torch.randn(2, 3, 12)

    def work(_):
        for _ in range(20):
            encoder.tokens(x_BCL)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert SWITCH.fp32_precision == before


def test_a_fault_inside_leaves_the_switch_as_it_was():
    before = SWITCH.fp32_precision
    with pytest.raises(ZeroDivisionError), quick_products():
        1 / 0  # noqa: B018
    assert SWITCH.fp32_precision == before


@pytest.fixture
def windows():
    torch.manual_seed(1)
    x_BCL = torch.randn(4, 5, 120)
    seen = torch.rand(x_BCL.shape) > 0.1
    return x_BCL * seen, seen


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
