"""The head starts from a logistic regression only if that knows more than the class shares, and only from finite windows.

Shapes: S sites, T times, C variables, B batch, K classes.
"""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from llueve.model.classifier import TimerXLForClassification
from llueve.model.timer_xl import TimerXL
from llueve.samples.split import Part
from llueve.samples.windows import Windows
from llueve.step.predict import predict_logits
from llueve.training.linear_start import start_from_regression

CONTEXT, TIMES, VARIABLES = 8, 600, 3
RANDOM = np.random.default_rng(3)


def new_model(classes=2):
    torch.manual_seed(0)
    encoder = TimerXL(4, width=8, layers=1, heads=1, feed_forward=8)
    return TimerXLForClassification(encoder, classes, "variables", num_variables=VARIABLES, num_facts=1)


@pytest.fixture
def values_STC():
    return RANDOM.normal(size=(1, TIMES, VARIABLES)).astype(np.float32)


def windows_of(values_STC):
    shape = np.zeros((TIMES, 1), np.float32), np.zeros((1, 0), np.float32)
    return Windows(values_STC, np.isfinite(values_STC), *shape, CONTEXT)


def parts_of(y_T):
    """Training and validation windows of the one site."""
    end = np.arange(CONTEXT - 1, TIMES)
    whole = Part("training", np.zeros_like(end), end, y_T[end].astype(np.int64))
    return whole[:400], whole[400:]


def log_score(model, windows, part):
    return -log_softmax(predict_logits(model, windows, part), axis=1)[np.arange(len(part)), part.y].mean()


@pytest.mark.parametrize("classes", [2, 3])
def test_what_a_linear_model_knows_is_known_at_once(values_STC, classes):
    y_T = np.digitize(values_STC[0, :, 1], [-0.5, 0.5][-(classes - 1) :])
    model, windows, (training, validation) = new_model(classes), windows_of(values_STC), parts_of(y_T)
    before = log_score(model, windows, validation)
    start_from_regression(model, windows, training, validation)
    assert log_score(model, windows, validation) < 0.5 * before


def test_nothing_changes_if_the_regression_is_no_better_than_the_class_shares(values_STC):
    y_T = (values_STC[0, :, 1] > 0).astype(int)
    model, windows = new_model(), windows_of(values_STC)
    start_from_regression(model, windows, parts_of(y_T)[0], parts_of(1 - y_T)[1])
    assert not model.head.linear.weight.any() and not model.head.out.bias.any()


@pytest.mark.parametrize("spoiled", [[20], [20, 500], range(CONTEXT - 1, TIMES, CONTEXT)])
def test_windows_that_are_not_finite_are_left_out(values_STC, spoiled):
    y_T = (values_STC[0, :, 1] > 0).astype(int)
    values_STC[0, spoiled, 0] = np.nan
    windows, parts = windows_of(values_STC), parts_of(y_T)
    found, expected = new_model(), new_model()
    start_from_regression(found, windows, *parts)
    assert all(each.isfinite().all() for each in found.parameters())
    bad = np.isin(parts[0].end[:, None] - np.arange(CONTEXT), spoiled).any(1)
    if bad.all():
        assert not found.head.linear.weight.any()
        return
    start_from_regression(expected, windows, parts[0][~bad], parts[1])
    torch.testing.assert_close(found.head.linear.weight, expected.head.linear.weight, rtol=0, atol=0)


def test_a_class_that_training_does_not_have_leaves_the_head_as_it_is(values_STC):
    windows, parts = windows_of(values_STC), parts_of((values_STC[0, :, 1] > 0).astype(int))
    model = new_model(classes=3)
    start_from_regression(model, windows, *parts)
    assert not model.head.linear.weight.any()
