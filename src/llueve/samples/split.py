"""Split a panel by time into training, validation and test windows. Shapes: S sites, T times, W windows.

The cut dates are the same for every site. A window of validation or test may look back over its cut, as a forecast
made on that day would. The earlier part therefore gives up its last `context + horizon` steps: it uses no cell that a
later part sees or is verified with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from llueve.config import Config, SplitConfig
from llueve.errors import DataError
from llueve.panel import BoolArray, FloatArray, minute, observed_rows, recorded_rows, seen_only
from llueve.samples.target import class_labels, horizon_steps


@dataclass(frozen=True)
class Part:
    """The windows of one period: parallel arrays, one entry per window, ordered by site and then time."""

    name: str
    """`training`, `validation`, `test` or `prediction`."""
    site: NDArray[np.intp]
    end: NDArray[np.intp]
    """Index of the issue time, the last step that the window sees."""
    y: NDArray[np.int64]
    """Class index."""

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, chosen: Any) -> "Part":
        return Part(self.name, self.site[chosen], self.end[chosen], self.y[chosen])

    def find(self, site: int, end: int) -> NDArray[np.int64]:
        """Position of the window of a site with an issue time, (1,); an empty array if the part lacks it."""
        first, behind = np.searchsorted(self.site, [site, site + 1])
        near = first + np.searchsorted(self.end[first:behind], [end, end + 1])
        return np.arange(*near)


@dataclass(frozen=True)
class Split:
    """The three periods of one panel."""

    training: Part
    """Every issue time. `windows.stride` thins them for the model, never for the references."""
    validation: Part
    test: Part
    validation_start: np.datetime64
    test_start: np.datetime64
    training_rows: int
    """Number of times that fitting may use, from the first one."""
    labels_ST: FloatArray
    """Class index of every site and issue time of the panel; NaN if the outcome is unknown."""

    @property
    def parts(self) -> tuple[Part, Part, Part]:
        """Training, validation, test."""
        return (self.training, self.validation, self.test)


def thinned(part: Part, config: Config, step_hours: float) -> Part:
    """Every n-th issue time, as `windows.stride` asks. Raises `DataError` if the stride leaves no window.

    Without a stride, issue times are at least a quarter of the horizon apart, counted from the first one.
    """
    stride = config.windows.stride
    if stride is None:
        quarter = horizon_steps(config.target.horizon_hours, step_hours) // 4
        return part if config.windows.issue_hours is not None else part[np.isin(part.end, _apart(part.end, quarter))]
    thin = part[part.end % stride == 0]
    if not len(thin):
        all_windows = f"the {len(part)} {part.name} windows"
        raise DataError(f"windows.stride = {stride} leaves none of {all_windows}; choose a smaller stride")
    return thin


def _apart(ends: NDArray[np.intp], steps: int) -> list[int]:
    """Issue times from the first one on, each at least this number of steps after the one before."""
    kept: list[int] = []
    for end in np.unique(ends).tolist():
        if not kept or end - kept[-1] >= steps:
            kept.append(end)
    return kept


def few_shot(part: Part, times: NDArray[np.datetime64], fraction: float, seed: int) -> Part:
    """A share of the windows, 0 < fraction ≤ 1: the same share of every class and calendar month, to within one window.

    The windows are ordered by class, month and chance, and chosen when the running share passes a whole number. Every
    class keeps at least one window. `part.end` indexes `times`.
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


def training_sample(split: Split, config: Config, times: NDArray[np.datetime64], step_hours: float) -> Part:
    """The training windows that a configuration asks for: by `windows.stride` and `train.fraction`."""
    return few_shot(thinned(split.training, config, step_hours), times, config.train.fraction, config.train.seed)


def cut_indices(times: NDArray[np.datetime64], split: SplitConfig) -> tuple[int, int, int]:
    """Indices of the first validation time, the first test time, and the end of the test period.

    Raises:
        DataError: a cut lies outside the panel and would leave a part empty.
    """
    first_validation, first_test, end = (
        None if moment is None else int(np.searchsorted(times, np.datetime64(moment, "ns")))
        for moment in (split.validation_start, split.test_start, split.test_end)
    )
    if first_validation is None or first_test is None:
        # The configuration guarantees both.
        assert split.validation_fraction is not None and split.test_fraction is not None
        first_test = int(len(times) * (1 - split.test_fraction))
        first_validation = int(len(times) * (1 - split.test_fraction - split.validation_fraction))
    end = len(times) if end is None else end
    if not 0 < first_validation < first_test < end:
        raise DataError(
            f"split: with these cuts (rows {first_validation}, {first_test}, {end} of {len(times)}) training, validation or "
            f"test has no row; the panel goes from {minute(times[0])} to {minute(times[-1])}: move the cuts inside it"
        )
    return first_validation, first_test, end


