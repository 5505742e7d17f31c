"""Workers in this process: one, or W simulated ones on threads that obey the same sync policy."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

import torch

from nap_runtime.distributed.comm import Communicator, Solo, ThreadGroup
from nap_runtime.errors import WorkerError
from nap_runtime.executor.base import WorkerPlace, worker_failure
from nap_runtime.executor.liveness import Straggler
from nap_runtime.models.compiled import EAGER_STEP, CompileOptions
from nap_runtime.worker import BlockWorker, Denoiser, Outcome, Report, Task, prepare


class InlineExecutor:
    """One process, one device, all paths.

    Args:
        denoiser: the network; all simulated workers share its weights.
        workers: W; more than one simulates a group, with the ids of real workers.
        dtype, device: of the K/V store, the denoiser's own.
        compiling: how steps are carried out.

    Raises:
        UsageError: steps cannot be carried out so on this device, or by simulated workers.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        workers: int = 1,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        compiling: CompileOptions = EAGER_STEP,
    ) -> None:
        self.workers, self._compiling = workers, compiling
        self.on_straggler: Callable[[tuple[Straggler, ...]], None] | None = None  # all run on this process's time
        self._dtype, self._device = dtype, torch.device(device)
        compiling.check(self._device, simulated=workers > 1)
        self._denoiser = prepare(denoiser, compiling)
        self._only: BlockWorker | None = None  # the one worker, which keeps what it has captured

    @property
    def places(self) -> tuple[WorkerPlace, ...]:
        """All in this process."""
        here = {"process": os.getpid(), "host": socket.gethostname(), "device": str(self._device)}
        return tuple(WorkerPlace(worker=rank, **here) for rank in range(self.workers))  # type: ignore[arg-type]

    def run(
        self, task: Task, *, on_report: Callable[[Report], None] | None, cancelled: Callable[[], bool]
    ) -> list[Outcome]:
        """See `Executor.run`. Without `on_report` no deltas are built (`Outcome` holds the order as arrays).

        What `on_report` and `cancelled` raise is raised as it is.
        """
        caller = _Caller(on_report, cancelled)
        if self.workers == 1:
            return [self._run_alone(task, caller)]
        return _Simulation(self.workers, caller).run(lambda comm: caller.heard(self._worker(comm), task))

    def _run_alone(self, task: Task, caller: _Caller) -> Outcome:
        only, self._only = self._only, None  # one that failed is not asked again
        try:
            only = only or self._worker(Solo())
            outcome = caller.heard(only, task)
        except Exception as error:
            if (failure := caller.failure(0, error)) is error:
                raise
            raise failure from error
        self._only = only
        return outcome

    def repair(self) -> None:
        """There is nothing to replace: the workers live and die with this process."""

    def probe(self) -> None:
        """Nothing is between them."""

    def _worker(self, comm: Communicator) -> BlockWorker:
        return BlockWorker(self._denoiser, comm, dtype=self._dtype, device=self._device, compiling=self._compiling)

    def close(self) -> None:
        """Nothing to stop."""


class _Caller:
    """Who asked for a batch: what its own functions raise is no worker's failure, and reaches it as it is."""

    def __init__(self, on_report: Callable[[Report], None] | None, cancelled: Callable[[], bool]) -> None:
        self._on_report, self._cancelled = on_report, cancelled
        self._raised: list[BaseException] = []

    def heard(self, worker: BlockWorker, task: Task) -> Outcome:
        """A worker's run that tells and asks the caller."""
        on_report = None if self._on_report is None else self._tell
        return worker.run(task, on_report=on_report, cancelled=self._ask)

    def failure(self, worker: int, error: BaseException) -> BaseException:
        """What is raised for an error that came out of a worker's loop."""
        return error if any(error is own for own in self._raised) else worker_failure(worker, error)

    def _tell(self, report: Report) -> None:
        assert self._on_report is not None
        with self._noting():
            self._on_report(report)

    def _ask(self) -> bool:
        with self._noting():
            return self._cancelled()

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._raised.append(error)
            raise


class _Simulation:
    """Runs a function once per member of a `ThreadGroup`; the first failure ends all."""

    def __init__(self, workers: int, caller: _Caller) -> None:
        self._group, self._caller = ThreadGroup(workers), caller
        self._outcomes: list[Outcome | None] = [None] * workers
        self._failures: list[tuple[int, BaseException]] = []

    def run(self, work: Callable[[Communicator], Outcome]) -> list[Outcome]:
        threads = [
            threading.Thread(target=self._guard, args=(work, comm), name=f"worker {comm.rank}", daemon=True)
            for comm in self._group.members()
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C must not leave the threads waiting for each other
            self._group.abort()
            raise
        if self._failures:
            raise self._first_cause()
        return [outcome for outcome in self._outcomes if outcome is not None]

    def _guard(self, work: Callable[[Communicator], Outcome], comm: Communicator) -> None:
        try:
            self._outcomes[comm.rank] = work(comm)
        except BaseException as error:
            self._failures.append((comm.rank, error))
            self._group.abort()

    def _first_cause(self) -> BaseException:
        """The failure that broke the group, not those of the peers it woke."""
        causes = [one for one in self._failures if not isinstance(one[1], WorkerError)] or self._failures
        return self._caller.failure(*causes[0])
