"""Many processes that train one model together, each with a share of every batch; and one that does it alone.

All run the same loop in step. What decides (gradients, what the guard reads, the state to come back to) is the same in all
of them: gradients are summed, readings gathered and compared, and what only one should do (files, the search for a cause) is
done by process 0 while the others wait for what comes out. Between them travel numbers and JSON, never objects.

`Processes` is the one process alone: it does nothing, and imports nothing of torch.distributed.
"""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llueve import errors
from llueve.errors import LlueveError, UsageError, WorkerLost
from llueve.forecasting import best_device
from llueve.stability.step import random_states, set_random_states
from llueve.torchrun import open_store, process_count, process_rank

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Result = TypeVar("Result")
"""What JSON can hold."""

MOST_SILENCE_SECONDS = 10.0
"""Between two signs of life of a process that the others wait for."""


class Processes:
    """One process alone."""

    rank = 0
    count = 1

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return best_device()

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.rank == 0

    def share(self, samples: int) -> slice:
        """Which of so many samples are this process's; none, if there are fewer than processes."""
        return slice(samples * self.rank // self.count, samples * (self.rank + 1) // self.count)

    @contextmanager
    def own_random(self) -> Iterator[None]:
        """Inside, each process has random numbers of its own; behind it, all stand at the same place again."""
        yield

    def reduce(self, model: nn.Module, loss: Tensor, share: float) -> Tensor:
        """The loss of the whole batch, and its gradients in the parameters, from those of each process's share.

        Args:
            share: how much the samples of this process count among those of the batch, 0…1.
        """
        return loss

    def gather(self, numbers: Sequence[float]) -> NDArray[np.float64]:
        """The numbers of every process, (processes, numbers), bit for bit."""
        return np.array([numbers], np.float64)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        return tensor

    def spread(self, tensor: Tensor) -> None:
        """Make this tensor the one of process 0."""

    def alone(self, work: Callable[[], Result]) -> Result:
        """What process 0 gets by working alone; the others wait for it. An error of llueve's own is raised in all."""
        return work()


class JoinedProcesses(Processes):
    """This process and its peers, as torchrun has started them.

    Args:
        timeout: after which a peer that does not answer is called lost.

    Raises:
        WorkerLost: not all have come. UsageError: the machine has fewer GPUs than processes.
    """

    def __init__(self, timeout: timedelta) -> None:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies.ddp import DDPStrategy
        from torch import distributed

        self.rank, self.count = process_rank(), process_count()
        self._distributed, self._timeout = distributed, timeout
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if 0 < torch.cuda.device_count() < here:
            raise UsageError(
                f"--nproc-per-node={here}: this machine has {torch.cuda.device_count()} GPU(s), and each process needs one; "
                'start fewer, or hide the GPUs with CUDA_VISIBLE_DEVICES=""'
            )
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells each process's number
        # A peer that is gone must end a wait with an error that can be told, also on GPUs.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        cuda = torch.cuda.is_available()
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        with self._losing():
            fabric = Fabric(
                accelerator="cuda" if cuda else "cpu",
                devices=here,
                num_nodes=self.count // here,
                strategy=DDPStrategy(process_group_backend=backend, timeout=timeout),
            )
            # Ours instead of Fabric's, which meets the addresses of the processes before a restart.
            distributed.init_process_group(
                backend, store=open_store(timeout), rank=self.rank, world_size=self.count, timeout=timeout
            )
            fabric.launch()
            self._waiting: ProcessGroup | None = distributed.new_group(backend="gloo", timeout=timeout)
        self._device = fabric.device

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, WorkerLost):  # with a lost peer even the farewell would wait
            with suppress(RuntimeError):
                self._distributed.destroy_process_group()

    @property
    def device(self) -> torch.device:
        """Where this process computes: on a GPU of its own, or on the processor."""
        return self._device

    @contextmanager
    def own_random(self) -> Iterator[None]:
        """Inside, each process has random numbers of its own; behind it, all stand at the same place again."""
        seed = int(torch.randint(2**62, ()))
        after = random_states(self.device)
        torch.manual_seed(seed + self.rank)
        try:
            yield
        finally:
            set_random_states(after, self.device)

    def reduce(self, model: nn.Module, loss: Tensor, share: float) -> Tensor:
        """The loss of the whole batch, and its gradients in the parameters, from those of each process's share."""
        trained = [each for each in model.parameters() if each.requires_grad]
        # What no process has a gradient for must stay without one: the optimiser leaves it as it is.
        present = torch.tensor([float(each.grad is not None) for each in trained], device=loss.device)
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
        block = torch.cat([*(each.flatten() for each in gradients), loss[None]]).mul_(share)
        block = torch.cat((block, present))
        with self._losing():
            self._distributed.all_reduce(block)
        sizes = [each.numel() for each in trained]
        *parts, whole, found = block.split([*sizes, 1, len(trained)])
        for parameter, part, number in zip(trained, parts, found.tolist(), strict=True):
            parameter.grad = part.view_as(parameter) if number else None
        total: Tensor = whole[0]
        return total

    def gather(self, numbers: Sequence[float]) -> NDArray[np.float64]:
        """The numbers of every process, (processes, numbers), bit for bit."""
        own = torch.tensor(numbers, dtype=torch.float64)
        rows = [torch.empty_like(own) for _ in range(self.count)]
        with self._losing():
            self._distributed.all_gather(rows, own)
        return torch.stack(rows).numpy()

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        with self._losing():
            self._distributed.all_reduce(tensor)
        return tensor

    def spread(self, tensor: Tensor) -> None:
        """Make this tensor the one of process 0."""
        with self._losing():
            self._distributed.broadcast(tensor, 0)

    def alone(self, work: Callable[[], Result]) -> Result:
        """What process 0 gets by working alone; the others wait for it. An error of llueve's own is raised in all."""
        if not self.is_first:
            return self._heard()  # type: ignore[no-any-return]
        with self._signs_of_life():
            try:
                result = work()
                told: dict[str, Any] = {"result": result}
            except LlueveError as error:
                failure: LlueveError | None = error
                told = {"error": type(error).__name__, "message": str(error), "exit_code": error.exit_code}
            else:
                failure = None
        content = torch.frombuffer(bytearray(json.dumps(told).encode()), dtype=torch.uint8)
        self._tell(torch.tensor([len(content)]))
        self._tell(content)
        if failure is not None:
            raise failure
        return result

    def _heard(self) -> Any:
        size = torch.zeros(1, dtype=torch.int64)
        while not int(size):  # a nought is a sign of life
            self._tell(size)
        content = torch.empty(int(size), dtype=torch.uint8)
        self._tell(content)
        told = json.loads(bytes(content.numpy()))
        if "error" in told:
            raise _error(told)
        return told["result"]

    def _tell(self, tensor: Tensor) -> None:
        """From process 0 to all that wait for it."""
        with self._losing():
            self._distributed.broadcast(tensor, 0, group=self._waiting)

    @contextmanager
    def _signs_of_life(self) -> Iterator[None]:
        """Inside, those who wait are told now and then that this process is alive, however long its work takes."""
        done, lost = threading.Event(), []

        def beat() -> None:
            while not done.wait(min(MOST_SILENCE_SECONDS, self._timeout.total_seconds() / 4)):
                try:
                    self._tell(torch.zeros(1, dtype=torch.int64))
                except WorkerLost as error:
                    lost.append(error)
                    return

        beating = threading.Thread(target=beat, daemon=True)
        beating.start()
        try:
            yield
        finally:
            done.set()
            beating.join()
        if lost:
            raise lost[0]

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """Inside, what torch.distributed fails with becomes a lost process."""
        try:
            yield
        except RuntimeError as error:
            seconds = self._timeout.total_seconds()
            raise WorkerLost(
                f"one of the {self.count} processes of this training was lost, or did not answer for {seconds:g} s "
                "(processes.timeout_minutes), so all of them end. What was reached is in the newest checkpoint of the run "
                "directory: give the same command with --resume, with as many processes as you like, or let torchrun "
                "do so by itself with --max-restarts"
            ) from error


@contextmanager
def joined(timeout: timedelta) -> Iterator[Processes]:
    """The processes that torchrun has started, or this one alone."""
    if process_count() == 1:
        yield Processes()
        return
    with JoinedProcesses(timeout) as processes:
        yield processes


def _error(told: dict[str, Any]) -> LlueveError:
    """The error that another process has told."""
    kind = getattr(errors, told["error"])
    error: LlueveError = kind.__new__(kind, told["message"])
    error.exit_code = told["exit_code"]
    return error
