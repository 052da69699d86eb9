"""The cells of one variable, with what most checks of the audit need. Shapes: S sites, T times."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from llueve.panel import BoolArray, Finding, FloatArray, Severity, minute


@dataclass(frozen=True)
class VariableCells:
    """The cells of one variable, in time and in order of value."""

    panel: xr.Dataset
    name: str

    @cached_property
    def values_ST(self) -> FloatArray:
        """Values by site and time, NaN if missing."""
        return np.asarray(self.panel.variables[self.name].values)

    @cached_property
    def ordered_ST(self) -> FloatArray:
        """Values of each site in order, missing ones last."""
        return np.sort(self.values_ST, axis=1)

    @cached_property
    def known_S(self) -> NDArray[np.int64]:
        """Number of known values at each site."""
        return np.asarray(np.count_nonzero(~np.isnan(self.values_ST), axis=1), np.int64)

    @cached_property
    def ordered(self) -> FloatArray:
        """All known values in order."""
        return np.sort(self.values_ST[~np.isnan(self.values_ST)])

    @cached_property
    def distinct(self) -> int:
        """Number of different values."""
        return 1 + int((np.diff(self.ordered) > 0).sum())

    @property
    def units(self) -> str | None:
        """Unit of the variable, if it has one."""
        return self.panel.variables[self.name].attrs.get("units")

    @property
    def hours(self) -> float:
        """Hours that a value sums, if it is a sum."""
        return float(self.panel.variables[self.name].attrs.get("accumulation_hours", self.panel.attrs["step_hours"]))

    @property
    def is_derived(self) -> bool:
        """True if the variable comes from another one, which the audit checks itself."""
        return self.is_cosine or bool(self.panel.variables[self.name].attrs.get("derived", False))

    @property
    def is_cosine(self) -> bool:
        """True for the cosine of a direction whose sine is in the panel too: a fault of one is a fault of both."""
        return self.name.endswith("_cos") and f"{self.name.removesuffix('_cos')}_sin" in self.panel

    def first_of(self, flag_ST: BoolArray) -> str:
        """Site and time of the first flagged cell, in words."""
        site, time = np.argwhere(flag_ST)[0]
        return f"{self.panel.variables['site'].values[site]}, {minute(self.panel.variables['time'].values[time])}"

    def finding(
        self, code: str, severity: Severity, message: str, flag_ST: BoolArray, site: str | None = None
    ) -> Finding:
        """A finding about the flagged cells, with their number and their first and last time."""
        times = np.flatnonzero(flag_ST.any(axis=0))
        first, last = (iso_time(self.panel, int(index)) for index in (times[0], times[-1]))
        return Finding(code, severity, f"{self.name}: {message}", self.name, site, first, last, int(flag_ST.sum()))


def iso_time(panel: xr.Dataset, index: int) -> str:
    """Time of an index in ISO 8601, as `audit.json` holds it."""
    return str(np.datetime_as_string(panel.variables["time"].values[index], unit="s"))
