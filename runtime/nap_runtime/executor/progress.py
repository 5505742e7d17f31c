"""What workers have reported of a batch, and what of it is common to all: where a decode can be resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nap_runtime.decoding.record import CanvasDelta, SyncEvent
from nap_runtime.worker import Report, Resume


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What became common to all workers: of the steps `since` … `step` − 1, `deltas[canvas]` and `forwards[worker]`."""

    since: int
    step: int
    deltas: tuple[tuple[CanvasDelta, ...], ...]
    forwards: tuple[tuple[int, ...], ...]
    events: tuple[SyncEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """A decode's past, from an attempt that was lost with its coordinator: all that was common before `step`."""

    step: int
    deltas: tuple[tuple[CanvasDelta, ...], ...]
    forwards: tuple[tuple[int, ...], ...]
    events: tuple[SyncEvent, ...]


class Progress:
    """Reports of one batch as they come in.

    Args:
        canvases, workers: how many there are.
        earlier: what was common when an earlier attempt ended.
    """

    def __init__(self, canvases: int, workers: int, earlier: Earlier | None = None) -> None:
        self.step = 0 if earlier is None else earlier.step
        self._deltas: list[list[CanvasDelta]] = [[] for _ in range(canvases)]  # common to all
        self._later: list[list[CanvasDelta]] = [[] for _ in range(canvases)]  # not yet
        self._forwards: list[list[int]] = [[] for _ in range(workers)]
        self._events: list[SyncEvent] = []
        self._reached = [self.step] * workers
        if earlier is not None:
            self._deltas = [list(deltas) for deltas in earlier.deltas]
            self._forwards = [list(steps) for steps in earlier.forwards] or self._forwards
            self._events = list(earlier.events)

    def add(self, report: Report) -> Common | None:
        """Take a report; what has become common by it, if anything has."""
        for later, new in zip(self._later, report.deltas, strict=True):
            later.extend(new)
        self._forwards[report.worker].extend(report.forwards)
        self._events.extend(report.events)
        self._reached[report.worker] = report.step
        before, self.step = self.step, min(self._reached)
        return self._common(before) if self.step > before else None

    def _common(self, since: int) -> Common:
        def fresh(step: int) -> bool:
            return since <= step < self.step

        return Common(
            since=since,
            step=self.step,
            deltas=tuple(map(self._settle, range(len(self._deltas)))),
            forwards=tuple(tuple(filter(fresh, steps)) for steps in self._forwards),
            events=tuple(event for event in self._events if fresh(event.step)),
        )

    def _settle(self, canvas: int) -> tuple[CanvasDelta, ...]:
        """Move what has become common; what is common already is not sorted anew each time."""
        later = self._later[canvas]
        common = _sorted([delta for delta in later if delta.step < self.step])
        self._later[canvas] = [delta for delta in later if delta.step >= self.step]
        self._deltas[canvas].extend(common)
        return tuple(common)

    def roll_back(self) -> Resume | None:
        """Forget what is not common; where to go on (None: at the beginning)."""
        self._later = [[] for _ in self._later]
        self._forwards = [[step for step in steps if step < self.step] for steps in self._forwards]
        self._events = [event for event in self._events if event.step < self.step]
        self._reached = [self.step] * len(self._reached)
        return self.resume

    @property
    def resume(self) -> Resume | None:
        """Where a decode that knows what is common goes on."""
        if self.step == 0:
            return None
        return Resume(step=self.step, deltas=tuple(map(tuple, self._deltas)))

    def deltas(self, canvas: int) -> tuple[CanvasDelta, ...]:
        """A canvas's deltas, ordered by step, worker and kind."""
        return tuple(_sorted([*self._deltas[canvas], *self._later[canvas]]))

    @property
    def forwards(self) -> tuple[tuple[int, ...], ...]:
        """The steps at which each worker ran the network."""
        return tuple(tuple(steps) for steps in self._forwards)

    @property
    def events(self) -> tuple[SyncEvent, ...]:
        """The syncs, in order."""
        return tuple(self._events)


def _sorted(deltas: Sequence[CanvasDelta]) -> list[CanvasDelta]:
    return sorted(deltas, key=lambda d: (d.step, d.worker, d.kind))
