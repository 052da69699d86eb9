"""Merge the fields of one variable, from any number of files, into one series per region.

Shapes: T times of the panel, t times of one field, R regions, U cells that some region uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llueve.errors import DataError
from llueve.panel import BoolArray, Finding
from llueve.sources.findings import finding_at
from llueve.sources.grids.fields import Field
from llueve.sources.grids.region_means import BlockMeans, CellSelection, Compute, Refusal, ValidValues, block_means
from llueve.sources.grids.times import Floats, Seconds, shown

REFUSALS: dict[Refusal, str] = {
    "mark": 'far from all others, a mark for "missing"; add it to data.sentinels',
    "huge": "infinite, or a fill value that the file does not declare (_FillValue)",
    "negative": "below zero by more than packing explains, although such a sum cannot be negative",
}


@dataclass(frozen=True)
class RegionSeries:
    """One variable over the panel's times and regions."""

    mean_TR: Floats
    cells_R: NDArray[np.int64]
    """Number of cells that have a value at some time."""
    present_T: BoolArray
    """True for each time that some file has."""
    preliminary_T: BoolArray
    """True for each time with preliminary values."""
    findings: list[Finding]


@dataclass(frozen=True)
class _FieldMeans:
    """One field, reduced to means over regions."""

    field: Field
    at: NDArray[np.intp]
    """Positions of its times in the panel."""
    mean_tR: Floats
    cells_tR: NDArray[np.int64]
    present_U: NDArray[np.int64]
    sketch_t2: Floats
    preliminary_t: BoolArray

    @classmethod
    def of(
        cls, field: Field, at: NDArray[np.intp], preliminary_t: BoolArray, blocks: list[BlockMeans]
    ) -> "_FieldMeans":
        """The blocks of a field, concatenated."""
        mean_tR = np.vstack([block.mean_tR for block in blocks])
        cells_tR = np.vstack([block.cells_tR for block in blocks]).astype(np.int64)
        present_U = np.sum([block.present_U for block in blocks], axis=0)
        sketch_t2 = np.vstack([block.sketch_t2 for block in blocks])
        filled_t = np.concatenate([block.filled_t for block in blocks])
        return cls(field, at, mean_tR, cells_tR, present_U, sketch_t2, preliminary_t | filled_t)


def merge(
    fields: list[Field],
    axis: Seconds,
    selection: CellSelection,
    regions: Sequence[str],
    valid: ValidValues,
    compute: Compute,
) -> RegionSeries:
    """Reduce the fields of one variable and place them on the panel's times.

    If files share a time, final values replace preliminary ones; two final or two preliminary values must be equal. A mean
    needs all cells that ever have a value: with fewer, it would be the mean of another place.

    Raises:
        DataError: files differ at a time they share; or a value is infinite, an undeclared fill value, or negative although
            the variable cannot be.
    """
    spans = [slice(*np.searchsorted(each.seconds, [axis[0], axis[-1] + 1]).tolist()) for each in fields]
    positions = [np.searchsorted(axis, each.seconds[span]) for each, span in zip(fields, spans, strict=True)]
    count_T = np.bincount(np.concatenate(positions), minlength=len(axis))
    findings: list[Finding] = []
    merged = _Merged(len(axis), len(regions))
    means: list[_FieldMeans] = []
    for each, span, at in zip(fields, spans, positions, strict=True):
        if len(at):
            shared = bool((count_T[at] > 1).any())
            blocks = block_means(each, span, selection, valid, shared, compute)
            _refuse_values(each, blocks, axis[at])
            findings += _changed_values(each, blocks)
            means.append(_FieldMeans.of(each, at, each.preliminary[span], blocks))
    for number, part in enumerate(means):
        merged.add(number, part, means, axis)
    name = fields[0].name
    findings += merged.findings(name)
    present_U = sum((part.present_U for part in means), start=np.zeros(len(selection.cells), np.int64))
    cells_R = np.array([(present_U[cells] > 0).sum() for cells in selection.by_region], np.int64)
    partly_TR = (merged.cells_TR > 0) & (merged.cells_TR < cells_R)
    merged.mean_TR[partly_TR] = np.nan
    for region in np.flatnonzero(partly_TR.any(axis=0)).tolist():
        times = axis[partly_TR[:, region]]
        message = (
            f"{name}: {regions[region]}: {len(times)} times lack some of its {cells_R[region]} cells and count as missing, "
            "because a mean of the others would be of another place"
        )
        findings.append(finding_at("partial_cells", "warning", message, times, name, regions[region]))
    return RegionSeries(merged.mean_TR, cells_R, merged.present_T, merged.preliminary_T, findings)


