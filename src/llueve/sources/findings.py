"""Times in findings and messages."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llueve.panel import Finding


def time_text(time: np.datetime64) -> str:
    """A time as messages show it: `2022-01-02 07:00`, with seconds unless they are zero."""
    return str(np.datetime_as_string(time, unit="s")).replace("T", " ").removesuffix(":00")


def finding_at(
    code: str,
    severity: Literal["warning", "info"],
    message: str,
    times: NDArray[Any],
    variable: str | None = None,
    site: str | None = None,
) -> Finding:
    """A finding with the first, the last and the number of its times (datetime64, or whole seconds since 1970)."""
    first, last = np.array([times.min(), times.max()]).astype("datetime64[s]").astype(str).tolist()
    return Finding(code, severity, message, variable, site, first, last, len(times))
