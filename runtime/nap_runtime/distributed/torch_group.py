"""Communicator over torch.distributed: gloo on CPU, NCCL on GPU, the same code above it.

The only module that imports torch.distributed.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store, TCPStore

from nap_runtime.distributed.comm import Flags, PendingFlags, PendingGather
from nap_runtime.errors import WorkerError, WorkerLostError

_SLICE = timedelta(seconds=0.2)  # of waiting, between two looks at whether the group has been given up
_given_up: list[tuple[float, Any]] = []  # groups whose gloo threads may still wait for a lost peer, and until when


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAddress:
    """Where rank 0 keeps the group's store."""

    host: str
    port: int


def open_store(host: str, timeout: timedelta) -> tuple[TCPStore, GroupAddress]:
    """Bind the group's store to a free port of `host`; rank 0 calls this and tells the others the address."""
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
    return store, GroupAddress(host=host, port=store.port)


def join_store(address: GroupAddress, timeout: timedelta) -> TCPStore:
    """Connect to rank 0's store."""
    return TCPStore(address.host, address.port, is_master=False, wait_for_workers=False, timeout=timeout)


class TorchCommunicator:
    """A worker's end of a process group: one group for data (gloo or NCCL), one over gloo for control.

    Args:
        store: the group's store; rank 0 opened it, the others joined it.
        device: where the data lives; CUDA devices get NCCL.
        timeout: how long a collective may take before a peer counts as gone.

    Raises:
        WorkerError: the group could not be formed.
    """

    def __init__(self, store: Store, *, rank: int, world: int, device: torch.device, timeout: timedelta) -> None:
        self.rank, self.world, self._device = rank, world, device
        self._timeout, self._aborted = timeout, threading.Event()
        cuda = device.type == "cuda"
        try:
            dist.init_process_group(
                "nccl" if cuda else "gloo",
                store=store,
                rank=rank,
                world_size=world,
                timeout=timeout,
                device_id=device if cuda else None,
            )
            self._control = dist.new_group(backend="gloo", timeout=timeout)
        except RuntimeError as error:
            with contextlib.suppress(Exception):
                dist.distributed_c10d._abort_process_group()  # half a group must not be in the next one's way
            raise WorkerError(f"worker {rank}: the process group could not be formed: {error}") from error

    def all_gather(self, out: Tensor, inp: Tensor) -> None:
        """See `Communicator.all_gather`. The bytes travel as they are, whatever their dtype."""
        if self._device.type == "cpu":
            return self.start_all_gather(out, inp).wait()
        try:  # on the stream that computes: a stream of its own would cost two events a gather
            dist.all_gather_into_tensor(out.view(torch.uint8).flatten(), inp.view(torch.uint8).flatten())
        except RuntimeError as error:
            raise self._lost(error) from error

    def start_all_gather(self, out: Tensor, inp: Tensor) -> PendingGather:
        """See `Communicator.start_all_gather`."""
        flat = out.view(torch.uint8).flatten(), inp.view(torch.uint8).flatten()
        try:
            work = dist.all_gather_into_tensor(*flat, async_op=True)
        except (RuntimeError, ValueError) as error:
            raise self._lost(error) from error
        return _PendingGather(self, work, flat)

    def start_flags(self, flags: Flags) -> PendingFlags:
        """See `Communicator.start_flags`; always over gloo, beside whatever the device does."""
        mine = torch.tensor(flags, dtype=torch.int64)
        all_ = torch.empty((self.world, len(flags)), dtype=torch.int64)
        try:
            work = dist.all_gather_into_tensor(all_.flatten(), mine, group=self._control, async_op=True)
        except (RuntimeError, ValueError) as error:
            raise self._lost(error) from error
        return _Pending(self, work, all_, mine)

    def wait_for(self, work: dist.Work, *, on_host: bool) -> None:
        """Until a collective is done: where the host waits, it looks now and then whether the group has been given up.

        gloo cannot be got out of a collective whose peer is silent (frozen, or its link cut) before its timeout.
        """
        while on_host and not work.is_completed():
            with contextlib.suppress(RuntimeError):  # a slice that is over; or a failure, which the next line raises
                work.wait(_SLICE)
            if self._aborted.is_set():
                raise WorkerLostError(f"worker {self.rank}: the group was given up")
        try:
            work.wait()
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> WorkerLostError:
        return WorkerLostError(f"worker {self.rank}: a peer left the group: {error}")

    def abort(self) -> None:
        """Break off whatever waits for a peer: a lost one is not waited for. The group is of no use afterwards.

        Threads of gloo that wait keep their group until its timeout; to give it up sooner would wait for them.
        """
        self._aborted.set()
        now = time.monotonic()
        _given_up[:] = [(until, group) for until, group in _given_up if until > now]
        _given_up.append((now + self._timeout.total_seconds() + 5.0, (dist.group.WORLD, self._control)))
        with contextlib.suppress(Exception):
            dist.distributed_c10d._abort_process_group()

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()


class _PendingGather:
    def __init__(self, comm: TorchCommunicator, work: dist.Work | None, buffers: tuple[Tensor, Tensor]) -> None:
        self._comm, self._work, self._buffers = comm, work, buffers  # the buffers must outlive the exchange

    def wait(self) -> None:
        if self._work is not None:
            self._comm.wait_for(self._work, on_host=self._buffers[0].device.type == "cpu")


class _Pending:
    def __init__(self, comm: TorchCommunicator, work: dist.Work | None, flags: Tensor, mine: Tensor) -> None:
        self._comm, self._work = comm, work
        self._flags, self._mine = flags, mine  # both must outlive the exchange

    def wait(self) -> list[Flags]:
        if self._work is not None:
            self._comm.wait_for(self._work, on_host=True)
        return [tuple(row) for row in self._flags.tolist()]
