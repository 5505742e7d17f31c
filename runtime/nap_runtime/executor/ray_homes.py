"""Which hosts of a Ray cluster can be reached, and where on them a worker's process may be put.

Ray notices a host that is cut off after a minute, by default; until then it would put processes there, and wait. So
each host is asked here, by a connection to its Ray node.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from nap_runtime.errors import NoRoomError
from nap_runtime.executor.homes import Home, Host, choose

_KNOCK_SECONDS = 1.5
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"  # what a gRPC server answers, or hangs up on
_SLOW_SECONDS = 600.0  # that a host which held a straggler is avoided


class Homes:
    """What is known of the hosts.

    Args:
        need: what a process needs, `{"CPU": 0.5}` or `{"GPU": 1}`.
    """

    def __init__(self, need: Mapping[str, float]) -> None:
        ((self._what, self._need),) = need.items()
        self.unfit: set[str] = set()
        self._slow: dict[str, float] = {}

    def suspect(self, nodes: Iterable[str]) -> None:
        """Knock at these nodes; who does not answer is unfit."""
        known = {host.node: host for host in self._hosts()}
        asked = [known[node] for node in set(nodes) if node in known]
        with ThreadPoolExecutor(max(len(asked), 1)) as pool:
            answers = list(pool.map(_answers, asked))
        for host, answer in zip(asked, answers, strict=True):
            (self.unfit.discard if answer else self.unfit.add)(host.node)
        self.unfit |= {node for node in nodes if node and node not in known}

    def tend(self) -> None:
        """See whether unfit nodes can be reached again. One that Ray has given up comes back under another id."""
        known = {host.node for host in self._hosts() if host.alive}
        self.unfit &= known
        if self.unfit:
            self.suspect(set(self.unfit))

    def is_slow(self, node: str) -> bool:
        """Whether a straggler was found there lately."""
        return time.monotonic() < self._slow.get(node, 0.0)

    def call_slow(self, node: str) -> None:
        """A straggler was found there."""
        self._slow[node] = time.monotonic() + _SLOW_SECONDS

    def reserved(self, group: PlacementGroup | None, bundle: int) -> str | None:
        """The node of a bundle, where it is placed on one that can be used."""
        table = placement_group_table(group) if group is not None else {}
        node = table.get("bundles_to_node_id", {}).get(bundle) or None
        alive = {host.node for host in self._hosts() if host.alive}
        return node if node in alive - self.unfit else None

    def choose(self, group: PlacementGroup | None, bundle: int, crowd: Mapping[str, int]) -> Home | None:
        """Where to put a process that had this bundle; None: nowhere at present."""
        return choose(
            self._hosts(),
            reserved=self.reserved(group, bundle),
            need=self._need,
            unfit=self.unfit,
            slow={node for node in self._slow if self.is_slow(node)},
            crowd=crowd,
            share=self._what == "CPU",
        )

    def options(self, group: PlacementGroup | None, bundle: int, home: Home | None) -> dict[str, Any]:
        """Ray's options for a process in its bundle (`home` None), or elsewhere."""
        need = 0.0 if home is not None and home.how == "shared" else self._need
        resources = {"num_cpus": need, "num_gpus": 0} if self._what == "CPU" else {"num_cpus": 0, "num_gpus": need}
        if home is None or home.how == "home":
            at: Any = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
        else:
            at = NodeAffinitySchedulingStrategy(home.node, soft=False)
        return {**resources, "scheduling_strategy": at}

    def _hosts(self) -> list[Host]:
        """All hosts that Ray knows of, dead ones too.

        Raises:
            NoRoomError: Ray's head does not answer.
        """
        try:
            free, nodes = _free(self._what), ray.nodes()
        except Exception as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise NoRoomError(f"the head of the Ray cluster does not answer: {reason}") from error
        return [
            Host(
                node=node["NodeID"],
                address=node["NodeManagerAddress"],
                port=int(node["NodeManagerPort"]),
                alive=bool(node["Alive"]),
                total=float(node["Resources"].get(self._what, 0.0)) if node["Alive"] else 0.0,
                free=free.get(node["NodeID"], 0.0),
            )
            for node in nodes
        ]


def _free(what: str) -> dict[str, float]:
    """How much of a resource each node has left; empty where this Ray does not say."""
    try:
        from ray._private.state import available_resources_per_node
    except ImportError:
        return {}
    return {node: float(left.get(what, 0.0)) for node, left in available_resources_per_node().items()}


def _answers(host: Host) -> bool:
    """Whether a host's Ray node says anything; a kernel alone takes connections for processes that are frozen."""
    try:
        with socket.create_connection((host.address, host.port), timeout=_KNOCK_SECONDS) as peer:
            peer.sendall(_HELLO)
            peer.recv(1)  # or it hangs up, which is life as well
    except ConnectionResetError:
        return True
    except OSError:
        return False
    return True
