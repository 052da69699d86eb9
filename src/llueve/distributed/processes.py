"""Processes that train one model together, each with a share of every batch; and the single process that trains alone.

All processes run the same training loop. Gradients are summed over them, and readings are gathered and compared, so each
process takes the same decisions. Process 0 alone writes files and searches for causes, while the others wait for its
result. Only numbers and JSON travel between them, never objects. A single process does not import torch.distributed.
"""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llueve import errors
from llueve.distributed.torchrun import open_store, process_count, process_rank
from llueve.errors import LlueveError, UsageError, WorkerLost
from llueve.model.batch import best_device
from llueve.step.random_state import random_states, set_random_states

Result = TypeVar("Result")

HEARTBEAT_SECONDS = 10.0
"""Longest time between two heartbeats of process 0 while the others wait for it."""


class Processes:
    """A single process; with a timeout, this process and the others that torchrun started.

    Args:
        timeout: longest wait for another process, after which it is lost.

    Raises:
        WorkerLost: not all processes have started.
        UsageError: this machine has fewer GPUs than processes.
    """

    rank = 0
    """Number of this process."""
    started = 1
    """Number of processes that were started."""

    def __init__(self, timeout: timedelta | None = None) -> None:
        self._is_alone, self.device = timeout is None, best_device()
        if timeout is not None:
            self._join(timeout)

    def _join(self, timeout: timedelta) -> None:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
        from torch import distributed

        self.rank, self.started = process_rank(), process_count()
        self._distributed, self._timeout = distributed, timeout
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if 0 < torch.cuda.device_count() < here:
            raise UsageError(
                f"--nproc-per-node={here}: this machine has {torch.cuda.device_count()} GPU(s), and each process needs one; "
                'start fewer processes, or hide the GPUs with CUDA_VISIBLE_DEVICES=""'
            )
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it logs the number of each process
        # With this setting, a wait for a lost process ends with an error on GPUs too.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        cuda = torch.cuda.is_available()
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        with self._raising_worker_lost():
            fabric = Fabric(
                accelerator="cuda" if cuda else "cpu",
                devices=here,
                num_nodes=self.started // here,
                strategy=DDPStrategy(process_group_backend=backend, timeout=timeout),
            )
            # Fabric's own process group would read the addresses of the processes before a restart.
            distributed.init_process_group(
                backend, store=open_store(timeout), rank=self.rank, world_size=self.started, timeout=timeout
            )
            fabric.launch()
            self._messages = distributed.new_group(backend="gloo", timeout=timeout)
        self.device = fabric.device

    @property
    def count(self) -> int:
        """Number of processes that compute together now: 1 while process 0 works alone."""
        return 1 if self._is_alone else self.started

    @property
    def is_first(self) -> bool:
        """True for process 0, which writes files and messages."""
        return self.rank == 0

    def share(self, samples: int) -> slice:
        """Return the samples of this process, out of `samples`; empty if there are fewer samples than processes."""
        return slice(samples * self.rank // self.count, samples * (self.rank + 1) // self.count)

    @contextmanager
    def own_random(self) -> Iterator[None]:
        """Inside, each process draws different random numbers; afterwards all generators are in the same state again."""
        if self._is_alone:
            yield
            return
        seed = int(torch.randint(2**62, ()))
        after = random_states(self.device)
        torch.manual_seed(seed + self.rank)
        try:
            yield
        finally:
            set_random_states(after, self.device)

    def reduce(self, model: nn.Module, loss: Tensor, share: float) -> Tensor:
        """Replace the gradients of each share by those of the whole batch, and return the loss of the whole batch.

        Args:
            model: with gradients of the samples of this process.
            loss: mean loss of these samples.
            share: weight of these samples in the batch, 0…1.
        """
        if self._is_alone:
            return loss
        trained = [each for each in model.parameters() if each.requires_grad]
        # A parameter without a gradient in all processes stays without one: the optimiser does not change it.
        present = torch.tensor([float(each.grad is not None) for each in trained], device=loss.device)
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
        block = torch.cat([*(each.flatten() for each in gradients), loss[None]]).mul_(share)
        block = self.total(torch.cat((block, present)))
        sizes = [each.numel() for each in trained]
        *parts, whole, found = block.split([*sizes, 1, len(trained)])
        for parameter, part, number in zip(trained, parts, found.tolist(), strict=True):
            parameter.grad = part.view_as(parameter) if number else None
        return cast(Tensor, whole[0])

    def gather(self, numbers: Sequence[float]) -> NDArray[np.float64]:
        """Return the numbers of every process, (processes, numbers), bit for bit."""
        if self._is_alone:
            return np.array([numbers], np.float64)
        own = torch.tensor(numbers, dtype=torch.float64)
        rows = [torch.empty_like(own) for _ in range(self.count)]
        with self._raising_worker_lost():
            self._distributed.all_gather(rows, own)
        return torch.stack(rows).numpy()

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes; the tensor itself becomes the sum."""
        if not self._is_alone:
            with self._raising_worker_lost():
                self._distributed.all_reduce(tensor)
        return tensor

    def broadcast(self, tensor: Tensor) -> None:
        """Replace this tensor by the tensor of process 0."""
        if not self._is_alone:
            with self._raising_worker_lost():
                self._distributed.broadcast(tensor, 0)

    def on_first(
        self,
        work: Callable[[], Result],
        to_json: Callable[[Result], Any] | None = None,
        from_json: Callable[[Any], Result] | None = None,
    ) -> Result:
        """Run `work` in process 0 only, and return its result in every process; the others wait for it.

        During the work process 0 computes alone: the other methods act as those of a single process. `to_json` and
        `from_json` convert the result for the other processes; they are not needed if JSON can hold it.

        Raises:
            LlueveError: `work` raised it; every process raises the same error.
        """
        if self._is_alone:
            return work()
        if not self.is_first:
            message = self._receive()
            if "error" in message:
                kind = getattr(errors, message["error"])
                raised: LlueveError = kind.__new__(kind, message["message"])
                raised.exit_code = message["exit_code"]
                raise raised
            answer = message["result"]
            return answer if from_json is None else from_json(answer)
        failure: LlueveError | None = None
        with self._heartbeat():
            self._is_alone = True
            try:
                result = work()
                message = {"result": result if to_json is None else to_json(result)}
            except LlueveError as error:
                failure = error
                message = {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
            finally:
                self._is_alone = False
        content = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        self._send(torch.tensor([len(content)]))
        self._send(content)
        if failure is not None:
            raise failure
        return result

    def leave(self) -> None:
        """Compute alone, because another process was lost."""
        self._is_alone = True

    def _receive(self) -> dict[str, Any]:
        size = torch.zeros(1, dtype=torch.int64)
        while not int(size):  # a zero is a heartbeat
            self._send(size)
        content = torch.empty(int(size), dtype=torch.uint8)
        self._send(content)
        return cast(dict[str, Any], json.loads(bytes(content.numpy())))

    def _send(self, tensor: Tensor) -> None:
        """Send a tensor from process 0 to all processes that call this function too; there it is overwritten."""
        with self._raising_worker_lost():
            self._distributed.broadcast(tensor, 0, group=self._messages)

    @contextmanager
    def _heartbeat(self) -> Iterator[None]:
        """Inside, a thread sends zeros to the waiting processes, so that long work does not look like a lost process."""
        done, lost = threading.Event(), []

        def beat() -> None:
            while not done.wait(min(HEARTBEAT_SECONDS, self._timeout.total_seconds() / 4)):
                try:
                    self._send(torch.zeros(1, dtype=torch.int64))
                except WorkerLost as error:
                    lost.append(error)
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        if lost:
            raise lost[0]

    @contextmanager
    def _raising_worker_lost(self) -> Iterator[None]:
        """Inside, an error of torch.distributed is raised as WorkerLost."""
        try:
            yield
        except RuntimeError as error:
            seconds = self._timeout.total_seconds()
            raise WorkerLost(
                f"one of the {self.started} processes of this training was lost, or did not answer for {seconds:g} s "
                "(processes.timeout_minutes), so all of them end. The run directory holds the newest saved state: give the "
                "same command with --resume and any number of processes, or let torchrun restart them with --max-restarts"
            ) from error


@contextmanager
def join_processes(timeout: timedelta) -> Iterator[Processes]:
    """Inside, the processes that torchrun started, or a single process without torchrun; `timeout` as for `Processes`."""
    if process_count() == 1:
        yield Processes()
        return
    from torch import distributed

    processes, lost = Processes(timeout), False
    try:
        yield processes
    except WorkerLost:
        lost = True
        raise
    finally:
        if not lost:  # after a lost process, destroying the group would wait for it
            with suppress(RuntimeError):
                distributed.destroy_process_group()
