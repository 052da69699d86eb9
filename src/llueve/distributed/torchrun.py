"""Environment of a process that torchrun started; without torchrun there is one process, and nothing is imported.

These are the parts that a command line needs. The training uses `llueve.distributed.processes`.
"""

import hashlib
import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

STORE_SECONDS = 5.0
"""Longest wait for the store of torchrun before each process prints a message by itself."""


def process_count() -> int:
    """Return the number of processes of this training, on all machines; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def process_rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ["RANK"]) if process_count() > 1 else 0


def is_restarted() -> bool:
    """Return True if torchrun restarted this training after it lost a process (`--max-restarts`)."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def open_store(timeout: timedelta) -> "Store":
    """Return the store through which the processes exchange their addresses; without an answer, RuntimeError is raised."""
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # only for several processes

    # After a restart torchrun offers the same store, which still holds the old addresses.
    return PrefixStore(f"llueve/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", _open_job_store(timeout))


def remember_begun(directory: Path) -> None:
    """Remember in the store of torchrun, for a restart, that this job has begun the run of a directory."""
    if process_count() > 1 and _keeps_store():
        with suppress(RuntimeError):
            _open_job_store(timedelta(seconds=STORE_SECONDS)).set(f"begun/{directory.resolve()}", "1")


def has_begun(directory: Path) -> bool:
    """Return True if this job had begun the run of a directory before torchrun restarted it.

    Without a store that outlives a restart it is always True after one.
    """
    if not is_restarted():
        return False
    if not _keeps_store():
        return True
    try:
        return bool(_open_job_store(timedelta(seconds=STORE_SECONDS)).check([f"begun/{directory.resolve()}"]))
    except RuntimeError:
        return True


def _keeps_store() -> bool:
    """True if torchrun itself keeps the store, also over restarts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _open_job_store(timeout: timedelta) -> "Store":
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # only for several processes

    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=not _keeps_store() and process_rank() == 0,
        multi_tenant=True,
        timeout=timeout,
    )


def is_first_to_say(message: str) -> bool:
    """Return True in the first process that asks about this message: only that process prints it.

    Without a store it is True in each process: a repeated message is better than no message.
    """
    if process_count() == 1:
        return True
    key = f"said/{hashlib.sha256(message.encode()).hexdigest()}"
    try:
        return open_store(timedelta(seconds=STORE_SECONDS)).add(key, 1) == 1
    except RuntimeError:
        return True
