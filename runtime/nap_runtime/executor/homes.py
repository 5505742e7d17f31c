"""Where a worker's process may live: its own reserved place, free room elsewhere, or beside another worker. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Literal

How = Literal["home", "room", "shared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host of the cluster: where its Ray node answers, how much it has of what a worker needs, and what is free."""

    node: str
    address: str
    port: int
    alive: bool
    total: float = 0.0
    free: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Where to put a process: in the place reserved for it, in free room, or on a host whose workers make room."""

    node: str
    how: How


def choose(
    hosts: Iterable[Host],
    *,
    reserved: str | None,
    need: float,
    unfit: Set[str] = frozenset(),
    slow: Set[str] = frozenset(),
    crowd: Mapping[str, int] | None = None,
    share: bool = True,
) -> Home | None:
    """The best place for a process; None where it has to wait for a host.

    Args:
        reserved: the node of its reserved place, where that is known.
        need: how much a process needs, of what `Host.free` counts.
        unfit: nodes that cannot be reached; slow: nodes that are used when nothing else is left.
        crowd: workers of this group on each node; a shared place is where there are fewest.
        share: whether workers may share a host's processors beyond what was reserved.
    """
    fit = [host for host in hosts if host.alive and host.total > 0 and host.node not in unfit]
    nodes = {host.node for host in fit}
    if reserved in nodes - slow:
        assert reserved is not None
        return Home(node=reserved, how="home")
    roomy = [host for host in fit if host.free >= need - 1e-6 and host.node not in slow]
    if roomy:
        return Home(node=max(roomy, key=lambda host: (host.free, host.node)).node, how="room")
    if reserved in nodes:
        assert reserved is not None
        return Home(node=reserved, how="home")
    if not share or not fit:
        return None
    count = crowd or {}
    return Home(
        node=min(fit, key=lambda host: (host.node in slow, count.get(host.node, 0), host.node)).node, how="shared"
    )
