"""What torchrun tells a process about itself and the others; without torchrun there is one process, and nothing is imported.

Only what a command line needs: the training itself is `llueve.training.processes`.
"""

import hashlib
import os
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

STORE_SECONDS = 5.0
"""How long the meeting point of the processes is waited for before a message is told without it."""


def process_count() -> int:
    """Processes of this training, on all machines; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def process_rank() -> int:
    """Number of this process among them, from 0."""
    return int(os.environ["RANK"]) if process_count() > 1 else 0


def is_restarted() -> bool:
    """Whether torchrun has started this training again after a process was lost (`--max-restarts`)."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def open_store(timeout: timedelta) -> "Store":
    """The meeting point of the processes of this start: after a restart nothing of the one before is met there.

    Raises:
        RuntimeError: it is not there.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # only for several processes

    agent_hosts = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=not agent_hosts and process_rank() == 0,
        multi_tenant=True,
        timeout=timeout,
    )
    # torchrun offers the same store after each restart, with the old addresses in it.
    return PrefixStore(f"llueve/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def is_first_to_say(message: str) -> bool:
    """Whether no other process has told this message yet; whoever asks first tells it.

    Where the meeting point is gone, each process tells it: twice is better than never.
    """
    if process_count() == 1:
        return True
    key = f"said/{hashlib.sha256(message.encode()).hexdigest()}"
    try:
        return open_store(timedelta(seconds=STORE_SECONDS)).add(key, 1) == 1
    except RuntimeError:
        return True
