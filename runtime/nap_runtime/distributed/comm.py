"""Communicators: the few collectives a worker needs, and an in-process group that simulates several workers.

A group of threads stands in for a group of processes, with the same worker code on top, so that any sync policy can be
studied, and tested, on one device.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from nap_runtime.errors import WorkerError

Flags = tuple[int, ...]
T = TypeVar("T")


class PendingFlags(Protocol):
    """Control flags on their way."""

    def wait(self) -> list[Flags]:
        """Everybody's flags, by rank."""
        ...


class PendingGather(Protocol):
    """An all-gather that runs beside compute."""

    def wait(self) -> None:
        """Until its output is there: on a GPU the stream waits, on a CPU the caller.

        Raises:
            WorkerError: a peer is gone.
        """
        ...


class Communicator(Protocol):
    """A worker's end of its group."""

    @property
    def rank(self) -> int:
        """This worker, 0 … W−1."""
        ...

    @property
    def world(self) -> int:
        """W, the number of workers."""
        ...

    def all_gather(self, out: Tensor, inp: Tensor) -> None:
        """Put every worker's `inp` into `out` [W, *inp.shape], contiguous tensors of one dtype on the device.

        Raises:
            WorkerError: a peer is gone.
        """
        ...

    def start_all_gather(self, out: Tensor, inp: Tensor) -> PendingGather:
        """Begin an `all_gather`; neither tensor may be touched before `wait` has returned."""
        ...

    def start_flags(self, flags: Flags) -> PendingFlags:
        """Begin to exchange a few small integers, off the critical path."""
        ...


class Solo:
    """A group of one: nothing travels."""

    rank = 0
    world = 1

    def all_gather(self, out: Tensor, inp: Tensor) -> None:
        """Copy."""
        out[0].copy_(inp)

    def start_all_gather(self, out: Tensor, inp: Tensor) -> PendingGather:
        """Copy at once."""
        self.all_gather(out, inp)
        return _Done()

    def start_flags(self, flags: Flags) -> PendingFlags:
        """The own flags, at once."""
        return _Known([flags])


class _Done:
    def wait(self) -> None:
        pass


class _Known:
    def __init__(self, flags: list[Flags]) -> None:
        self._flags = flags

    def wait(self) -> list[Flags]:
        return self._flags


class ThreadGroup:
    """W simulated workers in one process, one thread each."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._barrier = threading.Barrier(world)
        self._slots: list[Tensor | None] = [None] * world
        self._flags: defaultdict[int, dict[int, Flags]] = defaultdict(dict)
        self._sent: defaultdict[int, dict[int, Tensor]] = defaultdict(dict)
        self._read: defaultdict[int, int] = defaultdict(int)
        self._posted = threading.Condition()
        self._broken = False

    def members(self) -> list[ThreadCommunicator]:
        """One communicator a worker, by rank."""
        return [ThreadCommunicator(self, rank) for rank in range(self.world)]

    def abort(self) -> None:
        """Wake every waiting worker with an error, because one has failed."""
        self._barrier.abort()
        with self._posted:
            self._broken = True
            self._posted.notify_all()

    def swap(self, rank: int, out: Tensor, inp: Tensor) -> None:
        """The collective itself: all deposit, all copy, all leave."""
        self._slots[rank] = inp
        self._meet()
        torch.stack([slot for slot in self._slots if slot is not None], out=out)
        self._meet()

    def _meet(self) -> None:
        try:
            self._barrier.wait()
        except threading.BrokenBarrierError as error:
            raise WorkerError("a peer of this simulated group has failed") from error

    def post_flags(self, turn: int, rank: int, flags: Flags) -> None:
        """Deposit flags for the group's `turn`-th exchange."""
        with self._posted:
            self._flags[turn][rank] = flags
            self._posted.notify_all()

    def await_flags(self, turn: int) -> list[Flags]:
        """Everybody's flags of that exchange."""
        return self._everybodys(self._flags[turn])

    def post_tensor(self, turn: int, rank: int, inp: Tensor) -> None:
        """Deposit a copy of a tensor for the group's `turn`-th gather beside compute."""
        with self._posted:
            self._sent[turn][rank] = inp.clone()
            self._posted.notify_all()

    def await_tensors(self, turn: int, out: Tensor) -> None:
        """Everybody's tensors of that gather."""
        torch.stack(self._everybodys(self._sent[turn]), out=out)
        with self._posted:
            self._read[turn] += 1
            if self._read[turn] == self.world:  # nobody needs them any more
                del self._sent[turn], self._read[turn]

    def _everybodys(self, posts: Mapping[int, T]) -> list[T]:
        with self._posted:
            self._posted.wait_for(lambda: self._broken or len(posts) == self.world)
            if self._broken:
                raise WorkerError("a peer of this simulated group has failed")
            return [posts[rank] for rank in range(self.world)]


class ThreadCommunicator:
    """One simulated worker's end of a `ThreadGroup`."""

    def __init__(self, group: ThreadGroup, rank: int) -> None:
        self._group, self.rank, self.world = group, rank, group.world
        self._turn, self._gathers = 0, 0

    def all_gather(self, out: Tensor, inp: Tensor) -> None:
        """See `Communicator.all_gather`."""
        self._group.swap(self.rank, out, inp)

    def start_all_gather(self, out: Tensor, inp: Tensor) -> PendingGather:
        """See `Communicator.start_all_gather`."""
        turn, self._gathers = self._gathers, self._gathers + 1
        self._group.post_tensor(turn, self.rank, inp)
        return _Sent(self._group, turn, out)

    def start_flags(self, flags: Flags) -> PendingFlags:
        """See `Communicator.start_flags`."""
        turn, self._turn = self._turn, self._turn + 1
        self._group.post_flags(turn, self.rank, flags)
        return _Posted(self._group, turn)


class _Posted:
    def __init__(self, group: ThreadGroup, turn: int) -> None:
        self._group, self._turn = group, turn

    def wait(self) -> list[Flags]:
        return self._group.await_flags(self._turn)


class _Sent:
    def __init__(self, group: ThreadGroup, turn: int, out: Tensor) -> None:
        self._group, self._turn, self._out = group, turn, out

    def wait(self) -> None:
        self._group.await_tensors(self._turn, self._out)


def merge_flags(flags: Sequence[Flags]) -> Flags:
    """Flag by flag, the least: set only where every worker set it."""
    return tuple(min(column) for column in zip(*flags, strict=True))
