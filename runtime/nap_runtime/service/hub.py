"""Who waits for news of which job. Journaled events are read from the journal; only the news travels through here."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

_PROVISIONAL = 64  # kept for one slow watcher


class Watcher:
    """One stream. `provisional` holds serialized events that are not journaled; the oldest are dropped first."""

    def __init__(self, *, wants_provisional: bool) -> None:
        self.wants_provisional = wants_provisional
        self.provisional: deque[bytes] = deque(maxlen=_PROVISIONAL)
        self._news = asyncio.Event()

    def wake(self) -> None:
        """There is news."""
        self._news.set()

    async def wait(self, seconds: float) -> None:
        """Until there is news, or some time has passed."""
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except TimeoutError:
            return
        self._news.clear()


class Hub:
    """Watchers by job."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[Watcher]] = {}

    @contextmanager
    def watching(self, job_id: str, *, wants_provisional: bool = False) -> Iterator[Watcher]:
        """Be told of a job's news inside the block."""
        watcher = Watcher(wants_provisional=wants_provisional)
        self._watchers.setdefault(job_id, set()).add(watcher)
        try:
            yield watcher
        finally:
            left = self._watchers[job_id]
            left.discard(watcher)
            if not left:
                del self._watchers[job_id]

    def news(self, job_id: str) -> None:
        """Something of a job was journaled."""
        for watcher in self._watchers.get(job_id, ()):
            watcher.wake()

    def provisional(self, job_id: str, event: bytes) -> None:
        """A provisional event of a job."""
        for watcher in self._watchers.get(job_id, ()):
            if watcher.wants_provisional:
                watcher.provisional.append(event)
                watcher.wake()

    def wants_provisional(self, job_ids: list[str]) -> bool:
        """Whether anybody wants provisional events of one of some jobs."""
        return any(w.wants_provisional for job_id in job_ids for w in self._watchers.get(job_id, ()))

    def wake_all(self) -> None:
        """Let every stream look up, because the server is going."""
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.wake()

    def __len__(self) -> int:
        return sum(map(len, self._watchers.values()))
