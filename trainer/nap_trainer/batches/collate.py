"""Canvases of one batch, filled in, as the decoder would lay them out.

    prompt | B_1 path 1, end, padding | … | B_m path m, end, padding | B_S summary, end, padding | outside

Shapes: B canvases, N positions of the longest one (rounded up), K = m + 1 blocks (m in layout plain: the region).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nap_runtime.decoding.layout import CanvasLayout
from nap_trainer.batches.formats import Marks
from nap_trainer.batches.segments import PAD, Ids, SegmentTable, lengths

Small = npt.NDArray[np.int8]
Flags = npt.NDArray[np.bool_]
OUTSIDE, PROMPT = -2, -1


@dataclass(frozen=True, slots=True, kw_only=True)
class HostBatch:
    """Clean canvases of a batch on the host.

    Attributes:
        ids_BN: token ids (int32); end of text outside a canvas.
        block_BN: 0 where nothing is ever masked, else 1 + the slot's block: paths, then the summary (int8).
        header_BN: 1 + the block whose header stands there, else 0 (int8).
        owner_BN: the decoder's regions: -1 prompt, 0 … m−1 paths, m summary; -2 outside the canvas (int8).
        text_BN: slots of text or end tag, not of padding.
        index_B: place of each canvas in the global batch (what noise is drawn by).
        blocks: K.
        summary: whether the last block is a summary.
        full: whether every canvas fills all N positions.
    """

    ids_BN: Ids
    block_BN: Small
    header_BN: Small
    owner_BN: Small
    text_BN: Flags
    index_B: npt.NDArray[np.int64]
    blocks: int
    summary: bool
    full: bool


@dataclass(frozen=True, slots=True)
class _Template:
    """What follows the prompt, the same in every canvas of a batch: [C] each."""

    ids_C: Ids
    block_C: Small
    header_C: Small
    owner_C: Small
    starts: tuple[int, ...]  # of each block's slots

    @classmethod
    def of(cls, layout: CanvasLayout) -> _Template:
        prompt = layout.prompt_tokens
        ids = layout.initial_ids([layout.fill_id] * prompt)[prompt:].astype(np.int32)
        block, header = (np.zeros(layout.size, dtype=np.int8) for _ in range(2))
        owner = np.full(layout.size, PROMPT, dtype=np.int8)
        for index, each in enumerate(layout.blocks):
            block[each.slots.start : each.slots.stop] = index + 1
            header[each.header.start : each.header.stop] = index + 1
            owner[each.rows.start : each.rows.stop] = index
        starts = tuple(each.slots.start - prompt for each in layout.blocks)
        return cls(ids, block[prompt:], header[prompt:], owner[prompt:], starts)


def collate(
    table: SegmentTable,
    rows: npt.NDArray[np.int64],
    paths_Bm: npt.NDArray[np.int64],
    *,
    budgets: Sequence[int],
    summary_budget: int,
    marks: Marks,
    index_B: npt.NDArray[np.int64],
    multiple: int = 8,
) -> HostBatch:
    """Lay out rows of a table with the same budgets; `paths_Bm` names the path of each block.

    A text and its end must fit its budget: whoever chooses budgets sees to it. N is a multiple of `multiple`.
    """
    template = _Template.of(marks.layout(tuple(budgets), summary_budget, 1))
    blocks = [table.paths_nmL[rows, paths_Bm[:, j]] for j in range(len(budgets))]
    closers: list[tuple[int, ...]] = list(marks.ends[: len(budgets)]) if summary_budget else [()]
    if summary_budget:
        blocks.append(table.summary_nS[rows])
        closers.append(marks.summary_end)
    after, text = _fill(template, blocks, closers, [*budgets, *([summary_budget] if summary_budget else [])], marks)
    return _placed(template, table.prompt_nP[rows], after, text, marks, index_B, multiple, bool(summary_budget))


def _fill(
    template: _Template, blocks: list[Ids], closers: list[tuple[int, ...]], budgets: list[int], marks: Marks
) -> tuple[Ids, Flags]:
    """Slots after the prompt with their texts, [B, C], and which of them hold text."""
    size = len(blocks[0])
    after: Ids = np.repeat(template.ids_C[None], size, axis=0)
    text = np.zeros(after.shape, dtype=np.bool_)
    for start, block, closer, budget in zip(template.starts, blocks, closers, budgets, strict=True):
        used = lengths(block)
        assert int(used.max(initial=0)) + len(closer) <= budget
        slots = after[:, start : start + budget]
        slots[:] = marks.eos_id
        width = min(block.shape[1], budget)
        slots[:, :width] = np.where(block[:, :width] == PAD, marks.eos_id, block[:, :width])
        for offset, token in enumerate(closer):
            slots[np.arange(size), used + offset] = token
        text[:, start : start + budget] = np.arange(budget) < (used + len(closer))[:, None]
    return after, text


def _placed(
    template: _Template,
    prompt_BP: Ids,
    after_BC: Ids,
    text_BC: Flags,
    marks: Marks,
    index_B: npt.NDArray[np.int64],
    multiple: int,
    summary: bool,
) -> HostBatch:
    """Prompts of different lengths, each with its canvas right behind it."""
    prompts, tail = lengths(prompt_BP), after_BC.shape[1]
    n = -(-(int(prompts.max()) + tail) // multiple) * multiple
    at_BN = np.arange(n)[None] - prompts[:, None]  # place behind the prompt
    inside = (at_BN >= 0) & (at_BN < tail)
    where = at_BN.clip(0, tail - 1)
    ids = np.where(inside, np.take_along_axis(after_BC, where, 1), marks.eos_id).astype(np.int32)
    width = min(prompt_BP.shape[1], n)
    is_prompt = at_BN[:, :width] < 0
    ids[:, :width] = np.where(is_prompt, prompt_BP[:, :width], ids[:, :width])

    def spread(values_C: Small, before: int, behind: int) -> Small:
        return np.where(inside, values_C[where], np.where(at_BN < 0, before, behind)).astype(np.int8)

    return HostBatch(
        ids_BN=ids,
        block_BN=spread(template.block_C, 0, 0),
        header_BN=spread(template.header_C, 0, 0),
        owner_BN=spread(template.owner_C, PROMPT, OUTSIDE),
        text_BN=np.take_along_axis(text_BC, where, 1) & inside,
        index_B=index_B,
        blocks=len(template.starts),
        summary=summary,
        full=bool((at_BN < tail).all()),
    )
