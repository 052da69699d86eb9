"""The two heads: exactly the note's, and the default that keeps variables and levels apart."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from llueve.errors import UsageError
from llueve.model.classifier import TimerXLForClassification
from llueve.model.timer import Timer
from llueve.model.timer_xl import TimerXL

SIZES = {"patch_length": 4, "width": 16, "layers": 1, "heads": 2, "feed_forward": 16, "dropout": 0.0}


def build(head, variables=3, facts=2, classes=2, Encoder=TimerXL, **sizes):
    torch.manual_seed(0)
    encoder = Encoder(**{**SIZES, **sizes})
    return TimerXLForClassification(
        encoder, classes, head, num_variables=variables, num_facts=facts, dropout=0.0
    ).eval()


def window(batch=5, variables=3, steps=12, seed=1):
    torch.manual_seed(seed)
    shape = (batch, steps, variables)
    return torch.randn(shape), torch.ones(shape, dtype=torch.bool), torch.randn(batch, 2)


def test_the_notes_head_has_the_notes_sizes_and_start():
    head = build("mean", patch_length=96, width=64).head.classifier
    norm, first, gelu, dropout, last = head
    assert isinstance(norm, nn.LayerNorm) and norm.normalized_shape == (96,)
    assert (first.in_features, first.out_features) == (96, 128)
    assert isinstance(gelu, nn.GELU) and isinstance(dropout, nn.Dropout) and dropout.p == 0.1
    assert (last.in_features, last.out_features) == (128, 2)
    weights = torch.cat([first.weight.flatten(), last.weight.flatten()])
    assert abs(weights.mean().item()) < 5e-4
    assert weights.std().item() == pytest.approx(0.01, rel=0.03)
    assert first.bias.abs().max() == 0 and last.bias.abs().max() == 0


def test_the_notes_head_pools_the_forecasts_of_all_tokens():
    """Pooling before the linear forecasting head is the same as after it, which is what the note's code did."""
    model = build("mean")
    x, seen, facts = window()
    with torch.no_grad():
        tokens = model.encoder.encode(x)
        expected = model.head.classifier(model.encoder.head(tokens).mean(dim=1))
        torch.testing.assert_close(model(x, seen, facts), expected, atol=1e-6, rtol=0)


def test_the_default_head_starts_without_an_opinion():
    assert build("variables")(*window()).abs().max() == 0


def informed(model):
    """With weights that let everything before them be seen."""
    last = model.head.out if hasattr(model.head, "out") else model.head.classifier[-1]
    nn.init.normal_(last.weight)
    return model


def test_the_default_head_sees_the_level_that_instance_normalisation_removes():
    x, seen, facts = window()
    lifted = x + torch.tensor([2.0, 0.0, 0.0])
    with torch.no_grad():
        mean, default = build("mean"), informed(build("variables"))
        torch.testing.assert_close(mean(lifted, seen, facts), mean(x, seen, facts), atol=1e-5, rtol=0)
        assert (default(lifted, seen, facts) - default(x, seen, facts)).abs().max() > 0.01


def test_the_default_head_tells_variables_apart_and_the_notes_head_does_not():
    x, seen, facts = window()
    swapped = x[..., [1, 0, 2]]
    with torch.no_grad():
        mean, default = build("mean", positions="time"), informed(build("variables", positions="time"))
        torch.testing.assert_close(mean(swapped, seen, facts), mean(x, seen, facts), atol=1e-5, rtol=0)
        assert (default(swapped, seen, facts) - default(x, seen, facts)).abs().max() > 0.01


@pytest.mark.parametrize("head", ["mean", "variables"])
def test_what_is_not_observed_has_no_influence(head):
    """Whatever stands in cells that were not observed, the bits are the same; what is observed does count."""
    model = informed(build(head))
    x, seen, facts = window()
    seen[:, 4:8, 1] = False
    seen[:, -3:, 2] = False
    with torch.no_grad():
        clean = model(torch.where(seen, x, 0), seen, facts)
        assert torch.equal(clean, model(torch.where(seen, x, 1e3), seen, facts))
        moved = x.clone()
        moved[:, :4, 0] += torch.randn(4)
        assert (model(torch.where(seen, moved, 0), seen, facts) - clean).abs().max() > 1e-6


@pytest.mark.parametrize("head", ["mean", "variables"])
@pytest.mark.parametrize("steps", [slice(4, 8), slice(5, 7)], ids=["a whole patch", "a part of one"])
def test_a_zero_that_was_observed_is_not_a_cell_that_was_not(head, steps):
    model = informed(build(head))
    x, seen, facts = window()
    x[:, steps, 1] = 0
    hidden = seen.clone()
    hidden[:, steps, 1] = False
    with torch.no_grad():
        assert (model(x, seen, facts) - model(x, hidden, facts)).abs().max() > 1e-6


