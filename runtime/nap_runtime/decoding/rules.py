"""Which slots are committed.

Most rules are a ranking, of which a step takes its quota. `parallel-forced` and `confidence` rank by confidence,
`left-to-right` by position, `random` by Philox noise, `blockwise` by confidence within the leftmost unfinished block.

`threshold` and `factor` (Fast-dLLM) take what is sure enough of the leftmost unfinished block, and at least its best.
`prophet` takes a quota until the answer is sure, then everything. `p2` (path planning) ranks committed slots too, and
masks the worst again. Ties go to the lowest position.

Everything stays on the device: how many slots a step commits is never read back. Shapes: B batch, S slots of a region.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nap_runtime.decoding.noise import Purpose, uniform
from nap_runtime.job import Rule

_PROPHET_BARS = ((0.33, 7.5), (0.67, 5.0), (math.inf, 2.5))  # progress below → mean gap of the two best logits


def rank_scores(rule: Rule, scores_BS: Tensor, *, positions: Tensor, seed: int | Tensor, step: int | Tensor) -> Tensor:
    """What the rule ranks by, higher first, with the slots' positions [S] or [B, S]. Shape [B, S]."""
    if rule == "left-to-right":
        return (-positions).to(scores_BS.dtype).expand_as(scores_BS)
    if rule == "random":
        zero = torch.zeros_like(positions)
        draws = uniform(seed, ids=zero, positions=positions, step=step, purpose=Purpose.ORDER)
        return draws.to(scores_BS.dtype).expand_as(scores_BS)
    return scores_BS


def pick(ranks_BS: Tensor, masked_BS: Tensor, quota: int, *, block_length: int | None = None) -> Tensor:
    """The `quota` best masked slots of a region, fewer where fewer are masked. Bool [B, S].

    `block_length` puts every slot of an earlier block before those of a later one.
    """
    if quota == 0:
        return torch.zeros_like(masked_BS)
    order_BS = _best_first(ranks_BS, masked_BS)
    if block_length is not None:
        # Masked slots keep their block's number, the others go last; both sorts are stable.
        block_BS = torch.where(masked_BS, _block_of_slot(masked_BS, block_length), torch.iinfo(torch.int64).max)
        order_BS = order_BS.gather(-1, block_BS.gather(-1, order_BS).sort(dim=-1, stable=True).indices)
    best_BS = torch.zeros_like(masked_BS).scatter(-1, order_BS[:, :quota], True)
    return best_BS & masked_BS


def leftmost_block(masked_BS: Tensor, block_length: int) -> Tensor:
    """The masked slots of the first block that has any. Bool [B, S]."""
    block_S = _block_of_slot(masked_BS, block_length)
    first_B1 = torch.where(masked_BS, block_S, torch.iinfo(torch.int64).max).amin(-1, keepdim=True)
    return masked_BS & (block_S == first_B1)


def pick_above(log_scores_BS: Tensor, open_BS: Tensor, threshold: float) -> Tensor:
    """`threshold`: the open slots of at least that confidence, and the best one anyway. Bool [B, S]."""
    bar = math.log(threshold) if threshold > 0 else -math.inf
    return pick(log_scores_BS, open_BS, 1) | (open_BS & (log_scores_BS >= bar))


def pick_by_factor(log_scores_BS: Tensor, open_BS: Tensor, factor: float) -> Tensor:
    """`factor`: the n best open slots, n as large as it can be with the n-th confidence ≥ 1 − factor/(n + 1).

    The best one is taken anyway. Bool [B, S]. (n + 1)·(1 − confidence) grows with n, so the first failure ends it.
    """
    order_BS = _best_first(log_scores_BS, open_BS)
    needed_S = 1 - factor / torch.arange(2, open_BS.shape[-1] + 2, device=open_BS.device, dtype=torch.float64)
    sure_BS = log_scores_BS.gather(-1, order_BS).double() >= needed_S.clamp_min(0).log()
    sure_BS = sure_BS & open_BS.gather(-1, order_BS)
    taken_BS = sure_BS.cumprod(-1).bool()
    taken_BS[:, 0] = True
    return torch.zeros_like(open_BS).scatter(-1, order_BS, taken_BS) & open_BS


def answer_is_sure(gaps_BA: Tensor, progress: float) -> Tensor:
    """`prophet`: whether the mean gap of the two best logits over the answer's slots reaches the bar. Bool [B, 1].

    `progress` is the share of the steps that this one completes.
    """
    bar = next(bar for limit, bar in _PROPHET_BARS if progress < limit)
    return gaps_BA.double().mean(-1, keepdim=True) >= bar  # the sum is exact, or close to it, in whatever order


def replan(scores_BS: Tensor, masked_BS: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """`p2`: of all slots the `left` worst end up masked. Which masked ones are committed, which others masked again.

    Bool [B, S] each. Of equal scores the lowest positions are kept.
    """
    order_BS = _best_first(scores_BS, torch.ones_like(masked_BS))
    kept = masked_BS.shape[-1] - left
    kept_BS = torch.zeros_like(masked_BS).scatter(-1, order_BS[:, :kept], True)
    return masked_BS & kept_BS, ~masked_BS & ~kept_BS


def _best_first(ranks_BS: Tensor, among_BS: Tensor) -> Tensor:
    ranked_BS = torch.where(among_BS, ranks_BS, -torch.inf)
    return ranked_BS.sort(dim=-1, descending=True, stable=True).indices


def _block_of_slot(masked_BS: Tensor, block_length: int) -> Tensor:
    return torch.arange(masked_BS.shape[-1], device=masked_BS.device) // block_length
