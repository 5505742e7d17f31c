"""How many slots are committed at each step.

`staggered` is this project's parallel-forced schedule: every path advances at its own even pace, and the paths
take turns, so that the total of a step is as even as it can be. `llada` and `dream` are the published schedules of
the single-stream rules (GSAI-ML/LLaDA `generate.py`; Dream-org/Dream `_sample`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeConfig
from nap_runtime.traits import answer_slots

Quotas = tuple[tuple[int, ...], ...]  # [step][block]


def staggered(budgets: Sequence[int], steps: int) -> Quotas:
    """Quotas ⌊(s+1)·L_j/T + j/m⌋ − ⌊s·L_j/T + j/m⌋ for every step s and path j, in exact integers."""
    m = len(budgets)

    def committed(step: int, path: int) -> int:
        return (step * budgets[path] * m + path * steps) // (steps * m)

    return tuple(tuple(committed(s + 1, j) - committed(s, j) for j in range(m)) for s in range(steps))


def llada(slots: int, steps: int) -> tuple[int, ...]:
    """LLaDA's `get_num_transfer_tokens`: n // T each step, one more in the first n % T."""
    base, more = divmod(slots, steps)
    return tuple(base + (step < more) for step in range(steps))


def dream(slots: int, steps: int, eps: float = 1e-3) -> tuple[int, ...]:
    """Dream's `_sample`: int(n · (1 − s/t)) of the n masked ones, the last step the rest; float32 as published."""
    times = torch.linspace(1, eps, steps + 1)
    quotas, left = [], slots
    for step in range(steps):
        share = 1 - times[step + 1] / times[step]
        quota = left if step == steps - 1 else int(torch.tensor(float(left)) * share)
        quotas.append(quota)
        left -= quota
    return tuple(quotas)


