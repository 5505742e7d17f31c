"""Workers on a Ray cluster: one actor a worker, one long-running loop an actor, no Ray call per step.

The only module that imports Ray. Ray's ports listen on every interface and run code for whoever may use them: what
protects them is Ray's token authentication, or a network of your own (docs/architecture.md, "Safety").
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from nap_runtime.distributed.torch_group import (
    GroupAddress,
    TorchCommunicator,
    join_store,
    open_store,
)
from nap_runtime.errors import NapError, UsageError, WorkerError
from nap_runtime.executor.base import WorkerPlace
from nap_runtime.executor.interrupts import on_interrupt
from nap_runtime.models.loading import load_weights, read_card
from nap_runtime.worker import BlockWorker, Outcome, Report, Task

_DONE = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """Where the workers go.

    Args:
        address: a running cluster's address; None starts a local one and stops it again.
        timeout: seconds until a silent peer counts as gone.
        start_timeout: seconds to wait for the cluster to have room for all workers.
    """

    address: str | None = None
    timeout: float = 60.0
    start_timeout: float = 60.0


class _Actor:
    """A worker process. Its loop runs in a thread of its own; the actor's methods only start it and hand on reports."""

    def __init__(self, rank: int, world: int, timeout: float) -> None:
        self._rank, self._world, self._timeout = rank, world, timedelta(seconds=timeout)
        self._cancel = threading.Event()
        self._worker: BlockWorker | None = None
        self._store: Any = None

    def open_group(self) -> GroupAddress:
        """Rank 0: bind the group's store."""
        self._store, address = open_store(ray.util.get_node_ip_address(), self._timeout)
        return address

    def start(self, address: GroupAddress, model: str, dtype: str, device: str, threads: int | None) -> WorkerPlace:
        """Load the weights and join the group."""
        if threads:
            torch.set_num_threads(threads)
        where = _own_device(device)
        kind: torch.dtype = getattr(torch, dtype)
        weights = load_weights(read_card(model), dtype=kind, device=where)
        store = self._store or join_store(address, self._timeout)
        comm = TorchCommunicator(store, rank=self._rank, world=self._world, device=where, timeout=self._timeout)
        self._worker = BlockWorker(weights, comm, dtype=kind, device=where)
        name = str(where) if where.type == "cpu" else f"{where} {torch.cuda.get_device_properties(where).uuid}"
        return WorkerPlace(worker=self._rank, process=os.getpid(), host=socket.gethostname(), device=name)

    def run(self, task: Task) -> Iterator[Report | Outcome | NapError]:
        """Decode a batch; yields reports as they come, the outcome last."""
        self._cancel.clear()
        out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        loop = threading.Thread(target=self._loop, args=(task, out), name="step loop", daemon=True)
        loop.start()
        while (item := out.get()) is not _DONE:
            yield item

    def _loop(self, task: Task, out: queue.SimpleQueue[Any]) -> None:
        try:
            assert self._worker is not None, "start was not called"
            out.put(self._worker.run(task, on_report=out.put, cancelled=self._cancel.is_set))
        except NapError as error:
            out.put(error)
        except Exception as error:
            out.put(WorkerError(f"worker {self._rank}: {type(error).__name__}: {error}"))
        finally:
            out.put(_DONE)

    def cancel(self) -> None:
        """Stop at the next control point that all workers share."""
        self._cancel.set()


def _own_device(device: str) -> torch.device:
    """The device Ray has given this actor: always `cuda:0` of those it may see."""
    if device == "cuda":
        torch.cuda.set_device(0)
        return torch.device("cuda", 0)
    return torch.device(device)


