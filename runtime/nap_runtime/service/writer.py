"""The journal among coroutines: one thread writes, one reads, and what is asked for at the same time shares a sync."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from nap_runtime.service.journal import Journal

T = TypeVar("T")
_MOST = 256  # operations that share one transaction


class AsyncJournal:
    """A journal whose calls can be awaited.

    `write` returns when the change is on the disk. Operations that wait together are committed together, each in a
    savepoint of its own, so that one that fails does not undo the others.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer, self._reader = _Thread(path, read_only=False), None
        self._reader = _Thread(path, read_only=True)

    async def write(self, work: Callable[[Journal], T]) -> T:
        """Do this in a transaction; whatever it raises is raised here.

        Raises:
            JournalError: nothing was written.
        """
        return await asyncio.wrap_future(self._writer.post(work))

    async def read(self, work: Callable[[Journal], T]) -> T:
        """Do this on the reading connection."""
        assert self._reader is not None
        return await asyncio.wrap_future(self._reader.post(work))

    def close(self) -> None:
        """Wait for what is under way, and give the file back."""
        for thread in (self._reader, self._writer):
            if thread is not None:
                thread.close()


class _Thread:
    """A connection and its thread."""

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self._journal = Journal(path, read_only=read_only)
        self._read_only = read_only
        self._work: queue.SimpleQueue[tuple[Callable[[Journal], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def post(self, work: Callable[[Journal], T]) -> Future[T]:
        future: Future[T] = Future()
        self._work.put((work, future))
        return future

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()
        self._journal.close()

    def _run(self) -> None:
        while (first := self._work.get()) is not None:
            batch, last = [first], False
            while len(batch) < _MOST and not self._work.empty():
                item = self._work.get()
                if item is None:
                    last = True
                    break
                batch.append(item)
            self._do(batch)
            if last:
                return

    def _do(self, batch: list[tuple[Callable[[Journal], Any], Future[Any]]]) -> None:
        if self._read_only:
            for work, future in batch:
                _settle(future, *_attempt(work, self._journal))
            return
        outcomes: list[tuple[Any, BaseException | None]] = []
        try:
            with self._journal.transaction():
                for work, _ in batch:
                    outcomes.append(self._guarded(work))
        except BaseException as error:  # the commit failed: nothing of the batch is on the disk
            outcomes = [(None, error)] * len(batch)
        for (_, future), (value, failure) in zip(batch, outcomes, strict=True):
            _settle(future, value, failure)

    def _guarded(self, work: Callable[[Journal], Any]) -> tuple[Any, BaseException | None]:
        try:
            with self._journal.transaction():
                return work(self._journal), None
        except Exception as error:
            if not self._journal.in_transaction:
                raise  # the whole transaction is gone, as on a full disk
            return None, error


def _attempt(work: Callable[[Journal], Any], journal: Journal) -> tuple[Any, BaseException | None]:
    try:
        return work(journal), None
    except Exception as error:
        return None, error


def _settle(future: Future[Any], value: Any, failure: BaseException | None) -> None:
    with contextlib.suppress(Exception):  # the caller may have been cancelled meanwhile
        if failure is not None:
            future.set_exception(failure)
        else:
            future.set_result(value)
