"""Workers on a Ray cluster: one actor a worker, one long-running loop an actor, no Ray call per step.

Ray is imported in the modules `ray_*` alone. Ray's ports listen on every interface and run code for whoever
may use them: what protects them is Ray's token authentication, or a network of your own (docs/architecture.md,
"Safety").
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup, remove_placement_group

from nap_runtime.distributed.probe import LinkProbe
from nap_runtime.errors import NapError, NoRoomError, WorkerError, WorkerLostError
from nap_runtime.executor.base import Repair, WorkerPlace
from nap_runtime.executor.homes import Home
from nap_runtime.executor.liveness import Liveness, Patience, Straggler
from nap_runtime.executor.process import Setup
from nap_runtime.executor.ray_actors import Member, Watch, WorkerActor
from nap_runtime.executor.ray_cluster import ClusterOptions as ClusterOptions
from nap_runtime.executor.ray_cluster import connect, cpu_share, interrupts_wait, ray_errors, reserve, unanswered
from nap_runtime.executor.ray_ending import PATIENCE, leave, within
from nap_runtime.executor.ray_homes import Homes
from nap_runtime.job import CompileMode
from nap_runtime.numerics import Numerics
from nap_runtime.storage import NATIVE, Storage
from nap_runtime.worker import Outcome, Report, Task

_log = logging.getLogger(__name__)
_COMPILE_SECONDS = 300.0  # that peers wait at least where steps are compiled


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
        compile: CompileMode = "none",
        storage: Storage = NATIVE,
        cluster: ClusterOptions | None = None,
        numerics: Numerics = "fast",
    ) -> None:
        self.workers = workers
        self._cluster = _with_time_to_compile(cluster or ClusterOptions(), compile)
        self._owns_cluster, self._broken, self._tended = False, False, 0.0
        self._group: PlacementGroup | None = None
        self._members: list[Member] = []
        self._spares: list[Member] = []
        self._homeless: list[int] = []  # bundles whose spare is to be made when they have a host again
        self._returning: dict[int, Member] = {}  # rank → what takes its place between two batches
        self._batch = 0  # the number of the one under way
        self._condemned: set[int] = set()  # ranks that the next repair replaces
        self._told: tuple[Straggler, ...] = ()
        self.on_straggler: Callable[[tuple[Straggler, ...]], None] | None = None
        threads = None if device == "cuda" else max(1, (os.cpu_count() or 1) // workers)
        name, timeout = str(dtype).removeprefix("torch."), self._cluster.timeout
        self._liveness = Liveness(workers, _patience(self._cluster))
        steps: dict[str, Any] = {"device": device, "compile": compile, "threads": threads, "timeout": timeout}
        self._setup = Setup(model=str(model), dtype=name, storage=storage, numerics=numerics, **steps)
        try:
            with interrupts_wait():
                self._owns_cluster = connect(self._cluster)
            self._place()
            with ray_errors():
                nodes = ray.get([member.loaded for member in (*self._members, *self._spares)])
                for member, node in zip((*self._members, *self._spares), nodes, strict=True):
                    member.node = node
                self.places = self._join()
        except BaseException:
            self.close()
            raise

    def _place(self) -> None:
        """Reserve a bundle a worker: a GPU each, or a share of the CPUs that lets all of them run at once."""
        bundles = self.workers + self._cluster.spares
        self._need = {"GPU": 1.0} if self._setup.device == "cuda" else {"CPU": cpu_share(bundles)}
        self._group, self.placement = reserve(self._need, bundles, self._cluster)
        self._homes = Homes(self._need)
        made = [self._spawn(bundle) for bundle in range(bundles)]
        self._members, self._spares = made[: self.workers], made[self.workers :]

    def _spawn(self, bundle: int, home: Home | None = None, copy: Any = None) -> Member:
        """A process that loads its weights, in its bundle or where else it is told."""
        options = ray.remote(WorkerActor).options(
            max_concurrency=4,  # `cancel`, `beat` and `leave` must get through while `run` runs
            **self._homes.options(self._group, bundle, home),
        )
        actor = options.remote(self._setup)
        away = home is not None and home.how != "home"
        return Member(actor, bundle, away, node=home.node if home else "", loaded=actor.settle.remote(copy))

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
        if self._broken or self._come_home():
            self.repair()
        self._condemned.clear()
        outcomes: dict[int, Outcome] = {}
        actors = [member.actor for member in self._members]
        try:
            with ray_errors():
                self._batch += 1
                streams = {a.run.options(num_returns="streaming").remote(task, self._batch): a for a in actors}
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
        watch = Watch(list(streams.values()), self._liveness)
        suspicion: tuple[float, WorkerLostError] | None = None
        told_to_cancel = False
        while streams:
            if (lost := watch.look(set(outcomes))) is not None:
                self._condemned |= set(lost.ranks)
                raise WorkerLostError(lost.reason)
            if suspicion is not None and time.monotonic() > suspicion[0]:
                raise suspicion[1]
            if cancelled() and not told_to_cancel:
                told_to_cancel = True
                for actor in streams.values():
                    actor.cancel.remote(self._batch)
            self._mind_stragglers(set(outcomes))
            self._tend()
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
        slowest = max(p.latency for p in found), min(p.bandwidth for p in found)
        return LinkProbe(latency=slowest[0], bandwidth=slowest[1], device=found[0].device)

    # -- recovery -------------------------------------------------------------------------------------------------

    def repair(self) -> Repair:
        """See `Executor.repair`. Living workers keep their weights; a replacement takes them from a spare or a peer.

        Raises:
            NoRoomError: no host is left for a worker.
        """
        began = time.monotonic()
        with ray_errors():
            lost = self._bury()
            source = self._replace(lost)
            self.places = self._join()
        self._broken = False
        return Repair(lost=lost, seconds=time.monotonic() - began, weights=source)

    def _bury(self) -> tuple[int, ...]:
        """Ranks of the dead, the condemned, and those that cannot leave their group; none of them is left running."""
        for rank in self._condemned:  # first of all: peers may wait for them in a collective
            self._kill(self._members[rank])
        self._homes.suspect(member.node for member in (*self._members, *self._spares))
        lost = set(self._condemned) | self._cut_off()
        rest = [rank for rank in range(self.workers) if rank not in lost]
        dead = unanswered([self._members[rank].actor.beat.remote() for rank in rest], self._cluster.liveness)
        lost |= {rest[index] for index in dead}
        rest = [rank for rank in rest if rank not in lost]
        patience = min(self._cluster.liveness, 2.0)
        leaving = [self._members[rank].actor.leave.remote(patience) for rank in rest]
        abort = 3.0 if self._setup.device == "cpu" else 10.0  # seconds that to abort a collective may take
        lost |= {rest[index] for index in unanswered(leaving, patience + abort, wanted=True)}
        for rank in lost:
            self._kill(self._members[rank])
        self._condemned.clear()
        return tuple(sorted(lost))

    def _cut_off(self) -> set[int]:
        """Ranks on hosts that cannot be reached; spares there are given up."""
        for spare in [spare for spare in self._spares if spare.node in self._homes.unfit]:
            self._spares.remove(spare)
            self._kill(spare)
            self._homeless.append(spare.bundle)
        return {rank for rank, member in enumerate(self._members) if member.node in self._homes.unfit}

    def _kill(self, member: Member) -> None:
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
            self._liveness.forget(rank)
            bundle, spare = self._members[rank].bundle, self._ready_spare()
            if spare is not None:
                self._members[rank] = spare
                self._homeless.append(bundle)
                continue
            source = "disk" if copy is None else "peer"
            self._members[rank] = self._spawn(bundle, self._find_home(bundle), copy)
            loading.append(self._members[rank])
        self._make_spares(copy)  # what is new may take its time and stand by
        nodes = ray.get([member.loaded for member in loading], timeout=self._cluster.start_timeout)
        for member, node in zip(loading, nodes, strict=True):
            member.node = node
        return source

    def _find_home(self, bundle: int) -> Home:
        """Where a worker can be put now; waits for a host where there is none.

        Raises:
            NoRoomError: none has come in time.
        """
        deadline = time.monotonic() + self._cluster.start_timeout
        while (home := self._homes.choose(self._group, bundle, self._crowd())) is None:
            if time.monotonic() > deadline:
                raise NoRoomError(f"no host has room for a worker that was lost, for {self._cluster.start_timeout:g} s")
            time.sleep(0.5)
            self._homes.tend()
        return home

    def _crowd(self) -> Counter[str]:
        """Workers on each node."""
        return Counter(member.node for member in self._members)

    def _ready_spare(self, *, not_on: Collection[str] = ()) -> Member | None:
        """A spare that has its weights; one that has died meanwhile is dropped. Slow hosts' last."""
        for spare in sorted(self._spares, key=lambda spare: self._homes.is_slow(spare.node)):
            if not ray.wait([spare.loaded], timeout=0)[0]:
                continue
            try:
                spare.node = ray.get(spare.loaded)
            except ray.exceptions.RayError:
                spare.node = ""
            if spare.node in not_on:
                continue
            self._spares.remove(spare)
            if spare.node and not unanswered([spare.actor.beat.remote()], self._cluster.liveness):
                return spare
            self._kill(spare)
            self._homeless.append(spare.bundle)
        return None

    def _host_copy(self, lost: Collection[int]) -> Any:
        """A reference to a living worker's weights in Ray's object store; None where all are lost."""
        living = [member for rank, member in enumerate(self._members) if rank not in lost]
        return living[0].actor.host_copy.remote() if living else None

    # -- hosts that come and go -----------------------------------------------------------------------------------

    def _tend(self) -> None:
        """Now and then: can hosts be reached again, have spares a home again, can workers go back to theirs."""
        away = [rank for rank, member in enumerate(self._members) if member.away and rank not in self._returning]
        if not (away or self._homeless or self._homes.unfit) or time.monotonic() < self._tended + 2.0:
            return
        self._tended = time.monotonic()
        with contextlib.suppress(NoRoomError, ray.exceptions.RayError):  # the head is away: another time
            self._homes.tend()
            copy = None
            for rank in away:
                bundle = self._members[rank].bundle
                if self._homes.reserved(self._group, bundle) is not None:
                    copy = copy or self._host_copy(())
                    self._returning[rank] = self._spawn(bundle, copy=copy)
            self._make_spares(copy)

    def _make_spares(self, copy: Any = None) -> None:
        """Spares in the place of those that were used or lost, where their bundles have a host."""
        for bundle in list(self._homeless):
            if self._homes.reserved(self._group, bundle) is not None:
                self._homeless.remove(bundle)
                self._spares.append(self._spawn(bundle, copy=copy or self._host_copy(())))

    def _come_home(self) -> bool:
        """Between two batches: put workers that are ready in their reserved places into the group. Whether any was."""
        self._tend()
        came = False
        for rank, member in list(self._returning.items()):
            if not ray.wait([member.loaded], timeout=0)[0]:
                continue
            del self._returning[rank]
            with contextlib.suppress(ray.exceptions.RayError):
                member.node = ray.get(member.loaded)
                self._kill(self._members[rank])
                self._members[rank], came = member, True
                self._liveness.forget(rank)
        return came

    def _mind_stragglers(self, done: Collection[int]) -> None:
        """Tell of workers that have become much slower than their peers; replace one where a spare is free.

        Raises:
            WorkerLostError: a spare on another host is to take a straggler's place.
        """
        found = [one for one in self._liveness.stragglers(time.monotonic()) if one.worker not in done]
        slow = tuple(replace(one, host=self._members[one.worker].host) for one in found)
        if {one.worker for one in slow} != {one.worker for one in self._told}:
            self._told = slow
            if self.on_straggler is not None:
                self.on_straggler(slow)
        if not slow or not self._cluster.replace_slow:
            return
        worst = max(slow, key=lambda one: one.factor)
        node = self._members[worst.worker].node
        elsewhere = [spare for spare in self._spares if spare.node not in ("", node)]
        if any(not self._homes.is_slow(spare.node) for spare in elsewhere):
            self._homes.call_slow(node)
            self._condemned.add(worst.worker)
            text = (
                f"worker {worst.worker} on {worst.host} takes {worst.factor:.0f} times as long for a step as its peers"
            )
            raise WorkerLostError(text)

    def close(self) -> None:
        """Kill the actors, give the placement group back, stop a cluster of our own; says what it had to leave behind.

        No wait is longer than `ray_ending.PATIENCE`, whatever of the cluster is frozen.
        """
        members, group = (*self._members, *self._spares, *self._returning.values()), self._group
        self._members, self._spares, self._returning, self._group = [], [], {}, None
        left = "" if within(PATIENCE, lambda: self._give_back(members, group)) else "a placement group"
        if self._owns_cluster and ray.is_initialized():
            left = leave(PATIENCE)  # with a cluster, or a connection, its placement groups end too
        self._owns_cluster = False
        if left:
            _log.warning("nap: the workers are closed, but Ray does not answer; left behind: %s", left)

    def _give_back(self, members: Collection[Member], group: PlacementGroup | None) -> None:
        for member in members:
            self._kill(member)
        if group is not None:
            with contextlib.suppress(Exception):
                remove_placement_group(group)


def _with_time_to_compile(cluster: ClusterOptions, compile: CompileMode) -> ClusterOptions:
    """Whoever compiles keeps its peers waiting, in a collective too."""
    return cluster if compile == "none" else replace(cluster, timeout=max(cluster.timeout, _COMPILE_SECONDS))


def _patience(cluster: ClusterOptions) -> Patience:
    return Patience(liveness=cluster.liveness, progress=cluster.timeout, slow=cluster.slow)
