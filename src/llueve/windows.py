"""Split, purge, scaling and windows: from a panel to what the model sees, without a leak.

Shapes: S sites, T times, C variables, L steps of context, B windows of a batch, F facts known at issue time.

The cut dates are the same for every site. A window of validation or test may look back over its cut, as a forecast
made on that day would; so the earlier part gives up its last `context + horizon` steps, and no cell that a later part
sees, or is judged by, was seen by an earlier one.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from llueve.config import Config, SplitConfig
from llueve.errors import DataError
from llueve.panel import BoolArray, FloatArray, feature_cube, feature_names, observed_rows, recorded_rows, static_table
from llueve.rain import class_labels, horizon_steps

MOST_SPREADS = 1e15
"""Training standard deviations beyond which the square of a value nears the end of float32."""


@dataclass(frozen=True)
class Part:
    """The windows of one period: parallel arrays, one entry per window, ordered by site and then time."""

    name: str
    """`training`, `validation` or `test`."""
    site: NDArray[np.intp]
    """Index of the site."""
    end: NDArray[np.intp]
    """Index of the issue time, the last step that the window sees."""
    y: NDArray[np.int64]
    """Class index."""

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, chosen: Any) -> "Part":
        return Part(self.name, self.site[chosen], self.end[chosen], self.y[chosen])

    def find(self, site: int, end: int) -> NDArray[np.int64]:
        """Position of the window of a site that ends at an issue time, (1,); (0,) if there is none."""
        first, behind = np.searchsorted(self.site, [site, site + 1])
        near = first + np.searchsorted(self.end[first:behind], [end, end + 1])
        return np.arange(*near)


@dataclass(frozen=True)
class Split:
    """The three periods of one panel."""

    training: Part
    """Every issue time; the model may be given fewer (`windows.stride`), the references never are."""
    validation: Part
    test: Part
    validation_start: np.datetime64
    test_start: np.datetime64
    training_rows: int
    """Times before this index are the only ones that anything may be fitted on."""

    @property
    def parts(self) -> tuple[Part, Part, Part]:
        """Training, validation, test."""
        return (self.training, self.validation, self.test)


def thinned(part: Part, stride: int) -> Part:
    """Every n-th issue time.

    Raises:
        DataError: none is left.
    """
    thin = part[part.end % stride == 0]
    if not len(thin):
        raise DataError(
            f"windows.stride = {stride} leaves none of the {len(part)} {part.name} windows; choose a smaller one"
        )
    return thin


def few_shot(part: Part, times: NDArray[np.datetime64], fraction: float, seed: int) -> Part:
    """A share of the windows, the same of every class and, within it, of every calendar month, to within one window.

    The windows are laid in the order of class, month and chance, and taken where the running share passes a whole
    number. No class is lost altogether.

    Args:
        times: of the panel, that `part.end` counts in.
        fraction: 0 < fraction ≤ 1.
        seed: which of them.
    """
    if fraction >= 1:
        return part
    random = np.random.default_rng(seed)
    month_W = times[part.end].astype("datetime64[M]").astype(np.int64)
    order_W = np.lexsort((random.random(len(part)), month_W, part.y))
    passed_W = np.floor(np.arange(len(part) + 1) * fraction + random.random())
    chosen_W = np.zeros(len(part), np.bool_)
    chosen_W[order_W[np.diff(passed_W) > 0]] = True
    for lost in np.setdiff1d(part.y, part.y[chosen_W]):
        chosen_W[random.choice(np.flatnonzero(part.y == lost))] = True
    return part[chosen_W]


@dataclass(frozen=True)
class Scaler:
    """Mean and standard deviation of each variable, from the cells of the training period alone."""

    mean_C: FloatArray
    std_C: FloatArray

    def scale(self, cube_STC: FloatArray) -> FloatArray:
        """Values in training-set units, ±infinity beyond what float32 holds."""
        scaled_STC = np.empty_like(cube_STC)
        for c, (mean, std) in enumerate(zip(self.mean_C, self.std_C, strict=True)):
            exact_ST = (cube_STC[..., c].astype(np.float64) - mean) / std
            beyond_ST = np.abs(exact_ST) > np.finfo(np.float32).max
            scaled_STC[..., c] = np.where(beyond_ST, np.copysign(np.inf, exact_ST), exact_ST)
        return scaled_STC


def cut_indices(times: NDArray[np.datetime64], split: SplitConfig) -> tuple[int, int, int]:
    """Indices of the first validation time, the first test time, and the end of the test period.

    Raises:
        DataError: a date lies outside the panel, so that a part would be empty.
    """
    if split.validation_start is not None and split.test_start is not None:
        first_validation, first_test = (
            int(np.searchsorted(times, np.datetime64(moment, "ns")))
            for moment in (split.validation_start, split.test_start)
        )
    else:
        assert (
            split.validation_fraction is not None and split.test_fraction is not None
        )  # the configuration guarantees it
        first_test = int(len(times) * (1 - split.test_fraction))
        first_validation = int(len(times) * (1 - split.test_fraction - split.validation_fraction))
    end = len(times) if split.test_end is None else int(np.searchsorted(times, np.datetime64(split.test_end, "ns")))
    if not 0 < first_validation < first_test < end:
        raise DataError(
            f"split: the panel goes from {times[0]} to {times[-1]}, which leaves no row for training, validation or test "
            f"with these cuts (rows {first_validation}, {first_test}, {end} of {len(times)}); move the cuts inside the panel"
        )
    return first_validation, first_test, end


def split_panel(panel: xr.Dataset, config: Config) -> Split:
    """The windows of each period: every issue time with a known outcome and a whole context inside its site's record.

    Raises:
        DataError: no site is long enough for the context, or a part is left without a window.
    """
    labels_ST = class_labels(panel, config.target)
    times = panel["time"].values
    context = config.windows.context
    ahead = horizon_steps(config.target.horizon_hours, float(panel.attrs["step_hours"]))
    observed_ST = observed_rows(panel)
    never_S = ~np.any(observed_ST, axis=1)
    first_S = np.where(never_S, len(times), observed_ST.argmax(axis=1))
    last_S = np.where(never_S, -1, len(times) - 1 - observed_ST[:, ::-1].argmax(axis=1))
    longest = int((last_S - first_S + 1).max(initial=0))
    if longest < context:
        raise DataError(
            f"windows.context = {context} steps, but the longest site has {longest}; choose a shorter context"
        )
    usable_ST = recorded_rows(panel) & ~np.isnan(labels_ST) & (np.arange(len(times)) >= first_S[:, None] + context - 1)
    first_validation, first_test, end = cut_indices(times, config.split)
    purge = context + ahead

    def part(name: str, start: int, stop: int) -> Part:
        site, step = np.nonzero(usable_ST[:, start : max(stop, start)])
        step += start
        if not len(site):
            raise DataError(
                f"the {name} period has no window: {max(stop - start, 0)} steps from {times[start]} on are left of it once the "
                f"{purge} (context + horizon) before the next cut are given up, and none of them has a known outcome with "
                f"{context} steps of record behind it; move the cuts or shorten windows.context"
            )
        return Part(name, site, step, labels_ST[site, step].astype(np.int64))

    training = part("training", 0, first_validation - purge + 1)
    return Split(
        training=training,
        validation=part("validation", first_validation, first_test - purge + 1),
        test=part("test", first_test, end),
        validation_start=times[first_validation],
        test_start=times[first_test],
        training_rows=int(training.end.max()) + 1,
    )


def fit_scaler(panel: xr.Dataset, training_rows: int) -> Scaler:
    """Fit on the first `training_rows` times.

    Raises:
        DataError: a variable has no observation there, so nothing is known of its scale.
    """
    names = feature_names(panel)
    cube_STC = feature_cube(panel, names)[:, :training_rows].astype(np.float64)
    empty = [name for index, name in enumerate(names) if np.isnan(cube_STC[..., index]).all()]
    if empty:
        raise DataError(f"{', '.join(empty)}: no observed value in the training period; name it in data.exclude")
    mean_C, std_C = np.nanmean(cube_STC, axis=(0, 1)), np.nanstd(cube_STC, axis=(0, 1))
    # Packed float32 constants differ from their mean by rounding: that spread is none.
    constant_C = std_C <= 1e-6 * np.maximum(np.abs(mean_C), 1e-30)
    return Scaler(mean_C.astype(np.float32), np.where(constant_C, 1.0, std_C).astype(np.float32))


def calendar_facts(times: NDArray[np.datetime64], step_hours: float) -> FloatArray:
    """What the calendar says of each issue time, (T, F): sine and cosine of the year, and of the day for sub-daily steps."""
    day = (times - times.astype("datetime64[Y]")) / np.timedelta64(1, "D")
    angles = [2 * np.pi * day / 365.2425]
    if step_hours < 24:
        angles.append(2 * np.pi * (times - times.astype("datetime64[D]")) / np.timedelta64(1, "D"))
    return np.stack([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=-1).astype(np.float32)


def windows_with(flag_ST: BoolArray, part: Part, context: int) -> NDArray[np.int64]:
    """How many flagged steps each window of `part` sees, (W,)."""
    before_ST = np.concatenate([np.zeros((len(flag_ST), 1), np.int64), flag_ST.cumsum(axis=1)], axis=1)
    count_W: NDArray[np.int64] = before_ST[part.site, part.end + 1] - before_ST[part.site, part.end + 1 - context]
    return count_W


@dataclass(frozen=True)
class Windows:
    """Every window of a panel as views over one array per site: memory grows with the rows, not with rows × context."""

    values_STC: FloatArray
    """Training-set units; zero where not observed (`missing = "mask"`) or NaN there (`"raw"`). `build_windows` lays each
    variable of a site in one piece, so that a window is C copies of L numbers that lie side by side."""
    observed_STC: BoolArray
    calendar_TF: FloatArray
    statics_SF: FloatArray
    context: int

    def batch(self, part: Part) -> tuple[FloatArray, BoolArray, FloatArray]:
        """Values (B, C, L), observed (B, C, L) and facts (B, F) of the windows of `part`."""
        start = part.end - self.context + 1
        values_STCL = sliding_window_view(self.values_STC, self.context, axis=1)
        observed_STCL = sliding_window_view(self.observed_STC, self.context, axis=1)
        facts_BF = np.concatenate([self.calendar_TF[part.end], self.statics_SF[part.site]], axis=1)
        return values_STCL[part.site, start], observed_STCL[part.site, start], facts_BF

    def non_finite(self, part: Part) -> int:
        """How many windows of `part` hold a value that is not finite: none, unless missing cells were left raw."""
        bad_ST = np.any(~np.isfinite(self.values_STC), axis=-1)
        return int((windows_with(bad_ST, part, self.context) > 0).sum())

    def quantiles(self, training_rows: int, count: int) -> FloatArray:
        """`count` evenly spaced quantiles of each variable's observed training cells, (C, count), in training-set units."""
        rows, at = slice(training_rows), np.linspace(0, 1, count)
        found = []
        for c in range(self.values_STC.shape[2]):  # a copy of all at once would be the largest thing in memory
            known_ST = np.where(self.observed_STC[:, rows, c], self.values_STC[:, rows, c], np.nan)
            found.append(np.nanquantile(known_ST, at))
        return np.stack(found).astype(np.float32)


