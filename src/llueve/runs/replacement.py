"""The replacement of a run: `--overwrite` trains it in `RUN/unfinished`, and moves it over the earlier run at the end.

The earlier run stays whole until the new one is verified. Then `unfinished` becomes `.replacing`: from this rename on the
new run counts, and an interrupted move is completed by the next training command.
"""

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llueve.errors import GuardStop, RunError
from llueve.files import flush_folder
from llueve.runs.directory import CONFIG, UNFINISHED, Run

logger = logging.getLogger(__name__)


def unfinished_replacement(run: Run) -> Run | None:
    """Return the run that is to replace this one; None if there is none.

    Raises:
        RunError: its directory is a link.
    """
    folder = run.directory / UNFINISHED
    if folder.is_symlink():
        raise RunError(f"{folder}: is a link, which is not followed; remove it")
    return Run(folder) if (folder / CONFIG).is_file() else None


def replace_run(run: Run) -> None:
    """Move the finished run of `unfinished` over the earlier one; files that no run has made stay.

    Raises:
        RunError: the disk is full or read-only.
    """
    with run.writing():
        (run.directory / UNFINISHED).rename(run.replacing)
        flush_folder(run.directory)
    complete_replacement(run)


def complete_replacement(run: Run) -> None:
    """Complete the move of a finished run, if one was interrupted.

    Raises:
        RunError: the disk is full or read-only.
    """
    ready = run.replacing
    if ready.is_symlink() or not ready.is_dir():
        return
    with run.writing():
        if (ready / CONFIG).exists():  # nothing has moved yet, so all files of a run are those of the earlier one
            run.remove_files()
            (ready / CONFIG).replace(run.directory / CONFIG)
            flush_folder(run.directory)
        # In the order of the alphabet verification.json, or model_card.json, follows the other files that a finished run has.
        _move_content(ready, run.directory)
        flush_folder(run.directory)


@contextmanager
def saying_how_to_resume(run: Run, trained: Run, command: str = "train") -> Iterator[None]:
    """Inside, a training that ends early leaves in the log the place of its state, and how to resume or to discard it.

    `trained` is the run itself, or the one that is to replace it; `command` is that of its kind.
    """
    try:
        yield
    except BaseException as error:
        if trained.exists:
            if trained != run:
                logger.warning(
                    "%s: the earlier run is unchanged. The new one is unfinished, in %s; to discard it, remove that folder",
                    run.directory,
                    trained.directory,
                )
            if not isinstance(error, GuardStop):  # it would stop there again
                words = ("llueve", command, str(trained.directory / CONFIG), "--run", str(run.directory), "--resume")
                logger.warning("to resume this training: %s", shlex.join(words))
        raise


def _move_content(source: Path, target: Path) -> None:
    """Move what is in a folder into another one, and remove the folder; no link is followed."""
    for path in sorted(source.iterdir()):
        place = target / path.name
        if path.is_dir() and not path.is_symlink() and place.is_dir() and not place.is_symlink():
            _move_content(path, place)
        elif place.is_symlink() or place.exists():  # not of the earlier run, whose files are gone
            other = place.with_name(f"{path.name}.{UNFINISHED}")
            logger.warning("%s: exists already; the new one becomes %s", place, other.name)
            path.replace(other)
        else:
            path.replace(place)
    flush_folder(target)
    source.rmdir()
