"""What computed rows see: attention over a K/V store, and exact attention in parts.

Shapes: B batch, R query rows, M keys of one part, N canvas positions, H query heads, G key heads,
E head_dim, W parts (workers).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from nap_runtime.models.sdpa import Sdpa, fold_heads, fold_mask, grouped_sdpa
from nap_runtime.models.transformer import KVStore, accumulate_dtype


class PlacedAttention(ABC):
    """An ``Attend`` that puts the rows' keys and values somewhere first, and says where: a kernel may do it instead."""

    __slots__ = ()

    @abstractmethod
    def place(self, layer: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Where they go: int64 columns [R] of a layer's keys and values, [B, G, M, E] each, the last contiguous."""

    @abstractmethod
    def placed(self, layer: int, q_BHRE: Tensor) -> Tensor:
        """Attend, now that they are there; returns o_BHRE."""

    def __call__(self, layer: int, q_BHRE: Tensor, k_BGRE: Tensor, v_BGRE: Tensor) -> Tensor:
        """Put keys and values there, then attend; returns o_BHRE."""
        columns_R, (k_BGME, v_BGME) = self.place(layer)
        k_BGME.index_copy_(2, columns_R, k_BGRE)
        v_BGME.index_copy_(2, columns_R, v_BGRE)
        return self.placed(layer, q_BHRE)


@dataclass(frozen=True, slots=True, eq=False)  # hashed by identity: torch.compile hashes it half-built
class StoreAttention(PlacedAttention):
    """An ``Attend``: writes the rows' K/V into the store, then attends over the whole store.

    ``rows_R``: int64 canvas positions of the computed rows. ``mask_RN``: boolean, True where a row
    sees a position (None: all), or anything that broadcasts to [B, H, R, N]. ``sdpa`` attends.
    """

    store: KVStore
    rows_R: Tensor
    mask_RN: Tensor | None = None
    sdpa: Sdpa = grouped_sdpa

    def place(self, layer: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """See `PlacedAttention`: the rows' own positions in the store."""
        return self.rows_R, (self.store.k_LBGNE[layer], self.store.v_LBGNE[layer])

    def placed(self, layer: int, q_BHRE: Tensor) -> Tensor:
        """See `PlacedAttention`: over the whole store."""
        return self.sdpa(q_BHRE, self.store.k_LBGNE[layer], self.store.v_LBGNE[layer], self.mask_RN)


def partial_attention(
    q_BHRE: Tensor, k_BGME: Tensor, v_BGME: Tensor, mask_RM: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention over one part of the keys: normalised o_BHRE and its log-sum-exp lse_BHR.

    Scores, softmax and lse are in float32 (float64 for float64); o is in the queries' dtype. A row
    that sees no key of this part (or M = 0) gives o = 0 and lse = -inf, and counts for nothing in
    :func:`merge_partials`. ``mask_RM`` as in :func:`grouped_sdpa`.
    """
    wide = accumulate_dtype(q_BHRE.dtype)
    n_kv_heads = k_BGME.shape[1]
    q_BGXE = fold_heads(q_BHRE, n_kv_heads).to(wide) * q_BHRE.shape[-1] ** -0.5
    scores_BGXM = q_BGXE @ k_BGME.to(wide).transpose(-1, -2)
    if mask_RM is not None:
        scores_BGXM = scores_BGXM.masked_fill(~fold_mask(mask_RM, n_kv_heads, q_BHRE), -torch.inf)
    lse_BGX = torch.logsumexp(scores_BGXM, dim=-1)
    weights_BGXM = torch.exp(scores_BGXM - _finite(lse_BGX).unsqueeze(-1))
    o_BGXE = weights_BGXM @ v_BGME.to(wide)
    return o_BGXE.reshape(q_BHRE.shape).to(q_BHRE.dtype), lse_BGX.reshape(q_BHRE.shape[:-1])


def attend_part(q_BHRE: Tensor, k_BGME: Tensor, v_BGME: Tensor, mask_RM: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """:func:`partial_attention` by the fused kernel where a GPU has one: half precision, no mask."""
    fused = q_BHRE.is_cuda and mask_RM is None and q_BHRE.dtype in (torch.bfloat16, torch.float16)
    if not fused or k_BGME.shape[2] == 0:
        return partial_attention(q_BHRE, k_BGME, v_BGME, mask_RM)
    q_BGXE = fold_heads(q_BHRE, k_BGME.shape[1])
    o_BGXE, lse_BGX = torch.ops.aten._scaled_dot_product_flash_attention(q_BGXE, k_BGME, v_BGME)[:2]
    return o_BGXE.reshape(q_BHRE.shape), lse_BGX.reshape(q_BHRE.shape[:-1])


def merge_partials(o_WBHRE: Tensor, lse_WBHR: Tensor) -> Tensor:
    """Attention over the union of W disjoint parts, o_BHRE in the parts' dtype.

    Exact: each part counts by exp(lse). A row that no part sees gives zeros.
    """
    total_BHR = torch.logsumexp(lse_WBHR, dim=0)
    weights_WBHR = torch.exp(lse_WBHR - _finite(total_BHR))
    merged_BHRE = (weights_WBHR.unsqueeze(-1) * o_WBHRE.to(lse_WBHR.dtype)).sum(0)
    return merged_BHRE.to(o_WBHRE.dtype)


def _finite(lse: Tensor) -> Tensor:
    """-inf (nothing seen) replaced by 0, so that exp(-inf - x) is 0 and not NaN."""
    return torch.where(torch.isneginf(lse), torch.zeros_like(lse), lse)