def build_windows(panel: xr.Dataset, scaler: Scaler, context: int, missing: Literal["mask", "raw"]) -> Windows:
    """Scale the panel and lay it out for windows.

    With `raw`, missing cells stay NaN and count as observed, so that they reach the model: it exists to show what then
    happens.

    Raises:
        DataError: a value is so far from all of training that its square overflows; it is named with site and time.
    """
    cube_STC = np.ascontiguousarray(feature_cube(panel, feature_names(panel)).transpose(0, 2, 1)).transpose(0, 2, 1)
    observed_STC = ~np.isnan(cube_STC)
    values_STC = scaler.scale(cube_STC)
    if (absurd_STC := np.abs(values_STC) > MOST_SPREADS).any():
        site, time, variable = np.argwhere(absurd_STC)[0]
        raise DataError(
            f"{feature_names(panel)[variable]}: {cube_STC[site, time, variable]:g} at {panel['site'].values[site]}, "
            f"{np.datetime_as_string(panel['time'].values[time], unit='m')} is more than {MOST_SPREADS:g} standard deviations "
            f"from the training period ({absurd_STC.sum()} such values); mend it, or name it in data.sentinels"
        )
    if missing == "raw":
        observed_STC = np.ones_like(observed_STC)
    else:
        values_STC[~observed_STC] = 0.0
    return Windows(
        values_STC=values_STC,
        observed_STC=observed_STC,
        calendar_TF=calendar_facts(panel["time"].values, float(panel.attrs["step_hours"])),
        statics_SF=static_table(panel),
        context=context,
    )