def _changed_values(each: Field, blocks: list[BlockMeans]) -> list[Finding]:
    findings = []
    for code, count, text in (
        ("packing_noise", sum(block.rounded for block in blocks), "within the noise of packing below zero became 0"),
        ("sentinels", sum(block.sentinels for block in blocks), "are data.sentinels and count as missing"),
    ):
        if count:
            message = f"{each.label}: {each.name}: {count:,} values {text}"
            findings.append(Finding(code, "info", message, variable=each.name, count=count))
    return findings


def _refuse_values(each: Field, blocks: list[BlockMeans], seconds: Seconds) -> None:
    start = 0
    for block in blocks:
        if block.refused is not None:
            kind, (value, time) = block.refused
            raise DataError(
                f"{each.label}: {each.name}: {value:g} at {shown(seconds[start + time])}: {REFUSALS[kind]}; correct the file, or "
                f"leave {each.name} out with data.exclude"
            )
        start += len(block.mean_tR)


class _Merged:
    """The merged means of all fields on the times of the panel."""

    def __init__(self, times: int, regions: int) -> None:
        self.mean_TR: Floats = np.full((times, regions), np.nan)
        self.cells_TR = np.zeros((times, regions), np.int64)
        self.sketch_T2: Floats = np.full((times, 2), np.nan)
        self.owner_T = np.full(times, -1)  # number of the field with the means of a time
        self.present_T: BoolArray = np.zeros(times, np.bool_)
        self.preliminary_T: BoolArray = np.zeros(times, np.bool_)
        self.repeated = self.replaced = 0

    def add(self, number: int, part: _FieldMeans, means: list[_FieldMeans], axis: Seconds) -> None:
        """Place the means of field `number`; final ones replace preliminary ones, and others must equal those there."""
        self.present_T[part.at] = True
        old_t = self.cells_TR[part.at].sum(axis=1) > 0
        both_t = old_t & (part.cells_tR.sum(axis=1) > 0)
        newer_t = both_t & self.preliminary_T[part.at] & ~part.preliminary_t
        older_t = both_t & ~self.preliminary_T[part.at] & part.preliminary_t
        equal_t = both_t & ~newer_t & ~older_t
        for owner in np.unique(self.owner_T[part.at][equal_t]).tolist():
            self._compare(means[owner], part, equal_t & (self.owner_T[part.at] == owner), axis)
        takes_t = ~old_t | newer_t
        here = part.at[takes_t]
        self.mean_TR[here], self.cells_TR[here] = part.mean_tR[takes_t], part.cells_tR[takes_t]
        self.sketch_T2[here], self.owner_T[here] = part.sketch_t2[takes_t], number
        self.preliminary_T[here] = part.preliminary_t[takes_t]
        self.repeated += int(equal_t.sum())
        self.replaced += int((newer_t | older_t).sum())

    def findings(self, name: str) -> list[Finding]:
        """The findings on times in several files."""
        findings = []
        if self.repeated:
            message = f"{name}: {self.repeated} times are in several files, with equal values"
            findings.append(Finding("repeated_times", "info", message, variable=name, count=self.repeated))
        if self.replaced:
            message = f"{name}: {self.replaced} times are in several files; final values replaced preliminary ones"
            findings.append(Finding("final_over_preliminary", "info", message, variable=name, count=self.replaced))
        return findings

    def _compare(self, other: _FieldMeans, part: _FieldMeans, same_t: BoolArray, axis: Seconds) -> None:
        """Raise unless two files hold equal values at the times they share, except for rounding by their packing."""
        arrays = other.field.array, part.field.array
        packing = [(array.encoding.get("scale_factor"), array.encoding.get("add_offset")) for array in arrays]
        alike = packing[0] == packing[1] and arrays[0].dtype == arrays[1].dtype
        step = 0.0 if alike else other.field.packing_step + part.field.packing_step
        rounding = 0.0 if alike else 1e-6
        here = part.at[same_t]
        mean, sketch = self.mean_TR[here], self.sketch_T2[here]
        mean_differs = np.abs(part.mean_tR[same_t] - mean) > step + rounding * np.abs(mean)
        room = 1.5 * step * len(part.present_U) + rounding * np.abs(sketch)
        differs = mean_differs.any(axis=1) | (np.abs(part.sketch_t2[same_t] - sketch) > room).any(axis=1)
        if differs.any():
            raise DataError(
                f"{part.field.name}: {part.field.label} and {other.field.label} differ at {int(differs.sum())} of the "
                f"{len(here)} times they share, first at {shown(axis[here[int(differs.argmax())]])}; remove the wrong one from "
                "data.path"
            )
