"""One process at a time writes into a run directory."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from llueve import pipeline
from llueve.errors import RunError
from llueve.runs.lock import LOCK, RunLock

HOLD = """
import sys, time
from pathlib import Path
from llueve.runs.lock import RunLock
RunLock(Path(sys.argv[1])).take()
print("taken", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the lock of the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_with_number_and_host_of_the_first(holder, tmp_path, caplog):
    with RunLock(tmp_path) as lock:
        with pytest.raises(RunError, match=f"is in use by process {holder.pid} on {socket.gethostname()}"):
            lock.take()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        lock.take()
        assert f"was left by process {holder.pid} on {socket.gethostname()}, which has ended" in caplog.text
        assert json.loads((tmp_path / LOCK).read_text()) == {"process": os.getpid(), "host": socket.gethostname()}
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_released_at_the_end_and_can_be_taken_again(tmp_path, caplog):
    for _ in range(2):
        with RunLock(tmp_path) as lock:
            lock.take()
            lock.take()
            with pytest.raises(RunError, match=f"is in use by process {os.getpid()} on "):
                RunLock(tmp_path).take()
    assert not caplog.text and list(tmp_path.iterdir()) == []


def test_a_lock_of_another_host_is_refused_with_advice_that_works(tmp_path, caplog):
    (tmp_path / LOCK).write_text('{"process": 7, "host": "elsewhere"}')
    with RunLock(tmp_path) as lock:
        with pytest.raises(RunError, match=r"names process 7 on elsewhere.*If it has ended, remove this file"):
            lock.take()
        assert (tmp_path / LOCK).exists()
        (tmp_path / LOCK).unlink()
        lock.take()
    (tmp_path / LOCK).write_text('{"process": 7, "host": "elsewhere"}')
    with RunLock(tmp_path) as lock:
        lock.take(restarted=True)  # torchrun has ended that process


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"[" * 5000, b'{"process": 1'])
def test_a_damaged_lock_file_of_an_ended_process_is_taken_over(tmp_path, content):
    (tmp_path / LOCK).write_bytes(content)
    with RunLock(tmp_path) as lock:
        lock.take()


def test_a_link_at_its_name_is_not_followed(tmp_path):
    (tmp_path / LOCK).symlink_to(tmp_path / "outside")
    with RunLock(tmp_path) as lock, pytest.raises(RunError, match="cannot be written"):
        lock.take()
    assert not (tmp_path / "outside").exists()


def test_a_run_in_use_is_not_trained_or_evaluated_but_forecasts(copied):
    before = copied.content()
    with RunLock(copied.run) as lock:
        lock.take()
        for how in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(RunError, match=f"is in use by process {os.getpid()}"):
                copied.train(**how)
        with pytest.raises(RunError, match=f"is in use by process {os.getpid()}"):
            pipeline.evaluate(copied.run)
        assert len(pipeline.predict(copied.run, copied.config().data.path)) == 2
    assert copied.content() == before


def test_two_that_begin_the_same_run_do_not_both_begin_it(trained, tmp_path, monkeypatch):
    """Both find the directory free; the second creates it while the first reads its data."""
    read = pipeline.read_panel

    def meanwhile(config):
        monkeypatch.setattr(pipeline, "read_panel", read)
        pipeline.train(config, tmp_path / "run")
        return read(config)

    monkeypatch.setattr(pipeline, "read_panel", meanwhile)
    with pytest.raises(RunError, match="holds a finished run"):
        pipeline.train(trained.config(), tmp_path / "run")
    assert not (tmp_path / "run" / LOCK).exists()


def test_what_a_killed_process_left_before_its_run_began_is_no_run(trained, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).write_text(json.dumps({"process": 1, "host": socket.gethostname()}))
    (tmp_path / "run" / ".config.toml.part").write_text("[da")
    pipeline.train(trained.config(), tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {path.name for path in trained.run.iterdir()}
