"""The fields of one variable, from however many files, as one series per site.

Shapes: T times of the panel, R regions, U cells that some region uses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llueve.errors import DataError
from llueve.panel import Finding
from llueve.sources.blocks import Block, Layout, computed, delayed_blocks
from llueve.sources.gridded import Field
from llueve.sources.timeline import Floats, Seconds, moment

Compute = Callable[[Sequence[Any]], Any]


@dataclass(frozen=True)
class Series:
    """One variable over the panel's times and regions."""

    mean_TR: Floats
    cells_R: NDArray[np.int64]
    """Cells that ever have a value."""
    told_T: NDArray[np.bool_]
    """Times that some file has."""
    preliminary_T: NDArray[np.bool_]
    findings: list[Finding]


@dataclass(frozen=True)
class _Part:
    """One field, reduced: its times as positions in the panel, and its blocks end to end."""

    field: Field
    at: NDArray[np.intp]
    mean_tR: Floats
    cells_tR: NDArray[np.int64]
    present_U: NDArray[np.int64]
    sketch_t2: Floats
    preliminary: NDArray[np.bool_]


def merge(
    fields: list[Field],
    axis: Seconds,
    layout: Layout,
    regions: Sequence[str],
    least: float | None,
    compute: Compute,
    sentinels: tuple[float, ...] = (),
) -> Series:
    """Reduce the fields of one variable and lay them on the panel's times.

    Where files share a time, final values go before preliminary ones, and of equal standing they must be equal. A mean is
    kept only where every cell is there that ever is: with fewer, it would be the mean of another place.

    Raises:
        DataError: files differ at a time they share; a value is below zero that cannot be, infinite, or an undeclared fill.
    """
    count = np.zeros(len(axis), np.int64)
    spans = [_span(field, axis) for field in fields]
    for field, span in zip(fields, spans, strict=True):
        count[np.searchsorted(axis, field.seconds[span])] += 1
    findings: list[Finding] = []
    parts = []
    for field, span in zip(fields, spans, strict=True):
        at = np.searchsorted(axis, field.seconds[span])
        if len(at):
            shared = bool((count[at] > 1).any())
            work = delayed_blocks(field, span, layout, least, shared, sentinels)
            parts.append(_reduced(field, at, span, axis, computed(work, compute, field.label), findings))
    mean_TR, cells_TR, told_T, preliminary_T = _laid(parts, axis, len(regions), findings)
    present_U = np.sum([part.present_U for part in parts], axis=0)
    cells_R = np.array([(present_U[member] > 0).sum() for member in layout.members], np.int64)
    partly_TR = (cells_TR > 0) & (cells_TR < cells_R)
    mean_TR[partly_TR] = np.nan
    for region in np.flatnonzero(partly_TR.any(axis=0)).tolist():
        times = np.flatnonzero(partly_TR[:, region])
        message = (
            f"{fields[0].name}: {regions[region]}: {len(times)} times lack some of its {cells_R[region]} cells; a mean of the "
            "others would be of another place, so these times count as missing"
        )
        findings.append(
            Finding(
                "partial_cells",
                "warning",
                message,
                fields[0].name,
                regions[region],
                moment(axis[times[0]]),
                moment(axis[times[-1]]),
                len(times),
            )
        )
    return Series(mean_TR, cells_R, told_T, preliminary_T, findings)


def _span(field: Field, axis: Seconds) -> slice:
    """The field's times within the panel's."""
    first, last = np.searchsorted(field.seconds, [axis[0], axis[-1] + 1])
    return slice(int(first), int(last))


def _reduced(
    field: Field,
    at: NDArray[np.intp],
    span: slice,
    axis: Seconds,
    blocks: list[Block],
    findings: list[Finding],
) -> _Part:
    """The blocks of one field, checked and laid end to end."""
    _refuse_values(field, blocks, axis[at])
    if tiny := sum(block.tiny for block in blocks):
        message = f"{field.label}: {field.name}: {tiny:,} values a little below zero, as packing leaves them, became 0"
        findings.append(Finding("packing_noise", "info", message, variable=field.name, count=tiny))
    if marked := sum(block.marked for block in blocks):
        message = f"{field.label}: {field.name}: {marked:,} values are data.sentinels and count as missing"
        findings.append(Finding("sentinels", "info", message, variable=field.name, count=marked))
    filled = np.concatenate([block.filled for block in blocks])
    return _Part(
        field,
        at,
        np.vstack([block.mean_tR for block in blocks]),
        np.vstack([block.cells_tR for block in blocks]).astype(np.int64),
        np.sum([block.present_U for block in blocks], axis=0),
        np.vstack([block.sketch_tU for block in blocks]),
        field.preliminary[span] | filled,
    )


