"""What every section of the configuration has in common."""

from datetime import date, datetime, time
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


def _as_moment(value: object) -> object:
    """A TOML date becomes its midnight; an aware moment becomes naive UTC, as everything inside a panel is UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return value
    if isinstance(value, datetime):
        return (value - (value.utcoffset() or (value - value))).replace(tzinfo=None)
    if isinstance(value, date):
        return datetime.combine(value, time())
    return value


Moment = Annotated[datetime, BeforeValidator(_as_moment)]
"""A moment in UTC: a TOML date, or a date and time."""


class Section(BaseModel):
    """A frozen table of the TOML file that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
