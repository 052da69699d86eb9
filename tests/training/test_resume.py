"""A training that is killed and gone on with ends in the same bits as one that never was."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llueve import files as writing
from llueve import pipeline
from llueve.cli import main as cli
from llueve.config import load_config
from llueve.errors import ConfigError, DataError, RunError
from llueve.runs import directory as files
from llueve.runs import sealed_file
from llueve.training.saved_states import Health, SavedStates
from llueve.training.snapshot import Snapshot

RUN = """
import sys
import torch
torch.set_num_threads(1)
from llueve.cli import main as cli
sys.argv = ["llueve", *sys.argv[1:]]
cli.main()
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory, write_rainy_table):
    """A table, and a configuration of several small epochs."""
    return write_rainy_table(
        tmp_path_factory.mktemp("table"),
        """
[train]
epochs = 4
patience = 4
batch_size = 8
warmup_steps = 5
average_decay = 0.9
[checkpoints]
steps = 3
""",
    )


def start(config: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, "train", str(config), "--run", str(run), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def history(run):
    lines = [json.loads(line) for line in (run / files.HISTORY).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same_run(first, second):
    one, other = load_file(first / files.WEIGHTS), load_file(second / files.WEIGHTS)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (first / files.PREDICTIONS).read_bytes() == (second / files.PREDICTIONS).read_bytes()
    assert history(first) == history(second)


@pytest.fixture(scope="module")
def whole(table, tmp_path_factory):
    """The run that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    process = start(table, run)
    output = process.communicate()
    assert process.returncode == 0, output
    return run


def _newest(run):
    folder = run / files.CHECKPOINTS
    return max((path.name for path in folder.glob("[0-9]*.safetensors")), default="") if folder.is_dir() else ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_state_and_ends_with_its_own_code(table, whole, tmp_path, number, code):
    run = tmp_path / "run"
    process = start(table, run)
    while process.poll() is None and not _newest(run):
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code, errors
    assert "continue with --resume" in " ".join(errors.split())
    process = start(table, run, "--resume")
    output = process.communicate()
    assert process.returncode == 0, output
    assert_same_run(run, whole)


class Short:
    """A file that takes half of what is written, and then has no room."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["write", "short", "fsync", "replace", "directory"])
@pytest.mark.parametrize("which", [1, 4])
def test_a_failure_inside_the_write_costs_nothing(table, whole, tmp_path, monkeypatch, where, which):
    """The disk fails, or fills up, at one of the steps of writing a state: the ones before it are intact."""
    run, config = tmp_path / "run", load_config(table)
    torch.set_num_threads(1)
    seen = []

    def failing(original):
        def call(*arguments, **keywords):
            seen.append(None)
            if len(seen) == which:
                raise OSError(28, "No space left on device")
            return original(*arguments, **keywords)

        return call

    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(sealed_file, "save", failing(sealed_file.save))
        elif where == "short":
            opened, latest = os.fdopen, [Path()]

            def open_as_number(path, *more):
                latest[0] = Path(path)
                return opening(path, *more)

            def short(descriptor, *more, **keywords):
                file = opened(descriptor, *more, **keywords)
                is_state = latest[0].parent.name == files.CHECKPOINTS
                seen.extend([None] * is_state)
                return Short(file) if len(seen) == which and is_state else file

            opening = os.open
            patch.setattr(writing.os, "open", open_as_number)
            patch.setattr(writing.os, "fdopen", short)
        elif where == "replace":
            patch.setattr(Path, "replace", failing(Path.replace))
        elif where == "fsync":
            patch.setattr(writing.os, "fsync", failing(os.fsync))
        else:
            patch.setattr(writing, "flush_folder", failing(writing.flush_folder))
        with pytest.raises(RunError, match="No space left on device"):
            pipeline.train(config, run)
    assert not list((run / files.CHECKPOINTS).glob("*.part")) if (run / files.CHECKPOINTS).is_dir() else True
    pipeline.train(config, run, resume=True)
    assert_same_run(run, whole)


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of so many bytes, or makes it as large."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(size, *more):
        command = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}", *more)), "none", str(folder)]
        if shutil.which("mount") is None or os.geteuid() != 0:
            pytest.skip("a disk of its own can only be mounted by root")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no disk of its own can be mounted here: {done.stderr.strip()}")
        return folder

    yield make
    if folder.is_mount():
        # Lazily: what was read there is still mapped into memory.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("left", [0, 12_288])
def test_a_disk_that_is_really_full_ends_the_run_and_costs_nothing(table, whole, small_disk, capsys, monkeypatch, left):
    """With no byte left, or less than a state needs: the last state is intact, and with more room all goes on from it."""
    disk, count = small_disk(2**23), []
    run, write = disk / "run", SavedStates.write

    def filling(self, *arguments):
        count.append(None)
        if len(count) == 30:
            free = os.statvfs(disk)
            (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_bsize - left))
        return write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SavedStates, "write", filling)
        patch.setattr("sys.argv", ["llueve", "train", str(table), "--run", str(run)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "No space left on device" in told and "continue with --resume" in told
    assert len(count) == 30 and _newest(run) == "000029.safetensors"
    kept = SavedStates(run).newest()
    assert kept is not None and kept.path.name == "000029.safetensors"
    (disk / "filler").unlink()
    pipeline.train(load_config(table), run, resume=True)
    assert_same_run(run, whole)


@pytest.fixture
def stopped(table, tmp_path, monkeypatch):
    """A run that was ended in its second epoch."""
    torch.set_num_threads(1)
    run, written = tmp_path / "run", []
    write = SavedStates.write

    def once(self, *arguments):
        written.append(write(self, *arguments))
        if len(written) == 40:
            raise KeyboardInterrupt
        return written[-1]

    with monkeypatch.context() as patch:
        patch.setattr(SavedStates, "write", once)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(load_config(table), run)
    return run


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "absent", "header"])
def test_a_damaged_newest_state_falls_back_with_a_word(table, whole, stopped, caplog, damage):
    newest = stopped / files.CHECKPOINTS / _newest(stopped)
    content = bytearray(newest.read_bytes())
    if damage == "torn":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[-100] ^= 1
    elif damage == "empty":
        content = b""
    elif damage == "header":
        content[60] ^= 1
    if damage == "absent":
        newest.unlink()
    else:
        newest.write_bytes(content)
    pipeline.train(load_config(table), stopped, resume=True)
    assert damage == "absent" or "the state before it is used" in caplog.text
    assert_same_run(stopped, whole)


