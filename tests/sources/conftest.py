"""The fixture that writes small gridded files."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from gridfiles import write_grid


@pytest.fixture
def grid_file(tmp_path: Path) -> Callable[..., Path]:
    """`write_grid` into the test's folder, by name."""

    def write(name: str, variables: Mapping[str, NDArray[Any]], **options: Any) -> Path:
        return write_grid(tmp_path / name, variables, **options)

    return write
