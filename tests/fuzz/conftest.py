"""A run directory with a model and an incident, made once; and the bounds that every case keeps."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from llueve import pipeline
from llueve.config import load_config
from llueve.errors import LlueveError
from llueve.runs.directory import INCIDENTS

LONGEST = 10.0
"""Seconds of one case: a bound on hangs."""
MOST_GROWTH = 500
"""Megabytes that memory may grow in all cases of a test together."""
LONGEST_MESSAGE = 20_000
"""Most characters of a message."""
FEWEST = 200
"""Least number of refused cases: the mutations must not miss the file."""


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Limits:
    """Runs cases: each succeeds or is refused by an error of llueve, in time."""

    def __init__(self) -> None:
        self.refused = self.accepted = self.longest = 0

    @contextmanager
    def case(self, what: object) -> Iterator[None]:
        """One case; `what` names it if it fails."""
        start, name = time.monotonic(), f"case {what!s:.500}"
        try:
            yield
            self.accepted += 1
        except LlueveError as error:
            self.refused += 1
            self.longest = max(self.longest, len(str(error)))
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error!s:.500}") from error
        assert time.monotonic() - start < LONGEST, f"{name} took {time.monotonic() - start:.0f} s"


@pytest.fixture
def limits() -> Iterator[Limits]:
    before = megabytes()
    found = Limits()
    yield found
    assert megabytes() - before < MOST_GROWTH
    assert found.longest < LONGEST_MESSAGE
    assert found.accepted and found.refused >= FEWEST


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, write_rainy_table: Callable[..., Path]) -> Path:
    """A folder with a table, a configuration, and a finished run `run` that has an incident."""
    folder = tmp_path_factory.mktemp("fuzz")
    config = write_rainy_table(folder, "[train]\nepochs = 1\nbatch_size = 16\n", days=120, holes=(20,))
    small = ("model.layers=1", "model.width=8", "verify.lags=[1]")
    pipeline.train(load_config(config, ("windows.missing=raw", "guard.max_skipped=1", *small)), folder / "run")
    assert list((folder / "run" / INCIDENTS).iterdir())
    return folder
