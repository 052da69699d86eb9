"""The target: sums of precipitation over the next hours, and the class labels made of them."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from llueve.config import TargetConfig
from llueve.errors import DataError, UsageError
from llueve.panel import check_panel
from llueve.samples.target import class_labels, horizon_steps, next_sum_mm

NAN = float("nan")


def panel_of(
    *sites: list[float], step_hours: float = 6.0, units: str | None = "mm", accumulation_hours: float | None = None
) -> xr.Dataset:
    """Precipitation `tp`, one list per site."""
    attrs = {"units": units, "accumulation_hours": accumulation_hours}
    times = np.datetime64("2024-01-01", "ns") + np.arange(len(sites[0])) * np.timedelta64(int(step_hours * 60), "m")
    tp = xr.DataArray(
        np.array(sites, dtype=np.float32),
        dims=("site", "time"),
        attrs={key: value for key, value in attrs.items() if value is not None},
    )
    names = [f"site {number}" for number in range(len(sites))]
    return check_panel(xr.Dataset({"tp": tp}, coords={"site": names, "time": times}, attrs={"step_hours": step_hours}))


def labels(panel: xr.Dataset, threshold_mm: float = 1.0, horizon_hours: float = 24.0) -> list[list[float]]:
    target = TargetConfig(variable="tp", threshold_mm=threshold_mm, horizon_hours=horizon_hours)
    return class_labels(panel, target).tolist()


# The sum


def test_the_sum_covers_the_next_hours_and_not_the_present() -> None:
    panel = panel_of([100, 1, 2, 4, 8, 16])
    expected = [1 + 2 + 4 + 8, 2 + 4 + 8 + 16, NAN, NAN, NAN, NAN]
    np.testing.assert_array_equal(next_sum_mm(panel, "tp", 24.0), [expected])


def test_a_horizon_of_one_step_is_the_next_step() -> None:
    panel = panel_of([5, 7, 9], step_hours=24.0)
    np.testing.assert_array_equal(next_sum_mm(panel, "tp", 24.0), [[7, 9, NAN]])


@pytest.mark.parametrize(
    ("units", "factor"), [("mm", 1), ("kg m-2", 1), ("kg m**-2", 1), ("cm", 10), ("m", 1000), ("in", 25.4)]
)
def test_sums_are_in_millimetres(units: str, factor: float) -> None:
    panel = panel_of([0, 0.25, 0.5], step_hours=12.0, units=units)
    np.testing.assert_allclose(next_sum_mm(panel, "tp", 24.0), [[(0.25 + 0.5) * factor, NAN, NAN]], rtol=1e-6)


def test_a_missing_step_makes_every_sum_over_it_unknown() -> None:
    panel = panel_of([0, 0, 0, NAN, 0, 0, 0], step_hours=12.0)
    # Step 3 is in the sums that start after steps 1 and 2.
    np.testing.assert_array_equal(next_sum_mm(panel, "tp", 24.0), [[0, NAN, NAN, 0, 0, NAN, NAN]])


def test_a_missing_present_does_not_matter() -> None:
    panel = panel_of([NAN, 1, 2], step_hours=12.0)
    np.testing.assert_array_equal(next_sum_mm(panel, "tp", 24.0), [[1 + 2, NAN, NAN]])


def test_sites_do_not_mix() -> None:
    panel = panel_of([0, 1, 2], [0, 10, 20], step_hours=12.0)
    np.testing.assert_array_equal(next_sum_mm(panel, "tp", 24.0), [[3, NAN, NAN], [30, NAN, NAN]])


@pytest.mark.parametrize("steps", [1, 4])
def test_a_panel_that_is_no_longer_than_the_horizon_knows_no_sum(steps: int) -> None:
    assert np.isnan(next_sum_mm(panel_of([1.0] * steps), "tp", 24.0)).all()


# The label


@pytest.mark.parametrize(
    ("amounts", "threshold_mm"),
    [
        ([0.3, 0.3, 0.4], 1.0),
        ([0.7, 0.2, 0.1], 1.0),  # 0.99999999 in float32 amounts
        ([0.9, 0.9, 0.9], 2.7),  # 2.6999999
        ([0.025] * 40, 1.0),
        ([1.0, 0.0], 1.0),
    ],
)
def test_a_sum_that_equals_the_threshold_is_rain(amounts: list[float], threshold_mm: float) -> None:
    panel = panel_of([0.0, *amounts], step_hours=1.0)
    assert labels(panel, threshold_mm, horizon_hours=len(amounts))[0][0] == 1.0


def test_a_sum_just_below_the_threshold_is_dry() -> None:
    assert labels(panel_of([0.0, 0.3, 0.3, 0.399], step_hours=1.0), horizon_hours=3)[0][0] == 0.0


def test_the_threshold_is_in_millimetres_whatever_the_unit() -> None:
    panel = panel_of([0, 0.0005, 0.0005, 0.0004], step_hours=12.0, units="m")
    assert labels(panel)[0][:2] == [1.0, 0.0]  # 1.0 mm and 0.9 mm


def test_an_unknown_sum_is_an_unknown_label() -> None:
    np.testing.assert_array_equal(labels(panel_of([0, 5, NAN, 5, 5], step_hours=12.0)), [[NAN, NAN, 1, NAN, NAN]])


AMOUNT = st.none() | st.floats(0, 50, width=32)


@given(data=st.data(), steps=st.integers(1, 5), length=st.integers(2, 20))
def test_a_label_depends_on_nothing_but_the_hours_after_it_up_to_the_horizon(
    data: st.DataObject, steps: int, length: int
) -> None:
    def drawn() -> list[float]:
        amounts = data.draw(st.lists(AMOUNT, min_size=length, max_size=length))
        return [NAN if amount is None else amount for amount in amounts]

    first, other = drawn(), drawn()
    t = data.draw(st.integers(0, length - 1))
    changed = [*other[: t + 1], *first[t + 1 : t + 1 + steps], *other[t + 1 + steps :]]
    before, after = (labels(panel_of(series), horizon_hours=6.0 * steps)[0][t] for series in (first, changed))
    np.testing.assert_equal(after, before)


# What is refused


def test_sampled_amounts_are_refused_with_the_share_of_time_that_they_see() -> None:
    panel = panel_of([0.0] * 5, step_hours=12.0, accumulation_hours=1.0)
    with pytest.raises(DataError, match=r"tp: .*1 h of rain.*12 h apart.*8\.3% of the time.*allow_sampled"):
        next_sum_mm(panel, "tp", 24.0)


def test_sampled_amounts_can_be_allowed() -> None:
    panel = panel_of([0, 1, 2], step_hours=12.0, accumulation_hours=1.0)
    np.testing.assert_array_equal(next_sum_mm(panel, "tp", 24.0, allow_sampled=True), [[1 + 2, NAN, NAN]])


def test_the_configuration_can_allow_sampled_amounts() -> None:
    panel = panel_of([0, 1, 2], step_hours=12.0, accumulation_hours=1.0)
    target = TargetConfig(variable="tp", threshold_mm=3.0, allow_sampled=True)
    np.testing.assert_array_equal(class_labels(panel, target), [[1, NAN, NAN]])


@pytest.mark.parametrize("allow_sampled", [False, True])
def test_amounts_that_overlap_are_refused(allow_sampled: bool) -> None:
    panel = panel_of([0.0] * 5, step_hours=1.0, accumulation_hours=3.0)
    with pytest.raises(DataError, match=r"tp: .*sums over 3 h.*1 h apart.*twice"):
        next_sum_mm(panel, "tp", 3.0, allow_sampled)


def test_a_missing_unit_is_refused() -> None:
    with pytest.raises(DataError, match=r"tp: .*set data\.units\.tp"):
        next_sum_mm(panel_of([0.0, 1.0], units=None), "tp", 6.0)


@pytest.mark.parametrize("units", ["K", "MM", "mm h-1"])
def test_a_unit_that_is_no_depth_of_water_is_refused(units: str) -> None:
    with pytest.raises(DataError, match=rf"tp: unit '{units}' is not a depth of water; expected one of mm"):
        next_sum_mm(panel_of([0.0, 1.0], units=units), "tp", 6.0)


def test_an_absent_variable_is_refused() -> None:
    with pytest.raises(DataError, match=r"target\.variable = 'rain' is not in the panel; it has tp"):
        next_sum_mm(panel_of([0.0, 1.0]), "rain", 6.0)


@pytest.mark.parametrize("horizon_hours", [7.0, 3.0, 25.0])
def test_a_horizon_that_is_no_whole_number_of_steps_is_refused(horizon_hours: float) -> None:
    with pytest.raises(UsageError, match=rf"horizon_hours = {horizon_hours:g} .*steps of 6 h"):
        next_sum_mm(panel_of([0.0] * 9), "tp", horizon_hours)


def test_steps_of_a_horizon_survive_rounding() -> None:
    assert horizon_steps(24.0, 1 / 6) == 144  # ten minutes are no exact binary number


def test_a_label_column_that_the_table_lacks() -> None:
    with pytest.raises(DataError, match=r"target\.label = 'wet': the table has no such column"):
        class_labels(panel_of([0.0, 1.0]), TargetConfig(label="wet"))


def test_negative_rain_is_refused_where_it_is_and_packing_noise_is_not() -> None:
    with pytest.raises(
        DataError, match=r"tp: 1 values are below zero, the first -9999 at site 0, 2024-01-01 12:00.*sentinels"
    ):
        labels(panel_of([0, 0, -9999, 0, 0, 0]))
    assert labels(panel_of([0, 0, -1e-5, 0, 0, 0]))[0][0] == 0.0


def test_a_threshold_within_packing_noise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"greater than or equal to 0\.01"):
        TargetConfig(variable="tp", threshold_mm=0.0005)
