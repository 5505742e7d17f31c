"""The Ray cluster itself: joining or starting one, what is in it, and its failures as ours.

Beside `ray_executor` the only module that imports Ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from nap_runtime.errors import NapError, UsageError, WorkerError, WorkerLostError
from nap_runtime.executor.interrupts import on_interrupt
from nap_runtime.executor.liveness import SLOW
from nap_runtime.policy import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """Where the workers go.

    Args:
        address: a running cluster's address; None starts a local one and stops it again.
        timeout: seconds a collective may take, and in which some worker must make a step.
        start_timeout: seconds to wait for the cluster to have room for all workers.
        spares: warm workers that wait for another to be lost.
        liveness: seconds without an answer after which a worker counts as lost.
        placement: `strict-pack`, all on one host or not at all; `one-host`, so where a host has room, else `pack`;
            `pack`, on as few hosts as it goes; `spread`, on as many.
        slow: times as long as its peers' steps that a straggler's take (0: none is looked for).
        replace_slow: give a straggler's place to a spare on another host, where there is one.
    """

    address: str | None = None
    timeout: float = 60.0
    start_timeout: float = 60.0
    spares: int = 0
    liveness: float = 5.0
    placement: Placement = "pack"
    slow: float = SLOW
    replace_slow: bool = True


def unanswered(asked: list[Any], seconds: float, *, wanted: Any = None) -> set[int]:
    """Which of some calls failed, came too late, or gave another answer than `wanted` (None: any will do)."""
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=seconds) if asked else ([], [])
    failed = set()
    for index, call in enumerate(asked):
        try:
            answer = ray.get(call) if call in ready else None
            if call not in ready or (wanted is not None and answer != wanted):
                failed.add(index)
        except ray.exceptions.RayError:
            failed.add(index)
    return failed


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Hold Ctrl-C back until Ray is up: a cluster that is interrupted while it starts cannot be stopped again."""
    pressed = threading.Event()
    with on_interrupt(lambda *_: pressed.set()):
        yield
    if pressed.is_set():
        signal.raise_signal(signal.SIGINT)


def connect(cluster: ClusterOptions) -> bool:
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
            _start(quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"ray: no cluster could be reached or started: {error}", field="address") from error
    return True


def _start(quiet: dict[str, Any]) -> None:
    """Start a cluster of this process's own. Ray gives its node 30 s, which a busy machine may not keep: two tries."""
    for last in (False, True):
        try:
            # "local": without it Ray joins whatever `ray start` has left running on this machine.
            ray.init(address="local", include_dashboard=False, namespace="nap", **quiet)
            return
        except Exception as error:  # a bare one where the node was not up in time
            ray.shutdown()
            if last or "timed out during startup" not in str(error):
                raise RuntimeError(error) from error


def _knock(address: str) -> None:
    """Fail in seconds where nobody listens at host:port; Ray itself would try for minutes, then end the process."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def cpu_share(workers: int) -> float:
    """CPUs a worker asks for: one, or less where that would leave a worker out (three workers run on two cores)."""
    available = float(ray.cluster_resources().get("CPU", 1.0))
    return max(0.01, min(1.0, int(100 * available / workers) / 100))


_STRATEGIES = {"pack": "PACK", "strict-pack": "STRICT_PACK", "spread": "SPREAD"}


def reserve(need: Mapping[str, float], bundles: int, cluster: ClusterOptions) -> tuple[PlacementGroup, Placement]:
    """A bundle a worker, placed as the options say, and what `one-host` came to.

    Raises:
        UsageError: the cluster, or for `strict-pack` every host of it, has too little room.
    """
    what, each = next(iter(need.items()))
    placement, one = cluster.placement, _largest(what) >= bundles * each
    have = float(ray.cluster_resources().get(what, 0))
    if placement == "one-host":
        group = _reserved(need, bundles, "strict-pack", min(5.0, cluster.start_timeout)) if one else None
        if group is not None:
            return group, "strict-pack"
        placement = "pack"
    hopeless = placement == "strict-pack" and not one and have >= bundles * each  # a larger cluster would not help
    group = None if hopeless else _reserved(need, bundles, placement, cluster.start_timeout)
    if group is None:
        raise _no_room(what, each, bundles, have, strict=placement == "strict-pack")
    return group, placement


def _reserved(need: Mapping[str, float], bundles: int, placement: Placement, seconds: float) -> PlacementGroup | None:
    """A placement group; None where there was no room for it in time."""
    group = placement_group([dict(need)] * bundles, strategy=_STRATEGIES[placement])
    try:
        if group.wait(seconds):
            return group
    except BaseException:
        remove_placement_group(group)
        raise
    remove_placement_group(group)
    return None


def _largest(what: str) -> float:
    """What the largest living host has of a resource, in use or not."""
    return max((node["Resources"].get(what, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)


def _no_room(what: str, each: float, bundles: int, have: float, *, strict: bool) -> UsageError:
    if strict:
        text = (
            f"placement: no host has room for {bundles} workers of {each:g} {what} each; the largest has "
            f"{_largest(what):g}. Use pack or spread, fewer workers, or a larger host"
        )
        return UsageError(text, field="placement")
    text = (
        f"workers: the cluster has {have:g} {what} where {bundles} workers need {each:g} each; "
        f"use fewer workers or a larger cluster"
    )
    return UsageError(text, field="workers")


@contextlib.contextmanager
def ray_errors() -> Iterator[None]:
    """Ray's failures as ours, with the cause in one line."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, NapError):
            raise cause from error
        raise WorkerError(f"a worker failed: {str(cause).strip().splitlines()[-1]}") from error
    except ray.exceptions.RayError as error:
        raise WorkerLostError(f"a worker died: {str(error).strip().splitlines()[0]}") from error
