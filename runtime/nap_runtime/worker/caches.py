"""Rows that a cache spares, and attention for canvases of a batch that compute different rows.

`prefix` and `dual` (Fast-dLLM) compute the whole canvas at the first step of a block; until the next block begins,
`prefix` computes the block and all behind it, `dual` the block alone. `dkv` (dKV-Cache) computes what is masked and
what was committed one step ago, so that a token's keys and values are kept from one step after its commit; every N
steps it computes the whole canvas. What is not computed stays in the store as it was last computed.

Where logits are shifted (Dream) the row before a slot predicts it, so that row is computed too.

Shapes: B batch, R rows of each canvas, N positions, H query heads, G key heads, E head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nap_runtime.decoding.schedule import UnmaskingSchedule, block_of
from nap_runtime.decoding.state import CanvasState
from nap_runtime.job import DecodeConfig
from nap_runtime.models.sdpa import grouped_sdpa
from nap_runtime.models.transformer import KVStore


@dataclass(frozen=True, slots=True, eq=False)
class ScatterAttention:
    """An `Attend` for rows that differ from canvas to canvas: stores them, then attends over the whole store.

    `rows_BR`: int64 canvas positions; a position that stands twice is stored twice, with the same values.
    `mask_B1RN`: boolean, True where a row sees a position (None: all).
    """

    store: KVStore
    rows_BR: Tensor
    mask_B1RN: Tensor | None = None

    def __call__(self, layer: int, q_BHRE: Tensor, k_BGRE: Tensor, v_BGRE: Tensor) -> Tensor:
        """Store, then attend; returns o_BHRE."""
        keys, values = self.store.k_LBGNE[layer], self.store.v_LBGNE[layer]
        k_BGRE, v_BGRE = self.store.pack(k_BGRE), self.store.pack(v_BGRE)
        at_BGRE = self.rows_BR[:, None, :, None].expand_as(k_BGRE)
        keys.scatter_(2, at_BGRE, k_BGRE)
        values.scatter_(2, at_BGRE, v_BGRE)
        return grouped_sdpa(q_BHRE, *self.store.read(layer, q_BHRE.dtype), self.mask_B1RN)


def block_slots(slots: int, config: DecodeConfig, block: int) -> range:
    """The slots of a block of a cached region, counted from 0; the last block may be shorter."""
    length = config.fast_block if config.traits.adaptive else block_of(slots, config.block_length)
    return range(block * length, min((block + 1) * length, slots))


def changed_rows(state: CanvasState, schedule: UnmaskingSchedule, step: int, *, shift: int) -> Tensor:
    """`dkv`: rows of masked slots and of those committed at the step before, of each canvas. int64 [B, R].

    R is the same for all canvases, because each has committed its quota. With shifted logits the rows before masked
    slots count too, and R is the most these can be; what is left over repeats the first row.
    """
    needed_BN = state.masked | (state.step == step - 1)
    if shift:
        needed_BN[:, :-1] |= state.masked[:, 1:]
    masked = sum(schedule.canvas[step:])
    most = min(masked * (1 + shift) + schedule.canvas[step - 1], needed_BN.shape[1])
    order_BN = needed_BN.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :most]
    return torch.where(needed_BN.gather(1, order_BN), order_BN, order_BN[:, :1])
