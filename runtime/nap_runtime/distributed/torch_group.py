"""Communicator over torch.distributed: gloo on CPU, NCCL on GPU, the same code above it.

The only module that imports torch.distributed.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store, TCPStore

from nap_runtime.distributed.comm import Flags, PendingFlags, PendingGather
from nap_runtime.errors import WorkerError, WorkerLostError


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
            raise WorkerError(f"worker {rank}: the process group could not be formed: {error}") from error

    def all_gather(self, out: Tensor, inp: Tensor) -> None:
        """See `Communicator.all_gather`. The bytes travel as they are, whatever their dtype."""
        try:
            dist.all_gather_into_tensor(out.view(torch.uint8).flatten(), inp.view(torch.uint8).flatten())
        except RuntimeError as error:
            raise WorkerLostError(f"worker {self.rank}: a peer left the group: {error}") from error

    def start_all_gather(self, out: Tensor, inp: Tensor) -> PendingGather:
        """See `Communicator.start_all_gather`."""
        flat = out.view(torch.uint8).flatten(), inp.view(torch.uint8).flatten()
        try:
            work = dist.all_gather_into_tensor(*flat, async_op=True)
        except RuntimeError as error:
            raise WorkerLostError(f"worker {self.rank}: a peer left the group: {error}") from error
        return _PendingGather(work, flat)

    def start_flags(self, flags: Flags) -> PendingFlags:
        """See `Communicator.start_flags`; always over gloo, beside whatever the device does."""
        mine = torch.tensor(flags, dtype=torch.int64)
        all_ = torch.empty((self.world, len(flags)), dtype=torch.int64)
        try:
            work = dist.all_gather_into_tensor(all_.flatten(), mine, group=self._control, async_op=True)
        except RuntimeError as error:
            raise WorkerLostError(f"worker {self.rank}: a peer left the group: {error}") from error
        return _Pending(work, all_, mine)

    def abort(self) -> None:
        """Break off whatever waits for a peer: a lost one is not waited for. The group is of no use afterwards."""
        with contextlib.suppress(Exception):
            dist.distributed_c10d._abort_process_group()

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()


class _PendingGather:
    def __init__(self, work: dist.Work | None, buffers: tuple[Tensor, Tensor]) -> None:
        self._work, self._buffers = work, buffers  # both must outlive the exchange

    def wait(self) -> None:
        try:
            if self._work is not None:
                self._work.wait()
        except RuntimeError as error:
            raise WorkerLostError(f"a peer left the group: {error}") from error


class _Pending:
    def __init__(self, work: dist.Work | None, flags: Tensor, mine: Tensor) -> None:
        self._work, self._flags, self._mine = work, flags, mine  # `mine` must outlive the exchange

    def wait(self) -> list[Flags]:
        try:
            if self._work is not None:
                self._work.wait()
        except RuntimeError as error:
            raise WorkerLostError(f"a peer left the group: {error}") from error
        return [tuple(row) for row in self._flags.tolist()]
