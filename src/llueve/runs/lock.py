"""The lock of a run directory: one process at a time writes into it."""

import json
import logging
import os
import socket
from pathlib import Path
from typing import Any, Self

from llueve.errors import RunError
from llueve.files import NO_LINKS

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""Name of the lock file; it holds process and host of its owner, and is removed at the end."""
LARGEST = 1000
"""Most bytes of a lock file that are read."""


class RunLock:
    """The lock of one run directory, released at the end of the `with` block.

    The operating system ends the lock with its process, so the file of a killed process does not block the next one.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / LOCK
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(self, restarted: bool = False) -> None:
        """Take the lock, unless this object has it already.

        Args:
            restarted: True if torchrun has ended the earlier processes, on whatever host they were.

        Raises:
            RunError: another process has it, or the file cannot be written.
        """
        if self._descriptor is not None:
            return
        try:
            descriptor, locked = self._open()
            try:
                self._take_over(descriptor, locked, restarted)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError as error:
            raise RunError(
                f"{self.path.parent}: cannot be written ({error.strerror or error}); choose another --run, or free the disk"
            ) from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Release the lock and remove its file."""
        if self._descriptor is not None:
            try:
                self.path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("%s: cannot be removed (%s); remove it", self.path, error.strerror or error)
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> tuple[int, bool]:
        """The open file, and False if it cannot be locked; its name leads to this file and not to a later one."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o666)
            try:
                locked = self._lock(descriptor)
                if os.path.samestat(os.fstat(descriptor), self.path.lstat()):
                    return descriptor, locked
            except FileNotFoundError:  # its owner has just released it
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _lock(self, descriptor: int) -> bool:
        try:
            if fcntl is None:
                raise OSError("this system has none")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            raise RunError(
                f"{self.path.parent}: is in use by {_in_words(_owner(descriptor))}; wait until that ends, or give another --run"
            ) from None
        except OSError as error:
            logger.warning(
                "%s: its disk cannot lock files (%s); make sure that no other process uses it", self.path.parent, error
            )
            return False

    def _take_over(self, descriptor: int, locked: bool, restarted: bool) -> None:
        """Write the name of this process into the file; a process before it that was killed has left its own."""
        earlier, host = _owner(descriptor), socket.gethostname()
        if earlier and not restarted and (not locked or earlier.get("host") != host):
            raise RunError(
                f"{self.path}: names {_in_words(earlier)}, and this host ({host}) cannot see if that still runs. "
                "If it has ended, remove this file and give the command again"
            )
        if earlier:
            logger.warning("%s: was left by %s, which has ended; its lock is taken over", self.path, _in_words(earlier))
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, json.dumps({"process": os.getpid(), "host": host}).encode())
        os.fsync(descriptor)


def _owner(descriptor: int) -> dict[str, Any]:
    """Process and host in a lock file; empty if it has none."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    try:
        content = json.loads(os.read(descriptor, LARGEST))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _in_words(owner: dict[str, Any]) -> str:
    return f"process {owner.get('process')} on {owner.get('host')}" if owner else "another process"
