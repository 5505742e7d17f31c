"""Which slots are committed: rank the masked candidates of a region, take the quota.

A rule is a ranking. `parallel-forced` and `confidence` rank by confidence, `left-to-right` by position, `random` by
Philox noise, `blockwise` by confidence within the leftmost unfinished block. Ties go to the lowest position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nap_runtime.decoding.noise import Purpose, uniform
from nap_runtime.job import Rule


def rank_scores(rule: Rule, scores_BS: Tensor, *, positions_S: Tensor, seed: int, step: int) -> Tensor:
    """What the rule ranks by, higher first. Shape [B, S]."""
    if rule == "left-to-right":
        return (-positions_S).to(scores_BS.dtype).expand_as(scores_BS)
    if rule == "random":
        zero = torch.zeros_like(positions_S)
        draws_S = uniform(seed, ids=zero, positions=positions_S, step=step, purpose=Purpose.ORDER)
        return draws_S.to(scores_BS.dtype).expand_as(scores_BS)
    return scores_BS


def pick(ranks_BS: Tensor, masked_BS: Tensor, quota: int, *, block_length: int | None = None) -> Tensor:
    """The `quota` best masked slots of a region, fewer where fewer are masked. Bool [B, S].

    `block_length` puts every slot of an earlier block before those of a later one.
    """
    if quota == 0:
        return torch.zeros_like(masked_BS)
    ranked_BS = torch.where(masked_BS, ranks_BS, -torch.inf)
    order_BS = ranked_BS.sort(dim=-1, descending=True, stable=True).indices
    if block_length is not None:
        # Masked slots keep their block's number, the others go last; both sorts are stable.
        block_S = torch.arange(masked_BS.shape[-1], device=masked_BS.device) // block_length
        block_BS = torch.where(masked_BS, block_S, torch.iinfo(torch.int64).max)
        order_BS = order_BS.gather(-1, block_BS.gather(-1, order_BS).sort(dim=-1, stable=True).indices)
    best_BS = torch.zeros_like(masked_BS).scatter(-1, order_BS[:, :quota], True)
    return best_BS & masked_BS
