"""The audit tells how many training windows lack what the forecasting loss compares with."""

import numpy as np
import pytest

from llueve.audit import audit_panel


@pytest.mark.parametrize("hours", [24, 72])
def test_windows_without_a_value_in_the_horizon_are_counted(make_panel, make_config, hours):
    panel = make_panel(missing=0.0, times=200)
    config = make_config(train={"forecast_weight": 0.3}, target={"horizon_hours": hours})
    whole = audit_panel(panel, config)
    assert not [each for each in whole.findings if each.code == "unknown_target"]
    training, steps = whole.split.training, hours // 24
    panel["b"].values[0, 30:40] = np.nan  # ten steps; of a longer horizon one value is enough
    panel["c"].values[:, 8:140] = np.nan
    found = {each.variable: each for each in audit_panel(panel, config).findings if each.code == "unknown_target"}
    assert list(found) == ["c", "b"]
    assert (found["b"].severity, found["b"].count) == ("info", 11 - steps)
    assert f"{11 - steps} of {len(training)} training windows" in found["b"].message
    assert (found["c"].severity, found["c"].count) == ("warning", len(training))
    assert "its forecast is not trained" in found["c"].message
    panel["c"].values[1, training.end.max() + 1] = 1.0  # in the horizon of as many windows as it has steps
    again = {each.variable: each for each in audit_panel(panel, config).findings if each.code == "unknown_target"}
    assert (again["c"].severity, again["c"].count) == ("info", len(training) - steps)


def test_a_training_without_the_forecasting_loss_has_no_such_finding(make_panel, make_config):
    findings = audit_panel(make_panel(), make_config()).findings
    assert "unknown_target" not in {each.code for each in findings}
