"""What a group's network does, by a few collectives: the latency and bandwidth of the cost model's ring all-gather.

An all-gather of W buffers takes about (W − 1) · (latency + bytes / bandwidth). A small buffer gives the latency, a
large one beside it the bandwidth. It is a measurement: two of them differ, more so on a busy network.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from nap_runtime.distributed.comm import Communicator

SMALL, SMALL_TIMES = 64, 20
LARGE, LARGE_ON_GPU, LARGE_TIMES = 1 << 20, 1 << 24, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkProbe:
    """Seconds before the first byte of a round, and bytes a second after it.

    `device`: the product name of the GPUs that measured it; empty on CPUs.
    """

    latency: float
    bandwidth: float
    device: str = ""


def fit(workers: int, small: float, large: float, *, small_bytes: int, large_bytes: int) -> LinkProbe:
    """The two figures, from the seconds of an all-gather of small buffers and of one of large ones."""
    rounds = workers - 1
    more = max(large - small, 1e-9)  # noise may make the large one the faster
    bandwidth = rounds * (large_bytes - small_bytes) / more
    return LinkProbe(latency=max(small / rounds - small_bytes / bandwidth, 1e-9), bandwidth=bandwidth)


def probe(comm: Communicator, device: torch.device) -> LinkProbe:
    """Measure; every worker of the group calls it at once.

    Raises:
        WorkerError: a peer is gone.
    """
    size = LARGE_ON_GPU if device.type == "cuda" else LARGE
    small = _median(comm, device, SMALL, SMALL_TIMES)
    large = _median(comm, device, size, LARGE_TIMES)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return replace(fit(comm.world, small, large, small_bytes=SMALL, large_bytes=size), device=name)


def _median(comm: Communicator, device: torch.device, size: int, times: int) -> float:
    """Seconds of an all-gather, the first one left out."""
    inp = torch.zeros(size, dtype=torch.uint8, device=device)
    out = torch.empty((comm.world, size), dtype=torch.uint8, device=device)
    settle: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else _nothing
    taken = []
    for _ in range(times + 1):
        settle()
        began = time.perf_counter()
        comm.all_gather(out, inp)
        settle()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def _nothing() -> None:
    """A CPU's collectives are done when they return."""
