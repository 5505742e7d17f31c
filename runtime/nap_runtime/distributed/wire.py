"""A communicator that counts and times what it does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nap_runtime.decoding.meters import WorkerMeters
from nap_runtime.distributed.comm import Communicator, PendingGather

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
class _StepSpan:
    start: Mark
    recompute_share: float
    waits_before: int
    stop: Mark | None = None
    waits_after: int = 0


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

    def __post_init__(self) -> None:
        self._began = self.clock.mark()

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Time an exchange as blocked, its packing and unpacking included."""
        start = self.clock.mark()
        yield
        self._waits.append((start, self.clock.mark()))

    def all_gather(self, out: Tensor, inp: Tensor, *, payload_bytes: int) -> None:
        """Gather, and count: padding goes over the wire but is no payload. Call it while `exchanging`."""
        self.comm.all_gather(out, inp)
        self._count(inp, payload_bytes)

    def start_all_gather(self, out: Tensor, inp: Tensor, *, payload_bytes: int) -> Beside:
        """Begin to gather beside compute, and count. Call it while `exchanging`, which times the packing."""
        self._count(inp, payload_bytes)
        return Beside(self.comm.start_all_gather(out, inp), self.clock.mark())

    def arrive(self, gather: Beside) -> None:
        """Wait for a gather that ran beside compute. Call it while `exchanging`, which times the wait."""
        self._beside.append((gather.began, self.clock.mark()))
        gather.pending.wait()

    def _count(self, inp: Tensor, payload_bytes: int) -> None:
        self.payload_bytes += payload_bytes if self.comm.world > 1 else 0
        self.wire_bytes += (self.comm.world - 1) * inp.nbytes

    def begin_step(self, *, rows: int, extra_rows: int) -> None:
        """A forward over `rows` rows begins, `extra_rows` of them for a sync's or refresh's sake."""
        self.forwards += 1
        self.rows_computed += rows
        self.rows_recomputed += extra_rows
        self._steps.append(_StepSpan(self.clock.mark(), extra_rows / max(rows, 1), len(self._waits)))

    def end_step(self, *, committed: bool) -> None:
        """The step is done."""
        self._steps[-1].stop, self._steps[-1].waits_after = self.clock.mark(), len(self._waits)
        if committed and self._first_commit is None:
            self._first_commit = self._steps[-1].stop

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
