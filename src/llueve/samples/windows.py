"""The windows of a panel as the model sees them: scaled values, a mask of observed cells, and facts.

Shapes: S sites, T times, C variables, Q quantities of the weather encoder, L steps of context, B windows of a batch, F facts
known at issue time.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from llueve.errors import DataError
from llueve.panel import BoolArray, FloatArray, feature_cube, feature_names, minute, site_positions, static_table
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES
from llueve.samples.encoder_inputs import PlaceScale, encoder_inputs, place_facts
from llueve.samples.scale import MOST_SPREADS, Scaler
from llueve.samples.scenes import Network
from llueve.samples.split import Part, windows_with


def calendar_facts(times: NDArray[np.datetime64], step_hours: float) -> FloatArray:
    """Sine and cosine of the time of year, and for sub-daily steps of the time of day, of each issue time (T, F)."""
    day = (times - times.astype("datetime64[Y]")) / np.timedelta64(1, "D")
    angles = [2 * np.pi * day / 365.2425]
    if step_hours < 24:
        angles.append(2 * np.pi * (times - times.astype("datetime64[D]")) / np.timedelta64(1, "D"))
    return np.stack([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=-1).astype(np.float32)


class WindowSource(ABC):
    """Windows that a training draws its batches from. A `Part` names each by its site and its issue time."""

    network: Network | None
    """The sites that see each other; None if each window is alone."""

    @property
    @abstractmethod
    def cells(self) -> int:
        """Cells of one window."""

    @abstractmethod
    def batch(self, part: Part) -> tuple[FloatArray, BoolArray, FloatArray]:
        """Values (B, C, L), observed (B, C, L) and facts (B, F) of the windows of `part`."""

    @abstractmethod
    def newest(self, part: Part) -> FloatArray:
        """The values of the issue time as the model sees them, (B, C)."""

    @abstractmethod
    def targets(self, part: Part) -> dict[str, tuple[NDArray[Any], ...]]:
        """The targets that the training compares forecasts with, by the field of the batch: `future` or `days`."""

    @abstractmethod
    def non_finite(self, part: Part) -> int:
        """Number of windows of `part` with a non-finite value."""


@dataclass(frozen=True)
class WindowPlaces:
    """Times and positions of the windows."""

    times_T: NDArray[np.datetime64]
    position_S2: NDArray[np.float64]
    """Latitude and longitude of each site in degrees; NaN if unknown."""

    def facts(self, part: Part) -> FloatArray:
        """Facts of place and time of each window, (B, G)."""
        latitude_B, longitude_B = self.position_S2[part.site].T
        return place_facts(self.times_T[part.end], latitude_B, longitude_B)


@dataclass(frozen=True)
class Windows(WindowSource):
    """Every window of a panel as a view of one array: memory grows with the rows, not with rows × context."""

    values_STC: FloatArray
    """Values in training-set units. A cell that was not observed is zero (`missing = "mask"`) or NaN (`"raw"`). The values
    of one variable at one site are contiguous, so copying a window copies C runs of L numbers."""
    observed_STC: BoolArray
    calendar_TF: FloatArray
    statics_SF: FloatArray
    context: int
    horizon_steps: int = 1
    """Steps of the horizon, whose means the forecasting loss compares with."""
    network: Network | None = None
    """The sites that see each other; None if each window is alone."""
    place: WindowPlaces | None = None
    """Times and positions for a weather encoder, whose quantities are then the last variables; None for other encoders."""

    @property
    def variables(self) -> int:
        """Number of variables of the panel, without those of a weather encoder."""
        return int(self.values_STC.shape[2]) - (0 if self.place is None else len(ENCODER_QUANTITIES))

    @property
    def cells(self) -> int:
        """Cells of one window."""
        return int(self.context * self.values_STC.shape[2])

    def newest(self, part: Part) -> FloatArray:
        """The values of the issue time as the model sees them, (B, C)."""
        return self.values_STC[part.site, part.end]

    def batch(self, part: Part) -> tuple[FloatArray, BoolArray, FloatArray]:
        """Values (B, C, L), observed (B, C, L) and facts (B, F) of the windows of `part`."""
        start = part.end - self.context + 1
        values_STCL = sliding_window_view(self.values_STC, self.context, axis=1)
        observed_STCL = sliding_window_view(self.observed_STC, self.context, axis=1)
        facts = [self.calendar_TF[part.end], self.statics_SF[part.site]]
        if self.place is not None:
            facts.append(self.place.facts(part))
        facts_BF = np.concatenate(facts, axis=1)
        return values_STCL[part.site, start], observed_STCL[part.site, start], facts_BF

    def targets(self, part: Part) -> dict[str, tuple[NDArray[Any], ...]]:
        """Means over the horizon, and where they are known, as `future`."""
        return {"future": self.future(part)}

    def future(self, part: Part) -> tuple[FloatArray, BoolArray]:
        """Mean of each variable's observed values over the horizon, in training-set units, and True where one exists (B, C).

        It is zero where no value is observed, or the panel ends before the horizon.
        """
        steps, times = self.horizon_steps, self.values_STC.shape[1]
        inside_B = part.end + steps < times
        start_B = np.minimum(part.end + 1, times - steps)
        values_BCH, observed_BCH = (
            sliding_window_view(each_STC[..., : self.variables], steps, axis=1)[part.site, start_B]
            for each_STC in (self.values_STC, self.observed_STC)
        )
        known_BCH = observed_BCH & np.isfinite(values_BCH) & inside_B[:, None, None]
        count_BC = known_BCH.sum(axis=-1)
        total_BC = np.where(known_BCH, values_BCH, 0).sum(axis=-1)
        return (total_BC / np.maximum(count_BC, 1)).astype(np.float32), count_BC > 0

    def non_finite(self, part: Part) -> int:
        """Number of windows of `part` with a non-finite value: zero, unless missing cells were left raw."""
        bad_ST = np.any(~np.isfinite(self.values_STC), axis=-1)
        return int((windows_with(bad_ST, part, self.context) > 0).sum())

    def quantiles(self, training_rows: int, count: int) -> FloatArray:
        """`count` evenly spaced quantiles of each variable's observed training cells, (C, count), in training-set units."""
        rows, at = slice(training_rows), np.linspace(0, 1, count)
        known_ST = (  # one variable at a time: one copy of all would be the largest array in memory
            np.where(self.observed_STC[:, rows, c], self.values_STC[:, rows, c], np.nan) for c in range(self.variables)
        )
        return np.stack([np.nanquantile(each, at) for each in known_ST]).astype(np.float32)


