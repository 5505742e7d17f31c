"""Several runs of a study at once, each in a process of its own.

A decode of many canvases is mostly host work (reports, records, metrics): one process cannot keep a GPU, or a machine
with many cores, busy. Each process makes whole runs and writes their problems; this one alone writes the rows of runs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nap_runtime.errors import CancelledError, NapError, UsageError, WorkerError
from nap_runtime.executor.base import out_of_memory
from nap_runtime.executor.interrupts import interrupts_wait
from nap_runtime.study.budget import slots_of
from nap_runtime.study.listener import Listener
from nap_runtime.study.rows import RowFile
from nap_runtime.study.run import Run, Workers, make, plan
from nap_runtime.study.spec import Study

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

_LOOK_EVERY = 0.3  # seconds between looks at `cancelled`
_SHARED = "measured, {jobs} runs at once"

Done = tuple[dict[str, Any] | None, str, bool]  # row, or else the error's text and whether it is a UsageError


def run_at_once(
    study: Study,
    todo: Sequence[Run],
    out: Path,
    *,
    jobs: int,
    finished: RowFile,
    listener: Listener,
    cancelled: Callable[[], bool],
) -> int:
    """Make the runs, the longest first; how many failed.

    Raises:
        UsageError: a run cannot be made.
        CancelledError: `cancelled` returned true; the processes have ended.
        WorkerError: a process was killed.
    """
    context = multiprocessing.get_context("spawn")  # safe beside CUDA and threads
    stop = context.Event()
    jobs = min(jobs, len(todo))
    longest = sorted(todo, key=_cost, reverse=True)
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(study, out, jobs, stop))
    try:
        with interrupts_wait():  # a process whose start one breaks off is in no list: nobody would wait for its end
            waiting = {pool.submit(_one, run.id): run for run in longest}
        return _collect(waiting, finished, listener, cancelled, jobs)
    except BrokenProcessPool:
        raise WorkerError("a process of the study was killed; run it again, with fewer --jobs") from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _cost(run: Run) -> int:
    """What a run takes, to compare."""
    return (run.config.steps or slots_of(run.config)) * len(run.problems)


def _collect(
    waiting: dict[Future[Done], Run], finished: RowFile, listener: Listener, cancelled: Callable[[], bool], jobs: int
) -> int:
    failed, total = 0, len(waiting)
    left = sum(len(run.problems) for run in waiting.values())
    while waiting:
        if cancelled():
            raise CancelledError("the study was cancelled")
        ready, _ = wait(waiting, timeout=_LOOK_EVERY, return_when=FIRST_COMPLETED)
        for future in ready:
            run = waiting.pop(future)
            row, text, is_usage = future.result()
            left -= len(run.problems)
            if is_usage:
                raise UsageError(text)
            if row is None:
                failed += 1
                listener.on_failure(run, NapError(text))
                continue
            if row["times_from"] == "measured":
                row["times_from"] = _SHARED.format(jobs=jobs)
            finished.add(row)
            listener.on_run(run, total - len(waiting), total)
            listener.on_problem(run, row, left)
    return failed


# -- in a process of the pool ----------------------------------------------------------------------


class _Here:
    """What a process of the pool keeps between runs."""

    runs: dict[str, Run]
    workers: Workers
    out: Path
    stop: Event


def _begin(study: Study, out: Path, jobs: int, stop: Event) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is asked, and asks us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // jobs))
    _Here.runs = {run.id: run for run in plan(study)}
    _Here.workers, _Here.out, _Here.stop = Workers(), out, stop


def _end_with_parent() -> None:
    """A killed parent sends no word; without it there is nobody to make runs for."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _one(run_id: str) -> Done:
    run = _Here.runs[run_id]
    try:
        coordinator = _Here.workers.of(run)
        row = make(run, coordinator, _Here.out, listener=Listener(), cancelled=_Here.stop.is_set)
        return row, "", False
    except (NapError, RuntimeError) as error:
        full = out_of_memory(error)  # which other processes of the study may cause
        if not full and not isinstance(error, NapError):
            raise
        _Here.workers.close()
        text = "out of GPU memory: lower --jobs or batch_size" if full else str(error)
        return None, text, isinstance(error, UsageError)
