"""A small trained run, and copies of it to change."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llueve import pipeline
from llueve.config import Config, load_config

TRAINING = """
[train]
epochs = 1
batch_size = 32
warmup_steps = 2
"""


@dataclass(frozen=True)
class Trained:
    """A run, and the configuration that it was trained with."""

    run: Path
    toml: Path

    def config(self, *overrides: str) -> Config:
        return load_config(self.toml, overrides)

    def train(self, *overrides: str, **how: Any) -> pipeline.Result:
        return pipeline.train(self.config(*overrides), self.run, console=Console(quiet=True), **how)

    def content(self) -> dict[str, bytes]:
        """Every file of the run directory, except those of an unfinished replacement."""
        files = {path.relative_to(self.run).as_posix(): path for path in self.run.rglob("*") if path.is_file()}
        return {name: path.read_bytes() for name, path in files.items() if not name.startswith("unfinished/")}


@pytest.fixture(scope="session")
def trained(tmp_path_factory, write_rainy_table) -> Trained:
    """A run that no test may change."""
    folder = tmp_path_factory.mktemp("trained")
    found = Trained(folder / "run", write_rainy_table(folder, TRAINING, days=200))
    found.train()
    return found


@pytest.fixture
def copied(trained, tmp_path) -> Trained:
    """A copy of the run and its configuration."""
    shutil.copytree(trained.run, tmp_path / "run")
    return Trained(tmp_path / "run", trained.toml)