def path_planning(slots: int, steps: int) -> tuple[int, ...]:
    """P2's schedule, κ_t = t: after step s of T, ⌊n·(1 − s/T)⌋ of the n slots are masked, in exact integers."""
    left = [slots * (steps - step) // steps for step in range(steps + 1)]
    return tuple(before - after for before, after in pairwise(left))


def blockwise(slots: int, steps: int, block_length: int) -> tuple[int, ...]:
    """LLaDA's semi-autoregressive schedule: equal blocks from left to right, `llada` within each.

    Raises:
        UsageError: the blocks do not divide the slots, or the steps do not divide among the blocks.
    """
    if slots % block_length:
        raise UsageError(f"block_length: {block_length} does not divide the {slots} slots", field="block_length")
    blocks = slots // block_length
    if steps % blocks:
        raise UsageError(f"steps: {steps} does not divide among {blocks} blocks", field="steps")
    return llada(block_length, steps // blocks) * blocks


def block_of(slots: int, block_length: int | None) -> int:
    """Slots of one block: as asked for, or by default the largest divisor of the slots up to LLaDA's usual 32."""
    return block_length or max(length for length in range(1, min(32, slots) + 1) if slots % length == 0)


def path_steps(path_slots: int, summary_slots: int, steps: int) -> int:
    """T_p, the steps that go to the paths: clamp(round(T·P/(P+S)), 1, T−1); 1 where T = 1."""
    if steps == 1:
        return 1
    share = math.floor(steps * path_slots / (path_slots + summary_slots) + 0.5)
    return min(max(share, 1), steps - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmaskingSchedule:
    """The quotas of one decode.

    Args:
        paths: quotas [step][path] of the path phase (scope `path`), else empty.
        summary: quotas [step] of the summary phase (scope `path`), else empty.
        canvas: quotas [step] over all slots (scope `canvas`), else empty.
        at_once: T is 1: paths and summary are committed in the same step.
        fixed: each step commits its quota and no slot is masked again. Where not, an adaptive rule's quota is a
            bound, `prophet`'s holds until it commits all that is left, and `p2`'s is commits less remasks.
        block_steps: step at which each block of a cached canvas begins, ascending; else empty.
    """

    paths: Quotas = ()
    summary: tuple[int, ...] = ()
    canvas: tuple[int, ...] = ()
    at_once: bool = False
    fixed: bool = True
    block_steps: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        """T, logical steps."""
        return len(self.canvas) or len(self.paths) + len(self.summary) - self.at_once

    def left_after(self, step: int, layout: CanvasLayout, block: int | None) -> int:
        """Slots of a block (None: of the canvas) that are masked after a step when every quota is used."""
        if block is None:
            return layout.n_slots - sum(self.canvas[: step + 1])
        if block < layout.n_paths:
            return layout.budgets[block] - sum(row[block] for row in self.paths[: step + 1])
        at = 0 if self.at_once else step - len(self.paths)
        return layout.summary_budget - sum(self.summary[: max(at + 1, 0)])

    @classmethod
    def plan(cls, layout: CanvasLayout, config: DecodeConfig) -> UnmaskingSchedule:
        """The schedule a config asks for on a layout.

        Raises:
            UsageError: `steps` is more than the slots, or does not fit the rule.
        """
        fixed = config.traits.fixed
        answer = answer_slots(config.rule_args)
        if answer is not None and answer.stop > layout.n_slots:
            raise UsageError(f"rule_args: answer: the region has {layout.n_slots} slots", field="rule_args")
        if config.traits.adaptive:
            return _bounds(layout, config)
        steps = config.steps or layout.n_slots
        if steps > layout.n_slots:
            raise UsageError(f"steps: {steps} is more than the {layout.n_slots} slots", field="steps")
        if config.picks_over == "canvas":
            quotas = _canvas_quotas(layout.n_slots, steps, config)
            return cls(canvas=quotas, fixed=fixed, block_steps=_block_steps(quotas, config))
        if not layout.summary_budget:
            return cls(paths=staggered(layout.budgets, steps), fixed=fixed)
        at = path_steps(sum(layout.budgets), layout.summary_budget, steps)
        summary = tuple(q for (q,) in staggered((layout.summary_budget,), max(steps - at, 1)))
        return cls(paths=staggered(layout.budgets, at), summary=summary, at_once=steps == 1, fixed=fixed)


def _bounds(layout: CanvasLayout, config: DecodeConfig) -> UnmaskingSchedule:
    """An adaptive rule commits at least one slot of each region at a step, and at most a block of it."""
    block, summary = config.fast_block, layout.summary_budget
    if config.picks_over == "path":
        row = tuple(min(block, budget) for budget in layout.budgets)
        later = (min(block, summary),) * summary
        return UnmaskingSchedule(paths=(row,) * max(layout.budgets), summary=later, fixed=False)
    quotas = (min(block, layout.n_slots),) * layout.n_slots
    return UnmaskingSchedule(canvas=quotas, fixed=False, block_steps=_block_steps(quotas, config))


def _block_steps(quotas: tuple[int, ...], config: DecodeConfig) -> tuple[int, ...]:
    """Where the blocks of a canvas with a block cache begin: an adaptive rule may need a step for each slot."""
    if config.cache not in ("prefix", "dual"):
        return ()
    if config.traits.adaptive:
        return tuple(range(0, len(quotas), config.fast_block))
    block = block_of(sum(quotas), config.block_length)
    done = [0, *accumulate(quotas)]
    return tuple(step for step in range(len(quotas)) if done[step] % block == 0)


def _canvas_quotas(slots: int, steps: int, config: DecodeConfig) -> tuple[int, ...]:
    rule = config.picks_by
    if rule == "blockwise" or (rule == "prophet" and config.block_length is not None):
        return blockwise(slots, steps, block_of(slots, config.block_length))
    if rule == "p2":
        return path_planning(slots, steps)
    return (dream if config.rule_args.get("schedule") == "dream" else llada)(slots, steps)
