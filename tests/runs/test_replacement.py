"""`--overwrite` keeps the earlier run whole until the new one is verified."""

import shlex
import shutil
from pathlib import Path

import pytest

from llueve import pipeline
from llueve.cli import main as cli
from llueve.errors import AuditError, ConfigError, DataError, GuardStop, RunError, UsageError
from llueve.runs import replacement
from llueve.runs.directory import FILES, Run
from llueve.training.saved_states import SavedStates

OTHER = ("train.epochs=2", "checkpoints.steps=2")


@pytest.fixture(scope="module")
def other(trained, tmp_path_factory):
    """The run of the other configuration, alone in its directory."""
    found = type(trained)(tmp_path_factory.mktemp("other") / "run", trained.toml)
    found.train(*OTHER)
    return found


def same(first, second):
    """Two runs of one configuration; seconds in the history differ."""
    one, two = first.content(), second.content()
    assert one.keys() == two.keys()
    assert {name for name in one if one[name] != two[name]} <= {"history.jsonl"}


@pytest.fixture
def ending(monkeypatch):
    """Ends a training with an error when it saves its state for the third time."""
    write, count = SavedStates.write, []

    def end_with(error):
        def once(self, *arguments):
            count.append(write(self, *arguments))
            if len(count) == 3:
                raise error
            return count[-1]

        monkeypatch.setattr(SavedStates, "write", once)

    return end_with


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GuardStop("stopped"), RunError("disk full")])
def test_an_earlier_run_survives_the_end_of_its_replacement(copied, other, ending, caplog, error):
    (copied.run / "notes.txt").write_text("mine")
    before = copied.content()
    ending(error)
    with pytest.raises(type(error)):
        copied.train(*OTHER, overwrite=True)
    assert copied.content() == before
    assert pipeline.evaluate(copied.run)["n"] > 0
    assert (
        f"The new one is unfinished, in {copied.run / 'unfinished'}; to discard it, remove that folder" in caplog.text
    )
    assert ("to resume this training: " in caplog.text) == (not isinstance(error, GuardStop))
    with pytest.raises(RunError, match=r"in unfinished a training that is to replace it.*--resume to continue it"):
        copied.train(*OTHER)
    with pytest.raises(ConfigError, match=r"train\.epochs was 2 and is 1"):
        copied.train(resume=True)
    assert copied.train(*OTHER, resume=True).directory == copied.run
    assert (copied.run / "notes.txt").read_text() == "mine"
    (copied.run / "notes.txt").unlink()
    same(copied, other)


def test_the_command_of_the_log_resumes(copied, other, ending, caplog, monkeypatch, capsys):
    ending(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        copied.train(*OTHER, overwrite=True)
    command = caplog.text.partition("to resume this training: ")[2].splitlines()[0]
    monkeypatch.setattr("sys.argv", shlex.split(command))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0 and "run directory" in capsys.readouterr().out
    same(copied, other)


def test_a_discarded_replacement_leaves_the_earlier_run(copied, ending):
    before = copied.content()
    ending(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        copied.train(*OTHER, overwrite=True)
    shutil.rmtree(copied.run / "unfinished")
    copied.train(resume=True)
    assert copied.content() == before


def test_another_overwrite_starts_the_replacement_again(copied, other, ending):
    ending(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        copied.train("train.epochs=3", "checkpoints.steps=1", overwrite=True)
    copied.train(*OTHER, overwrite=True)
    same(copied, other)


@pytest.mark.parametrize(
    ("override", "error"), [("split.test_fraction=0.95", DataError), ("data.path=gone.csv", DataError)]
)
def test_a_refused_training_leaves_no_trace(copied, override, error):
    before = copied.content()
    with pytest.raises((error, ConfigError, AuditError)):
        copied.train(override, overwrite=True)
    assert copied.content() == before and not (copied.run / "unfinished").exists()


def write(folder: Path, mark: str, *more: str) -> None:
    for name in (*FILES, *more):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(mark)


@pytest.mark.parametrize("first", range(40))
def test_an_interrupted_move_is_completed(tmp_path, monkeypatch, first):
    """Each operation on the disk fails once: either the earlier run is whole, or the next command completes the new one."""
    run, count = Run(tmp_path / "run"), []
    write(run.directory, "old", "incidents/001/step.safetensors", "incidents/002/step.safetensors", "notes.txt")
    write(run.directory / "unfinished", "new", "incidents/001/step.safetensors", "mlflow.json")

    def dying(operation):
        def call(*arguments, **keywords):
            count.append(operation)
            if len(count) == first + 1:
                raise KeyboardInterrupt
            return operation(*arguments, **keywords)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink", "rmdir"):
            patch.setattr(Path, name, dying(getattr(Path, name)))
        try:
            replacement.replace_run(run)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
    if interrupted and first:
        with pytest.raises(RunError, match=r"was interrupted; complete it with `llueve train .*--resume`"):
            Run.open(run.directory)
    if interrupted and not first:
        replacement.replace_run(run)
    replacement.complete_replacement(run)
    found = {path.relative_to(run.directory).as_posix(): path for path in run.directory.rglob("*") if path.is_file()}
    expected = dict.fromkeys((*FILES, "incidents/001/step.safetensors", "mlflow.json"), "new") | {"notes.txt": "old"}
    assert {name: path.read_text() for name, path in found.items()} == expected
    assert {path.name for path in run.directory.iterdir() if path.is_dir()} == {"incidents"}


def test_files_of_the_user_are_never_replaced(tmp_path):
    run = Run(tmp_path / "run")
    write(run.directory, "old", "notes.txt")
    write(run.directory / "unfinished", "new", "notes.txt")
    replacement.replace_run(run)
    assert (run.directory / "notes.txt").read_text() == "old"
    assert (run.directory / "notes.txt.unfinished").read_text() == "new"


def test_a_finished_replacement_that_was_not_moved_is_moved_by_resume(copied, other):
    """A kill just before the move."""
    shutil.copytree(other.run, copied.run / "unfinished")
    copied.train(*OTHER, resume=True)
    same(copied, other)


def test_the_directory_of_a_replacement_is_no_run_of_its_own(copied, ending):
    ending(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        copied.train(*OTHER, overwrite=True)
    with pytest.raises(UsageError, match=f"is to replace the run {copied.run}; give --run {copied.run}"):
        pipeline.train(copied.config(*OTHER), copied.run / "unfinished", resume=True)


@pytest.mark.parametrize("name", ["unfinished", "incidents", "tensorboard", "checkpoints", "features"])
def test_links_are_not_followed(copied, tmp_path, name):
    (tmp_path / "outside").mkdir()
    shutil.copytree(copied.run, tmp_path / "outside", dirs_exist_ok=True)
    before = sorted((tmp_path / "outside").iterdir())
    (copied.run / name).symlink_to(tmp_path / "outside")
    with pytest.raises(RunError, match="is a link, which is not followed"):
        copied.train(*OTHER, overwrite=True)
    assert sorted((tmp_path / "outside").iterdir()) == before
