"""Slots that are given instead of decoded: paths with texts of somebody else, or left masked for good.

A given slot is filled at step 0, by the worker that has its path; its peers learn of it as they learn of commits. A
slot that is given the mask id stays masked to every reader and is never decoded. Given tokens are fills in the record:
no metric counts them, and `nap trace verify` does not know them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nap_runtime.decoding.kinds import Kind
from nap_runtime.decoding.machine import Plan
from nap_runtime.decoding.record import CanvasDelta
from nap_runtime.errors import UsageError

Deltas = tuple[CanvasDelta, ...]


def give(plan: Plan, tokens: Mapping[int, Sequence[int]]) -> Deltas:
    """What one canvas gets at step 0.

    Args:
        tokens: path → ids of its first slots, at most its budget (the mask id: a slot that stays masked).

    Raises:
        UsageError: a path does not exist, its ids are too many, or the config cannot take given slots: a rule that
            masks again would undo them, a cache counts on its schedule, and in one step nothing would read them.
    """
    _check(plan)
    return tuple(_delta(plan, path, ids) for path, ids in sorted(tokens.items()) if len(ids))


def _check(plan: Plan) -> None:
    config = plan.config
    if config.traits.remasks:
        raise UsageError(f"rule: '{config.picks_by}' may mask given slots again; use another", field="rule")
    if config.cache is not None:
        raise UsageError("cache: it does not go with given slots; leave it out", field="cache")
    if plan.schedule.steps < 2:
        raise UsageError("steps: in one step nothing reads the given slots; use at least 2", field="steps")


def _delta(plan: Plan, path: int, ids: Sequence[int]) -> CanvasDelta:
    if not 0 <= path < plan.layout.n_paths:
        raise UsageError(f"given: there is no path {path}; the canvas has {plan.layout.n_paths}", field="given")
    slots = plan.layout.paths[path].slots
    if len(ids) > len(slots):
        text = f"given: {len(ids)} tokens for the {len(slots)} slots of path {path + 1}; use more path tokens"
        raise UsageError(text, field="given")
    return CanvasDelta(
        step=0,
        worker=plan.assignment.worker_of[path],
        kind=Kind.FILL,
        positions=np.arange(slots.start, slots.start + len(ids), dtype=np.int64),
        ids=np.array(ids, dtype=np.int64),
        log_confidence=np.zeros(len(ids)),
    )


def given_to(worker: int, given: Sequence[Deltas], *, over_canvas: bool) -> tuple[Deltas, ...]:
    """What a worker puts on its canvases: its own paths' tokens; all where every worker commits every slot."""
    kept = tuple(tuple(delta for delta in one if over_canvas or delta.worker == worker) for one in given)
    return kept if any(kept) else ()
