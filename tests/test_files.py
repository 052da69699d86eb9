"""Files are written whole or not at all, and small files are read with a bound."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from llueve.errors import CheckpointError
from llueve.files import append, make_folder, read_small, shorten, write_result, write_whole

OLD, NEW = b"old content", [b"new ", memoryview(b"content")]


@pytest.fixture
def path(tmp_path):
    """A file that exists already."""
    path = tmp_path / "state"
    path.write_bytes(OLD)
    return path


def names(path):
    return sorted(each.name for each in path.parent.iterdir())


@pytest.mark.parametrize("exists", [True, False])
def test_the_pieces_are_written_in_order_and_nothing_else_is_left(path, exists):
    if not exists:
        path.unlink()
    write_whole(path, iter(NEW))
    assert path.read_bytes() == b"new content"
    assert names(path) == ["state"]


def test_the_file_and_its_folder_are_flushed_before_and_after_the_new_name(path, monkeypatch):
    seen = []

    def fsync(number):
        seen.append((stat.S_ISDIR(os.fstat(number).st_mode), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(path, NEW)
    assert seen == [(False, OLD), (True, b"new content")]


def failing_pieces():
    yield b"new "
    raise ValueError("no more pieces")


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["a piece", "the flush", "the new name", "the opening"])
def test_a_failure_leaves_the_old_file_and_nothing_else(path, monkeypatch, place):
    if place == "the flush":
        monkeypatch.setattr(os, "fsync", no_space)
    elif place == "the new name":
        monkeypatch.setattr(type(path), "replace", no_space)
    elif place == "the opening":
        monkeypatch.setattr(os, "open", no_space)
    pieces, kind = (failing_pieces(), ValueError) if place == "a piece" else (NEW, OSError)
    with pytest.raises(kind):
        write_whole(path, pieces)
    assert path.read_bytes() == OLD
    assert names(path) == ["state"]


def test_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "absent" / "state", NEW)
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_file_of_an_earlier_write_is_replaced(path):
    path.with_name(".state.part").write_bytes(b"a longer piece of an earlier write")
    write_whole(path, NEW)
    assert path.read_bytes() == b"new content"
    assert names(path) == ["state"]


def test_a_link_at_the_temporary_name_is_replaced_and_not_followed(path, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    path.with_name(".state.part").symlink_to(outside)
    write_whole(path, NEW)
    assert outside.read_bytes() == b"mine"
    assert path.read_bytes() == b"new content" and not path.is_symlink()
    assert names(path) == ["outside", "state"]


def test_a_link_that_appears_before_the_opening_is_not_followed(path, tmp_path, monkeypatch):
    outside, real = tmp_path / "outside", os.open

    def opened(name, flags, *more):
        if str(name).endswith(".part"):
            Path(name).symlink_to(outside)
        return real(name, flags, *more)

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(OSError, match="exists"):
        write_whole(path, NEW)
    assert not outside.exists() and path.read_bytes() == OLD


def test_a_folder_at_the_temporary_name_is_an_error(path):
    path.with_name(".state.part").mkdir()
    with pytest.raises(OSError, match=r"\.state\.part"):
        write_whole(path, NEW)
    assert path.read_bytes() == OLD


def test_a_kill_between_two_pieces_leaves_the_old_file(path):
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from llueve.files import write_whole\n"
        "def pieces():\n"
        "    yield bytes(2**20)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_whole(Path(sys.argv[1]), pieces())\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == OLD
    assert names(path) == [".state.part", "state"]
    write_whole(path, NEW)
    assert path.read_bytes() == b"new content" and names(path) == ["state"]


@pytest.fixture
def flushed(monkeypatch):
    """The inodes that are flushed, in order."""
    seen, fsync = [], os.fsync

    def remembered(number):
        seen.append(os.fstat(number).st_ino)
        fsync(number)

    monkeypatch.setattr(os, "fsync", remembered)
    return seen


def test_what_is_added_is_flushed_and_the_folder_once(path, flushed):
    path.unlink()
    append(path, b"one\n")
    append(path, b"two\n")
    shorten(path, 4)
    shorten(path, 100)
    file, folder = path.stat().st_ino, path.parent.stat().st_ino
    assert path.read_bytes() == b"one\n" and flushed == [file, folder, file, file]


@pytest.mark.parametrize("change", [lambda path: append(path, b"more"), lambda path: shorten(path, 1)])
def test_a_link_is_neither_added_to_nor_shortened(path, change):
    path.with_name("link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        change(path.with_name("link"))
    assert path.read_bytes() == OLD


def test_new_folders_are_flushed_in_the_folder_above(tmp_path, flushed):
    make_folder(tmp_path / "a" / "b")
    assert set(flushed) == {tmp_path.stat().st_ino, (tmp_path / "a").stat().st_ino}
    make_folder(tmp_path / "a" / "b")
    assert len(flushed) == 2
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="exists"):
        make_folder(tmp_path / "file")


def test_a_result_is_written_whole_through_a_link_and_into_a_pipe(path, tmp_path):
    path.with_name("link").symlink_to(path)
    write_result(path.with_name("link"), b"new")
    assert path.read_bytes() == b"new" and path.with_name("link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_result(tmp_path / "pipe", b"sent")
    assert os.read(reader, 10) == b"sent" and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    os.close(reader)
    with pytest.raises(IsADirectoryError):
        write_result(tmp_path, b"new")


def test_a_small_file_is_read_and_a_larger_one_or_a_link_is_refused(path):
    assert read_small(path, len(OLD)) == OLD
    with pytest.raises(CheckpointError, match=r"state: has 11 bytes, expected at most 10"):
        read_small(path, len(OLD) - 1)
    link = path.with_name("link")
    link.symlink_to(path)
    for other in (link, path.parent):
        with pytest.raises(CheckpointError, match="links are not followed"):
            read_small(other, 100)
    with pytest.raises(CheckpointError, match=r"absent: cannot be read \(No such file"):
        read_small(path.with_name("absent"), 100)
