"""Outputs of commands: what a command writes never replaces its own input, or a file of a run."""

import glob
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from llueve.config import Config
from llueve.errors import DataError, UsageError
from llueve.runs.directory import (
    AUDIT,
    CHECKPOINTS,
    CONFIG,
    FEATURES,
    FILES,
    HISTORY,
    INCIDENTS,
    MLFLOW,
    MODEL,
    PRETRAINING_FILES,
    REPLACING,
    TENSORBOARD,
    UNFINISHED,
)
from llueve.runs.lock import LOCK
from llueve.sources.tables.package_files import package_file

OWN = {*FILES, *PRETRAINING_FILES, MLFLOW, LOCK, INCIDENTS, CHECKPOINTS, FEATURES, TENSORBOARD, UNFINISHED, REPLACING}
"""Names in a run directory that belong to the run."""
DEEPEST = 4
"""Most folders between a run directory and one of its files."""


def require_separate(output: Path, inputs: Iterable[str], run: Path | None = None) -> None:
    """Check that writing to a path destroys no input and no file of a run, under whatever name or link.

    Args:
        output: path that a command will write to.
        inputs: paths, folders and patterns that it reads, or that its run was trained on; addresses are left out.
        run: a run directory that it reads.

    Raises:
        UsageError: it would; the message names the file.
    """
    for folder in output.resolve().parents[:DEEPEST]:
        if _is_run(folder) and (own := _own_name(output.resolve(), folder)):
            raise UsageError(f"--output {output}: is {own} of the run {folder}; give another name")
    try:
        status = output.stat()
    except OSError:  # it does not exist, or the writer will report it
        return
    files = [*_files(inputs), *([] if run is None else _own_files(run))]
    for path in files:
        try:
            found = path.stat()
        except OSError:
            continue
        if (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino):
            raise UsageError(f"--output {output}: is the same file as {path}, which would be lost; give another name")


def require_separate_data(run: Path, config: Config) -> None:
    """Check that a run does not write over the data that it is trained on.

    Raises:
        UsageError: a file of the data has the name and the place of a file of the run.
    """
    for path in _files((config.data.path, *config.data.more_paths)):
        if own := _own_name(path.resolve(), run.resolve()):
            raise UsageError(
                f"data.path = {path}: is {own} of the run {run}, which the training replaces; copy it elsewhere"
            )


def input_paths(config: Config) -> list[str]:
    """Return the paths of the files that a configuration names."""
    data = config.data
    regions = [path for region in config.regions.values() for path in (region.polygon, region.mask)]
    named = (data.path, *data.more_paths, data.land_mask, data.positions, config.model.pretrained_path, *regions)
    return [path for path in named if path is not None]


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in (AUDIT, HISTORY, MODEL))


def _own_name(path: Path, run: Path) -> str | None:
    """Name of the file or folder of the run that a path leads to, on disks that ignore case too; None for another path."""
    if not path.is_relative_to(run) or path == run:
        return None
    first = path.relative_to(run).parts[0].casefold()
    return next((name for name in OWN if first in (name.casefold(), f".{name}.part".casefold())), None)


def _own_files(run: Path) -> Iterator[Path]:
    for name in OWN:
        path = run / name
        yield from path.rglob("*") if path.is_dir() else [path]


def _files(inputs: Iterable[str]) -> Iterator[Path]:
    """The files of paths, folders and patterns."""
    for path in inputs:
        if "://" in path:
            continue
        if path.startswith("package:"):
            with suppress(DataError):  # the reader will say why it is not read
                yield package_file(path)
            continue
        place = Path(path)
        if place.is_dir():
            yield from (each for each in place.rglob("*") if each.is_file())
        elif not place.exists() and glob.has_magic(path):
            yield from map(Path, glob.iglob(path, recursive=True))  # noqa: PTH207 (a whole pattern, as in data.path)
        else:
            yield place
