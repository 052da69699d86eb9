"""Base of all sections of the configuration."""

import ast
import inspect
import textwrap
from datetime import date, datetime, time, timedelta
from functools import cache
from itertools import pairwise
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError

TEN_YEARS = 87_660
"""Most hours of any length in time."""
MOST_STEPS = 10**9
"""Most of anything that is counted: steps, epochs, windows."""
NOT_SET = "Not set: "
"""Beginning of the sentence in a key's docstring that explains a key without a value."""


def _as_moment(value: object) -> datetime:
    """A TOML date as its midnight, and a time with an offset as naive UTC: all times of a panel are UTC."""
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return (value - (value.utcoffset() or timedelta())).replace(tzinfo=None)
        if isinstance(value, date):
            return datetime.combine(value, time())
    except (ValueError, OverflowError):  # not ISO 8601, or not within the years 1 to 9999 in UTC
        pass
    raise PydanticCustomError("moment", "no moment")


Moment = Annotated[datetime, BeforeValidator(_as_moment)]
"""A moment in UTC: a TOML date, or a date and time."""


class Section(BaseModel):
    """A frozen table of the TOML file that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def unset_keys(self) -> list[str]:
        """A comment line in TOML for each key without a value, with the meaning of its absence."""
        return [
            f"# {key} =  # not set: {key_docstrings(type(self)).get(key, '').rpartition(NOT_SET)[2].rstrip('.')}"
            for key, value in self
            if value is None
        ]


@cache
def key_docstrings(section: type[Section]) -> dict[str, str]:
    """Docstring of each key on one line, from the source of the class and its parents; empty without that source."""
    found: dict[str, str] = {}
    for parent in reversed([each for each in section.__mro__ if issubclass(each, Section)]):
        try:
            source = inspect.getsource(parent)
        except (OSError, TypeError):  # made at run time, or installed without its source
            continue
        (definition,) = ast.parse(textwrap.dedent(source)).body
        assert isinstance(definition, ast.ClassDef)
        for statement, after in pairwise(definition.body):
            match statement, after:
                case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[key] = " ".join(text.split())
    return found