def _refuse_values(field: Field, blocks: list[Block], seconds: Seconds) -> None:
    """Raise for values that no such quantity has."""
    start = 0
    for block in blocks:
        for found, why in (
            (block.mark, 'apart from all others, a mark for "missing"; name it in data.sentinels'),
            (block.wild, "infinite, or a fill value that the file does not declare (_FillValue)"),
            (block.worst, "below zero by more than packing explains, which such a sum cannot be"),
        ):
            if found is not None:
                value, time = found
                raise DataError(
                    f"{field.label}: {field.name}: {value:g} at {moment(seconds[start + time])}: {why}; mend the file, or "
                    f"leave {field.name} out with data.exclude"
                )
        start += len(block.mean_tR)


def _laid(
    parts: list[_Part], axis: Seconds, regions: int, findings: list[Finding]
) -> tuple[Floats, NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """The parts on the panel's times: means, cells, times that some file has, times that are preliminary."""
    mean_TR = np.full((len(axis), regions), np.nan)
    cells_TR = np.zeros((len(axis), regions), np.int64)
    owner_T = np.full(len(axis), -1)
    told_T, preliminary_T = np.zeros(len(axis), np.bool_), np.zeros(len(axis), np.bool_)
    sketch_T2 = np.full((len(axis), 2), np.nan)
    repeated = replaced = 0
    for number, part in enumerate(parts):
        told_T[part.at] = True
        empty = cells_TR[part.at].sum(axis=1) == 0
        takes, both = empty, ~empty & (part.cells_tR.sum(axis=1) > 0)
        newer = both & preliminary_T[part.at] & ~part.preliminary
        older = both & ~preliminary_T[part.at] & part.preliminary
        equal = both & ~newer & ~older
        for other in np.unique(owner_T[part.at][equal]):
            same = equal & (owner_T[part.at] == other)
            _compare(parts[int(other)], part, same, mean_TR, sketch_T2, axis)
        takes = takes | newer
        here = part.at[takes]
        mean_TR[here], cells_TR[here] = part.mean_tR[takes], part.cells_tR[takes]
        sketch_T2[here], owner_T[here] = part.sketch_t2[takes], number
        preliminary_T[here] = part.preliminary[takes]
        repeated += int(equal.sum())
        replaced += int((newer | older).sum())
    name = parts[0].field.name if parts else None
    if repeated:
        message = f"{name}: {repeated} times are in several files, with equal values"
        findings.append(Finding("repeated_times", "info", message, variable=name, count=repeated))
    if replaced:
        message = (
            f"{name}: {replaced} times are in several files; the final values were taken, not the preliminary ones"
        )
        findings.append(Finding("final_over_preliminary", "info", message, variable=name, count=replaced))
    return mean_TR, cells_TR, told_T, preliminary_T


def _compare(
    other: _Part, part: _Part, same: NDArray[np.bool_], mean_TR: Floats, sketch_T2: Floats, axis: Seconds
) -> None:
    """Raise unless two files hold equal values at the times they share, but for how each is packed."""
    packing = [
        (p.field.array.encoding.get("scale_factor"), p.field.array.encoding.get("add_offset")) for p in (other, part)
    ]
    alike = packing[0] == packing[1] and other.field.array.dtype == part.field.array.dtype
    step = 0.0 if alike else other.field.packing_step + part.field.packing_step
    rounding = 0.0 if alike else 1e-6
    here = part.at[same]
    mean_apart = np.abs(part.mean_tR[same] - mean_TR[here]) > step + rounding * np.abs(mean_TR[here])
    room = 1.5 * step * len(part.present_U) + rounding * np.abs(sketch_T2[here])
    apart = mean_apart.any(axis=1) | (np.abs(part.sketch_t2[same] - sketch_T2[here]) > room).any(axis=1)
    if apart.any():
        raise DataError(
            f"{part.field.name}: {part.field.label} and {other.field.label} differ at {int(apart.sum())} of the "
            f"{len(here)} times they share, first at {moment(axis[here[int(apart.argmax())]])}; take the wrong one out of "
            "data.path"
        )
