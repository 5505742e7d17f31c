"""The one executor seam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from nap_runtime.distributed.probe import LinkProbe
from nap_runtime.errors import NapError, WorkerError
from nap_runtime.executor.liveness import Straggler
from nap_runtime.worker import Outcome, Report, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlace:
    """Where a worker runs: process id, host and device, for `nap decode --json` and for tests."""

    worker: int
    process: int
    host: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """How a group was made whole again.

    Attributes:
        lost: ranks whose process was replaced.
        seconds: from the failure to a group that can go on.
        weights: where the replaced workers' weights came from: a warm `spare`, a living `peer`, or `disk`; `kept` where
            none was replaced.
    """

    lost: tuple[int, ...]
    seconds: float
    weights: str


class Executor(Protocol):
    """W warm workers that decode one batch after another.

    Attributes:
        on_straggler: called while a batch runs, with the workers that are much slower than their peers, whenever
            others are than before.
    """

    on_straggler: Callable[[tuple[Straggler, ...]], None] | None

    @property
    def workers(self) -> int:
        """W."""
        ...

    @property
    def places(self) -> tuple[WorkerPlace, ...]:
        """Where the workers run, by rank."""
        ...

    def run(self, task: Task, *, on_report: Callable[[Report], None], cancelled: Callable[[], bool]) -> list[Outcome]:
        """Decode a batch; reports arrive in this thread's or another's time, outcomes by rank at the end.

        Raises:
            WorkerLostError: a worker's process died, froze or was cut off; `repair` may help.
            WorkerError: a worker failed.
        """
        ...

    def repair(self) -> Repair | None:
        """Make the group whole again after a `WorkerLostError`; None where this executor cannot.

        Raises:
            NapError: no worker could be put in the place of a lost one.
        """
        ...

    def probe(self) -> LinkProbe | None:
        """Measure what the workers talk over, between two batches; None where they share a process.

        Raises:
            WorkerError: a worker is gone.
        """
        ...

    def close(self) -> None:
        """Stop the workers."""
        ...


def worker_failure(worker: int, error: BaseException) -> NapError:
    """What a worker's step loop raised, as every executor raises it: one line that names the worker.

    An error of ours is itself; any other is the cause of a `WorkerError`.
    """
    if isinstance(error, NapError):
        return error
    failure = WorkerError(f"worker {worker}: {type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": "))
    failure.__cause__ = error
    return failure


def out_of_memory(error: BaseException | None) -> bool:
    """Whether a device's memory was full, here or in what `error` was raised from."""
    if error is None:
        return False
    # Not all of torch's have a class of their own.
    own = isinstance(error, RuntimeError) and "out of memory" in str(error)
    return own or isinstance(error, torch.OutOfMemoryError) or out_of_memory(error.__cause__)
