"""No command writes over its own input, or over a file of a run."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from llueve import pipeline
from llueve.cli import main as cli
from llueve.errors import LlueveError, UsageError
from llueve.runs.directory import WEIGHTS


@pytest.fixture
def llueve(monkeypatch, capsys):
    """The command line; returns exit code and messages."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["llueve", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, " ".join(capsys.readouterr().err.split())

    return call


@pytest.fixture
def table(trained, tmp_path):
    """New data to forecast from."""
    return Path(shutil.copy(trained.toml.parent / "table.csv", tmp_path / "new.csv"))


def spellings(table: Path) -> dict[str, Path]:
    folder = table.parent
    (folder / "link.csv").symlink_to(table)
    (folder / "hard.csv").hardlink_to(table)
    (folder / "linked").symlink_to(folder)
    (folder / "sub").mkdir()
    return {
        "its own name": table,
        "relative": Path(os.path.relpath(table)),
        "with dots": folder / "sub" / ".." / "new.csv",
        "a link": folder / "link.csv",
        "a hard link": folder / "hard.csv",
        "a linked folder": folder / "linked" / "new.csv",
    }


def test_forecasts_never_replace_their_input(copied, table, llueve):
    before = table.read_bytes()
    for name, output in spellings(table).items():
        code, said = llueve("predict", copied.run, table, "--output", output)
        assert code == 2 and "which would be lost; give another name" in said, name
        assert table.read_bytes() == before, name
    code, said = llueve("predict", copied.run, table.parent / "link.csv", "--output", table)
    assert code == 2 and table.read_bytes() == before


def test_forecasts_never_replace_the_table_of_the_training(copied, table, llueve):
    own = Path(copied.config().data.path)
    before = own.read_bytes()
    code, said = llueve("predict", copied.run, table, "--output", own)
    assert code == 2 and str(own) in said and own.read_bytes() == before


def test_forecasts_never_replace_a_file_of_any_run(copied, table, trained, llueve):
    before = copied.content()
    (copied.run.parent / "linked-run").symlink_to(copied.run)
    (copied.run.parent / "hard.csv").hardlink_to(copied.run / "model.json")
    outputs = [copied.run / name for name in before]
    outputs += [copied.run.parent / "linked-run" / "model.json", copied.run / "MODEL.json", copied.run / ".lock"]
    outputs += [copied.run / "incidents" / "001" / "step.safetensors", copied.run.parent / "hard.csv"]
    for run, output in [(copied.run, each) for each in outputs] + [(trained.run, copied.run / "config.toml")]:
        code, said = llueve("predict", run, table, "--output", output)
        assert code == 2 and "give another name" in said, output
    assert copied.content() == before


def test_forecasts_are_written_whole_and_through_links(copied, table, llueve, monkeypatch):
    kept = table.parent / "kept.csv"
    kept.write_text("earlier")
    (table.parent / "latest.csv").symlink_to(kept)
    assert llueve("predict", copied.run, table, "--output", table.parent / "latest.csv")[0] == 0
    assert (table.parent / "latest.csv").is_symlink() and kept.read_text().startswith("site,time,probability,event\n")
    inside = copied.run / "forecasts.csv"  # a new file in the run directory is no file of the run
    assert llueve("predict", copied.run, table, "--output", inside)[0] == 0
    assert inside.read_bytes() == kept.read_bytes()

    def fails(*_):
        raise OSError(28, "No space left on device")

    before = kept.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        code, said = llueve("predict", copied.run, table, "--output", kept)
    assert code == 1 and "No space left on device" in said
    assert kept.read_bytes() == before and not list(table.parent.glob(".*.part"))


def test_a_device_is_written_to_and_not_replaced(copied, table, llueve):
    assert llueve("predict", copied.run, table, "--output", "/dev/null")[0] == 0
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


def test_a_converted_encoder_never_becomes_a_file_of_a_run(copied, trained):
    (copied.run / WEIGHTS).unlink()
    before = copied.content()
    with pytest.raises(UsageError, match=r"is model\.safetensors of the run"):
        pipeline.convert(trained.run, "safetensors", copied.run)
    assert copied.content() == before


def test_a_link_at_the_name_of_a_converted_encoder_is_not_replaced(trained, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / WEIGHTS).symlink_to(tmp_path / "absent")
    with pytest.raises(UsageError, match="exists already"):
        pipeline.convert(trained.run, "safetensors", tmp_path / "out")


def test_a_download_never_replaces_a_file_of_a_run(copied, llueve):
    before = copied.content()
    days = ("--start", "2020-01-01", "--end", "2020-01-31")
    place = ("--latitude", "1", "--longitude", "1", "--url", "http://127.0.0.1:9")
    for name in ("predictions.csv", "model.json", "verification.json"):
        code, said = llueve("data", "openmeteo", *place, *days, "--output", copied.run / name, "--overwrite")
        assert code == 2 and f"is {name} of the run" in said
    assert copied.content() == before


def test_a_link_at_the_name_of_the_parts_of_a_download_is_not_followed(tmp_path, llueve):
    (tmp_path / "outside").mkdir()
    (tmp_path / "new.csv.parts").symlink_to(tmp_path / "outside")
    days = ("--start", "2020-01-01", "--end", "2020-01-31")
    place = ("--latitude", "1", "--longitude", "1", "--url", "http://127.0.0.1:9")
    code, said = llueve("data", "openmeteo", *place, *days, "--output", tmp_path / "new.csv")
    assert code == 2 and "is a link, which is not followed" in said


def test_a_training_never_replaces_its_own_data(copied):
    inside = copied.run / "predictions.csv"
    shutil.copy(copied.config().data.path, inside)
    before = inside.read_bytes()
    with pytest.raises(UsageError, match=r"is predictions\.csv of the run"):
        copied.train(f'data.path="{inside}"', overwrite=True)
    assert inside.read_bytes() == before


def test_a_training_never_replaces_the_configuration_it_was_given(copied, llueve):
    (copied.run.parent / "hard.toml").hardlink_to(copied.run / "config.toml")
    before = copied.content()
    code, said = llueve("train", copied.run.parent / "hard.toml", "--run", copied.run, "--overwrite")
    assert code == 2 and "lies in the run directory" in said and copied.content() == before


def test_an_output_that_is_a_folder_is_refused(copied, table, llueve):
    code, said = llueve("predict", copied.run, table, "--output", table.parent)
    assert code == 1 and "cannot be written" in said
    assert issubclass(UsageError, LlueveError)
