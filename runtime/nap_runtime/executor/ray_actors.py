"""A worker's process as a Ray actor, and the questions it is asked."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray

from nap_runtime.distributed.torch_group import GroupAddress
from nap_runtime.executor.base import WorkerPlace
from nap_runtime.executor.interfaces import use_interface_of
from nap_runtime.executor.liveness import Liveness, Lost
from nap_runtime.executor.process import HostCopy, WorkerProcess


class WorkerActor(WorkerProcess):
    """A worker process as an actor."""

    def bind(self) -> GroupAddress:
        """Rank 0: open the group at this node's address."""
        return self.open_group(ray.util.get_node_ip_address())

    def settle(self, copy: HostCopy | None = None) -> str:
        """Load the weights; the node this is."""
        self.load(copy)
        return str(ray.get_runtime_context().get_node_id())

    def join(self, address: GroupAddress, rank: int, world: int) -> WorkerPlace:
        """See `WorkerProcess.join`; over the network that Ray uses."""
        use_interface_of(ray.util.get_node_ip_address())
        return super().join(address, rank, world)


@dataclass(slots=True)
class Member:
    """An actor, its bundle, whether it lives elsewhere, and `loaded`: a reference to its node once it has weights."""

    actor: Any
    bundle: int
    away: bool = False
    process: int = 0
    host: str = ""
    node: str = ""
    loaded: Any = None


class Watch:
    """Asks every worker for a sign of life twice a second."""

    def __init__(self, actors: list[Any], liveness: Liveness) -> None:
        self._actors, self._liveness = actors, liveness
        self._asked: dict[int, Any] = {}
        liveness.begin(time.monotonic())

    def look(self, done: set[int]) -> Lost | None:
        """What has to be said of the group; a Ray error where a worker is dead."""
        now = time.monotonic()
        for rank, answer in list(self._asked.items()):
            if ray.wait([answer], timeout=0)[0]:
                del self._asked[rank]
                self._liveness.heard(rank, ray.get(answer), now)
        for rank in self._liveness.due(now):
            self._asked[rank] = self._actors[rank].beat.remote()
        return self._liveness.verdict(now, done)
