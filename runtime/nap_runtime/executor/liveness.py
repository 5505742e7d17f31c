"""Who of a group still lives, gets on, and keeps up: signs of life in, verdicts out. No Ray, no clock of its own.

A worker is *silent* when it answers nobody, *stuck* when one step of its own takes far too long, and a *straggler*
when its steps take several times as long as its peers'. Waiting for a peer counts as none of these, and neither does
the first step of a kind, which may compile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence, Set
from dataclasses import dataclass
from statistics import median

from nap_runtime.distributed.wire import Pace

SLOW = 4.0  # times as long as its peers' that a straggler's steps take
ASK_SECONDS = 0.5  # between two questions to a worker
_WINDOW = 3.0  # seconds of steps that a pace is taken of; longer where they are slow
_STEPS = 3  # that a pace is taken of, at least
_HOLDS = 1.0  # seconds that a straggler has to be one
_STUCK = 20  # times its usual step that a worker may spend in one
_BUSY = 0.2  # of the time that a straggler computes, at least: below that its pace does not matter


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A sign of life: instructions obeyed over all batches (−1: in no group), and what was computed of this one."""

    steps: int = -1
    pace: Pace = Pace()  # noqa: RUF009


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long is waited for what.

    Args:
        liveness: seconds without an answer; also the least that a stuck step is given.
        progress: seconds in which some worker must make a step, whatever it waits for.
        first: seconds that a group is given for its first steps, which may compile.
        slow: times as long as its peers' median step that a straggler's steps take (0: none is looked for).
    """

    liveness: float = 5.0
    progress: float = 60.0
    first: float = 600.0
    slow: float = SLOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The group cannot go on as it is: whose fault it is (nobody's, where all wait for each other), and why."""

    ranks: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """A worker whose steps take `factor` times as long as the median of its peers'."""

    worker: int
    factor: float
    host: str = ""


class Liveness:
    """Signs of life of a group's workers. Times are seconds of any one clock.

    Args:
        workers: W. patience: how long is waited for what.
    """

    def __init__(self, workers: int, patience: Patience) -> None:
        self._patience = patience
        self._recent = [_Recent() for _ in range(workers)]
        self._slow_since: dict[int, float] = {}
        self.begin(0.0)

    def begin(self, now: float) -> None:
        """A batch begins, or begins again: nothing is being waited for. Paces are remembered."""
        workers = len(self._recent)
        self._began = self._looked = now
        self._asked: list[float | None] = [None] * workers  # since when an answer is waited for
        self._due = [now] * workers
        self._steps = [-1] * workers
        self._moved: float | None = None  # nothing is expected before the first step

    def forget(self, rank: int) -> None:
        """Another process is this worker from now on."""
        self._recent[rank] = _Recent()
        self._slow_since.pop(rank, None)

    def due(self, now: float) -> list[int]:
        """Who is to be asked now. Each is asked once at a time. Call it every so often, before `verdict`."""
        if now > self._looked + 1.0:  # this process has slept: that was nobody else's silence
            slept = now - self._looked
            self._asked = [None if since is None else since + slept for since in self._asked]
            self._moved = None if self._moved is None else self._moved + slept
        self._looked = now
        due = [rank for rank, at in enumerate(self._due) if self._asked[rank] is None and now >= at]
        for rank in due:
            self._asked[rank], self._due[rank] = now, now + ASK_SECONDS
        return due

    def heard(self, rank: int, beat: Beat, now: float) -> None:
        """An answer has come."""
        self._asked[rank] = None
        before, self._steps[rank] = self._steps[rank], beat.steps
        if beat.steps != before and before >= 0:
            self._moved = now
        self._recent[rank].add(now, beat.pace)

    def verdict(self, now: float, done: Set[int] = frozenset()) -> Lost | None:
        """Whether the group is lost; `done` have ended their part and need not get on."""
        return self._silent(now) or self._stuck(done) or self._nobody_moves(now, done)

    def _silent(self, now: float) -> Lost | None:
        late = [since is not None and now > since + self._patience.liveness for since in self._asked]
        ranks = tuple(rank for rank, is_late in enumerate(late) if is_late)
        if not ranks:
            return None
        return Lost(ranks=ranks, reason=f"{_named(ranks)} not answered for {self._patience.liveness:g} s")

    def _stuck(self, done: Set[int]) -> Lost | None:
        for rank, recent in enumerate(self._recent):
            usual = recent.usual or self._median_of_others(rank)
            if rank in done or not usual or recent.current <= max(self._patience.liveness, _STUCK * usual):
                continue
            reason = f"worker {rank} has been in one step for {recent.current:.1f} s, where {usual:.2g} s is usual"
            return Lost(ranks=(rank,), reason=reason)
        return None

    def _nobody_moves(self, now: float, done: Set[int]) -> Lost | None:
        since, limit = self._began, self._patience.first
        if self._moved is not None:
            since, limit = self._moved, self._patience.progress
        if len(done) == len(self._recent) or now <= since + limit:
            return None
        return Lost(ranks=(), reason=f"no worker has made a step for {limit:g} s")

    def _median_of_others(self, rank: int) -> float | None:
        others = [recent.usual for other, recent in enumerate(self._recent) if other != rank and recent.usual]
        return median(others) if others else None

    def stragglers(self, now: float) -> list[Straggler]:
        """Who has been much slower than the others for a while."""
        found = [self._straggler(rank) for rank in range(len(self._recent))] if self._patience.slow else []
        slow = {one.worker: one for one in found if one is not None}
        self._slow_since = {rank: self._slow_since.get(rank, now) for rank in slow}
        return [slow[rank] for rank, since in self._slow_since.items() if now >= since + _HOLDS]

    def _straggler(self, rank: int) -> Straggler | None:
        """Slower by step and by row: whoever has more rows may take longer, and few rows have costs of their own."""
        mine = self._recent[rank]
        others = [recent for other, recent in enumerate(self._recent) if other != rank and recent.usual]
        if not others or not (mine.busy >= _BUSY or mine.current > 1.0):
            return None
        by_step = _ratio(mine.slowest_step, [other.usual for other in others])
        by_row = _ratio(mine.slowest_row, [other.per_row for other in others])
        factor = min(by_step, by_row)
        return Straggler(worker=rank, factor=factor) if factor >= self._patience.slow else None


