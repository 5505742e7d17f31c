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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray

from nap_runtime.errors import NapError, UsageError, WorkerError, WorkerLostError
from nap_runtime.executor.interrupts import on_interrupt


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """Where the workers go.

    Args:
        address: a running cluster's address; None starts a local one and stops it again.
        timeout: seconds a collective may take, and in which some worker must make a step.
        start_timeout: seconds to wait for the cluster to have room for all workers.
        spares: warm workers that wait for another to be lost.
        liveness: seconds without an answer after which a worker counts as lost.
    """

    address: str | None = None
    timeout: float = 60.0
    start_timeout: float = 60.0
    spares: int = 0
    liveness: float = 5.0


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
            # "local": without it Ray joins whatever `ray start` has left running on this machine.
            ray.init(address="local", include_dashboard=False, namespace="nap", **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"ray: no cluster could be reached or started: {error}", field="address") from error
    return True


def _knock(address: str) -> None:
    """Fail in seconds where nobody listens at host:port; Ray itself would try for minutes, then end the process."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def cpu_share(workers: int) -> float:
    """CPUs a worker asks for: one, or less where that would leave a worker out (three workers run on two cores)."""
    available = float(ray.cluster_resources().get("CPU", 1.0))
    return max(0.01, min(1.0, int(100 * available / workers) / 100))


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
