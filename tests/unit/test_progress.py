"""What is common to all workers: told once, in order and whole, however their reports are interleaved."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.decoding.kinds import Kind
from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.decoding.record import CanvasDelta
from nap_runtime.executor.coordinator import Coordinator
from nap_runtime.executor.progress import Common, Progress
from nap_runtime.job import DecodeConfig
from nap_runtime.models.loading import read_card
from nap_runtime.worker import Outcome, Report, Task


def delta(step: int, worker: int) -> CanvasDelta:
    at = np.array([10 * worker + step], dtype=np.int64)
    return CanvasDelta(step=step, worker=worker, kind=Kind.COMMIT, positions=at, ids=at, log_confidence=np.zeros(1))


def report(worker: int, first: int, step: int) -> Report:
    """Of steps `first` … `step` − 1, one delta each."""
    steps = tuple(range(first, step))
    return Report(worker=worker, step=step, deltas=(tuple(delta(s, worker) for s in steps),), forwards=steps)


def keys(deltas: tuple[CanvasDelta, ...]) -> list[tuple[int, int]]:
    return [(d.step, d.worker) for d in deltas]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5)), max_size=40))
def test_common_is_told_once_and_in_order(moves: list[tuple[int, int]]) -> None:
    """Three workers, each a random number of steps further at a time."""
    progress, reached, told = Progress(1, 3), [0, 0, 0], list[tuple[int, int]]()
    for worker, ahead in moves:
        common = progress.add(report(worker, reached[worker], reached[worker] + ahead))
        before, reached[worker] = min(reached), reached[worker] + ahead
        assert (common is not None) == (min(reached) > before)
        if common is not None:
            assert (common.since, common.step) == (before, min(reached))
            told += keys(common.deltas[0])
    step = min(reached)
    assert told == [(s, w) for s in range(step) for w in range(3)]
    assert keys(progress.deltas(0)) == sorted((s, w) for w in range(3) for s in range(reached[w]))
    resume = progress.roll_back()
    assert keys(progress.deltas(0)) == told
    assert (None if resume is None else keys(resume.deltas[0])) == (told or None)


class Threads:
    """An executor whose workers report every step, each from a thread of its own."""

    workers, steps = 4, 20

    def run(self, task: Task, *, on_report: Callable[[Report], None], cancelled: Callable[[], bool]) -> list[Outcome]:
        def work(rank: int) -> None:
            for step in range(self.steps):
                on_report(report(rank, step, step + 1))

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return []


class Busy(Progress):
    """Takes its time over a report, and notes whether another comes in meanwhile."""

    def __init__(self) -> None:
        super().__init__(1, Threads.workers)
        self.inside = self.most = 0

    def add(self, report: Report) -> Common | None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.001)
        self.inside -= 1
        return super().add(report)


def test_reports_of_many_threads_are_taken_one_by_one(
    nap_layout: Callable[..., CanvasLayout], make_task: Callable[..., Task]
) -> None:
    task = make_task(nap_layout((2, 2, 2, 2)), DecodeConfig(paths=4, path_tokens=2, summary_tokens=4), [(1,) * 5], 4)
    progress, told = Busy(), list[tuple[int, int]]()
    heard = SimpleNamespace(
        report_every=None,
        report_early=False,
        on_report=lambda *_: None,
        on_common=lambda _, common: told.extend(keys(common.deltas[0])),
    )
    coordinator = Coordinator(read_card("nap-tiny"), Threads())  # type: ignore[arg-type]
    coordinator._run(SimpleNamespace(task=task), progress, heard, lambda: False)  # type: ignore[arg-type]
    assert progress.most == 1
    assert told == [(s, w) for s in range(Threads.steps) for w in range(Threads.workers)]
