"""From hidden states to commits without the host: which slots, how sure, which of them, closed blocks.

Two functions that compile, with the head between them. `gather_open` takes the rows of slots that may be committed
(masked, of blocks with a quota) into a buffer of fixed size. `decider` scores them, ranks each group's,
commits its quota and fills closed blocks. Step and quotas are read from tensors, so that a captured step is any step.

They do what `Selector` does for rules that rank and take a quota; tests hold the two to the same commits.

Shapes: B canvases, R computed rows, N columns, S slots of a kind of step, C rows of the head (at most S), D d_model,
V vocabulary, G groups that are picked from apart, E end ids, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nap_runtime.decoding import confidence
from nap_runtime.decoding.kinds import Kind
from nap_runtime.decoding.rules import rank_scores
from nap_runtime.job import Confidence, Rule
from nap_runtime.models import invariant, kernels
from nap_runtime.models.compiled import CompileOptions, own_code
from nap_runtime.models.transformer import accumulate_dtype


class Canvas(NamedTuple):
    """The tensors of a `CanvasState`, [B, N], which commits write in place."""

    ids: Tensor
    masked: Tensor
    step: Tensor
    kind: Tensor
    score: Tensor


class Slots(NamedTuple):
    """What a kind of step needs to know of its slots.

    Attributes:
        columns_S: where they stand; `rows` which computed row predicts each, [S] or [B, S].
        positions: on each canvas, [S] or [B, S]: what noise goes by.
        group_S: which quota each counts against; `block_S` the block that closes with it.
        turn_S: its place among what is picked one after another (`blockwise`), else 0.
        ends_SE: ids that close the block, -1 where there are fewer.
        quota_TG: by global step.
    """

    columns_S: Tensor
    rows: Tensor
    positions: Tensor
    group_S: Tensor
    block_S: Tensor
    turn_S: Tensor
    ends_SE: Tensor
    quota_TG: Tensor


class Choice(NamedTuple):
    """What is constant in `decide`.

    `closes`: blocks fill up once they are closed; `always`: also without a quota.
    `kernel`: `kernels.best_of` may score. `invariant`: what a slot gets depends on its own logits alone, bit for bit.
    """

    rule: Rule
    confidence: Confidence
    temperature: float
    eos_weight: float
    mask_id: int
    fill_id: int
    closes: bool
    always: bool
    kernel: bool = False
    invariant: bool = False


def _quotas(slots: Slots, step: Tensor) -> Tensor:
    """What each slot's group may commit at the step. [S]."""
    return slots.quota_TG.index_select(0, step.reshape(1))[0][slots.group_S]


