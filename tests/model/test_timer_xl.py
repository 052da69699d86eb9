"""The encoder: equal to the original's outputs, to the plain equations, causal, and blind to what was not observed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llueve.errors import UsageError
from llueve.model.timer import Timer
from llueve.model.timer_xl import TimerXL

sys.path.insert(0, str(Path(__file__).parent))
import plain

GOLDEN = ("openltm_univariate", "openltm_multivariate", "openltm_multivariate_nonorm")


def small(positions="flattened", seed=0, dtype=torch.float32, patch_length=4):
    torch.manual_seed(seed)
    encoder = TimerXL(patch_length, width=16, layers=2, heads=2, feed_forward=24, positions=positions)
    for layer in encoder.blocks.attn_layers:
        torch.nn.init.normal_(layer.attention.inner_attention.attn_bias.emb.weight)
    return encoder.to(dtype).eval()


def observed_like(x):
    return torch.ones_like(x, dtype=torch.bool)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_outputs_of_the_original(shared, name):
    sizes = json.loads(shared(f"golden/{name}.json").read_text())
    encoder = TimerXL(
        sizes["input_token_len"], sizes["d_model"], sizes["e_layers"], sizes["n_heads"], sizes["d_ff"]
    ).eval()
    encoder.load_state_dict(torch.load(shared(f"golden/{name}.pth"), weights_only=True))  # strict: every public name
    golden = np.load(shared(f"golden/{name}.npz"))
    x_BLC = torch.from_numpy(golden["x_BLC"])
    with torch.no_grad():
        forecast = encoder.forecast(x_BLC, normalise=sizes["use_norm"])
        x_BCL = x_BLC.transpose(1, 2)
        given_BCL = encoder.normalise(x_BCL, observed_like(x_BCL)).x_BCL if sizes["use_norm"] else x_BCL
        tokens = encoder.tokens(given_BCL).flatten(1, 2)
    assert np.abs(forecast.numpy() - golden["forecast_BLC"]).max() <= 1e-5
    assert np.abs(tokens.numpy() - golden["encoder_out_BTD"]).max() <= 1e-5


def test_public_sizes_have_the_public_count_of_tensors_and_parameters():
    with torch.device("meta"):
        encoder = TimerXL()
    state = encoder.state_dict()
    assert len(state) == 142
    assert sum(tensor.numel() for tensor in state.values()) == 67_398_880


@pytest.mark.parametrize("kind", ["timer_xl", "timer_xl in time", "timer"])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_values_and_gradients_equal_those_of_the_plain_equations(kind, holes, dtype, bound):
    """The loss weighs present tokens alone: what an absent one holds is never used."""
    if kind == "timer":
        torch.manual_seed(0)
        encoder = Timer(4, width=16, layers=2, heads=2, feed_forward=24).to(dtype).eval()
        equations = plain.PlainTimer(encoder)
    else:
        positions = "time" if "time" in kind.split() else "flattened"
        encoder = small(positions, dtype=dtype)
        equations = plain.PlainTimerXL(encoder, positions).eval()
    x_BCL, seen = torch.randn(2, 3, 12, dtype=dtype), torch.ones(2, 3, 12, dtype=torch.bool)
    if holes:
        seen[0, 1, 4:8] = False
        seen[1, 2] = False
        x_BCL = x_BCL * seen
    present = seen.unflatten(-1, (-1, 4)).any(-1)
    found, expected = encoder.tokens(x_BCL, seen), equations(x_BCL, ~present)
    torch.testing.assert_close(found[present], expected[present], rtol=0, atol=bound)
    weigh = torch.randn_like(found[present])
    parameters = [p for name, p in encoder.named_parameters() if not name.startswith(("head", "lm_heads"))]
    for a, b in zip(
        *(torch.autograd.grad((tokens[present] * weigh).sum(), parameters) for tokens in (found, expected)), strict=True
    ):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max() + bound


@given(step=st.integers(0, 19), value=st.floats(-1e3, 1e3), seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_a_patch_changes_nothing_before_it(step, value, seed):
    encoder = small(seed=seed)
    x_BCL = torch.randn(1, 3, 20)
    changed = x_BCL.clone()
    changed[:, 1, step] = value
    with torch.no_grad():
        before, after = encoder.tokens(x_BCL), encoder.tokens(changed)
    patch = step // 4
    torch.testing.assert_close(after[:, :, :patch], before[:, :, :patch], rtol=0, atol=0)


def test_time_positions_are_equivariant_to_the_order_of_the_variables():
    x_BCL, order = torch.randn(2, 5, 16), torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        encoder = small("time")
        torch.testing.assert_close(encoder.tokens(x_BCL[:, order]), encoder.tokens(x_BCL)[:, order], atol=2e-6, rtol=0)
        encoder = small("flattened")
        assert (encoder.tokens(x_BCL[:, order]) - encoder.tokens(x_BCL)[:, order]).abs().max() > 1e-3


@given(seed=st.integers(0, 10**4), variable=st.integers(0, 2), patch=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_an_absent_patch_has_no_influence_at_all(seed, variable, patch):
    """Leaving a patch out gives, to the last bit, what any other content of it gives."""
    encoder = small(seed=seed)
    x_BCL = torch.randn(2, 3, 16)
    seen = observed_like(x_BCL)
    seen[:, variable, patch * 4 : patch * 4 + 4] = False
    other = torch.where(seen, x_BCL, 1e3)
    with torch.no_grad():
        first, second = encoder.tokens(x_BCL, seen), encoder.tokens(other, seen)
    present = seen.unflatten(-1, (-1, 4)).any(-1)
    torch.testing.assert_close(first[present], second[present], rtol=0, atol=0)


def test_nothing_observed_stays_finite_forwards_and_backwards():
    encoder = small().train()
    gap = torch.zeros(16, requires_grad=True)
    tokens = encoder.tokens(torch.zeros(2, 3, 16), torch.zeros(2, 3, 16, dtype=torch.bool), gap)
    tokens.square().sum().backward()
    assert tokens.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in (gap, *encoder.parameters()))


def test_a_mask_that_hides_nothing_changes_nothing():
    encoder, x_BCL = small(), torch.randn(2, 3, 16)
    gap = torch.randn(16)  # a learned gap embedding must not touch a full patch
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.tokens(x_BCL, observed_like(x_BCL), gap), encoder.tokens(x_BCL), atol=2e-6, rtol=0
        )


@pytest.mark.parametrize("steps", [1, 3, 4, 5, 31])
@pytest.mark.parametrize("variables", [1, 200])
def test_every_length_and_count_of_variables(steps, variables):
    with torch.no_grad():
        x_BCL = torch.randn(1, variables, steps)
        assert small().tokens(x_BCL).shape == (1, variables, -(-steps // 4), 16)
        assert small().forecast(x_BCL.transpose(1, 2)).shape == (1, steps, variables)


def test_padding_on_the_left_counts_as_not_observed():
    encoder, x_BCL = small(), torch.randn(1, 2, 6)
    seen = torch.cat((torch.zeros(1, 2, 2, dtype=torch.bool), observed_like(x_BCL)), dim=-1)
    gap = torch.randn(16)
    padded = torch.nn.functional.pad(x_BCL, (2, 0))
    with torch.no_grad():
        torch.testing.assert_close(
            encoder.tokens(x_BCL, observed_like(x_BCL), gap), encoder.tokens(padded, seen, gap), rtol=0, atol=0
        )


@given(
    values=st.lists(st.floats(-1e6, 1e6), min_size=6, max_size=6),
    seen=st.lists(st.booleans(), min_size=6, max_size=6),
)
@settings(max_examples=100, deadline=None)
def test_normaliser_by_hand(values, seen):
    x = torch.tensor(values, dtype=torch.float64)
    mask = torch.tensor(seen)
    window = small().normalise((x * mask)[None, None], mask[None, None])
    kept = x[mask].numpy()
    mean = kept.mean() if len(kept) else 0.0
    spread = np.sqrt((kept.var() if len(kept) else 0.0) + 1e-5)
    np.testing.assert_allclose(window.mean_BC.item(), mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(window.spread_BC.item(), spread, rtol=1e-6)
    assert (window.x_BCL[0, 0][~mask] == 0).all()


def test_a_constant_window_is_normalised_to_zero_with_finite_gradients():
    x = torch.full((1, 1, 8), 273.15, requires_grad=True)
    window = small().normalise(x, observed_like(x))
    window.x_BCL.square().sum().backward()
    assert window.x_BCL.abs().max() == 0
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kind", [TimerXL, Timer])
def test_a_forecast_before_the_training_does_not_bind_it(kind):
    """Rotary tables made in inference mode serve training too, in float64 as well."""
    torch.manual_seed(0)
    encoder = kind(4, width=16, layers=1, heads=2, feed_forward=16).double()
    x_BCL = torch.randn(2, 5, 28, dtype=torch.float64)  # a shape of its own, so that its tables are new
    with torch.inference_mode():
        encoder.tokens(x_BCL)
    encoder.tokens(x_BCL).sum().backward()


@pytest.mark.parametrize("kind", [TimerXL, Timer])
def test_no_window_at_all_gives_no_token(kind):
    assert kind(4, width=16, layers=1, heads=2, feed_forward=16).tokens(torch.zeros(0, 3, 12)).shape == (0, 3, 3, 16)


def test_second_derivatives_are_refused_and_not_wrong():
    encoder = small(dtype=torch.float64)
    bias = encoder.blocks.attn_layers[0].attention.inner_attention.attn_bias.emb.weight
    (grad,) = torch.autograd.grad(
        encoder.tokens(torch.randn(1, 3, 12, dtype=torch.float64)).square().sum(), bias, create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        grad.sum().backward()


@pytest.mark.parametrize(("width", "heads"), [(12, 2), (16, 3), (4, 2)])
def test_heads_that_cannot_be_rotated_are_refused(width, heads):
    with pytest.raises(UsageError, match="to be a multiple of 4"):
        TimerXL(4, width=width, layers=1, heads=heads, feed_forward=16)
