"""How many slots are committed at each step.

`staggered` is this project's parallel-forced schedule: every path advances at its own even pace, and the paths
take turns, so that the total of a step is as even as it can be. `llada` and `dream` are the published schedules of
the single-stream rules (GSAI-ML/LLaDA `generate.py`; Dream-org/Dream `_sample`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nap_runtime.decoding.layout import CanvasLayout
from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeConfig

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
    """

    paths: Quotas = ()
    summary: tuple[int, ...] = ()
    canvas: tuple[int, ...] = ()
    at_once: bool = False

    @property
    def steps(self) -> int:
        """T, logical steps."""
        return len(self.canvas) or len(self.paths) + len(self.summary) - self.at_once

    @classmethod
    def plan(cls, layout: CanvasLayout, config: DecodeConfig) -> UnmaskingSchedule:
        """The schedule a config asks for on a layout.

        Raises:
            UsageError: `steps` is more than the slots, or does not fit the rule.
        """
        steps = config.steps or layout.n_slots
        if steps > layout.n_slots:
            raise UsageError(f"steps: {steps} is more than the {layout.n_slots} slots", field="steps")
        if config.picks_over == "canvas":
            return cls(canvas=_canvas_quotas(layout.n_slots, steps, config))
        if not layout.summary_budget:
            return cls(paths=staggered(layout.budgets, steps))
        at = path_steps(sum(layout.budgets), layout.summary_budget, steps)
        summary = staggered((layout.summary_budget,), max(steps - at, 1))
        return cls(paths=staggered(layout.budgets, at), summary=tuple(q for (q,) in summary), at_once=steps == 1)


def _canvas_quotas(slots: int, steps: int, config: DecodeConfig) -> tuple[int, ...]:
    if config.picks_by == "blockwise":
        return blockwise(slots, steps, block_of(slots, config.block_length))
    return (dream if config.rule_args.get("schedule") == "dream" else llada)(slots, steps)
