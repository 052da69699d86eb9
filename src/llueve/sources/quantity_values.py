"""Compare the values of a variable with the range of a quantity."""

from dataclasses import dataclass
from math import gcd, nan

import numpy as np
import xarray as xr

from llueve.panel import FloatArray
from llueve.quantities.catalogue import Quantity
from llueve.quantities.unit_table import Dimension

MOST_CELLS = 100_000
"""Largest number of cells that are compared: a sample of a large panel."""
WRONG_SHARE = 0.005
"""Share of the values out of range above which the values contradict a quantity; fewer may be faults of the sensor."""
COMMON_UNITS: dict[Dimension, tuple[str, ...]] = {
    "temperature": ("degC", "K", "degF"),
    "pressure": ("hPa", "Pa", "kPa"),
    "speed": ("m s-1", "km/h", "kt", "mph"),
    "angle": ("degree", "rad"),
    "length": ("mm", "cm", "m", "in"),
    "water": ("kg m-2",),
    "flux": ("W m-2",),
    "energy": ("J m-2", "kJ m-2", "MJ m-2"),
    "time": ("h", "min", "s"),
    "ratio": ("%", "1", "okta"),
    "mass ratio": ("g kg-1", "kg kg-1"),
    "specific energy": ("J kg-1",),
}
"""Units that a variable without a unit may have."""


@dataclass(frozen=True)
class Sample:
    """Known values of one variable."""

    values: FloatArray
    median: float
    """NaN without any value."""
    hours: float
    """Hours that a value sums, if it is an amount."""

    @property
    def is_empty(self) -> bool:
        """True if no value is known."""
        return len(self.values) == 0

    @classmethod
    def of(cls, panel: xr.Dataset, name: str) -> "Sample":
        """The values of a variable, or regularly chosen ones of many."""
        array = panel.variables[name]
        values = spread_cells(array.values)
        values = values[np.isfinite(values)]
        step_hours = float(panel.attrs["step_hours"])
        hours = float(array.attrs.get("accumulation_hours", step_hours))
        return cls(values, float(np.median(values)) if len(values) else nan, hours)


def spread_cells(values_ST: FloatArray) -> FloatArray:
    """All cells of a variable, or at most about 100,000 at equal distances."""
    stride = max(1, values_ST.size // MOST_CELLS)
    while stride > 1 and gcd(stride, 24 * 365) > 1:  # not always the same hour or day
        stride += 1
    return values_ST.reshape(-1)[::stride]


def misfit(quantity: Quantity, units: str, sample: Sample) -> str | None:
    """The reason why the values cannot be this quantity in this unit, in words; None if they can.

    Values without a cell contradict nothing. Zeros do not count among the values in range, since most rain is zero.
    """
    if (converted := quantity.conversion(units, sample.hours)) is None:
        return f"its unit is {units}"
    if sample.is_empty:
        return None
    factor, offset = converted
    days = max(1.0, sample.hours / 24) if quantity.is_sum else 1.0  # amounts of a month may be larger
    margin = 1e-5 * max(abs(quantity.least), abs(quantity.largest))  # float32
    least, largest = ((days * bound - offset) / factor for bound in (quantity.least, quantity.largest))
    outside = (sample.values < least - margin / factor) | (sample.values > largest + margin / factor)
    if outside.sum() > WRONG_SHARE * max(int(np.count_nonzero(sample.values)), 1):
        worst = sample.values[outside][np.argmax(np.abs(sample.values[outside]))]
        return (
            f"{outside.mean():.1%} of its values lie outside {least:.4g} to {largest:.4g} {units}, such as {worst:.6g}"
        )
    least, largest = ((days * bound - offset) / factor for bound in (quantity.usual_least, quantity.usual_largest))
    if not least <= sample.median <= largest:
        return f"its median of {sample.median:.6g} {units} lies outside {least:.4g} to {largest:.4g} {units}"
    return None
