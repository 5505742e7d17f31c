"""A worker group whose workers are scripted: the group's real process, coordinator and telling, and no network at all.

Run by `benchmarks/scale.py` in place of `nap_runtime.service.group`. A script obeys the real state machine: it sleeps
for every step, commits what the plan's quotas say, and reports every R steps for each of its W workers. What it costs
itself is measured and left out.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nap_runtime.decoding.kinds import Kind
from nap_runtime.decoding.machine import Coordination, Finish, Step
from nap_runtime.decoding.meters import WorkerMeters
from nap_runtime.decoding.record import CanvasDelta
from nap_runtime.executor.base import WorkerPlace
from nap_runtime.executor.coordinator import Coordinator
from nap_runtime.models.loading import read_card
from nap_runtime.service import group
from nap_runtime.service.frames import Channel, encode
from nap_runtime.service.settings import GroupSettings
from nap_runtime.worker import Outcome, Report, Task

STEP_SECONDS, STATS = "NAP_SCALE_STEP_SECONDS", "NAP_SCALE_STATS"
_FIRST_ID = 40  # ids of ordinary words, whatever the model


class Script:
    """An `Executor` whose W workers commit what the plan says, from the left, with ids that a seed gives."""

    def __init__(self, workers: int, step_seconds: float) -> None:
        self.workers, self._seconds = workers, step_seconds
        self.counts: Counter[str] = Counter()
        self.own_cpu = self.report_cpu = 0.0  # seconds of this thread: the script's own, and in the coordinator's hands

    @property
    def places(self) -> tuple[WorkerPlace, ...]:
        """All here."""
        here = {"process": os.getpid(), "host": socket.gethostname(), "device": "none"}
        return tuple(WorkerPlace(worker=rank, **here) for rank in range(self.workers))  # type: ignore[arg-type]

    def run(self, task: Task, *, on_report: Callable[[Report], None], cancelled: Callable[[], bool]) -> list[Outcome]:
        """See `Executor.run`."""
        began, told = time.thread_time(), self.report_cpu
        outcomes = _Batch(self, task, on_report).run(self._seconds)
        self.own_cpu += time.thread_time() - began - (self.report_cpu - told)
        self.counts.update(batches=1, jobs=len(task.prompts))
        return outcomes

    def repair(self) -> None:
        """Nothing is lost."""

    def probe(self) -> None:
        """Nothing is between them."""

    def close(self) -> None:
        """Nothing to stop."""


class _Batch:
    """One batch: what has been committed since the last report, and what all of it comes to."""

    def __init__(self, script: Script, task: Task, on_report: Callable[[Report], None]) -> None:
        self._script, self._task, self._on_report = script, task, on_report
        plan = task.plan
        self._machine, self._layout = Coordination(plan), plan.layout
        self._owner = [*plan.assignment.worker_of, 0]  # of each block; the summary is worker 0's
        self._filled = [0] * len(self._layout.blocks)
        rng = np.random.default_rng(0)
        size = (len(task.prompts), self._layout.size)
        self._ids = rng.integers(_FIRST_ID, _FIRST_ID + 400, size)
        self._scores = np.log(rng.uniform(0.5, 1.0, size))
        self._fresh: list[list[tuple[int, np.ndarray[Any, Any]]]] = [[] for _ in range(script.workers)]
        self._forwards: list[int] = []
        self._told_forwards = self._told_events = 0

    def run(self, seconds: float) -> list[Outcome]:
        """Step for step, as the state machine says."""
        every, reported = self._task.plan.config.reports_every, 0
        while not isinstance(todo := self._machine.next(), Finish):
            if not isinstance(todo, Step):
                continue
            time.sleep(seconds)
            self._commit(todo)
            step = todo.step + 1
            if step < self._task.plan.schedule.steps and (step % every == 0 or step <= 2):
                self._report(step)
                reported = step
        assert reported < self._task.plan.schedule.steps
        self._report(self._task.plan.schedule.steps)
        self._script.counts.update(steps=len(self._forwards), syncs=len(self._machine.events))
        return [self._outcome(rank) for rank in range(self._script.workers)]

    def _commit(self, step: Step) -> None:
        self._forwards.append(step.step)
        quotas = [*(step.paths or [0] * self._layout.n_paths), step.summary or 0]
        for block, quota in enumerate(quotas):
            if quota:
                start = self._layout.blocks[block].slots.start + self._filled[block]
                self._filled[block] += quota
                self._fresh[self._owner[block]].append((step.step, np.arange(start, start + quota)))

    def _report(self, step: int) -> None:
        events = self._machine.events[self._told_events :]
        forwards = tuple(self._forwards[self._told_forwards :])
        self._told_events, self._told_forwards = len(self._machine.events), len(self._forwards)
        for rank, fresh in enumerate(self._fresh):
            deltas = tuple(tuple(self._delta(rank, canvas, *one) for one in fresh) for canvas in range(len(self._ids)))
            self._fresh[rank] = []
            report = Report(
                worker=rank, step=step, deltas=deltas, forwards=forwards, events=tuple(events) if rank == 0 else ()
            )
            began = time.thread_time()
            self._on_report(report)
            self._script.report_cpu += time.thread_time() - began
            self._script.counts.update(reports=1)

    def _delta(self, rank: int, canvas: int, step: int, positions: np.ndarray[Any, Any]) -> CanvasDelta:
        ids, scores = self._ids[canvas, positions], self._scores[canvas, positions]
        return CanvasDelta(
            step=step, worker=rank, kind=Kind.COMMIT, positions=positions, ids=ids, log_confidence=scores
        )

    def _outcome(self, rank: int) -> Outcome:
        blocks = [block for block, owner in zip(self._layout.blocks, self._owner, strict=True) if owner == rank]
        slots = np.concatenate([np.arange(block.slots.start, block.slots.stop) for block in blocks])
        ids = self._ids[:, slots]
        return Outcome(
            worker=rank,
            slots=slots,
            ids=ids,
            step=np.zeros_like(ids),
            committed=np.ones(ids.shape, dtype=bool),
            meters=WorkerMeters(
                forwards=len(self._forwards), syncs=len(self._machine.events), first_commit_seconds=0.0
            ),
            forwards=tuple(self._forwards),
            events=tuple(self._machine.events),
            cancelled=False,
        )


class CountedChannel(Channel):
    """Counts what the group says, by kind, and its bytes."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.messages: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def send(self, **message: Any) -> None:
        """Send a message, and count it."""
        data = encode(message)
        self.messages[message["kind"]] += 1
        self.bytes[message["kind"]] += len(data)
        with self._lock:
            self._sock.sendall(data)


def main() -> int:
    """As `nap_runtime.service.group.main`, with a script for an executor; leaves what it measured in a file."""
    group._die_with(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = CountedChannel(socket.socket(fileno=int(sys.argv[1])))
    scripts: list[Script] = []
    begins: list[float] = []

    def make(settings: GroupSettings) -> Coordinator:
        scripts.append(Script(settings.workers, float(os.environ[STEP_SECONDS])))
        coordinator = Coordinator(read_card(settings.model), scripts[0])
        begins.append(time.thread_time())
        return coordinator

    group.make_coordinator = make
    code = group.GroupProcess(channel).run()
    script = scripts[0]
    stats = {
        "coordinator_cpu_seconds": time.thread_time() - begins[0] - script.own_cpu,
        "report_cpu_seconds": script.report_cpu,
        "script_cpu_seconds": script.own_cpu,
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **script.counts,
        "messages": dict(channel.messages),
        "bytes": dict(channel.bytes),
    }
    Path(os.environ[STATS], f"group-{os.getpid()}.json").write_text(json.dumps(stats))
    return code


if __name__ == "__main__":
    sys.exit(main())
