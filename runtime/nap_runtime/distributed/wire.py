"""A communicator that counts and times what it does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from nap_runtime.decoding.meters import WorkerMeters
from nap_runtime.distributed.comm import Communicator, PendingGather
from nap_runtime.models.compilations import COMPILATIONS

Mark = float | torch.cuda.Event


class Clock:
    """Marks in time: host time on CPU, events on the stream of a GPU, which are read after the job."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def mark(self) -> Mark:
        """Now."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @staticmethod
    def seconds(start: Mark, stop: Mark) -> float:
        """From one mark to another; on a GPU only after its stream has passed both."""
        if isinstance(start, float):
            assert isinstance(stop, float)
            return stop - start
        assert isinstance(stop, torch.cuda.Event)
        return float(start.elapsed_time(stop)) / 1e3


@dataclass(frozen=True, slots=True)
class Beside:
    """A gather that runs beside compute, and when it began."""

    pending: PendingGather
    began: Mark


@dataclass(slots=True)
class Traffic:
    """Bytes that a captured step sends each time."""

    payload_bytes: int = 0
    wire_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Pace:
    """What a worker has computed of a batch so far, as whoever watches over a group sees it.

    Attributes:
        steps, rows, seconds: forwards that are over, their rows, and their seconds without exchanges. The first forward
            over some number of rows is left out, because it warms up, and so is any that something was compiled in.
        current: seconds of the forward under way, without exchanges, where the host computes it (on a GPU 0); a first
            one counts as 0.
    """

    steps: int = 0
    rows: int = 0
    seconds: float = 0.0
    current: float = 0.0


@dataclass(slots=True)
class _StepSpan:
    start: Mark
    recompute_share: float
    waits_before: int
    rows: int = 0
    first: bool = False
    compilations: int = 0
    stop: Mark | None = None
    waits_after: int = 0

    @property
    def over(self) -> bool:
        """Whether it has been computed, on a GPU too."""
        return self.stop is not None and (isinstance(self.stop, float) or self.stop.query())


@dataclass(slots=True)
class Wire:
    """What one worker sends, waits and computes. All exchanges go through here."""

    comm: Communicator
    clock: Clock
    payload_bytes: int = 0
    wire_bytes: int = 0
    syncs: int = 0
    forwards: int = 0
    rows_computed: int = 0
    rows_recomputed: int = 0
    _waits: list[tuple[Mark, Mark]] = field(default_factory=list)
    _beside: list[tuple[Mark, Mark]] = field(default_factory=list)
    _steps: list[_StepSpan] = field(default_factory=list)
    _first_commit: Mark | None = None
    _began: Mark = field(init=False)
    _capturing: bool = False
    _waiting_since: Mark | None = None
    _rows_seen: set[int] = field(default_factory=set)
    _paced: int = 0
    _pace: Pace = field(default_factory=Pace)

    def __post_init__(self) -> None:
        self._began = self.clock.mark()

    def restart(self) -> None:
        """Count another batch from nothing."""
        fresh = Wire(self.comm, self.clock)
        for part in fields(self):
            setattr(self, part.name, getattr(fresh, part.name))

    def other_canvases(self) -> None:
        """From here on a forward has fewer or more canvases: the next over any number of rows is a first one again."""
        self._rows_seen.clear()

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Time an exchange as blocked, its packing and unpacking included; not inside a captured step."""
        if self._capturing:
            yield
            return
        start = self._waiting_since = self.clock.mark()
        yield
        self._waits.append((start, self.clock.mark()))
        self._waiting_since = None

    def all_gather(self, out: Tensor, inp: Tensor, *, payload_bytes: int) -> None:
        """Gather, and count: padding goes over the wire but is no payload. Call it while `exchanging`."""
        self.comm.all_gather(out, inp)
        self._count(inp, payload_bytes)

    def start_all_gather(self, out: Tensor, inp: Tensor, *, payload_bytes: int) -> Beside:
        """Begin to gather beside compute, and count. Call it while `exchanging`, which times the packing."""
        self._count(inp, payload_bytes)
        pending = self.comm.start_all_gather(out, inp)
        return Beside(pending, 0.0 if self._capturing else self.clock.mark())

    def arrive(self, gather: Beside) -> None:
        """Wait for a gather that ran beside compute. Call it while `exchanging`, which times the wait."""
        if not self._capturing:
            self._beside.append((gather.began, self.clock.mark()))
        gather.pending.wait()

    @contextmanager
    def capturing(self) -> Iterator[Traffic]:
        """While a step is captured nothing travels: what it will send at each replay is told and not counted."""
        before, traffic = (self.payload_bytes, self.wire_bytes), Traffic()
        self._capturing = True
        try:
            yield traffic
        finally:
            self._capturing = False
            traffic.payload_bytes, traffic.wire_bytes = self.payload_bytes - before[0], self.wire_bytes - before[1]
            self.payload_bytes, self.wire_bytes = before

    def replayed(self, traffic: Traffic) -> None:
        """Count a replay's."""
        self.payload_bytes += traffic.payload_bytes
        self.wire_bytes += traffic.wire_bytes

    def _count(self, inp: Tensor, payload_bytes: int) -> None:
        self.payload_bytes += payload_bytes if self.comm.world > 1 else 0
        self.wire_bytes += (self.comm.world - 1) * inp.nbytes

    def begin_step(self, *, rows: int, extra_rows: int, steps: int = 1) -> None:
        """A forward over `rows` rows begins, `extra_rows` of them for a sync's or refresh's sake; or `steps` in one."""
        self.forwards += steps
        self.rows_computed += rows
        self.rows_recomputed += extra_rows
        self._keep_pace()
        first, share = rows not in self._rows_seen, extra_rows / max(rows, 1)
        self._rows_seen.add(rows)
        self._steps.append(
            _StepSpan(
                self.clock.mark(), share, len(self._waits), rows=rows, first=first, compilations=COMPILATIONS.begun
            )
        )

    def end_step(self, *, committed: bool) -> None:
        """The step is done."""
        self._steps[-1].stop, self._steps[-1].waits_after = self.clock.mark(), len(self._waits)
        self._steps[-1].first |= self._steps[-1].compilations != COMPILATIONS.begun
        if committed and self._first_commit is None:
            self._first_commit = self._steps[-1].stop

    def pace(self) -> Pace:
        """What has been computed so far. Any thread may ask; it reads no event, which a capture would not bear."""
        return replace(self._pace, current=self._current())

    def _keep_pace(self) -> None:
        while self._paced < len(self._steps) and (span := self._steps[self._paced]).over:
            self._paced += 1
            if not span.first:
                known, seconds = self._pace, self._computing(span)
                self._pace = Pace(known.steps + 1, known.rows + span.rows, known.seconds + seconds)

    def _computing(self, span: _StepSpan) -> float:
        assert span.stop is not None
        waits = self._waits[span.waits_before : span.waits_after]
        return Clock.seconds(span.start, span.stop) - sum(Clock.seconds(*wait) for wait in waits)

    def _current(self) -> float:
        span = self._steps[-1] if self._steps else None
        if (
            span is None
            or span.first
            or span.compilations != COMPILATIONS.begun
            or span.stop is not None
            or not isinstance(span.start, float)
        ):
            return 0.0
        waiting, now = self._waiting_since, time.perf_counter()
        waited = sum(Clock.seconds(*wait) for wait in self._waits[span.waits_before :])
        return max(now - span.start - waited - (now - waiting if isinstance(waiting, float) else 0.0), 0.0)

    def meters(self) -> WorkerMeters:
        """The totals. On a GPU this waits for the stream."""
        waits = [Clock.seconds(start, stop) for start, stop in self._waits]
        compute = recompute = 0.0
        for span in self._steps:
            if span.stop is not None:
                seconds = Clock.seconds(span.start, span.stop) - sum(waits[span.waits_before : span.waits_after])
                compute += seconds
                recompute += seconds * span.recompute_share
        return WorkerMeters(
            forwards=self.forwards,
            rows_computed=self.rows_computed,
            rows_recomputed=self.rows_recomputed,
            syncs=self.syncs,
            payload_bytes=self.payload_bytes,
            wire_bytes=self.wire_bytes,
            blocked_seconds=sum(waits),
            overlapped_seconds=sum(Clock.seconds(start, stop) for start, stop in self._beside),
            compute_seconds=compute,
            recompute_seconds=recompute,
            first_commit_seconds=None if self._first_commit is None else Clock.seconds(self._began, self._first_commit),
        )