@dataclass(frozen=True, slots=True)
class _Sum:
    """Steps, rows, seconds of computing, and seconds that batches were under way, since a worker was first seen."""

    steps: int = 0
    rows: int = 0
    seconds: float = 0.0
    active: float = 0.0


class _Recent:
    """The latest pace of a worker: `usual` seconds a step and `per_row` (None: too few steps were seen)."""

    def __init__(self) -> None:
        self._sums: deque[_Sum] = deque([_Sum()])
        self._last: tuple[float, Pace] | None = None
        self.usual: float | None = None
        self.per_row: float | None = None
        self.busy = 0.0  # share of the time that it computed
        self.current = 0.0  # seconds of the step under way

    def add(self, now: float, pace: Pace) -> None:
        """What a beat said; a pace that is behind the last one is another batch's."""
        at, before = self._last or (now, pace)
        if pace.steps < before.steps or pace.seconds < before.seconds:
            at, before = now, Pace()
        self._last, self.current, known = (now, pace), pace.current, self._sums[-1]
        total = _Sum(
            steps=known.steps + pace.steps - before.steps,
            rows=known.rows + pace.rows - before.rows,
            seconds=known.seconds + pace.seconds - before.seconds,
            active=known.active + now - at,
        )
        self._sums.append(total)
        while len(self._sums) > 2 and self._is_window(self._sums[1], total):
            self._sums.popleft()
        self._take(self._sums[0], total)

    @staticmethod
    def _is_window(first: _Sum, last: _Sum) -> bool:
        return last.active - first.active >= _WINDOW and last.steps - first.steps >= _STEPS

    def _take(self, first: _Sum, last: _Sum) -> None:
        steps, rows, seconds = last.steps - first.steps, last.rows - first.rows, last.seconds - first.seconds
        if steps >= _STEPS or (steps and seconds >= _WINDOW):
            self.usual, self.per_row = seconds / steps, seconds / max(rows, 1)
            self.busy = seconds / max(last.active - first.active, 1e-9)

    @property
    def slowest_step(self) -> float | None:
        """Seconds a step, or of the one under way where that takes longer."""
        return max(self.usual or 0.0, self.current) or None

    @property
    def slowest_row(self) -> float | None:
        """Seconds a row; a step under way has as many as usual."""
        if not self.per_row or not self.usual:
            return None
        return self.per_row * (self.slowest_step or 0.0) / self.usual


def _ratio(mine: float | None, others: Sequence[float | None]) -> float:
    known = [other for other in others if other]
    return mine / median(known) if mine and known else 0.0


def _named(ranks: Sequence[int]) -> str:
    one = len(ranks) == 1
    return f"worker {ranks[0]} has" if one else f"workers {', '.join(map(str, ranks))} have"
