"""Processes that are forked from one that has imported everything, so each starts in milliseconds instead of seconds.

Run as a program, this file is that process: it imports what llueve and torchrun import, and has no thread of its own.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

LLUEVE = "from llueve.cli.main import main; main()"
MODULE = "import runpy, sys; sys.path.insert(0, '.'); runpy.run_module({!r}, run_name='__main__')"
"""`python -m` of a module in the working directory."""
TORCHRUN = "from torch.distributed.run import main; main()"
"""With `--run-path --start-method=fork` its processes are forked too."""
IMPORTED = ("dask.array", "lightning_fabric", "torch.distributed.run", "llueve.pipeline", "llueve.cli.main")
LARGEST = 2**20
"""Bytes of a request."""


class Forked:
    """A forked process, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, connection: socket.socket, streams: list[Any]) -> None:
        self._answers, self._streams = connection.makefile(), streams
        self._connection = connection
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, None before the end."""
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code; it is negative after a signal."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self.returncode = os.waitstatus_to_exitcode(int(self._answers.readline()))
            self._answers.close()
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end, and return all of standard output and of standard error."""
        self.wait(timeout)
        texts = []
        for stream in self._streams:
            stream.seek(0)
            texts.append(stream.read())
            stream.close()
        return texts[0], texts[-1]

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def end(self, patience: float = 0.0) -> None:
        """End the process if it still runs: politely, then by force after so many seconds."""
        self.send_signal(signal.SIGTERM)
        try:
            self.wait(patience)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGKILL)
            self.wait()


class Forks:
    """Starts processes; `close` ends the one that they are forked from."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="llueve-forks-")
        self._address = str(Path(self._folder.name, "socket"))
        self._server = subprocess.Popen(
            [sys.executable, __file__, self._address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"ready\n", "the imports failed: see standard error"

    def start(
        self,
        code: str,
        *arguments: object,
        merged: bool = False,
        strict: bool = False,
        folder: Path | None = None,
        **environment: str,
    ) -> Forked:
        """Start Python code, whose `communicate` must be called.

        Args:
            code, arguments: what `python -c` would run.
            merged: both streams together become standard output.
            strict: warnings are errors.
            folder: working directory; the present one if None.
            environment: variables to add.
        """
        streams = [tempfile.TemporaryFile("w+") for _ in range(1 if merged else 2)]  # noqa: SIM115 (closed when read)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address)
        request = {
            "code": code,
            "arguments": [str(each) for each in arguments],
            "strict": strict,
            "environment": {**os.environ, **environment},
            "folder": str(folder or Path.cwd()),
        }
        socket.send_fds(connection, [json.dumps(request).encode()], [streams[0].fileno(), streams[-1].fileno()])
        return Forked(connection, streams)

    def run(self, code: str, *arguments: object, **how: Any) -> Any:
        """Run Python code to its end, as `start` does; returns the finished process."""
        process = self.start(code, *arguments, **how)
        out, err = process.communicate()
        return subprocess.CompletedProcess([code, *arguments], process.wait(), out, err)

    def close(self) -> None:
        """End the process that all are forked from."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()
        self._folder.cleanup()


@cache
def forks() -> Forks:
    """Return the one that all tests of this process share; its imports take seconds."""
    found = Forks()
    atexit.register(found.close)
    return found


def _serve(address: str) -> None:
    """Fork a process for each request, until standard input ends."""
    for name in IMPORTED:
        import_module(name)
    assert threading.active_count() == 1, "a fork has no other thread, and what one of them locked stays locked"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the attendants
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)  # noqa: T201
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _attend(connection)
        connection.close()


def _attend(connection: socket.socket) -> None:
    """Start the process of a request, and tell its number and how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts jobs in the background without it
    content, descriptors, *_ = socket.recv_fds(connection, LARGEST, 2)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _run(json.loads(content), descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    connection.sendall(f"{pid}\n".encode())
    status = os.waitpid(pid, 0)[1]
    connection.sendall(f"{status}\n".encode())
    os._exit(0)


def _run(request: dict[str, Any], descriptors: list[int]) -> None:
    """Run the code of a request as a program would, and end."""
    nowhere, code = os.open(os.devnull, os.O_RDONLY), 1
    for number, descriptor in enumerate((nowhere, *descriptors)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.argv = ["llueve", *request["arguments"]]
    if request["strict"]:
        warnings.simplefilter("error")
    try:
        exec(request["code"], {"__name__": "__main__"})
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 (as Python does at the end of a program)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
