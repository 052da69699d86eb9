"""A training that is killed and gone on with ends in the same bits as one that never was."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forks import LLUEVE, Forked, forks
from llueve import files as writing
from llueve import pipeline
from llueve.cli import main as cli
from llueve.config import load_config
from llueve.errors import ConfigError, DataError, RunError
from llueve.runs import directory as files
from llueve.runs import sealed_file
from llueve.runs.decisive_keys import decisive_keys, differences
from llueve.training.saved_states import Health, SavedStates
from llueve.training.snapshot import Snapshot


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
        days=240,
    )


def start(config: Path, run: Path, *more: str) -> Forked:
    return forks().start(LLUEVE, "train", config, "--run", run, *more)


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


RECIPES = {
    "plain": (),
    "default": ("train.recipe=default",),
    "conservative": ("train.recipe=conservative",),
    "scratch": ("train.recipe=scratch",),
    "phases": ('train.phases=[{name="a", freeze="norms"}, {name="b", warmup_steps=2}]',),
}


def stop_after(monkeypatch, states, config, run):
    """A training that is ended after so many saved states."""
    written, write = [], SavedStates.write

    def once(self, *arguments):
        written.append(write(self, *arguments))
        if len(written) == states:
            raise KeyboardInterrupt
        return written[-1]

    with monkeypatch.context() as patch:
        patch.setattr(SavedStates, "write", once)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(config, run)


@pytest.fixture(scope="module")
def small(tmp_path_factory, write_rainy_table):
    """A table and a configuration of one short epoch."""
    sections = "[train]\nepochs = 1\nbatch_size = 64\n[checkpoints]\nsteps = 1\n"
    return write_rainy_table(tmp_path_factory.mktemp("small"), sections, days=140)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_resumes_with_other_keys_around_the_training(small, tmp_path, monkeypatch, recipe):
    """Calibration, verification, saving, the audit and the place of the table may change; `config.toml` says what was used."""
    keys = (*RECIPES[recipe], "train.patience=1")
    whole, run, moved = tmp_path / "whole", tmp_path / "run", tmp_path / "moved.csv"
    changed = ("verify.bootstrap=150", "checkpoints.minutes=3", "audit.allow=['sentinel']", "track.experiment=other")
    changed += ("calibration.method=platt", "decision.rule=f1")
    stop_after(monkeypatch, 2, load_config(small, keys), run)
    shutil.copy(small.parent / "table.csv", moved)
    config = load_config(small, (*keys, *changed, "processes.timeout_minutes=1", f'data.path="{moved}"'))
    pipeline.train(config, run, resume=True)
    pipeline.train(config, whole)
    assert_same_run(run, whole)
    for name in ("config.toml", "verification.json", "model.json", "audit.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert "bootstrap = 150" in (run / files.CONFIG).read_text() and str(moved) in (run / files.CONFIG).read_text()
    before = (run / files.WEIGHTS).stat().st_mtime_ns
    assert pipeline.train(config, run, resume=True).directory == run
    assert (run / files.WEIGHTS).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("begun", "now"),
    [
        (("train.recipe=default",), ("train.recipe=plain", "train.phases=[{name='head', freeze='encoder', epochs=3, "
          "head_learning_rate=1e-3}, {name='all', encoder_learning_rate=1e-4, head_learning_rate=5e-4, layer_decay=0.8}]")),
        ((), ("train.phases=[{name='training', epochs=1}]", "train.epochs=7")),
        (("train.warmup_epochs=1",), ("train.warmup_epochs=1", "train.warmup_steps=3")),
        ((), ("features.neighbour_variables=['pressure']",)),
        ((), ("data.site_name=other",)),
        ((), ("data.format=csv", "target.event='0'", "model.allow_missing=['x']", "target.allow_sampled=true")),
        (("train.phases=[{name='a', freeze='encoder'}]",),
         ("train.phases=[{name='a', freeze=['encoder'], encoder_learning_rate=0.5, layer_decay=0.5}]",)),
    ],
)  # fmt: skip
def test_another_spelling_of_the_same_training_is_the_same(small, begun, now):
    assert differences(decisive_keys(load_config(small, begun)), decisive_keys(load_config(small, now))) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.recipe=conservative",
            "train.phases was [['training', 'none']] and is [['head', 'encoder'], ['all', 'none']]",
        ),
        ("train.batch_size=4", "train.batch_size was 64 and is 4"),
        ("train.seed=4", "train.seed was 0 and is 4"),
        ("windows.stride=2", "windows.stride was not given and is 2"),
        ("guard.policy=stop", "guard.policy was 'repair' and is 'stop'"),
        ("model.dropout=0.2", "model.dropout was 0.15 and is 0.2"),
        ("split.test_fraction=0.3", "split.test_fraction was 0.2 and is 0.3"),
        ("data.exclude=['pressure']", "data.exclude was [] and is ['pressure']"),
        ("features.neighbours=1", "features.neighbours was 0 and is 1"),
        ("target.horizon_hours=48", "target.horizon_hours was 24.0 and is 48.0"),
        ("regions.a={box=[1,0,0,1]}", "regions.a.box was 'not used' and is [1.0, 0.0, 0.0, 1.0]"),
    ],
)
def test_another_training_is_named(small, override, message):
    found = differences(decisive_keys(load_config(small)), decisive_keys(load_config(small, (override,))))
    assert message in found


def test_every_section_is_decided_upon(small):
    """A new section has to be named here: does it decide a step?"""
    config = load_config(small)
    named = {key.partition(".")[0] for key in decisive_keys(config)}
    around = {"audit", "calibration", "checkpoints", "decision", "track", "processes", "verify", "regions"}
    assert named | around == set(type(config).model_fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("humidity,pressure", "humidity [%],pressure"), "humidity has another unit"),
        (lambda text: _swapped(text), "has its columns in another order"),
    ],
)
def test_a_moved_table_with_other_units_or_another_order_is_refused(small, tmp_path, monkeypatch, change, message):
    moved, run = tmp_path / "moved.csv", tmp_path / "run"
    moved.write_text(change((small.parent / "table.csv").read_text()))
    stop_after(monkeypatch, 1, load_config(small), run)
    before = (run / files.CONFIG).read_bytes()
    with pytest.raises(DataError, match=message):
        pipeline.train(load_config(small, (f'data.path="{moved}"',)), run, resume=True)
    assert (run / files.CONFIG).read_bytes() == before


def _swapped(text):
    rows = [line.split(",") for line in text.splitlines()]
    return "\n".join(",".join((row[0], row[1], row[3], row[2], *row[4:])) for row in rows) + "\n"


def test_a_moved_checkpoint_goes_on_and_another_one_is_refused(small, tmp_path, monkeypatch):
    trained, run = tmp_path / "trained", tmp_path / "run"
    pipeline.train(load_config(small), trained)
    for name in ("one", "two"):
        pipeline.convert(trained, "openltm", tmp_path / name)
    state = torch.load(tmp_path / "two" / "checkpoint.pth", weights_only=True)
    next(iter(state.values())).view(-1)[0] += 1
    torch.save(state, tmp_path / "two" / "checkpoint.pth")

    def config(folder):
        return load_config(small, (f'model.pretrained="{tmp_path / folder}"', "train.recipe=default"))

    stop_after(monkeypatch, 2, config("one"), run)
    with pytest.raises(DataError, match="is not the checkpoint that this training began with"):
        pipeline.train(config("two"), run, resume=True)
    shutil.move(tmp_path / "one", tmp_path / "elsewhere")
    pipeline.train(config("elsewhere"), run, resume=True)
    assert f"{tmp_path / 'elsewhere'}" in (run / files.CONFIG).read_text()


def test_a_finished_run_says_which_keys_have_no_effect_any_more(table, whole, tmp_path, caplog):
    pipeline.train(load_config(table, ("verify.bootstrap=150",)), whole, resume=True)
    assert "its calibration and verification stay as they are: verify.bootstrap was 100 and is 150" in caplog.text
    moved = tmp_path / "other.csv"
    shutil.copy(table.parent / "table.csv", moved)
    with pytest.raises(ConfigError, match=r"data\.path was .* and is .*other\.csv"):
        pipeline.train(load_config(table, (f'data.path="{moved}"',)), whole, resume=True)


def test_a_kill_after_the_verification_leaves_no_saved_states(table, whole, stopped):
    for name in (files.MODEL, files.WEIGHTS, files.VERIFICATION):
        shutil.copy(whole / name, stopped)
    pipeline.train(load_config(table), stopped, resume=True)
    assert not (stopped / files.CHECKPOINTS).exists()


def test_a_kill_while_an_unusable_training_starts_again_can_be_resumed(small, tmp_path, monkeypatch):
    """Without a usable state the files are removed; killed there, the directory is still that of this run."""
    stopped = tmp_path / "run"
    stop_after(monkeypatch, 1, load_config(small), stopped)
    for path in (stopped / files.CHECKPOINTS).iterdir():
        path.unlink()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Run, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(load_config(small), stopped, resume=True)
    assert pipeline.train(load_config(small), stopped, resume=True).directory == stopped


def test_records_are_flushed_and_no_link_is_followed(tmp_path, monkeypatch):
    run, flushed, fsync = files.Run(tmp_path), [], os.fsync

    def remembered(descriptor):
        flushed.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", remembered)
    run.append_history({"epoch": 1})
    history = tmp_path / files.HISTORY
    assert flushed == [history.stat().st_ino, tmp_path.stat().st_ino]
    run.append_history({"epoch": 2})
    run.shorten_history(13)
    assert flushed[2:] == [history.stat().st_ino] * 2 and history.read_text() == '{"epoch": 1}\n'
    history.rename(tmp_path / "outside")
    history.symlink_to(tmp_path / "outside")
    for change in (lambda: run.append_history({"epoch": 2}), lambda: run.shorten_history(0)):
        with pytest.raises(RunError, match="cannot be written"):
            change()
    assert (tmp_path / "outside").read_text() == '{"epoch": 1}\n'
    SavedStates(tmp_path).write_best(1, {"w": torch.ones(1)})
    assert tmp_path.stat().st_ino in flushed[4:], "the name of the new folder"


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