def test_only_the_last_two_and_the_best_are_kept(stopped):
    names = sorted(path.name for path in (stopped / files.CHECKPOINTS).iterdir())
    assert len([name for name in names if name[0].isdigit()]) == 2
    assert 1 <= len([name for name in names if name.startswith("best")]) <= 2


def test_a_finished_run_has_no_states_and_says_that_it_is_finished(table, whole, caplog):
    caplog.set_level("INFO")
    assert not (whole / files.CHECKPOINTS).exists()
    before = (whole / files.WEIGHTS).stat().st_mtime_ns
    pipeline.train(load_config(table), whole, resume=True)
    assert "is finished already" in caplog.text
    assert (whole / files.WEIGHTS).stat().st_mtime_ns == before
    with pytest.raises(RunError, match="holds a finished run"):
        pipeline.train(load_config(table), whole)


def test_another_configuration_or_table_is_refused(table, stopped, tmp_path):
    other = load_config(table, ("train.batch_size=4",))
    with pytest.raises(ConfigError, match=r"train\.batch_size was 8 and is 4"):
        pipeline.train(other, stopped, resume=True)
    original = (table.parent / "table.csv").read_text()
    try:
        (table.parent / "table.csv").write_text(original.replace("0.1", "0.2", 1))
        with pytest.raises(DataError, match="cells have changed"):
            pipeline.train(load_config(table), stopped, resume=True)
    finally:
        (table.parent / "table.csv").write_text(original)


def test_a_poisoned_state_is_not_gone_on_from_and_the_healthy_one_stays(tmp_path, caplog):
    states = SavedStates(tmp_path)
    facts = {"place": {"best_epoch": 0}, "guard": {}}
    sound = Snapshot({"model.w": torch.ones(3)}, facts)
    poisoned = Snapshot({"model.w": torch.tensor([1.0, float("nan")])}, facts)
    first = states.write(sound, Health.of(sound, 0.5))
    for _ in range(3):
        states.write(poisoned, Health.of(poisoned, 0.5))
    states.write(sound, Health.of(sound, float("nan")))
    found = states.newest()
    assert found is not None and found.path == first
    assert caplog.text.count("unhealthy, so it is skipped") == 2


def test_a_state_whose_best_weights_are_damaged_is_not_gone_on_from(tmp_path, caplog):
    states = SavedStates(tmp_path)
    for epoch in (1, 2):
        states.write_best(epoch, {"w": torch.ones(3)})
        state = Snapshot({"model.w": torch.ones(3)}, {"place": {"best_epoch": epoch}, "guard": {}})
        states.write(state, Health.of(state, 0.5))
    best = states.folder / "best-0002.safetensors"
    best.write_bytes(best.read_bytes()[:-1])
    found = states.newest()
    assert found is not None and found.snapshot.place.best_epoch == 1
    assert "best-0002.safetensors: is torn or damaged" in caplog.text


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / files.CHECKPOINTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a link"):
        SavedStates(tmp_path / "run").newest()