def test_the_gap_embedding_tells_how_much_was_observed():
    model = informed(build("variables"))
    x, seen, facts = window()
    seen[:, 5:7, 1] = False
    with torch.no_grad():
        before = model(x * seen, seen, facts)
        torch.nn.init.normal_(model.gap_embedding_D)
        assert (model(x * seen, seen, facts) - before).abs().max() > 1e-4
        whole = torch.ones_like(seen)
        full = model(x, whole, facts)
        torch.nn.init.normal_(model.gap_embedding_D)
        assert torch.equal(model(x, whole, facts), full)  # nothing is missing: it adds nothing


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_an_absent_patch_is_not_seen_at_any_admitted_scale(scale):
    model = build("mean")
    model.instance_norm = False
    x, seen, _ = window()
    seen[:, 4:8, 1] = False
    with torch.no_grad():
        tokens = [
            model.encoder.tokens(torch.where(seen, x * scale, junk).transpose(1, 2), seen.transpose(1, 2))
            for junk in (0.0, 999.0)
        ]
    present = torch.ones(5, 3, 3, dtype=torch.bool)
    present[:, 1, 1] = False
    assert torch.equal(tokens[0][present], tokens[1][present])


@pytest.mark.parametrize("head", ["mean", "variables"])
@pytest.mark.parametrize("kind", ["nothing observed", "one cell observed", "constant", "huge"])
def test_logits_and_gradients_are_finite_whatever_the_window(head, kind):
    model = build(head).train()
    x, seen, facts = window()
    if kind == "huge":
        x = x * 1e30
    elif kind == "constant":
        x = torch.full_like(x, -7.5)
    else:
        seen[:] = False
        seen[:, 5, 0] = kind == "one cell observed"
        x = x * seen
    logits = model(x, seen, facts)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1, 1])).backward()
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("head", ["mean", "variables"])
@given(
    size=st.sampled_from([1e-30, 1e-10, 1.0, 1e6, 1e15, 1e20, 1e30]),
    offset=st.sampled_from([0.0, 1.0, -1e8, 1e30]),
    steps=st.integers(1, 13),
    share=st.floats(0, 1),
    instance_norm=st.booleans(),
    univariate=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=60)
def test_no_finite_window_makes_a_nan(head, size, offset, steps, share, instance_norm, univariate, seed):
    """Logits and the gradients of weights and inputs, for windows of any size, offset, length and holes."""
    model = build(head, Encoder=Timer if univariate else TimerXL).train()
    model.instance_norm = instance_norm
    x, _, facts = window(steps=steps, seed=seed)
    seen = torch.rand(x.shape) < share
    x = torch.where(seen, x * size + offset, 0).requires_grad_()
    logits = model(x, seen, facts)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1, 1])).backward()
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in (x, *model.parameters()))
    with torch.no_grad():
        assert model.encoder.forecast(x).isfinite().all()


def test_any_number_of_classes():
    assert build("variables", classes=5)(*window()).shape == (5, 5)
    assert build("mean", classes=5)(*window()).shape == (5, 5)


def test_the_default_head_needs_its_number_of_variables():
    with pytest.raises(UsageError, match="give num_variables"):
        TimerXLForClassification(TimerXL(**SIZES), 2, "variables")


def test_a_plain_module_with_the_notes_head_takes_any_variables():
    model = TimerXLForClassification(TimerXL(**SIZES), num_classes=3)
    assert model(torch.randn(2, 13, 7)).shape == (2, 3)


@pytest.mark.parametrize("head", ["mean", "variables"])
def test_what_is_pooled_once_gives_the_same_bits_as_the_whole(head):
    """Logits and the head's gradients, from windows with holes; the head needs nothing else of them."""
    x, seen, facts = window()
    seen[:, 4:9, 1] = False
    model = informed(build(head))
    whole = model(x * seen, seen, facts)
    whole.sum().backward()
    gradients = [weight.grad for weight in model.head.parameters()]
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        pooled = model.pool(x * seen, seen)
    assert pooled.shape == (5, *model.pooled_shape(3))
    logits = model.answer(pooled, facts).logits_BK
    logits.sum().backward()
    assert torch.equal(logits, whole)
    for (name, weight), before in zip(model.head.named_parameters(), gradients, strict=True):
        if name.startswith("future"):  # the logits do not depend on it
            assert weight.grad is None and before is None
        else:
            assert torch.equal(weight.grad, before)


def test_an_encoder_with_nothing_to_train_has_no_dropout():
    model = build("variables", dropout=0.5)
    x, seen, _ = window()
    assert not torch.equal(model.train().pool(x, seen), model.pool(x, seen))
    model.encoder.requires_grad_(False)
    model.train()
    assert model.head.training and not model.encoder.training
    assert torch.equal(model.pool(x, seen), model.eval().pool(x, seen))
    model.encoder.requires_grad_(True)
    assert model.train().encoder.training
