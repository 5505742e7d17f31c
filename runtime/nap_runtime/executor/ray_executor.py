"""Workers on a Ray cluster: one actor a worker, one long-running loop an actor, no Ray call per step.

Beside `ray_cluster` the only module that imports Ray. Ray's ports listen on every interface and run code for whoever
may use them: what protects them is Ray's token authentication, or a network of your own (docs/architecture.md,
"Safety").
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from nap_runtime.distributed.probe import LinkProbe
from nap_runtime.distributed.torch_group import GroupAddress
from nap_runtime.errors import NapError, WorkerError, WorkerLostError
from nap_runtime.executor.base import Repair, WorkerPlace
from nap_runtime.executor.interfaces import use_interface_of
from nap_runtime.executor.process import Setup, WorkerProcess
from nap_runtime.executor.ray_cluster import ClusterOptions as ClusterOptions
from nap_runtime.executor.ray_cluster import connect, cpu_share, interrupts_wait, ray_errors, reserve, unanswered
from nap_runtime.worker import Outcome, Report, Task


class _Actor(WorkerProcess):
    """A worker process as an actor."""

    def bind(self) -> GroupAddress:
        """Rank 0: open the group at this node's address."""
        return self.open_group(ray.util.get_node_ip_address())

    def join(self, address: GroupAddress, rank: int, world: int) -> WorkerPlace:
        """See `WorkerProcess.join`; over the network that Ray uses."""
        use_interface_of(ray.util.get_node_ip_address())
        return super().join(address, rank, world)


@dataclass(slots=True)
class _Member:
    """An actor and the bundle it lives in."""

    actor: Any
    bundle: int
    process: int = 0
    host: str = ""
    loaded: Any = None


