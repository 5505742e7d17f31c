"""Baselines at equal compute: m independent decodes with a vote, the best of them, one long path.

Arms spend as many path slots a problem as the m paths have, or, for whole canvases, as many steps. Rows through the
network stand beside each: what they cost in fact differs, because independent decodes compute prompt and summary m
times over, and one path computes no other path's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from nap_runtime.errors import UsageError
from nap_runtime.job import DecodeConfig, DecodeResult, SyncPolicy
from nap_runtime.metrics.shares import Share, vote
from nap_runtime.study.budget import slots_of
from nap_runtime.study.controls.cases import Case
from nap_runtime.study.controls.decoding import Lab

ARMS = {
    "together": "m paths on one canvas, as configured",
    "vote": "majority of m independent decodes of one path",
    "surest": "the one of them with the highest mean log-confidence",
    "any": "right where any of them is (an oracle)",
    "single": "the first of them alone, at 1/m of the compute",
    "long": "one path of m budgets",
    "canvases": "majority of m independent decodes of the whole canvas, each in 1/m of the steps",
}


def path_budget(config: DecodeConfig) -> int:
    """Slots of all paths together."""
    each = config.path_tokens
    return sum(each) if isinstance(each, tuple) else (each or 0) * config.n_paths


def independent(config: DecodeConfig, draw: int) -> DecodeConfig:
    """One path with its share of the slots and steps, drawn with a seed of its own; no sync, one worker."""
    m = config.n_paths
    steps = None if config.steps is None else max(2, config.steps // m)
    slots = -(-path_budget(config) // m)
    return config.with_values(
        paths=1, path_tokens=slots, steps=steps, seed=config.seed + draw, sync=_alone(config), headers=config.headers
    )


def whole_canvas(config: DecodeConfig, draw: int) -> DecodeConfig:
    """All paths in 1/m of the steps, drawn with a seed of its own: for models that know no canvas of one path."""
    steps = max(2, (config.steps or slots_of(config)) // config.n_paths)
    return config.with_values(steps=steps, seed=config.seed + draw, sync=_alone(config))


def long_path(config: DecodeConfig) -> DecodeConfig:
    """One path with all slots and all steps."""
    return config.with_values(paths=1, path_tokens=path_budget(config), sync=_alone(config))


def _alone(config: DecodeConfig) -> SyncPolicy:
    return SyncPolicy("exact", topology=config.sync.sees)


def baselines(lab: Lab, alone: Lab, cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """Accuracy and cost of every arm.

    Args:
        lab: how the paths decode together; `alone` the same model on one worker.

    Raises:
        UsageError: independent decodes would all be the same: they need a temperature.
    """
    config = lab.config
    if config.n_paths > 1 and not config.temperature:
        raise UsageError("temperature: independent decodes need noise to differ; use above 0", field="temperature")
    together = lab.decode(cases)
    draws = [alone.with_config(independent(config, draw)).decode(cases) for draw in range(config.n_paths)]
    canvases = [alone.with_config(whole_canvas(config, draw)).decode(cases) for draw in range(config.n_paths)]
    one_long = alone.with_config(long_path(config)).decode(cases)
    by_case = list(zip(*draws, strict=True))
    surest = [max(some, key=sureness) for some in by_case]
    some_right = [any(c.problem.is_right(_answer(c, r)) for r in some) for c, some in zip(cases, by_case, strict=True)]
    flat, flat_canvases, n = list(chain(*draws)), list(chain(*canvases)), len(cases)
    return {
        "together": _arm(_share(cases, together), together, n),
        "vote": _arm(voted(cases, draws), flat, n),
        "surest": _arm(_share(cases, surest), flat, n),
        "any": _arm(Share(sum(some_right), n), flat, n),
        "single": _arm(_share(cases, draws[0]), draws[0], n),
        "long": _arm(_share(cases, one_long), one_long, n),
        "canvases": _arm(voted(cases, canvases), flat_canvases, n),
    }


def voted(cases: Sequence[Case], draws: Sequence[Sequence[DecodeResult]]) -> Share:
    """How often the majority of a case's draws is right; `draws[draw][case]`."""
    votes = [vote([_answer(c, r) for r in some]) for c, some in zip(cases, zip(*draws, strict=True), strict=True)]
    return Share.equal(votes, [case.problem.gold for case in cases])


def sureness(result: DecodeResult) -> float:
    """Mean log-confidence of all commits; −∞ of none."""
    scores = [delta.log_confidence for delta in result.record.commits]
    return float(np.concatenate(scores).mean()) if scores else -np.inf


def _answer(case: Case, result: DecodeResult) -> str | None:
    return case.problem.read(result.summary, result.answer)[0]


def _share(cases: Sequence[Case], results: Sequence[DecodeResult]) -> Share:
    pairs = zip(cases, results, strict=True)
    return Share(sum(case.problem.is_right(_answer(case, result)) for case, result in pairs), len(cases))


def _arm(share: Share, results: Sequence[DecodeResult], problems: int) -> dict[str, Any]:
    """Accuracy, and what a problem costs: rows through the network, runs of it, content tokens."""
    metrics = [result.metrics for result in results]
    return {
        "accuracy": share.to_json(),
        "rows": sum(m.nfe.rows for m in metrics) / problems,
        "runs": sum(m.nfe.total for m in metrics) / problems,
        "tokens": sum(m.useful_tokens for m in metrics) / problems,
    }