def gather_open(hidden_BRD: Tensor, masked_BN: Tensor, slots: Slots, step: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Hidden states of the open slots, [B, C, D], and which slots these are, int64 [B, C], S where there is none.

    `size` is C, at least as many as can be open.
    """
    open_BS = masked_BN[:, slots.columns_S] & (_quotas(slots, step) > 0)
    batch, n_slots = open_BS.shape
    place_BS = torch.where(open_BS, open_BS.cumsum(-1) - 1, size).clamp_max(size)
    numbers_BS = torch.arange(n_slots, device=open_BS.device).expand(batch, -1)
    chosen_BC = torch.full((batch, size + 1), n_slots, dtype=torch.int64, device=open_BS.device)
    chosen_BC = chosen_BC.scatter(1, place_BS, numbers_BS)[:, :size]
    rows_BC = slots.rows.expand(batch, -1).gather(1, chosen_BC.clamp_max(n_slots - 1))
    return hidden_BRD.gather(1, rows_BC.unsqueeze(-1).expand(-1, -1, hidden_BRD.shape[-1])), chosen_BC


def score_open(
    logits_BCV: Tensor, chosen_BC: Tensor, slots: Slots, step: Tensor, seed: Tensor, text_ends_E: Tensor, choice: Choice
) -> tuple[Tensor, Tensor]:
    """Candidates and their log-confidences where their slots are, [B, S] each; anything where none is open."""
    n_slots, batch = slots.columns_S.shape[0], chosen_BC.shape[0]
    if choice.kernel and kernels.ranks(logits_BCV):
        ids_BC, scores_BC = kernels.best_of(logits_BCV, choice.mask_id)
    else:
        at_BC = slots.positions.expand(batch, -1).gather(1, chosen_BC.clamp_max(n_slots - 1))
        noise: dict[str, Any] = {"temperature": choice.temperature, "seed": seed, "positions": at_BC, "step": step}
        ids_BC, scores_BC = _drawn(logits_BCV, choice, noise)
    scores_BC = confidence.weigh_ends(scores_BC, ids_BC, text_ends_E, choice.eos_weight)
    ids_BS = ids_BC.new_zeros((batch, n_slots + 1)).scatter(1, chosen_BC, ids_BC)
    scores_BS = scores_BC.new_zeros((batch, n_slots + 1)).scatter(1, chosen_BC, scores_BC)
    return ids_BS[:, :n_slots], scores_BS[:, :n_slots]


def _drawn(logits_BCV: Tensor, choice: Choice, noise: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Candidates and their log-confidences, [B, C] each."""
    if choice.invariant:
        return invariant.candidates(logits_BCV, choice.confidence, choice.mask_id, **noise)
    ids_V = torch.arange(logits_BCV.shape[-1], device=logits_BCV.device)
    wide_BCV = logits_BCV.to(accumulate_dtype(logits_BCV.dtype))
    wide_BCV = torch.where(ids_V == choice.mask_id, -torch.inf, wide_BCV)
    ids_BC = confidence.draw(wide_BCV, **noise)
    return ids_BC, confidence.log_confidence(choice.confidence, wide_BCV, ids_BC)


def picked(ranks_BS: Tensor, open_BS: Tensor, slots: Slots, quota_S: Tensor) -> Tensor:
    """The best open slots of each group, as many as its quota; of equal ones the leftmost. Bool [B, S].

    A slot is picked when fewer of its group than the quota come before it: counting them is one pass without a sort.
    """
    number_S = torch.arange(open_BS.shape[-1], device=open_BS.device)
    mine, other = ranks_BS.unsqueeze(-1), ranks_BS.unsqueeze(-2)
    better_BSS = (other > mine) | ((other == mine) & (number_S[None, :] < number_S[:, None]))
    turn_SS = slots.turn_S[None, :] - slots.turn_S[:, None]
    first_BSS = (turn_SS < 0) | ((turn_SS == 0) & better_BSS)
    rivals_BSS = open_BS.unsqueeze(-2) & (slots.group_S[None, :] == slots.group_S[:, None])
    return open_BS & ((first_BSS & rivals_BSS).sum(-1) < quota_S)


def closing(ids_BS: Tensor, masked_BS: Tensor, slots: Slots) -> Tensor:
    """Masked slots of blocks that hold an end id with no masked slot before it. Bool [B, S]."""
    number_S = torch.arange(masked_BS.shape[-1], device=masked_BS.device)
    same_SS = slots.block_S[None, :] == slots.block_S[:, None]
    before_SS = same_SS & (number_S[None, :] <= number_S[:, None])
    open_before_BS = (before_SS & masked_BS.unsqueeze(-2)).any(-1)
    end_BS = (ids_BS.unsqueeze(-1) == slots.ends_SE).any(-1) & ~open_before_BS
    return masked_BS & (same_SS & end_BS.unsqueeze(-2)).any(-1)


def settle(
    canvas: Canvas, slots: Slots, step: Tensor, seed: Tensor, ids_BS: Tensor, scores_BS: Tensor, choice: Choice
) -> None:
    """Commit what the rule picks of the candidates, and fill what has closed, in place."""
    at, quota_S = slots.columns_S, _quotas(slots, step)
    masked_BS = canvas.masked[:, at]
    ranks_BS = rank_scores(choice.rule, scores_BS, positions=slots.positions, seed=seed, step=step)
    picked_BS = picked(ranks_BS, masked_BS & (quota_S > 0), slots, quota_S)
    new_ids_BS, left_BS = torch.where(picked_BS, ids_BS, canvas.ids[:, at]), masked_BS & ~picked_BS
    fill_BS = torch.zeros_like(left_BS)
    if choice.closes:
        fill_BS = closing(new_ids_BS, left_BS, slots)
        fill_BS = fill_BS if choice.always else fill_BS & (quota_S > 0)
    changed_BS = picked_BS | fill_BS
    score_BS = torch.where(picked_BS, scores_BS.double(), torch.where(fill_BS, 0.0, canvas.score[:, at]))
    kind_BS = torch.where(picked_BS, int(Kind.COMMIT), torch.where(fill_BS, int(Kind.FILL), canvas.kind[:, at]))
    step_BS = torch.where(changed_BS, step, canvas.step[:, at])
    for target_BN, new_BS in (
        (canvas.ids, torch.where(fill_BS, choice.fill_id, new_ids_BS)),
        (canvas.masked, left_BS & ~fill_BS),
        (canvas.step, step_BS),
        (canvas.kind, kind_BS.to(canvas.kind.dtype)),
        (canvas.score, score_BS),
    ):
        target_BN.index_copy_(1, at, new_BS)


@cache
def gatherer(options: CompileOptions) -> Callable[..., Any]:
    """`gather_open`, compiled."""
    return options.compiled(own_code(gather_open))


@cache
def decider(choice: Choice, options: CompileOptions) -> Callable[..., Any]:
    """Score, pick and commit with these constants, compiled: one function a choice, kept for later batches."""

    def decide(
        logits_BCV: Tensor,
        chosen_BC: Tensor,
        canvas: Canvas,
        slots: Slots,
        step: Tensor,
        seed: Tensor,
        text_ends_E: Tensor,
    ) -> None:
        found = score_open(logits_BCV, chosen_BC, slots, step, seed, text_ends_E, choice)
        settle(canvas, slots, step, seed, *found, choice)

    return options.compiled(own_code(decide))