def split_panel(panel: xr.Dataset, config: Config) -> Split:
    """The windows of each period: every issue time with a known outcome and a whole context inside its site's record.

    Raises:
        DataError: no site is long enough for the context, a part has no window, or the panel cannot give the target.
        UsageError: the horizon is not a whole number of steps.
    """
    labels_ST = class_labels(panel, config.target)
    times, context = panel["time"].values, config.windows.context
    purge = context + horizon_steps(config.target.horizon_hours, float(panel.attrs["step_hours"]))
    observed_ST = observed_rows(panel)
    never_S = ~np.any(observed_ST, axis=1)
    first_S = np.where(never_S, len(times), observed_ST.argmax(axis=1))
    last_S = np.where(never_S, -1, len(times) - 1 - observed_ST[:, ::-1].argmax(axis=1))
    longest = int((last_S - first_S + 1).max(initial=0))
    if longest < context:
        raise DataError(f"windows.context = {context} steps, but the longest site has {longest}; choose a shorter one")
    usable_ST = whole_windows(panel, context) & ~np.isnan(labels_ST) & _issued(times, config.windows.issue_hours)
    first_validation, first_test, end = cut_indices(times, config.split)

    def part(name: str, start: int, stop: int) -> Part:
        site, step = np.nonzero(usable_ST[:, start : max(stop, start)])
        step += start
        if not len(site):
            raise DataError(
                f"the {name} period has no window: without the {purge} steps (context + horizon) before the next cut it has "
                f"{max(stop - start, 0)} steps from {minute(times[start])}, and none of them has a known outcome and "
                f"{context} steps of record before it; move the cuts or shorten windows.context"
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
        labels_ST=labels_ST,
    )


def _issued(times: NDArray[np.datetime64], hours: Sequence[int] | None) -> BoolArray:
    """True (T,) for each time at which a forecast is issued.

    Raises:
        DataError: no time has one of these hours.
    """
    if hours is None:
        return np.ones(len(times), np.bool_)
    minutes_T = (times - times.astype("datetime64[D]")).astype("timedelta64[m]").astype(np.int64)
    issued_T: BoolArray = np.isin(minutes_T, [60 * hour for hour in hours])
    if not issued_T.any():
        found = ", ".join(f"{each // 60:02d}:{each % 60:02d}" for each in np.unique(minutes_T)[:5])
        raise DataError(
            f"windows.issue_hours = {list(hours)}: no time of the data has one of these hours (UTC); its times are at {found}"
        )
    return issued_T


def whole_windows(panel: xr.Dataset, context: int) -> BoolArray:
    """True (S, T) for an issue time with a row in the source and a whole context inside the site's record."""
    observed_ST = observed_rows(panel)
    begun_ST = np.logical_or.accumulate(observed_ST, axis=1)
    whole_ST = np.zeros_like(begun_ST)
    whole_ST[:, context - 1 :] = begun_ST[:, : begun_ST.shape[1] - context + 1]
    return whole_ST & recorded_rows(panel)


def complete_windows(
    panel: xr.Dataset, context: int, every_window: bool, issue_hours: Sequence[int] | None = None
) -> Part:
    """Windows for a prediction: a whole context of `context` steps inside the site's record, observed at the issue time.

    Its outcomes are unknown: `y` is 0 everywhere. With `issue_hours`, other hours (UTC) have no window. Without
    `every_window`, only each site's last window is in the part.

    Sites that are only seen have no forecast.

    Raises:
        DataError: a site has no complete window.
    """
    sites, ends = np.flatnonzero(~seen_only(panel)), []
    issued_T = _issued(panel["time"].values, issue_hours)
    for site, observed_T in zip(sites, observed_rows(panel)[sites], strict=True):
        rows = np.flatnonzero(observed_T)
        complete = rows[(rows >= rows[0] + context - 1) & issued_T[rows]] if len(rows) else rows
        if not len(complete):
            raise DataError(
                f"{panel['site'].values[site]}: {len(rows)} rows do not fill one window of {context} steps"
                f"{'' if issue_hours is None else f' that ends at an issue hour {list(issue_hours)}'}; bring a longer table for "
                "this site, or leave it out"
            )
        ends.append(complete if every_window else complete[-1:])
    site_W = np.repeat(sites, [len(end) for end in ends])
    return Part("prediction", site_W, np.concatenate(ends), np.zeros(len(site_W), np.int64))


def windows_with(flag_ST: BoolArray, part: Part, context: int) -> NDArray[np.int64]:
    """Number of flagged steps in each window of `part`, (W,)."""
    before_ST = np.concatenate([np.zeros((len(flag_ST), 1), np.int64), flag_ST.cumsum(axis=1)], axis=1)
    count_W: NDArray[np.int64] = before_ST[part.site, part.end + 1] - before_ST[part.site, part.end + 1 - context]
    return count_W
