"""The least time that a step can take: its arithmetic at the device's peak, or its weights read once from memory.

    floor = max(2 · weights · rows / FLOP/s, bytes of weights / bytes/s)

`weights` are those of the layers and the head (the embedding is looked up), all counted on every row that is computed.
Attention, the K/V store and the head's saved rows are left out, so nothing can be faster than about its floor, and
what runs the head on few rows may come near it by that. The rates are what well-made kernels reach on a device, not its
data sheet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from nap_runtime.models.config import ModelConfig

# Sustained dense bfloat16 FLOP/s and bytes/s, from long matrix products and copies on such a device.
_KNOWN = {"H200": (790e12, 4.3e12)}
_SIDE, _TIMES = 4096, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """FLOP/s and bytes/s of a device, and where they come from: `measured` in this run, or a `preset`."""

    flops: float
    bandwidth: float
    source: str

    def best(self, other: Rates) -> Rates:
        """The larger of each: a machine that is shared may be slow for a while."""
        flops, bandwidth = max(self.flops, other.flops), max(self.bandwidth, other.bandwidth)
        return Rates(flops=flops, bandwidth=bandwidth, source=self.source)


def rates_of(device: torch.device, dtype: torch.dtype) -> Rates:
    """The rates of this machine's device; measured here where it is not a known one."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, (flops, bandwidth) in _KNOWN.items():
            if known in name and dtype == torch.bfloat16:
                return Rates(flops=flops, bandwidth=bandwidth, source=f"preset {known}")
    return measured(device, dtype)


def measured(device: torch.device, dtype: torch.dtype) -> Rates:
    """The best of a few square matrix products, and of a few sums over memory."""
    side = _SIDE * 2 if device.type == "cuda" else _SIDE // 4
    a = torch.randn(side, side, device=device).to(dtype)
    big = torch.zeros((1 << 30 if device.type == "cuda" else 1 << 26) // 4, dtype=torch.float32, device=device)
    flops = 2 * side**3 / _best(lambda: a @ a, device)
    bandwidth = big.nbytes / _best(big.sum, device)
    return Rates(flops=flops, bandwidth=bandwidth, source="measured")


def _best(work: Callable[[], object], device: torch.device) -> float:
    found = []
    for _ in range(_TIMES):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - began)
    return min(found)


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def floor_seconds(config: ModelConfig, *, rows: float, rates: Rates, itemsize: int, fp8_weights: bool = False) -> float:
    """The floor of a step that computes `rows` rows, over all canvases of a batch."""
    head = config.vocab_size * config.d_model
    layers = config.n_params - head * (1 if config.tied_head else 2)
    if not fp8_weights:
        weights = layers + head
        return max(2 * weights * rows / rates.flops, weights * itemsize / rates.bandwidth)
    flop = 2 * rows * (layers / 2 + head)  # FP8 products are twice as fast
    return max(flop / rates.flops, (layers + head * itemsize) / rates.bandwidth)
