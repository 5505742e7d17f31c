"""Whose turn it is: a pure queue with priorities, ageing, and fairness between owners.

A job's rank is its priority plus one for every `ageing` seconds of waiting, so nobody waits for ever. Among equal
ranks the owner who has been given the least work comes first, and within an owner the older job.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from nap_runtime.errors import BusyError


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A queued job as the queue sees it.

    Attributes:
        cost: work it stands for, in slots.
        shape: jobs of equal shape can be decoded together.
        alone: it must not share a batch (it may be what broke one).
        since: when it was submitted.
        not_before: when it may begin at the earliest; retries wait a little.
    """

    id: str
    row: int
    owner: str
    priority: int
    cost: int
    shape: Hashable
    alone: bool = False
    since: float = 0.0
    not_before: float = 0.0


@dataclass(slots=True)
class FairQueue:
    """Queued jobs, and how much work each owner has had.

    Args:
        capacity: jobs that may wait; `per_owner` of one owner (a quota of its own may be lower).
        ageing: seconds of waiting that count as one priority.
    """

    capacity: int = 10_000
    per_owner: int = 10_000
    ageing: float = 30.0
    _jobs: dict[str, Waiting] = field(default_factory=dict)
    _queued: dict[str, int] = field(default_factory=dict)
    _served: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._jobs

    def check_room(self, owner: str, quota: int | None = None, coming: int = 0) -> None:
        """Refuse before anything is allocated.

        Args:
            quota: the owner's own limit.
            coming: jobs that were let in and are not here yet.

        Raises:
            BusyError: the queue, or the owner's share of it, is full.
        """
        if len(self._jobs) + coming >= self.capacity:
            raise BusyError(f"the queue is full ({self.capacity} jobs wait); try again later")
        most = self.per_owner if quota is None else min(quota, self.per_owner)
        if self._queued.get(owner, 0) >= most:
            raise BusyError(f"{most} jobs of this token wait already; try again when some have begun")

    def add(self, job: Waiting) -> None:
        """Let a job wait. What is journaled is always taken, full or not."""
        if job.id in self._jobs:
            return
        if self._queued.get(job.owner, 0) == 0:  # idle owners save up no claims
            behind = [self._served.get(owner, 0.0) for owner, count in self._queued.items() if count]
            floor = min(behind, default=max(self._served.values(), default=0.0))
            self._served[job.owner] = max(self._served.get(job.owner, 0.0), floor)
        self._jobs[job.id] = job
        self._queued[job.owner] = self._queued.get(job.owner, 0) + 1

    def remove(self, job_id: str) -> Waiting | None:
        """Take a job out, wherever it stands."""
        job = self._jobs.pop(job_id, None)
        if job is not None:
            self._queued[job.owner] -= 1
            if not self._queued[job.owner]:
                del self._queued[job.owner]
        return job

    def take(self, now: float, limit: int, fits: Callable[[Waiting], bool] = lambda _: True) -> list[Waiting]:
        """The next batch: the job whose turn it is, and up to `limit` − 1 further ones of its shape, fairly too."""
        ready = [job for job in self._jobs.values() if job.not_before <= now and fits(job)]
        batch = self._pick(ready, now, 1)
        if batch and not batch[0].alone:
            first = batch[0]
            rest = [job for job in ready if job is not first and not job.alone and job.shape == first.shape]
            batch += self._pick(rest, now, limit - 1)
        if not self._jobs and len(self._served) > 1024:
            self._served.clear()  # nobody waits: let owners of long ago be forgotten
        return batch

    def _pick(self, ready: list[Waiting], now: float, count: int) -> list[Waiting]:
        """Take out so many, each the one whose turn it is then."""
        lines: dict[str, deque[Waiting]] = {}
        for job in sorted(ready, key=lambda job: (-self._rank(job, now), job.row)):
            lines.setdefault(job.owner, deque()).append(job)
        picked: list[Waiting] = []
        while lines and len(picked) < count:
            owner = min(lines, key=lambda owner: self._turn(lines[owner][0], now))
            job = lines[owner].popleft()
            if not lines[owner]:
                del lines[owner]
            picked.append(job)
            self.remove(job.id)
            self._served[owner] = self._served.get(owner, 0.0) + job.cost
        return picked

    def _turn(self, job: Waiting, now: float) -> tuple[float, float, int]:
        return -self._rank(job, now), self._served.get(job.owner, 0.0), job.row

    def _rank(self, job: Waiting, now: float) -> int:
        return job.priority + math.floor(max(now - job.since, 0.0) / self.ageing)

    def next_wake(self, now: float) -> float | None:
        """When a job that waits for a retry may begin; None where none does."""
        later = [job.not_before for job in self._jobs.values() if job.not_before > now]
        return min(later, default=None)