def build_windows(
    panel: xr.Dataset,
    scaler: Scaler,
    context: int,
    missing: Literal["mask", "raw"],
    horizon_steps: int = 1,
    network: Network | None = None,
    places: Sequence[PlaceScale] | None = None,
) -> Windows:
    """Scale the panel and prepare its windows. With `raw`, missing cells stay NaN, count as observed and reach the model.

    For a weather encoder, `places` holds the scales of the trained sites; its quantities follow the variables of the panel.

    Raises `DataError` if a value is so far from the training values that its square overflows.
    """
    cube_STC = np.ascontiguousarray(feature_cube(panel, feature_names(panel)).transpose(0, 2, 1)).transpose(0, 2, 1)
    observed_STC = ~np.isnan(cube_STC)
    values_STC = scaler.scale(cube_STC)
    if (absurd_STC := np.abs(values_STC) > MOST_SPREADS).any():
        site, time, variable = np.argwhere(absurd_STC)[0]
        raise DataError(
            f"{feature_names(panel)[variable]}: {cube_STC[site, time, variable]:g} at {panel['site'].values[site]}, "
            f"{minute(panel['time'].values[time])} is more than {MOST_SPREADS:g} standard deviations "
            f"from the training period ({absurd_STC.sum()} such values); correct it, or name it in data.sentinels"
        )
    if missing == "raw":
        observed_STC = np.ones_like(observed_STC)
    else:
        values_STC[~observed_STC] = 0.0
    place = None
    if places is not None:
        encoder_STQ = encoder_inputs(panel, places)
        seen_STQ = ~np.isnan(encoder_STQ)
        encoder_STQ[~seen_STQ] = 0.0
        values_STC, observed_STC = _joined(values_STC, encoder_STQ), _joined(observed_STC, seen_STQ)
        unknown_S2 = np.full((panel.sizes["site"], 2), np.nan)
        position_S2 = site_positions(panel)
        place = WindowPlaces(panel["time"].values, unknown_S2 if position_S2 is None else position_S2)
    calendar_TF = calendar_facts(panel["time"].values, float(panel.attrs["step_hours"]))
    return Windows(values_STC, observed_STC, calendar_TF, static_table(panel), context, horizon_steps, network, place)


def _joined(first_STC: NDArray[Any], second_STC: NDArray[Any]) -> NDArray[Any]:
    """The variables of both arrays; the values of one variable at one site stay contiguous."""
    joined_SCT = np.concatenate([first_STC.transpose(0, 2, 1), second_STC.transpose(0, 2, 1)], axis=1)
    return joined_SCT.transpose(0, 2, 1)
