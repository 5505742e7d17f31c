"""Scaled dot-product attention with grouped keys: the one place that calls torch's kernel."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn import functional as F


class Sdpa(Protocol):
    """What :func:`grouped_sdpa` does, by it or by other means."""

    def __call__(self, q_BHRE: Tensor, k_BGME: Tensor, v_BGME: Tensor, mask: Tensor | None = None) -> Tensor:
        """See :func:`grouped_sdpa`."""
        ...


def grouped_sdpa(q_BHRE: Tensor, k_BGME: Tensor, v_BGME: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend R query rows to M keys; H query heads share G key heads (H a multiple of G).

    ``mask`` is boolean (True: the row sees the key) and broadcasts to [B, H, R, M]. No causal
    order is implied; a row that sees no key gets zeros. Returns o_BHRE in the queries' dtype.

    The heads of a group are laid out as further rows of their key head, so that keys are never
    repeated and kernels without grouped heads (masked ones on GPUs) still apply.
    """
    n_kv_heads = k_BGME.shape[1]
    if q_BHRE.shape[1] == n_kv_heads:
        return F.scaled_dot_product_attention(q_BHRE, k_BGME, v_BGME, attn_mask=mask)
    q_BGXE = fold_heads(q_BHRE, n_kv_heads)
    mask = None if mask is None else fold_mask(mask, n_kv_heads, q_BHRE)
    o_BGXE = F.scaled_dot_product_attention(q_BGXE, k_BGME, v_BGME, attn_mask=mask)
    return o_BGXE.reshape(q_BHRE.shape)


def fold_heads(q_BHRE: Tensor, n_kv_heads: int) -> Tensor:
    """[B, H, R, E] to [B, G, (H/G)·R, E]: query heads h·H/G … become rows of key head h."""
    batch, n_heads, rows, width = q_BHRE.shape
    return q_BHRE.reshape(batch, n_kv_heads, n_heads // n_kv_heads * rows, width)


def fold_mask(mask: Tensor, n_kv_heads: int, q_BHRE: Tensor) -> Tensor:
    """The mask for the rows of :func:`fold_heads`, from one that broadcasts to [B, H, R, M]."""
    n_heads, rows = q_BHRE.shape[1:3]
    group = n_heads // n_kv_heads
    if mask.dim() < 3 or mask.shape[-3] == 1:  # the same for every head
        return mask if mask.shape[-2] == 1 else mask.repeat(*[1] * (mask.dim() - 2), group, 1)
    mask = mask.expand(*mask.shape[:-2], rows, mask.shape[-1])
    return mask.reshape(*mask.shape[:-3], n_kv_heads, group * rows, mask.shape[-1])
