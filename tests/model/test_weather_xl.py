"""The weather encoder: it is causal, indifferent to the order of its variables, and blind to what is absent."""

import numpy as np
import pytest
import torch

from llueve.model.classifier import TimerXLForClassification
from llueve.model.heads import DayHead
from llueve.model.weather_xl import PLACE_FACTS, WeatherXL
from llueve.samples.encoder_inputs import place_facts

VARIABLES, DAYS, HOURS = 5, 3, 24


@pytest.fixture
def model():
    torch.manual_seed(0)
    encoder = WeatherXL(VARIABLES, HOURS, width=16, layers=2, heads=2, feed_forward=32)
    model = TimerXLForClassification(encoder, 2, DayHead(), instance_norm=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return model


def days(model, x_BLC, observed_BLC, facts_BF):
    pooled = model.pool(x_BLC, observed_BLC, facts_BF)
    return model.answer(pooled, facts_BF).days


def given():
    torch.manual_seed(1)
    x_BLC, observed_BLC = torch.randn(4, DAYS * HOURS, VARIABLES), torch.rand(4, DAYS * HOURS, VARIABLES) < 0.8
    return x_BLC * observed_BLC, observed_BLC, torch.randn(4, PLACE_FACTS)


def test_a_day_does_not_see_later_days(model):
    x_BLC, observed_BLC, facts_BF = given()
    before = days(model, x_BLC, observed_BLC, facts_BF)
    changed = x_BLC.clone()
    changed[:, 2 * HOURS :] = 7.0
    after = days(model, changed * observed_BLC, observed_BLC, facts_BF)
    assert torch.equal(before.rain_BNR[:, :2], after.rain_BNR[:, :2])
    assert torch.equal(before.next_BCNP[:, :, :2], after.next_BCNP[:, :, :2])
    assert not torch.allclose(before.rain_BNR[:, 2], after.rain_BNR[:, 2])


def test_the_order_of_the_variables_has_no_meaning(model):
    x_BLC, observed_BLC, facts_BF = given()
    before = days(model, x_BLC, observed_BLC, facts_BF)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        for name in ("variable_CD", "level_CVD", "knots_CJ"):
            tensor = getattr(model.encoder, name)
            tensor.copy_(tensor[order].clone())
    after = days(model, x_BLC[..., order], observed_BLC[..., order], facts_BF)
    torch.testing.assert_close(after.rain_BNR, before.rain_BNR, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after.next_BCNP, before.next_BCNP[:, order], atol=1e-5, rtol=1e-5)


def test_an_absent_variable_has_no_influence(model):
    x_BLC, observed_BLC, facts_BF = given()
    observed_BLC[..., 2] = False
    before = days(model, x_BLC * observed_BLC, observed_BLC, facts_BF)
    with torch.no_grad():
        model.encoder.variable_CD[2] += 5.0
        model.encoder.level_CVD[2] += 5.0
    after = days(model, x_BLC * observed_BLC, observed_BLC, facts_BF)
    assert torch.equal(before.rain_BNR, after.rain_BNR)


def test_the_solar_hour_follows_the_longitude():
    noon = np.array(["2024-06-21T12", "2024-06-21T06"], "datetime64[h]")
    facts = place_facts(noon, np.array([30.0, np.nan]), np.array([0.0, 90.0]))
    assert facts[0, 2:4] == pytest.approx([np.sin(np.pi), np.cos(np.pi)], abs=1e-6)
    assert facts[1, 2:4] == pytest.approx(facts[0, 2:4], abs=1e-6)  # six hours earlier, 90 degrees to the east
    assert facts[0, 4:] == pytest.approx([0.5, np.sqrt(3) / 2], abs=1e-6)
    assert facts[1, 4:].tolist() == [0.0, 0.0]


def test_variables_that_are_never_observed_may_be_left_out():
    """The answer is that of the whole list with these variables masked."""
    torch.manual_seed(0)
    encoder = WeatherXL(5, width=16, layers=2, heads=2, feed_forward=16).eval()
    x_BCL, place_BG = torch.randn(3, 5, 72), torch.randn(3, PLACE_FACTS)
    observed_BCL = torch.rand(3, 5, 72) > 0.2
    observed_BCL[:, [1, 4]] = False
    x_BCL = x_BCL * observed_BCL
    whole_BCND = encoder.tokens(x_BCL, observed_BCL, place_BG=place_BG)[:, [0, 2, 3]]
    encoder.seen = (0, 2, 3)
    part_BCND = encoder.tokens(x_BCL[:, encoder.seen], observed_BCL[:, encoder.seen], place_BG=place_BG)
    torch.testing.assert_close(part_BCND, whole_BCND, rtol=1e-5, atol=1e-5)
