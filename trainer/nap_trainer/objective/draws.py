"""Noise by counter: every draw of a training is a function of (seed, step, canvas, position, purpose).

A canvas is named by its place in the global batch, so that masks do not depend on how ranks and micro-steps share it,
and a resumed run draws what an undisturbed one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from nap_runtime.decoding.noise import philox4x32

_LOW = 0xFFFFFFFF
_BELOW_ONE = 1 - 2.0**-24


class Use(IntEnum):
    """What a draw is for; apart from the decoder's purposes, which begin at 0."""

    HIDE = 64
    STALE = 65
    UNKNOWN = 66
    T = 128  # + block
    PATTERN = 256
    EXTREME = 257  # + block
    TOPOLOGY = 384
    AGE = 385
    STALE_CANVAS = 386


@dataclass(frozen=True, slots=True)
class Draws:
    """The noise of one step: float32 numbers in [0, 1)."""

    seed: int
    step: int
    fused: bool = False
    """Whether a draw is one compiled kernel instead of some hundred: for GPUs, the bits are the same."""

    def _uniform(self, canvases: Tensor, positions: Tensor, use: int | Tensor) -> Tensor:
        zero = torch.zeros((), dtype=torch.int64, device=canvases.device)
        step, use, low, high = zero + self.step, zero + use, zero + (self.seed & _LOW), zero + (self.seed >> 32 & _LOW)
        return (_fused_words if self.fused else _words)(canvases, positions, step, use, low, high)

    def slots(self, index_B: Tensor, positions: int, use: Use) -> Tensor:
        """One number a position, [B, N]."""
        at_N = torch.arange(positions, device=index_B.device)
        return self._uniform(index_B[:, None], at_N[None], use)

    def canvases(self, index_B: Tensor, use: int) -> Tensor:
        """One number a canvas, [B]."""
        return self._uniform(index_B, torch.zeros_like(index_B), use)

    def spread(self, index_B: Tensor, size: int, uses: Sequence[int], *, kind: str) -> Tensor:
        """One number a use and canvas, each use's drawn over a global batch of `size`. Shape [U, B].

        `uniform`: each by itself. `stratified`: one in each of `size` equal parts of [0, 1), in random order (low
        discrepancy). `antithetic`: u for one canvas of a pair, 1 − u for the other.
        """
        if kind == "uniform":
            return self._each(index_B, uses)
        if kind == "antithetic":
            half_UB = self._each(index_B // 2, uses)
            return torch.where(index_B % 2 == 0, half_UB, (1 - half_UB).clamp(max=_BELOW_ONE))
        drawn_UG = self._each(torch.arange(size + 1, device=index_B.device), uses)
        rank_UG = drawn_UG[:, :size].argsort(1).argsort(1)
        return ((rank_UG[:, index_B] + drawn_UG[:, size:]) / size).clamp(max=_BELOW_ONE)

    def _each(self, index_B: Tensor, uses: Sequence[int]) -> Tensor:
        """A number for every use of every canvas, [U, B]."""
        which_U1 = torch.tensor(uses, device=index_B.device)[:, None]
        return self._uniform(index_B[None], torch.zeros_like(index_B)[None], which_U1)


def _words(canvases: Tensor, positions: Tensor, step: Tensor, use: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """24 bits of a counter's first word as float32, which holds them exactly, so that 1 is never reached."""
    word, *_ = philox4x32((canvases, positions, step, use), (low, high))
    return (word >> 8).float() * 2.0**-24


# Inductor's vectors of int64 do not compile on CPUs (torch 2.13), one by one they do.
_fused_words = torch.compile(_words, dynamic=True, options={"cpp.simdlen": 1})
