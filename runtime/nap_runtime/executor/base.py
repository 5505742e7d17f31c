"""The one executor seam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nap_runtime.worker import Outcome, Report, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlace:
    """Where a worker runs: process id, host and device, for `nap decode --json` and for tests."""

    worker: int
    process: int
    host: str
    device: str


class Executor(Protocol):
    """W warm workers that decode one batch after another."""

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
            WorkerError: a worker died or failed.
        """
        ...

    def close(self) -> None:
        """Stop the workers."""
        ...
