"""What runs in a worker's own process: its weights, its place in a group, its step loop in a thread.

Knows nothing of Ray: `ray_executor` makes an actor of it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from nap_runtime.distributed.probe import LinkProbe, probe
from nap_runtime.distributed.torch_group import GroupAddress, TorchCommunicator, join_store, open_store
from nap_runtime.errors import NapError, WorkerError
from nap_runtime.executor.base import WorkerPlace, worker_failure
from nap_runtime.executor.liveness import Beat
from nap_runtime.job import CompileMode
from nap_runtime.models.compiled import CompileOptions
from nap_runtime.models.config import ModelConfig
from nap_runtime.models.loading import load_weights, read_card
from nap_runtime.models.quantised import FP8, check_storage, quantise
from nap_runtime.models.transformer import DiffusionTransformer
from nap_runtime.numerics import Numerics
from nap_runtime.storage import NATIVE, Storage
from nap_runtime.worker import BlockWorker, Denoiser, Outcome, Report, Task, prepare

_DONE = object()
_LEASE_SECONDS = 120.0  # without a question, in the middle of a decode: its coordinator is gone, or has given it up


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCopy:
    """A model's weights as a living worker holds them, byte for byte: what a replacement loads in place of files."""

    config: ModelConfig
    tensors: Mapping[str, npt.NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all workers of a group share. `threads` None leaves torch its choice; `timeout` is the collectives'."""

    model: str
    dtype: str
    device: str
    compile: CompileMode
    storage: Storage
    threads: int | None
    timeout: float
    numerics: Numerics = "fast"


class WorkerProcess:
    """A worker process. Its methods only start the loop, hand on reports and answer; none of them computes."""

    def __init__(self, setup: Setup) -> None:
        self._setup, self._timeout = setup, timedelta(seconds=setup.timeout)
        self._dtype: torch.dtype = getattr(torch, setup.dtype)
        self._compiling = CompileOptions(mode=setup.compile, numerics=setup.numerics)
        self._batch = self._stopped = 0  # the number of the batch under way, and of the last that is to stop
        self._loop: threading.Thread | None = None
        self._model: DiffusionTransformer | None = None
        self._denoiser: Denoiser | None = None
        self._comm: TorchCommunicator | None = None
        self._worker: BlockWorker | None = None
        self._store: Any = None
        self._device = torch.device("cpu")
        self._joining = False
        self._busy = False  # from a decode's beginning to its good end, or to `leave`
        self._asked_at = 0.0  # when a sign of life was last asked for
        self._leased = False

    def load(self, copy: HostCopy | None = None) -> bool:
        """Take the weights from a peer's copy, or read them from the model's files."""
        if self._setup.threads:
            torch.set_num_threads(self._setup.threads)
        self._device = _own_device(self._setup.device)
        storage = self._setup.storage
        self._compiling.check(self._device)
        check_storage(storage, device=self._device, dtype=self._dtype)
        if copy is None:
            self._model = load_weights(read_card(self._setup.model), dtype=self._dtype, device=self._device)
            self._model = quantise(self._model) if storage.weights == "fp8" else self._model
        else:
            self._model = _from_copy(copy, self._dtype, self._device, storage)
        self._denoiser = prepare(self._model, self._compiling)
        return True

    def host_copy(self) -> HostCopy:
        """The weights, for a worker that takes a lost one's place."""
        assert self._model is not None, "load was not called"
        return HostCopy(
            config=self._model.config,
            tensors={name: _as_bytes(value) for name, value in self._model.named_parameters()},
        )

    def open_group(self, host: str) -> GroupAddress:
        """Rank 0: bind the group's store."""
        self._store, address = open_store(host, self._timeout)
        return address

    def join(self, address: GroupAddress, rank: int, world: int) -> WorkerPlace:
        """Become a member of a group."""
        assert self._denoiser is not None, "load was not called"
        self._joining = True
        try:
            store = (self._store if rank == 0 else None) or join_store(address, self._timeout)
            self._comm = TorchCommunicator(store, rank=rank, world=world, device=self._device, timeout=self._timeout)
        finally:
            self._joining = False
        self._worker = BlockWorker(
            self._denoiser,
            self._comm,
            dtype=FP8 if self._setup.storage.kv == "fp8" else self._dtype,
            device=self._device,
            compiling=self._compiling,
        )
        where = str(self._device)
        if self._device.type == "cuda":
            where = f"{where} {torch.cuda.get_device_properties(self._device).uuid}"
        return WorkerPlace(worker=rank, process=os.getpid(), host=socket.gethostname(), device=where)

    def probe(self) -> LinkProbe:
        """Measure the group's network; all members do so at once, between two batches."""
        assert self._comm is not None, "join was not called"
        return probe(self._comm, self._device)

    def leave(self, patience: float) -> bool:
        """Give up the group, whatever the loop is doing; False where the loop cannot be got out of it.

        Collectives that wait for a lost peer are aborted, not waited for.
        """
        self._stopped = max(self._stopped, self._batch)
        self._busy = False
        comm, self._comm, self._worker = self._comm, None, None
        if self._joining:
            return False  # it waits for a peer that will not come
        if not self._ended(0.1) and comm is not None:
            comm.abort()
            if not self._ended(patience):
                return False
        if comm is not None:
            with contextlib.suppress(Exception):
                comm.close()
        self._store = None
        return True

    def _ended(self, seconds: float) -> bool:
        if self._loop is not None:
            self._loop.join(seconds)
            return not self._loop.is_alive()
        return True

    def beat(self) -> Beat:
        """A sign of life."""
        self._asked_at = time.monotonic()
        worker = self._worker
        return Beat() if worker is None else Beat(steps=worker.steps, pace=worker.pace())

    def _watch_lease(self) -> None:
        """End this process when nobody asks for it any more: the group has gone on without it, or is no more."""
        while True:
            time.sleep(1.0)
            if self._busy and time.monotonic() > self._asked_at + _LEASE_SECONDS:
                os._exit(1)

    def run(self, task: Task, batch: int) -> Iterator[Report | Outcome | NapError]:
        """Decode a batch; yields reports as they come, the outcome last.

        `batch` is its number, more than the last one's: what `cancel` means, whichever of the two calls arrives first.
        """
        self._batch = batch
        self._asked_at, self._busy = time.monotonic(), True
        if not self._leased:
            self._leased = True
            threading.Thread(target=self._watch_lease, name="lease", daemon=True).start()
        out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._loop = threading.Thread(target=self._decode, args=(task, batch, out), name="step loop", daemon=True)
        self._loop.start()
        while (item := out.get()) is not _DONE:
            yield item

    def _decode(self, task: Task, batch: int, out: queue.SimpleQueue[Any]) -> None:
        worker = self._worker
        if worker is None:
            out.put(WorkerError("a worker was asked to decode before it had joined a group"))
            out.put(_DONE)
            return
        try:
            outcome = worker.run(task, on_report=out.put, cancelled=lambda: self._stopped >= batch)
            self._busy = False
            out.put(outcome)
        except Exception as error:
            out.put(worker_failure(worker.comm.rank, error))
        finally:
            out.put(_DONE)

    def cancel(self, batch: int) -> None:
        """Stop a batch at the next control point that all workers share; one that is yet to come, at its first."""
        self._stopped = max(self._stopped, batch)


def _own_device(device: str) -> torch.device:
    """The device this process was given: always `cuda:0` of those it may see."""
    if device == "cuda":
        torch.cuda.set_device(0)
        return torch.device("cuda", 0)
    return torch.device(device)


def _as_bytes(tensor: torch.Tensor) -> npt.NDArray[np.uint8]:
    flat: npt.NDArray[np.uint8] = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().reshape(-1)
    return flat


def _from_copy(
    copy: HostCopy, dtype: torch.dtype, device: torch.device, storage: Storage = NATIVE
) -> DiffusionTransformer:
    model = DiffusionTransformer(copy.config, dtype=dtype, device=device)
    model = quantise(model) if storage.weights == "fp8" else model  # of nothing yet: it makes the places
    with torch.no_grad():
        for name, value in model.named_parameters():
            given = torch.from_numpy(copy.tensors[name].copy()).view(value.dtype)
            value.copy_(given.reshape(value.shape))
    return model.requires_grad_(False).eval()