class RayExecutor:
    """W warm actors in a placement group, joined by a process group (gloo on CPU, NCCL on GPU).

    `placement` is what the workers got: `one-host` comes to `strict-pack` or `pack`.

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
        self._owns_cluster, self._broken = False, False
        self._group: PlacementGroup | None = None
        self._members: list[_Member] = []
        self._spares: list[_Member] = []
        self._silent: set[int] = set()
        threads = None if device == "cuda" else max(1, (os.cpu_count() or 1) // workers)
        name = str(dtype).removeprefix("torch.")
        timeout = self._cluster.timeout
        self._setup = Setup(model=str(model), dtype=name, device=device, threads=threads, timeout=timeout)
        try:
            with interrupts_wait():
                self._owns_cluster = connect(self._cluster)
            self._place()
            with ray_errors():
                for member in (*self._members, *self._spares):
                    member.loaded = member.actor.load.remote()
                ray.get([member.loaded for member in (*self._members, *self._spares)])
                self.places = self._join()
        except BaseException:
            self.close()
            raise

    def _place(self) -> None:
        """Reserve a bundle a worker: a GPU each, or a share of the CPUs that lets all of them run at once."""
        bundles = self.workers + self._cluster.spares
        self._need = {"GPU": 1.0} if self._setup.device == "cuda" else {"CPU": cpu_share(bundles)}
        self._group, self.placement = reserve(self._need, bundles, self._cluster)
        made = [self._spawn(bundle) for bundle in range(bundles)]
        self._members, self._spares = made[: self.workers], made[self.workers :]

    def _spawn(self, bundle: int) -> _Member:
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        options = ray.remote(_Actor).options(
            num_cpus=self._need.get("CPU", 0),
            num_gpus=self._need.get("GPU", 0),
            max_concurrency=4,  # `cancel`, `beat` and `leave` must get through while `run` runs
            scheduling_strategy=strategy,
        )
        return _Member(options.remote(self._setup), bundle)

    def _join(self) -> tuple[WorkerPlace, ...]:
        """Make one group of all members."""
        address = ray.get(self._members[0].actor.bind.remote(), timeout=self._cluster.start_timeout)
        joining = [member.actor.join.remote(address, rank, self.workers) for rank, member in enumerate(self._members)]
        places = tuple(ray.get(joining, timeout=self._cluster.start_timeout))
        for member, place in zip(self._members, places, strict=True):
            member.process, member.host = place.process, place.host
        return places

    def run(
        self, task: Task, *, on_report: Callable[[Report], None] | None, cancelled: Callable[[], bool]
    ) -> list[Outcome]:
        """See `Executor.run`. One Ray call a worker and batch; reports stream back beside the loops."""
        if self._broken:
            self.repair()
        self._silent.clear()
        outcomes: dict[int, Outcome] = {}
        actors = [member.actor for member in self._members]
        try:
            with ray_errors():
                streams = {actor.run.options(num_returns="streaming").remote(task): actor for actor in actors}
                self._follow(streams, on_report or (lambda _: None), cancelled, outcomes)
        except WorkerLostError:
            raise
        except WorkerError:
            self._broken = True  # the others may wait for the one that failed
            raise
        return [outcomes[rank] for rank in range(self.workers)]

    def _follow(
        self,
        streams: dict[Any, Any],
        on_report: Callable[[Report], None],
        cancelled: Callable[[], bool],
        outcomes: dict[int, Outcome],
    ) -> None:
        watch = _Watch(list(streams.values()), self._cluster, self._silent)
        suspicion: tuple[float, WorkerLostError] | None = None
        told_to_cancel = False
        while streams:
            watch.look(done=set(outcomes))
            if suspicion is not None and time.monotonic() > suspicion[0]:
                raise suspicion[1]
            if cancelled() and not told_to_cancel:
                told_to_cancel = True
                ray.get([actor.cancel.remote() for actor in streams.values()], timeout=self._cluster.liveness)
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=0.2)
            for stream in ready:
                try:
                    item = ray.get(next(stream))
                except StopIteration:
                    del streams[stream]
                    continue
                if isinstance(item, WorkerLostError):  # a peer is gone: which, and why, is about to be known
                    suspicion = suspicion or (time.monotonic() + 1.0, item)
                elif isinstance(item, NapError):
                    raise item
                elif isinstance(item, Outcome):
                    outcomes[item.worker] = item
                else:
                    on_report(item)
        if suspicion is not None:
            raise suspicion[1]

    def probe(self) -> LinkProbe:
        """See `Executor.probe`: the slowest worker's figures."""
        with ray_errors():
            found = ray.get([member.actor.probe.remote() for member in self._members], timeout=self._cluster.timeout)
        return LinkProbe(latency=max(p.latency for p in found), bandwidth=min(p.bandwidth for p in found))

    # -- recovery -------------------------------------------------------------------------------------------------

    def repair(self) -> Repair:
        """See `Executor.repair`. Living workers keep their weights; a replacement takes them from a spare or a peer."""
        began = time.monotonic()
        with ray_errors():
            lost = self._bury()
            source = self._replace(lost)
            self.places = self._join()
        self._broken = False
        return Repair(lost=lost, seconds=time.monotonic() - began, weights=source)

    def _bury(self) -> tuple[int, ...]:
        """Ranks of the dead, the silent, and those that cannot leave their group; none of them is left running."""
        for rank in self._silent:  # first of all: peers may wait for them in a collective
            self._kill(self._members[rank])
        patience, actors = self._cluster.liveness, [member.actor for member in self._members]
        lost = set(self._silent) | unanswered([actor.beat.remote() for actor in actors], patience)
        for rank in lost - self._silent:
            self._kill(self._members[rank])
        rest = [rank for rank in range(self.workers) if rank not in lost]
        stuck = unanswered([actors[rank].leave.remote(patience) for rank in rest], patience + 2, wanted=True)
        for index in stuck:
            self._kill(self._members[rest[index]])
        self._silent.clear()
        return tuple(sorted(lost | {rest[index] for index in stuck}))

    def _kill(self, member: _Member) -> None:
        """End a process for good. Ray asks it to end, which a stopped process never does; so it is killed as well."""
        with contextlib.suppress(Exception):
            ray.kill(member.actor)
        if member.process and member.host == socket.gethostname():
            with contextlib.suppress(OSError):
                os.kill(member.process, signal.SIGKILL)

    def _replace(self, lost: tuple[int, ...]) -> str:
        if not lost:
            return "kept"
        source, loading = "spare", []
        copy = self._host_copy(lost)
        for rank in lost:
            made = self._spawn(self._members[rank].bundle)
            made.loaded = made.actor.load.remote(copy)
            spare = self._ready_spare()
            if spare is not None:
                self._spares.append(made)  # what is new may take its time and stand by
            else:
                source = "disk" if copy is None else "peer"
                loading.append(made.loaded)
            self._members[rank] = spare or made
        ray.get(loading, timeout=self._cluster.start_timeout)
        return source

    def _ready_spare(self) -> _Member | None:
        """A spare that has its weights; one that has died meanwhile is dropped."""
        for spare in list(self._spares):
            ready, _ = ray.wait([spare.loaded], timeout=0)
            if not ready:
                continue
            self._spares.remove(spare)
            if not unanswered([spare.actor.beat.remote()], self._cluster.liveness):
                return spare
            self._kill(spare)
        return None

    def _host_copy(self, lost: tuple[int, ...]) -> Any:
        """A reference to a living worker's weights in Ray's object store; None where all are lost."""
        living = [member for rank, member in enumerate(self._members) if rank not in lost]
        return living[0].actor.host_copy.remote() if living else None

    def close(self) -> None:
        """Kill the actors, give the placement group back, stop a cluster of our own."""
        for member in (*self._members, *self._spares):
            with contextlib.suppress(Exception):
                ray.kill(member.actor)
        self._members, self._spares = [], []
        if self._group is not None:
            with contextlib.suppress(Exception):
                remove_placement_group(self._group)
            self._group = None
        if self._owns_cluster and ray.is_initialized():
            ray.shutdown()
            self._owns_cluster = False


class _Watch:
    """Asks every worker for a sign of life twice a second, and whether any of them gets on."""

    def __init__(self, actors: list[Any], cluster: ClusterOptions, silent: set[int]) -> None:
        self._actors, self._cluster, self._silent = actors, cluster, silent
        now = time.monotonic()
        self._asked: dict[int, tuple[Any, float]] = {}
        self._next = dict.fromkeys(range(len(actors)), now)
        self._steps = [-1] * len(actors)
        self._moved: float | None = None  # nothing is expected before the first step: it may compile

    def look(self, done: set[int]) -> None:
        """Raise WorkerLostError where a worker is dead or silent, or where none gets on."""
        now = time.monotonic()
        for rank, actor in enumerate(self._actors):
            if rank in self._asked:
                self._hear(rank, now)
            elif now >= self._next[rank]:
                self._asked[rank] = (actor.beat.remote(), now)
                self._next[rank] = now + 0.5
        if self._moved is not None and len(done) < len(self._actors) and now > self._moved + self._cluster.timeout:
            raise WorkerLostError(f"no worker has made a step for {self._cluster.timeout:g} s")

    def _hear(self, rank: int, now: float) -> None:
        answer, since = self._asked[rank]
        ready, _ = ray.wait([answer], timeout=0)
        if not ready:
            if now > since + self._cluster.liveness:
                self._silent.add(rank)
                raise WorkerLostError(f"worker {rank} has not answered for {self._cluster.liveness:g} s")
            return
        del self._asked[rank]
        steps = ray.get(answer)
        if steps != self._steps[rank]:
            if self._steps[rank] >= 0:
                self._moved = now
            self._steps[rank] = steps
