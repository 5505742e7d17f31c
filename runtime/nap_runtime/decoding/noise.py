"""Counter-based noise: Philox4x32-10 (Salmon et al. 2011; Random123).

Key = seed; counter = (vocabulary id, position, global step, purpose). The bits are the same on CPU and GPU, and
depend on nothing but what is being drawn: not on the worker, the batch, or the order of calls.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

_ROUNDS = 10
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


class Purpose(IntEnum):
    """What a draw is for, so that no two uses share bits."""

    TOKEN = 0
    ORDER = 1


def _mul_hi_lo(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a·b, from halves of a whose products stay below 2^49.

    The whole product would wrap, which compiled code gets wrong where it takes a counter for an index.
    """
    low, high = (a & 0xFFFF) * b, (a >> 16) * b
    middle = high + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


Word = int | Tensor


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Word, Word]) -> tuple[Tensor, ...]:
    """Four 32-bit words per counter, as int64 tensors of the counters' broadcast shape."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        hi0, lo0 = _mul_hi_lo(_M0, c0)
        hi1, lo1 = _mul_hi_lo(_M1, c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


def uniform(seed: int | Tensor, *, ids: Tensor, positions: Tensor, step: int | Tensor, purpose: Purpose) -> Tensor:
    """float64 numbers in (0, 1) of the broadcast shape of `ids` and `positions`, from 52 bits each.

    `step` and `seed` may stand on the device (int64 []), so that a captured step can be run again as another one.
    """
    step_ = step if isinstance(step, Tensor) else positions.new_full((), step)
    purpose_ = positions.new_full((), int(purpose))
    high, low, *_ = philox4x32((ids, positions, step_, purpose_), (seed & _LOW, seed >> 32 & _LOW))
    bits = ((high << 32) | low) >> 12 & ((1 << 52) - 1)
    return (bits.double() + 0.5) * 2.0**-52  # never 0, nor rounded to 1


def gumbel(seed: int | Tensor, *, vocab: int, positions: Tensor, step: int | Tensor) -> Tensor:
    """Gumbel noise for token draws at some positions, [S] or [B, S]. Shape [S, V] or [B, S, V], float64."""
    ids_V = torch.arange(vocab, device=positions.device)
    u = uniform(seed, ids=ids_V, positions=positions.unsqueeze(-1), step=step, purpose=Purpose.TOKEN)
    return -torch.log(-torch.log(u))