class RayExecutor:
    """W warm actors in a placement group, joined by a process group (gloo on CPU, NCCL on GPU).

    Raises:
        UsageError: the cluster has no room for the workers.
        ModelError: the workers cannot load the model.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        workers: int,
        dtype: torch.dtype,
        device: str = "cpu",
        cluster: ClusterOptions | None = None,
    ) -> None:
        self.workers = workers
        self._cluster = cluster or ClusterOptions()
        self._owns_cluster = False
        self._group: PlacementGroup | None = None
        self._actors: list[Any] = []
        try:
            with _interrupts_wait():
                self._owns_cluster = _connect(self._cluster)
            self._place(device)
            self.places = self._start(str(model), str(dtype).removeprefix("torch."), device)
        except BaseException:
            self.close()
            raise

    def _place(self, device: str) -> None:
        """Reserve a bundle a worker: a GPU each, or a share of the CPUs that lets all of them run at once."""
        need = {"GPU": 1.0} if device == "cuda" else {"CPU": _cpu_share(self.workers)}
        group = placement_group([need] * self.workers, strategy="PACK")
        self._group = group
        if not group.wait(self._cluster.start_timeout):
            have = ray.cluster_resources()
            what = next(iter(need))
            raise UsageError(
                f"workers: the cluster has {have.get(what, 0):g} {what} where {self.workers} workers need "
                f"{need[what]:g} each; use fewer workers or a larger cluster",
                field="workers",
            )
        actor = ray.remote(_Actor)
        for rank in range(self.workers):
            self._actors.append(
                actor.options(
                    num_cpus=need.get("CPU", 0),
                    num_gpus=need.get("GPU", 0),
                    max_concurrency=2,  # `cancel` must get through while `run` runs
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
                ).remote(rank, self.workers, self._cluster.timeout)
            )

    def _start(self, model: str, dtype: str, device: str) -> tuple[WorkerPlace, ...]:
        with _ray_errors():
            address = ray.get(self._actors[0].open_group.remote())
            threads = None if device == "cuda" else max(1, (os.cpu_count() or 1) // self.workers)
            starting = [actor.start.remote(address, model, dtype, device, threads) for actor in self._actors]
            return tuple(ray.get(starting))

    def run(self, task: Task, *, on_report: Callable[[Report], None], cancelled: Callable[[], bool]) -> list[Outcome]:
        """See `Executor.run`. One Ray call a worker and batch; reports stream back beside the loops."""
        outcomes: dict[int, Outcome] = {}
        with _ray_errors():
            streams = {actor.run.options(num_returns="streaming").remote(task): actor for actor in self._actors}
            self._follow(streams, on_report, cancelled, outcomes)
        return [outcomes[rank] for rank in range(self.workers)]

    def _follow(
        self,
        streams: dict[Any, Any],
        on_report: Callable[[Report], None],
        cancelled: Callable[[], bool],
        outcomes: dict[int, Outcome],
    ) -> None:
        told_to_cancel = False
        while streams:
            if cancelled() and not told_to_cancel:
                told_to_cancel = True
                ray.get([actor.cancel.remote() for actor in self._actors])
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=0.2)
            for stream in ready:
                try:
                    item = ray.get(next(stream))
                except StopIteration:
                    del streams[stream]
                    continue
                if isinstance(item, NapError):
                    raise item
                if isinstance(item, Outcome):
                    outcomes[item.worker] = item
                else:
                    on_report(item)

    def close(self) -> None:
        """Kill the actors, give the placement group back, stop a cluster of our own."""
        for actor in self._actors:
            with contextlib.suppress(Exception):
                ray.kill(actor)
        self._actors = []
        if self._group is not None:
            with contextlib.suppress(Exception):
                remove_placement_group(self._group)
            self._group = None
        if self._owns_cluster and ray.is_initialized():
            ray.shutdown()
            self._owns_cluster = False


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Hold Ctrl-C back until Ray is up: a cluster that is interrupted while it starts cannot be stopped again."""
    pressed = threading.Event()
    with on_interrupt(lambda *_: pressed.set()):
        yield
    if pressed.is_set():
        signal.raise_signal(signal.SIGINT)


def _connect(cluster: ClusterOptions) -> bool:
    """Join a cluster, or start a local one. Returns whether it is ours to stop."""
    if ray.is_initialized():
        joined = ray.get_runtime_context().gcs_address
        if cluster.address not in (None, joined):
            raise UsageError(f"ray: this process is on the cluster {joined}, not {cluster.address}", field="address")
        return False
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _knock(address)
            ray.init(address=address, **quiet)
        else:
            ray.init(include_dashboard=False, namespace="nap", **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"ray: no cluster could be reached or started: {error}", field="address") from error
    return True


def _knock(address: str) -> None:
    """Fail in seconds where nobody listens at host:port; Ray itself would try for minutes, then end the process."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def _cpu_share(workers: int) -> float:
    """CPUs a worker asks for: one, or less where that would leave a worker out (three workers run on two cores)."""
    available = float(ray.cluster_resources().get("CPU", 1.0))
    return max(0.01, min(1.0, int(100 * available / workers) / 100))


@contextlib.contextmanager
def _ray_errors() -> Iterator[None]:
    """Ray's failures as ours, with the cause in one line."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, NapError):
            raise cause from error
        raise WorkerError(f"a worker failed: {str(cause).strip().splitlines()[-1]}") from error
    except ray.exceptions.RayError as error:
        raise WorkerError(f"a worker died: {str(error).strip().splitlines()[0]}") from error
